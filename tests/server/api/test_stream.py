"""Infer requests that are answered in lines while the work goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import SimpleITK
from fastapi.testclient import TestClient

from medclipsam.imaging.frames import decode_runs, encode_runs
from medclipsam.server.api.asgi import create_app

LINES = {"Accept": "application/x-ndjson"}


def _lines(client: TestClient, model: str = "text_prompt", image: str = "stack", **params: Any) -> list[dict[str, Any]]:
    answer = client.post(f"/infer/{model}", params={"image": image}, json=params, headers=LINES)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def _bright(studies: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(studies / "stack.nii.gz")) > 128


def _drawn(planes: list[dict[str, Any]], shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for each in planes:
        mask[each["plane"]] = decode_runs(each["runs"], (shape[1], shape[2]), "it")
    return mask


def test_lines_are_progress_masks_and_the_result(client: TestClient, studies: Path) -> None:
    lines = _lines(client, text="heart; left lung")
    events = [line["event"] for line in lines]
    assert events[0] == "progress"
    assert events[-1] == "result"
    assert set(events) == {"progress", "mask", "result"}
    result = lines[-1]
    names = result["params"]["label_names"]
    assert [segment["name"] for segment in result["segments"]] == list(names)
    assert [segment["label"] for segment in result["segments"]] == list(names.values())
    assert result["maps"].keys() == names.keys()
    # the stand-in finds both in the same voxels
    for segment in result["segments"]:
        assert np.array_equal(_drawn(segment["planes"], (3, 40, 60)), _bright(studies))
    masks = [line for line in lines if line["event"] == "mask"]
    assert {(line["target"], line["plane"]) for line in masks} == {(name, k) for name in names for k in range(3)}
    for line in masks:
        assert np.array_equal(decode_runs(line["runs"], (40, 60), "it"), _bright(studies)[line["plane"]])


def test_what_an_image_of_dicom_is_answered_lies_on_its_pixels(client: TestClient, studies: Path) -> None:
    import pydicom

    result = _lines(client, image="film", text="heart")[-1]
    pixels = pydicom.dcmread(studies / "film.dcm").pixel_array
    (segment,) = result["segments"]
    drawn = _drawn(segment["planes"], (1, *pixels.shape))
    assert drawn.any()
    assert np.array_equal(drawn[0], pixels > np.median(pixels))


def test_without_asking_for_lines_the_answer_is_that_of_monai_label(client: TestClient) -> None:
    for accept in ("*/*", "application/json", "multipart/form-data"):
        answer = client.post(
            "/infer/text_prompt",
            params={"image": "stack"},
            data={"params": json.dumps({"text": "heart"})},
            headers={"Accept": accept},
        )
        assert answer.headers["content-type"].startswith("multipart/form-data")


@pytest.mark.parametrize(
    ("image", "params", "status"),
    [
        ("nobody", {"text": "heart"}, 404),
        ("", {"text": "heart"}, 400),
        ("stack", {"text": ""}, 400),
        ("stack", {"text": "heart", "clicks": {}}, 400),
        ("stack", {"text": "heart", "nonsense": 1}, 400),
    ],
)
def test_what_is_wrong_with_a_request_is_no_stream(
    client: TestClient, image: str, params: dict[str, Any], status: int
) -> None:
    answer = client.post("/infer/text_prompt", params={"image": image}, json=params, headers=LINES)
    assert answer.status_code == status
    assert answer.json()["detail"]


@pytest.mark.parametrize(("text", "status"), [("explode", 400), ("huge", 503), ("a bug", 500)])
def test_what_goes_wrong_later_is_the_last_line(client: TestClient, text: str, status: int) -> None:
    last = _lines(client, text=text)[-1]
    assert (last["event"], last["status"]) == ("error", status)
    assert "John" not in last["detail"]


def test_the_mask_of_an_answer_is_left_nowhere(client: TestClient, tmp_path: Path, monkeypatch: Any) -> None:
    import tempfile

    place = tmp_path / "left"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    _lines(client, text="heart")
    assert [file for file in place.iterdir() if file.is_file()] == []


@pytest.fixture
def url(make_app: Callable[..., Any], live: Callable[..., str], loaded: Any) -> Iterator[str]:
    yield live(create_app(make_app(queue_length="2")))
    loaded.gate.open.set()


def _slow(url: str, name: str, text: str = "slow") -> requests.Response:
    return requests.post(
        f"{url}/infer/text_prompt",
        params={"image": "stack", "request_id": name},
        json={"text": text},
        headers=LINES,
        stream=True,
        timeout=60,
    )


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_first_line_comes_at_once_and_tells_how_many_go_before(url: str, loaded: Any) -> None:
    first, lines = _slow(url, "one").iter_lines(), _slow(url, "two").iter_lines()
    assert json.loads(next(first))["event"] == "progress"
    assert json.loads(next(lines))["message"] == "waiting, 1 before"
    loaded.gate.open.set()
    assert json.loads(list(lines)[-1])["event"] == "result"


def test_a_client_that_leaves_cancels_its_request(url: str, loaded: Any) -> None:
    answer = _slow(url, "gone")
    # held: requests closes the connection when the iterator is collected
    lines = answer.iter_lines()
    next(lines)
    assert loaded.gate.entered.acquire(timeout=30)
    answer.close()
    _until(lambda: requests.get(f"{url}/requests/gone", timeout=60).json()["state"] == "cancelled")


def test_a_request_that_is_cancelled_says_so_in_its_last_line(url: str, loaded: Any) -> None:
    answer = _slow(url, "stopped")
    lines = answer.iter_lines()
    next(lines)
    assert loaded.gate.entered.acquire(timeout=30)
    stopper = threading.Thread(target=requests.delete, args=(f"{url}/requests/stopped",), kwargs={"timeout": 60})
    stopper.start()
    last = json.loads(list(lines)[-1])
    stopper.join()
    assert (last["event"], last["status"]) == ("error", 409)


# -- clicks ----------------------------------------------------------------------------------------------------------


def test_clicks_and_segments_of_a_viewer_are_corrected_on_the_files_own_voxels(
    client: TestClient, studies: Path
) -> None:
    wrong = np.zeros((40, 60), bool)
    wrong[12:15, 32:35] = True
    runs = [[12 * 60 + 32, 3, 13 * 60 + 32, 3, 14 * 60 + 32, 3]]
    result = _lines(
        client,
        "refine",
        label="my own finding",
        clicks={"foreground": [{"plane": 0, "x": 40, "y": 15}]},
        segments=[{"name": "my own finding", "planes": [{"plane": 0, "runs": runs[0]}]}],
    )[-1]
    (segment,) = result["segments"]
    assert segment["name"] == "my own finding"
    found = _drawn(segment["planes"], (3, 40, 60))
    # SAM's stand-in answers what is bright, on the plane of the click alone
    bright = _bright(studies)[0]
    assert (found[0] & bright).sum() > 0.9 * bright.sum()
    assert not (found[0] & ~bright & ~wrong).any()
    assert not found[1:].any()


def test_a_click_without_segments_begins_with_an_empty_mask(client: TestClient, studies: Path) -> None:
    _lines(client, text="heart")
    result = _lines(
        client, "refine", label="heart", clicks={"boxes": [{"plane": 2, "x0": 28, "y0": 8, "x1": 52, "y1": 22}]}
    )[-1]
    (segment,) = result["segments"]
    assert (segment["name"], [each["plane"] for each in segment["planes"]]) == ("heart", [2])


@pytest.mark.parametrize(
    "params",
    [
        {"clicks": {"foreground": [{"plane": 0, "x": 1, "y": 1}]}},
        {"label": "a", "clicks": {"foreground": [{"plane": 3, "x": 1, "y": 1}]}},
        {"label": "a", "clicks": {"foreground": [{"plane": 0, "x": 60, "y": 1}]}},
        {"label": "a", "clicks": {"foreground": [{"plane": 0.5, "x": 6, "y": 1}]}},
        {"label": "a", "clicks": {"foreground": {"plane": 0}}},
        {"label": "a", "clicks": {"forground": []}},
        {"label": "a", "clicks": [1]},
        {"label": "a", "clicks": {"boxes": [{"plane": 0, "x0": 0, "y0": 0, "x1": 4}]}},
        {"label": "a", "clicks": {"boxes": [{"plane": 0, "x0": 0, "y0": 0, "x1": 4, "y1": 4}] * 2}},
        {"label": "a", "segments": [{"name": "", "planes": []}]},
        {"label": "a", "segments": [{"name": "b", "planes": []}] * 2},
        {"label": "a", "segments": [{"name": "background", "planes": []}]},
        {"label": "a", "segments": [{"name": "b", "planes": [{"plane": 0, "runs": [0, 2401]}]}]},
        {"label": "a", "segments": {"name": "b"}},
    ],
)
def test_clicks_and_segments_that_are_none_are_refused(client: TestClient, params: dict[str, Any]) -> None:
    answer = client.post("/infer/refine", params={"image": "stack"}, json=params, headers=LINES)
    assert answer.status_code == 400
    assert answer.json()["detail"].endswith(".")


def test_a_segment_is_carried_on_to_the_other_planes(client: TestClient, studies: Path) -> None:
    drawn = _bright(studies)[0]
    planes = [{"plane": 0, "runs": encode_runs(drawn)}]
    result = _lines(
        client, "refine", label="my own", clicks={}, segments=[{"name": "my own", "planes": planes}], propagate=True
    )[-1]
    assert result["event"] == "result", result
    (segment,) = result["segments"]
    found = _drawn(segment["planes"], (3, 40, 60))
    # what a person has drawn is never changed
    assert np.array_equal(found[0], drawn)
    assert result["params"]["propagated"].keys() == {"my own"}
    last = _lines(client, "refine", label="a", segments=[])[-1]
    assert (last["event"], last["status"]) == ("error", 400)
