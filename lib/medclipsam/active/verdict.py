"""What simulated rounds say about the strategies: learning curves, paired tests, effort of correction."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import integrate, stats

from medclipsam.base.errors import InputError
from medclipsam.base.statistics import holm, interval_of_mean
from medclipsam.evaluation.text import markdown_table
from medclipsam.imaging.write import replace_file


def area(labelled: Sequence[int], dice: Sequence[float]) -> float:
    """Return the area under a learning curve, divided by its width: the mean Dice over the labels (trapezoids)."""
    if len(labelled) < 2:
        return float(dice[0])
    return float(integrate.trapezoid(dice, labelled) / (labelled[-1] - labelled[0]))


def judge(runs: Sequence[Mapping[str, Any]], strategies: Sequence[str]) -> dict[str, Any]:
    """Hold the first strategy against each of the others.

    Parameters
    ----------
    runs : sequence of mapping
        Of `simulate`.
    strategies : sequence of str
        The one to judge, and the others.

    Returns
    -------
    dict
        `all`: Dice with every image labelled, by seed. `strategies`: for each its `curves` (Dice, by seed and round),
        `labelled`, `area` by seed, `control_dice` and `control_path_length` (by seed and round), the `slope` of the
        path length over the rounds with its interval, and `enough`: the share of the pool's labels at which the mean
        Dice reaches 95 % of that with all labels; None where it does not. `tests`: the first strategy against each
        other: mean difference of the areas with its bootstrap interval, two-sided exact Wilcoxon p, Holm's p.

    Raises
    ------
    InputError
        If runs are missing.
    """
    by = {(run["strategy"], run["seed"]): run["rounds"] for run in runs}
    seeds = sorted({seed for strategy, seed in by if strategy == strategies[0]})
    for strategy in ("all", *strategies):
        missing = [seed for seed in seeds if (strategy, seed) not in by]
        if missing or not seeds:
            raise InputError(f"The run of {strategy!r} with the seed {missing[0] if missing else '?'} is missing.")
    everything = [by["all", seed][0]["dice"] for seed in seeds]
    pool = by["all", seeds[0]][0]["labelled"]
    judged = {
        strategy: _of_strategy([by[strategy, seed] for seed in seeds], everything, pool) for strategy in strategies
    }
    tests: list[dict[str, Any]] = []
    for other in strategies[1:]:
        ours, theirs = np.array(judged[strategies[0]]["area"]), np.array(judged[other]["area"])
        difference, low, high = interval_of_mean(ours - theirs)
        tests.append(
            {
                "against": other,
                "difference": difference,
                "low": low,
                "high": high,
                "p": _wilcoxon(ours - theirs),
            }
        )
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return {
        "first": strategies[0],
        "seeds": seeds,
        "pool": pool,
        "all": everything,
        "strategies": judged,
        "tests": tests,
    }


def as_markdown(verdict: Mapping[str, Any]) -> str:
    """Return a verdict as tables."""
    rows = []
    for name, found in verdict["strategies"].items():
        _, low, high = interval_of_mean(found["area"])
        slope = found["slope"]
        rows.append(
            [
                name,
                f"{np.mean(found['area']):.3f} ({low:.3f} to {high:.3f})",
                f"{np.mean([curve[0] for curve in found['curves']]):.3f}",
                f"{np.mean([curve[-1] for curve in found['curves']]):.3f}",
                "not reached" if found["enough"] is None else f"{found['enough']:.0%}",
                f"{slope['mean']:.1f} ({slope['low']:.1f} to {slope['high']:.1f})",
            ]
        )
    tests = [
        [
            f"{verdict['first']} - {test['against']}",
            f"{test['difference']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f})",
            f"{test['p']:.4f}",
            f"{test['p_holm']:.4f}",
        ]
        for test in verdict["tests"]
    ]
    _, low, high = interval_of_mean(verdict["all"])
    return (
        f"{len(verdict['seeds'])} seeds; all {verdict['pool']} labels: Dice {np.mean(verdict['all']):.3f} "
        f"({low:.3f} to {high:.3f}).\n\n"
        + markdown_table(
            ["strategy", "area", "first Dice", "last Dice", "labels for 95 %", "path length, pixels a round"], rows
        )
        + "\n\n"
        + markdown_table(["areas", "difference (95 % interval)", "p", "p (Holm)"], tests)
        + "\n"
    )


def draw_curves(verdict: Mapping[str, Any], path: Path) -> None:
    """Draw mean learning curves and path lengths with their 95 % intervals as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    learning, effort = figure.subplots(1, 2)
    for name, found in verdict["strategies"].items():
        for axes, values in ((learning, found["curves"]), (effort, found["control_path_length"])):
            columns = np.array(values).T
            bounds = np.array([interval_of_mean(list(column))[1:] for column in columns])
            axes.plot(found["labelled"], columns.mean(axis=1), "o-", label=name)
            axes.fill_between(found["labelled"], bounds[:, 0], bounds[:, 1], alpha=0.2)
    learning.axhline(float(np.mean(verdict["all"])), color="grey", linestyle="--", label="all labels")
    learning.set(xlabel="images labelled", ylabel="Dice on the test images", title="Learning curves")
    learning.legend()
    effort.set(xlabel="images labelled", ylabel="added path length (pixels)", title="Effort on the control images")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    replace_file(path, ".png", lambda temporary: temporary.write_bytes(buffer.getvalue()))


def _of_strategy(runs: Sequence[Sequence[Mapping[str, Any]]], everything: Sequence[float], pool: int) -> dict[str, Any]:
    labelled = [each["labelled"] for each in runs[0]]
    curves = [[each["dice"] for each in run] for run in runs]
    lengths = [[each["control_path_length"] for each in run] for run in runs]
    slopes = [float(np.polyfit(range(len(run)), run, 1)[0]) if len(run) > 1 else 0.0 for run in lengths]
    _, low, high = interval_of_mean(slopes)
    wanted = 0.95 * float(np.mean(everything))
    reached = [count for count, value in zip(labelled, np.mean(curves, axis=0), strict=True) if value >= wanted]
    return {
        "labelled": labelled,
        "curves": curves,
        "area": [area(labelled, curve) for curve in curves],
        "control_dice": [[each["control_dice"] for each in run] for run in runs],
        "control_path_length": lengths,
        "slope": {"mean": float(np.mean(slopes)), "low": low, "high": high},
        "enough": reached[0] / pool if reached else None,
    }


def _wilcoxon(differences: np.ndarray) -> float:
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, method="exact" if (differences != 0).all() else "auto").pvalue)
