"""Simulated rounds on small discs: same beginnings, true labels, determinism, going on after an interruption."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medclipsam.active import simulate as simulation
from medclipsam.active.embedding import embed
from medclipsam.active.score import score_of
from medclipsam.active.simulate import SimulationOptions, find_subjects, simulate
from medclipsam.active.strategies import SamplingOptions
from medclipsam.base.errors import InputError, OptionError
from medclipsam.evaluation.data import draw_cases, find_cases, read_case
from medclipsam.imaging import MedicalImage
from medclipsam.targets import TargetSet
from medclipsam.training import trainer
from medclipsam.training.ensemble import NetworkResult
from medclipsam.training.layers import class_mask
from medclipsam.training.options import TrainingOptions


class Eye:
    """Embeds a plane by its mean in each quarter."""

    identity = "eye"

    def preprocess(self, plane: np.ndarray) -> tuple[torch.Tensor, None]:
        half = plane.shape[0] // 2
        quarters = [plane[:half, :half], plane[:half, half:], plane[half:, :half], plane[half:, half:]]
        return torch.tensor([float(quarter.mean()) for quarter in quarters]), None

    def encode_images(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(inputs, dim=-1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_discs: Any) -> Path:
    """Discs in the paper's layout: 14 to train, 3 to test."""
    folder = tmp_path_factory.mktemp("data")
    discs = make_discs(tmp_path_factory.mktemp("drawn") / "studies")
    for split, count, first in (("train", 14, 0), ("test", 3, 500)):
        for kind in ("images", "masks"):
            (folder / "discs" / f"{split}_{kind}").mkdir(parents=True)
        for number in range(first, first + count):
            picture, mask = discs.draw(number)
            Image.fromarray(picture).save(folder / "discs" / f"{split}_images" / f"{number}.png")
            Image.fromarray(mask).save(folder / "discs" / f"{split}_masks" / f"{number}.png")
    tasks = {"disc": {"folder": "discs", "prompt": "breast tumour", "modality": "US", "labels": [1]}}
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    return folder


@pytest.fixture(scope="module")
def options(tiny: dict[str, Any]) -> SimulationOptions:
    known = TrainingOptions.options().keys()
    # how good the networks are is not looked at
    short = {**tiny, "epochs": 2, "cycles": 1, "keep": 1, "iterations": 3}
    training = TrainingOptions.from_mapping({key: value for key, value in short.items() if key in known})
    return SimulationOptions(
        strategies=("coverage", "random"), seeds=(3,), initial=3, batch=2, rounds=1, control=2, training=training
    )


def play(data: Path, out: Path, options: SimulationOptions) -> list[dict[str, Any]]:
    return simulate(data, out, options, Eye(), TargetSet.load())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def played(data: Path, tmp_path_factory: pytest.TempPathFactory, options: SimulationOptions) -> Path:
    """The folder of a simulation that has ended."""
    out = tmp_path_factory.mktemp("out")
    play(data, out, options)
    return out


def runs_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    files = [json.loads(file.read_text()) for file in (out / "runs").iterdir()]
    return {run["strategy"]: run["rounds"] for run in files}


def test_strategies_begin_alike_and_an_interrupted_simulation_goes_on(
    data: Path, played: Path, tmp_path: Path, options: SimulationOptions
) -> None:
    runs = runs_of(played)
    assert [each["labelled"] for each in runs["coverage"]] == [3, 5]
    assert runs["all"][0]["labelled"] == 12
    first = [{key: value for key, value in runs[name][0].items() if key != "seconds"} for name in options.strategies]
    assert first[0] == first[1]
    for run in runs.values():
        for each in run:
            assert 0 <= each["dice"] <= 1
            assert each["by_structure"].keys() == {"disc"}
            assert each["control_path_length"] >= 0
    # images of the control sample are never labelled
    labelled = {name for run in runs.values() for each in run for name in each["images"]}
    assert len(labelled) == 12

    out = tmp_path / "out"
    shutil.copytree(played, out)
    before = {file.name: file.stat().st_mtime_ns for file in (out / "runs").iterdir()}
    (out / "runs" / "random-3.json").unlink()
    again = {run["strategy"]: run["rounds"] for run in play(data, out, options)}
    after = {file.name: file.stat().st_mtime_ns for file in (out / "runs").iterdir()}
    assert {name for name in before if before[name] == after[name]} == {"all-3.json", "coverage-3.json"}
    assert [each["images"] for each in again["random"]] == [each["images"] for each in runs["random"]]
    assert [each["dice"] for each in again["random"]] == [each["dice"] for each in runs["random"]]

    with pytest.raises(InputError, match="holds runs with other options"):
        play(data, out, options.replace(batch=3))


