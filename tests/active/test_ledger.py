"""The ledger: leases, labels saved in every order, rounds, what a killed process leaves, several processes at once."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclipsam.active.ledger import Ledger, Score, TooManyLeasesError
from medclipsam.base.errors import InputError, LockedError

Mask = Callable[..., np.ndarray]


def test_the_file_is_its_owners_alone(ledger: Ledger) -> None:
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_a_lease_keeps_others_away_until_it_ends(ledger: Ledger, clock: Any) -> None:
    first = ledger.lease("i1", "ada", 60)
    assert first is not None
    assert (first.since, first.until) == (1000, 1060)
    assert ledger.lease("i1", "bob", 60) is None
    clock.now = 1050
    renewed = ledger.lease("i1", "ada", 60)
    assert renewed is not None
    assert (renewed.since, renewed.until) == (1000, 1110)
    clock.now = 1111
    assert ledger.leases() == []
    taken = ledger.lease("i1", "bob", 60)
    assert taken is not None
    assert (taken.holder, taken.since) == ("bob", 1111)


def test_a_lease_is_given_back_by_its_holder_only(ledger: Ledger) -> None:
    ledger.lease("i1", "ada", 60)
    assert not ledger.release("i1", "bob")
    assert ledger.release("i1", "ada")
    assert ledger.lease("i1", "bob", 60) is not None


def test_one_person_holds_no_more_than_is_allowed(ledger: Ledger, clock: Any) -> None:
    for image in ("i1", "i2"):
        assert ledger.lease(image, "ada", 60, most=2) is not None
    with pytest.raises(TooManyLeasesError):
        ledger.lease("i3", "ada", 60, most=2)
    # one that is held already is prolonged, others are not concerned, and what has expired does not count
    assert ledger.lease("i2", "ada", 90, most=2) is not None
    assert ledger.lease("i3", "bob", 60, most=2) is not None
    assert [lease.image for lease in ledger.release(holder="ada")] == ["i1", "i2"]
    assert [lease.holder for lease in ledger.leases()] == ["bob"]
    clock.now += 100
    assert ledger.lease("i3", "ada", 60, most=1) is not None


def test_who_finds_no_image_takes_over_one_of_many(ledger: Ledger, clock: Any, mask: Mask) -> None:
    assert ledger.take_over("bob", 60) is None
    for image in ("i2", "i1", "i3"):
        ledger.lease(image, "ada", 600)
        clock.now += 1
    taken = ledger.take_over("bob", 60)
    assert taken is not None
    assert (taken.image, taken.holder, taken.since, taken.until) == ("i2", "bob", clock.now, clock.now + 60)
    # one is enough, and the last one stays
    assert ledger.take_over("bob", 60) is None
    taken = ledger.take_over("cyd", 60)
    assert taken is not None
    assert taken.image == "i1"
    assert ledger.take_over("dan", 60) is None
    assert {lease.image: lease.holder for lease in ledger.leases()} == {"i1": "cyd", "i2": "bob", "i3": "ada"}


def test_images_with_a_label_and_leases_that_ended_are_not_taken_over(ledger: Ledger, clock: Any, mask: Mask) -> None:
    for image in ("i1", "i2"):
        ledger.lease(image, "ada", 600)
    ledger.record("i1", "eve", mask())
    assert ledger.take_over("bob", 60) is None
    ledger.lease("i3", "ada", 600)
    clock.now += 601
    assert ledger.take_over("bob", 60) is None


def test_a_file_that_another_program_locks_is_waited_for_in_vain(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medclipsam.active.ledger.BUSY_SECONDS", 0.1)
    other = Ledger(ledger.path)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as program:
        program.execute("BEGIN IMMEDIATE")
        with pytest.raises(LockedError):
            other.lease("i1", "ada")
        with pytest.raises(LockedError):
            Ledger(ledger.path)
        # who reads does not wait
        assert other.leases() == []
    assert other.lease("i1", "ada") is not None


def test_an_unknown_image_is_refused_everywhere(ledger: Ledger, mask: Mask) -> None:
    for act in (
        lambda: ledger.lease("x", "ada"),
        lambda: ledger.record("x", "ada", mask()),
        lambda: ledger.show("x", "ada", "zero-shot", mask()),
    ):
        with pytest.raises(InputError, match="'x' is not among the studies"):
            act()
    assert ledger.labels() == []


def test_a_label_ends_its_readers_lease_and_counts_the_seconds(ledger: Ledger, clock: Any, mask: Mask) -> None:
    ledger.lease("i1", "ada", 600)
    clock.now += 42
    saved, label = ledger.record("i1", "ada", mask())
    assert (saved, label.seconds) == ("new", 42)
    assert ledger.leases() == []


def test_a_label_by_another_leaves_the_lease_and_knows_no_seconds(ledger: Ledger, mask: Mask) -> None:
    ledger.lease("i1", "ada", 600)
    _, label = ledger.record("i1", "bob", mask())
    assert label.seconds is None
    assert [lease.holder for lease in ledger.leases()] == ["ada"]


def test_the_same_label_twice_is_one(ledger: Ledger, mask: Mask) -> None:
    first = ledger.record("i1", "ada", mask())
    again = ledger.record("i1", "ada", mask())
    assert (first[0], again[0]) == ("new", "same")
    assert first[1].number == again[1].number
    assert ledger.new_labels() == 1


def test_another_label_takes_the_place_and_the_first_is_kept(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask(edge=4))
    saved, _ = ledger.record("i1", "bob", mask(edge=6))
    assert saved == "replaced"
    assert [(label.reader, label.current) for label in ledger.labels(current=False)] == [("ada", False), ("bob", True)]
    # neither counts before there is a consensus
    assert ledger.new_labels() == 0
    readings = ledger.readings("i1")
    np.testing.assert_array_equal(readings["ada"], mask(edge=4))
    np.testing.assert_array_equal(readings["bob"], mask(edge=6))
    assert ledger.agreements() == {"i1": {("ada", "bob"): pytest.approx(2 * 16 / (16 + 36))}}


def test_an_empty_label_is_a_confirmed_absence(ledger: Ledger) -> None:
    _, label = ledger.record("i1", "ada", np.zeros((1, 16, 16), np.uint8))
    assert label.absent
    assert ledger.new_labels() == 1


def test_effort_is_measured_against_what_the_reader_was_shown(ledger: Ledger, mask: Mask) -> None:
    ledger.show("i1", "", "zero-shot", mask(edge=8))
    ledger.show("i1", "ada", "network abc", mask(edge=4))
    _, label = ledger.record("i1", "ada", mask(edge=5))
    assert label.source == "network abc"
    assert label.dice == pytest.approx(2 * 16 / (16 + 25))
    assert label.changed == 9
    # her next correction would start from this label, which nobody has shown her
    _, later = ledger.record("i1", "ada", mask(edge=6))
    assert (later.source, later.dice) == ("", None)


def test_a_mask_that_waited_counts_for_whoever_opens_the_image(ledger: Ledger, mask: Mask) -> None:
    ledger.show("i1", "", "zero-shot", mask())
    ledger.show("i1", "bob", "zero-shot", mask(edge=9))
    _, label = ledger.record("i1", "ada", mask())
    assert (label.source, label.dice, label.changed) == ("zero-shot", 1.0, 0)


def test_masks_that_were_only_shown_do_not_pile_up(ledger: Ledger, mask: Mask) -> None:
    for edge in range(2, 12):
        ledger.show("i1", "ada", "zero-shot", mask(edge=edge))
    ledger.record("i1", "ada", mask(edge=3))
    with sqlite3.connect(ledger.path) as db:
        assert db.execute("SELECT COUNT(*) FROM masks").fetchone() == (1,)


def test_review_counts_and_a_rejected_label_does_not(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask())
    with pytest.raises(InputError, match="by ada, who cannot approve"):
        ledger.review("i1", "ada", "approved")
    assert ledger.review("i1", "bob", "approved").verdicts == {"bob": "approved"}
    assert ledger.review("i1", "bob", "rejected").rejected
    assert ledger.new_labels() == 0
    ledger.record("i1", "ada", mask(edge=5))
    assert ledger.new_labels() == 1
    with pytest.raises(InputError, match="'fine'; allowed: approved, rejected"):
        ledger.review("i1", "bob", "fine")
    with pytest.raises(InputError, match="'i2' has no label"):
        ledger.review("i2", "bob", "approved")


def test_a_removed_label_counts_no_more(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask())
    assert ledger.forget("i1")
    assert not ledger.forget("i1")
    assert ledger.new_labels() == 0
    assert len(ledger.labels(current=False)) == 1


def test_labels_saved_while_a_training_runs_count_for_the_next_round(ledger: Ledger, mask: Mask) -> None:
    for k in range(3):
        ledger.record(f"i{k}", "ada", mask())
    assert ledger.is_due(3)
    begun = ledger.begin_training(None)
    assert begun is not None
    assert (begun.number, begun.state) == (1, "training")
    assert ledger.begin_training(None) is None
    ledger.record("i5", "ada", mask())
    assert ledger.new_labels() == 1
    assert not ledger.is_due(1)
    ended = ledger.end_training("published", "net1", {"dice": 0.8})
    assert (ended.network_after, dict(ended.metrics)) == ("net1", {"dice": 0.8})
    assert ledger.is_due(1)
    assert [label.image for label in ledger.labels(round=2)] == ["i5"]
    assert [each.state for each in ledger.rounds()] == ["published", "open"]


def test_validation_labels_do_not_make_a_training_due(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i8", "ada", mask())
    assert ledger.new_labels() == 0


def test_a_failed_training_is_tried_again_with_the_next_label(ledger: Ledger, mask: Mask) -> None:
    for k in range(2):
        ledger.record(f"i{k}", "ada", mask())
    ledger.begin_training(None)
    ledger.end_training("failed", metrics={"error": "no memory"})
    assert ledger.new_labels() == 2
    assert not ledger.is_due(2)
    ledger.record("i3", "ada", mask())
    assert ledger.is_due(2)


def test_only_a_training_that_runs_can_end(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="No round's training runs"):
        ledger.end_training("published")
    with pytest.raises(InputError, match="'good'; allowed: published"):
        ledger.end_training("good")


def test_what_networks_and_encoders_said_is_dropped_with_them(ledger: Ledger) -> None:
    ledger.set_scores("one", {"i1": Score(3.0, {"tumour": 2.0}, 0.5, (4, 2)), "i2": Score(1.0)})
    assert ledger.scores()["i1"] == Score(3.0, {"tumour": 2.0}, 0.5, (4, 2))
    assert ledger.without_score("one") == [f"i{k}" for k in (0, *range(3, 10))]
    ledger.set_scores("two", {"i3": Score(2.0)})
    assert list(ledger.scores()) == ["i3"]
    ledger.set_embeddings("clip", {"i1": np.arange(4)})
    np.testing.assert_array_equal(ledger.embeddings()["i1"], np.arange(4))
    assert len(ledger.without_embedding("clip")) == 9
    assert len(ledger.without_embedding("other clip")) == 10


def test_what_has_a_label_is_scored_again_only_where_it_was_rejected_or_removed(ledger: Ledger, mask: Mask) -> None:
    ledger.sync_images({f"i{k}": (f"p{k}", False) for k in range(10)}, finished=["i0"])
    for image in ("i1", "i2", "i3"):
        ledger.record(image, "ada", mask())
    ledger.review("i2", "bob", "rejected")
    ledger.forget("i3")
    assert ledger.without_score("net") == ["i2", *(f"i{k}" for k in range(3, 10))]
    ledger.set_presence({"i4": 0.2})
    assert ledger.without_presence(2) == ["i2", "i3"]
    assert "i4" not in ledger.without_presence()
    ledger.set_scores("net", {"i5": Score(1.0), "i6": Score(1.0, {}, 0.5)})
    assert ledger.without_score("net", 3) == ["i2", "i3", "i4"]
    assert ledger.without_score("net", compared=True) == ["i2", "i3", "i4", "i5", "i7", "i8", "i9"]


def test_an_image_that_comes_back_is_known_still(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask())
    ledger.sync_images({"i0": ("p0", False)})
    assert [row["image"] for row in ledger.images()] == ["i0"]
    ledger.sync_images({"i0": ("p0", False), "i1": ("p1", False)})
    assert [row["image"] for row in ledger.images()] == ["i0", "i1"]
    assert ledger.new_labels() == 1


def test_a_ledger_of_a_later_version_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    later = tmp_path / "later.sqlite"
    with sqlite3.connect(later) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="later version"):
        Ledger(later)
    other = tmp_path / "other.sqlite"
    other.write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(InputError, match="cannot be used as a ledger"):
        Ledger(other)


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from medclipsam.active.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for k in range(int(sys.argv[3]), int(sys.argv[3]) + 80):
    labels = np.full((1, 8, 8), 1 + k % 250, np.uint8)
    labels[0, 0, 0] = k // 250
    ledger.record(sys.argv[2], "ada", labels)
    print(k, flush=True)
"""


