"""What the rounds came to, for people and programs: a table, a picture, and the same as JSON."""

from __future__ import annotations

import csv
import datetime
import html
import io
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.active.ledger import Label, Ledger, Round
from medclipsam.base.errors import InputError
from medclipsam.base.metrics import cohen_kappa
from medclipsam.imaging.write import replace_file

PLOTS = (".png", ".html")
LABEL_COLUMNS = (
    *("saved", "annotator", "image", "targets", "set", "verdict", "reviewers", "round", "seconds", "dice", "source"),
    *("current", "consensus"),
)


def summarise(ledger: Ledger) -> dict[str, Any]:
    """Return what the rounds came to.

    Parameters
    ----------
    ledger : Ledger

    Returns
    -------
    dict
        JSON-able. `rounds`: for each its number, state, times (seconds since the epoch), networks, metrics, and of the
        labels saved in it `labels` (versions), `images`, `absent`, `validation` (versions for validation images, which
        are not trained on), `readers`, `by_reader` (versions by reader), means of `dice` and `path_length` between the
        mask that was offered and the label, the share `unchanged`, the median `seconds`; None where nothing is known.
        `labelled`: images with a label that stands; `validation`: how many of these are validation images;
        `by_reader`: how many of these are by each reader; `approved`, `rejected`: what reviewers said of them; `new`:
        those that no training has seen; `waiting`: images whose readers' labels wait for a consensus, which are not
        among `labelled`; `consensus`: images that have one; `agreement`: mean Dice of pairs of readers of one image,
        the number of pairs, and in `readers`, for each two, their images, mean Dice, and Cohen's kappa of whether they
        marked anything at all; None where chance explains all agreement.
    """
    labels = ledger.labels(current=False)
    held = ledger.validation_images()
    waiting = {each.image for each in ledger.waiting()}
    standing = [label for label in labels if label.current and not label.rejected and label.image not in waiting]
    agreements = ledger.agreements()
    scores = [value for pairs in agreements.values() for value in pairs.values()]
    return {
        "rounds": [
            _of_round(each, [label for label in labels if label.round == each.number], held) for each in ledger.rounds()
        ],
        "labelled": len(standing),
        "validation": sum(label.image in held for label in standing),
        "by_reader": _by_reader(standing),
        "approved": sum(label.current and label.approved for label in labels),
        "rejected": sum(label.current and label.rejected for label in labels),
        "new": ledger.new_labels(),
        "waiting": len(waiting),
        "consensus": sum(bool(label.method) for label in standing),
        "agreement": {"dice": _mean(scores), "pairs": len(scores), "readers": _by_pair(labels, agreements)},
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """Return a summary as a table for a terminal."""
    header: tuple[str, ...] = (
        *("round", "since", "labels", "validation", "absent", "unchanged", "Dice", "path", "seconds", "training"),
        *("network", "val. Dice", "annotators"),
    )
    rows = [header]
    for each in summary["rounds"]:
        rows.append(
            (
                str(each["number"]),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(each["opened"])),
                str(each["labels"]),
                str(each["validation"]),
                str(each["absent"]),
                _text(each["unchanged"], "{:.0%}"),
                _text(each["dice"], "{:.3f}"),
                _text(each["path_length"], "{:.0f}"),
                _text(each["seconds"], "{:.0f}"),
                each["state"],
                f"{each['network_before'] or '-'} -> {each['network_after'] or '-'}",
                _text(each["metrics"].get("dice"), "{:.3f}"),
                _counts(each["by_reader"]) or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reviewed = "".join(f"; {summary[verdict]} {verdict}" for verdict in ("approved", "rejected") if summary[verdict])
    lines += [
        "",
        f"{summary['labelled']} images labelled, {summary['validation']} of them for validation; {summary['new']} to "
        f"train on are new since the last training{reviewed}.",
    ]
    if summary["by_reader"]:
        lines.append(f"Labelled by {_counts(summary['by_reader'])}.")
    if summary["agreement"]["pairs"]:
        lines.append(f"Readers agree with a Dice of {summary['agreement']['dice']:.3f} (mean of pairs).")
    for pair in summary["agreement"]["readers"]:
        told = f"{' and '.join(pair['readers'])}: {pair['images']} images, Dice {pair['dice']:.3f}"
        lines.append(f"  {told}, kappa of presence {_text(pair['kappa'], '{:.3f}')}")
    if summary["waiting"] or summary["consensus"]:
        lines.append(
            f"{summary['waiting']} images wait for a consensus of their readers, {summary['consensus']} have one."
        )
    return "\n".join(lines) + "\n"


def plot(summary: Mapping[str, Any], path: Path) -> Path:
    """Draw the learning curve and the effort of correction.

    Parameters
    ----------
    summary : mapping
        Of `summarise`.
    path : pathlib.Path
        Ends in .png (the picture) or .html (one file with picture and table).

    Raises
    ------
    InputError
        If the name ends in anything else, or there is nothing to draw.
    """
    if path.suffix not in PLOTS:
        raise InputError(f"Rounds cannot be drawn to {path.name}; allowed: a name that ends in {' or '.join(PLOTS)}.")
    rounds = summary["rounds"]
    if not any(each["labels"] for each in rounds):
        raise InputError("No label has been saved yet, so that there is nothing to draw.")
    picture = _draw(rounds)
    if path.suffix == ".png":
        replace_file(path, ".png", lambda temporary: temporary.write_bytes(picture))
    else:
        page = _page(summary, picture)
        replace_file(path, ".html", lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def label_rows(ledger: Ledger, names: Mapping[str, Mapping[int, str]], *, every: bool = False) -> list[dict[str, Any]]:
    """Return who has labelled which image when, a row for each label.

    Parameters
    ----------
    ledger : Ledger
    names : mapping
        Image id: names of the values in its label; the key "" has those of all other images.
    every : bool
        Whether versions that were replaced or removed are listed too.

    Returns
    -------
    list of dict
        In the order of saving, with the keys of `LABEL_COLUMNS`; None where nothing is known. `saved` is ISO 8601 in
        UTC; `targets` what the label holds, empty for a confirmed absence; `verdict` "approved" or "rejected";
        `consensus` how it was made of several readers' labels.
    """
    labels, held = ledger.labels(current=not every), ledger.validation_images()
    values = ledger.values([label.number for label in labels])
    return [
        {
            "saved": datetime.datetime.fromtimestamp(label.saved, datetime.UTC).isoformat(timespec="seconds"),
            "annotator": label.reader,
            "image": label.image,
            "targets": "; ".join(
                names.get(label.image, {}).get(value) or names.get("", {}).get(value) or f"label {value}"
                for value in values[label.number]
            ),
            "set": "validation" if label.image in held else "training",
            "verdict": "rejected" if label.rejected else "approved" if label.approved else None,
            "reviewers": "; ".join(label.verdicts),
            "round": label.round,
            "seconds": label.seconds,
            "dice": label.dice,
            "source": label.source,
            "current": label.current,
            "consensus": label.method or None,
        }
        for label in labels
    ]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `label_rows` as CSV with a heading."""
    file = io.StringIO()
    writer = csv.DictWriter(file, LABEL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _safe_cell(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def _safe_cell(value: Any) -> Any:
    """Return a cell that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _counts(by_reader: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in by_reader.items())


def _by_reader(labels: Iterable[Label]) -> dict[str, int]:
    counts = Counter(label.reader for label in labels)
    return {name: counts[name] for name in sorted(counts)}


def _by_pair(
    labels: Sequence[Label], agreements: Mapping[str, Mapping[tuple[str, str], float]]
) -> list[dict[str, Any]]:
    """Return how each two readers agree over the images that both have read."""
    absent = {(label.image, label.reader): label.absent for label in labels if not label.method}
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for image, pairs in agreements.items():
        for pair, value in pairs.items():
            found.setdefault(pair, []).append((image, value))
    return [
        {
            "readers": list(pair),
            "images": len(values),
            "dice": _mean([value for _, value in values]),
            "kappa": cohen_kappa(*(np.array([not absent[image, reader] for image, _ in values]) for reader in pair)),
        }
        for pair, values in sorted(found.items())
    ]


def _of_round(each: Round, labels: Sequence[Label], held: Collection[str]) -> dict[str, Any]:
    measured = [label for label in labels if label.dice is not None]
    seconds = [label.seconds for label in labels if label.seconds is not None]
    return {
        "number": each.number,
        "state": each.state,
        "opened": each.opened,
        "started": each.started,
        "ended": each.ended,
        "network_before": each.network_before,
        "network_after": each.network_after,
        "metrics": dict(each.metrics),
        "labels": len(labels),
        "images": len({label.image for label in labels}),
        "absent": sum(label.absent for label in labels),
        "validation": sum(label.image in held for label in labels),
        "readers": sorted({label.reader for label in labels}),
        "by_reader": _by_reader(labels),
        "dice": _mean([label.dice for label in measured]),
        "path_length": _mean([label.path_length for label in measured]),
        "unchanged": _mean([label.changed == 0 for label in measured]),
        "seconds": float(np.median(seconds)) if seconds else None,
    }


def _draw(rounds: Sequence[Mapping[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    curve, work = figure.subplots(1, 2)
    seen = np.cumsum([each["images"] for each in rounds])
    known = [(count, each["metrics"]["dice"]) for count, each in zip(seen, rounds, strict=True) if _dice(each)]
    curve.plot([count for count, _ in known], [value for _, value in known], "o-")
    curve.set(xlabel="images labelled", ylabel="Dice on validation images", ylim=(0, 1), title="Learning curve")
    numbers = [each["number"] for each in rounds if each["dice"] is not None]
    changed = [1 - each["dice"] for each in rounds if each["dice"] is not None]
    lengths = [each["path_length"] for each in rounds if each["dice"] is not None]
    work.plot(numbers, changed, "s-", color="tab:red")
    work.set(xlabel="round", ylabel="1 - Dice of offered mask and label", ylim=(0, None), title="Effort of correction")
    work.xaxis.get_major_locator().set_params(integer=True)
    other = work.twinx()
    other.plot(numbers, lengths, "^--", color="tab:grey")
    other.set(ylabel="added path length (pixels)", ylim=(0, None))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _page(summary: Mapping[str, Any], picture: bytes) -> str:
    import base64

    image = base64.b64encode(picture).decode()
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Rounds</title>\n'
        "<style>img { max-width: 100%; height: auto; } pre { overflow-x: auto; }</style>\n"
        f'<h1>Rounds</h1>\n<img alt="Learning curve and effort" src="data:image/png;base64,{image}">\n'
        f"<pre>{html.escape(as_text(summary))}</pre>\n</html>\n"
    )


def _dice(each: Mapping[str, Any]) -> bool:
    return each["metrics"].get("dice") is not None


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
