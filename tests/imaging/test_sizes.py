from types import SimpleNamespace
from typing import Any

import pytest

from medclipsam.imaging.sizes import (
    area_mm2,
    doubt_of_size,
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
