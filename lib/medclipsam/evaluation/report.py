"""The report of a run, as Markdown with pictures beside it and as one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medclipsam.base.options import ZeroShotOptions
from medclipsam.evaluation.data import Case, read_case
from medclipsam.evaluation.published import PUBLISHED, PUBLISHED_PROTOCOL
from medclipsam.evaluation.runner import Row, prediction_path, slug
from medclipsam.evaluation.summary import ALL_TASKS
from medclipsam.evaluation.tables import write_text
from medclipsam.evaluation.text import (
    NONE,
    html_page,
    html_table,
    markdown_table,
    number,
    with_deviation,
    with_interval,
)
from medclipsam.imaging import Window, read_mask, write_overlay
from medclipsam.imaging.write import replace_file

FIGURES = "figures"
_OVERLAY_SIDE = 360
_BOTH, _ONLY_FOUND, _ONLY_TRUE = "found and true", "only found", "only true"
_KINDS = {_BOTH: 1, _ONLY_FOUND: 2, _ONLY_TRUE: 3}


@dataclass(frozen=True)
class _Part:
    """A piece of the report: a heading, a paragraph, a table or a picture."""

    kind: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    file: str = ""


def write_report(
    out: Path, cases: Sequence[Case], rows: Sequence[Row], summary: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Write report.md, report.html and the folder of figures.

    The same results and the same seed give the same bytes.

    Parameters
    ----------
    out : pathlib.Path
        The run's folder.
    cases, rows : sequence
        What was measured, and the results in the same order.
    summary : mapping
        Of `medclipsam.evaluation.summary.summarise`.
    identity : mapping
        What the results depend on.

    Raises
    ------
    InputError
        If a file cannot be read or written.
    """
    (out / FIGURES).mkdir(exist_ok=True)
    parts = [
        *_head(summary, identity),
        *_tables(summary),
        *_published(summary, identity),
        *_ladder(summary),
        *_sensitivity(summary),
        *_plots(out, rows),
        *_overlays(out, cases, rows),
    ]
    write_text(out / "report.md", "\n\n".join(_as_markdown(part) for part in parts) + "\n")
    body = "\n".join(_as_html(part, out) for part in parts)
    write_text(out / "report.html", html_page("Evaluation", body))


def sample_sentence(identity: Mapping[str, Any]) -> str:
    """Return which part of the data a run measured that was limited."""
    sample = identity["sample"]
    return (
        f"A sample: at most {sample['limit']} images of each folder, drawn by seed {sample['seed']}, with the target "
        f"present and absent in proportion; {identity['cases']} of {sample['of']} image-task pairs."
    )


def _head(summary: Mapping[str, Any], identity: Mapping[str, Any]) -> list[_Part]:
    predictor = identity["predictor"]
    defaults = ZeroShotOptions().to_dict()
    changed = {k: v for k, v in predictor.get("options", {}).items() if v != defaults.get(k)}
    weights = predictor.get("weights", {})
    names = [f"{part['name']} ({part['sha256'][:12]})" for part in weights.values() if isinstance(part, dict)]
    lines = [
        f"Protocol {identity['protocol']}.",
        f"Split {identity['split']}, {identity['cases']} image-task pairs. Weights: {', '.join(names) or NONE}.",
        "Options: " + (", ".join(f"{key} {value}" for key, value in changed.items()) or "all defaults") + ".",
    ]
    if identity.get("sample"):
        lines.append(sample_sentence(identity))
    if identity["search"]:
        lines.append("Settings were searched on validation images with masks, for each task by itself (run.json).")
    bootstrap = summary["bootstrap"]
    lines.append(
        f"Intervals: bootstrap over images, 95 %, {bootstrap['draws']} draws, seed {bootstrap['seed']}. medclipsam "
        f"{identity['version']}; data {identity['data'][:12]}. For research use only."
    )
    return [_Part("title", "Evaluation"), *(_Part("text", line) for line in lines)]


