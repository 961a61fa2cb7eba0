"""Runs by their requests, what comes of them for people and for rounds, and the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from medclipsam.active import LEDGER_FILE
from medclipsam.active.ledger import Ledger
from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.cli.main import main
from medclipsam.cohort.claims import Claims
from medclipsam.cohort.command import (
    ChangedRequestError,
    Cohort,
    Machine,
    conclude,
    folder_source,
    parse_shard,
    status,
    work,
)
from medclipsam.cohort.drive import Driver
from medclipsam.cohort.methods import describe_request, own_request, zero_shot_request
from medclipsam.cohort.metrics import RunMetrics
from medclipsam.cohort.options import CohortOptions
from medclipsam.cohort.plan import make_plan
from medclipsam.cohort.rounds import feed_rounds
from medclipsam.cohort.source import Study
from medclipsam.cohort.store import Run, runs_in
from medclipsam.cohort.work import Task, Worker, WorkerSettings
from medclipsam.imaging import read_image, read_mask
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.training.split import Split
from tests.cohort.inline import Inline

ROOT = Path(__file__).parents[2]
LOCAL = Machine(engine="local", device="cpu", options=CohortOptions(workers=2, cpus_per_worker=1))


def drive(run: Run, metrics: RunMetrics | None = None) -> None:
    with Claims(run.folder / "owners", 60) as claims:
        Driver(run, Inline(run), claims, CohortOptions(attempts=1), metrics=metrics).run()


def request(**arguments: Any) -> dict[str, Any]:
    return describe_request(own_request("tests.cohort.standin:Bright", **arguments), ("nifti",))


def test_processes_do_what_one_does_alone_and_a_poisonous_study_ends_no_run(
    write_studies: Callable[..., Path], make_run: Callable[..., Run]
) -> None:
    run = make_run(write_studies(12), poison="im0005", bad="im0002")
    counts = work(run, LOCAL)
    assert (counts.done, counts.failed) == (12, 2)
    rows = {row["study"]: row for part in run.parts() for row in pq.read_table(part).to_pylist()}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"im0002", "im0005"}
    assert "SIGKILL" in rows["im0005"]["error"]
    assert (run.folder / rows["im0005"]["log"]).read_text()
    # those that were in hand when a worker ended are no failures
    assert all(row["attempts"] == 1 for row in rows.values() if row["status"] == "done")
    assert not list((run.folder / "owners").iterdir())


def test_a_worker_that_hangs_is_ended_and_only_its_study_is_set_aside(
    write_studies: Callable[..., Path], make_run: Callable[..., Run]
) -> None:
    run = make_run(write_studies(4), hang="im0001")
    options = CohortOptions(workers=1, cpus_per_worker=1, timeout=2, attempts=1)
    counts = work(run, Machine(engine="local", device="cpu", options=options))
    assert (counts.done, counts.failed) == (4, 1)
    rows = [row for part in run.parts() for row in pq.read_table(part).to_pylist()]
    assert [row["study"] for row in rows if row["status"] == "failed"] == ["im0001"]


def test_the_report_shows_findings_failures_and_pictures(
    write_studies: Callable[..., Path], make_run: Callable[..., Run]
) -> None:
    run = make_run(write_studies(9), bad="im0004")
    metrics = RunMetrics()
    drive(run, metrics)
    said = conclude(run, Machine(device="cpu"))
    page = (run.folder / "report.html").read_text()
    assert "9 of 9 studies" in said
    assert "bright" in page
    assert "im0004.png is bad" in page
    assert len(re.findall(r"data:image/jpeg", page)) >= 8
    assert not re.search(r'(src|href)="(?!data:)', page)
    table = pq.read_table(run.folder / "findings.parquet")
    assert table.num_rows == 9
    told = status(run)
    assert (told["done"], told["set_aside"], told["left"]) == (9, 1, 0)
    value = metrics.registry.get_sample_value
    assert value("medclipsam_cohort_studies_total", {"status": "done"}) == 8
    assert value("medclipsam_cohort_studies_total", {"status": "failed"}) == 1
    assert value("medclipsam_cohort_seconds_count", {"stage": "compute"}) == 8


def test_a_changed_request_is_a_new_run(write_studies: Callable[..., Path], tmp_path: Path) -> None:
    source = folder_source(write_studies(1))
    first = Cohort(tmp_path / "out", request(seconds=0.0), source).open()
    changed = Cohort(tmp_path / "out", request(seconds=0.5), source)
    with pytest.raises(ChangedRequestError, match=r"request\.method\.arguments\.seconds is 0\.5 and was 0\.0"):
        changed.open(continue_anyway=True)
    assert changed.open().folder != first.folder
    assert Cohort(tmp_path / "out", request(seconds=0.0), source).open(continue_anyway=True).folder == first.folder
    assert [run.folder for run in runs_in(tmp_path / "out")] == [first.folder, changed.open().folder]


def test_a_plan_does_a_sample_and_keeps_nothing(
    write_studies: Callable[..., Path], make_run: Callable[..., Run]
) -> None:
    run = make_run(write_studies(7), seconds=0.05, bad="im0003")
    plan = make_plan(run, Machine(device="cpu"), sample=3, workers=2)
    assert (plan.studies, plan.sampled, plan.workers) == (7, 3, 2)
    assert plan.failed == 1
    assert 0.05 <= plan.seconds < 1
    assert run.counts().done == 0
    assert not list((run.folder / "masks").rglob("*.nii.gz"))


def test_rounds_choose_by_what_a_cohort_found(
    write_studies: Callable[..., Path], make_run: Callable[..., Run], tmp_path: Path
) -> None:
    studies = write_studies(6)
    kept = studies / "labels" / "original" / "im0001.nii.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"a mask that was there")
    run = make_run(studies)
    drive(run)
    fed = feed_rounds(run, tmp_path / "workspace")
    assert (fed.images, fed.presence, fed.masks) == (6, 6, 5)
    ledger = Ledger(tmp_path / "workspace" / LEDGER_FILE)
    rows = ledger.images()
    ledger.close()
    for row in rows:
        pixels = np.asarray(Image.open(studies / f"{row['image']}.png"))
        assert row["presence"] == pytest.approx(np.mean(pixels > 110) - 0.05)
        assert row["validation"] == Split().holds(f"image:{row['image']}")
        if row["image"] != "im0001":
            image = read_image(studies / f"{row['image']}.png")
            labels = read_mask(studies / "labels" / "original" / f"{row['image']}.nii.gz", image)
            np.testing.assert_array_equal(labels[0] > 0, pixels > 110)
    assert kept.read_bytes() == b"a mask that was there"
    # again it changes nothing
    assert feed_rounds(run, tmp_path / "workspace").masks == 0


def test_the_zero_shot_pipeline_is_what_it_is_alone(tmp_path: Path) -> None:
    from medclipsam.demo.phantoms import make_phantom

    Image.fromarray(make_phantom("US", 1, size=96, pathology=True).image).save(tmp_path / "breast.png")
    options = ZeroShotOptions(steps=2, samples=1)
    method = zero_shot_request("breast tumour; skin", "demo", options, embed=True)
    run = Run.create(tmp_path / "out", describe_request(method, ("nifti",), "US"), folder_source(tmp_path))
    worker = Worker(run, "w", WorkerSettings())
    rows, _ = worker.results(Task(0, 0, Study("breast", "breast.png"), 1))
    image = read_image(tmp_path / "breast.png", modality="US")
    alone = ZeroShot.load("demo").segment(image, "breast tumour; skin", options)
    np.testing.assert_array_equal(read_mask(run.folder / rows[0]["mask"], image), alone.labels)
    assert [row["finding"] for row in rows] == [target.name for target in alone.targets]
    for row, target in zip(rows, alone.targets, strict=True):
        assert (row["presence"], row["voxels"]) == (target.presence_score, target.area_pixels)
        assert json.loads(row["weights"]) == alone.weights
    vector = np.frombuffer(bytes.fromhex(rows[0]["embedding"]), np.float16).astype(float)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "3/", "-1/2"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(text))):
        parse_shard(text)
    assert parse_shard("3/40") == (3, 40)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--text", "lungs"], "--studies"),
        (["--studies", "nowhere", "--text", "lungs"], "nowhere"),
        (["--studies", "."], "--text"),
        (["--studies", ".", "--text", "lungs", "--shard", "9/4"], "9/4"),
        (["--studies", ".", "--text", "lungs", "--output", "pacs"], "--pacs"),
        (["--studies", ".", "--text", "lungs", "--attempts", "0"], "attempts"),
        (["--studies", ".", "--text", "lungs", "--network", "x"], "--text"),
        (["--studies", ".", "--manifest", "x.csv", "--text", "lungs"], "--manifest"),
        (["--manifest", "x.txt", "--text", "lungs"], "x.txt"),
        (["--studies", ".", "--text", ";"], "empty"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cohort", "run", "--out", "out", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.startswith("medclipsam: ")
    assert not list(tmp_path.iterdir())


def test_without_ray_one_sentence_says_what_to_install(
    write_studies: Callable[..., Path], make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "medclipsam.cohort.ray_engine", raising=False)
    with pytest.raises(InputError, match=r"medclipsam\[cohort\]"):
        work(make_run(write_studies(1)), Machine(device="cpu"))


def test_jobs_of_arrays_name_parts_of_the_command() -> None:
    job = yaml.safe_load((ROOT / "deploy" / "cohort-job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    parts = next(each["value"] for each in container["env"] if each["name"] == "PARTS")
    assert int(parts) == job["spec"]["completions"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
