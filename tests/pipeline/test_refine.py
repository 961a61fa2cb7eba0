"""Clicks and boxes on present masks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.demo.phantoms import make_phantom
from medclipsam.imaging import MedicalImage, Window, read_image, write_mask
from medclipsam.imaging.masks import flatten, mask_of
from medclipsam.pipeline.refine import Clicks, RefineResult, refine
from medclipsam.sam import MaskResult, SamModel
from medclipsam.weights import resolve_pair

SHAPE = (40, 50)


class FixedSam:
    """Answers one mask to every prompt, and remembers what it was asked."""

    def __init__(self, answer: np.ndarray, mask_prompts: bool = False) -> None:
        self.answer = answer
        self.mask_prompts = mask_prompts
        self.planes: list[np.ndarray] = []
        self.asked: list[SimpleNamespace] = []

    def embed(self, plane: np.ndarray) -> None:
        self.planes.append(plane)

    def decode(self, embedding: None, boxes: Any, points: Any, labels: Any, *, mask: Any) -> MaskResult:
        self.asked.append(SimpleNamespace(boxes=boxes, points=points, labels=labels, mask=mask))
        return MaskResult(self.answer, 0.8, self.answer.astype(np.float32))


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.fixture
def stack(tmp_path: Path) -> MedicalImage:
    """Three flat planes of 40 x 50, an order of axes that display leaves alone (i columns, j rows, k planes)."""
    return flat(tmp_path, np.full((3, *SHAPE), 100, np.uint8))


def flat(folder: Path, planes: np.ndarray) -> MedicalImage:
    path = folder / "image.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(planes), path)
    image = read_image(path)
    assert np.array_equal(image.plane(0)[..., 0], planes[0])
    return image


def on(image: MedicalImage, sam: Any, mask: np.ndarray, clicks: Any, **more: Any) -> RefineResult:
    present = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    present[1] = mask
    return refine(image, sam, present, clicks, **more)


def test_a_foreground_click_adds_what_hangs_together_with_it(stack: MedicalImage) -> None:
    mask = block(10, 10, 10, 10)
    # SAM finds the missing part, another one far away, and a rim of one pixel all round
    answer = ndimage.binary_dilation(mask | block(10, 20, 10, 10)) | block(30, 40, 5, 5)
    sam = FixedSam(answer)
    result = on(stack, sam, mask, {1: Clicks.from_ijk(stack, foreground=[[25, 15, 1]])})

    gained = (result.labels[1] == 1) & ~mask
    assert gained[11:19, 21:29].all()
    assert not gained[30:35, 40:45].any()
    # the rim on the far side of the mask is none of this click's business
    assert not gained[:, :15].any()
    assert not result.labels[[0, 2]].any()
    assert [(p.plane, p.label, p.followed, p.sam_score) for p in result.planes] == [(1, 1, {"sam": 1}, 0.8)]
    # the box round the mask and the click goes with the click
    assert sam.asked[0].boxes.tolist() == [[10, 10, 25, 19]]
    assert sam.asked[0].points.tolist() == [[25, 15]]
    assert sam.asked[0].labels.tolist() == [1]


def test_a_background_click_takes_away_what_hangs_together_with_it(stack: MedicalImage) -> None:
    true, leak, far = block(10, 10, 10, 10), block(12, 20, 6, 15), block(30, 30, 6, 6)
    mask = true | leak | far
    result = on(stack, FixedSam(true), mask, {1: Clicks.from_ijk(stack, background=[[28, 15, 1]])})
    after = result.labels[1] == 1
    assert not after[12:18, 22:35].any()
    assert (after & true).sum() == true.sum()
    assert (after & far).sum() == far.sum()


def test_a_click_that_agrees_changes_nothing_and_costs_nothing(stack: MedicalImage) -> None:
    mask = block(10, 10, 10, 10)
    sam = FixedSam(np.ones(SHAPE, bool))
    clicks = Clicks.from_ijk(stack, foreground=[[15, 15, 1]], background=[[40, 35, 1]])
    result = on(stack, sam, mask, {1: clicks})
    assert np.array_equal(result.labels[1], mask)
    assert sam.planes == []
    assert result.planes[0].followed == {"agreed": 2}
    assert result.planes[0].changed == 0


@pytest.mark.parametrize("answer", [np.zeros(SHAPE, bool), np.ones(SHAPE, bool)], ids=["nothing", "everything"])
def test_clicks_are_followed_where_sam_does_not_follow_them(tmp_path: Path, answer: np.ndarray) -> None:
    """By what is as bright as the click, and no farther than the mask's outline allows."""
    planes = np.full((3, *SHAPE), 60, np.uint8)
    structure = block(10, 10, 16, 24)
    planes[:, structure] = 160
    image = flat(tmp_path, planes)
    hole, bulge = block(15, 20, 5, 5), block(26, 15, 7, 7)
    mask = structure & ~hole | bulge
    clicks = Clicks.from_ijk(image, foreground=[[22, 17, 1]], background=[[18, 29, 1]])
    result = on(image, FixedSam(answer), mask, {1: clicks})
    after = result.labels[1] == 1
    assert after[17, 22]
    assert not after[29, 18]
    assert (after ^ structure).sum() < 0.5 * (mask ^ structure).sum()
    # nothing changed far from the two clicks
    rows, columns = np.nonzero(after ^ mask)
    assert (np.minimum(np.hypot(rows - 17, columns - 22), np.hypot(rows - 29, columns - 18)) < 7).all()


