"""The claim of weak supervision, tested on phantoms: does a network trained on zero-shot masks beat those masks?

For each of the paper's four tasks: the zero-shot pipeline; a network trained on its masks (pseudo-labels) of the
training images; networks for which 5, 10, 25 and 100 % of the images have the true masks instead. Pseudo-labels whose
presence score is undecided are left out. Each network is measured as an ensemble and by its last checkpoint alone.
Phantoms are made harder than the demo's own: less contrast, and grain.

As in annotation, where the next network starts from the present one, all networks of a task and seed start from the
same first one, which was trained on pseudo-labels, and go on for the same number of steps, each on its own labels.

    python benchmarks/weak_supervision.py OUT [--seeds 0 1 2] [--tasks ...] [--shares 0 5 10 25 100]

Everything is resumed where an earlier call ended; each further call adds what is missing. The table is written anew
after each network, as OUT/table.md and OUT/table.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.stats import spearmanr

from medclipsam.base.metrics import expected_calibration_error
from medclipsam.base.options import ZeroShotOptions
from medclipsam.base.statistics import compare_pairs
from medclipsam.demo.data import FIRST_SEEDS, write_data
from medclipsam.evaluation.data import Case, find_cases
from medclipsam.evaluation.predictors import NetworkPredictor, ZeroShotPredictor
from medclipsam.evaluation.runner import Methods, Plan, Row, prediction_path, read_results, run, slug
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.targets import TargetSet
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble
from medclipsam.training.examples import Example
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import make_plan
from medclipsam.training.trainer import train

TASKS = ("breast tumour, ultrasound", "brain tumour, MRI", "lungs, x-ray", "lungs, CT")
SHARES = (0, 5, 10, 25, 100)
LAST = "last checkpoint"
# Lungs are learnt from fewer images than tumours; half of the CT planes are drawn without a nodule.
LUNGS = 150
# Presence scores in between leave it open whether an empty mask is right, or a mask that was drawn.
UNDECIDED = (0.1, 0.6)
# Small enough for one core; the ultrasound phantoms need finer planes than the others.
OPTIONS: dict[str, Any] = {"preset": "small", "device": "cpu", "epochs": 21, "cycles": 3, "keep": 2}
COARSE: dict[str, Any] = {**OPTIONS, "max_side": 64, "max_patch": 64}
# Of the network that all others of its task and seed start from.
FIRST: dict[str, Any] = {"epochs": 100, "cycles": 2, "keep": 1}
FIRST_LUNGS: dict[str, Any] = {"epochs": 40, "cycles": 2, "keep": 1}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Test the claim of weak supervision on phantoms.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=200, help="test phantoms of each modality with its finding")
    parser.add_argument(
        "--training", type=int, default=400, help="training phantoms likewise; a quarter more are without a finding"
    )
    parser.add_argument("--contrast", type=float, default=0.6, help="contrast of the phantoms, 1 for the demo's own")
    parser.add_argument("--grain", type=float, default=20.0, help="standard deviation of the grain, of 255 grey values")
    parser.add_argument("--first", type=int, nargs=2, help="first seeds of the training and test phantoms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--shares", type=int, nargs="+", default=SHARES, help="percent of corrected training images")
    parser.add_argument("--start-epochs", type=int, help="epochs of the network that all others of a seed start from")
    parser.add_argument("--option", nargs="+", default=[], metavar="KEY=VALUE", help="options of the trainings")
    given = parser.parse_args()
    wanted = dict(entry.split("=", 1) for entry in given.option)
    options = {
        task: TrainingOptions.from_mapping({**(OPTIONS if task.startswith("breast") else COARSE), **wanted})
        for task in TASKS
    }
    train_seed, test_seed = given.first or (FIRST_SEEDS["train"], FIRST_SEEDS["test"])
    data = given.out / "data"
    counts = {"train": given.training, "test": given.images}
    for split, first in (("train", train_seed), ("test", test_seed)):
        draw(data, split, first, counts[split], counts[split] // 4, given.contrast, given.grain)
    targets = TargetSet.load()
    predictor = ZeroShotPredictor(ZeroShot.load(), ZeroShotOptions())
    cases: dict[tuple[str, str], list[Case]] = {}
    for task in given.tasks:
        for split in ("test", "train"):
            found = find_cases(data, targets, split=split, only=[task])
            if split == "train" and task.startswith("lungs"):
                half = LUNGS // 2 if len(found) > given.training else LUNGS
                found = found[:half] + found[given.training : given.training + half]
            cases[split, task] = found
            run(found, Plan(Methods(predictor)), given.out / f"zero-shot-{split}" / slug(task), show=True)
    ends = [share for share in given.shares if share in (0, 100)]
    for shares in (ends, [share for share in given.shares if share not in ends]):
        for seed, share, task in itertools.product(given.seeds, shares, given.tasks):
            start = FIRST_LUNGS if task.startswith("lungs") else FIRST
            start = {**start, "epochs": given.start_epochs or start["epochs"]}
            measure(given.out, task, share, seed, cases, options[task], start, targets)
            write_table(given.out, options)


def draw(data: Path, split: str, first: int, images: int, absent: int, contrast: float, grain: float) -> None:
    """Write the phantoms of a split, made harder: contrast about the image's mean, and grain of 0.7 pixels."""
    done = data / f".{split}-done"
    if done.is_file():
        return
    write_data(data, images, absent=absent, seed=first, split=split, show=True)
    for path in sorted(data.glob(f"*/{split}_images/*.png")):
        pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
        rng = np.random.default_rng([int(path.stem.split("-")[1]), ord(path.stem[0])])
        noise = ndimage.gaussian_filter(rng.standard_normal(pixels.shape), 0.7)
        changed = (pixels - pixels.mean()) * contrast + pixels.mean() + noise * (grain / noise.std())
        Image.fromarray(np.clip(np.rint(changed), 0, 255).astype(np.uint8)).save(path)
    done.touch()


