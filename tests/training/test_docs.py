"""docs/training.md says what the code does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from medclipsam.training.options import PRESETS, TrainingOptions
from medclipsam.training.settings import RunOptions

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT.splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 4
}
FIELDS = [*dataclasses.fields(RunOptions), *dataclasses.fields(TrainingOptions)]


@pytest.mark.parametrize("option", FIELDS, ids=lambda option: option.name)
def test_option_is_documented_with_its_default_and_what_is_allowed(option: dataclasses.Field[Any]) -> None:
    default, allowed, words = ROWS[option.name]
    shown = {None: "auto", "": "empty"}.get(option.default, str(option.default))
    assert default == (shown.lower() if isinstance(option.default, bool) else shown)
    if "choices" in option.metadata:
        assert allowed == ", ".join(option.metadata["choices"])
    elif "low" in option.metadata:
        assert tuple(map(float, allowed.split(" to "))) == (option.metadata["low"], option.metadata["high"])
    for preset, values in PRESETS.items():
        if option.name in values and option.name not in ("memory", "denominator"):
            assert f"{preset} {values[option.name]}" in words


def test_no_other_option_is_documented() -> None:
    assert ROWS.keys() == {option.name for option in FIELDS}