def test_within_a_box_the_label_becomes_the_answer(stack: MedicalImage) -> None:
    mask = block(5, 5, 20, 20)
    answer = block(12, 12, 20, 30)
    sam = FixedSam(answer)
    # corners in any order
    result = on(stack, sam, mask, {1: Clicks.from_ijk(stack, box=[34, 29, 1, 10, 10, 1])})
    inside = block(10, 10, 20, 25)
    assert np.array_equal(result.labels[1] == 1, np.where(inside, answer, mask))
    assert sam.asked[0].boxes.tolist() == [[10, 10, 34, 29]]


def test_a_box_over_several_planes_is_asked_on_each(stack: MedicalImage) -> None:
    sam = FixedSam(block(12, 12, 5, 5))
    result = on(stack, sam, block(0, 0, 0, 0), {7: Clicks.from_ijk(stack, box=[10, 10, 0, 20, 20, 1])})
    assert len(sam.asked) == 2
    assert [int((plane == 7).sum()) for plane in result.labels] == [25, 25, 0]


def test_other_labels_give_way_only_to_a_click_on_them(stack: MedicalImage) -> None:
    present = np.zeros((3, *SHAPE), np.uint8)
    present[1][block(10, 10, 10, 10)] = 1
    present[1][block(10, 20, 10, 10)] = 2
    answer = block(10, 10, 10, 20) | block(20, 10, 8, 20)

    below = refine(stack, FixedSam(answer), present, {1: Clicks.from_ijk(stack, foreground=[[15, 24, 1]])}).labels
    assert (below[1] == 2).sum() == 100
    assert (below[1] == 1).sum() == 260

    on_it = refine(stack, FixedSam(answer), present, {1: Clicks.from_ijk(stack, foreground=[[25, 15, 1]])}).labels
    assert on_it[1, 15, 25] == 1
    assert (on_it[1] == 2).sum() < 20


def test_foreground_of_one_label_is_background_of_the_others(stack: MedicalImage) -> None:
    sam = FixedSam(block(5, 5, 30, 40))
    clicks = {
        1: Clicks.from_ijk(stack, foreground=[[10, 20, 1]], background=[[25, 34, 1]]),
        2: Clicks.from_ijk(stack, foreground=[[40, 20, 1]], background=[[25, 34, 1]]),
    }
    labels = refine(stack, sam, None, clicks).labels[1]
    assert (labels[20, 10], labels[20, 40], labels[34, 25]) == (1, 2, 0)
    assert [asked.labels.tolist() for asked in sam.asked] == [[1, 0, 0], [1, 0, 0]]


def test_only_weights_that_know_masks_are_given_the_mask(stack: MedicalImage) -> None:
    mask = block(10, 10, 10, 10)
    clicks = {1: Clicks.from_ijk(stack, foreground=[[25, 15, 1]])}
    for knows in (True, False):
        sam = FixedSam(mask, mask_prompts=knows)
        on(stack, sam, mask, clicks)
        assert (sam.asked[0].mask is not None) is knows
    empty = FixedSam(mask, mask_prompts=True)
    on(stack, empty, mask & False, clicks)
    assert empty.asked[0].mask is None
    assert empty.asked[0].boxes is None


