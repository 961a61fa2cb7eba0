from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from scipy import stats
from scipy.special import softmax

from medclipsam.base import engine
from medclipsam.base.errors import CancelledError, InputError, OptionError, TrainingError
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble
from medclipsam.training.plan import make_plan
from medclipsam.training.uncertainty import image_score
from tests.training.untrained import logits_by_hand, untrained

CLASSES = {"disc": 1, "square": 2}


@pytest.fixture
def plan(make_examples, small):
    return make_plan(make_examples(2), CLASSES, small)


@pytest.fixture
def image():
    return MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))


@pytest.fixture
def folder(plan, tmp_path):
    return untrained(plan, tmp_path / "net")


def by_hand(folder, plan, image):
    """Return each member's probabilities, float64 [members, planes, classes + 1, h, w], by plain calls."""
    return softmax(logits_by_hand(folder, plan, image), axis=2)


def test_the_prediction_is_the_mean_of_the_members(folder, plan, image):
    p = by_hand(folder, plan, image)
    made = Ensemble.load(folder, device="cpu").predict(image, probabilities=True, small_parts=True)
    np.testing.assert_allclose(made.probabilities, p.mean(axis=0), atol=2e-3)
    np.testing.assert_array_equal(made.labels, p.mean(axis=0).argmax(axis=1))
    assert made.labels.dtype == np.uint8
    last = Ensemble.load(folder, device="cpu").predict(image, probabilities=True, members=1)
    np.testing.assert_allclose(last.probabilities, p[2], atol=2e-3)


def test_its_uncertainty_maps_are_those_of_numpy_and_scipy(folder, plan, image):
    p = by_hand(folder, plan, image)
    mean = p.mean(axis=0)
    ensemble = Ensemble.load(folder, device="cpu")
    classes = np.stack([stats.entropy([mean[:, c], 1 - mean[:, c]]) for c in (1, 2)], axis=1)
    made = ensemble.predict(image)
    np.testing.assert_allclose(made.uncertainty, classes.max(axis=1), atol=1e-4)
    for index, name in ((1, "disc"), (2, "square")):
        expected = image_score(classes[:, index - 1], made.labels == index)
        assert made.boundary_scores[name] == pytest.approx(expected, rel=1e-3)
    expected = image_score(classes.max(axis=1), made.labels > 0)
    assert made.boundary_scores["image"] == pytest.approx(expected, rel=1e-3)
    total = ensemble.predict(image, uncertainty="total_entropy").uncertainty
    np.testing.assert_allclose(total, stats.entropy(mean, axis=1), atol=1e-4)
    top = np.argsort(mean, axis=1)
    first, second = (np.take_along_axis(p, top[None, :, [place]], axis=2)[:, :, 0] for place in (-1, -2))
    expected = stats.ttest_ind(first, second, axis=0, equal_var=False).pvalue
    np.testing.assert_allclose(ensemble.predict(image, uncertainty="welch").uncertainty, expected, atol=2e-3)


def test_its_scores_are_the_expected_lack_of_dice_whichever_map_is_made(folder, plan, image):
    mean = by_hand(folder, plan, image).mean(axis=0)
    labels = mean.argmax(axis=1)

    def lack(p, mask, usual):
        return 1 - (2 * (p * mask).sum() + usual) / (p.sum() + mask.sum() + usual)

    made = Ensemble.load(folder, device="cpu").predict(image, uncertainty="total_entropy", small_parts=True)
    found = plan.fingerprint["classes"]
    scores, planes = [], []
    for index, name in ((1, "disc"), (2, "square")):
        scores.append(lack(mean[:, index], labels == index, found[name]["share_of_image"] * labels.size))
        assert made.scores[name] == pytest.approx(scores[-1], rel=1e-3)
        usual = found[name]["share_of_plane"] * labels[0].size
        planes.append([lack(mean[n, index], labels[n] == index, usual) for n in range(3)])
    assert made.scores["image"] == pytest.approx(np.mean(scores), rel=1e-3)
    np.testing.assert_allclose(made.plane_scores, np.mean(planes, axis=0), rtol=1e-3)


