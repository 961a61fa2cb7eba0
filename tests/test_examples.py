"""The examples in the docstrings run and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

import medclipsam

LIBRARY = Path(__file__).parents[1] / "lib"
FILES = sorted(file for file in LIBRARY.rglob("*.py") if ">>> " in file.read_text(encoding="utf-8"))
EXAMPLES = [
    example
    for file in FILES
    for example in doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(
            ".".join(file.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__"),
        )
    )
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_prints_what_it_shows(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages: list[str] = []
    failed, tried = doctest.DocTestRunner().run(example, out=messages.append)
    assert tried
    assert not failed, "".join(messages)


@pytest.mark.parametrize(
    "name", ["ZeroShot.load", "ZeroShot.segment", "read_image", "write_mask", "refine", "TargetSet"]
)
def test_public_name_has_an_example(name: str) -> None:
    value = medclipsam
    for part in name.split("."):
        value = getattr(value, part)
    assert any(example.name.endswith(f".{name}") for example in EXAMPLES)
