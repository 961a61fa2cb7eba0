"""A run: every case measured once, each result on disk as soon as it is there, so that an interrupted run goes on.

A run's folder holds

    run.json          what the results depend on: weights, options, protocol, texts, a hash of the data
    results.jsonl     one line a case, appended whole
    predictions/      the masks

and, once complete, what `medclipsam.evaluation.report` makes of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam import __version__
from medclipsam.base.errors import InputError
from medclipsam.base.files import write_json
from medclipsam.base.formats import PICTURE_SUFFIXES
from medclipsam.base.locks import take_lock
from medclipsam.base.metrics import area_flicker, calibration_bins, dice, hausdorff95, lesion_counts, surface_dice
from medclipsam.base.progress import ProgressBar
from medclipsam.evaluation.data import Case, read_case
from medclipsam.evaluation.predictors import Prediction, Predictor
from medclipsam.imaging import MedicalImage, write_mask

PROTOCOLS = {
    "A": "A: a prompt for each image from a file; settings may be searched on masked validation images",
    "B": "B: one fixed prompt a task, no masks for any setting",
}
RUN_FILE, RESULTS_FILE, PREDICTIONS = "run.json", "results.jsonl", "predictions"

Row = dict[str, Any]


@dataclass(frozen=True)
class Methods:
    """What is measured on an image.

    Attributes
    ----------
    predictor : Predictor
        The method whose figures head the report.
    rungs : mapping of str to Predictor
        Further methods: the ablation ladder, a trained network.
    sensitivity : tuple of Predictor, or None
        The method with presence on and off, asked all texts of a task.
    """

    predictor: Predictor
    rungs: Mapping[str, Predictor] = field(default_factory=dict)
    sensitivity: tuple[Predictor, Predictor] | None = None

    def identity(self) -> dict[str, Any]:
        """Return everything that their results depend on."""
        return {
            "predictor": self.predictor.identity(),
            "rungs": {name: rung.identity() for name, rung in self.rungs.items()},
            "sensitivity": [part.identity() for part in self.sensitivity or ()],
        }


@dataclass(frozen=True)
class Plan:
    """What is measured on each case, and how it is asked for.

    Attributes
    ----------
    methods : Methods
        For all tasks that have none of their own.
    protocol : {"A", "B"}
        See `PROTOCOLS`.
    prompts : mapping
        Protocol A: task -> file name of the image -> text.
    by_task : mapping of str to Methods
        Methods with settings that a search chose for a task.
    search : mapping
        What the search looked at and chose; recorded with the run.
    sample : mapping of str to int
        Where only a part of the data is measured: `limit` (images of each folder), `seed`, and the number of cases that
        they were drawn from (`of`).
    """

    methods: Methods
    protocol: str = "B"
    prompts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    by_task: Mapping[str, Methods] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, int] = field(default_factory=dict)

    def prompt(self, case: Case) -> str:
        """Return the text that a case is asked."""
        return self.prompts[case.task.name][case.image.name] if self.protocol == "A" else case.task.prompt

    def methods_of(self, case: Case) -> Methods:
        """Return what is measured on a case."""
        return self.by_task.get(case.task.name, self.methods)

    def identity(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Return everything that the results depend on, JSON-able."""
        tasks = {case.task.name: case.task for case in cases}
        identity = {
            "version": __version__,
            "protocol": PROTOCOLS[self.protocol],
            "split": cases[0].split,
            "tasks": {name: vars(task) for name, task in tasks.items()},
            "cases": len(cases),
            "data": fingerprint(cases),
            "prompts": self.prompts,
            **self.methods.identity(),
            "by_task": {name: methods.identity() for name, methods in self.by_task.items()},
            "search": self.search,
            **({"sample": self.sample} if self.sample else {}),
        }
        return dict(json.loads(json.dumps(identity)))


