"""Studies on a real PACS: what `make demo-pacs` starts, and what the server does with it."""

import io
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nrrd
import numpy as np
import psutil
import pydicom
import pytest
import requests
import SimpleITK
from monailabel.config import settings
from pydicom import uid

from medclipsam.demo.dicom import DicomPhantom, ultrasound, volume, xray
from medclipsam.demo.pacs import Orthanc
from medclipsam.dicomweb.options import MODALITIES
from medclipsam.server.learning.trainer import candidates
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.targets import TargetSet
from medclipsam.training.run import train_network
from medclipsam.training.selection import Criteria, select
from medclipsam.training.settings import Request
from medclipsam.training.split import Split
from medclipsam.training.store import NetworkStore

from .conftest import Server


def test_orthanc_listens_on_this_machine_only_and_asks_for_a_password(orthanc: Orthanc) -> None:
    listening = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == "LISTEN" and connection.laddr.port == orthanc.port
    ]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    others = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    for address in others:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, orthanc.port), timeout=5)
    assert requests.get(f"{orthanc.url}/studies", timeout=10).status_code == 401
    assert (orthanc.folder / "orthanc.json").stat().st_mode & 0o077 == 0


def _series(orthanc: Orthanc, **conditions: str) -> list[pydicom.Dataset]:
    with orthanc.session() as session:
        answer = session.get(f"{orthanc.url}/series", params=conditions, timeout=30)
    return [pydicom.Dataset.from_json(entry) for entry in answer.json()]


def _instances(orthanc: Orthanc, series: str) -> list[pydicom.Dataset]:
    """Return the instances of a series as they are stored, the first stored first."""
    found = []
    with orthanc.session() as session:
        query = {"Level": "Instance", "Query": {"SeriesInstanceUID": series}}
        for name in session.post(f"{orthanc.root}/tools/find", json=query, timeout=30).json():
            found.append(pydicom.dcmread(io.BytesIO(session.get(f"{orthanc.root}/instances/{name}/file").content)))
    return sorted(found, key=lambda data: int(data.InstanceNumber))


def _segmentations(orthanc: Orthanc, image: str) -> list[pydicom.Dataset]:
    found = [
        each
        for header in _series(orthanc, Modality="SEG")
        for each in _instances(orthanc, str(header.SeriesInstanceUID))
    ]
    return [data for data in found if data.ReferencedSeriesSequence[0].SeriesInstanceUID == image]


def _save(server: Server, image: str, file: Path, tag: str = "final", **params: Any) -> requests.Response:
    with file.open("rb") as content:
        return requests.put(
            f"{server.url}/datastore/label",
            params={"image": image, "tag": tag},
            data={"params": json.dumps(params)},
            files={"label": (file.name, content)},
            timeout=120,
        )


def _label(server: Server, image: str, place: Path) -> np.ndarray:
    answer = requests.get(f"{server.url}/datastore/label", params={"label": image, "tag": "final"}, timeout=120)
    assert answer.status_code == 200, answer.text
    place.write_bytes(answer.content)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(place))


