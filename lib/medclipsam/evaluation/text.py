"""Numbers and tables as text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"


def number(value: float | None, digits: int = 2) -> str:
    """Return a share as per cent without its sign: 0.7776 is "77.76"."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def with_interval(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """Return an estimate's mean and interval in per cent: "77.8 (74.1 to 80.9)"."""
    if estimate["mean"] is None:
        return NONE
    if estimate["low"] is None:
        return number(estimate["mean"], digits)
    return (
        f"{number(estimate['mean'], digits)} ({number(estimate['low'], digits)} to {number(estimate['high'], digits)})"
    )


def with_deviation(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """Return an estimate's mean and standard deviation in per cent: "77.8 ± 12.3"."""
    if estimate["mean"] is None:
        return NONE
    spread = "" if estimate["sd"] is None else f" ± {number(estimate['sd'], digits)}"
    return number(estimate["mean"], digits) + spread


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; "|" in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table with its cells escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
