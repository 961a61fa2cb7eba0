"""Means, intervals and the paired comparison against SciPy, closed forms and values reckoned by hand."""

import numpy as np
import pytest
from scipy import stats

from medclipsam.base.statistics import Bootstrap, compare_pairs
from medclipsam.evaluation.summary import summarise, text_sensitivity

RNG = np.random.default_rng(3)


def units(count: int, folder: str = "f") -> list[tuple[str, str]]:
    return [(folder, f"{n:04d}") for n in range(count)]


def test_the_interval_of_a_mean_is_that_of_the_central_limit() -> None:
    values = RNG.normal(0.7, 0.1, 400)
    found = Bootstrap(units(400), 4000).estimate(values, range(400))
    spread = values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.sd == pytest.approx(values.std(ddof=1))
    assert found.low == pytest.approx(values.mean() - 1.96 * spread, abs=0.15 * spread)
    assert found.high == pytest.approx(values.mean() + 1.96 * spread, abs=0.15 * spread)


def test_rows_of_one_image_are_drawn_together() -> None:
    """Ten tasks that repeat one value an image tell no more than one task does."""
    values = RNG.random(60)
    once = Bootstrap(units(60)).estimate(values, range(60))
    tenfold = Bootstrap(units(60) * 10).estimate(np.tile(values, 10), range(600))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_the_same_seed_gives_the_same_interval_in_any_order() -> None:
    values, order = RNG.random(50), RNG.permutation(50)
    names = units(50)
    one = Bootstrap(names, seed=4).estimate(values, range(50))
    two = Bootstrap([names[n] for n in order], seed=4).estimate(values[order], range(50))
    assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=1e-12)
    assert Bootstrap(names, seed=5).estimate(values, range(50)).low != one.low


def test_macro_is_the_mean_of_means_whatever_their_sizes() -> None:
    names = [*units(90, "a"), *units(10, "b")]
    values = np.concatenate([np.full(90, 0.9), np.full(10, 0.1)])
    macro = Bootstrap(names).macro([(values[:90], range(90)), (values[90:], range(90, 100))])
    assert (macro.mean, macro.low, macro.high) == pytest.approx((0.5, 0.5, 0.5))
    assert Bootstrap(names).estimate(values, range(100)).mean == pytest.approx(0.82)


def test_nothing_and_one_value_have_no_spread() -> None:
    assert Bootstrap(units(3)).estimate([], []).mean is None
    one = Bootstrap(units(3)).estimate([0.4], [1])
    assert (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.4, None, None, None)


def test_the_paired_comparison_is_scipy_s_with_its_effect() -> None:
    a = RNG.random(40)
    b = a + RNG.normal(0.05, 0.1, 40)
    b[:5] = a[:5]  # ties are left out
    found = compare_pairs(a, b, units(40))
    reference = stats.wilcoxon(a[5:], b[5:])
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.statistic == pytest.approx(reference.statistic)
    assert found.difference == pytest.approx((b - a).mean())
    assert found.low < found.difference < found.high
    # Rank-biserial: share of favourable minus share of unfavourable rank sum.
    d = (b - a)[5:]
    ranks = stats.rankdata(abs(d))
    assert found.effect_size == pytest.approx(ranks[d > 0].sum() / ranks.sum() - ranks[d < 0].sum() / ranks.sum())
    back = compare_pairs(b, a, units(40))
    assert back.effect_size == pytest.approx(-found.effect_size)
    same = compare_pairs(a, a, units(40))
    assert (same.difference, same.p_value, same.effect_size) == (0.0, 1.0, 0.0)
    assert compare_pairs(a, a + 0.1, units(40)).effect_size == 1.0


def row(name: str, present: bool, dice: float, presence: float, task: str = "t", **more) -> dict:
    found = dice > 0 if present else dice < 1
    return {
        **{"task": task, "folder": task, "name": name, "present": present, "found": found, "presence": presence},
        **{"presence_right": found == present, "dice": dice, "nsd": dice / 2, "nsd_mm": None, **more},
    }


def test_a_summary_by_hand() -> None:
    rows = [row("1", True, 0.8, 0.9), row("2", True, 0.4, 0.6), row("3", False, 1.0, 0.2), row("4", False, 0.0, 0.7)]
    rows.append(row("1", True, 0.5, 0.5, task="u"))
    summary = summarise(rows, draws=200)
    task = summary["tasks"]["t"]
    assert task["dice"]["mean"] == pytest.approx(0.55)
    assert task["dice_present"]["mean"] == pytest.approx(0.6)
    assert task["nsd_present"]["mean"] == pytest.approx(0.3)
    assert task["nsd_mm"]["mean"] is None
    assert task["median_dice_present"] == pytest.approx(0.6)
    assert task["presence_right"]["mean"] == pytest.approx(0.75)
    assert (task["found_present"]["mean"], task["found_absent"]["mean"]) == (1.0, 0.5)
    assert task["presence_auc"] == pytest.approx(3 / 4)  # of four pairs only (0.6, 0.7) is the wrong way round
    assert summary["macro"]["dice"]["mean"] == pytest.approx((0.55 + 0.5) / 2)
    assert summary["pooled"]["dice"]["mean"] == pytest.approx((4 * 0.55 + 0.5) / 5)


def answer(kind: str, presence: float, known: bool, on: bool, dice: float = 0.0) -> dict:
    common = {"kind": kind, "text": kind, "known": known, "found_on": on, "found_off": True}
    # Free text is held against another threshold than known targets are.
    return {
        **common,
        "presence": presence,
        "threshold": 0.5 if known else 0.2,
        "dice_on": dice if on else 0.0,
        "dice_off": dice,
        "overlap": dice,
    }


def test_text_sensitivity_by_hand() -> None:
    """Twenty images with the target and scores 0.05 to 1: 95 % of them reach 0.10, a logit of -2.2 from 0.5."""
    rows = []
    for n in range(20):
        asked = [
            answer("right", (n + 1) / 20, True, n >= 10, 0.8),
            answer("nonsense", 0.02 if n < 15 else 0.03, False, False),
            answer("other modality", 0.3, True, n == 0),
        ]
        rows.append(row(f"{n:02d}", True, 0.8, 0.5, sensitivity=asked))
    rows.append(row("none", False, 1.0, 0.0, sensitivity=[answer("right", 0.02, True, False)]))
    bootstrap = Bootstrap([(r["folder"], r["name"]) for r in rows], 200)
    table = text_sensitivity(rows, range(len(rows)), bootstrap)
    assert table["shift"] == pytest.approx(np.log(0.1 / 0.9))
    kinds = table["kinds"]
    assert kinds["right, present"]["pairs"] == 20
    assert kinds["right, present"]["found_on"]["mean"] == 0.5
    assert kinds["right, present"]["found_at"]["mean"] == pytest.approx(0.95)
    assert kinds["right, present"]["dice_on"]["mean"] == pytest.approx(0.4)
    assert kinds["right, present"]["dice_off"]["mean"] == pytest.approx(0.8)
    assert kinds["right, absent"]["found_at"]["mean"] == 0.0
    assert kinds["right, absent"]["dice_on"]["mean"] is None
    assert kinds["other modality"]["found_at"]["mean"] == 1.0
    # The same way below 0.2 lies 0.027.
    assert kinds["nonsense"]["found_at"]["mean"] == pytest.approx(0.25)
