"""What the viewer asks beside DICOMweb, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient

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
    answer = client.get("/viewer/api/image", params={**_names(client, "stack"), missing: "1.2.3"})
    assert answer.status_code == (200 if missing == "SOPInstanceUID" else 404)


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
