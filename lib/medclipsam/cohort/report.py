"""The report of a run: one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import heapq
import html
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from medclipsam.base.files import write_text
from medclipsam.cohort.source import Source
from medclipsam.cohort.store import REPORT, Run
from medclipsam.cohort.table import batches
from medclipsam.cohort.work import WorkerSettings
from medclipsam.dicomweb.client import Credentials
from medclipsam.evaluation.text import NONE, html_page, html_table

logger = logging.getLogger(__name__)

# Findings that are drawn, failures that are listed, and pictures of each kind.
_MOST_FINDINGS = 24
_MOST_FAILED = 100
_LEAST_SURE, _DOUBTFUL, _SHEET = 12, 12, 24
_SIDE = 240
_COLUMNS = (
    *("study", "place", "image", "status", "finding", "label", "found", "presence", "threshold", "uncertainty"),
    *("volume_mm3", "area_mm2", "doubt", "mask", "seg", "modality", "error", "log", "attempts"),
    *("read_seconds", "compute_seconds", "write_seconds"),
)


@dataclass(frozen=True, order=True)
class _Pick:
    """An image that is shown."""

    order: float
    number: int
    block: int = field(compare=False)
    row: Mapping[str, Any] = field(compare=False)


class _Least:
    """The few picks of least order, of any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, _Pick]] = []
        self._numbers = count()

    def add(self, order: float, block: int, row: Mapping[str, Any]) -> None:
        number = next(self._numbers)
        entry = (-order, -number, _Pick(order, number, block, row))
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def sorted(self) -> list[_Pick]:
        return sorted(each for *_, each in self._heap)


