"""A run is done once, whatever fails in between, and is the same however it is divided."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medclipsam.base.errors import CancelledError
from medclipsam.cohort.claims import Claims
from medclipsam.cohort.command import retry
from medclipsam.cohort.drive import Driver, StoppedError
from medclipsam.cohort.engine import Event
from medclipsam.cohort.options import CohortOptions
from medclipsam.cohort.store import BLOCK, Run
from medclipsam.cohort.table import SCHEMA, compact, part_counts
from medclipsam.cohort.work import Outcome
from tests.cohort.inline import Inline

Studies = Callable[..., Path]
Make = Callable[..., Run]


def drive(run: Run, *, engine: Any = None, **options: Any) -> Any:
    given = {name: options.pop(name) for name in ("shard", "stopped", "metrics") if name in options}
    with Claims(run.folder / "owners", 60) as claims:
        return Driver(run, engine or Inline(run), claims, CohortOptions(**options), **given).run()


def findings(run: Run) -> list[dict[str, Any]]:
    compact(run.parts(), run.folder / "all.parquet")
    return list(pq.read_table(run.folder / "all.parquet").to_pylist())


def test_every_study_has_one_row_and_its_mask(write_studies: Studies, make_run: Make) -> None:
    studies = write_studies(BLOCK + 9)
    run = make_run(studies)
    counts = drive(run)
    assert (counts.studies, counts.done, counts.failed) == (BLOCK + 9, BLOCK + 9, 0)
    rows = findings(run)
    assert sorted(row["image"] for row in rows) == sorted(file.stem for file in studies.iterdir())
    for row in rows[:: BLOCK // 8]:
        pixels = np.asarray(Image.open(studies / f"{row['image']}.png"))
        # NIfTI stores columns first
        mask = np.asarray(nib.load(run.folder / row["mask"]).dataobj).reshape(pixels.shape[::-1]).T
        np.testing.assert_array_equal(mask > 0, pixels > 110)
        assert row["voxels"] == np.count_nonzero(pixels > 110)
    # nothing is left of what was being worked on, and the parts are one data set for others
    assert not [path for path in (run.folder / "work").rglob("*") if path.is_file()]
    assert pyarrow.dataset.dataset(run.folder / "table").count_rows() == BLOCK + 9
    assert [part_counts(part)["studies"] for part in run.parts()] == [BLOCK, 9]


def test_what_is_done_is_not_done_again(write_studies: Studies, make_run: Make, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    tries.mkdir()
    run = make_run(write_studies(30), tries=str(tries))
    asked = iter([False] * 10 + [True] * 1000)
    with pytest.raises(CancelledError):
        drive(run, stopped=lambda: next(asked))
    first = {path.name.split(".")[0] for path in tries.iterdir()}
    assert 0 < len(first) < 30
    assert run.counts().done == len(first)
    assert drive(Run(run.folder)).done == 30
    assert drive(Run(run.folder)).done == 30
    assert Counter(path.name.split(".")[0] for path in tries.iterdir()) == Counter(f"im{n:04d}" for n in range(30))


def test_shards_do_together_what_one_run_does(write_studies: Studies, make_run: Make, tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    tries.mkdir()
    run = make_run(write_studies(20), tries=str(tries))
    for part in (3, 1, 2):
        drive(run, shard=(part, 3))
    names = [path.name.split(".")[0] for path in tries.iterdir()]
    assert sorted(names) == [f"im{n:04d}" for n in range(20)]
    assert run.is_finished(0)
    assert len(findings(run)) == 20


def test_a_study_that_fails_is_set_aside_with_its_log_and_tried_again_when_asked(
    write_studies: Studies, make_run: Make, tmp_path: Path
) -> None:
    tries = tmp_path / "tries"
    tries.mkdir()
    run = make_run(write_studies(6), bad="im0003", tries=str(tries))
    counts = drive(run, attempts=2)
    assert (counts.done, counts.failed) == (6, 1)
    (row,) = [row for row in findings(run) if row["status"] == "failed"]
    assert (row["study"], row["attempts"], row["finding"]) == ("im0003", 2, "")
    assert "im0003.png is bad" in row["error"]
    assert "Traceback" in (run.folder / row["log"]).read_text()
    before = {row["image"]: row for row in findings(run)}
    assert retry(run) == 1
    assert run.counts().done == 5
    assert drive(run, attempts=3).failed == 1
    made = Counter(path.name.split(".")[0] for path in tries.iterdir())
    assert made["im0003"] == 5
    assert all(made[f"im{n:04d}"] == 1 for n in range(6) if n != 3)
    after = {row["image"]: row for row in findings(run)}
    assert all(after[image] == row for image, row in before.items() if image != "im0003")


def test_another_worker_tries_a_study_that_failed(write_studies: Studies, make_run: Make) -> None:
    run = make_run(write_studies(3), bad="im0001")

    given: list[tuple[str, str]] = []

    class Noting(Inline):
        def submit(self, worker: str, task: Any) -> None:
            given.append((task.study.study, worker))
            super().submit(worker, task)

    drive(run, engine=Noting(run, workers=3), attempts=3)
    assert len({worker for study, worker in given if study == "im0001"}) == 3


def test_no_more_is_in_hand_than_workers_take(write_studies: Studies, make_run: Make) -> None:
    run = make_run(write_studies(40))
    engine = Inline(run, workers=2)
    drive(run, engine=engine, ahead=3)
    assert engine.most_in_hand == 6


def test_new_and_changed_studies_are_added(write_studies: Studies, make_run: Make) -> None:
    studies = write_studies(4)
    run = make_run(studies)
    drive(run)
    write_studies(2, first=4)
    Image.fromarray(np.full((9, 9), 3, np.uint8)).save(studies / "im0002.png")
    run = make_run(studies)
    assert run.listed()["studies"] == 7
    assert drive(run).done == 7
    assert [row["rows"] for row in findings(run) if row["image"] == "im0002"] == [8, 9]
    assert make_run(studies).listed()["studies"] == 7


def test_a_full_disk_stops_the_run_and_sets_nothing_aside(write_studies: Studies, make_run: Make) -> None:
    run = make_run(write_studies(5))

    class Full(Inline):
        def wait(self, seconds: float) -> Any:
            if not self._tasks:
                return super().wait(seconds)
            worker, task = self._tasks.pop(0)
            return [Event("done", worker, task, Outcome("stop", "The disk is full."))]

    with pytest.raises(StoppedError, match="disk is full"):
        drive(run, engine=Full(run))
    assert run.counts().done == 0
    assert drive(run).done == 5


def test_a_result_that_comes_late_changes_nothing(write_studies: Studies, make_run: Make) -> None:
    run = make_run(write_studies(2))
    run.work(0)
    first = {"status": "done", "rows": [{"study": "im0000", "place": 0, "image": "im0000", "status": "done"}]}
    assert run.add_result(0, 0, first)
    assert not run.add_result(0, 0, {"status": "failed", "rows": []})
    drive(run)
    assert not run.add_result(0, 1, first)
    assert [row["image"] for row in findings(run)] == ["im0000", "im0001"]


def test_what_a_killed_driver_left_is_done_and_counts_as_no_failure(write_studies: Studies, make_run: Make) -> None:
    run = make_run(write_studies(3))
    run.work(0)
    gone = run.folder / "owners" / "gone"
    gone.write_text(json.dumps({"owner": "gone", "machine": "another", "pid": 1, "start": ""}))
    for number in (1, 2, 3):
        run.claim_file(0, 1, number).hardlink_to(gone)
    gone.unlink()
    assert drive(run, attempts=2).failed == 0
    assert [row["attempts"] for row in findings(run)] == [1, 1, 1]


def test_the_table_holds_what_its_schema_says(write_studies: Studies, make_run: Make) -> None:
    run = make_run(write_studies(2))
    drive(run)
    findings(run)
    table = pq.read_table(run.folder / "all.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.column("seconds").null_count == 0
