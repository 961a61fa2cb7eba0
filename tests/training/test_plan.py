import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from skimage.measure import label, regionprops

from medclipsam.base.errors import InputError, OptionError, TrainingError
from medclipsam.training.examples import Example, PreparedImage
from medclipsam.training.network import Network
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import Plan, make_plan, mirror_axes, topology, training_bytes

CLASSES = {"disc": 1, "square": 2}

FULL = TrainingOptions(preset="full", device="cpu")


def picture(folder, name, values, labels, **more):
    image, mask = folder / f"{name}.png", folder / f"{name}-mask.png"
    Image.fromarray(values).save(image)
    Image.fromarray(labels).save(mask)
    return Example(name, image, mask, "final", **more)


def volume(folder, name, values, labels, spacing, modality="CT"):
    """Write voxels [i, j, k] as NIfTI."""
    paths = []
    for kind, voxels in (("image", values.astype(np.int16)), ("mask", labels.astype(np.uint8))):
        path = folder / f"{name}-{kind}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
        paths.append(path)
    return Example(name, *paths, "final", modality=modality)


@pytest.mark.parametrize("shape", [(5, 7), (16, 16), (33, 190), (123, 128), (512, 512), (1, 4000)])
def test_a_network_of_any_shape_can_be_made_and_divides_its_patch(shape):
    patch, strides, kernels = topology(shape)
    whole = np.prod(strides, axis=0)
    assert len(strides) == len(kernels) >= 3
    for axis in (0, 1):
        assert patch[axis] % whole[axis] == 0
        assert patch[axis] >= shape[axis]
        assert patch[axis] < max(shape[axis], 16) + whole[axis]
        assert patch[axis] // whole[axis] >= 4


def test_512_pixels_are_halved_seven_times():
    # nnU-Net's plan for 512 x 512: down to 4 x 4
    patch, strides, kernels = topology((512, 512))
    assert patch == (512, 512)
    assert strides == [(1, 1), *[(2, 2)] * 7]
    assert kernels == [(3, 3)] * 8


def test_the_finer_axis_is_halved_until_pixels_are_nearly_square():
    _, strides, kernels = topology((256, 64), (0.5, 2.0))
    assert strides[:4] == [(1, 1), (2, 1), (2, 1), (2, 2)]
    assert kernels[:3] == [(3, 1), (3, 1), (3, 3)]


def test_a_plan_of_grey_pictures(make_examples, small):
    examples = make_examples(8)
    plan = make_plan(examples, CLASSES, small)
    assert (plan.channels, plan.source, plan.normalisation.scheme, plan.spacing) == (1, "display", "z-score", None)
    assert plan.max_side == 32
    assert plan.patch_size == (32, 32)
    assert plan.modality == "US"
    assert plan.filters == (4, 8, 16, 16)
    found = plan.fingerprint["classes"]
    assert (found["disc"]["images_with"], found["square"]["images_with"]) == (6, 8)
    assert sum(each["share_of_pixels"] for each in found.values()) == pytest.approx(1)
    truth = np.stack([example.labels(example.read(), 2)[0] for example in examples])
    with_disc = (truth == 1).any(axis=(1, 2))
    for key in ("share_of_image", "share_of_plane"):
        assert found["disc"][key] == pytest.approx((truth[with_disc] == 1).mean())
    sizes = [max(part.area for part in regionprops(label(plane == 2, connectivity=1))) / plane.size for plane in truth]
    assert found["square"]["small_part"] == pytest.approx(np.percentile(sizes, 5) / 2)


def test_the_plan_is_readable_and_comes_back(make_examples, small, tmp_path):
    plan = make_plan(make_examples(4), CLASSES, small)
    assert Plan.from_json(plan.to_json()) == plan
    assert '  "patch_size": [32, 32],\n' in plan.to_json()
    plan.write(tmp_path)
    assert Plan.read(tmp_path) == plan


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 2}'])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(TrainingError, match="no plan"):
        Plan.from_json(text)


def test_a_plan_of_another_version_is_refused(make_examples, small):
    plan = make_plan(make_examples(4), CLASSES, small)
    text = json.dumps({**json.loads(plan.to_json()), "version": 99})
    with pytest.raises(TrainingError, match="version 99"):
        Plan.from_json(text)