def test_coverage_takes_what_is_least_like_the_first(data: Path, played: Path, tmp_path: Path) -> None:
    runs = runs_of(played)
    first, second = (each["images"] for each in runs["coverage"])
    cases = find_cases(data, TargetSet.load(), split="train")
    subjects, _ = find_subjects(cases, tmp_path / "labels")
    vectors = {each.name: embed(each.image, Eye()).astype(np.float16).astype(float) for each in subjects}  # type: ignore[arg-type]
    vectors = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    everything = runs["all"][0]["images"]
    chosen = list(first)
    for name in second[3:]:
        away = {
            other: min(1 - vectors[other] @ vectors[known] for known in chosen)
            for other in everything
            if other not in chosen
        }
        assert name == max(away, key=away.__getitem__)
        chosen.append(name)


def test_overlapping_structures_and_several_folders(data: Path, tmp_path: Path) -> None:
    cases = draw_cases(find_cases(data, TargetSet.load(), split="train"), 1, 0)
    twice = [*cases, dataclasses.replace(cases[0], task=dataclasses.replace(cases[0].task, name="again"))]
    (subject,), classes = find_subjects(twice, tmp_path)
    assert classes == {"disc": 1, "again": 2}
    truth = read_case(cases[0])[1]
    assert truth.any()
    layers = subject.example.layers(subject.image, 2)
    for index in (1, 2):
        np.testing.assert_array_equal(subject.truth.mask_of(index), truth)
        np.testing.assert_array_equal(class_mask(layers, index), truth)
    elsewhere = dataclasses.replace(cases[0], task=dataclasses.replace(cases[0].task, folder="elsewhere"))
    with pytest.raises(InputError, match="of one folder"):
        find_subjects([*cases, elsewhere], tmp_path)


def test_structures_that_overlap_are_learned_and_measured_whole(
    data: Path, tmp_path: Path, options: SimulationOptions
) -> None:
    tasks = yaml.safe_load((data / "tasks.yaml").read_text())["tasks"]
    shutil.copytree(data, tmp_path / "data")
    tasks["again"] = tasks["disc"]
    (tmp_path / "data" / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    for run in play(tmp_path / "data", tmp_path / "out", options.replace(strategies=("uncertainty",), go_on=True)):
        for each in run["rounds"]:
            assert each["by_structure"].keys() == {"disc", "again"}
            assert np.isfinite([each["dice"], each["control_dice"], each["control_path_length"]]).all()


def test_trainings_that_go_on_start_where_the_round_before_ended(
    data: Path, tmp_path: Path, options: SimulationOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def watched(examples: Any, plan: Any, given: TrainingOptions, folder: Path, *, start: Path | None = None) -> Path:
        calls.append((len(examples), given.epochs, start and start.name, folder.name))
        return trainer.train(examples, plan, given, folder, start=start)

    monkeypatch.setattr(simulation, "train", watched)
    play(data, tmp_path, options.replace(strategies=("uncertainty",), rounds=2, go_on=True))
    epochs = options.training.epochs
    assert epochs is not None
    (first, everything, one, two) = calls
    assert first[:3] == (3, epochs, None)
    assert everything[:3] == (12, 2 * epochs, first[3])
    assert one[:3] == (5, epochs, first[3])
    assert two[:3] == (7, epochs, one[3])


def test_too_few_images_and_wrong_options_are_refused(data: Path, tmp_path: Path, options: SimulationOptions) -> None:
    with pytest.raises(InputError, match=r"labels and controls 23 images; .* has 14 to train"):
        play(data, tmp_path, options.replace(batch=18))
    wrong: dict[str, Any]
    for wrong in ({"strategies": ("best",)}, {"rounds": 0}, {"seeds": ()}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            options.replace(**wrong)
    with pytest.raises(OptionError, match="'speed'"):
        SamplingOptions.from_mapping({"speed": "3"})


def test_a_score_names_the_planes_and_the_structures_found() -> None:
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[1, 0, 0] = 2
    result = NetworkResult(
        labels,
        np.zeros((3, 4, 4), np.float32),
        None,
        {"image": 3.0, "a": 1.0, "b": 2.0},
        plane_scores=np.array([0.1, 0.9, 0.5]),
    )
    score = score_of(result, {1: "a", 2: "b"}, 0.25)
    assert (score.total, score.classes, score.disagreement) == (3.0, {"a": 1.0, "b": 2.0}, 0.25)
    assert (score.planes, score.found) == ((1, 2, 0), ("b",))


def test_a_volume_is_embedded_from_eight_planes() -> None:
    stack = np.zeros((20, 8, 8), np.uint8)
    stack[:, :4, :4] = np.arange(20, dtype=np.uint8)[:, None, None] * 10 + 1
    image = MedicalImage.from_array(stack)
    seen: list[int] = []

    class Counting(Eye):
        def encode_images(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(len(inputs))
            return super().encode_images(inputs)

    vector = embed(image, Counting())  # type: ignore[arg-type]
    assert seen == [8]
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert vector[0] == pytest.approx(1)