class _Summary:
    """What the report says, gathered a block after the other."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.numbers: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
        self.seconds: dict[str, list[np.ndarray]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.failed: list[dict[str, Any]] = []
        self.least_sure, self.doubtful, self.sheet = _Least(_LEAST_SURE), _Least(_DOUBTFUL), _Least(_SHEET)

    def add(self, block: int, rows: Sequence[dict[str, Any]]) -> None:
        gathered: dict[tuple[str, str], list[float]] = defaultdict(list)
        last = None
        for row in rows:
            if row["status"] == "failed":
                self.errors[row["error"] or ""] += 1
                if len(self.failed) < _MOST_FAILED:
                    self.failed.append(row)
                continue
            name = row["finding"]
            self.images[name] += 1
            self.found[name] += bool(row["found"])
            size = "volume_mm3" if row["volume_mm3"] is not None else "area_mm2"
            margin = None if row["presence"] is None or row["threshold"] is None else row["presence"] - row["threshold"]
            told = {"presence": row["presence"], "uncertainty": row["uncertainty"]}
            told |= {size: row[size]} if row["found"] else {}
            for key, value in told.items():
                if value is not None:
                    gathered[name, key].append(value)
            if row["uncertainty"] is not None:
                self.least_sure.add(-row["uncertainty"], block, row)
            elif margin is not None:
                self.least_sure.add(abs(margin), block, row)
            if row["doubt"]:
                self.doubtful.add(_spread(row["image"]), block, row)
            if row["image"] != last:
                last = row["image"]
                self.sheet.add(_spread(row["image"]), block, row)
                for stage in ("read", "compute", "write"):
                    gathered["", stage].append(row[f"{stage}_seconds"] or 0.0)
        for (name, key), values in gathered.items():
            array = np.asarray(values, np.float32)
            (self.numbers[name] if name else self.seconds)[key].append(array)


def write_report(run: Run, settings: WorkerSettings | None = None) -> None:
    """Write the report of what is finished.

    Parameters
    ----------
    run : Run
    settings : WorkerSettings, optional
        How images that are shown are retrieved.
    """
    summary = _Summary()
    for block in range(int(run.listed()["blocks"])):
        if run.is_finished(block):
            for batch in batches(iter([run.part(block)]), _COLUMNS):
                summary.add(block, batch.to_pylist())
    settings = settings or WorkerSettings(credentials=Credentials.from_environment())
    source = replace(settings, patience=0.0).open(run.source)
    shown: dict[str, str] = {}
    body = "\n".join(
        [
            *_head(run),
            *_findings(summary),
            *_distributions(summary),
            *_pictures(run, source, shown, "Least sure", summary.least_sure, "By presence score, or by a network."),
            *_pictures(run, source, shown, "Of doubtful size", summary.doubtful, "A sample, drawn by image id."),
            *_failures(run, summary),
            *_times(summary),
            *_pictures(run, source, shown, "Contact sheet", summary.sheet, "A sample, drawn by image id."),
        ]
    )
    write_text(run.folder / REPORT, html_page("Cohort", body))


def _head(run: Run) -> list[str]:
    counts, listed = run.counts(), run.listed()
    method = run.request["method"]
    asked = {"zero_shot": "Text", "network": "Network"}.get(method["kind"], "Method")
    what = method.get("text") or method.get("name") or method.get("factory", "")
    weights = [
        f"{part['name']} ({part['sha256'][:12]})"
        for part in method.get("weights", {}).values()
        if isinstance(part, dict)
    ]
    where = run.source.get("path") or run.source.get("pacs") or ""
    lines = [
        f"{counts.done} of {counts.studies} studies done, {counts.failed} of them set aside.",
        f"{asked}: {what}. Weights: {', '.join(weights) or method.get('identity', NONE)[:12]}.",
        f"Studies: {where}. Run {run.digest}, medclipsam {run.request['version']}. For research use only.",
    ]
    if listed["faults"]:
        lines.append(f"{len(listed['faults'])} files could not be listed, since they cannot be read; see list.json.")
    return ["<h1>Cohort</h1>", *(f'<p class="note">{html.escape(line)}</p>' for line in lines)]


def _findings(summary: _Summary) -> list[str]:
    rows = []
    for name, images in sorted(summary.images.items()):
        numbers = summary.numbers[name]
        rows.append(
            (
                name,
                str(images),
                f"{summary.found[name]} ({100 * summary.found[name] / images:.1f} %)",
                *(_quartiles(numbers.get(key)) for key in ("presence", "volume_mm3", "area_mm2", "uncertainty")),
            )
        )
    header = ("finding", "images", "found", "presence", "volume, mm³", "area, mm²", "uncertainty")
    note = '<p class="note">Median and quartiles; of sizes, over images where it was found.</p>'
    return ["<h2>Findings</h2>", note, html_table(header, rows)]


def _distributions(summary: _Summary) -> list[str]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # the tables do not need it
        return []
    parts = []
    labels = {"presence": "presence score", "uncertainty": "uncertainty", "volume_mm3": "volume, mm³"}
    for name in sorted(summary.numbers)[:_MOST_FINDINGS]:
        known = {key: np.concatenate(values) for key, values in summary.numbers[name].items()}
        figure = Figure(figsize=(4.0 * len(known), 2.4), dpi=90, layout="constrained")
        FigureCanvasAgg(figure)
        for index, (key, values) in enumerate(known.items(), start=1):
            axes = figure.add_subplot(1, len(known), index)
            axes.hist(values, bins=40, color="#1d6fa5")
            axes.set_xlabel(labels.get(key, "area, mm²"))
            axes.set_ylabel("images")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        parts.append(_figure(buffer.getvalue(), "png", name))
    return ["<h2>Distributions</h2>", *parts] if parts else []


def _failures(run: Run, summary: _Summary) -> list[str]:
    if not summary.errors:
        return []
    kinds = [(f"{sentence:.300}", str(number)) for sentence, number in summary.errors.most_common(20)]
    rows = [
        (row["study"], str(row["attempts"]), f"{row['error'] or '':.300}", row["log"] or "") for row in summary.failed
    ]
    return [
        "<h2>Set aside</h2>",
        html_table(("reason", "studies"), kinds),
        f'<p class="note">The first {len(rows)} of {sum(summary.errors.values())}; the logs are in '
        f"{html.escape(str(run.folder))}. <code>medclipsam cohort retry</code> tries them again.</p>",
        html_table(("study", "attempts", "reason", "log"), rows),
    ]


def _times(summary: _Summary) -> list[str]:
    rows = [(stage, _quartiles(values, 3)) for stage, values in summary.seconds.items()]
    return ["<h2>Seconds of a study</h2>", html_table(("stage", "median (quartiles)"), rows)] if rows else []


def _pictures(run: Run, source: Source, shown: dict[str, str], title: str, picks: _Least, note: str) -> list[str]:
    parts = []
    for pick in picks.sorted():
        image = str(pick.row["image"])
        if image not in shown:
            shown[image] = ""
            # the report must not fail for an image that went away
            with suppress(Exception):
                shown[image] = _picture(run, source, pick)
        if shown[image]:
            told = pick.row["presence"] if pick.row["presence"] is not None else pick.row["uncertainty"]
            caption = f"{image}: {pick.row['finding']} {'found' if pick.row['found'] else 'absent'}"
            caption += "" if told is None else f", {told:.3f}"
            parts.append(
                _figure(base64.b64decode(shown[image]), "jpeg", f"{caption}. {pick.row['doubt'] or ''}".strip())
            )
    return [f"<h2>{title}</h2>", f'<p class="note">{note}</p>', *parts] if parts else []


def _picture(run: Run, source: Source, pick: _Pick) -> str:
    """Return an image with its mask as a small JPEG, in base64; empty where no mask was kept as a file."""
    from PIL import Image

    from medclipsam.imaging import draw_overlay, read_image
    from medclipsam.imaging.label_map import read_kept_label

    if not pick.row["mask"]:
        return ""
    study = run.studies(pick.block)[int(pick.row["place"])]
    with source.fetched(study) as files:
        path = next(file.path for file in files if file.image == pick.row["image"])
        image = read_image(path)
        names = {pick.row["finding"]: int(pick.row["label"])}
        label = read_kept_label(run.folder / pick.row["mask"], image, {"label_names": names})
        picture = draw_overlay(label.values, image, names, list_absent=False, beneath=label.beneath).convert("RGB")
    picture.thumbnail((_SIDE * (2 if image.is_volume else 1), _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def _figure(content: bytes, kind: str, caption: str) -> str:
    data, text = base64.b64encode(content).decode(), html.escape(caption)
    return f'<figure><img src="data:image/{kind};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _quartiles(values: Sequence[np.ndarray] | None, digits: int = 2) -> str:
    if not values:
        return NONE
    low, middle, high = np.percentile(np.concatenate(values), [25, 50, 75])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _spread(image: str) -> float:
    """Return a number in [0, 1) that depends on an image's id alone."""
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