def test_a_label_is_looked_at_through_its_window(tmp_path: Path) -> None:
    planes = np.linspace(-1000, 1000, 40 * 50).reshape(1, *SHAPE).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(planes), tmp_path / "ct.nrrd")
    image = read_image(tmp_path / "ct.nrrd", modality="CT")
    sam = FixedSam(block(0, 0, 9, 9))
    window = Window(-600, 1500)
    refine(image, sam, None, {3: Clicks.from_ijk(image, foreground=[[5, 5]])}, windows={3: window})
    assert np.array_equal(sam.planes[0], image.plane(0, window))
    assert not np.array_equal(sam.planes[0], image.plane(0))


@pytest.mark.parametrize(
    ("clicks", "sentence"),
    [
        ({}, "Nothing was marked"),
        ({1: {}}, "Nothing was marked"),
        ({0: {"foreground": [[1, 1, 1]]}}, "Label 0 cannot be refined; allowed are 1 to 255"),
        ({1: {"foreground": [[1, 1, 3]]}}, r"\[1.0, 1.0, 3.0\] lies outside"),
        ({1: {"foreground": [[1, 1]]}}, "cannot be used"),
        ({1: {"box": [1, 1, 1, 2]}}, "cannot be used"),
        ({1: {"box": [1, 1, 1, 2, 2]}}, "two opposite corners"),
        ({1: {"box": [1, 1, 1, 2, 2, 9]}}, "lies outside"),
        ({1: {"foreground": [[1, 2, 1]], "background": [[1, 2, 1]]}}, "marked both inside and outside"),
        ({1: {"foreground": [[1, 2, 1]]}, 2: {"foreground": [[1, 2, 1]]}}, "marked both inside and outside"),
    ],
)
def test_marks_that_cannot_be_used_are_refused(stack: MedicalImage, clicks: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        refine(
            stack, FixedSam(block(0, 0, 1, 1)), None, {n: Clicks.from_ijk(stack, **more) for n, more in clicks.items()}
        )


def test_a_mask_of_another_size_is_refused(stack: MedicalImage) -> None:
    with pytest.raises(InputError, match=r"\(1, 2, 3\) does not fit"):
        refine(stack, FixedSam(block(0, 0, 1, 1)), np.zeros((1, 2, 3)), {1: Clicks.from_ijk(stack, [[1, 1, 1]])})


def test_progress_and_cancelling(stack: MedicalImage) -> None:
    seen: list[float] = []
    clicks = {1: Clicks.from_ijk(stack, foreground=[[9, 9, 0], [9, 9, 2]])}
    with pytest.raises(CancelledError):
        on(
            stack,
            FixedSam(block(0, 0, 20, 20)),
            block(0, 0, 0, 0),
            clicks,
            progress=lambda fraction, _: seen.append(fraction),
            cancelled=lambda: len(seen) == 1,
        )
    assert seen == [0.0]


SMALL = (14, 17)
points = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 13), st.integers(0, 1)), max_size=4)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), one=points, two=points, outside=points, smooth=st.floats(0, 2))
def test_every_click_is_followed_whatever_sam_answers(
    tmp_path_factory: pytest.TempPathFactory, seed: int, one: Any, two: Any, outside: Any, smooth: float
) -> None:
    two = [point for point in two if point not in one]
    outside = [point for point in outside if point not in one + two]
    if not one + two + outside:
        return
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 256, (3, *SMALL)).astype(np.uint8)
    image = flat(tmp_path_factory.getbasetemp(), planes)
    present = rng.choice([0, 0, 1, 2, 3], (3, *SMALL)).astype(np.uint8)
    answer = ndimage.gaussian_filter(rng.normal(size=SMALL), smooth) > 0
    clicks = {n: Clicks.from_ijk(image, own, outside) for n, own in ((1, one), (2, two))}
    labels = refine(image, FixedSam(answer), present, clicks).labels  # type: ignore[arg-type]
    for label, own in ((1, one), (2, two)):
        assert all(labels[k, j, i] == label for i, j, k in own)
        assert all(labels[k, j, i] != label for i, j, k in outside)
    assert np.array_equal(labels[2], present[2])


def _nifti(pixels: np.ndarray, folder: Path, series: Any, radiograph: Any) -> Path:
    """Left-posterior-inferior order with flips: the file's axes run against the display's."""
    path = folder / "flipped.nii.gz"
    nib.save(nib.Nifti1Image(pixels.T, np.diag([1.0, -1.2, -3.0, 1.0])), path)
    return path


def _series(pixels: np.ndarray, folder: Path, series: Any, radiograph: Any) -> Path:
    return series(pixels, folder / "series")


def _film(pixels: np.ndarray, folder: Path, series: Any, radiograph: Any) -> Path:
    radiograph(pixels[0], folder / "film.dcm")
    return folder / "film.dcm"


