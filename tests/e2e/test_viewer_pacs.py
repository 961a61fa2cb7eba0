"""What viewers ask, for studies in a PACS: DICOMweb is passed on, labels become DICOM SEG there."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from highdicom.seg import Segmentation
from PIL import Image

from medclipsam.imaging.frames import decode_runs, encode_runs

if TYPE_CHECKING:
    from medclipsam.demo.dicom import DicomPhantom

CT = "chest-ct-1"


@pytest.fixture
def names(pacs_phantoms: dict[str, DicomPhantom]) -> dict[str, str]:
    data = pacs_phantoms[CT].files[0]
    return {"StudyInstanceUID": str(data.StudyInstanceUID), "SeriesInstanceUID": str(data.SeriesInstanceUID)}


def test_searches_and_retrievals_are_passed_on(
    pacs_server: Any, pacs_phantoms: dict[str, DicomPhantom], names: dict[str, str]
) -> None:
    client = DICOMwebClient(f"{pacs_server.url}/dicom-web")
    found = client.search_for_studies(search_filters={"StudyInstanceUID": names["StudyInstanceUID"]})
    assert len(found) == 1
    slices = client.retrieve_series(*names.values())
    sent = {str(data.SOPInstanceUID): data for data in pacs_phantoms[CT].files}
    assert {str(each.SOPInstanceUID) for each in slices} == set(sent)
    for each in slices:
        data = sent[str(each.SOPInstanceUID)]
        assert np.array_equal(each.pixel_array, data.pixel_array)
        (frame,) = client.retrieve_instance_frames(
            *names.values(), str(each.SOPInstanceUID), [1], media_types=(("application/octet-stream", "*"),)
        )
        assert frame == data.PixelData[: len(frame)]
    # what a viewer is told to ask next is this server
    told = requests.get(f"{pacs_server.url}/dicom-web/studies/{names['StudyInstanceUID']}/metadata", timeout=60).text
    assert set(re.findall(r'"(https?://[^/"]+/[^/"]*)', told)) <= {f"{pacs_server.url}/dicom-web"}
    assert requests.get(f"{pacs_server.url}/dicom-web/../system", timeout=60).status_code == 404
    assert requests.get(f"{pacs_server.url}/dicom-web/tools/reset", timeout=60).status_code == 403


def test_a_text_is_answered_on_the_frames_and_saved_as_a_segmentation(
    pacs_server: Any, pacs_phantoms: dict[str, DicomPhantom], names: dict[str, str], orthanc: Any
) -> None:
    url, phantom = pacs_server.url, pacs_phantoms[CT]
    told = requests.get(f"{url}/viewer/api/image", names, timeout=120).json()
    assert len(told["planes"]) == len(phantom.files)
    assert "PHANTOM-CT" in told["name"]
    by_uid = {str(data.SOPInstanceUID): data for data in phantom.files}
    heights = [by_uid[plane["sop"]].ImagePositionPatient[2] for plane in told["planes"]]
    assert heights == sorted(heights)

    answer = requests.post(
        f"{url}/infer/text_prompt",
        params={"image": told["image"]},
        json={"text": "lungs"},
        headers={"Accept": "application/x-ndjson"},
        timeout=300,
    )
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[0]["event"] == "progress"
    result = lines[-1]
    assert result["event"] == "result", result
    (segment,) = result["segments"]
    shape = (told["rows"], told["columns"])
    drawn = {each["plane"]: decode_runs(each["runs"], shape, "it") for each in segment["planes"]}
    assert {line["plane"] for line in lines if line["event"] == "mask"} >= drawn.keys()
    assert drawn
    # as good on the frames' own pixels as the phantoms' weights are
    place = {str(data.SOPInstanceUID): k for k, data in enumerate(phantom.files)}
    truth = phantom.masks["left lung"] | phantom.masks["right lung"]
    both = sum((mask & truth[place[told["planes"][k]["sop"]]]).sum() for k, mask in drawn.items())
    assert 2 * both / (sum(mask.sum() for mask in drawn.values()) + truth.sum()) > 0.6

    # a person adds something of their own that overlaps
    box = np.zeros(shape, bool)
    rows, columns = np.argwhere(drawn[min(drawn)])[0]
    box[rows : rows + 4, columns : columns + 4] = True
    own = {"name": "my own finding", "planes": [{"plane": min(drawn), "runs": encode_runs(box)}]}
    segments = [{"name": segment["name"], "planes": segment["planes"]}, own]
    where = f"{url}/viewer/api/labels/{told['image']}"
    saved = requests.put(where, json={"segments": segments, "base": None}, timeout=120)
    assert saved.status_code == 200, saved.text
    assert saved.json()["overlap_voxels"] > 0
    again = requests.get(where, timeout=60).json()
    assert (again["segments"], again["version"]) == (segments, saved.json()["version"])
    late = requests.put(where, json={"segments": [own], "base": None}, timeout=120)
    assert late.status_code == 409
    assert late.json()["theirs"]["version"] == again["version"]

    # an independent reader finds it in the PACS
    client = DICOMwebClient(orthanc.url, session=_session(orthanc))
    series = client.search_for_series(names["StudyInstanceUID"], search_filters={"Modality": "SEG"})
    assert len(series) == 1
    (seg,) = client.retrieve_series(names["StudyInstanceUID"], series[0]["0020000E"]["Value"][0])
    found = Segmentation.from_dataset(seg)
    labels = [found.get_segment_description(number).segment_label for number in found.segment_numbers]
    assert sorted(labels) == sorted([segment["name"], "my own finding"])
    number = found.segment_numbers[labels.index("my own finding")]
    pixels = found.get_pixels_by_source_instance(
        [told["planes"][min(drawn)]["sop"]],
        segment_numbers=[number],
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    assert np.array_equal(pixels[0, ..., 0] > 0, box)


def _session(orthanc: Any) -> requests.Session:
    session = requests.Session()
    session.auth = (orthanc.user, orthanc.password)
    return session


def test_people_see_pictures_of_what_is_in_the_pacs(pacs_server: Any) -> None:
    told = requests.get(f"{pacs_server.url}/viewer/api/studies", timeout=120).json()
    assert told["total"] > 5
    answers = [requests.get(f"{pacs_server.url}/{each['picture']}", timeout=60) for each in told["studies"]]
    drawn = [answer for answer in answers if answer.status_code == 200]
    # Orthanc cannot draw all that pydicom has
    assert {answer.status_code for answer in answers} <= {200, 404}
    assert len(drawn) > 0.7 * len(answers)
    for answer in drawn:
        assert max(Image.open(io.BytesIO(answer.content)).size) <= 192


def test_series_of_several_pictures_are_told_apart(
    pacs_server: Any, orthanc: Any, several_pictures: list[DicomPhantom], load_more: Callable[..., None]
) -> None:
    load_more(several_pictures)
    for picture in several_pictures:
        data = picture.files[0]
        names = {"StudyInstanceUID": data.StudyInstanceUID, "SeriesInstanceUID": data.SeriesInstanceUID}
        told = requests.get(
            f"{pacs_server.url}/viewer/api/image", {**names, "SOPInstanceUID": data.SOPInstanceUID}, timeout=120
        ).json()
        assert "planes" in told, told
        assert told["planes"] == [{"sop": str(data.SOPInstanceUID), "frame": 1}]
        assert requests.get(f"{pacs_server.url}/viewer/api/image", names, timeout=120).status_code == 400


@pytest.fixture
def load_more(orthanc: Any) -> Callable[..., None]:
    from medclipsam.demo.pacs import load

    return lambda phantoms: load(orthanc, phantoms)