def run(cases: Sequence[Case], plan: Plan, out: Path, *, restart: bool = False, show: bool = False) -> list[Row]:
    """Measure every case, or those that an interrupted run left.

    Parameters
    ----------
    cases : sequence of Case
        What to measure; the cases of one image follow each other, so that it is encoded once.
    plan : Plan
        What to measure on each.
    out : pathlib.Path
        The run's folder; made if needed.
    restart : bool
        Throw away what an earlier run left in the folder.
    show : bool
        Whether to show progress.

    Returns
    -------
    list of dict
        The results, in the order of the cases.

    Raises
    ------
    InputError
        If the folder holds a run of other settings, weights or data, or another process writes it.
    """
    identity = plan.identity(cases)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {out} cannot be made: {error.strerror}.") from error
    with _locked(out):
        if restart:
            _clear(out)
        _claim(out, identity)
        done = {(row["task"], row["name"]): row for row in read_results(out)}
        left = [case for case in cases if (case.task.name, case.name) not in done]
        with (
            open(out / RESULTS_FILE, "ab") as file,
            ProgressBar(total=len(cases), initial=len(cases) - len(left), unit="case", show=show) as bar,
        ):
            image, unit = None, None
            for case in left:
                bar.set_description(case.task.name)
                image, truth = read_case(case, image if case.unit == unit else None)
                unit = case.unit
                row = _measure(case, plan, image, truth, out)
                file.write(json.dumps(row).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                done[case.task.name, case.name] = row
                bar.update()
    return [done[case.task.name, case.name] for case in cases]


def read_results(out: Path) -> list[Row]:
    """Read the results of a run, and cut off a last line that was not written whole.

    Raises
    ------
    InputError
        If the file is damaged elsewhere.
    """
    path = out / RESULTS_FILE
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; measure again with --restart.") from error


def read_identity(out: Path) -> dict[str, Any]:
    """Read what a run's results depend on.

    Raises
    ------
    InputError
        If the folder holds no run.
    """
    try:
        return dict(json.loads((out / RUN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{out} holds no run of `medclipsam evaluate`: {RUN_FILE} cannot be read.") from error


def fingerprint(cases: Sequence[Case]) -> str:
    """Return a SHA-256 over the names and contents of all images and masks."""
    known: dict[Path, str] = {}
    total = hashlib.sha256()
    for case in cases:
        for path in (case.image, case.mask):
            if path not in known:
                known[path] = _content_hash(path)
        total.update(f"{case.task.name}\n{case.name}\n{known[case.image]}\n{known[case.mask]}\n".encode())
    return total.hexdigest()


def prediction_path(out: Path, row: Row) -> Path:
    """Return where the mask of a result lies."""
    return out / PREDICTIONS / row["prediction"]


def slug(name: str) -> str:
    """Return a task's name as a file name: letters, digits and "-"."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def _measure(case: Case, plan: Plan, image: MedicalImage, truth: np.ndarray, out: Path) -> Row:
    text, methods = plan.prompt(case), plan.methods_of(case)
    made = methods.predictor.predict(image, text)
    picture = not image.is_volume and case.image.suffix.lower() in PICTURE_SUFFIXES
    path = Path(slug(case.task.name)) / f"{case.name}{'.png' if picture else '.nii.gz'}"
    (out / PREDICTIONS / path).parent.mkdir(parents=True, exist_ok=True)
    write_mask(made.mask, image, out / PREDICTIONS / path)
    row: Row = {
        "task": case.task.name,
        "folder": case.task.folder,
        "name": case.name,
        "text": text,
        "present": bool(truth.any()),
        "presence": made.presence,
        "threshold": made.threshold,
        "window": made.window,
        **_figures(made, truth, image),
        "seconds": dict(made.seconds),
        "prediction": path.as_posix(),
        **_certainty(made, truth),
    }
    if methods.rungs:
        row["rungs"] = {name: _rung(rung, image, text, truth) for name, rung in methods.rungs.items()}
    if methods.sensitivity:
        row["sensitivity"] = _ask_all(case, methods.sensitivity, image, text, truth)
    return row


def _figures(made: Prediction, truth: np.ndarray, image: MedicalImage) -> Row:
    found = bool(made.mask.any())
    flat = not image.is_volume
    mask, true = (made.mask[0], truth[0]) if flat else (made.mask, truth)
    steps = (*(() if flat else (image.plane_spacing,)), *(image.pixel_spacing or (None,)))
    spacing = [step for step in steps if step is not None]
    in_mm = len(spacing) == len(steps)
    return {
        "found": found,
        "presence_right": found == bool(truth.any()),
        "dice": dice(mask, true),
        "nsd": surface_dice(mask, true),
        "nsd_mm": surface_dice(mask, true, spacing=spacing) if in_mm else None,
        **({} if flat else _volume_figures(mask, true, spacing if in_mm else None)),
    }


def _volume_figures(mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None) -> Row:
    lesions = lesion_counts(mask, truth)
    return {
        "hd95_mm": None if spacing is None else hausdorff95(mask, truth, spacing=spacing),
        "lesions": lesions.true,
        "lesions_found": lesions.found,
        "lesions_false": lesions.false,
        "lesion_f1": lesions.f1,
        "flicker": area_flicker(mask, truth),
    }


def _rung(rung: Predictor, image: MedicalImage, text: str, truth: np.ndarray) -> Row:
    made = rung.predict(image, text)
    return {**_figures(made, truth, image), "seconds": made.seconds.get("total"), **_certainty(made, truth)}


def _certainty(made: Prediction, truth: np.ndarray) -> Row:
    """Return how sure a method was that says it: its score, and the bins of its calibration."""
    row: Row = {}
    if made.uncertainty is not None:
        row["uncertainty"] = made.uncertainty
    if made.boundary_uncertainty is not None:
        row["boundary_uncertainty"] = made.boundary_uncertainty
    if made.probability is not None:
        row["calibration"] = calibration_bins(made.probability, truth)
    return row


def _ask_all(
    case: Case, predictors: tuple[Predictor, Predictor], image: MedicalImage, prompt: str, truth: np.ndarray
) -> list[Row]:
    """Ask every text of a task with presence on and off; the first answer is that to the right text."""
    asked = []
    right: np.ndarray | None = None
    for kind, texts in {**case.task.texts(), "right": (prompt,)}.items():
        for text in texts:
            on = predictors[0].predict(image, text)
            # Presence only gates: a mask of a single plane that passed is the one without it.
            passed = not image.is_volume and bool(on.mask.any())
            off = on if passed else predictors[1].predict(image, text)
            right = off.mask if right is None else right
            asked.append(
                {
                    "kind": kind,
                    "text": text,
                    "known": on.known,
                    "presence": on.presence,
                    "threshold": on.threshold,
                    "found_on": bool(on.mask.any()),
                    "found_off": bool(off.mask.any()),
                    "dice_on": dice(on.mask, truth),
                    "dice_off": dice(off.mask, truth),
                    "overlap": dice(off.mask, right),
                }
            )
    return asked


def _claim(out: Path, identity: Mapping[str, Any]) -> None:
    path = out / RUN_FILE
    if not path.is_file():
        if (out / RESULTS_FILE).exists():
            raise InputError(f"{out} holds results without {RUN_FILE}; give --restart to throw them away.")
        write_json(path, identity)
        return
    difference = _difference(read_identity(out), identity)
    if difference is not None:
        key, before, now = difference
        raise InputError(
            f"The run in {out} was made with another {key} ({before} then, {now} now); name another folder, or give "
            "--restart to throw its results away."
        )


def _difference(before: Any, now: Any, key: str = "") -> tuple[str, str, str] | None:
    """Return where two identities differ first: dotted key and both values, shortened."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            found = _difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found
        return None
    return None if before == now else (key, _short(before), _short(now))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _clear(out: Path) -> None:
    for name in (RUN_FILE, RESULTS_FILE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / PREDICTIONS, ignore_errors=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second process out of a run's folder."""
    lock = take_lock(out / ".lock")
    if lock is None:
        raise InputError(f"Another process writes the run in {out}.")
    try:
        yield
    finally:
        lock.release()


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(file.name.encode() + b"\n" + file.read_bytes())
    return digest.hexdigest()
