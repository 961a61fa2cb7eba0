"""The documentation's tables of options, which are made from the options themselves."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from medclipsam.base.errors import OptionError
from medclipsam.base.options import Option, Options, ZeroShotOptions
from medclipsam.cohort.options import CohortOptions
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.server.inference.networks import NetworkOptions
from medclipsam.training.options import PRESETS, TrainingOptions
from medclipsam.training.settings import RunOptions
from tools.docs_pages import on_page_markdown

DOCS = Path(__file__).parents[1] / "docs"
# The heading above each table.
TABLES: dict[tuple[str, str], type[Options]] = {
    ("options.md", "# Options"): ZeroShotOptions,
    ("training.md", "## What is trained"): RunOptions,
    ("training.md", "## How it is trained"): TrainingOptions,
    ("training.md", "## Asking a network"): NetworkOptions,
    ("finetuning.md", "## Options"): FinetuneOptions,
    ("cohort.md", "### Options"): CohortOptions,
}
# Not of a server's fine-tunings, whose table it is.
LEFT_OUT = {"tracker"}


def rows(page: str, heading: str) -> dict[str, tuple[str, str, str]]:
    """Return default, what is allowed and meaning by option, of the first table below a heading."""
    text = on_page_markdown((DOCS / page).read_text(encoding="utf-8"))
    part = f"\n{text}".partition(f"\n{heading}\n")[2]
    part = re.split(r"^#{1,6} ", part, maxsplit=1, flags=re.M)[0]
    found = re.findall(r"^\| `([a-z0-9_]+)` \| `([^`]*)` \| (.*) \| (.*) \|$", part, re.M)
    return {name: (default, allowed, meaning) for name, default, allowed, meaning in found}


def described() -> Iterator[tuple[type[Options], Option, tuple[str, str, str]]]:
    for (page, heading), options in TABLES.items():
        for name, row in rows(page, heading).items():
            yield options, options.options()[name], row


@pytest.mark.parametrize(("page", "heading"), TABLES)
def test_a_table_names_every_option_and_no_other(page: str, heading: str) -> None:
    assert rows(page, heading).keys() == TABLES[page, heading].options().keys() - LEFT_OUT


@pytest.mark.parametrize(("options", "option", "row"), described())
def test_the_default_of_a_table_is_the_one_that_counts(
    options: type[Options], option: Option, row: tuple[str, str, str]
) -> None:
    shown = "" if row[0] == "empty" else row[0]
    assert options.from_mapping({option.name: shown}) == options()


@pytest.mark.parametrize(("options", "option", "row"), described())
def test_what_a_table_allows_is_allowed_and_nothing_beyond(
    options: type[Options], option: Option, row: tuple[str, str, str]
) -> None:
    span = re.fullmatch(r"([\d.e-]+) to ([\d.e-]+)( \w+)?", row[1])
    for value in span.groups()[:2] if span else row[1].split(", ") if option.choices else []:
        assert options.from_mapping({option.name: value}) is not None
    for beyond in (float(span[1]) - 1, float(span[2]) * 2) if span else ["nonsense"] if option.choices else []:
        with pytest.raises(OptionError) as error:
            options.from_mapping({option.name: beyond})
        assert error.value.key == option.name


def test_the_values_of_the_presets_are_named() -> None:
    table = rows("training.md", "## How it is trained")
    for preset, values in PRESETS.items():
        for name, value in values.items():
            shown = f"{value // 10**9} GB" if name == "memory" else value
            assert f"{preset} {shown}" in table[name][2]


@pytest.mark.parametrize(("options", "option", "row"), described())
def test_an_option_is_described_in_one_line(options: type[Options], option: Option, row: tuple[str, str, str]) -> None:
    assert len(option.about.split()) > 1
    assert option.about[0].isupper()
    assert "\n" not in option.about
    assert len(option.about) <= 110