def _tables(summary: Mapping[str, Any]) -> list[_Part]:
    in_mm = any(task["nsd_mm"]["n"] for task in summary["tasks"].values())
    header = (
        *("task", "images", "with target", "DSC ± sd", "DSC", "DSC where present", "NSD (2 px)"),
        *(("NSD (2 mm)",) if in_mm else ()),
        *("presence right", "found where present", "found where absent", "presence AUC"),
    )

    def line(name: str, part: Mapping[str, Any], *, pooled: bool = True) -> tuple[str, ...]:
        return (
            name,
            str(part["dice"]["n"]) if pooled else NONE,
            str(part["dice_present"]["n"]) if pooled else NONE,
            with_deviation(part["dice"]),
            with_interval(part["dice"]),
            with_interval(part["dice_present"]),
            with_interval(part["nsd"]),
            *((with_interval(part["nsd_mm"]),) if in_mm else ()),
            number(part["presence_right"]["mean"], 1),
            number(part["found_present"]["mean"], 1),
            number(part["found_absent"]["mean"], 1),
            NONE if part.get("presence_auc") is None else f"{part['presence_auc']:.3f}",
        )

    certain = [
        (name, f"{part['ece']:.4f}", NONE if part["uncertainty_rank"] is None else f"{part['uncertainty_rank']:.2f}")
        for name, part in summary["tasks"].items()
        if part["ece"] is not None
    ]
    rows = [line(name, part) for name, part in summary["tasks"].items()]
    rows.append(line("macro, over tasks", summary["macro"], pooled=False))
    rows.append(line("pooled, over images", summary["pooled"]))
    return [
        _Part("heading", "By task"),
        _Part(
            "text",
            "In per cent, with 95 % intervals in brackets. Where a target is absent, an empty mask counts as 1 and any "
            "other as 0; the column of images that hold the target leaves these out. The deviation in the macro row is "
            "that among tasks.",
        ),
        _Part("table", header=header, rows=tuple(rows)),
        *_volumes(summary),
        *(_certainty(certain) if certain else ()),
    ]


def _volumes(summary: Mapping[str, Any]) -> list[_Part]:
    tasks = {name: part for name, part in summary["tasks"].items() if part["lesion_f1"]["n"]}
    if not tasks:
        return []
    rows = [
        (
            name,
            str(part["lesion_f1"]["n"]),
            _plain(part["hd95_mm"]),
            str(part["hd95_mm"]["n"]),
            with_interval(part["lesion_sensitivity"]),
            _plain(part["lesions_false"]),
            with_interval(part["lesion_f1"]),
            with_interval(part["flicker"]),
        )
        for name, part in tasks.items()
    ]
    return [
        _Part("heading", "Volumes"),
        _Part(
            "text",
            "HD95: 95th percentile of the Hausdorff distance; volumes with one empty mask have none and are left out. "
            "A lesion is a connected component; it is found where the mask has one of its voxels, and a component of "
            "the mask that touches no lesion is a false one. Flicker: the mean difference between the mask's and the "
            "truth's change of area from plane to plane, in per cent of the truth's mean area.",
        ),
        _Part(
            "table",
            header=(
                *("task", "volumes", "HD95 (mm)", "with HD95", "lesions found %", "false lesions a volume"),
                *("lesion F1 %", "flicker %"),
            ),
            rows=tuple(rows),
        ),
    ]


def _plain(figure: Mapping[str, Any]) -> str:
    """Return mean and interval in the figure's own unit."""
    if figure["mean"] is None:
        return NONE
    interval = "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    return f"{figure['mean']:.2f}{interval}"


def _certainty(rows: Sequence[tuple[str, ...]]) -> list[_Part]:
    return [
        _Part("heading", "Certainty"),
        _Part(
            "text",
            "ECE: the expected calibration error of the structure's probability, over all pixels. Rank: Spearman's "
            "correlation of an image's uncertainty score with 1 - DSC, missed targets included.",
        ),
        _Part("table", header=("task", "ECE", "rank"), rows=tuple(rows)),
    ]


