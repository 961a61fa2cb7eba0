"""Sizes of the drill, and the table of what it has done.

The environment sets the sizes: DRILL_FILES, DRILL_REQUESTS. `make drill` sets large ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

_TABLE = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = []


@pytest.fixture(scope="session")
def drill_size() -> Callable[[str, int], int]:
    """Return how many cases of a kind there are: the variable DRILL_<KIND>, or a default."""

    def size(kind: str, default: int) -> int:
        return int(os.environ.get(f"DRILL_{kind.upper()}", default))

    return size


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Callable[[str, str, object], None]:
    """Return the function that adds a row to the table: what was done, what is counted, and the figure."""

    def add(subject: str, what: str, figure: object) -> None:
        pytestconfig.stash[_TABLE].append((subject, what, str(figure)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_TABLE]
    if rows:
        terminalreporter.section("drill")
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for subject, what, figure in sorted(rows):
            terminalreporter.write_line(f"{subject:<{widths[0]}}  {what:<{widths[1]}}  {figure:>{widths[2]}}")
