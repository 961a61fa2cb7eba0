"""What the viewer asks beside DICOMweb, over HTTP."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from fastapi.testclient import TestClient
from PIL import Image

from medclipsam.imaging.frames import decode_runs, encode_runs
from medclipsam.measurements.table import COLUMNS
from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.studies.catalogue import Catalogue


def _names(client: TestClient, image: str) -> dict[str, str]:
    """Return the DICOM names of an image, as a viewer has them from searches."""
    for study in client.get("/dicom-web/studies").json():
        if study.get("00081030", {}).get("Value") == [image] or study["00100020"].get("Value") == [image]:
            uid = study["0020000D"]["Value"][0]
            (series,) = client.get(f"/dicom-web/studies/{uid}/series").json()
            return {"StudyInstanceUID": uid, "SeriesInstanceUID": series["0020000E"]["Value"][0]}
    raise AssertionError(image)


def test_an_image_is_found_by_its_dicom_names(client: TestClient, studies: Path) -> None:
    film = pydicom.dcmread(studies / "film.dcm")
    names = {"StudyInstanceUID": film.StudyInstanceUID, "SeriesInstanceUID": film.SeriesInstanceUID}
    told = client.get("/viewer/api/image", params={**names, "SOPInstanceUID": film.SOPInstanceUID}).json()
    assert told["image"] == "film"
    assert told["planes"] == [{"sop": str(film.SOPInstanceUID), "frame": 1}]
    assert (told["rows"], told["columns"]) == (film.Rows, film.Columns)

    told = client.get("/viewer/api/image", params=_names(client, "stack")).json()
    assert (told["image"], len(told["planes"]), told["spacing_mm"]) == ("stack", 3, pytest.approx([2.5, 0.8, 0.7]))
    assert told["labelled"] == {}
    assert told["lease"] is None
    # each plane is the one that the frame shows
    where = f"/dicom-web/studies/{_names(client, 'stack')['StudyInstanceUID']}/instances"
    heights = {each["00080018"]["Value"][0]: each["00200013"]["Value"][0] for each in client.get(where).json()}
    assert [heights[plane["sop"]] for plane in told["planes"]] == [1, 2, 3]


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_names_that_are_not_there_are_404(client: TestClient, missing: str) -> None:
    for given in ("1.2.3", "\n"):
        answer = client.get("/viewer/api/image", params={**_names(client, "stack"), missing: given})
        assert answer.status_code == (200 if missing == "SOPInstanceUID" else 404)
        # a sentence of one line, whatever was given
        assert "\n" not in answer.text


def test_volumes_of_one_series_are_told_apart_by_instance(make_app: Any, studies: Path, tmp_path: Path) -> None:
    template = pydicom.dcmread(studies / "film.dcm")
    for echo in (1, 2):
        for k in range(3):
            data = pydicom.dcmread(studies / "film.dcm")
            data.Modality, data.SOPClassUID = "MR", pydicom.uid.MRImageStorage
            data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
            data.SeriesInstanceUID = f"{template.SeriesInstanceUID}.7"
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{template.SOPInstanceUID}.{echo}.{k}"
            data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 5.0 * k], [1, 0, 0, 0, 1, 0]
            data.PixelSpacing, data.EchoTime, data.EchoNumbers = [1, 1], 30.0 * echo, echo
            data.AcquisitionNumber = echo
            data.save_as(studies / f"slice-{echo}-{k}.dcm")
    app = make_app()
    series = f"{template.SeriesInstanceUID}.7"
    found = {
        app.viewed.image_of(str(template.StudyInstanceUID), series, f"{template.SOPInstanceUID}.{echo}.1")
        for echo in (1, 2)
    }
    assert len(found) == 2
    for image in found:
        frames = app.viewed.frames(image)
        assert len(frames.frames) == 3
        assert {app.viewed.image_of(frames.study, frames.series, name) for name, _ in frames.frames} == {image}
    with pytest.raises(Exception, match="several images"):
        app.viewed.image_of(str(template.StudyInstanceUID), series)


def test_files_that_are_made_stay_below_a_bound(app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medclipsam.server.studies.catalogue._IN_USE_SECONDS", -1.0)
    catalogue = Catalogue(app.datastore(), app.images, "x", tmp_path / "made", max_made_bytes=6000)
    for image in ("chest", "stack", "chest"):
        (entry,) = [each for each in catalogue.entries() if each.image == image]
        instances = catalogue.instances([entry])
        assert all(np.asarray(pydicom.dcmread(each.path).pixel_array).size == 2400 for each in instances)
    kept = list((tmp_path / "made" / "dicom").iterdir())
    # the picture's one file fits, the volume's three do not beside it
    assert len(kept) == 1
    assert sum(file.stat().st_size for file in kept[0].iterdir()) < 6000


LUNG = {"name": "left lung", "colour": "#ff0000", "source": "text", "planes": [{"plane": 0, "runs": [600, 40]}]}
HEART = {"name": "heart", "source": "hand", "planes": [{"plane": 0, "runs": [620, 30, 700, 5]}]}


# -- saved labels ----------------------------------------------------------------------------------------------------


def _save(client: TestClient, *segments: Any, base: str | None = None, **more: Any) -> Any:
    return client.put("/viewer/api/labels/stack", json={"segments": list(segments), "base": base, **more})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ("[]", 400),
        ('{"segments": 3}', 400),
        ('{"segments": [{"name": "a"}]}', 400),
        ('{"segments": [{"name": 4, "planes": []}]}', 400),
        ('{"segments": [{"name": "a", "planes": [{"plane": 0, "runs": [1]}]}]}', 400),
        ('{"segments": [{"name": "a", "planes": [{"plane": "0", "runs": []}]}]}', 400),
        ('{"segments": [], "base": 4}', 400),
        ('{"segments": [], "nonsense": 4}', 400),
        (json.dumps({"segments": [{"name": "a" * (65 * 2**20), "planes": []}]}), 413),
    ],
)
def test_what_is_no_label_is_refused(client: TestClient, body: str, status: int) -> None:
    answer = client.put("/viewer/api/labels/stack", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["detail"].endswith(".")
    assert client.get("/viewer/api/labels/stack").status_code == 204
    assert client.put("/viewer/api/labels/nobody", json={"segments": []}).status_code == 404


def _label(client: TestClient, tmp_path: Path, suffix: str = ".nii.gz", **asked: str) -> SimpleITK.Image:
    content = client.get("/datastore/label", params={"label": "stack", "tag": "final", **asked}).content
    (tmp_path / f"label{suffix}").write_bytes(content)
    return SimpleITK.ReadImage(tmp_path / f"label{suffix}")


def test_segments_are_saved_as_a_label_map_and_come_back_with_what_overlaps(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/viewer/api/labels/stack").status_code == 204
    mass = {"name": "my own mass", "planes": [{"plane": 2, "runs": [0, 7]}]}
    empty = {"name": "aorta", "planes": []}
    saved = _save(client, LUNG, HEART, mass, empty).json()
    assert saved["overlap_voxels"] == 20
    found = client.get("/viewer/api/labels/stack").json()
    assert found["segments"] == [LUNG, HEART, mass, empty]
    assert found["version"] == saved["version"]
    info = client.get("/datastore/label/info", params={"label": "stack", "tag": "final"}).json()
    names = info["label_names"]
    assert names["left lung"] == 11
    assert names["heart"] == 13
    assert set(names) == {"left lung", "heart", "my own mass", "aorta"}
    assert len(set(names.values())) == 4
    # each is whole in the file that is kept
    kept = _label(client, tmp_path, ".seg.nrrd")
    layers = SimpleITK.GetArrayFromImage(kept).reshape(3, 40 * 60, -1)
    drawn = {kept.GetMetaData(f"Segment{n}_Name"): n for n in range(4)}
    assert set(drawn) == set(names)
    for segment in (LUNG, HEART, mass, empty):
        number = drawn[segment["name"]]
        value = int(kept.GetMetaData(f"Segment{number}_LabelValue"))
        mask = layers[..., int(kept.GetMetaData(f"Segment{number}_Layer"))] == value
        assert value == names[segment["name"]]
        whole = np.zeros_like(mask)
        for each in segment["planes"]:
            whole[each["plane"]] = decode_runs(each["runs"], (40, 60), "it").ravel()
        assert np.array_equal(mask, whole)
    # the smaller one counts where a voxel has one label
    values = SimpleITK.GetArrayFromImage(_label(client, tmp_path, result_extension=".nii.gz")).reshape(3, -1)
    assert (values[0, 600:620] == 11).all()
    assert (values[0, 620:650] == 13).all()
    assert (values[2, :7] == names["my own mass"]).all()
    assert np.count_nonzero(values) == 40 + 30 - 20 + 5 + 7


def test_a_label_that_came_from_elsewhere_is_read_as_segments(client: TestClient, studies: Path) -> None:
    volume = SimpleITK.ReadImage(studies / "stack.nii.gz")
    mask = SimpleITK.BinaryThreshold(volume, 129, 255, 11)
    SimpleITK.WriteImage(mask, studies.parent / "mask.nii.gz")
    with (studies.parent / "mask.nii.gz").open("rb") as file:
        client.put("/datastore/label", params={"image": "stack"}, files={"label": ("mask.nii.gz", file)})
    (segment,) = client.get("/viewer/api/labels/stack").json()["segments"]
    assert segment["name"] == "left lung"
    drawn = SimpleITK.GetArrayFromImage(mask) > 0
    for each in segment["planes"]:
        assert np.array_equal(decode_runs(each["runs"], (40, 60), "it"), drawn[each["plane"]])


def test_the_mask_of_a_model_waits_for_whoever_labels_the_image(app: Any, client: TestClient, studies: Path) -> None:
    assert client.get("/viewer/api/proposals/nobody").status_code == 404
    assert client.get("/viewer/api/proposals/stack").status_code == 204
    params = {"text": "heart", "save_label": True, "label_tag": "original"}
    made = client.post("/infer/text_prompt", params={"image": "stack", "output": "json"}, json=params)
    assert made.status_code == 200, made.text
    found = client.get("/viewer/api/proposals/stack").json()
    assert found["by"] == "zero-shot"
    (segment,) = found["segments"]
    assert (segment["name"], segment["source"], segment["edited"]) == ("heart", "text", False)
    bright = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(studies / "stack.nii.gz")) > 128
    drawn = np.zeros_like(bright)
    for each in segment["planes"]:
        drawn[each["plane"]] = decode_runs(each["runs"], (40, 60), "it")
    assert np.array_equal(drawn, bright)
    # what is saved counts, and is measured against what was shown
    assert _save(client, segment).status_code == 200
    assert client.get("/viewer/api/proposals/stack").status_code == 204
    (label,) = app.rounds.ledger.labels()
    assert (label.source, label.dice) == ("zero-shot", 1.0)


def test_a_mask_that_a_cohort_has_left_is_shown_and_counted_as_offered(
    app: Any, make_client: Any, studies: Path
) -> None:
    volume = SimpleITK.ReadImage(studies / "stack.nii.gz")
    (studies / "labels" / "original").mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.BinaryThreshold(volume, 129, 255, 11), studies / "labels/original/stack.nii.gz")
    client = make_client()
    (segment,) = client.get("/viewer/api/proposals/stack").json()["segments"]
    assert (segment["name"], segment["source"]) == ("left lung", "text")
    _save(client, HEART)
    (label,) = app.rounds.ledger.labels()
    assert label.source == "pre-annotation"
    assert label.dice < 0.5


def test_what_somebody_else_has_saved_is_not_overwritten_unasked(client: TestClient, tmp_path: Path) -> None:
    first = _save(client, LUNG).json()
    second = _save(client, HEART, base=first["version"]).json()
    late = _save(client, LUNG, base=first["version"])
    assert late.status_code == 409
    theirs = late.json()["theirs"]
    assert (theirs["segments"], theirs["version"]) == ([HEART], second["version"])
    assert _save(client, LUNG).status_code == 409
    assert set(np.unique(_label(client, tmp_path))) == {0, 13}
    # both are kept where it is asked for
    assert _save(client, LUNG, base=first["version"], as_new=True).status_code == 200
    assert set(np.unique(_label(client, tmp_path))) == {0, 11}
    versions = client.get("/datastore/label/versions", params={"label": "stack"}).json()
    assert [each["version"] for each in versions] == [1, 2]


def test_segments_outside_of_the_image_are_refused(client: TestClient) -> None:
    beyond = {"name": "heart", "planes": [{"plane": 0, "runs": [2399, 2]}]}
    assert _save(client, beyond).status_code == 400
    assert _save(client, {"name": "heart", "planes": [{"plane": 3, "runs": [0, 2]}]}).status_code == 400
    assert _save(client, LUNG, LUNG).status_code == 400
    assert client.get("/viewer/api/labels/stack").status_code == 204


# -- measurements ----------------------------------------------------------------------------------------------------


def _measure(client: TestClient, image: str, *segments: Any) -> Any:
    return client.post(f"/viewer/api/measurements/{image}", json={"segments": list(segments)})


def test_what_is_drawn_is_measured_as_it_is_drawn(client: TestClient, studies: Path) -> None:
    """Ten rows by twenty columns of one frame, and a single pixel of another; nothing of them is kept."""
    values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(studies / "stack.nii.gz"))
    box = np.zeros((40, 60), bool)
    box[5:15, 30:50] = True
    planes = [{"plane": 1, "runs": encode_runs(box)}, {"plane": 2, "runs": [0, 1]}]
    answer = _measure(client, "stack", {"name": "box", "planes": planes}, {"name": "nothing", "planes": []})
    found, nothing = answer.json()["measurements"]
    # the file's planes are 2.5 mm apart, its rows 0.8 mm and its columns 0.7 mm
    assert found["volume_mm3"] == pytest.approx(201 * 2.5 * 0.8 * 0.7)
    assert (found["n_components"], found["n_planes"], found["n_voxels"]) == (2, 2, 201)
    long = found["long_axis"]
    assert long["plane"] == 1
    # the axis is on the frame as it is sent to viewers
    for x, y in (long["start"], long["end"]):
        assert 29.5 <= x <= 49.5
        assert 4.5 <= y <= 14.5
    (x0, y0), (x1, y1) = long["start"], long["end"]
    assert np.hypot(0.7 * (x1 - x0), 0.8 * (y1 - y0)) == pytest.approx(long["length_mm"])
    assert np.hypot(x1 - x0, y1 - y0) == pytest.approx(long["length_pixels"])
    within = np.append(values[1][box], values[2, 0, 0]).astype(float)
    assert found["values"]["mean"] == pytest.approx(within.mean())
    assert found["values"]["sd"] == pytest.approx(within.std(ddof=1))
    assert nothing == {**dict.fromkeys(found), "name": "nothing", "n_voxels": 0, "n_components": 0, "n_planes": 0}
    assert client.get("/viewer/api/labels/stack").status_code == 204


@pytest.mark.parametrize(
    ("image", "body", "status"),
    [
        ("nobody", {"segments": []}, 404),
        ("stack", {"segments": [], "base": None}, 400),
        ("stack", {"segments": [LUNG, LUNG]}, 400),
        ("stack", {"segments": [{"name": "heart", "planes": [{"plane": 3, "runs": [0, 2]}]}]}, 400),
        ("stack", {}, 400),
    ],
)
def test_what_cannot_be_measured_is_refused(client: TestClient, image: str, body: Any, status: int) -> None:
    answer = client.post(f"/viewer/api/measurements/{image}", json=body)
    assert answer.status_code == status
    assert answer.json()["detail"].endswith(".")


def test_a_saved_label_is_measured_for_tables_and_programs(client: TestClient) -> None:
    where = "/viewer/api/measurements/stack"
    assert client.get(where).status_code == 404
    version = _save(client, LUNG, HEART).json()["version"]
    told = client.get(where).json()
    # each as it was drawn, where they overlap too
    assert [each["n_voxels"] for each in told["measurements"]] == [40, 35]
    assert told["version"] == version
    assert told["measurements"] == _measure(client, "stack", LUNG, HEART).json()["measurements"]
    answer = client.get(where, params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert tuple(lines[0]) == COLUMNS
    assert [(line["image"], line["target"], line["label"], line["n_voxels"]) for line in lines] == [
        ("stack", "left lung", "11", "40"),
        ("stack", "heart", "13", "35"),
    ]
    assert float(lines[0]["volume_mm3"]) == pytest.approx(told["measurements"][0]["volume_mm3"])
    assert client.get(where, params={"format": "xml"}).status_code == 400


def test_reports_are_for_a_pacs(client: TestClient) -> None:
    _save(client, LUNG)
    answer = client.post("/viewer/api/labels/stack/report")
    assert answer.status_code == 400
    assert "CSV" in answer.json()["detail"]


def test_the_state_counts_what_was_saved(client: TestClient) -> None:
    before = client.get("/viewer/api/state").json()
    _save(client, LUNG)
    after = client.get("/viewer/api/state").json()
    assert (before["labelled"], after["labelled"]) == (0, 1)
    assert after["images"] == 4
    assert after["training"] is None


def test_small_pictures_are_small(client: TestClient) -> None:
    answer = client.get("/viewer/api/thumbnail", params={"image": "chest"})
    assert max(Image.open(io.BytesIO(answer.content)).size) <= 192
    assert client.get("/viewer/api/thumbnail", params={"image": "broken"}).status_code == 400
    assert client.get("/viewer/api/thumbnail", params={"image": "nobody"}).status_code == 404


def test_the_next_sample_is_told_with_its_dicom_names(client: TestClient) -> None:
    sample = client.post("/activelearning/random", json={}).json()
    names = {key: sample[key] for key in ("StudyInstanceUID", "SeriesInstanceUID")}
    assert client.get("/viewer/api/image", params=names).json()["image"] == sample["id"]


def test_a_map_has_the_pixels_of_the_frame(client: TestClient, studies: Path) -> None:
    app = client.app.state.label_app  # type: ignore[attr-defined]
    app.evidence.open()
    source = app.image_path("stack")
    image = app.images.read(source)
    values = np.random.default_rng(1).random((3, 40, 60)).astype(np.float32)
    found = app.evidence.keep_uncertainty(image, values * 0.5, values > 0.5, "heart", source, brightest=0.5)
    token = found["uncertainty"].split("/")[2]
    answer = client.get(f"/viewer/api/maps/{token}/uncertainty", params={"plane": 1})
    pixels = np.array(Image.open(io.BytesIO(answer.content)))
    # maps of volumes are kept in half precision
    assert np.abs(pixels - values[1] * 255).max() <= 1
    for path in (f"{token}/saliency?plane=1", f"{token}/uncertainty?plane=3", "none/uncertainty?plane=0"):
        assert client.get(f"/viewer/api/maps/{path}").status_code == 404


def test_people_find_what_they_look_for_with_what_is_labelled(client: TestClient, studies: Path) -> None:
    client.get("/viewer/api/studies")
    # they are looked at for as long as it takes
    client.app.state.label_app.viewed.catalogue.wait(60)  # type: ignore[attr-defined]
    told = client.get("/viewer/api/studies").json()
    assert told["total"] == 4
    found = {each["image"]: each for each in told["studies"]}
    assert set(found) == {"chest", "stack", "film", "broken"}
    assert found["stack"]["planes"] == 3
    assert (found["film"]["modality"], found["film"]["name"]) == ("DX", "film")
    assert found["broken"]["fault"]
    film = pydicom.dcmread(studies / "film.dcm")
    assert (found["film"]["study"], found["film"]["series"]) == (film.StudyInstanceUID, film.SeriesInstanceUID)
    assert client.get(f"/{found['chest']['picture']}").headers["content-type"] == "image/jpeg"
    _save(client, LUNG)
    (stack,) = client.get("/viewer/api/studies?labelled=true").json()["studies"]
    label = client.get("/viewer/api/labels/stack").json()
    assert stack["label"] == {key: label[key] for key in ("by", "at", "review")}
    assert stack["lease"] is None
    offered = client.post("/activelearning/random", json={"client_id": "ada"}).json()["id"]
    (kept,) = client.get("/viewer/api/studies", params={"q": offered}).json()["studies"]
    assert (kept["label"], kept["lease"]["holder"]) == (None, "ada")
    for query, expected in {
        "labelled=true": ["stack"],
        "labelled=false": ["broken", "chest", "film"],
        "q=dx": ["film"],
        "q=s t": ["chest", "stack"],
        "q=nobody": [],
        "limit=2&offset=3": ["stack"],
    }.items():
        names = [each["image"] for each in client.get(f"/viewer/api/studies?{query}").json()["studies"]]
        assert sorted(names) == expected, query
    assert client.get("/viewer/api/studies?limit=0").status_code == 400


def test_a_review_keeps_its_reason_with_the_label(make_client: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("ada annotator ada-ada-ada-ada-1\nrob reviewer rob-rob-rob-rob-1\n")
    tokens.chmod(0o600)
    client = make_client(Access(load_tokens(tokens)))
    ada, rob = ({"Authorization": f"Bearer {'-'.join([name] * 4)}-1"} for name in ("ada", "rob"))
    body = {"segments": [LUNG], "base": None}
    assert client.put("/viewer/api/labels/stack", json=body, headers=ada).status_code == 200
    said = {"image": "stack", "verdict": "rejected", "reason": "The apex is missing."}
    assert client.put("/rounds/reviews", params=said, headers=rob).json()["reason"] == said["reason"]
    label = client.get("/viewer/api/labels/stack", headers=ada).json()
    (listed,) = client.get("/viewer/api/studies?labelled=true", headers=ada).json()["studies"]
    assert (listed["label"]["by"], listed["label"]["review"]) == ("ada", label["review"])
    assert label["review"] == {"verdict": "rejected", "by": "rob", "reason": said["reason"]}
    assert client.put("/rounds/reviews", params={**said, "reason": "x" * 1001}, headers=rob).status_code == 400
