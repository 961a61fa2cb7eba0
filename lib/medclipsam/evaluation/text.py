"""Numbers and tables as text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #1c2126; }
h1, h2, h3, p, figcaption { overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #d9dee3; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #8d98a3; white-space: normal; vertical-align: bottom; }
figure { display: inline-block; margin: .5rem 0; max-width: 100%; vertical-align: top; }
figcaption { font-size: 13px; color: #4b5661; max-width: 24rem; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
}
.note { color: #4b5661; }
"""


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


def html_page(title: str, body: str) -> str:
    """Return a page that loads nothing from elsewhere.

    Parameters
    ----------
    title : str
    body : str
        HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
