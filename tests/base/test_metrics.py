"""Metrics against hand-reckoned values and a second implementation written from the definition."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.distance import cdist

from medclipsam.base.errors import InputError
from medclipsam.base.metrics import (
    LesionCounts,
    area_flicker,
    calibration_bins,
    dice,
    expected_calibration_error,
    hausdorff95,
    lesion_counts,
    roc_auc,
    surface_dice,
)

HALF_DIAGONAL = 0.5**0.5

# Length of the boundary in a square of four neighbouring pixels, by how many of them are inside: a corner is cut off
# by half a diagonal, neighbours by a side, opposite corners by two half diagonals.
LENGTHS = {1: HALF_DIAGONAL, 3: HALF_DIAGONAL}


def boundary(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and length of each boundary element of a mask [H, W], in pixels."""
    padded = np.pad(mask, 1)
    middles, lengths = [], []
    for row, column in itertools.product(range(padded.shape[0] - 1), range(padded.shape[1] - 1)):
        square = padded[row : row + 2, column : column + 2]
        inside = int(square.sum())
        if inside in (0, 4):
            continue
        opposite = inside == 2 and square[0, 0] == square[1, 1]
        middles.append((row, column))
        lengths.append(LENGTHS.get(inside, 2 * HALF_DIAGONAL if opposite else 1.0))
    return np.array(middles, dtype=float), np.array(lengths)


def naive_surface_dice(mask: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    (one, length_one), (two, length_two) = boundary(mask), boundary(truth)
    distance = cdist(one, two)
    near_one = length_one[distance.min(axis=1) <= tolerance].sum()
    near_two = length_two[distance.min(axis=0) <= tolerance].sum()
    return float((near_one + near_two) / (length_one.sum() + length_two.sum()))


def block(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


EMPTY = np.zeros((12, 12), bool)
SQUARE = block((12, 12), slice(2, 6), slice(2, 6))


def test_dice_by_hand() -> None:
    shifted = block((12, 12), slice(2, 6), slice(4, 8))
    assert dice(SQUARE, SQUARE) == 1.0
    assert dice(SQUARE, shifted) == pytest.approx(2 * 8 / 32)
    assert dice(SQUARE, block((12, 12), slice(8, 11), slice(8, 11))) == 0.0


@pytest.mark.parametrize("metric", [dice, surface_dice])
def test_empty_masks(metric) -> None:
    assert metric(EMPTY, EMPTY) == 1.0
    assert metric(EMPTY, SQUARE) == 0.0
    assert metric(SQUARE, EMPTY) == 0.0


@pytest.mark.parametrize("metric", [dice, surface_dice])
def test_masks_of_two_shapes_are_refused(metric) -> None:
    with pytest.raises(InputError, match="shape"):
        metric(SQUARE, SQUARE[:-1])


def test_surface_dice_by_hand() -> None:
    """A square of 4 x 4 pixels moved by 3: each boundary has 4 corners of half a diagonal and 4 sides of 3 pixels."""
    moved = block((12, 12), slice(2, 6), slice(5, 9))
    assert boundary(SQUARE)[1].sum() == pytest.approx(12 + 4 * HALF_DIAGONAL)
    assert surface_dice(SQUARE, SQUARE, tolerance=0.0) == 1.0
    assert surface_dice(SQUARE, moved, tolerance=3.0) == 1.0
    # Within 2 pixels of the other square: the near upright side with its corners and all of the horizontal sides; too
    # far is the other upright side with its corners.
    near = 3 + 2 * HALF_DIAGONAL + 2 * 3
    assert surface_dice(SQUARE, moved, tolerance=2.0) == pytest.approx(near / (12 + 4 * HALF_DIAGONAL), abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_surface_dice_against_a_naive_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(5, 24)), int(rng.integers(5, 24)))
    # Specks, holes and masks that touch the border.
    mask, truth = rng.random((2, *shape)) < rng.uniform(0.05, 0.6)
    mask[0, 0] = truth[-1, -1] = True
    for tolerance in (0.0, 1.0, 2.0, 3.5):
        expected = naive_surface_dice(mask, truth, tolerance)
        assert surface_dice(mask, truth, tolerance=tolerance) == pytest.approx(expected, abs=1e-6)


def test_surface_dice_knows_spacing() -> None:
    """Lines four pixels apart are too far at spacing 1, and 2 mm apart at half a millimetre."""
    mask, truth = (block((40, 40), slice(5, 30), slice(column, column + 1)) for column in (10, 14))
    assert surface_dice(mask, truth, tolerance=2.0) == 0.0
    assert surface_dice(mask, truth, tolerance=2.0, spacing=(0.5, 0.5)) == 1.0
    # The spacing of the axis that the masks are apart on counts.
    assert surface_dice(mask, truth, tolerance=2.0, spacing=(0.1, 1.0)) < surface_dice(
        mask, truth, tolerance=2.0, spacing=(1.0, 0.1)
    )


def test_surface_dice_in_three_dimensions() -> None:
    ball = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0)
    assert surface_dice(ball < 6, ball < 7.5, tolerance=2.0) == 1.0
    assert surface_dice(ball < 3, ball < 8, tolerance=2.0) < 0.05
    # The distance between planes counts: one plane more is 5 mm more.
    taller = (ball < 6) | np.roll(ball < 6, 1, axis=0)
    assert surface_dice(ball < 6, taller, tolerance=2.0, spacing=(5.0, 1.0, 1.0)) < 1.0
    assert surface_dice(ball < 6, taller, tolerance=5.0, spacing=(5.0, 1.0, 1.0)) == 1.0


def blobs(seed: int, shape: tuple[int, ...], level: float) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5) > level


