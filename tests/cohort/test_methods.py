"""A trained network as a cohort's method, and masks as DICOM SEG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch

from medclipsam.active import LEDGER_FILE
from medclipsam.active.ledger import Ledger
from medclipsam.base.errors import InputError, TrainingError
from medclipsam.cohort.command import Cohort, folder_source
from medclipsam.cohort.methods import Made, describe_request, load_method, network_request, own_request
from medclipsam.cohort.rounds import _put_mask, feed_rounds
from medclipsam.cohort.store import Run
from medclipsam.cohort.work import Task, Worker, WorkerSettings
from medclipsam.demo.dicom import phantom_series
from medclipsam.imaging import MedicalImage, read_image, read_mask
from medclipsam.imaging.dicom_seg import read_seg_label_map
from medclipsam.imaging.label_map import is_same_label, read_kept_label
from medclipsam.imaging.masks import flatten
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble, write_members
from medclipsam.training.examples import Example
from medclipsam.training.network import Network
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import make_plan
from medclipsam.training.store import NetworkStore

LABELS = {"disc": 7, "square": 9}


@pytest.fixture
def network(write_studies: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a network of two classes with random weights."""
    from PIL import Image

    studies = write_studies(3, "training")
    rng = np.random.default_rng(0)
    examples = []
    for number in range(3):
        side = 32
        Image.fromarray(rng.integers(0, 255, (side, side), np.uint8)).save(studies / f"im{number:04d}.png")
        mask = studies / f"mask{number}.png"
        Image.fromarray(rng.integers(0, 3, (side, side), np.uint8)).save(mask)
        examples.append(Example(str(number), studies / f"im{number:04d}.png", mask, "final", "US"))
    options = TrainingOptions(
        device="cpu", epochs=2, iterations=1, cycles=1, keep=1, base_filters=8, max_filters=8, max_side=32, max_patch=32
    )
    plan = make_plan(examples, {"disc": 1, "square": 2}, options)
    folder = tmp_path / "net"
    folder.mkdir()
    plan.write(folder)
    torch.manual_seed(0)
    write_members([Network(plan).state_dict()], folder / ENSEMBLE_FILE)
    return folder


def one(run: Run) -> list[dict[str, Any]]:
    """Do the first study of a run, and put it into the table."""
    run.extend(WorkerSettings().open(run.source))
    (study, *_) = run.studies(0)
    run.work(0)
    worker = Worker(run, "w", WorkerSettings())
    assert worker.do(Task(0, 0, study, 1)).status == "done"
    assert run.finish(0, 1)
    return worker.results(Task(0, 0, study, 1))[0]


def test_a_network_draws_with_its_labels_and_feeds_rounds_it_is_published_in(
    network: Path, write_studies: Callable[..., Path], tmp_path: Path
) -> None:
    about = {
        **{"name": "network", "status": "published", "reason": "", "labels": LABELS},
        **{"classes": {"disc": 1, "square": 2}, "identity": Ensemble.load(network, device="cpu").identity},
    }
    workspace = tmp_path / "workspace"
    published = NetworkStore(workspace / "networks").add(network, about, expected=None)
    assert published is not None
    studies = write_studies(1)
    request = describe_request(network_request(published.folder), ("nifti",), "US")
    run = Run.create(tmp_path / "out", request, folder_source(studies))
    rows = one(run)
    image = read_image(studies / "im0000.png", modality="US")
    alone = Ensemble.load(published.folder, device="cpu").predict(image)
    labels = read_mask(run.folder / rows[0]["mask"], image)
    np.testing.assert_array_equal(labels, np.array([0, 7, 9], np.uint8)[alone.labels])
    assert {row["finding"]: row["label"] for row in rows} == LABELS
    for row in rows:
        assert row["voxels"] == np.count_nonzero(labels == row["label"])
        assert row["uncertainty"] == alone.scores[row["finding"]]
    assert feed_rounds(run, workspace).scores == 1
    ledger = Ledger(workspace / LEDGER_FILE)
    score = ledger.scores()["im0000"]
    ledger.close()
    assert score.total == alone.scores["image"]
    assert score.classes == {name: alone.scores[name] for name in LABELS}
    with pytest.raises(InputError, match="published"):
        feed_rounds(run, tmp_path / "another")


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        network_request(tmp_path)


class TwoBoxes:
    """Draws two boxes, and a third finding that is absent."""

    def __init__(self, device: str) -> None:
        pass

    def segment(self, image: MedicalImage, text: str) -> Made:
        labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
        labels[:, 10:20, 5:25], labels[0, 30:44, 8:16] = 1, 2
        names = {"left": 1, "right": 2, "nothing": 3}
        findings = [{"finding": name, "label": label, "found": label < 3} for name, label in names.items()]
        return Made(labels, names, findings, {"weights": '{"net": {"name": "n", "sha256": "0123456789abcdef0"}}'})