def test_colour_makes_three_channels_and_grey_saved_as_rgb_does_not(tmp_path, small):
    rng = np.random.default_rng(0)
    labels = np.pad(np.ones((10, 10), np.uint8), 15)
    grey = rng.integers(0, 255, (40, 40), dtype=np.uint8)
    rgb = picture(tmp_path, "grey", np.repeat(grey[..., None], 3, axis=2), labels)
    assert make_plan([rgb], {"a": 1}, small).channels == 1
    colour = picture(tmp_path, "colour", rng.integers(0, 255, (40, 40, 3), dtype=np.uint8), labels)
    plan = make_plan([rgb, colour], {"a": 1}, small)
    assert plan.channels == 3
    assert PreparedImage(rgb.read(), plan).plane(0).shape == (3, 32, 32)


def test_a_ct_is_normalised_by_the_foreground_of_all_images(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 24, 3), np.uint8)
    labels[4:12, 5:15] = 1
    examples, inside = [], []
    for index in range(3):
        values = np.where(labels > 0, rng.normal(60 + 20 * index, 10, labels.shape), -900).astype(np.int16)
        examples.append(volume(tmp_path, f"ct{index}", values, labels, (0.8, 0.8, 5)))
        inside.append(values[labels > 0])
    plan = make_plan(examples, {"organ": 1}, FULL)
    hounsfield = np.concatenate(inside)
    rule = plan.normalisation
    assert (plan.source, rule.scheme, plan.modality) == ("values", "foreground", "CT")
    assert (rule.low, rule.high) == pytest.approx(np.percentile(hounsfield, (0.5, 99.5)), abs=0.5)
    assert (rule.mean, rule.sd) == pytest.approx((hounsfield.mean(), hounsfield.std()), rel=0.01)
    assert plan.spacing == pytest.approx((0.8, 0.8))
    image = examples[0].read()
    made = PreparedImage(image, plan).plane(1).numpy()[0]
    expected = (np.clip(image.values(1), rule.low, rule.high) - rule.mean) / rule.sd
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_a_ct_of_display_values_cannot_be_given_to_a_network_of_hounsfield_units(tmp_path):
    labels = np.ones((20, 24, 2), np.uint8)
    ct = volume(tmp_path, "ct", np.arange(960).reshape(20, 24, 2), labels, (1, 1, 5))
    plan = make_plan([ct], {"organ": 1}, FULL)
    shown = picture(tmp_path, "shown", np.zeros((20, 24), np.uint8), labels[..., 0], modality="CT")
    with pytest.raises(InputError, match="Hounsfield"):
        PreparedImage(shown.read(), plan)
    # beside such pictures the network is trained on display planes of both
    assert make_plan([ct, shown], {"organ": 1}, FULL).source == "display"


def test_a_window_makes_display_planes_of_a_ct(tmp_path):
    values = np.linspace(-1000, 1000, 960).reshape(20, 24, 2)
    ct = volume(tmp_path, "ct", values, values > 0, (1, 1, 5))
    plan = make_plan([ct], {"organ": 1}, FULL.replace(window="-600/1500"))
    assert (plan.source, plan.window) == ("display", (-600, 1500))
    with pytest.raises(OptionError, match="no CT"):
        make_plan([replace(ct, modality="MR")], {"organ": 1}, FULL.replace(window="-600/1500"))


def test_other_volumes_have_mean_0_and_deviation_1_as_a_whole(tmp_path):
    values = np.random.default_rng(0).normal(300, 50, (20, 24, 4)).clip(1)
    values[..., 3] *= 2
    mr = volume(tmp_path, "mr", values, values > 350, (1, 1, 5), modality="MR")
    plan = make_plan([mr], {"lesion": 1}, FULL)
    prepared = PreparedImage(mr.read(), plan)
    stack = np.stack([prepared.plane(index).numpy() for index in range(4)])
    assert stack.mean() == pytest.approx(0, abs=1e-3)
    assert stack.std() == pytest.approx(1, abs=1e-3)
    assert stack[3].mean() > 1  # not each plane on its own


def test_volumes_are_resampled_to_the_median_spacing_plane_by_plane(tmp_path):
    labels = np.ones((30, 40, 2), np.uint8)
    given = [
        volume(tmp_path, f"v{spacing}", np.random.default_rng(0).normal(0, 99, labels.shape), labels, (spacing, 1, 6))
        for spacing in (1.0, 1.001, 2.0)
    ]
    plan = make_plan(given, {"organ": 1}, FULL)
    assert plan.spacing == pytest.approx((1, 1.001))
    coarse = given[2].read()
    # i runs along the patient's left-right axis, which are the columns on display: 30 of 2 mm
    assert coarse.plane_shape == (40, 30)
    assert PreparedImage(coarse, plan).shape == (40, 60)  # of the median spacing
    assert make_plan(given, {"organ": 1}, FULL.replace(spacing=2.0)).spacing == (2.0, 2.0)
    assert make_plan(given, {"organ": 1}, FULL.replace(max_side=20)).spacing == pytest.approx((2, 2.002))