# Phantom, text, structure in the truth, least Dice of the first mask on the plane that was asked for; None where the
# demo's models know nothing of it.
CASES = {
    "brain-mri-1": ("brain", "brain", 0.5),
    "chest-ct-1": ("both lungs", "lungs", 0.7),
    "chest-xray-1": ("both lungs", "lungs", 0.7),
    "film": ("both lungs", "lungs", 0.7),
    "mammogram": ("dark lung fields", None, None),
    "breast-us-1": ("breast tumour", "breast tumour", 0.5),
    "breast-us-loop-1": ("breast tumour", "breast tumour", 0.5),
}
# Those whose slices have places in the patient, which dcmqi needs.
PLACED = ("brain-mri-1", "chest-ct-1")


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_becomes_a_corrected_label_in_the_pacs_and_comes_back(
    name: str, pacs_server: Server, orthanc: Orthanc, pacs_phantoms: dict[str, DicomPhantom], tmp_path: Path
) -> None:
    text, structure, least = CASES[name]
    phantom = pacs_phantoms[name]
    image = phantom.series_uid
    truth = phantom.masks[structure] if structure else None
    plane = int(truth.sum(axis=(1, 2)).argmax()) if truth is not None else 0
    answer = pacs_server.infer(
        "text_prompt",
        image,
        output="image",
        text=text,
        planes=str(plane),
        client_id="reader",
        result_extension=".nii.gz",
    )
    assert answer.status_code == 200, answer.text
    file = tmp_path / "mask.nii.gz"
    file.write_bytes(answer.content)
    mask = SimpleITK.ReadImage(file)
    voxels = SimpleITK.GetArrayFromImage(mask)
    if truth is not None:
        found = voxels[plane] > 0
        assert 2 * (truth[plane] & found).sum() / (truth[plane].sum() + found.sum()) > least

    # a person takes a piece away and adds another structure
    label = int(voxels.max()) or 13
    voxels[plane, :40] = 0
    voxels[plane, -30:-20, 10:30] = 18
    names = {"label_names": {text: label, "skull": 18}}
    for values in (voxels, np.where(voxels == 18, 0, voxels)):
        edited = SimpleITK.GetImageFromArray(values)
        edited.CopyInformation(mask)
        SimpleITK.WriteImage(edited, file)
        saved = _save(pacs_server, image, file, client_id="reader", **names)
        assert saved.status_code == 200, saved.text
        assert np.array_equal(_label(pacs_server, image, tmp_path / "back.nii.gz"), values)

    first, second = _segmentations(orthanc, image)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert second.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    for stored, values in ((first, voxels), (second, np.where(voxels == 18, 0, voxels))):
        segments = {int(item[0x0071, 0x1001].value): int(item.SegmentNumber) for item in stored.SegmentSequence}
        assert set(segments) == {label, 18}
        path = tmp_path / "seg.dcm"
        stored.save_as(path)
        _check_valid(path)
        sources = [str(source.SOPInstanceUID) for source in phantom.files]
        for value, number in segments.items():
            expected = values == value
            assert np.array_equal(_by_highdicom(path, number, sources, len(expected)), expected)
        _compare_with_itk(path, stored, segments, values)
        if name in PLACED:
            _compare_with_dcmqi(path, segments, values, mask, tmp_path)


def _check_valid(path: Path) -> None:
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    found = subprocess.run([validator, str(path)], capture_output=True, text=True, check=False).stderr
    assert "Error" not in found, found


def _by_highdicom(path: Path, number: int, sources: list[str], frames: int) -> np.ndarray:
    read = highdicom.seg.segread(path)
    options: dict[str, Any] = {
        "segment_numbers": [number],
        "assert_missing_frames_are_empty": True,
        "ignore_spatial_locations": True,
    }
    if len(sources) == 1 and frames > 1:
        return read.get_pixels_by_source_frame(sources[0], list(range(1, frames + 1)), **options)[..., 0] > 0
    return read.get_pixels_by_source_instance(sources, **options)[..., 0] > 0


