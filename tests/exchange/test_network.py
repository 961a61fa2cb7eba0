"""Networks that leave: the bundle run by MONAI and the ONNX file run by ONNX Runtime draw the mask that we draw."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medclipsam.base.errors import InputError, TrainingError
from medclipsam.cli.main import main
from medclipsam.demo.dicom import xray
from medclipsam.exchange.network import export_bundle, export_onnx, model_card, segment
from medclipsam.imaging import read_image
from medclipsam.imaging.dicom_seg import read_masks, read_segmentation
from medclipsam.imaging.label_map import ValueNames, read_label_map
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble
from medclipsam.training.examples import Example, PreparedImage
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import make_plan
from medclipsam.training.store import Network as StoredNetwork
from medclipsam.training.store import NetworkStore
from tests.training.untrained import untrained

CLASSES = {"disc": 1, "square": 2}
LABELS = {"disc": 7, "square": 203}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(4):
        picture = rng.integers(0, 90, (48, 56), np.uint8)
        labels = np.zeros((48, 56), np.uint8)
        picture[8:20, 10 + index : 24], labels[8:20, 10 + index : 24] = 220, 1
        picture[28:40, 30:44], labels[28:40, 30:44] = 160, 2
        Image.fromarray(picture).save(folder / f"{index}.png")
        Image.fromarray(labels).save(folder / f"{index}-mask.png")
    return folder


def _published(work: Path, pictures: Path, multilabel: str) -> Path:
    """Make a workspace with a published network of random, opinionated members, which all draw something else."""
    examples = [
        Example(str(n), pictures / f"{n}.png", pictures / f"{n}-mask.png", "final", modality="US") for n in range(4)
    ]
    options = TrainingOptions(
        device="cpu",
        epochs=4,
        cycles=2,
        keep=2,
        base_filters=4,
        max_filters=16,
        max_side=48,
        max_patch=32,
        multilabel=multilabel,
    )
    plan = make_plan(examples, CLASSES, options)
    made = untrained(plan, work / "made", members=2)
    about = {
        **{
            "name": "network",
            "status": "published",
            "reason": "It is the first.",
            "labels": LABELS,
            "classes": CLASSES,
        },
        **{"modality": "US", "parent": None, "metrics": {"verdict": {"child": 0.75}}, "options": {"epochs": 4}},
        "data": {"hash": "abc", "training": {"final": 4, "original": 0}, "validation": 1, "left_out": {"empty": 2}},
        "identity": Ensemble.load(made, device="cpu").identity,
    }
    NetworkStore(work / "networks").add(made, about)
    return work


@pytest.fixture(scope="module")
def workspace(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _published(tmp_path_factory.mktemp("workspace"), pictures, "never")


@pytest.fixture(scope="module")
def overlapping(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredNetwork:
    """A network whose classes overlap."""
    found = NetworkStore(_published(tmp_path_factory.mktemp("overlapping"), pictures, "always") / "networks").current()
    assert found is not None
    return found


@pytest.fixture
def network(workspace: Path) -> StoredNetwork:
    found = NetworkStore(workspace / "networks").current("network")
    assert found is not None
    return found


def _ours(network: StoredNetwork, picture: Path) -> np.ndarray:
    """The mask as the server draws it, in the order of the file."""
    image = read_image(picture, modality="US")
    classes = Ensemble.load(network.folder, device="cpu").predict(image, uncertainty="none").labels
    table = np.array([0, LABELS["disc"], LABELS["square"]], np.uint8)
    return image.to_native(table[classes])


def test_monai_runs_the_bundle_and_draws_our_mask(network: StoredNetwork, pictures: Path, tmp_path: Path) -> None:
    bundle = export_bundle(network, tmp_path / "bundle")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "inference.json")]
    command += ["--meta_file", str(bundle / "configs" / "metadata.json"), "--bundle_root", str(bundle)]
    command += ["--image", str(pictures / "1.png"), "--output", str(tmp_path / "mask.nii.gz"), "--modality", "US"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = _ours(network, pictures / "1.png")
    assert ours.any()
    assert set(np.unique(ours)) <= {0, *LABELS.values()}
    assert np.array_equal(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).T, ours)


@pytest.mark.parametrize("which", ["network", "overlapping"])
def test_onnx_runtime_draws_our_mask(
    which: str, request: pytest.FixtureRequest, pictures: Path, tmp_path: Path
) -> None:
    """By what the file says of itself alone: windows of the patch, blended, made probabilities, mean of the members."""
    import onnx
    import onnxruntime
    from monai.inferers import sliding_window_inference

    network = request.getfixturevalue(which)
    path = export_onnx(network, tmp_path / "network.onnx")
    about = {each.key: json.loads(each.value) for each in onnx.load(str(path)).metadata_props}
    assert about["labels"] == LABELS
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = read_image(pictures / "2.png", modality="US")
    ensemble = Ensemble.load(network.folder, device="cpu")
    prepared = PreparedImage(image, ensemble.plan)
    inputs = prepared.plane(0)[None]
    probabilities: Any = 0
    for member in range(ensemble.members):
        logits = sliding_window_inference(
            inputs,
            tuple(about["plan"]["patch_size"]),
            4,
            lambda x, member=member: torch.from_numpy(session.run(None, {"image": x.numpy()})[0][member]),
            overlap=0.5,
            mode="gaussian",
        )
        logits = torch.as_tensor(logits)
        each = logits.sigmoid() if about["plan"]["multilabel"] else logits.softmax(dim=1)
        probabilities = probabilities + each.numpy() / ensemble.members
    found = ensemble.predict(image, uncertainty="none", probabilities=True, small_parts=True)
    assert found.probabilities is not None
    probabilities = prepared.restore(torch.from_numpy(probabilities)).numpy()
    if about["plan"]["multilabel"]:
        np.testing.assert_allclose(probabilities, found.probabilities[:, 1:], atol=2e-3)
        for index in CLASSES.values():
            assert np.mean((probabilities[:, index - 1] > 0.5) != found.mask(index)) < 2e-3
        assert (found.mask(1) & found.mask(2)).any()
    else:
        np.testing.assert_allclose(probabilities, found.probabilities, atol=2e-3)
        assert np.mean(probabilities.argmax(axis=1) != found.labels) < 2e-3
    assert len(np.unique(found.labels)) == 3


def test_a_networks_probabilities_are_a_fractional_segmentation(network: StoredNetwork, tmp_path: Path) -> None:
    models = export_bundle(network, tmp_path / "bundle") / "models"
    (tmp_path / "film.dcm").write_bytes(xray("DX", 1, size=64).contents()[0])
    image = read_image(tmp_path / "film.dcm")
    found = Ensemble.load(network.folder, device="cpu").predict(image, uncertainty="none", probabilities=True)
    assert found.probabilities is not None
    segment(str(models), str(tmp_path / "film.dcm"), str(tmp_path / "seg.dcm"))
    masks, segments = read_masks(tmp_path / "seg.dcm", image, lambda each: each.label or 0)
    assert [(label, each.name, each.algorithm) for label, each in segments] == [
        (7, "disc", "AUTOMATIC"),
        (203, "square", "AUTOMATIC"),
    ]
    for name, index in CLASSES.items():
        assert np.abs(masks[LABELS[name]] - found.probabilities[:, index].astype(np.float32)).max() <= 0.51 / 255
    segment(str(models), str(tmp_path / "film.dcm"), str(tmp_path / "map.dcm"), seg_type="LABELMAP")
    flat, _ = read_segmentation(tmp_path / "map.dcm", image, lambda each: each.label or 0)
    assert np.array_equal(flat, np.array([0, LABELS["disc"], LABELS["square"]])[found.labels])


def test_a_bundle_draws_classes_that_overlap_whole(overlapping: StoredNetwork, pictures: Path, tmp_path: Path) -> None:
    bundle = export_bundle(overlapping, tmp_path / "bundle")
    outputs = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert (outputs["num_channels"], outputs["channel_def"]) == (2, {"0": "disc", "1": "square"})
    models = str(bundle / "models")
    image = read_image(pictures / "1.png", modality="US")
    found = Ensemble.load(overlapping.folder, device="cpu").predict(image, uncertainty="none")
    assert (found.mask(1) & found.mask(2)).any()
    segment(models, str(pictures / "1.png"), str(tmp_path / "mask.seg.nrrd"), modality="US")
    label, _ = read_label_map(tmp_path / "mask.seg.nrrd", image, ValueNames())
    for name, index in CLASSES.items():
        assert label.names[name] == LABELS[name]
        assert np.array_equal(label.mask(name), found.mask(index))
    # a file of one class for each pixel has what the server answers
    segment(models, str(pictures / "1.png"), str(tmp_path / "mask.nii.gz"), modality="US")
    ours = _ours(overlapping, pictures / "1.png")
    assert np.array_equal(np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).T, ours)

    (tmp_path / "film.dcm").write_bytes(xray("DX", 1, size=64).contents()[0])
    film = read_image(tmp_path / "film.dcm")
    found = Ensemble.load(overlapping.folder, device="cpu").predict(film, uncertainty="none")
    segment(models, str(tmp_path / "film.dcm"), str(tmp_path / "seg.dcm"), seg_type="BINARY")
    masks, _ = read_masks(tmp_path / "seg.dcm", film, lambda each: each.label or 0)
    for name, index in CLASSES.items():
        assert np.array_equal(masks[LABELS[name]] > 0, found.mask(index))
    with pytest.raises(InputError, match="overlap"):
        segment(models, str(tmp_path / "film.dcm"), str(tmp_path / "map.dcm"), seg_type="LABELMAP")
    assert not (tmp_path / "map.dcm").exists()


def test_the_bundle_is_whole_and_its_card_says_what_is_known(network: StoredNetwork, tmp_path: Path) -> None:
    facts = {"labelled": 9, "by_reader": {"a": 4, "b": 5}, "approved": 3, "agreement": {"dice": 0.91, "pairs": 2}}
    bundle = export_bundle(network, tmp_path / "bundle", onnx=True, facts=facts)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    # what MONAI's schema of metadata requires
    required = {"version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description"}
    required |= {"required_packages_version", "authors", "copyright", "network_data_format"}
    assert required <= metadata.keys()
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "disc",
        "2": "square",
    }
    assert (bundle / "models" / "model.onnx").is_file()
    card = (bundle / "docs" / "README.md").read_text()
    for known in (network.identity, "It is the first.", "disc = 7", "0.750", "2 readers", "0.910", "2 (empty)", "US"):
        assert known in card
    assert "not known" in model_card(StoredNetwork(tmp_path, "x", 1, "unvalidated", "", {"a": 1}, {"a": 1}))


def test_bad_input_is_refused_and_writes_nothing(network: StoredNetwork, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there already"):
        export_bundle(network, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        export_bundle(network, tmp_path / "no" / "bundle")
    with pytest.raises(InputError, match=r"\.onnx"):
        export_onnx(network, tmp_path / "network.pb")
    bundle = export_bundle(network, tmp_path / "bundle")
    models = bundle / "models"
    with pytest.raises(InputError, match="No image"):
        segment(str(models), "", str(tmp_path / "mask.nii.gz"))
    (models / ENSEMBLE_FILE).write_bytes(b"nothing")
    with pytest.raises(TrainingError):
        segment(str(models), str(pictures / "1.png"), str(tmp_path / "mask.nii.gz"))
    (models / "labels.json").write_text("{}")
    with pytest.raises(InputError, match="classes"):
        segment(str(models), str(pictures / "1.png"), str(tmp_path / "mask.nii.gz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_the_command_exports_what_is_served(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(workspace)]
    assert main(["train", "export", str(tmp_path / "bundle"), *where, "--with-onnx"]) == 0
    assert (tmp_path / "bundle" / "models" / "model.onnx").is_file()
    assert main(["train", "export", str(tmp_path / "net.onnx"), *where, "--format", "onnx", "--version", "1"]) == 0
    assert (tmp_path / "net.onnx").is_file()
    capsys.readouterr()
    assert main(["train", "export", str(tmp_path / "other"), *where, "--name", "network_other"]) == 2
    assert "--version" in capsys.readouterr().err