def _picture(pixels: np.ndarray, folder: Path, series: Any, radiograph: Any) -> Path:
    Image.fromarray(pixels[0]).save(folder / "film.png")
    return folder / "film.png"


@pytest.mark.parametrize("write", [_nifti, _series, _film, _picture])
def test_clicks_by_the_file_s_indices_end_up_at_these_indices_of_the_mask(
    tmp_path: Path, write: Any, write_series: Any, write_radiograph: Any
) -> None:
    """Where a viewer that reads the file as ITK does has clicked, there the mask is in that viewer."""
    pixels = np.random.default_rng(3).integers(0, 200, (5, 20, 30)).astype(np.uint8)
    image = read_image(write(pixels, tmp_path, write_series, write_radiograph))
    last = 0 if image.n_planes == 1 else 4
    inside = [[3, 4, 0], [25, 17, last], [28, 1, last]]
    clicks = Clicks.from_ijk(image, foreground=inside, background=[[5, 4, 0]])
    answer = np.zeros(image.plane_shape, bool)
    result = refine(image, FixedSam(answer), None, {9: clicks})  # type: ignore[arg-type]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(write_mask(result.labels, image, tmp_path / "mask.nii.gz"))))
    mask = mask.reshape(-1, 20, 30)
    assert all(mask[k, j, i] == 9 for i, j, k in inside)
    assert mask[0, 4, 5] == 0
    if last:
        assert not mask[1:4].any()


@pytest.fixture(scope="module")
def demo_sam() -> SamModel:
    return SamModel.from_weights(resolve_pair("demo")[1])


def test_clicks_mend_damaged_masks_of_phantoms(demo_sam: SamModel, tmp_path: Path) -> None:
    """With the demo weights, each click in the middle of the greatest error, as an annotator would place it."""
    dices: list[list[float]] = []
    rng = np.random.default_rng(5)
    for number, (modality, name) in enumerate(
        [("XR", "lungs"), ("US", "breast tumour"), ("MR", "brain"), ("CT", "lungs")]
    ):
        phantom = make_phantom(modality, 40 + number, size=256, pathology=True)
        truth = phantom.masks[name]
        Image.fromarray(phantom.image).save(tmp_path / "phantom.png")
        image = read_image(tmp_path / "phantom.png")
        mask = _damaged(truth, rng)
        course = [_dice(mask, truth)]
        inside: list[list[int]] = []
        outside: list[list[int]] = []
        for _ in range(3):
            click, missing = _greatest_error(mask, truth)
            (inside if missing else outside).append(click)
            clicks = Clicks.from_ijk(image, foreground=inside, background=outside)
            mask = refine(image, demo_sam, mask[None].astype(np.uint8), {1: clicks}).labels[0] == 1
            assert all(mask[j, i] for i, j in inside)
            assert not any(mask[j, i] for i, j in outside)
            course.append(_dice(mask, truth))
        dices.append(course)
    before, *_, after = np.mean(dices, axis=0)
    assert before < 0.9
    assert after > 0.94


def test_clicks_on_an_embedded_plane_run_no_encoder(demo_sam: SamModel, tmp_path: Path) -> None:
    Image.fromarray(make_phantom("XR", 47, size=256).image).save(tmp_path / "film.png")
    image = read_image(tmp_path / "film.png")
    demo_sam.embed(image.plane(0))
    runs = demo_sam.encoder_runs
    for column in (60, 90):
        assert refine(image, demo_sam, None, {13: Clicks.from_ijk(image, [[column, 90]])}).labels.any()
    assert demo_sam.encoder_runs == runs