def _compare_with_itk(path: Path, stored: pydicom.Dataset, segments: dict[int, int], values: np.ndarray) -> None:
    """Hold the frames that SimpleITK reads against the label map; what each is of stands in the header."""
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).reshape(-1, *values.shape[1:])
    groups = stored.PerFrameFunctionalGroupsSequence
    assert len(frames) == len(groups)
    seen = 0
    labels = {number: label for label, number in segments.items()}
    for frame, group in zip(frames, groups, strict=True):
        label = labels[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        seen += int((frame > 0).sum())
        assert any(np.array_equal(frame > 0, plane == label) for plane in values)
    assert seen == np.isin(values, list(segments)).sum()


def _compare_with_dcmqi(
    path: Path, segments: dict[int, int], values: np.ndarray, image: SimpleITK.Image, place: Path
) -> None:
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [str(program), "--inputDICOM", str(path), "--outputDirectory", str(place), "--prefix", "dcmqi"]
    subprocess.run([*command, "--outputType", "nrrd"], capture_output=True, check=True)
    for label, number in segments.items():
        read = SimpleITK.ReadImage(place / f"dcmqi-{number}.nrrd")
        # dcmqi makes a volume of the slices that the segmentation has
        expected = SimpleITK.GetImageFromArray((values == label).astype(np.uint8))
        expected.CopyInformation(image)
        there = SimpleITK.GetArrayFromImage(
            SimpleITK.Resample(read, expected, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
        )
        assert np.array_equal(there > 0, values == label)
    for left in place.glob("dcmqi-*"):
        left.unlink()


def _everything(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]
    return found


def test_the_pacs_lists_what_is_finished(pacs_server: Server, orthanc: Orthanc) -> None:
    counts = requests.get(f"{pacs_server.url}/datastore/", timeout=60).json()
    everything = _everything(pacs_server)
    series = {entry["image"]["info"]["SeriesInstanceUID"] for entry in everything.values()}
    assert series == {str(each.SeriesInstanceUID) for each in _series(orthanc) if each.Modality in MODALITIES}
    assert counts["total"] == len(everything)
    assert counts["completed"] == sum("final" in entry["labels"] for entry in everything.values())


def test_pictures_of_pydicom_are_fetched_as_they_are_stored(pacs_server: Server, orthanc: Orthanc) -> None:
    stored = {
        str(data.SOPInstanceUID): data.file_meta.TransferSyntaxUID
        for header in _series(orthanc)
        if header.Modality in MODALITIES
        for data in _instances(orthanc, str(header.SeriesInstanceUID))
    }
    assert {uid.JPEG2000, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit} <= set(stored.values())
    fetched: dict[str, str] = {}
    for image in _everything(pacs_server):
        got = requests.head(f"{pacs_server.url}/datastore/image", params={"image": image}, timeout=60)
        assert got.status_code == 200
    for file in (pacs_server.log.parent / "data").glob("medclipsam/workspaces/*/dicomweb/*/*/*.dcm"):
        data = pydicom.dcmread(file, stop_before_pixels=True)
        fetched[str(data.SOPInstanceUID)] = data.file_meta.TransferSyntaxUID
    assert fetched == stored


# Of each kind of image what is labelled, a phantom by its seed, and the labels in the PACS that a training finds: of
# projections those of several modalities are one kind.
LABELLED: dict[str, tuple[str, str, Callable[[int], DicomPhantom]]] = {
    "MR": ("brain", "brain", lambda seed: volume("MR", seed, 4, size=64)),
    "CT": ("lungs CT", "lungs", lambda seed: volume("CT", seed, 4, size=64)),
    "US": ("breast tumour", "breast tumour", lambda seed: ultrasound(seed, size=64, frames=1 + 2 * (seed % 2))),
    "DX": ("lungs x-ray", "lungs", lambda seed: xray("DX", seed, size=64)),
}
SHORT = {"device": "cpu", "epochs": 1, "cycles": 1, "keep": 1, "iterations": 2, "base_filters": 4}
SHORT |= {"max_filters": 8, "max_patch": 32, "max_side": 32, "batch_size": 2}


@pytest.mark.timeout(900)
def test_trainings_read_the_labels_back(
    pacs_server: Server, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all four modalities; one training by the server, the others here, on a machine that has no label yet."""
    targets = TargetSet.load()
    saved: dict[str, dict[str, np.ndarray]] = {}
    for modality, (target, structure, draw) in LABELLED.items():
        label = targets.get(target).label
        for phantom in (draw(41), draw(42)):  # of the radiographs one is kept for validation
            orthanc.store(phantom.contents())
            values = phantom.masks[structure].astype(np.uint8) * label
            saved.setdefault(modality, {})[phantom.series_uid] = values
    time.sleep(1.1)
    for modality, labels in saved.items():
        target = LABELLED[modality][0]
        for image, values in labels.items():
            if modality in ("MR", "CT"):
                fetched = requests.get(f"{pacs_server.url}/datastore/image", params={"image": image}, timeout=60)
                (tmp_path / "image.nii.gz").write_bytes(fetched.content)
                mask = SimpleITK.GetImageFromArray(values)
                mask.CopyInformation(SimpleITK.ReadImage(tmp_path / "image.nii.gz"))
                SimpleITK.WriteImage(mask, tmp_path / "mask.nrrd")
            else:
                # without a place in space, as the viewer sends it
                nrrd.write(str(tmp_path / "mask.nrrd"), values.transpose(2, 1, 0))
            names = {"label_names": {target: targets.get(target).label}}
            answer = _save(pacs_server, image, tmp_path / "mask.nrrd", **names)
            assert answer.status_code == 200, answer.text
    # the labels here are gone, as on another machine: what is trained on comes from the PACS
    for file in (pacs_server.log.parent / "data").glob("medclipsam/workspaces/*/dicomweb/*/labels/final/*"):
        file.unlink()
    started = requests.post(
        f"{pacs_server.url}/train/network", json={**SHORT, "targets": "lungs x-ray", "modality": "DX"}, timeout=60
    )
    assert started.status_code == 200, started.text

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    address = orthanc.url.replace("://", f"://{orthanc.user}:{orthanc.password}@")
    found = list(candidates(MedClipSamApp(str(tmp_path / "app"), address, {}).datastore()))
    split = Split(share=0.0)
    for modality, labels in saved.items():
        target = LABELLED[modality][0]
        selected = select(found, Criteria(labels=(target,), modality=modality), targets, split)
        examples = {example.name: example for example in selected.training}
        assert labels.keys() <= examples.keys()
        for image, values in labels.items():
            read = examples[image].labels(examples[image].read(), 1)
            assert np.array_equal(read > 0, values > 0)
            assert values.any()
        if modality != "DX":
            request = Request.from_mapping({**SHORT, "targets": target, "modality": modality})
            network = train_network(lambda: found, targets, NetworkStore(tmp_path / modality), request, split=split)
            assert network.data["training"]["final"] == len(examples)

    end = time.monotonic() + 600
    while (state := requests.get(f"{pacs_server.url}/train/", timeout=60).json())["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, state["details"]
        time.sleep(0.5)
    assert state["status"] == "DONE", state["details"]
    assert "bulk data" not in str(state["details"])
    (network,) = requests.get(f"{pacs_server.url}/networks/", timeout=60).json()["network"]["networks"]
    used = network["data"]["training"]["final"] + network["data"]["validation"]
    assert used >= len(saved["DX"])


def test_a_series_that_is_deleted_and_a_pacs_that_is_down_are_told(
    pacs_server: Server, orthanc: Orthanc, pacs_phantoms: dict[str, DicomPhantom]
) -> None:
    image = pacs_phantoms["brain-mri-2"].series_uid
    assert requests.head(f"{pacs_server.url}/datastore/image", params={"image": image}, timeout=60).ok
    with orthanc.session() as session:
        query = {"Level": "Series", "Query": {"SeriesInstanceUID": image}}
        (name,) = session.post(f"{orthanc.root}/tools/find", json=query, timeout=30).json()
        assert session.delete(f"{orthanc.root}/series/{name}", timeout=30).ok
    time.sleep(1.1)
    gone = pacs_server.infer("text_prompt", image, text="brain")
    assert (gone.status_code, "not among" in gone.json()["detail"]) == (404, True)
    orthanc.stop()
    try:
        time.sleep(1.1)
        down = pacs_server.infer("text_prompt", pacs_phantoms["film"].series_uid, text="both lungs")
        assert (down.status_code, "does not answer" in down.json()["detail"]) == (502, True)
        assert requests.get(f"{pacs_server.url}/proxy/dicom/qido/studies", timeout=60).status_code == 502
        assert requests.get(f"{pacs_server.url}/healthz", timeout=60).ok
    finally:
        orthanc.start()
    assert requests.get(f"{pacs_server.url}/datastore/", timeout=60).json()["total"] > 0