def test_members_that_stay_in_memory_change_no_result(folder, image):
    one = Ensemble.load(folder, device="cpu")
    few = Ensemble.load(folder, device="cpu", memory=1)
    for members in (None, 1, None):
        first, second = (each.predict(image, members=members, probabilities=True) for each in (one, few))
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-3)
    assert (len(one._kept), len(few._kept)) == (3, 0)


def test_members_by_an_engine_give_torchs_probabilities(folder, image, monkeypatch):
    expected = Ensemble.load(folder, device="cpu").predict(image, probabilities=True)
    monkeypatch.setenv(engine.VARIABLE, "openvino")
    ensemble = Ensemble.load(folder, device="cpu")
    made = ensemble.predict(image, probabilities=True)
    assert all(isinstance(member, engine._Converted) for member in ensemble._kept.values())
    np.testing.assert_allclose(made.probabilities, expected.probabilities, atol=2e-3)


def test_bounded_memory_changes_no_result(folder, image):
    one = Ensemble.load(folder, device="cpu").predict(image, uncertainty="welch")
    few = Ensemble.load(folder, device="cpu", memory=1).predict(image, uncertainty="welch")
    np.testing.assert_array_equal(one.labels, few.labels)
    np.testing.assert_allclose(one.uncertainty, few.uncertainty, atol=1e-3)


def test_parts_smaller_than_half_of_nearly_all_in_training_are_dropped(folder, plan, image):
    from skimage.measure import label, regionprops

    ensemble = Ensemble.load(folder, device="cpu")
    whole = ensemble.predict(image, small_parts=True).labels
    made = ensemble.predict(image).labels
    dropped = 0
    for index, name in ((1, "disc"), (2, "square")):
        least = plan.fingerprint["classes"][name]["small_part"] * whole[0].size
        for before, after in zip(whole, made, strict=True):
            for part in regionprops(label(before == index, connectivity=1)):
                kept = (after[tuple(part.coords.T)] == index).all()
                assert kept == (part.area >= least)
                dropped += not kept
    assert dropped
    assert not (made != whole)[made > 0].any()


def test_mirroring_is_the_mean_of_both_sides_and_only_of_allowed_axes(plan, tmp_path, image):
    folder = untrained(plan, tmp_path / "net")
    flipped = MedicalImage.from_array(np.stack([image.plane(n)[:, ::-1, 0] for n in range(3)]))
    plain = Ensemble.load(folder, device="cpu")
    there = plain.predict(image, probabilities=True).probabilities.astype(np.float32)
    back = plain.predict(flipped, probabilities=True).probabilities[..., ::-1].astype(np.float32)
    both = plain.predict(image, probabilities=True, mirror=True).probabilities
    np.testing.assert_allclose(both, (there + back) / 2, atol=3e-3)
    fixed = untrained(replace(plan, mirror_axes=()), tmp_path / "fixed")
    alone = Ensemble.load(fixed, device="cpu").predict(image, probabilities=True, mirror=True).probabilities
    np.testing.assert_allclose(alone, there, atol=2e-3)


@pytest.mark.parametrize("shape", [(3, 3), (20, 50), (100, 70), (33, 31)])
def test_results_lie_on_the_image_s_own_pixels(folder, shape):
    image = MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    made = Ensemble.load(folder, device="cpu").predict(image)
    assert made.labels.shape == made.uncertainty.shape == (1, *shape)
    assert np.isfinite(made.uncertainty).all()
    assert made.uncertainty.min() >= 0
    assert made.uncertainty.max() <= np.log(2) + 1e-6


def test_planes_larger_than_the_patch_are_seen_through_windows(small, make_examples, tmp_path):
    options = small.replace(max_side=96, max_patch=32)
    plan = make_plan(make_examples(2, side=96), CLASSES, options)
    assert (plan.max_side, plan.patch_size) == (96, (32, 32))
    folder = untrained(plan, tmp_path / "net")
    ensemble = Ensemble.load(folder, device="cpu")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (96, 96), dtype=np.uint8)
    before = ensemble.predict(MedicalImage.from_array(picture), probabilities=True, members=1).probabilities
    # what is changed in one corner is not seen in the opposite one
    picture[:8, :8] = picture[8:16, :8]
    after = ensemble.predict(MedicalImage.from_array(picture), probabilities=True, members=1).probabilities
    assert np.abs(before - after)[..., :16, :16].max() > 0.01
    np.testing.assert_allclose(before[..., 64:, 64:], after[..., 64:, 64:], atol=0.02)