def measure(
    out: Path,
    task: str,
    share: int,
    seed: int,
    cases: Mapping[tuple[str, str], list[Case]],
    options: TrainingOptions,
    first_options: Mapping[str, Any],
    targets: TargetSet,
) -> None:
    """Train one network and measure it on the test images."""
    name = f"{slug(task)}/{share:03d}-{seed}"
    network, result = out / "networks" / name, out / "runs" / name
    tests, training = cases["test", task], cases["train", task]
    if len(read_results(result)) == len(tests):
        return
    options = options.replace(seed=seed)
    if not (network / ENSEMBLE_FILE).is_file():
        classes = {task.split(",")[0]: 1}
        first = out / "networks" / slug(task) / f"first-{seed}"
        start = options.replace(**first_options)
        pseudo = mixed(out, training, 0, seed, start)
        plan = make_plan(pseudo, classes, start)
        train(pseudo, plan, start, first)
        train(mixed(out, training, share, seed, options), plan, options, network, start=first)
    ensemble = Ensemble.load(network)
    methods = Methods(NetworkPredictor(ensemble, targets), {LAST: NetworkPredictor(ensemble, targets, members=1)})
    run(tests, Plan(methods), result)


def mixed(out: Path, cases: Sequence[Case], share: int, seed: int, options: TrainingOptions) -> list[Example]:
    """Return training examples: a share with their true masks, drawn by the seed, the others with pseudo-labels.

    The draws of one seed are nested: what 5 % holds, 10 % holds too.
    """
    zero = out / "zero-shot-train" / slug(cases[0].task.name)
    rows = {row["name"]: row for row in read_results(zero)}
    order = np.random.default_rng(seed).permutation(len(cases))
    corrected = set(order[: round(len(cases) * share / 100)])
    made = []
    for place, case in enumerate(cases):
        if place in corrected:
            held = set(case.task.labels or ())
            values = {value: int(value in held) for value in range(1, 256)}
            example = Example(
                case.name, case.image, case.mask, "final", case.task.modality, values, options.final_weight
            )
            made.append(example)
        elif not UNDECIDED[0] <= rows[case.name]["presence"] <= UNDECIDED[1]:
            mask = prediction_path(zero, rows[case.name])
            values = dict.fromkeys(range(1, 256), 1)
            example = Example(
                case.name, case.image, mask, "original", case.task.modality, values, options.original_weight
            )
            made.append(example)
    return made


