"""docs/finetuning.md says what the code does."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from medclipsam.finetune.options import SERVED_OPTIONS, FinetuneOptions

TEXT = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT.splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 4
}
FIELDS = [option for option in dataclasses.fields(FinetuneOptions) if option.name in SERVED_OPTIONS]


@pytest.mark.parametrize("option", FIELDS, ids=lambda option: option.name)
def test_option_is_documented_with_its_default_and_what_is_allowed(option: dataclasses.Field[Any]) -> None:
    default, allowed, _ = ROWS[option.name]
    if "choices" in option.metadata:
        assert (default, allowed) == (option.default, ", ".join(option.metadata["choices"]))
        return
    assert tuple(map(float, allowed.split(" to "))) == (option.metadata["low"], option.metadata["high"])
    assert default == "auto" if option.default is None else float(default) == option.default


def test_no_other_option_is_documented() -> None:
    assert ROWS.keys() == {option.name for option in FIELDS}
