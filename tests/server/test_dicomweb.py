"""Studies on a DICOMweb server, against a small one that answers from a folder."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
import SimpleITK
from fastapi import HTTPException
from fastapi.testclient import TestClient

from medclipsam.server.app import MedClipSamApp
from medclipsam.server.asgi import create_app
from medclipsam.server.dicomweb import DicomWebStudies

SERIES_TAGS = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID")


class Pacs(ThreadingHTTPServer):
    """QIDO-RS search for studies and series, WADO-RS retrieval of a series."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.series = {str(data.SeriesInstanceUID): data for data in map(pydicom.dcmread, files)}
        self.retrieved: list[str] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.working = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/dicom-web"


class _Handler(BaseHTTPRequestHandler):
    server: Pacs

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((f"POST {len(body)} bytes", self.path, dict(self.headers)))
        self._answer("application/dicom+json", b"{}")

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, dict(self.headers)))
        where = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(where.query).items()}
        steps = where.path.removeprefix("/dicom-web").strip("/").split("/")
        if not self.server.working:
            self.send_error(500)
        elif steps[-1] in ("studies", "series"):
            wanted = query.get("SeriesInstanceUID") or query.get("0020000E")
            modalities = (query.get("Modality") or query.get("00080060") or "").split(",")
            found = [
                data
                for uid, data in self.server.series.items()
                if wanted in (None, uid) and (modalities == [""] or data.Modality in modalities)
            ]
            self._answer("application/dicom+json", json.dumps([self._tags(data) for data in found]).encode())
        else:
            self.server.retrieved.append(steps[-1])
            stored = io.BytesIO()
            self.server.series[steps[-1]].save_as(stored)
            part = b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + stored.getvalue() + b"\r\n--cut--\r\n"
            self._answer('multipart/related; type="application/dicom"; boundary=cut', part)

    def _tags(self, data: pydicom.Dataset) -> dict[str, Any]:
        few = pydicom.Dataset()
        for name in SERIES_TAGS:
            setattr(few, name, getattr(data, name))
        return few.to_json_dict()

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pacs(studies: Path, tmp_path: Path) -> Iterator[Pacs]:
    report = pydicom.dcmread(studies / "film.dcm")
    report.Modality, report.SeriesInstanceUID = "SR", "1.2.3.4"
    report.save_as(tmp_path / "report.dcm")
    with Pacs([studies / "film.dcm", tmp_path / "report.dcm"]) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def app(pacs: Pacs, tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> MedClipSamApp:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    return MedClipSamApp(str(tmp_path / "app"), pacs.url + "/", {"targets": "lungs x-ray"})


@pytest.fixture
def film(studies: Path) -> str:
    return str(pydicom.dcmread(studies / "film.dcm").SeriesInstanceUID)


def test_image_series_are_listed_and_reports_are_not(app: MedClipSamApp, film: str) -> None:
    assert isinstance(app.datastore(), DicomWebStudies)
    assert app.datastore().list_images() == [film]
    assert app.info()["datastore"]["total"] == 1


def test_a_radiograph_is_segmented_as_dicom_and_fetched_once(
    app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray
) -> None:
    for _ in range(2):
        answer = app.infer({"model": "lungs_x_ray", "image": film})
        mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(answer["file"]))
        Path(answer["file"]).unlink()
        assert np.array_equal(mask.reshape(picture.shape) > 0, picture > 128)
        assert answer["params"]["image"]["modality"] == "DX"
    assert pacs.retrieved == [film]


def test_an_original_label_is_kept_beside_the_fetched_series(app: MedClipSamApp, film: str) -> None:
    answer = app.infer({"model": "lungs_x_ray", "image": film, "save_label": True})
    Path(answer["file"]).unlink()
    assert answer["label"] == film
    assert Path(app.datastore().get_label_uri(film, "original")).is_file()


