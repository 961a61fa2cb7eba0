"""From the results of a run to its tables: by task, macro over tasks, pooled over images, all with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from medclipsam.base.metrics import expected_calibration_error, roc_auc
from medclipsam.base.statistics import DRAWS, Bootstrap
from medclipsam.evaluation.runner import Row

KINDS = ("right", "paraphrase", "other structure", "other modality", "nonsense")
SENSITIVITY = 0.95

# Scores nearer to 0 and 1 than this are not told apart.
_LEAST = 1e-12

Summary = dict[str, Any]


def summarise(rows: Sequence[Row], *, draws: int = DRAWS, seed: int = 0) -> Summary:
    """Summarise a run.

    Parameters
    ----------
    rows : sequence of dict
        The results of `medclipsam.evaluation.runner.run`.
    draws, seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        JSON-able: `tasks` (name -> figures), `macro`, `pooled`, and, where they were measured, `rungs` and
        `sensitivity`. A figure is {n, mean, sd, low, high} or a number.
    """
    bootstrap = Bootstrap([(row["folder"], row["name"]) for row in rows], draws, seed)
    by_task: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_task.setdefault(row["task"], []).append(place)
    summary: Summary = {
        "bootstrap": {"draws": draws, "seed": seed},
        "tasks": {task: _task(rows, places, bootstrap) for task, places in by_task.items()},
        "macro": {
            name: asdict(bootstrap.macro([_values(rows, places, of) for places in by_task.values()]))
            for name, of in _FIGURES.items()
        },
        "pooled": _figures(rows, range(len(rows)), bootstrap),
    }
    if "rungs" in rows[0]:
        summary["rungs"] = _rungs(rows, by_task, bootstrap)
    if "sensitivity" in rows[0]:
        summary["sensitivity"] = {
            **{task: text_sensitivity(rows, places, bootstrap) for task, places in by_task.items()},
            ALL_TASKS: text_sensitivity(rows, range(len(rows)), bootstrap),
        }
    return summary


ALL_TASKS = "all tasks"

Of = Callable[[Row], float | None]

_FIGURES: Mapping[str, Of] = {
    "dice": lambda row: row["dice"],
    "nsd": lambda row: row["nsd"],
    "nsd_mm": lambda row: row["nsd_mm"],
    "dice_present": lambda row: row["dice"] if row["present"] else None,
    "nsd_present": lambda row: row["nsd"] if row["present"] else None,
    "presence_right": lambda row: float(row["presence_right"]),
    "found_present": lambda row: float(row["found"]) if row["present"] else None,
    "found_absent": lambda row: None if row["present"] else float(row["found"]),
    # of volumes only
    "hd95_mm": lambda row: row.get("hd95_mm"),
    "lesion_sensitivity": lambda row: row["lesions_found"] / row["lesions"] if row.get("lesions") else None,
    "lesions_false": lambda row: row.get("lesions_false"),
    "lesion_f1": lambda row: row.get("lesion_f1"),
    "flicker": lambda row: row.get("flicker"),
}


def _values(rows: Sequence[Row], places: Sequence[int], of: Of) -> tuple[list[float], list[int]]:
    """Return the values that there are, and the rows that they are of."""
    found = [(value, place) for place in places if (value := of(rows[place])) is not None]
    return [value for value, _ in found], [place for _, place in found]


def _figures(rows: Sequence[Row], places: Sequence[int], bootstrap: Bootstrap) -> Summary:
    return {name: asdict(bootstrap.estimate(*_values(rows, places, of))) for name, of in _FIGURES.items()}


def _task(rows: Sequence[Row], places: Sequence[int], bootstrap: Bootstrap) -> Summary:
    mine = [rows[place] for place in places]
    present = [row["dice"] for row in mine if row["present"]]
    asked = [row for row in mine if row["presence"] is not None]
    return {
        **_figures(rows, places, bootstrap),
        "median_dice_present": float(np.median(present)) if present else None,
        "presence_auc": roc_auc([row["presence"] for row in asked], [row["present"] for row in asked]),
        **certainty(mine),
    }


def certainty(rows: Sequence[Row]) -> Summary:
    """Summarise what a method said about its own certainty.

    Parameters
    ----------
    rows : sequence of dict
        Results of one task (or what a rung has in their place).

    Returns
    -------
    dict
        `ece`: calibration error over all pixels of all images; `uncertainty_rank`: Spearman's correlation of the
        uncertainty score with 1 - Dice, images without the target and missed targets included. None where the method
        does not tell, or all images are alike.
    """
    from scipy.stats import spearmanr

    bins = [row["calibration"] for row in rows if "calibration" in row]
    scored = [(row["uncertainty"], 1 - row["dice"]) for row in rows if "uncertainty" in row]
    rank = None
    if len({score for score, _ in scored}) > 1 and len({error for _, error in scored}) > 1:
        rank = float(spearmanr([score for score, _ in scored], [error for _, error in scored]).statistic)
    return {
        "ece": expected_calibration_error(np.sum(np.asarray(bins), axis=0).tolist()) if bins else None,
        "uncertainty_rank": rank,
    }


def _rungs(rows: Sequence[Row], by_task: Mapping[str, Sequence[int]], bootstrap: Bootstrap) -> Summary:
    names = list(rows[0]["rungs"])
    table: Summary = {}
    for name in names:

        def of(row: Row, key: str, name: str = name) -> float:
            return float(row["rungs"][name][key])

        tasks = {
            task: {
                key: asdict(bootstrap.estimate([of(rows[place], key) for place in places], places))
                for key in ("dice", "nsd")
            }
            for task, places in by_task.items()
        }
        macro = {
            key: asdict(bootstrap.macro([([of(rows[p], key) for p in places], places) for places in by_task.values()]))
            for key in ("dice", "nsd")
        }
        table[name] = {"tasks": tasks, "macro": macro}
    return table


def text_sensitivity(rows: Sequence[Row], places: Sequence[int], bootstrap: Bootstrap) -> Summary:
    """Summarise what the text does to the mask.

    Parameters
    ----------
    rows : sequence of dict
        All results.
    places : sequence of int
        The rows to summarise.
    bootstrap : Bootstrap
        Made of all rows.

    Returns
    -------
    dict
        For each kind of text: `pairs`, and estimates of `dice_on`, `dice_off` (against the truth of the right text,
        images that hold it), `overlap` (with the mask of the right text, presence off) and `found_on`, `found_off`,
        `found_at` (share of masks that are not empty; "right" and "paraphrase" are split into `present` and `absent`
        images, the others ask for what is not the task's structure). `found_at` is the share at the point where 95 % of
        the right texts and paraphrases pass on the very images of this table: all thresholds are moved together by
        `shift` on the logit scale, so that each target keeps its own.
    """
    asked = [(place, answer) for place in places for answer in rows[place]["sensitivity"]]
    right = sorted(
        margin
        for place, answer in asked
        if answer["kind"] in ("right", "paraphrase")
        and rows[place]["present"]
        and (margin := _margin(answer)) is not None
    )
    shift = right[int((1 - SENSITIVITY) * len(right))] if right else None
    wrong = [
        margin
        for _, answer in asked
        if answer["kind"] in ("other modality", "nonsense") and (margin := _margin(answer)) is not None
    ]
    auc = roc_auc([*right, *wrong], [True] * len(right) + [False] * len(wrong))
    table: Summary = {"shift": shift, "auc": auc, "kinds": {}}
    for kind in KINDS:
        of_kind = [(place, answer) for place, answer in asked if answer["kind"] == kind]
        parts = {"": of_kind}
        if kind in ("right", "paraphrase"):
            parts = {
                "present": [(place, a) for place, a in of_kind if rows[place]["present"]],
                "absent": [(place, a) for place, a in of_kind if not rows[place]["present"]],
            }
        for part, answers in parts.items():
            if answers:
                name = f"{kind}, {part}" if part else kind
                table["kinds"][name] = _kind(rows, answers, shift, bootstrap)
    return table


def _kind(
    rows: Sequence[Row],
    answers: Sequence[tuple[int, Row]],
    shift: float | None,
    bootstrap: Bootstrap,
) -> Summary:
    def estimate(of: Callable[[int, Row], float | None]) -> dict[str, Any]:
        found = [(value, place) for place, answer in answers if (value := of(place, answer)) is not None]
        return asdict(bootstrap.estimate([value for value, _ in found], [place for _, place in found]))

    def at(place: int, answer: Row) -> float | None:
        margin = _margin(answer)
        return None if shift is None or margin is None else float(answer["found_off"] and margin >= shift)

    return {
        "pairs": len(answers),
        **{
            key: estimate(lambda place, answer, key=key: answer[key] if rows[place]["present"] else None)  # type: ignore[misc]
            for key in ("dice_on", "dice_off")
        },
        "overlap": estimate(lambda place, answer: answer["overlap"]),
        "found_on": estimate(lambda place, answer: float(answer["found_on"])),
        "found_off": estimate(lambda place, answer: float(answer["found_off"])),
        "found_at": estimate(at),
    }


def _margin(answer: Row) -> float | None:
    """Return how far a presence score lies above the threshold it was held against, on the logit scale."""
    score, threshold = answer["presence"], answer["threshold"]
    return None if score is None or threshold is None else _logit(score) - _logit(threshold)


def _logit(probability: float) -> float:
    kept = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(kept / (1 - kept))
