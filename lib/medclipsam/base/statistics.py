"""Means with their uncertainty, and paired comparisons, by a seeded bootstrap; correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A mean with its spread.

    Attributes
    ----------
    n : int
        Number of values.
    mean, sd : float or None
        Mean and standard deviation (n - 1 in the denominator); None of no value, the deviation of one value is None.
    low, high : float or None
        Bounds of the bootstrap 95 % interval of the mean; None of less than two values.
    """

    n: int
    mean: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images; positive differences mean that B is better.

    Attributes
    ----------
    n : int
        Number of pairs.
    mean_a, mean_b, difference : float
        Means, and the mean of B - A.
    low, high : float
        Bootstrap 95 % interval of the mean difference.
    statistic, p_value : float
        Wilcoxon signed-rank test, two-sided, pairs without a difference left out; p is 1 where there is none.
    effect_size : float
        Matched-pairs rank-biserial correlation (Kerby 2014), from -1 (A always better) to 1 (B always better).
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    statistic: float
    p_value: float
    effect_size: float


class Bootstrap:
    """Draws images with replacement, within each folder, so that tasks that share an image share its draws.

    Parameters
    ----------
    units : sequence of (str, str)
        Folder and image of each row; rows of one image are drawn together.
    draws : int
        Number of bootstrap samples.
    seed : int
        The same seed and the same set of images give the same intervals, in whatever order the rows come.
    """

    def __init__(self, units: Sequence[tuple[str, str]], draws: int = DRAWS, seed: int = 0) -> None:
        images: dict[str, list[str]] = {}
        for folder, name in sorted(set(units)):
            images.setdefault(folder, []).append(name)
        columns: dict[tuple[str, str], int] = {}
        counts = []
        for place, (folder, names) in enumerate(images.items()):
            rng = np.random.default_rng([seed, place])
            counts.append(rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws))
            columns.update({(folder, name): len(columns) + index for index, name in enumerate(names)})
        self._counts = np.concatenate(counts, axis=1).astype(np.float32)
        self._columns = np.asarray([columns[unit] for unit in units])

    def means(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the mean of some rows' values in each draw, float64 [draws]; NaN where a draw holds none of them."""
        weights = self._counts[:, self._columns[rows]].astype(np.float64)
        total = weights.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return weights @ np.asarray(values, dtype=np.float64) / total

    def estimate(self, values: Sequence[float], rows: Sequence[int]) -> Estimate:
        """Return mean, deviation and interval of some rows' values (one value a row)."""
        array, index = np.asarray(values, dtype=np.float64), np.asarray(rows, dtype=int)
        if not array.size:
            return Estimate(0, None)
        if array.size == 1:
            return Estimate(1, float(array[0]))
        bounds = interval(self.means(array, index))
        return Estimate(array.size, float(array.mean()), float(array.std(ddof=1)), *bounds)

    def macro(self, groups: Sequence[tuple[Sequence[float], Sequence[int]]]) -> Estimate:
        """Return the mean of the groups' means, their deviation among groups, and the interval over images."""
        filled = [(np.asarray(v, dtype=np.float64), np.asarray(r, dtype=int)) for v, r in groups if len(v)]
        if not filled:
            return Estimate(0, None)
        means = np.asarray([values.mean() for values, _ in filled])
        drawn = np.mean([self.means(values, rows) for values, rows in filled], axis=0)
        deviation = float(means.std(ddof=1)) if len(means) > 1 else None
        return Estimate(len(filled), float(means.mean()), deviation, *interval(drawn))


def interval(drawn: np.ndarray) -> tuple[float | None, float | None]:
    """Return the bootstrap's 2.5th and 97.5th percentile; draws that are NaN do not count."""
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return None, None
    low, high = np.percentile(drawn, _PERCENTILES)
    return float(low), float(high)


def interval_of_mean(
    values: Sequence[float], clusters: Sequence[str] | None = None, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval, by a bootstrap that draws clusters with all their values.

    Parameters
    ----------
    values : sequence of float
    clusters : sequence of str, optional
        The cluster of each value, such as its patient; by default each value is a cluster of its own.
    draws, seed : int
        Number of bootstrap samples, and their seed.

    Returns
    -------
    mean, low, high : float
        The mean, and the 2.5th and 97.5th percentile of the drawn means.
    """
    places: dict[str, int] = {}
    names = clusters if clusters is not None else [str(index) for index in range(len(values))]
    units = np.asarray([places.setdefault(name, len(places)) for name in names])
    sums = np.bincount(units, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(units)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), _PERCENTILES)
    return float(sums.sum() / counts.sum()), float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method (1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return [float(value) for value in corrected]


def compare_pairs(
    a: Sequence[float], b: Sequence[float], units: Sequence[tuple[str, str]], *, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """Compare two runs, pair by pair.

    Parameters
    ----------
    a, b : sequence of float
        A value of each run for each pair.
    units : sequence of (str, str)
        Folder and image of each pair; see `Bootstrap`.
    draws, seed : int
        See `Bootstrap`.
    """
    from scipy.stats import rankdata, wilcoxon

    one, two = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    differences = two - one
    changed = differences[differences != 0]
    statistic, p_value, effect = 0.0, 1.0, 0.0
    if changed.size:
        test = wilcoxon(changed)
        statistic, p_value = float(test.statistic), float(test.pvalue)
        ranks = rankdata(np.abs(changed))
        effect = float((ranks[changed > 0].sum() - ranks[changed < 0].sum()) / ranks.sum())
    rows = np.arange(differences.size)
    low, high = interval(Bootstrap(units, draws, seed).means(differences, rows))
    assert low is not None
    assert high is not None
    return Comparison(
        n=differences.size,
        mean_a=float(one.mean()),
        mean_b=float(two.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        statistic=statistic,
        p_value=p_value,
        effect_size=effect,
    )
