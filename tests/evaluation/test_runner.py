"""Runs on images whose masks are known: what is recorded, and that an interrupted run goes on."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.demo.data import write_data
from medclipsam.evaluation.command import Request, evaluate
from medclipsam.evaluation.data import find_cases
from medclipsam.evaluation.predictors import Prediction, ZeroShotPredictor, ladder
from medclipsam.evaluation.report import write_report
from medclipsam.evaluation.runner import Methods, Plan, read_identity, read_results, run
from medclipsam.evaluation.summary import summarise
from medclipsam.evaluation.tables import write_tables
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.targets import TargetSet

TARGETS = TargetSet.load()
OPTIONS = ZeroShotOptions(saliency="patch_text")


def test_a_row_says_what_was_found(spots: Path, tmp_path: Path, pipeline: ZeroShot) -> None:
    rows = run(find_cases(spots, TARGETS), Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS))), tmp_path / "run")
    assert [row["name"] for row in rows] == ["a", "b", "c", "none"]
    for row in rows[:3]:
        assert (row["present"], row["found"], row["presence_right"]) == (True, True, True)
        assert row["dice"] == row["nsd"] == 1.0
        assert row["nsd_mm"] is None  # a PNG knows no millimetres
        assert row["text"] == "something bright"
        assert row["presence"] >= row["threshold"]
        assert {"saliency", "sam_decode", "total"} <= set(row["seconds"])
        truth = np.asarray(Image.open(spots / "spot" / "test_masks" / f"{row['name']}.png")) > 0
        drawn = np.asarray(Image.open(tmp_path / "run" / "predictions" / row["prediction"])) > 0
        np.testing.assert_array_equal(drawn, truth)
    absent = rows[3]
    assert (absent["present"], absent["found"], absent["presence_right"], absent["dice"]) == (False, False, True, 1.0)
    assert absent["presence"] < absent["threshold"]


def test_volumes_have_figures_in_mm_lesions_and_flicker(tmp_path: Path, pipeline: ZeroShot) -> None:
    truth = np.zeros((8, 40, 40), bool)
    truth[1:4, 8:20, 8:20] = True
    truth[6, 30:34, 30:34] = True  # too small for the one component that is kept
    folder = tmp_path / "data" / "spot"
    for kind, values in (("images", np.where(truth, 255, 20)), ("masks", truth)):
        (folder / f"test_{kind}").mkdir(parents=True)
        nifti = nib.Nifti1Image(values.astype(np.uint8).transpose(2, 1, 0), np.diag([1.0, 1.0, 4.0, 1.0]))
        nib.save(nifti, folder / f"test_{kind}" / "body.nii.gz")
    entry = {"tasks": {"spot": {"prompt": "something bright"}}}
    (tmp_path / "data" / "tasks.yaml").write_text(yaml.safe_dump(entry))
    request = Request(data=tmp_path / "data", out=tmp_path / "run", options=OPTIONS, draws=100)
    cases = find_cases(request.data, TARGETS)
    rows = run(cases, Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS))), request.out)
    (row,) = rows
    assert (row["lesions"], row["lesions_found"], row["lesions_false"]) == (2, 1, 0)
    assert row["lesion_f1"] == pytest.approx(2 / 3)
    assert row["hd95_mm"] is not None
    assert row["flicker"] > 0
    summary = summarise(rows, draws=100)
    write_tables(request.out, rows, summary)
    write_report(request.out, cases, rows, summary, read_identity(request.out))
    assert summary["tasks"]["spot"]["lesion_sensitivity"]["mean"] == 0.5
    (line,) = csv.DictReader((request.out / "per_image.csv").read_text().splitlines())
    assert float(line["flicker"]) == row["flicker"]
    assert "HD95" in (request.out / "report.md").read_text()


def test_each_text_is_asked_with_presence_on_and_off(spots: Path, tmp_path: Path, pipeline: ZeroShot) -> None:
    predictor = ZeroShotPredictor(pipeline, OPTIONS)
    plan = Plan(Methods(predictor, sensitivity=(predictor, predictor.with_options(presence=False))))
    rows = run(find_cases(spots, TARGETS), plan, tmp_path / "run")
    asked = {answer["text"]: answer for answer in rows[0]["sensitivity"]}
    assert list(asked) == [
        *("something bright", "a bright disc", "a dark corner", "heart", "skull", "a parking ticket"),
    ]
    assert asked["a bright disc"]["dice_on"] == 1.0
    assert asked["a bright disc"]["overlap"] == 1.0
    # To this encoder all that is not bright is one and the same.
    assert asked["heart"]["kind"] == "other modality"
    assert asked["heart"]["known"]
    assert not asked["a parking ticket"]["known"]
    for text in ("a dark corner", "a parking ticket"):
        assert asked[text]["presence"] < asked["a bright disc"]["presence"]
    on_none = {answer["kind"]: answer for answer in rows[3]["sensitivity"]}
    assert not on_none["right"]["found_on"]


def test_the_ladder_adds_a_stage_a_rung(spots: Path, tmp_path: Path, pipeline: ZeroShot) -> None:
    pipeline.map_cache = 16
    rungs = ladder({"box": pipeline}, ZeroShotOptions(), ("patch_text",), prompts=("boxes",))
    names = list(rungs)
    assert [name.split(": ")[1].split(" ")[0] for name in names] == ["saliency", "+", "+", "+", "+"]
    plan = Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS), rungs))
    for row in run(find_cases(spots, TARGETS), plan, tmp_path / "run"):
        figures = [row["rungs"][name] for name in names]
        if row["present"]:
            # A map of 16 x 16 tokens is coarser than SAM's mask.
            assert 0 < figures[0]["dice"] <= figures[1]["dice"] + 0.2
            assert figures[2]["dice"] < figures[3]["dice"] == figures[4]["dice"] == 1.0
        else:
            assert figures[4]["dice"] == 1.0
            assert not figures[4]["found"]


def test_anything_with_the_interface_is_a_rung(spots: Path, tmp_path: Path, pipeline: ZeroShot) -> None:
    class Bright:
        """A network of one structure, as the evaluation sees it."""

        def identity(self) -> dict:
            return {"network": "bright"}

        def predict(self, image: MedicalImage, text: str) -> Prediction:
            return Prediction(np.stack([image.plane(n)[..., 0] > 100 for n in range(image.n_planes)]))

    plan = Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS), {"network": Bright()}))
    assert all(row["rungs"]["network"]["dice"] == 1 for row in run(find_cases(spots, TARGETS), plan, tmp_path / "run"))


def test_a_run_with_other_settings_data_or_weights_is_refused(spots: Path, tmp_path: Path, pipeline: ZeroShot) -> None:
    cases = find_cases(spots, TARGETS)
    out = tmp_path / "run"
    run(cases, Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS))), out)
    before = (out / "results.jsonl").read_bytes()
    other = ZeroShotPredictor(pipeline, ZeroShotOptions(saliency="patch_text", threshold=0.5))
    with pytest.raises(InputError, match=r"predictor\.options\.threshold \(0\.3 then, 0\.5 now\)"):
        run(cases, Plan(Methods(other)), out)
    pipeline.weights = {"clip": {"name": "bright", "sha256": "1" * 64}}
    with pytest.raises(InputError, match=r"predictor\.weights\.clip\.sha256"):
        run(cases, Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS))), out)
    pipeline.weights = {"clip": {"name": "bright", "sha256": "0" * 64}}
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(spots / "spot" / "test_masks" / "a.png")
    with pytest.raises(InputError, match="another data"):
        run(cases, Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS))), out)
    assert (out / "results.jsonl").read_bytes() == before
    rows = run(cases, Plan(Methods(other)), out, restart=True)
    assert rows[0]["dice"] == 0.0


def test_a_line_that_was_not_written_whole_is_measured_again(spots: Path, tmp_path: Path, pipeline: ZeroShot) -> None:
    cases, plan, out = find_cases(spots, TARGETS), Plan(Methods(ZeroShotPredictor(pipeline, OPTIONS))), tmp_path / "run"
    whole = run(cases, plan, out)
    results = out / "results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    assert [row["name"] for row in read_results(out)] == ["a", "b"]
    again = run(cases, plan, out)
    assert results.read_bytes().startswith(b"".join(lines[:2]))
    for one, two in zip(whole, again, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """The real command, killed after its first results, then started again: as if it had never been stopped."""
    data, out, whole = tmp_path / "data", tmp_path / "run", tmp_path / "whole"
    write_data(data, 2, absent=0)
    asked = ("heart, x-ray", "lungs, x-ray")
    command = [sys.executable, "-m", "medclipsam", "evaluate", "run", str(data), "--out", str(out)]
    command += ["--saliency", "patch_text"]
    process = subprocess.Popen(
        [*command, *(part for task in asked for part in ("--tasks", task))],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    results = out / "results.jsonl"
    deadline = time.monotonic() + 300
    while not (results.is_file() and results.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = results.read_bytes()
    kept = done[: done.rfind(b"\n") + 1]
    assert 0 < kept.count(b"\n") < 4, "the run ended before it could be interrupted"
    assert not (out / "summary.json").exists()
    for folder in (out, whole):
        evaluate(Request(data, folder, tasks=asked, options=OPTIONS))
    assert results.read_bytes().startswith(kept)
    for name in ("summary.json", "per_image.csv", "per_image.json", "report.md", "report.html"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert len(json.loads((out / "per_image.json").read_text())) == 4


def test_another_sam_shares_encoder_and_maps(spots: Path, tmp_path: Path) -> None:
    first = ZeroShot.load("demo")
    first.map_cache = 4
    second = first.with_sam("demo_sam")
    assert second.encoder is first.encoder
    assert second.weights == first.weights
    rungs = ladder({"one": first, "two": second}, OPTIONS, ("patch_text",), prompts=("boxes",))
    cases = find_cases(spots, TARGETS, only=("spot",))[:1]
    (row,) = run(cases, Plan(Methods(ZeroShotPredictor(first, OPTIONS), rungs)), tmp_path / "run")
    boxes = {name: figures for name, figures in row["rungs"].items() if name.endswith("boxes")}
    assert list(boxes) == ["patch_text: + SAM one, boxes", "patch_text: + SAM two, boxes"]
    one, two = boxes.values()
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert len(first._maps) == 1
