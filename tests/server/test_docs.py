"""docs/options.md says what the code does."""

import dataclasses
from pathlib import Path

import pytest

from medclipsam.base.options import CHOICES, RANGES, ZeroShotOptions
from medclipsam.server.inference.request_schema import DTYPES, EXTENSIONS, MONAI_LABEL_KEYS

TEXT = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT.splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 4
}


@pytest.mark.parametrize("option", dataclasses.fields(ZeroShotOptions), ids=lambda option: option.name)
def test_option_is_documented_with_its_default_and_what_is_allowed(option: dataclasses.Field) -> None:
    default, allowed, _ = ROWS[option.name]
    shown = "auto" if option.default is None else str(option.default)
    assert default.strip("`") == (shown.lower() if isinstance(option.default, bool) else shown)
    if option.name in CHOICES:
        assert allowed == ", ".join(CHOICES[option.name])
    if option.name in RANGES:
        low, high = map(float, allowed.split(" to "))
        assert (low, high) == RANGES[option.name]


def test_no_other_option_is_documented() -> None:
    answer = {"result_extension", "result_dtype", "result_compress", "save_label", "label_tag"}
    assert set(ROWS) == {option.name for option in dataclasses.fields(ZeroShotOptions)} | answer
    assert ROWS["result_extension"][1] == ", ".join(EXTENSIONS)
    assert ROWS["result_dtype"][1] == ", ".join(DTYPES)


def test_every_key_of_monai_label_is_named() -> None:
    for key in MONAI_LABEL_KEYS:
        assert f"`{key}`" in TEXT