def _start(ledger: Ledger, image: str, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(ledger.path), image, str(first)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_write_at_once_and_nothing_is_lost(ledger: Ledger) -> None:
    writers = [_start(ledger, "i1", 0), _start(ledger, "i2", 0)]
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        assert len(out.split()) == 80
    labels = ledger.labels(current=False)
    assert len(labels) == 160
    assert [label.image for label in ledger.labels()] in (["i1", "i2"], ["i2", "i1"])


def test_a_killed_process_leaves_whole_entries(ledger: Ledger, mask: Mask) -> None:
    writer = _start(ledger, "i1", 0)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    written = len(ledger.labels(current=False))
    assert written >= 20
    assert len(ledger.labels()) == 1
    assert ledger.readings("i1")["ada"].shape == (1, 8, 8)
    ledger.record("i2", "ada", mask())
    assert len(ledger.labels(current=False)) == written + 1


# -- several readers -------------------------------------------------------------------------------------------------


def test_labels_of_several_wait_for_a_consensus_of_which_the_ledger_knows_the_origin(
    ledger: Ledger, clock: Any, mask: Mask
) -> None:
    _, ada = ledger.record("i1", "ada", mask(edge=4))
    _, bob = ledger.record("i1", "bob", mask(edge=6))
    ledger.record("i2", "ada", mask())
    ledger.record("i2", "bob", mask(edge=5))
    ledger.record("i2", "cyd", mask(edge=7))
    waiting = ledger.waiting()
    # the two who agree least
    assert [(each.image, each.readers) for each in waiting] == [("i2", ("ada", "bob", "cyd")), ("i1", ("ada", "bob"))]
    assert waiting[0].dice == pytest.approx(2 * 16 / (16 + 49))
    assert ledger.new_labels() == 0
    for verdict in ("approved", "rejected"):
        with pytest.raises(InputError, match="several readers"):
            ledger.review("i1", "rob", verdict)
    saved, label = ledger.record("i1", "rob", mask(edge=5), consensus="staple")
    assert (saved, label.method, dict(label.readings)) == (
        "replaced",
        "staple",
        {"ada": ada.number, "bob": bob.number},
    )
    assert ledger.record("i1", "rob", mask(edge=5), consensus="staple")[0] == "same"
    assert (ledger.new_labels(), ledger.settled()) == (1, {"i1"})
    # the readers' labels stay; a consensus is none of them
    assert set(ledger.readings("i1")) == {"ada", "bob"}
    ledger.review("i1", "root", "rejected")
    assert {each.image for each in ledger.waiting()} == {"i1", "i2"}
    assert ledger.settled() == set()


def test_what_a_label_covers_is_part_of_it(ledger: Ledger, mask: Mask) -> None:
    """Where segments overlap; the effort is that of what is on top."""
    offered = mask(edge=3)
    ledger.show("i1", "ada", "zero-shot", offered)
    labels = mask(edge=4)
    beneath = np.where(labels > 0, 7, 0).astype(np.uint8)[None]
    saved, label = ledger.record("i1", "ada", labels, beneath=beneath)
    assert saved == "new"
    assert ledger.record("i1", "ada", labels, beneath=beneath.copy())[0] == "same"
    assert ledger.record("i1", "ada", labels, beneath=beneath * 0 + 8)[0] == "replaced"
    assert ledger.record("i1", "ada", labels)[0] == "replaced"
    ledger.show("i2", "ada", "zero-shot", offered)
    assert ledger.record("i2", "ada", labels)[1].dice == label.dice


def test_a_reader_who_saves_the_same_again_counts_once(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask(edge=4))
    ledger.record("i1", "bob", mask(edge=6))
    assert ledger.record("i1", "ada", mask(edge=4))[0] == "same"
    ledger.record("i1", "rob", mask(edge=4), consensus="reader")
    # after a consensus it says that the reader does not agree
    assert ledger.record("i1", "ada", mask(edge=4))[0] == "replaced"
    assert [each.readers for each in ledger.waiting()] == [("bob", "ada")]


def test_a_correction_takes_the_place_of_a_reading_and_a_rejected_one_is_none(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask(edge=4))
    ledger.record("i1", "bob", mask(edge=6), replaces=["ada"])
    assert ledger.readers("i1") == {"i1": ("bob",)}
    ledger.review("i1", "rob", "rejected")
    assert ledger.readers("i1") == {}
    ledger.record("i1", "ada", mask(edge=5))
    assert ledger.waiting() == []
    # whoever is not known is no reader
    ledger.record("i1", "anonymous", mask(edge=7))
    assert ledger.readers("i1") == {"i1": ("ada",)}
    ledger.forget("i1")
    assert ledger.readers() == {}


def test_a_file_of_the_first_format_gets_its_readings(ledger: Ledger, mask: Mask) -> None:
    ledger.record("i1", "ada", mask(edge=4))
    ledger.record("i1", "bob", mask(edge=6))
    ledger.record("i2", "ada", mask())
    ledger.record("i3", "ada", mask())
    ledger.forget("i3")
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as db:
        for table in ("readings", "waiting", "consensus", "assignments"):
            db.execute(f"DROP TABLE {table}")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    with closing(Ledger(ledger.path)) as later:
        assert later.readers() == {"i1": ("ada", "bob"), "i2": ("ada",)}
        assert [(each.image, each.dice) for each in later.waiting()] == [("i1", pytest.approx(2 * 16 / (16 + 36)))]


def test_assigned_images_are_leased_to_nobody_else(ledger: Ledger, clock: Any, mask: Mask) -> None:
    ledger.lease("i1", "bob", 600)
    ledger.lease("i2", "ada", 600)
    made = ledger.assign(["i1", "i2"], ["ada"], "rob")
    assert [(each.image, each.reader, each.by, each.at) for each in made] == [
        ("i1", "ada", "rob", clock.now),
        ("i2", "ada", "rob", clock.now),
    ]
    assert [lease.image for lease in ledger.leases()] == ["i2"]
    ledger.lease("i3", "ada", 600)
    clock.now += 1
    # of hers only what is not assigned can be taken over
    ledger.lease("i4", "ada", 600)
    taken = ledger.take_over("cyd", 60)
    assert taken is not None
    assert taken.image == "i3"
    ledger.record("i1", "ada", mask())
    assert [(each.image, each.done) for each in ledger.assignments(reader="ada")] == [("i1", True), ("i2", False)]
    assert ledger.assign(["i1"], ["ada"], "root")[0].by == "rob"
    assert [each.image for each in ledger.unassign(reader="ada")] == ["i1", "i2"]
    assert ledger.assignments() == []
