"""Two runs side by side, image by image."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.statistics import DRAWS, compare_pairs
from medclipsam.evaluation.runner import Row, read_identity, read_results
from medclipsam.evaluation.tables import write_text
from medclipsam.evaluation.text import markdown_table, number

METRICS = {"dice": "DSC", "nsd": "NSD"}
ALL = "all images"


def compare(a: Path, b: Path, *, out: Path | None = None, draws: int = DRAWS, seed: int = 0) -> str:
    """Compare two runs on the images that both have, paired by task and name.

    Parameters
    ----------
    a, b : pathlib.Path
        Folders of runs.
    out : pathlib.Path, optional
        Folder for comparison.json and comparison.md; made if needed.
    draws, seed : int
        Of the bootstrap.

    Returns
    -------
    str
        The comparison as Markdown.

    Raises
    ------
    InputError
        If a folder holds no run, the runs share no image, or the truth of a shared image differs.
    """
    runs = [{(row["task"], row["name"]): row for row in read_results(folder)} for folder in (a, b)]
    identities = [read_identity(folder) for folder in (a, b)]
    shared = sorted(set(runs[0]) & set(runs[1]))
    if not shared:
        raise InputError(f"The runs {a} and {b} share no image: none has the same task and name in both.")
    for key in shared:
        if runs[0][key]["present"] != runs[1][key]["present"]:
            raise InputError(f"The truth of {key[1]!r} (task {key[0]!r}) differs between {a} and {b}.")
    pairs = [(runs[0][key], runs[1][key]) for key in shared]
    groups: dict[str, list[tuple[Row, Row]]] = {ALL: pairs}
    for pair in pairs:
        groups.setdefault(pair[0]["task"], []).append(pair)
    figures: dict[str, Any] = {
        metric: {
            name: asdict(
                compare_pairs(
                    [one[metric] for one, _ in group],
                    [two[metric] for _, two in group],
                    [(one["folder"], one["name"]) for one, _ in group],
                    draws=draws,
                    seed=seed,
                )
            )
            for name, group in groups.items()
        }
        for metric in METRICS
    }
    left_out = [len(run) - len(shared) for run in runs]
    text = _markdown(a, b, identities, left_out, figures)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"a": str(a), "b": str(b), "draws": draws, "seed": seed, "left_out": left_out, "figures": figures}
        write_text(out / "comparison.json", json.dumps(content, indent=1) + "\n")
        write_text(out / "comparison.md", text)
    return text


def _markdown(a: Path, b: Path, identities: list[dict[str, Any]], left_out: list[int], figures: dict[str, Any]) -> str:
    lines = ["# Comparison", ""]
    for letter, folder, identity in zip("AB", (a, b), identities, strict=True):
        lines.append(f"- {letter}: `{folder}`, protocol {identity['protocol']}, split {identity['split']}")
    if any(left_out):
        lines.append(f"- left out, being in one run only: {left_out[0]} of A, {left_out[1]} of B")
    lines += [
        "",
        "Positive differences mean that B is better. Intervals are bootstrap 95 % intervals over images; p is that of "
        "a two-sided Wilcoxon signed-rank test; r is the matched-pairs rank-biserial correlation.",
        "",
    ]
    for metric, title in METRICS.items():
        header = (f"{title} %", "n", "A", "B", "B - A", "95 % interval", "p", "r")
        rows = [
            (
                name,
                str(part["n"]),
                number(part["mean_a"]),
                number(part["mean_b"]),
                number(part["difference"]),
                f"{number(part['low'])} to {number(part['high'])}",
                f"{part['p_value']:.2g}",
                f"{part['effect_size']:.2f}",
            )
            for name, part in figures[metric].items()
        ]
        lines += [markdown_table(header, rows), ""]
    return "\n".join(lines)
