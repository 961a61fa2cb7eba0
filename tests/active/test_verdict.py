"""The verdict on simulated rounds against plain reckonings, and the summary of a ledger."""

import csv
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclipsam.active.ledger import Ledger
from medclipsam.active.summary import as_csv, as_text, label_rows, plot, summarise
from medclipsam.active.verdict import area, as_markdown, draw_curves, judge
from medclipsam.base.errors import InputError
from medclipsam.base.statistics import holm
from medclipsam.cli.main import main
from medclipsam.training.store import NETWORK_FILES, NetworkStore

Mask = Callable[..., np.ndarray]


def run(strategy: str, seed: int, dice: list[float], lengths: list[float] | None = None) -> dict[str, Any]:
    count = 100 if strategy == "all" else None
    rounds = [
        {
            "labelled": count or 10 * (number + 1),
            "dice": value,
            "control_dice": value,
            "control_path_length": (lengths or [0.0] * len(dice))[number],
        }
        for number, value in enumerate(dice)
    ]
    return {"strategy": strategy, "seed": seed, "rounds": rounds}


def exact_wilcoxon(differences: list[float]) -> float:
    """Return the two-sided p over all signs of the ranks."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    seen = sum(rank for rank, value in zip(ranks, differences, strict=True) if value > 0)
    sums = [
        sum(rank for rank, positive in zip(ranks, signs, strict=True) if positive)
        for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    low, high = sum(value <= seen for value in sums), sum(value >= seen for value in sums)
    return min(1.0, 2 * min(low, high) / len(sums))


def test_the_area_is_the_mean_dice_over_the_labels():
    assert area([10, 20, 40], [0.2, 0.4, 0.8]) == pytest.approx((0.3 * 10 + 0.6 * 20) / 30)
    assert area([10], [0.5]) == 0.5


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_strategies_are_compared_seed_by_seed() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(0.7, 0.05, 8)
    theirs = ours - 0.02 + rng.normal(0, 0.02, 8)
    runs = [run("all", seed, [0.9]) for seed in range(8)]
    runs += [run("best", seed, [0.5, value]) for seed, value in enumerate(ours)]
    runs += [run("random", seed, [0.5, value]) for seed, value in enumerate(theirs)]
    verdict = judge(runs, ["best", "random"])
    (test,) = verdict["tests"]
    assert test["difference"] == pytest.approx(float((ours - theirs).mean()) / 2)
    assert test["p"] == pytest.approx(exact_wilcoxon(list(ours - theirs)))
    assert test["low"] < test["difference"] < test["high"]
    assert verdict["strategies"]["best"]["enough"] is None


def test_labels_that_are_enough_and_the_slope_of_the_effort() -> None:
    runs = [run("all", seed, [0.8]) for seed in range(2)]
    runs += [run("best", seed, [0.5, 0.7, 0.78], [300, 200, 100]) for seed in range(2)]
    found = judge(runs, ["best"])["strategies"]["best"]
    assert found["enough"] == pytest.approx(30 / 100)
    assert found["slope"] == {"mean": pytest.approx(-100), "low": pytest.approx(-100), "high": pytest.approx(-100)}


def test_a_missing_run_is_named() -> None:
    with pytest.raises(InputError, match="'random' with the seed 1"):
        judge([run("all", 0, [1]), run("all", 1, [1]), run("a", 0, [1]), run("a", 1, [1]), run("random", 0, [1])],
              ["a", "random"])  # fmt: skip


def test_tables_and_curves_are_written(tmp_path: Path) -> None:
    runs = [run(name, seed, [0.5, 0.6]) for name in ("all", "a", "b") for seed in range(3)]
    verdict = judge(runs, ["a", "b"])
    text = as_markdown(verdict)
    assert "| a - b | +0.0000 (+0.0000 to +0.0000) | 1.0000 | 1.0000 |" in text
    draw_curves(verdict, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 500


def test_a_summary_counts_labels_effort_and_readers(ledger: Ledger, mask: Mask, tmp_path: Path, clock: Any) -> None:
    for k, reader in enumerate(("ada", "bob", "ada")):
        ledger.lease(f"i{k}", reader)
        ledger.show(f"i{k}", reader, "zero-shot", mask(edge=4))
        clock.now += 10
        ledger.record(f"i{k}", reader, mask(edge=4 + k))
    ledger.begin_training(None)
    ledger.end_training("published", "network 1", {"dice": 0.75})
    # a second reader of i0, who finds nothing there
    ledger.record("i0", "bob", np.zeros((1, 16, 16), np.uint8))
    ledger.review("i1", "ada", "rejected")
    ledger.review("i2", "bob", "approved")
    summary = summarise(ledger)
    first, second = summary["rounds"]
    assert (first["labels"], first["readers"], first["seconds"]) == (3, ["ada", "bob"], 10)
    assert first["unchanged"] == pytest.approx(1 / 3)
    assert first["dice"] == pytest.approx(np.mean([1, 2 * 16 / (16 + 25), 2 * 16 / (16 + 36)]))
    assert (second["labels"], second["absent"], second["dice"]) == (1, 1, None)
    assert (summary["labelled"], summary["approved"], summary["rejected"], summary["new"]) == (1, 1, 1, 0)
    assert (summary["waiting"], summary["consensus"]) == (1, 0)
    agreed = {"readers": ["ada", "bob"], "images": 1, "dice": 0.0, "kappa": 0.0}
    assert summary["agreement"] == {"dice": 0.0, "pairs": 1, "readers": [agreed]}
    assert json.loads(json.dumps(summary)) == summary
    text = as_text(summary)
    assert "published" in text
    assert "ada (2), bob (1)" in text
    assert Image.open(plot(summary, tmp_path / "rounds.png")).width > 500
    page = plot(summary, tmp_path / "rounds.html").read_text()
    assert "data:image/png;base64," in page
    with pytest.raises(InputError, match=r"rounds\.pdf; allowed: .*\.png or \.html"):
        plot(summary, tmp_path / "rounds.pdf")


def test_nothing_to_draw_is_said(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No label has been saved yet"):
        plot(summarise(ledger), tmp_path / "rounds.png")


def test_labels_of_validation_images_are_counted(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i0", "ada", mask())
    ledger.record("i8", "bob", mask())
    ledger.record("i9", "ada", mask())
    ledger.review("i9", "bob", "rejected")
    summary = summarise(ledger)
    assert (summary["labelled"], summary["validation"], summary["new"]) == (2, 1, 1)
    assert summary["by_reader"] == {"ada": 1, "bob": 1}
    assert summary["rounds"][0]["validation"] == 2
    assert summary["rounds"][0]["by_reader"] == {"ada": 2, "bob": 1}


def test_labels_are_listed_with_who_when_what_and_verdict(ledger: Ledger, mask: Mask, clock: Any) -> None:
    ledger.record("i0", "ada", mask(3))
    clock.now += 60
    ledger.record("i0", "=cmd()", mask(7), replaces=["ada"])
    ledger.record("i8", "bob", np.zeros((1, 16, 16), np.uint8))
    ledger.review("i0", "bob", "approved")
    names = {"i0": {7: "cyst"}, "": {3: "heart"}}
    rows = list(csv.DictReader(io.StringIO(as_csv(label_rows(ledger, names)))))
    assert [(row["annotator"], row["image"], row["targets"], row["set"], row["verdict"]) for row in rows] == [
        ("'=cmd()", "i0", "cyst", "training", "approved"),  # no formula for a spreadsheet
        ("bob", "i8", "", "validation", ""),
    ]
    assert rows[0]["saved"] == "1970-01-01T00:17:40+00:00"
    every = label_rows(ledger, names, every=True)
    assert [(row["annotator"], row["targets"], row["current"]) for row in every] == [
        ("ada", "heart", False),
        ("=cmd()", "cyst", True),
        ("bob", "", True),
    ]


def test_the_command_lists_labels_and_networks_that_were_trained_without_a_server(
    ledger: Ledger, mask: Mask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.record("i0", "ada", mask())
    assert main(["rounds", "labels", "--csv", "--workspace", str(tmp_path)]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["annotator"], row["image"]) == ("ada", "i0")
    empty = tmp_path / "empty"
    assert main(["rounds", "show", "--workspace", str(empty)]) == 2
    made = tmp_path / "made"
    made.mkdir()
    for file in NETWORK_FILES:
        (made / file).write_bytes(b"")
    about = {
        **{"name": "network", "status": "published", "reason": "It is the first.", "labels": {"heart": 13}},
        **{"classes": {"heart": 1}, "modality": "DX", "parent": None, "data": {}, "metrics": {}, "options": {}},
        "identity": "0",
    }
    NetworkStore(empty / "networks").add(made, about, expected=None)
    capsys.readouterr()
    assert main(["rounds", "show", "--json", "--workspace", str(empty)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [network["version"] for network in found["networks"]] == [1]
    assert main(["rounds", "show", "--workspace", str(empty)]) == 0
    assert "network version 1" in capsys.readouterr().out


def test_a_summary_tells_how_each_two_readers_agree(ledger: Ledger, mask: Mask) -> None:
    marked = {"ada": (1, 1, 0, 0, 1, 0), "bob": (1, 0, 0, 0, 1, 1)}
    for reader, found in marked.items():
        for k, there in enumerate(found):
            ledger.record(f"i{k}", reader, mask(edge=4) if there else np.zeros((1, 16, 16), np.uint8))
    ledger.record("i0", "rob", mask(edge=4), consensus="staple")
    summary = summarise(ledger)
    (pair,) = summary["agreement"]["readers"]
    # four of six images alike, half of them by chance
    assert (pair["readers"], pair["images"], pair["dice"]) == (["ada", "bob"], 6, pytest.approx(4 / 6))
    assert pair["kappa"] == pytest.approx((4 / 6 - 0.5) / 0.5)
    assert (summary["waiting"], summary["consensus"], summary["labelled"]) == (5, 1, 1)
    assert "5 images wait for a consensus" in as_text(summary)
    (row,) = [each for each in label_rows(ledger, {}) if each["consensus"]]
    assert (row["annotator"], row["consensus"]) == ("rob", "staple")