def _published(summary: Mapping[str, Any], identity: Mapping[str, Any]) -> list[_Part]:
    keys = {name: task.get("published") for name, task in identity["tasks"].items()}
    ours = {key: summary["tasks"][name] for name, key in keys.items() if key}
    names = {key: name for name, key in keys.items() if key}
    rows = []
    for key, figures in PUBLISHED.items():
        mine = ours.get(key)
        rows.append(
            (
                key,
                *(f"{dsc:.2f} / {nsd:.2f}" for dsc, nsd in figures.values()),
                NONE if mine is None else f"{number(mine['dice']['mean'])} / {number(mine['nsd']['mean'])}",
                names.get(key, NONE),
            )
        )
    own = identity["protocol"].partition(":")[0]
    return [
        _Part("heading", "Beside the published figures"),
        _Part(
            "text",
            f"DSC / NSD in per cent. Published: Koleilat et al. 2025, on patients' images, zero-shot under protocol "
            f"{PUBLISHED_PROTOCOL}. Ours: this run, protocol {own}, on the images of its data folder; the two can be "
            "held against each other only where these are the published images under the same protocol.",
        ),
        _Part(
            "table",
            header=(
                *("task", "published, zero-shot (A)", "published, weakly supervised"),
                *(f"this run ({own})", "task of this run"),
            ),
            rows=tuple(rows),
        ),
    ]


def _ladder(summary: Mapping[str, Any]) -> list[_Part]:
    if "rungs" not in summary:
        return []
    tasks = list(summary["tasks"])
    rows = tuple(
        (
            name,
            with_interval(rung["macro"]["dice"]),
            with_interval(rung["macro"]["nsd"]),
            *(number(rung["tasks"][task]["dice"]["mean"], 1) for task in tasks),
        )
        for name, rung in summary["rungs"].items()
    )
    return [
        _Part("heading", "Ablation"),
        _Part(
            "text",
            "Each rung adds a stage; macro over tasks, then the DSC of each task. Presence is asked only where named.",
        ),
        _Part("table", header=("rung", "DSC", "NSD", *tasks), rows=rows),
    ]


def _sensitivity(summary: Mapping[str, Any]) -> list[_Part]:
    if "sensitivity" not in summary:
        return []
    parts = [
        _Part("heading", "What the text does"),
        _Part(
            "text",
            "Each image is asked other texts. DSC is that against the truth of the task's structure, on images that "
            "hold it: high for right texts, low for all others. Overlap is the Dice with the mask of the right text, "
            "presence off. Not empty: share of masks with any pixel (other structures of the modality may well be in "
            "the image; another modality's and nonsense never are). The last column is the point "
            "where 95 % of the right texts and paraphrases pass, found on the images of the table itself by moving all "
            "presence thresholds together.",
        ),
    ]
    header = (
        *("text", "pairs", "DSC, presence on", "DSC, presence off", "overlap"),
        *("not empty, presence on", "not empty, presence off", "not empty at 95 % sensitivity"),
    )
    for name, table in summary["sensitivity"].items():
        if name != ALL_TASKS and len(summary["sensitivity"]) == 2:
            continue
        rows = tuple(
            (
                kind,
                str(part["pairs"]),
                with_interval(part["dice_on"]),
                with_interval(part["dice_off"]),
                with_interval(part["overlap"]),
                with_interval(part["found_on"]),
                number(part["found_off"]["mean"], 1),
                with_interval(part["found_at"]),
            )
            for kind, part in table["kinds"].items()
        )
        shift = NONE if table["shift"] is None else f"{table['shift']:+.2f}"
        auc = NONE if table["auc"] is None else f"{table['auc']:.3f}"
        parts += [
            _Part("subheading", name),
            _Part("table", header=header, rows=rows),
            _Part(
                "text",
                f"At 95 % sensitivity the thresholds move by {shift} on the logit scale. AUC of the presence score "
                f"over its threshold, right texts against another modality's and nonsense: {auc}.",
            ),
        ]
    # The table of all tasks comes first, below the explanation.
    total = next(place for place, part in enumerate(parts) if part.text == ALL_TASKS)
    return [*parts[:2], *parts[total:], *parts[2:total]]


def _plots(out: Path, rows: Sequence[Row]) -> list[_Part]:
    by_task: dict[str, list[float]] = {}
    by_rung: dict[str, list[float]] = {}
    for row in rows:
        if row["present"]:
            by_task.setdefault(row["task"], []).append(row["dice"])
            for name, figures in row.get("rungs", {}).items():
                by_rung.setdefault(name, []).append(figures["dice"])
    parts = [_Part("heading", "Spread")]
    for name, groups, caption in (
        ("by-task", by_task, "DSC of images that hold the target, by task"),
        ("by-rung", by_rung, "DSC of images that hold the target, all tasks, by rung"),
    ):
        if groups and _box_plot(out / FIGURES / f"{name}.png", groups):
            parts.append(_Part("picture", caption, file=f"{FIGURES}/{name}.png"))
    return parts if len(parts) > 1 else []


