"""The results of a run as files: JSON and CSV an image, JSON of the summary, and the seconds apart.

Seconds differ from run to run; everything else is the same for the same seed, so they lie in a file of their own.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medclipsam.evaluation.runner import Row
from medclipsam.imaging.write import replace_file

_COLUMNS = (
    *("task", "name", "text", "present", "found", "presence_right", "presence", "threshold"),
    *("dice", "nsd", "nsd_mm", "prediction"),
)
_VOLUME_COLUMNS = ("hd95_mm", "lesions", "lesions_found", "lesions_false", "lesion_f1", "flicker")


def write_tables(out: Path, rows: Sequence[Row], summary: dict[str, Any]) -> None:
    """Write per_image.json, per_image.csv, rungs.csv, sensitivity.csv, seconds.csv and summary.json.

    Parameters
    ----------
    out : pathlib.Path
        The run's folder.
    rows : sequence of dict
        The results.
    summary : dict
        Of `medclipsam.evaluation.summary.summarise`.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_text(out / "per_image.json", json.dumps([_without_seconds(row) for row in rows], indent=1) + "\n")
    deep = _VOLUME_COLUMNS if any("flicker" in row for row in rows) else ()
    _write_csv(out / "per_image.csv", (*_COLUMNS, *deep), rows)
    stages = list(dict.fromkeys(stage for row in rows for stage in row["seconds"]))
    _write_csv(out / "seconds.csv", ("task", "name", *stages), [{**row, **row["seconds"]} for row in rows])
    rungs = [
        {"task": row["task"], "name": row["name"], "rung": name, **figures}
        for row in rows
        for name, figures in row.get("rungs", {}).items()
    ]
    if rungs:
        _write_csv(out / "rungs.csv", ("task", "name", "rung", "found", "dice", "nsd", "nsd_mm"), rungs)
    asked = [
        {"task": row["task"], "name": row["name"], "present": row["present"], **answer}
        for row in rows
        for answer in row.get("sensitivity", ())
    ]
    if asked:
        _write_csv(out / "sensitivity.csv", tuple(asked[0]), asked)


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    replace_file(path, path.suffix, lambda temporary: temporary.write_text(content, encoding="utf-8"))


def _without_seconds(row: Row) -> Row:
    kept = {key: value for key, value in row.items() if key != "seconds"}
    if "rungs" in kept:
        kept["rungs"] = {
            name: {key: value for key, value in figures.items() if key != "seconds"}
            for name, figures in kept["rungs"].items()
        }
    return kept


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