def test_a_volume_is_predicted_in_display_orientation_and_lies_on_its_file(folder, tmp_path, plan):
    voxels = np.random.default_rng(0).integers(0, 255, (30, 40, 5)).astype(np.uint8)
    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    image = read_image(path)
    made = Ensemble.load(folder, device="cpu").predict(image)
    assert made.labels.shape == (5, 40, 30)
    assert made.plane_scores.shape == (5,)
    assert image.to_native(made.labels).shape == (5, 40, 30)  # k, j, i
    flipped = tmp_path / "flipped.nii.gz"
    nib.save(nib.Nifti1Image(voxels[::-1].copy(), np.diag([-1.0, 1.0, 5.0, 1.0]) + np.eye(4)[:, [3]] * 0), flipped)
    again = Ensemble.load(folder, device="cpu").predict(read_image(flipped))
    np.testing.assert_array_equal(made.labels, again.labels)


def test_what_lies_outside_the_region_is_background_and_certain(folder):
    image = MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    image._region = np.broadcast_to(np.arange(32)[None] < 20, (32, 32))
    made = Ensemble.load(folder, device="cpu").predict(image)
    assert not made.labels[..., 20:].any()
    assert not made.uncertainty[..., 20:].any()
    assert made.uncertainty[..., :20].any()


def test_without_uncertainty_there_is_no_map_and_no_score(folder, image):
    made = Ensemble.load(folder, device="cpu").predict(image, uncertainty="none")
    assert made.uncertainty is None
    assert made.scores == {}
    assert made.probabilities is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"uncertainty": "variance"}, "class_entropy, total_entropy, welch, none"),
        ({"members": 4}, "from 1 to 3"),
        ({"members": 0}, "from 1 to 3"),
        ({"members": 1, "uncertainty": "welch"}, "one member"),
    ],
)
def test_options_that_are_not_allowed_are_refused(folder, image, given, said):
    with pytest.raises(OptionError, match=said):
        Ensemble.load(folder, device="cpu").predict(image, **given)


def test_it_can_be_stopped_and_tells_how_far_it_is(folder, image):
    seen: list[float] = []
    ensemble = Ensemble.load(folder, device="cpu")
    ensemble.predict(image, progress=lambda share, message: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1
    with pytest.raises(CancelledError):
        ensemble.predict(image, cancelled=lambda: True)


def test_the_identity_is_that_of_weights_and_plan(folder, plan, tmp_path):
    one = Ensemble.load(folder, device="cpu").identity
    assert Ensemble.load(folder, device="cpu").identity == one
    replace(plan, window=(0, 1)).write(folder)
    assert Ensemble.load(folder, device="cpu").identity != one


@pytest.mark.parametrize("name", ["plan.json", ENSEMBLE_FILE])
def test_a_folder_without_a_network_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(TrainingError, match=name):
        Ensemble.load(folder, device="cpu")


def test_a_damaged_network_is_told(folder):
    content = (folder / ENSEMBLE_FILE).read_bytes()
    (folder / ENSEMBLE_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match="cannot be read"):
        Ensemble.load(folder, device="cpu")


def test_weights_of_another_plan_are_refused(folder, plan):
    tensors = load_file(folder / ENSEMBLE_FILE)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / ENSEMBLE_FILE)
    with pytest.raises(TrainingError, match="not those of its plan"):
        Ensemble.load(folder, device="cpu")


def test_a_picture_given_to_a_network_of_hounsfield_units_is_refused(plan, tmp_path, image):
    folder = untrained(replace(plan, source="values"), tmp_path / "net")
    with pytest.raises(InputError, match="Hounsfield"):
        Ensemble.load(folder, device="cpu").predict(image)