def _box_plot(path: Path, groups: Mapping[str, Sequence[float]]) -> bool:
    """Draw horizontal boxes (median, quartiles, 1.5 IQR) with every image as a dot; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # the tables do not need it
        return False
    figure = Figure(figsize=(9, 1.1 + 0.34 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(groups))[::-1]
    axes.boxplot(
        list(groups.values()), positions=places, orientation="horizontal", widths=0.6, showfliers=False,
        medianprops={"color": "#c2410c", "linewidth": 2}, boxprops={"color": "#4b5661"},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for place, values in zip(places, groups.values(), strict=True):
        spread = place + rng.uniform(-0.18, 0.18, len(values))
        axes.plot(values, spread, ".", markersize=3.5, alpha=0.45, color="#1d6fa5")
    axes.set_yticks(places, [f"{name} (n = {len(values)})" for name, values in groups.items()], fontsize=8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("DSC")
    axes.grid(axis="x", color="#d9dee3")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    replace_file(path, ".png", lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return True


def _overlays(out: Path, cases: Sequence[Case], rows: Sequence[Row]) -> list[_Part]:
    parts = [
        _Part("heading", "Best, median and worst"),
        _Part("text", "Of the images that hold the target, by DSC."),
    ]
    by_task: dict[str, list[tuple[Case, Row]]] = {}
    for case, row in zip(cases, rows, strict=True):
        if row["present"]:
            by_task.setdefault(row["task"], []).append((case, row))
    for task, pairs in by_task.items():
        pairs.sort(key=lambda pair: (-pair[1]["dice"], pair[1]["name"]))
        picked = {"best": pairs[0], "median": pairs[len(pairs) // 2], "worst": pairs[-1]}
        if len(pairs) < len(picked):
            picked = dict(zip(("best", "worst"), pairs, strict=False))
        parts.append(_Part("subheading", task))
        for rank, (case, row) in picked.items():
            file = f"{FIGURES}/{slug(task)}-{rank}.png"
            _overlay(out, case, row, out / file)
            caption = f"{rank}: {row['name']}, DSC {number(row['dice'], 1)}, NSD {number(row['nsd'], 1)}"
            parts.append(_Part("picture", caption, file=file))
    return parts if by_task else []


def _overlay(out: Path, case: Case, row: Row, path: Path) -> None:
    image, truth = read_case(case)
    found = read_mask(prediction_path(out, row), image) > 0
    labels = np.select([found & truth, found, truth], [_KINDS[_BOTH], _KINDS[_ONLY_FOUND], _KINDS[_ONLY_TRUE]])
    window = Window(*row["window"]) if row["window"] else None
    write_overlay(labels.astype(np.uint8), image, _KINDS, path, window=window, list_absent=False)
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_OVERLAY_SIDE * (2 if image.is_volume else 1), _OVERLAY_SIDE), Image.Resampling.LANCZOS)
    replace_file(path, ".png", lambda temporary: small.save(temporary, format="PNG", optimize=True))


def _as_markdown(part: _Part) -> str:
    if part.kind == "table":
        return markdown_table(part.header, part.rows)
    if part.kind == "picture":
        return f"![{re.sub(r'[][]', '', part.text)}]({part.file})\n{part.text}"
    return {"title": "# ", "heading": "## ", "subheading": "### "}.get(part.kind, "") + part.text


def _as_html(part: _Part, out: Path) -> str:
    text = html.escape(part.text)
    if part.kind == "table":
        return html_table(part.header, part.rows)
    if part.kind == "picture":
        content = base64.b64encode((out / part.file).read_bytes()).decode()
        return (
            f'<figure><img src="data:image/png;base64,{content}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )
    tag = {"title": "h1", "heading": "h2", "subheading": "h3"}.get(part.kind)
    return f"<{tag}>{text}</{tag}>" if tag else f'<p class="note">{text}</p>'
