"""DICOMweb of a studies folder over HTTP, asked by an independent client (dicomweb-client) and read by pydicom."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import highdicom
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.api.asgi import create_app

Serve = Callable[..., str]
COMPRESSED = {"j2k": "examples_jpeg2k.dcm", "cine": "examples_ybr_color.dcm", "palette": "examples_palette.dcm"}


@pytest.fixture
def url(make_app: Callable[..., Any], studies: Path, live: Serve) -> str:
    for name, inside in {"ct": "CT_small.dcm", **COMPRESSED}.items():
        source = get_testdata_file(inside, download=False)
        if source:
            shutil.copy(str(source), studies / f"{name}.dcm")
    return live(create_app(make_app(targets="lungs x-ray")))


@pytest.fixture
def client(url: str) -> DICOMwebClient:
    return DICOMwebClient(f"{url}/dicom-web")


def _value(found: dict[str, Any], tag: str) -> Any:
    values = found.get(tag, {}).get("Value", [None])
    return values[0]["Alphabetic"] if isinstance(values[0], dict) else values[0]


def _where(client: DICOMwebClient, image: str) -> tuple[str, str, list[str]]:
    """Return study, series and instances of a file by its name or its patient."""
    for study in client.search_for_studies():
        uid = _value(study, "0020000D")
        (series,) = client.search_for_series(uid)
        if image in (_value(study, "00100020"), _value(study, "00081030"), _value(study, "0020000D")):
            name = _value(series, "0020000E")
            found = client.search_for_instances(uid, name)
            return uid, name, [_value(each, "00080018") for each in found]
    raise AssertionError(f"{image} is not listed")


def test_every_image_is_listed_searched_and_read(client: DICOMwebClient, studies: Path) -> None:
    listed = client.search_for_studies()
    here = [pydicom.dcmread(file) for file in studies.glob("*.dcm")]
    expected = {str(data.StudyInstanceUID) for data in here}
    uids = {_value(study, "0020000D") for study in listed}
    assert expected <= uids
    # beside them the picture, the volume and the one that cannot be read
    assert len(uids) == len(expected) + 3
    for study in listed:
        uid = _value(study, "0020000D")
        assert _value(study, "00201206") == 1
        assert [_value(each, "0020000D") for each in client.search_for_series(uid)] == [uid]
    # the search is the client's own
    (found,) = client.search_for_studies(search_filters={"PatientID": "sta*"}, fields=["StudyDescription"])
    assert _value(found, "00081030") == "stack.nii.gz"
    assert _value(found, "00201208") == 3
    assert len(client.search_for_studies(limit=2)) == 2
    paged = client.search_for_studies(limit=100, offset=2)
    assert [_value(each, "0020000D") for each in paged] == [_value(each, "0020000D") for each in listed[2:]]


def test_dicom_files_are_given_as_they_are(client: DICOMwebClient, studies: Path) -> None:
    for file in studies.glob("*.dcm"):
        data = pydicom.dcmread(file)
        names = (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID)
        got = client.retrieve_instance(*names)
        assert got == data
        assert got.file_meta.TransferSyntaxUID == data.file_meta.TransferSyntaxUID
        (told,) = client.retrieve_series_metadata(*names[:2])
        metadata = pydicom.Dataset.from_json(told, lambda tag, vr, uri: None)
        for keyword in ("PatientID", "Rows", "Columns", "BitsStored", "ImagePositionPatient", "PixelSpacing"):
            assert metadata.get(keyword) == data.get(keyword), keyword
        assert client.retrieve_study_metadata(names[0]) == [told]


def test_frames_are_those_of_the_files(client: DICOMwebClient, url: str, studies: Path) -> None:
    for file in studies.glob("*.dcm"):
        data = pydicom.dcmread(file)
        names = (data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID)
        count = int(data.get("NumberOfFrames", 1))
        numbers = [1] if count == 1 else [count, 2]
        stored = client.retrieve_instance_frames(*names, numbers)
        address = f"{url}/dicom-web/studies/{names[0]}/series/{names[1]}/instances/{names[2]}/frames/{numbers[0]}"
        plain = requests.get(
            address, headers={"Accept": 'multipart/related; type="application/octet-stream"'}, timeout=60
        ).content
        pixels = data.pixel_array if count == 1 else data.pixel_array[numbers[0] - 1]
        if data.file_meta.TransferSyntaxUID.is_encapsulated:
            frames = list(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=count))
            assert stored == [frames[number - 1] for number in numbers]
            assert len(stored[0]) < len(pixels.tobytes())
            content = plain.split(b"\r\n\r\n", 1)[1][: pixels.nbytes]
            decoded = np.frombuffer(content, pixels.dtype).reshape(pixels.shape)
            # decoders of lossy streams round differently
            assert np.abs(decoded.astype(int) - pixels.astype(int)).max() <= 2
        else:
            assert stored[0] == data.PixelData[: len(stored[0])]
            assert len(stored[0]) == pixels.nbytes
        assert (
            requests.get(address.replace(f"frames/{numbers[0]}", f"frames/{count + 1}"), timeout=60).status_code == 400
        )


def test_bulk_data_are_the_values_that_the_metadata_leave_out(client: DICOMwebClient, url: str, studies: Path) -> None:
    data = pydicom.dcmread(studies / "ct.dcm")
    data.add_new(0x00091010, "UN", bytes(range(256)) * 8)
    data.add_new(0x00090010, "LO", "a maker")
    data.save_as(studies / "ct.dcm")
    (told,) = client.retrieve_series_metadata(data.StudyInstanceUID, data.SeriesInstanceUID)
    # this client's Host header has no port
    uris = {tag: f"{url}{urlsplit(told[tag]['BulkDataURI']).path}" for tag in ("00091010", "7FE00010")}
    (content,) = client.retrieve_bulkdata(uris["00091010"])
    assert content == bytes(range(256)) * 8
    (pixels,) = client.retrieve_bulkdata(uris["7FE00010"])
    assert pixels == data.PixelData
    assert requests.get(uris["00091010"].rpartition("/")[0] + "/99", timeout=60).status_code == 404


def test_a_picture_becomes_a_valid_instance(client: DICOMwebClient, studies: Path, picture: np.ndarray) -> None:
    study, series, instances = _where(client, "chest")
    assert len(instances) == 1
    data = client.retrieve_instance(study, series, instances[0])
    assert np.array_equal(data.pixel_array, picture)
    assert (data.Modality, data.PatientID, data.StudyDescription) == ("OT", "chest", "chest.png")
    rendered = client.retrieve_instance_rendered(study, series, instances[0], media_types=("image/png",))
    assert np.array_equal(np.array(Image.open(io.BytesIO(rendered)))[..., 0], picture)


def test_a_volume_becomes_slices_with_their_places(client: DICOMwebClient, studies: Path) -> None:
    study, series, instances = _where(client, "stack")
    volume = SimpleITK.ReadImage(studies / "stack.nii.gz")
    slices = client.retrieve_series(study, series)
    assert sorted(instances) == sorted(str(each.SOPInstanceUID) for each in slices)
    assert len({str(each.FrameOfReferenceUID) for each in slices}) == 1
    for each in slices:
        assert [float(step) for step in each.PixelSpacing] == pytest.approx([0.8, 0.7])
        index = volume.TransformPhysicalPointToIndex([float(value) for value in each.ImagePositionPatient])
        assert each.pixel_array[0, 0] == volume[index]


def test_what_was_asked_for_before_is_not_sent_again(client: DICOMwebClient, url: str, studies: Path) -> None:
    study, series, (instance,) = _where(client, "chest")
    address = f"{url}/dicom-web/studies/{study}/series/{series}"
    for path in (f"instances/{instance}/frames/1", "metadata", "thumbnail"):
        first = requests.get(f"{address}/{path}", timeout=60)
        assert first.status_code == 200, first.text
        tag = {"If-None-Match": first.headers["ETag"]}
        assert requests.get(f"{address}/{path}", headers=tag, timeout=60).status_code == 304
    assert max(Image.open(io.BytesIO(first.content)).size) <= 192


def test_names_stay_after_a_restart_and_changed_files_are_made_again(
    make_app: Callable[..., Any], live: Serve, studies: Path
) -> None:
    first = DICOMwebClient(f"{live(create_app(make_app()))}/dicom-web")
    where = _where(first, "chest")
    before = first.retrieve_instance_frames(*where[:2], where[2][0], [1])
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(studies / "chest.png")
    again = DICOMwebClient(f"{live(create_app(make_app()))}/dicom-web")
    assert _where(again, "chest") == where
    (frame,) = again.retrieve_instance_frames(*where[:2], where[2][0], [1])
    assert before[0] != frame == bytes([7]) * 2400


def _segmentation(sources: list[pydicom.Dataset], mask: np.ndarray, names: list[str]) -> Any:
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, start=1)
    ]
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="somebody",
        manufacturer_model_name="else",
        software_versions="1",
        device_serial_number="1",
    )


def test_a_segmentation_that_is_stored_is_a_final_label_of_the_file(
    client: DICOMwebClient, url: str, studies: Path
) -> None:
    study, series, _ = _where(client, "stack")
    # in an order of the client's own
    slices = client.retrieve_series(study, series)[::-1]
    mask = np.stack([each.pixel_array > 128 for each in slices]).astype(np.uint8)
    seg = _segmentation(slices, mask, ["left lung"])
    answer = client.store_instances([seg])
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == seg.SOPInstanceUID
    kept = requests.get(f"{url}/datastore/label", {"label": "stack", "tag": "final"}, timeout=60).content
    (studies.parent / "kept.nii.gz").write_bytes(kept)
    label, volume = SimpleITK.ReadImage(studies.parent / "kept.nii.gz"), SimpleITK.ReadImage(studies / "stack.nii.gz")
    assert label.GetOrigin() == pytest.approx(volume.GetOrigin())
    assert np.array_equal(SimpleITK.GetArrayFromImage(label) == 11, SimpleITK.GetArrayFromImage(volume) > 128)
    info = requests.get(f"{url}/datastore/label/info", {"label": "stack", "tag": "final"}, timeout=60).json()
    assert info["label_names"] == {"left lung": 11}


def test_a_segmentation_of_dicom_is_stored_too(client: DICOMwebClient, url: str, studies: Path) -> None:
    data = pydicom.dcmread(studies / "ct.dcm")
    pixels = data.pixel_array > 200
    client.store_instances([_segmentation([data], pixels[None].astype(np.uint8), ["my own"])])
    kept = requests.get(f"{url}/datastore/label", {"label": "ct", "tag": "final"}, timeout=60).content
    (studies.parent / "kept.nii.gz").write_bytes(kept)
    label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(studies.parent / "kept.nii.gz"))
    assert np.array_equal(label[0] > 0, pixels)


def test_what_cannot_be_stored_is_refused_and_named(client: DICOMwebClient, url: str, studies: Path) -> None:
    ct = pydicom.dcmread(studies / "ct.dcm")
    stranger = pydicom.dcmread(studies / "ct.dcm")
    stranger.StudyInstanceUID, stranger.SeriesInstanceUID = generate_uid(), generate_uid()
    for data in (ct, _segmentation([stranger], np.zeros((1, 128, 128), np.uint8), ["lungs"])):
        file = io.BytesIO()
        data.save_as(file, enforce_file_format=True)
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n--x--\r\n"
        kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
        answer = requests.post(f"{url}/dicom-web/studies", data=body, headers=kind, timeout=60)
        assert answer.status_code == 409
        (failed,) = answer.json()["00081198"]["Value"]
        assert failed["00081155"]["Value"] == [str(data.SOPInstanceUID)]
    multipart = 'multipart/related; boundary="x"'
    for body, kind in ((b"--x", multipart), (b"{}", "application/json"), (b"--x--\r\n", multipart)):
        answer = requests.post(f"{url}/dicom-web/studies", data=body, headers={"Content-Type": kind}, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["detail"]
    assert requests.get(f"{url}/datastore/?output=stats", timeout=60).json()["label_tags"] == {}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("studies?Patient=1", 400),
        ("studies?limit=-1", 400),
        ("studies/1.2.3/series", 404),
        ("studies/1.2.3/metadata", 404),
        ("patients", 404),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(path: str, status: int, url: str) -> None:
    answer = requests.get(f"{url}/dicom-web/{path}", timeout=60)
    assert answer.status_code == status
    assert answer.json()["detail"].endswith(".")


def test_a_token_is_asked_for(make_app: Callable[..., Any], live: Serve, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("reader user reader-reader-reader\n")
    tokens.chmod(0o600)
    url = live(create_app(make_app(), Access(load_tokens(tokens))))
    assert requests.get(f"{url}/dicom-web/studies", timeout=60).status_code == 401
    session = requests.Session()
    session.headers["Authorization"] = "Bearer reader-reader-reader"
    assert len(DICOMwebClient(f"{url}/dicom-web", session=session).search_for_studies()) == 4
    assert session.post(f"{url}/dicom-web/studies", data=b"", timeout=60).status_code == 403
