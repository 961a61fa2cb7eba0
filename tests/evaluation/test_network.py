"""A trained network measured as the pipeline is, through the command."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.cli.main import main
from medclipsam.evaluation.predictors import NetworkPredictor
from medclipsam.evaluation.summary import certainty
from medclipsam.imaging import MedicalImage
from medclipsam.targets import TargetSet
from medclipsam.training.ensemble import Ensemble, NetworkResult
from medclipsam.training.examples import Example
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import make_plan
from medclipsam.training.trainer import train

OPTIONS = TrainingOptions(
    device="cpu",
    epochs=4,
    iterations=12,
    cycles=2,
    keep=1,
    base_filters=8,
    max_filters=16,
    max_side=32,
    max_patch=32,
    batch_size=4,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six pictures of a bright disc in the layout that is measured; the last holds none."""
    root = tmp_path_factory.mktemp("data")
    y, x = np.mgrid[:40, :40]
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / "discs" / f"test_{kind}").mkdir(parents=True)
    for index in range(6):
        disc = (y - rng.integers(12, 28)) ** 2 + (x - rng.integers(12, 28)) ** 2 < 60
        disc &= index < 5
        picture = (80 + 120 * disc + rng.normal(0, 8, disc.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / "discs" / "test_images" / f"{index}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "discs" / "test_masks" / f"{index}.png")
    task = {"folder": "discs", "prompt": "breast tumour", "modality": "US"}
    (root / "tasks.yaml").write_text(yaml.safe_dump({"tasks": {"disc": task}}))
    return root


@pytest.fixture(scope="module")
def network(data, tmp_path_factory):
    folder = data / "discs"
    examples = [
        Example(str(index), folder / f"test_images/{index}.png", folder / f"test_masks/{index}.png", "final", "US")
        for index in range(6)
    ]
    plan = make_plan(examples, {"disc": 1}, OPTIONS)
    return train(examples, plan, OPTIONS, tmp_path_factory.mktemp("network") / "net")


def test_the_command_measures_a_network(data, network, tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["evaluate", "run", str(data), "--out", str(out), "--network", str(network), "--draws", "100"]) == 0
    assert "disc" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert np.mean([row["dice"] for row in rows if row["present"]]) > 0.8
    counted = np.sum([row["calibration"] for row in rows], axis=0)
    assert counted[:, 0].sum() == 6 * 40 * 40
    task = json.loads((out / "summary.json").read_text())["tasks"]["disc"]
    assert task["ece"] == pytest.approx(np.abs(counted[:, 1] - counted[:, 2]).sum() / counted[:, 0].sum())
    assert "Certainty" in (out / "report.md").read_text()
    identity = json.loads((out / "run.json").read_text())["predictor"]
    assert identity["network"] == Ensemble.load(network, device="cpu").identity


@pytest.mark.parametrize("extra", [["--sensitivity"], ["--ladder"]])
def test_what_a_network_cannot_do_is_refused(data, network, tmp_path, capsys, extra):
    command = ["evaluate", "run", str(data), "--out", str(tmp_path / "out"), "--network", str(network), *extra]
    assert main(command) == 2
    assert "--network" in capsys.readouterr().err


def test_a_folder_without_a_network_is_told(data, tmp_path, capsys):
    command = ["evaluate", "run", str(data), "--out", str(tmp_path / "out"), "--network", str(tmp_path)]
    assert main(command) == 2
    assert "holds no network" in capsys.readouterr().err


class _Answer:
    """An ensemble of two classes that answers the same to every image."""

    class plan:
        classes = {"left lung": 1, "heart": 2}  # noqa: RUF012

    def predict(self, image, **options):
        shape = (image.n_planes, *image.plane_shape)
        labels = np.zeros(shape, np.uint8)
        labels[..., 0], labels[..., 1] = 1, 2
        probabilities = np.stack([labels == index for index in range(3)], axis=1).astype(np.float16)

        scores = {"image": 9.0, "left lung": 1.0, "heart": 2.0}
        # the lung goes on beneath the heart
        beneath = np.where(labels == 2, 1, 0).astype(np.uint8)[None]
        return NetworkResult(labels, None, probabilities, scores, scores, beneath=beneath)


def test_a_text_chooses_the_class_by_its_target():
    predictor = NetworkPredictor(_Answer(), TargetSet.load())  # type: ignore[arg-type]
    image = MedicalImage.from_array(np.zeros((4, 4), np.uint8))
    left, heart = predictor.predict(image, "Left lung"), predictor.predict(image, "the heart")
    assert left.mask[0, 0].tolist() == [True, True, False, False]
    assert heart.mask[0, 0].tolist() == [False, True, False, False]
    assert (left.uncertainty, heart.uncertainty) == (1.0, 2.0)
    np.testing.assert_array_equal(heart.probability, heart.mask)
    with pytest.raises(InputError, match="left lung, heart"):
        predictor.predict(image, "spleen")


def test_certainty_is_pooled_over_pixels_and_ranked_over_images():
    rows = [
        {"dice": 1 - error, "uncertainty": score, "calibration": [[10, 9.0, 8], [10, 10.0, 10]]}
        for error, score in ((0.1, 1.0), (0.2, 3.0), (0.9, 2.0), (1.0, 9.0))
    ]
    made = certainty(rows)
    assert made["ece"] == pytest.approx(4 * 1.0 / 80)
    assert made["uncertainty_rank"] == pytest.approx(0.8)
    assert certainty([{"dice": 1.0}]) == {"ece": None, "uncertainty_rank": None}