def write_table(out: Path, options: Mapping[str, TrainingOptions]) -> None:
    """Write what has been measured so far."""
    table: dict[str, Any] = {
        "options": {task: each.resolved().to_dict() for task, each in options.items()},
        "tasks": {},
    }
    lines = [
        "| task | masks | seeds | Dice | Dice - zero-shot | last checkpoint | ensemble - last "
        "| ECE, ensemble | ECE, last | Spearman | Spearman, boundary score | missed | marked where absent |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        base = {row["name"]: row for row in read_results(out / "zero-shot-test" / slug(task))}
        found = base.values()
        if not base:
            continue
        mean = float(np.mean([row["dice"] for row in found]))
        missed, marked = errors(list(found))
        table["tasks"][task] = {
            "zero-shot": {"dice": mean, "images": len(base), "missed": missed, "found_absent": marked}
        }
        lines.append(f"| {task} | zero-shot | | {mean:.3f} | | | | | | | | {missed} | {marked} |")
        for share in SHARES:
            runs = [
                rows
                for path in sorted((out / "runs" / slug(task)).glob(f"{share:03d}-*"))
                if len(rows := read_results(path)) == len(base)
            ]
            if runs:
                table["tasks"][task][f"{share} %"] = arm = figures(runs, base)
                lines.append(_line(task, share, arm))
    text = "\n".join(lines) + "\n"
    for name, content in (("table.md", text), ("table.json", json.dumps(table, indent=1))):
        part = out / f".{name}.part"
        part.write_text(content, encoding="utf-8")
        os.replace(part, out / name)


def figures(runs: Sequence[Sequence[Row]], base: dict[str, Row]) -> dict[str, Any]:
    """Return the figures of one arm: each image's figure is its mean over the seeds, so that images are the units."""
    names = [row["name"] for row in runs[0]]
    units = [(row["folder"], row["name"]) for row in runs[0]]
    dice = np.asarray([[row["dice"] for row in rows] for rows in runs])
    last = np.asarray([[row["rungs"][LAST]["dice"] for row in rows] for rows in runs])
    zero = [base[name]["dice"] for name in names]
    over_zero = compare_pairs(zero, list(dice.mean(axis=0)), units)
    over_last = compare_pairs(list(last.mean(axis=0)), list(dice.mean(axis=0)), units)
    scores = {
        key: [
            float(spearmanr([row[key] for row in rows], [1 - row["dice"] for row in rows]).statistic) for rows in runs
        ]
        for key in ("uncertainty", "boundary_uncertainty")
    }
    counts = [errors(rows) for rows in runs]
    return {
        "seeds": len(runs),
        "images": len(names),
        "dice": float(dice.mean()),
        "dice_of_seeds": [float(value) for value in dice.mean(axis=1)],
        "over_zero_shot": [over_zero.difference, over_zero.low, over_zero.high],
        "last_checkpoint": float(last.mean()),
        "over_last": [over_last.difference, over_last.low, over_last.high],
        "ece": _calibration([[row["calibration"] for row in rows] for rows in runs]),
        "ece_last": _calibration([[row["rungs"][LAST]["calibration"] for row in rows] for rows in runs]),
        "spearman": scores["uncertainty"],
        "spearman_boundary": scores["boundary_uncertainty"],
        "missed": float(np.mean([missed for missed, _ in counts])),
        "found_absent": float(np.mean([marked for _, marked in counts])),
    }


def errors(rows: Sequence[Row]) -> tuple[int, int]:
    """Return how many images with the target have an empty mask, and how many without have one that is not."""
    missed = sum(row["present"] and not row["found"] for row in rows)
    return missed, sum(not row["present"] and row["found"] for row in rows)


def _calibration(bins: Sequence[Sequence[Any]]) -> float:
    """Return the mean over the seeds of the calibration error, pooled over all pixels of a seed's images."""
    found = [expected_calibration_error(np.sum(np.asarray(rows), axis=0).tolist()) for rows in bins]
    return float(np.mean([value for value in found if value is not None]))


def _line(task: str, share: int, arm: dict[str, Any]) -> str:
    def gap(values: Sequence[float]) -> str:
        return f"{values[0]:+.3f} ({values[1]:+.3f} to {values[2]:+.3f})"

    kind = "pseudo-labels" if share == 0 else f"{share} % corrected"
    return (
        f"| {task} | {kind} | {arm['seeds']} | {arm['dice']:.3f} | {gap(arm['over_zero_shot'])} "
        f"| {arm['last_checkpoint']:.3f} | {gap(arm['over_last'])} | {arm['ece']:.4f} | {arm['ece_last']:.4f} "
        f"| {np.nanmean(arm['spearman']):.2f} | {np.nanmean(arm['spearman_boundary']):.2f} "
        f"| {arm['missed']:.1f} | {arm['found_absent']:.1f} |"
    )


if __name__ == "__main__":
    main()
