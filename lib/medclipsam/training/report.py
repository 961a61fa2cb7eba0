"""What a training did, for people and programs: report.md, report.json and the learning curve."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medclipsam import __version__
from medclipsam.training.selection import Selection

# Left-out labels that the readable report names; the JSON has all.
_LISTED = 50


def write_report(
    folder: Path,
    about: Mapping[str, Any],
    chosen: Selection,
    *,
    multilabel: bool,
    seconds: float,
    curve: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of a training.

    Parameters
    ----------
    folder : Path
        Where report.md, report.json and curve.png go.
    about : mapping
        Fields of `Network`.
    chosen : Selection
        What was trained on and what was left out.
    multilabel : bool
        Whether the network's classes may overlap.
    seconds : float
        How long all of it took.
    curve : sequence of mapping
        `epoch`, `loss` and, where it was measured, `dice` of each class on the validation images.
    """
    content = {
        **about,
        "version_of_medclipsam": __version__,
        "multilabel": multilabel,
        "seconds": round(seconds, 1),
        "training": [{"image": each.name, "kind": each.kind, "weight": each.weight} for each in chosen.training],
        "validation": [each.name for each in chosen.validation],
        "left_out": [asdict(each) for each in chosen.left_out],
        "curve": list(curve),
    }
    (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    drawn = _draw_curve(folder / "curve.png", curve)
    (folder / "report.md").write_text(_readable(content, chosen, drawn), encoding="utf-8")


def _readable(content: Mapping[str, Any], chosen: Selection, drawn: bool) -> str:
    verdict = content["metrics"].get("verdict", {})
    counts = content["data"]
    lines = [
        f"# Training of {content['name']}",
        "",
        f"**{content['status']}**: {content['reason']}",
        "",
        "| | |",
        "|---|---|",
        f"| labels | {', '.join(f'{name} ({value})' for name, value in content['labels'].items())} |",
        f"| labels may overlap | {'yes' if content['multilabel'] else 'no'} |",
        f"| kind of image | {content['modality'] or 'not known'} |",
        f"| final labels trained on | {counts['training']['final']} |",
        f"| pseudo-labels trained on | {counts['training']['original']} |",
        f"| final labels validated on | {counts['validation']} |",
        f"| labels left out | {len(chosen.left_out)} |",
        f"| seconds | {content['seconds']:g} |",
        f"| data | {counts['hash'][:16]} |",
        "",
    ]
    if verdict.get("n"):
        lines += ["## Dice on the validation images", "", "| label | Dice |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in content["metrics"]["dice"].items()]
        lines.append("")
    if drawn:
        lines += ["![Learning curve](curve.png)", ""]
    if chosen.left_out:
        lines += ["## Left out", "", "| image | kind | why |", "|---|---|---|"]
        lines += [
            f"| {_cell(each.image)} | {each.kind} | {_cell(each.sentence)} |" for each in chosen.left_out[:_LISTED]
        ]
        if len(chosen.left_out) > _LISTED:
            lines.append(f"| {len(chosen.left_out) - _LISTED} more, see report.json | | |")
        lines.append("")
    lines += ["## Options", "", "| option | value |", "|---|---|"]
    lines += [f"| {key} | {_cell(str(value))} |" for key, value in content["options"].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _draw_curve(path: Path, curve: Sequence[Mapping[str, Any]]) -> bool:
    """Draw loss and validation Dice over the epochs; False without matplotlib or epochs."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # the report does without
        return False
    points = [
        (entry["epoch"], entry["loss"], entry.get("dice")) for entry in curve if "epoch" in entry and "loss" in entry
    ]
    if not points:
        return False
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([epoch for epoch, _, _ in points], [loss for _, loss, _ in points], color="#4b5661", label="loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(color="#d9dee3")
    measured = [(epoch, sum(dice.values()) / len(dice)) for epoch, _, dice in points if dice]
    if measured:
        other = axes.twinx()
        other.plot(*zip(*measured, strict=True), color="#c2410c", marker=".", label="mean Dice on validation images")
        other.set_ylim(0, 1)
        other.set_ylabel("Dice")
    handles = [line for each in figure.axes for line in each.get_lines()]
    axes.legend(handles=handles, loc="center right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    path.write_bytes(buffer.getvalue())
    return True
