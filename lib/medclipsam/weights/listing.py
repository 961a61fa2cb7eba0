"""The list of weights: published ones and the user's own, with their state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medclipsam.base.errors import WeightsError
from medclipsam.weights.memory import estimated_memory
from medclipsam.weights.own import own_names, recognise
from medclipsam.weights.registry import REGISTRY, MemoryNeed, weights_home


@dataclass(frozen=True)
class WeightsRow:
    """One line of the list of weights; `state` is "in package", "present", "incomplete", "missing" or "not usable"."""

    name: str
    kind: str
    arch: str
    state: str
    size: int
    path: Path
    licence: str
    memory: MemoryNeed | None = None


def available() -> list[WeightsRow]:
    """Return the published weights and the user's own folders, with their state; no file is hashed."""
    rows = []
    for published in REGISTRY.values():
        if published.in_package:
            path = published.own_path
            size = path.stat().st_size if path.is_file() else 0
            state = "in package" if path.is_file() else "missing"
        else:
            path, size, missing = published.folder, published.size, len(published.missing())
            state = "present" if not missing else "missing" if missing == len(published.files) else "incomplete"
        described = (published.name, published.kind, published.arch, state, size, path, published.licence)
        rows.append(WeightsRow(*described, published.memory))
    for folder in (weights_home() / name for name in own_names()):
        try:
            kind, arch, file = recognise(folder)
        except WeightsError:
            rows.append(WeightsRow(folder.name, "?", "?", "not usable", 0, folder, "own"))
            continue
        name = arch if isinstance(arch, str) else "described"
        memory = estimated_memory(kind, arch, file)
        rows.append(WeightsRow(folder.name, kind, name, "present", file.stat().st_size, folder, "own", memory))
    return rows


def format_table(rows: Sequence[WeightsRow]) -> str:
    """Lay rows out as a table of text with aligned columns and a heading."""
    cells = [("name", "kind", "arch", "state", "size", "memory", "licence", "where")]
    cells += [
        (
            *(row.name, row.kind, row.arch, row.state, megabytes(row.size)),
            megabytes(row.memory.total) if row.memory else "-",
            *(row.licence, str(row.path)),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def megabytes(size: int) -> str:
    """Return a number of bytes as text in MB, "-" for none."""
    return f"{size / 1e6:,.0f} MB" if size else "-"
