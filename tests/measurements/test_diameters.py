"""The axes of findings, against every pair of pixel edges, lines through drawn shapes, and scikit-image."""

import itertools
import math

import numpy as np
import pytest
import shapely
from scipy import ndimage
from skimage.measure import find_contours, regionprops

from medclipsam.measurements import diameters
from medclipsam.measurements.diameters import Axis, axes, largest_diameter_mm


def _naive_diameter(mask: np.ndarray, spacing: tuple[float, float]) -> float:
    """Every edge of every pixel against every other one of the same part and plane."""
    longest = 0.0
    for plane in mask:
        parts, count = ndimage.label(plane, np.ones((3, 3)))
        for number in range(1, count + 1):
            middles = [
                ((row + up / 2) * spacing[0], (column + right / 2) * spacing[1])
                for row, column in np.argwhere(parts == number)
                for up, right in ((1, 0), (-1, 0), (0, 1), (0, -1))
            ]
            longest = max(longest, *(math.dist(a, b) for a, b in itertools.combinations(middles, 2)))
    return longest


def _drawn(mask: np.ndarray, axis: Axis, spacing: tuple[float, float]) -> shapely.Geometry:
    """The part of a mask that an axis lies on, in millimetres, by scikit-image and shapely."""
    parts, count = ndimage.label(mask[axis.plane], np.ones((3, 3)))
    end = shapely.Point(np.multiply(axis.start, spacing))
    for number in range(1, count + 1):
        rings = [ring * spacing for ring in find_contours(np.pad(parts == number, 1).astype(float), 0.5)]
        shape = shapely.Polygon()
        for ring in rings:
            shape = shape.symmetric_difference(shapely.Polygon(ring - spacing).buffer(0))
        if shape.distance(end) < 1e-6:
            return shape
    raise AssertionError("the axis begins on no part")


def _longest_across(shape: shapely.Geometry, long: Axis, spacing: tuple[float, float]) -> float:
    """Lines at right angles to the long axis, through every corner of a shape."""
    start, end = (np.multiply(point, spacing) for point in (long.start, long.end))
    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]])
    longest = 0.0
    for corner in shapely.get_coordinates(shape):
        foot = start + along * ((corner - start) @ along)
        # by the part's outline, so that rounding does not lose the corner itself
        met = shape.boundary.intersection(shapely.LineString([foot - 999 * across, foot + 999 * across]).buffer(1e-9))
        places = shapely.get_coordinates(met) @ across
        longest = max(longest, float(np.ptp(places)))
    return longest


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_the_axes_are_those_of_all_pairs_and_all_lines(seed: int, spacing: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(3, 14, 11)), (0, 1.2, 1.2)) > 0.25 - 0.03 * seed
    found = axes(mask, spacing)
    assert found is not None
    long, short = found
    assert long.length_mm == pytest.approx(_naive_diameter(mask, spacing))
    assert short.length_mm == pytest.approx(_longest_across(_drawn(mask, long, spacing), long, spacing), abs=1e-5)
    assert short.plane == long.plane
    for axis in found:
        assert axis.length_mm == pytest.approx(
            math.dist(np.multiply(axis.start, spacing), np.multiply(axis.end, spacing)), abs=1e-3
        )
    turned = np.subtract(long.end, long.start) * spacing @ (np.subtract(short.end, short.start) * spacing)
    assert turned == pytest.approx(0, abs=1e-2)


def test_plain_shapes() -> None:
    row = np.zeros((1, 5, 9), bool)
    assert axes(row, (2.0, 3.0)) is None
    row[0, 2, 3] = True
    assert largest_diameter_mm(row, (2.0, 3.0)) == 3.0
    row[0, 2, 3:7] = True
    found = axes(row, (2.0, 3.0))
    assert found is not None
    assert (found[0].length_mm, found[1].length_mm) == (12.0, pytest.approx(2.0))
    assert {found[0].start, found[0].end} == {(2.0, 2.5), (2.0, 6.5)}
    assert largest_diameter_mm(row, None) is None
    unknown = axes(row, None)
    assert unknown is not None
    assert unknown[0].length_mm is None
    # two nodules far apart are no large one, and nor are those of two planes
    two = np.zeros((2, 5, 40), bool)
    two[0, 2, 1:4] = two[0, 2, 30:36] = two[1, 0, :2] = True
    assert largest_diameter_mm(two, (1.0, 1.0)) == 6.0


@pytest.mark.parametrize(("height", "width", "turn"), [(25, 25, 0), (30, 12, 0), (28, 14, 30), (26, 8, 65)])
def test_discs_and_ellipses_have_the_axes_that_they_were_drawn_with(height: int, width: int, turn: float) -> None:
    y, x = np.mgrid[:81, :81] - 40
    angle = math.radians(turn)
    u, v = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    mask = ((u / width) ** 2 + (v / height) ** 2 <= 1)[None]
    found = axes(mask, (0.5, 0.5))
    assert found is not None
    assert found[0].length_mm == pytest.approx(height, abs=0.5)
    assert found[1].length_mm == pytest.approx(width, abs=0.5)
    # scikit-image's contour runs between pixels, half a pixel further out at the corners
    properties = regionprops(mask[0].astype(int))[0]
    assert found[0].length_mm == pytest.approx(properties.feret_diameter_max / 2, abs=0.5)
    assert found[1].length_mm == pytest.approx(properties.axis_minor_length / 2, rel=0.06)


def test_specks_are_not_measured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((1, 100, 100), bool)
    mask[:, ::2, ::2] = True
    measured = []
    long = diameters._long
    monkeypatch.setattr(diameters, "_long", lambda *given: measured.append(1) or long(*given))
    assert largest_diameter_mm(mask, (0.7, 0.3)) == pytest.approx(0.7)
    assert len(measured) == 1
    mask[0, 50:60, 50:54] = True
    assert largest_diameter_mm(mask, (0.7, 0.3)) == pytest.approx(_naive_diameter(mask, (0.7, 0.3)))
