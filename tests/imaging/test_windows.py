"""Windows and percentiles."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medclipsam.base.errors import InputError
from medclipsam.imaging import Window
from medclipsam.imaging.windows import apply_file_window, apply_window, foreground_range, stretch


def test_a_window_follows_dicoms_linear_formula() -> None:
    values = np.arange(-300, 400).astype(np.int16)
    expected = np.clip(((values - 39.5) / 399 + 0.5) * 255, 0, 255)
    np.testing.assert_allclose(apply_window(values, Window(40, 400)), expected, atol=0.5 + 1e-9)


def test_a_width_of_one_is_a_threshold() -> None:
    assert apply_window(np.array([8, 9, 10, 11]), Window(10, 1)).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(("function", "middle"), [("LINEAR", 128), ("LINEAR_EXACT", 128), ("SIGMOID", 128)])
def test_a_files_window_functions(function: str, middle: int) -> None:
    voi = Dataset()
    voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = [100, 7], [200, 3], function
    shown = apply_file_window(np.array([-1000.0, 100.0, 1000.0]), voi)
    assert shown[0] <= 1
    assert abs(int(shown[1]) - middle) <= 1
    assert shown[2] >= 254


@pytest.mark.parametrize(("center", "width"), [(40, 0), (40, 0.5), (40, -1), (np.nan, 400), (40, np.inf)])
def test_windows_without_meaning_are_refused(center: float, width: float) -> None:
    with pytest.raises(InputError, match="width of at least 1"):
        Window(center, width)


def test_percentiles_are_those_of_the_values_above_the_least() -> None:
    rng = np.random.default_rng(0)
    foreground = rng.normal(500, 50, 5000).astype(np.float32)
    pieces = [np.zeros(3000), foreground[:1000], foreground[1000:], np.empty(0)]
    assert foreground_range(pieces) == pytest.approx(tuple(np.percentile(foreground, [0.5, 99.5])))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], (0.0, 0.0)), ([5, 5], (5.0, 5.0)), ([0, 1, 1], (0.0, 1.0)), ([0, 0, 7], (0.0, 7.0))],
)
def test_percentiles_of_next_to_nothing(values: list[float], expected: tuple[float, float]) -> None:
    assert foreground_range([np.array(values)]) == expected


def test_stretching_an_empty_range_is_black() -> None:
    assert stretch(np.array([3.0, 4.0]), 4.0, 4.0).tolist() == [0, 0]