def test_a_spacing_that_must_be_wrong_is_told_before_memory_runs_out(tmp_path):
    labels = np.ones((30, 40, 2), np.uint8)
    plan = make_plan([volume(tmp_path, "ct", labels * 99, labels, (0.5, 0.5, 5))], {"organ": 1}, FULL)
    metres = volume(tmp_path, "metres", labels * 99, labels, (500, 500, 5000))
    with pytest.raises(InputError, match=r"40000 of the network's pixels.*must be wrong"):
        PreparedImage(metres.read(), plan)


def test_a_spacing_cannot_be_asked_for_where_images_have_none(make_examples, small):
    with pytest.raises(OptionError, match="spacing"):
        make_plan(make_examples(2), CLASSES, small.replace(spacing=1.0))


def test_classes_are_resampled_each_on_its_own(make_examples, small):
    example = make_examples(1)[0]
    plan = make_plan([example], CLASSES, small)
    image = example.read()
    labels = example.labels(image, 2)
    prepared = PreparedImage(image, plan)
    made = prepared.label(labels[0])
    assert made.shape == (32, 32)
    for value in (1, 2):
        share = (made.numpy() == value).mean()
        assert share == pytest.approx((labels == value).mean(), abs=0.02)
    # between a 2 and a 0 there is no ring of 1
    square = np.zeros((48, 48), np.uint8)
    square[10:30, 10:30] = 2
    assert set(np.unique(prepared.label(square))) == {0, 2}


def test_patch_and_batch_fit_the_memory(tmp_path):
    rng = np.random.default_rng(0)
    example = picture(tmp_path, "big", rng.integers(0, 255, (600, 700), dtype=np.uint8), np.ones((600, 700), np.uint8))
    sizes = []
    for memory in (8 * 10**9, 2 * 10**9, 6 * 10**8):
        plan = make_plan([example], {"a": 1}, FULL.replace(memory=memory))
        assert plan.memory["estimated"] <= memory
        assert plan.batch_size >= 2
        sizes.append(plan.batch_size * np.prod(plan.patch_size))
    assert sizes[0] >= sizes[1] > sizes[2]


def test_a_memory_in_which_nothing_fits_is_refused(make_examples):
    with pytest.raises(OptionError, match="memory"):
        make_plan(make_examples(2), CLASSES, FULL.replace(memory=50 * 10**6, base_filters=512, max_filters=512))


def test_the_estimate_counts_the_weights_exactly(make_examples, small):
    plan = make_plan(make_examples(2), CLASSES, small)
    given = (plan.strides, plan.kernels, plan.filters, 1, 2)
    weights = sum(p.numel() for p in Network(plan).parameters())
    counted = (2 * training_bytes((32, 32), 1, *given) - training_bytes((32, 32), 2, *given)) / 16
    assert counted == pytest.approx(weights, rel=0.05)


@pytest.mark.parametrize(
    ("names", "choice", "expected"),
    [
        (("breast tumour",), "auto", (1,)),
        (("left lung", "heart"), "auto", ()),
        (("lung_right",), "auto", ()),
        (("bright spot",), "auto", (1,)),
        (("breast tumour",), "both", (0, 1)),
        (("left lung",), "none", ()),
    ],
)
def test_left_and_right_are_not_mirrored(names, choice, expected):
    assert mirror_axes(names, choice) == expected


def test_mirroring_what_has_a_side_is_refused():
    with pytest.raises(OptionError, match="left lung"):
        mirror_axes(["left lung"], "both")


@pytest.mark.parametrize("classes", [{}, {"a": 2}, {"a": 1, "b": 1}, {"a": 0}, {"a": 1, "b": 3}])
def test_classes_with_gaps_are_refused(make_examples, small, classes):
    with pytest.raises(InputError, match="without a gap"):
        make_plan(make_examples(2), classes, small)


def test_planes_of_one_pixel_can_be_planned(tmp_path, small):
    example = picture(tmp_path, "dot", np.full((1, 1), 9, np.uint8), np.ones((1, 1), np.uint8))
    plan = make_plan([example], {"a": 1}, small)
    assert plan.patch_size == (16, 16)
    assert PreparedImage(example.read(), plan).plane(0).tolist() == [[[0.0]]]