def _dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def _damaged(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bite a piece out of a mask at its edge, and let it run over at another place."""
    edge = np.argwhere(truth & ~ndimage.binary_erosion(truth))
    rows, columns = np.ogrid[: truth.shape[0], : truth.shape[1]]
    radius = 0.5 * np.sqrt(truth.sum() / np.pi)
    bite, leak = (
        (rows - row) ** 2 + (columns - column) ** 2 < radius**2 for row, column in edge[rng.integers(len(edge), size=2)]
    )
    return truth & ~bite | leak & ~truth & ~bite


def _greatest_error(mask: np.ndarray, truth: np.ndarray) -> tuple[list[int], bool]:
    """Return (x, y) in the middle of the greatest error, and whether it is missing."""
    found: list[tuple[int, list[int], bool]] = []
    for error, missing in ((truth & ~mask, True), (mask & ~truth, False)):
        parts, count = ndimage.label(error)
        if count:
            sizes = np.bincount(parts.ravel())[1:]
            part = parts == 1 + int(sizes.argmax())
            depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            found.append((int(sizes.max()), [int(column), int(row)], missing))
    _, click, missing = max(found)
    return click, missing


# --- labels that overlap ---


def overlapping(image: MedicalImage, **masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `labels` and `beneath` of masks of the middle plane, by "label_<n>"."""
    whole = {}
    for name, mask in masks.items():
        whole[int(name.rpartition("_")[2])] = np.zeros((image.n_planes, *image.plane_shape), bool)
        whole[int(name.rpartition("_")[2])][1] = mask
    return flatten(whole.items(), (image.n_planes, *image.plane_shape))


def test_a_label_that_overlaps_others_is_corrected_whole(stack: MedicalImage) -> None:
    """A nodule (2) in a lung (1): each keeps the voxels of both; so does what has no part in it (3)."""
    lung, nodule, bone = block(5, 5, 20, 20), block(10, 10, 6, 6), block(30, 5, 5, 20)
    labels, beneath = overlapping(stack, label_1=lung, label_2=nodule, label_3=bone)
    grown = block(10, 10, 6, 12)
    clicks = {2: Clicks.from_ijk(stack, foreground=[[20, 12, 1]])}
    result = refine(stack, FixedSam(grown), labels, clicks, beneath=beneath)
    alone = on(stack, FixedSam(grown), 2 * nodule, clicks)
    assert np.array_equal(mask_of(2, result.labels, result.beneath), alone.labels == 2)
    assert (alone.labels == 2).sum() > nodule.sum()
    assert np.array_equal(mask_of(1, result.labels, result.beneath)[1], lung)
    assert np.array_equal(mask_of(3, result.labels, result.beneath)[1], bone)
    assert [(plane.plane, plane.label) for plane in result.planes] == [(1, 2)]
    # the lung, which the nodule covers, follows clicks in the nodule too
    taken = {1: Clicks.from_ijk(stack, background=[[12, 12, 1]])}
    result = refine(stack, FixedSam(lung & ~block(8, 8, 10, 10)), labels, taken, beneath=beneath)
    assert not mask_of(1, result.labels, result.beneath)[1, 12, 12]
    assert np.array_equal(mask_of(2, result.labels, result.beneath)[1], nodule)


def test_a_label_takes_from_another_that_it_does_not_overlap(stack: MedicalImage) -> None:
    lung, nodule, bone = block(5, 5, 20, 20), block(10, 10, 6, 6), block(30, 5, 5, 20)
    labels, beneath = overlapping(stack, label_1=lung, label_2=nodule, label_3=bone)
    both = Clicks.from_ijk(stack, foreground=[[10, 32, 1], [10, 27, 1]])
    result = refine(stack, FixedSam(block(5, 5, 30, 20)), labels, {1: both}, beneath=beneath)
    whole = {label: mask_of(label, result.labels, result.beneath)[1] for label in (1, 2, 3)}
    assert whole[1][32, 10]
    assert not (whole[1] & whole[3]).any()
    assert np.array_equal(whole[2], nodule)


def test_labels_that_overlap_are_corrected_each_by_its_clicks(stack: MedicalImage) -> None:
    labels, beneath = overlapping(stack, label_1=block(5, 5, 20, 20), label_2=block(10, 10, 6, 6))
    clicks = {
        1: Clicks.from_ijk(stack, foreground=[[30, 30, 1]]),
        2: Clicks.from_ijk(stack, foreground=[[12, 20, 1]], background=[[11, 11, 1]]),
        3: Clicks(),
    }
    told: list[float] = []
    result = refine(
        stack, FixedSam(block(0, 0, 1, 1)), labels, clicks, beneath=beneath, progress=lambda done, _: told.append(done)
    )
    whole = {label: mask_of(label, result.labels, result.beneath)[1] for label in (1, 2)}
    assert (whole[1][30, 30], whole[2][20, 12], whole[2][11, 11]) == (True, True, False)
    assert told == sorted(told)
    assert max(told) <= 1
    with pytest.raises(CancelledError):
        refine(stack, FixedSam(block(0, 0, 1, 1)), labels, clicks, beneath=beneath, cancelled=lambda: True)
    with pytest.raises(InputError):
        refine(stack, FixedSam(block(0, 0, 1, 1)), labels, {}, beneath=beneath)
