"""Corrections of one plane are carried on to the others, on a model that can be reckoned by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.base.metrics import dice
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.refine import Clicks, refine
from medclipsam.pipeline.zero_shot import ZeroShot

SHAPE = (20, 64, 64)
LABEL = 7


def column(row: int, col: int, radius: int, planes: slice) -> np.ndarray:
    rows, cols = np.ogrid[:64, :64]
    mask = np.zeros(SHAPE, bool)
    mask[planes] = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
    return mask


TRUTH = column(30, 20, 11, slice(3, 17))
OTHER = column(40, 48, 7, slice(2, 18))


@pytest.fixture
def image(tmp_path: Path) -> MedicalImage:
    """Two bright columns, 2 mm between planes of 1 mm pixels, in an order of axes that display keeps."""
    noise = np.random.default_rng(0).normal(0, 4, SHAPE)
    values = np.clip(np.where(TRUTH | OTHER, 210, 40) + noise, 0, 255).astype(np.uint8)
    stored = np.ascontiguousarray(values.transpose(2, 1, 0))
    nib.save(nib.Nifti1Image(stored, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "columns.nii.gz")
    read = read_image(tmp_path / "columns.nii.gz")
    np.testing.assert_array_equal(read.plane(5)[..., 0], values[5])
    return read


def click(plane: int, row: int, col: int) -> np.ndarray:
    return np.array([[plane, row, col]])


def test_a_drawn_plane_is_carried_to_both_ends_and_stays_as_it_was_drawn(
    image: MedicalImage, pipeline: ZeroShot
) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[9] = LABEL * TRUTH[9]
    drawn[9, 30, 20] = 0  # a hole that only a person can mean
    result = refine(image, pipeline.sam, drawn, {}, propagate=True, drawn={LABEL: [9]})
    np.testing.assert_array_equal(result.labels[9], drawn[9])
    assert dice(result.labels == LABEL, TRUTH) > 0.97
    (track,) = result.tracks[LABEL]
    assert (track.plane, track.first, track.last) == (9, 3, 16)
    assert track.below
    assert track.above
    assert set(np.unique(result.labels)) == {0, LABEL}


def test_what_is_clicked_away_goes_from_the_other_planes_too(image: MedicalImage, pipeline: ZeroShot) -> None:
    present = np.where(TRUTH | OTHER, LABEL, 0).astype(np.uint8)
    clicks = {LABEL: Clicks(background=click(9, 40, 48))}
    alone = refine(image, pipeline.sam, present, clicks)
    assert not alone.labels[9, 40, 48]
    assert alone.labels[8, 40, 48] == LABEL
    carried = refine(image, pipeline.sam, present, clicks, propagate=True)
    mask = carried.labels == LABEL
    # this model sees no clicks: on the clicked plane goes what is alike round the click, and the same on the others
    gone = OTHER & ~mask
    assert gone[9].sum() > 0.5 * OTHER[9].sum()
    assert gone.sum() > 0.8 * gone[9].sum() * OTHER.any(axis=(1, 2)).sum()
    np.testing.assert_array_equal(mask & TRUTH, TRUTH)


def test_what_is_clicked_in_comes_on_the_other_planes_too(image: MedicalImage, pipeline: ZeroShot) -> None:
    present = np.where(OTHER, LABEL, 0).astype(np.uint8)
    pipeline.sam.mask_prompts = False  # this model takes only what lies in the mask that it is given
    box = np.array([[9, 15, 5], [9, 45, 35]])
    result = refine(image, pipeline.sam, present, {LABEL: Clicks(box=box)}, propagate=True)
    assert dice(result.labels == LABEL, TRUTH | OTHER) > 0.95


def test_asking_again_with_the_former_prompts_undoes_a_correction(image: MedicalImage, pipeline: ZeroShot) -> None:
    present = np.where(TRUTH | OTHER, LABEL, 0).astype(np.uint8)
    first = {LABEL: Clicks(background=click(9, 40, 48))}
    both = {LABEL: Clicks(background=np.concatenate([click(9, 40, 48), click(12, 30, 20)]))}
    before = refine(image, pipeline.sam, present, first, propagate=True)
    after = refine(image, pipeline.sam, present, both, propagate=True)
    assert (before.labels != after.labels).any()
    again = refine(image, pipeline.sam, present, first, propagate=True)
    np.testing.assert_array_equal(again.labels, before.labels)
    assert present[12, 30, 20] == LABEL  # what was given is not written to


def test_other_labels_and_drawn_planes_are_left_alone(image: MedicalImage, pipeline: ZeroShot) -> None:
    present = np.zeros(SHAPE, np.uint8)
    present[9] = LABEL * TRUTH[9]
    present[11] = LABEL * column(30, 20, 5, slice(11, 12))[11]  # drawn smaller than what is bright
    present[13][TRUTH[13]] = 3
    result = refine(image, pipeline.sam, present, {}, propagate=True, drawn={LABEL: [9, 11]})
    for plane in (9, 11):
        np.testing.assert_array_equal(result.labels[plane], present[plane])
    np.testing.assert_array_equal(result.labels[13] == 3, TRUTH[13])
    assert (result.labels[10] == LABEL).any()
    reasons = [track.above for track in result.tracks[LABEL]]
    assert any("11" in reason for reason in reasons)


def test_without_propagation_or_on_one_plane_nothing_is_carried_on(image: MedicalImage, pipeline: ZeroShot) -> None:
    clicks = {LABEL: Clicks(background=click(9, 40, 48))}
    assert refine(image, pipeline.sam, None, clicks).tracks == {}
    flat = MedicalImage.from_array(np.full((40, 40), 90, np.uint8))
    present = np.full((1, 40, 40), LABEL, np.uint8)
    clicked = refine(flat, pipeline.sam, present, {LABEL: Clicks(background=click(0, 5, 5))}, propagate=True)
    assert clicked.tracks == {}


@pytest.mark.parametrize(
    ("drawn", "named"), [({LABEL: [20]}, "planes 0 to 19"), ({300: [2]}, "1 to 255"), ({5: [2]}, "no voxel")]
)
def test_planes_that_cannot_have_been_drawn_are_refused(
    image: MedicalImage, pipeline: ZeroShot, drawn: dict[int, list[int]], named: str
) -> None:
    present = np.where(TRUTH, LABEL, 0).astype(np.uint8)
    with pytest.raises(InputError, match=named):
        refine(image, pipeline.sam, present, {}, propagate=True, drawn=drawn)


def test_carrying_on_shows_progress_and_can_be_cancelled(image: MedicalImage, pipeline: ZeroShot) -> None:
    present = np.zeros(SHAPE, np.uint8)
    present[9] = LABEL * TRUTH[9]
    seen: list[float] = []
    more = {"propagate": True, "drawn": {LABEL: [9]}}
    refine(image, pipeline.sam, present, {}, progress=lambda part, _: seen.append(part), **more)
    assert seen == sorted(seen)
    assert seen[-1] <= 1
    with pytest.raises(CancelledError):
        refine(image, pipeline.sam, present, {}, cancelled=lambda: len(pipeline.sam.boxes) > 12, **more)
