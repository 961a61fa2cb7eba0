"""Outlines of masks and filled polygons, against scikit-image and shapely."""

import numpy as np
import pytest
import shapely
from scipy import ndimage
from skimage.draw import polygon2mask

from medclipsam.imaging.outlines import fill, outlines


def _blobs(seed: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 2)) > rng.uniform(-0.1, 0.1)


@pytest.mark.parametrize("seed", range(20))
def test_a_filled_outline_is_the_mask(seed: int) -> None:
    mask = _blobs(seed)
    found = outlines(mask)
    assert np.array_equal(fill([ring for outline in found for ring in outline.rings], mask.shape), mask)
    shares = sum(fill(outline.rings, mask.shape).astype(int) for outline in found)
    assert np.array_equal(shares, mask)


@pytest.mark.parametrize("seed", range(6))
def test_outlines_are_valid_polygons_within_half_a_pixel_of_the_edges(seed: int) -> None:
    mask = _blobs(seed, (20, 24))
    pixels = shapely.union_all(
        [shapely.box(row - 0.5, column - 0.5, row + 0.5, column + 0.5) for row, column in np.argwhere(mask)]
    )
    drawn = shapely.union_all([shapely.Polygon(each.outer, each.holes) for each in outlines(mask)])
    assert all(shapely.Polygon(each.outer, each.holes).is_valid for each in outlines(mask))
    assert shapely.hausdorff_distance(drawn.boundary, pixels.boundary, densify=0.25) <= 0.5 + 1e-9


def test_nothing_has_no_outline_and_the_whole_image_has_one() -> None:
    assert outlines(np.zeros((5, 6), bool)) == []
    (whole,) = outlines(np.ones((5, 6), bool))
    assert (whole.outer.min(axis=0).tolist(), whole.outer.max(axis=0).tolist()) == ([-0.5, -0.5], [4.5, 5.5])
    assert fill([], (5, 6)).sum() == 0


@pytest.mark.parametrize("seed", range(10))
def test_polygons_of_any_corners_are_filled_as_scikit_image_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # partly outside the image
    ring = rng.uniform(-10, 40, (rng.integers(3, 9), 2))
    assert np.array_equal(fill([ring], (30, 28)), polygon2mask((30, 28), ring))


def test_a_ring_within_a_ring_is_a_hole_and_a_channel_to_it_leaves_no_mark() -> None:
    outer = np.array([[0.5, 0.5], [0.5, 18.5], [18.5, 18.5], [18.5, 0.5]])
    inner = np.array([[5.5, 5.5], [5.5, 12.5], [12.5, 12.5], [12.5, 5.5]])
    expected = np.zeros((20, 20), bool)
    expected[1:19, 1:19] = True
    expected[6:13, 6:13] = False
    assert np.array_equal(fill([outer, inner], (20, 20)), expected)
    # from a corner of the outer ring through centres of pixels to the hole, around it, and back
    one = np.concatenate([outer[:1], np.roll(inner, 0, axis=0)[::-1], inner[-1:], outer[:1], outer[1:]])
    assert np.array_equal(fill([one], (20, 20)), expected)
