"""docs/options.md says what the code does."""

from pathlib import Path

from medclipsam.server.inference.request_schema import DTYPES, EXTENSIONS, MONAI_LABEL_KEYS

TEXT = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT.splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 4
}


def test_the_keys_of_the_answer_are_documented_with_what_is_allowed() -> None:
    assert set(ROWS) == {"result_extension", "result_dtype", "result_compress", "save_label", "label_tag"}
    assert ROWS["result_extension"][1] == ", ".join(EXTENSIONS)
    assert ROWS["result_dtype"][1] == ", ".join(DTYPES)


def test_every_key_of_monai_label_is_named() -> None:
    for key in MONAI_LABEL_KEYS:
        assert f"`{key}`" in TEXT