def test_a_final_label_without_the_dicom_seg_writer_says_what_to_install(
    app: MedClipSamApp, film: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(HTTPException, match="pip install dcmqi") as error:
        app.infer({"model": "lungs_x_ray", "image": film, "save_label": True, "label_tag": "final"})
    assert error.value.status_code == 400


@pytest.mark.parametrize("image", ["1.2.3.4", "1.2.3", "labels"])
def test_what_is_not_listed_is_unknown(app: MedClipSamApp, pacs: Pacs, image: str) -> None:
    with pytest.raises(HTTPException, match="not among") as error:
        app.infer({"model": "lungs_x_ray", "image": image})
    assert error.value.status_code == 404
    assert pacs.retrieved == []


def test_a_failing_server_is_a_bad_gateway(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    pacs.working = False
    with pytest.raises(HTTPException, match=pacs.url) as error:
        app.infer({"model": "lungs_x_ray", "image": film})
    assert error.value.status_code == 502
    assert "\n" not in error.value.detail


def test_a_series_that_nobody_asks_for_is_removed_and_fetched_again(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    answer = app.infer({"model": "lungs_x_ray", "image": film, "save_label": True})
    Path(answer["file"]).unlink()
    assert store.forget_series(3600) == 0
    assert store.forget_series(-1) == 1
    assert Path(store.get_label_uri(film, "original")).is_file()
    Path(app.infer({"model": "lungs_x_ray", "image": film})["file"]).unlink()
    assert pacs.retrieved == [film, film]


def test_a_series_is_fetched_once_by_many_threads(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    threads = [threading.Thread(target=app.image_path, args=(film,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pacs.retrieved == [film]


@pytest.fixture
def viewer(app: MedClipSamApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the routes that pass requests on, with credentials of its own."""
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "pacs-user")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "pacs-password")
    asgi = create_app(app)
    yield TestClient(asgi, headers={"Authorization": "Bearer the-viewers-own", "Cookie": "a=b"})
    asgi.state.queue.close()


@pytest.mark.parametrize(
    "path",
    [
        "qido/studies?PatientID=P1&limit=5",
        "qido/studies/1.2/series?includefield=all",
        "wado/studies/1.2/series/1.3/instances/1.4/frames/1,2",
        "wado/studies/1.2/series/1.3/metadata",
        "wado/studies/1.2/series/1.3/instances/1.4/rendered?quality=50",
        "studies/1.2/series",
    ],
)
def test_searches_and_retrievals_are_passed_on_with_their_query(viewer: TestClient, pacs: Pacs, path: str) -> None:
    viewer.get(f"/proxy/dicom/{path}")
    method, asked, headers = pacs.asked[-1]
    below = path.partition("/")[2] if path.startswith(("qido", "wado/")) else path
    assert (method, asked.removeprefix("/dicom-web/")) == ("GET", below)
    assert "the-viewers-own" not in str(headers)
    assert "Cookie" not in headers
    assert headers["Authorization"].startswith("Basic")


def test_a_search_is_answered_as_the_server_answers_it(viewer: TestClient, pacs: Pacs, film: str) -> None:
    answer = viewer.get("/proxy/dicom/qido/series", params={"SeriesInstanceUID": film})
    assert answer.headers["content-type"] == "application/dicom+json"
    assert [entry["0020000E"]["Value"] for entry in answer.json()] == [[film]]


@pytest.mark.parametrize(
    "path",
    [
        "wado/%2e%2e/system",
        "wado/studies/%2e%2e/%2e%2e/system",
        "qido/studies/1.2/../../../system",
        "system",
        "wado/studies/1.2/archive",
        "wado/studies/%2e%2e",
        "wado/studies/%2e%2e/metadata",
        "wado/studies/1.2/bulkdata/%2e%2e/%2e%2e/x",
        "qido/http:%2f%2fevil.example/studies",
        "wado/studies/1.2%3fx=/series",
        "wado/studies/1.2%0d%0aHost:x",
    ],
)
def test_nothing_else_of_the_server_is_reached(viewer: TestClient, pacs: Pacs, path: str) -> None:
    answer = viewer.get(f"/proxy/dicom/{path}")
    assert answer.status_code in (403, 404)
    assert "\n" not in answer.json()["detail"]
    assert pacs.asked == []


def test_instances_are_stored(viewer: TestClient, pacs: Pacs) -> None:
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    assert (
        viewer.post("/proxy/dicom/stow/studies", content=b"y" * 5000, headers={"Content-Type": kind}).status_code == 200
    )
    assert pacs.asked[-1][:2] == ("POST 5000 bytes", "/dicom-web/studies")
    assert pacs.asked[-1][2]["Content-Type"] == kind
    assert viewer.post("/proxy/dicom/qido/series", content=b"y").status_code == 403


def test_a_server_that_fails_is_a_bad_gateway_for_the_viewer_too(viewer: TestClient, pacs: Pacs) -> None:
    pacs.working = False
    answer = viewer.get("/proxy/dicom/qido/studies")
    assert answer.status_code == 502
    assert "500" in answer.json()["detail"]
    pacs.server_close()
    assert viewer.get("/proxy/dicom/qido/studies").status_code == 502