@pytest.mark.parametrize("seed", range(6))
def test_hd95_against_all_pairs_of_boundary_voxels(seed: int) -> None:
    spacing = (5.0, 0.7, 1.3)
    mask, truth = blobs(seed, (7, 20, 18), 0.15), blobs(seed + 100, (7, 20, 18), 0.1)
    mask[0, 0, 0] = truth[-1, -1, -1] = True  # at the image's border
    rims = [np.argwhere(each & ~ndimage.binary_erosion(each)) * spacing for each in (mask, truth)]
    distances = cdist(*rims)
    expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
    assert hausdorff95(mask, truth, spacing=spacing) == pytest.approx(expected, abs=1e-4)


def test_hd95_lies_below_the_greatest_distance_that_simpleitk_finds() -> None:
    spacing = (3.0, 1.0, 1.0)
    mask = np.zeros((10, 40, 40), bool)
    mask[3:7, 10:30, 10:30] = True
    moved = np.roll(mask, (1, 4), axis=(0, 1))
    images = [sitk.GetImageFromArray(each.astype(np.uint8)) for each in (mask, moved)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    filter_ = sitk.HausdorffDistanceImageFilter()
    filter_.Execute(*images)
    greatest = filter_.GetHausdorffDistance()
    assert greatest == pytest.approx(5.0)  # 3 mm and 4 mm
    assert 4.0 <= hausdorff95(mask, moved, spacing=spacing) <= greatest
    stray = moved.copy()
    stray[0, 0, 0] = True  # one voxel of hundreds moves the greatest distance, and not the 95th percentile
    assert hausdorff95(mask, stray, spacing=spacing) == pytest.approx(hausdorff95(mask, moved, spacing=spacing), abs=1)


def test_hd95_of_empty_masks() -> None:
    assert hausdorff95(EMPTY, EMPTY) == 0.0
    assert hausdorff95(EMPTY, SQUARE) is None
    assert hausdorff95(SQUARE, EMPTY) is None
    with pytest.raises(InputError, match="axes"):
        hausdorff95(np.ones(4, bool), np.ones(4, bool))


@pytest.mark.parametrize("seed", range(6))
def test_lesions_are_counted_as_components_of_simpleitk(seed: int) -> None:
    mask, truth = blobs(seed, (8, 24, 24), 0.2), blobs(seed + 100, (8, 24, 24), 0.2)
    parts, lesions = (
        sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(each.astype(np.uint8)), True))
        for each in (mask, truth)
    )
    found = sum(bool(mask[lesions == label].any()) for label in range(1, lesions.max() + 1))
    false = sum(not truth[parts == label].any() for label in range(1, parts.max() + 1))
    counted = lesion_counts(mask, truth)
    assert counted == LesionCounts(int(lesions.max()), found, false)
    assert counted.f1 == pytest.approx(2 * found / (2 * found + false + lesions.max() - found))


def test_lesions_of_empty_masks() -> None:
    assert lesion_counts(EMPTY, EMPTY) == LesionCounts(0, 0, 0)
    assert lesion_counts(EMPTY, EMPTY).f1 == 1.0
    assert lesion_counts(SQUARE, EMPTY) == LesionCounts(0, 0, 1)
    assert lesion_counts(SQUARE, EMPTY).f1 == lesion_counts(EMPTY, SQUARE).f1 == 0.0


def test_flicker_by_hand() -> None:
    truth = np.zeros((6, 4, 10), bool)
    for plane, width in enumerate((0, 2, 4, 4, 2, 0)):
        truth[plane, :, :width] = True
    assert area_flicker(truth, truth) == 0.0
    assert area_flicker(truth[:, ::-1], truth) == 0.0  # areas count, not places
    jumping = truth.copy()
    jumping[2, :, :6] = True  # 8 pixels more than the truth, which has 12 on average
    assert area_flicker(jumping, truth) == pytest.approx((8 + 8) / 5 / 12)
    assert area_flicker(truth, np.zeros_like(truth)) is None
    assert area_flicker(truth[:1], truth[1:2]) is None
    with pytest.raises(InputError, match="axes"):
        area_flicker(truth[0], truth[0])


def test_the_area_under_the_roc_curve_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 8, 60) / 8, rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
    assert roc_auc(scores, truth) == pytest.approx(np.mean(pairs))
    assert roc_auc([0.1, 0.9], [False, True]) == 1.0
    assert roc_auc([0.1, 0.9], [True, True]) is None


def test_calibration_bins_count_confidence_and_right_answers():
    probability = np.array([0.02, 0.4, 0.6, 0.97, 1.0])
    truth = np.array([False, True, True, False, True])
    bins = np.asarray(calibration_bins(probability, truth, bins=10))
    # confidences 0.98 (right), 0.6 (wrong), 0.6 (right), 0.97 (wrong), 1.0 (right)
    np.testing.assert_allclose(bins[6], [2, 1.2, 1])
    np.testing.assert_allclose(bins[9], [3, 2.95, 2])
    assert bins[[0, 1, 2, 3, 4, 5, 7, 8]].sum() == 0


def test_calibration_error_is_the_weighted_gap():
    assert expected_calibration_error([[2, 1.2, 1], [3, 2.95, 2]]) == pytest.approx((0.2 + 0.95) / 5)
    assert expected_calibration_error([[0, 0, 0]]) is None
    assert expected_calibration_error([]) is None


def test_a_probability_that_keeps_its_word_has_no_calibration_error():
    rng = np.random.default_rng(0)
    probability = rng.random(200_000)
    bins = calibration_bins(probability, rng.random(200_000) < probability)
    assert expected_calibration_error(bins) < 0.01
