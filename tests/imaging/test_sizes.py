import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops

from medclipsam.imaging import sizes
from medclipsam.imaging.sizes import (
    area_mm2,
    doubt_of_size,
    largest_diameter_mm,
    rounded,
    size_in_words,
    volume_mm3,
)
from medclipsam.targets import Target


def image(planes: int, pixel: tuple[float, float] | None, plane: float | None) -> Any:
    return SimpleNamespace(n_planes=planes, pixel_spacing=pixel, plane_spacing=plane)


def test_sizes_are_products_of_the_spacings() -> None:
    volume = image(4, (0.5, 0.25), 2.0)
    assert area_mm2(8, volume) == 1.0
    assert volume_mm3(8, volume) == 2.0
    assert area_mm2(8, image(1, None, None)) is None
    assert volume_mm3(8, image(4, (0.5, 0.25), None)) is None


@pytest.mark.parametrize(
    ("pixels", "of", "number", "unit"),
    [
        (40, image(1, (0.5, 0.5), None), "10.0", "mm²"),
        (40, image(1, (0.5, 0.5), 3.0), "10.0", "mm²"),
        (40, image(3, (0.5, 0.5), 3.0), "30.0", "mm³"),
        (4000, image(3, (0.5, 0.5), 3.0), "3.00", "mL"),
        (4000, image(3, None, 3.0), "4000", "pixels"),
    ],
)
def test_words_have_the_unit_that_is_known(pixels: int, of: Any, number: str, unit: str) -> None:
    assert size_in_words(pixels, of) == f"{number} {unit}"


@pytest.mark.parametrize(
    ("value", "text"), [(48213.0, "48200"), (0.01234, "0.0123"), (164.4, "164"), (0.0, "0"), (1e-5, "0.0000100")]
)
def test_three_digits_without_an_exponent(value: float, text: str) -> None:
    assert rounded(value) == text


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


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_the_largest_diameter_is_that_of_all_pairs_of_edges(seed: int, spacing: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(3, 14, 11)), (0, 1.2, 1.2)) > 0.25 - 0.03 * seed
    assert largest_diameter_mm(mask, image(3, spacing, 5.0)) == pytest.approx(_naive_diameter(mask, spacing))


def test_the_largest_diameter_of_plain_shapes() -> None:
    one = image(1, (2.0, 3.0), None)
    row = np.zeros((1, 5, 9), bool)
    assert largest_diameter_mm(row, one) is None
    row[0, 2, 3] = True
    assert largest_diameter_mm(row, one) == 3.0
    row[0, 2, 3:7] = True
    assert largest_diameter_mm(row, one) == 12.0
    assert largest_diameter_mm(row, image(1, None, None)) is None
    # two nodules far apart are no large one, and nor are those of two planes
    two = np.zeros((2, 5, 40), bool)
    two[0, 2, 1:4] = two[0, 2, 30:36] = two[1, 0, :2] = True
    assert largest_diameter_mm(two, image(2, (1.0, 1.0), 50.0)) == 6.0
    y, x = np.mgrid[:61, :61]
    disc = ((y - 30) ** 2 + (x - 30) ** 2 <= 25**2)[None]
    assert largest_diameter_mm(disc, image(1, (0.5, 0.5), None)) == pytest.approx(25.5, abs=0.1)
    # skimage's contour runs between pixels, half a pixel further out at the corners
    feret = regionprops(disc[0].astype(int))[0].feret_diameter_max
    assert largest_diameter_mm(disc, image(1, (1.0, 1.0), None)) == pytest.approx(feret, abs=1.0)


@pytest.mark.parametrize(
    ("pixels", "of", "doubted"),
    [
        (40, image(1, (1.0, 1.0), None), False),
        (41, image(1, (1.0, 1.0), None), True),
        (4, image(1, (1.0, 1.0), None), True),
        (41, image(1, None, None), False),
        (41, image(3, (10.0, 10.0), 1.0), True),
        (40, image(3, (10.0, 10.0), 1.0), False),
        (41, image(3, (10.0, 10.0), None), False),
        (0, image(1, (1.0, 1.0), None), False),
    ],
)
def test_a_size_is_doubted_by_the_area_of_a_plane_or_the_volume_of_several(pixels: int, of: Any, doubted: bool) -> None:
    target = Target("thing", 1, ("a thing",), plausible_area_mm2=(5, 40), plausible_volume_ml=(0.1, 4))
    assert bool(doubt_of_size(target, pixels, of)) == doubted


def test_specks_are_not_measured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((1, 100, 100), bool)
    mask[:, ::2, ::2] = True
    measured = []
    diameter = sizes._diameter
    monkeypatch.setattr(sizes, "_diameter", lambda *given: measured.append(1) or diameter(*given))
    assert largest_diameter_mm(mask, image(1, (0.7, 0.3), None)) == pytest.approx(0.7)
    assert len(measured) == 1
    mask[0, 50:60, 50:54] = True
    assert largest_diameter_mm(mask, image(1, (0.7, 0.3), None)) == pytest.approx(_naive_diameter(mask, (0.7, 0.3)))