class OneInTheOther:
    """Draws a box in another one."""

    def __init__(self, device: str) -> None:
        pass

    def segment(self, image: MedicalImage, text: str) -> Made:
        masks = {value: np.zeros((image.n_planes, *image.plane_shape), bool) for value in (1, 2)}
        masks[1][:, 10:40, 5:45], masks[2][0, 20:30, 8:16] = True, True
        labels, beneath = flatten(masks.items(), masks[1].shape)
        names = {"left": 1, "right": 2}
        findings = [{"finding": name, "label": label, "found": True} for name, label in names.items()]
        about = {"weights": '{"net": {"name": "n", "sha256": "0123456789abcdef0"}}'}
        return Made(labels, names, findings, about, beneath)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder with a chest CT of four planes."""
    (phantom,) = [each for each in phantom_series(1, size=64, n_planes=4) if each.name.startswith("chest-ct")]
    folder = tmp_path / "studies"
    folder.mkdir()
    for number, content in enumerate(phantom.contents()):
        (folder / f"{number}.dcm").write_bytes(content)
    return folder


def test_findings_that_overlap_are_written_whole(studies: Path, tmp_path: Path) -> None:
    request = describe_request(own_request("tests.cohort.test_methods:OneInTheOther"), ("nifti", "seg"))
    run = Run.create(tmp_path / "out", request, folder_source(studies))
    row = one(run)[0]
    image = read_image(studies)
    made = OneInTheOther("cpu").segment(image, "")
    assert row["mask"].endswith(".seg.nrrd")
    whole = made.label_map(image)
    assert is_same_label(read_kept_label(run.folder / row["mask"], image, {}), whole)
    found, _ = read_seg_label_map(run.folder / row["seg"], image, lambda segment: segment.label or 0)
    assert is_same_label(found, whole)
    # as a pre-annotation of the studies
    assert _put_mask(run, row["image"], row["mask"])
    (kept,) = (studies / "labels" / "original").iterdir()
    assert kept.name == f"{row['image']}.seg.nrrd"
    assert not _put_mask(run, row["image"], row["mask"])


def test_a_dicom_seg_holds_the_mask_and_is_the_same_instance_again(studies: Path, tmp_path: Path) -> None:
    request = describe_request(own_request("tests.cohort.test_methods:TwoBoxes"), ("nifti", "seg"))
    run = Run.create(tmp_path / "out", request, folder_source(studies))
    first = one(run)[0]
    written = pydicom.dcmread(run.folder / first["seg"])
    assert [item.SegmentLabel for item in written.SegmentSequence] == ["left", "right", "nothing"]
    mask = read_mask(run.folder / first["mask"], read_image(studies))
    frames = written.pixel_array.reshape(-1, *written.pixel_array.shape[-2:])
    counts: dict[int, int] = {}
    for frame, item in zip(frames, written.PerFrameFunctionalGroupsSequence, strict=True):
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        counts[number] = counts.get(number, 0) + int(frame.sum())
    assert {number: count for number, count in counts.items() if count} == {
        1: np.count_nonzero(mask == 1),
        2: np.count_nonzero(mask == 2),
    }
    assert np.count_nonzero(mask == 1) == 4 * 10 * 20
    again = Worker(run, "x", WorkerSettings()).results(Task(0, 0, run.studies(0)[0], 2))[0][0]
    assert pydicom.dcmread(run.folder / again["seg"]).SOPInstanceUID == written.SOPInstanceUID
    other = Run.create(tmp_path / "other", {**request, "modality": "CT"}, folder_source(studies))
    assert pydicom.dcmread(other.folder / one(other)[0]["seg"]).SOPInstanceUID != written.SOPInstanceUID


@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
def test_the_kind_of_a_dicom_seg_is_chosen(kind: Any, network: Path, studies: Path, tmp_path: Path) -> None:
    request = describe_request(network_request(network), ("seg",), seg_type=kind)
    run = Run.create(tmp_path / "out", request, folder_source(studies))
    row = one(run)[0]
    path = run.folder / row["seg"]
    image = read_image(studies)
    made = Ensemble.load(network, device="cpu").predict(image, probabilities=True)
    written = highdicom.seg.segread(path)
    if kind == "LABELMAP":
        assert written.SegmentationType == "LABELMAP"
        found, _ = read_seg_label_map(path, image, lambda segment: segment.label or 0)
        np.testing.assert_array_equal(found.values, np.array([0, 1, 2], np.uint8)[made.labels])
        return
    assert written.SegmentationType == "FRACTIONAL"
    frames = written.pixel_array / written.MaximumFractionalValue
    places = [
        (
            item.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID,
        )
        for item in written.PerFrameFunctionalGroupsSequence
    ]
    # the slices from feet to head, as the planes of the image are
    slices = sorted(map(pydicom.dcmread, studies.iterdir()), key=lambda each: float(each.ImagePositionPatient[2]))
    uids = [str(each.SOPInstanceUID) for each in slices]
    assert made.probabilities is not None
    for frame, (segment, uid) in zip(frames, places, strict=True):
        np.testing.assert_allclose(frame, made.probabilities[uids.index(uid), segment], atol=1 / 255)


def test_a_text_has_no_probabilities_to_write(tmp_path: Path) -> None:
    request = describe_request({"kind": "zero_shot"}, ("seg",), seg_type="FRACTIONAL")
    with pytest.raises(InputError, match="BINARY and LABELMAP"):
        Cohort(tmp_path, request, folder_source(tmp_path))


def test_weights_that_changed_meanwhile_are_refused(network: Path) -> None:
    request = network_request(network)
    with pytest.raises(InputError, match="not the one"):
        load_method({**request, "identity": "another"}, "cpu")
