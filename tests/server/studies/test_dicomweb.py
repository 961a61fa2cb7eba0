"""Studies on a DICOMweb server, against a small one that answers from memory and can be told to misbehave."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK
from fastapi import HTTPException
from fastapi.testclient import TestClient

from medclipsam.active.ledger import Score
from medclipsam.base.errors import OptionError, UpstreamError
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.imaging import read_image, read_mask, write_mask
from medclipsam.measurements.report import read_report
from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.api.asgi import create_app
from medclipsam.server.api.routes import proxy
from medclipsam.server.base.audit import AuditFile
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.studies.dicomweb import DicomWebStudies
from medclipsam.server.studies.waiting import Places, Turn

SERIES_TAGS = ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID")


class Pacs(ThreadingHTTPServer):
    """QIDO-RS search for studies and series, WADO-RS retrieval, STOW-RS, and what can go wrong with them.

    `fault` is what goes wrong where the path matches `at`, `times` times.
    """

    daemon_threads = True

    def __init__(self, files: list[Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.instances: list[pydicom.Dataset] = [pydicom.dcmread(file) for file in files]
        self.retrieved: list[str] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.fault, self.at, self.times = "", "", 1000
        # what arrives is stored, and is not listed before that is asked for
        self.late = False
        self.arrived: list[pydicom.Dataset] = []
        # what it makes of an instance that it stores
        self.change: Callable[[pydicom.Dataset], object] = lambda data: None
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/dicom-web"

    def of(self, series: str) -> list[pydicom.Dataset]:
        return [data for data in self.instances if str(data.SeriesInstanceUID) == series]

    @property
    def segmentations(self) -> list[pydicom.Dataset]:
        return [data for data in self.instances if data.Modality == "SEG"]

    def break_down(self, fault: str, at: str = "", times: int = 1000) -> None:
        self.fault, self.at, self.times = fault, at, times


class _Handler(BaseHTTPRequestHandler):
    server: Pacs

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((f"POST {len(body)} bytes", self.path, dict(self.headers)))
        start, end = body.find(b"\r\n\r\n"), body.rfind(b"\r\n--")
        data = pydicom.dcmread(io.BytesIO(body[start + 4 : end])) if b"DICM" in body else None
        sent = str(data.SOPInstanceUID) if data is not None else ""
        if data is not None:
            self.server.change(data)
        if data is not None and self.server.late:
            self.server.arrived.append(data)
        if self._misbehaves():
            return
        if data is not None and not self.server.late:
            self.server.instances.append(data)
        named = [{"00081155": {"vr": "UI", "Value": [sent]}}] if data is not None else []
        self._answer("application/dicom+json", json.dumps({"00081199": {"vr": "SQ", "Value": named}}).encode())

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, dict(self.headers)))
        where = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(where.query).items()}
        steps = where.path.removeprefix("/dicom-web").strip("/").split("/")
        if self._misbehaves():
            return
        if steps[-1] in ("studies", "series"):
            self._search(query)
        elif steps[-1] == "instances":
            found = [
                {"00080018": {"vr": "UI", "Value": [str(data.SOPInstanceUID)]}} for data in self.server.of(steps[3])
            ]
            self._answer("application/dicom+json", json.dumps(found if query.get("offset") == "0" else []).encode())
        elif steps[-1] == "metadata":
            found = self.server.of(steps[3])
            content = [{k: v for k, v in data.to_json_dict().items() if k != "7FE00010"} for data in found]
            self._answer("application/dicom+json", json.dumps(content).encode())
        else:
            wanted = [data for data in self.server.of(steps[3]) if len(steps) < 6 or data.SOPInstanceUID == steps[5]]
            wanted += [data for data in self.server.arrived if data.SOPInstanceUID == steps[-1] and not wanted]
            self.server.retrieved.append(steps[-1])
            if not wanted:
                self.send_error(404)
                return
            parts = b""
            for data in wanted:
                stored = io.BytesIO()
                data.save_as(stored)
                parts += b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + stored.getvalue() + b"\r\n"
            self._answer('multipart/related; type="application/dicom"; boundary=cut', parts + b"--cut--\r\n")

    def _search(self, query: dict[str, str]) -> None:
        modality = query.get("Modality", "")
        series = {str(data.SeriesInstanceUID): data for data in self.server.instances}
        found = [data for data in series.values() if data.Modality == (modality or data.Modality)]
        for name in ("PatientID", "SeriesInstanceUID"):
            found = [data for data in found if data[name].value == query.get(name, data[name].value)]
        begin = int(query.get("offset", 0))
        self._answer("application/dicom+json", json.dumps([self._tags(data) for data in found[begin:]]).encode())

    def _tags(self, data: pydicom.Dataset) -> dict[str, Any]:
        few = pydicom.Dataset()
        for name in SERIES_TAGS:
            setattr(few, name, data.get(name, ""))
        few.NumberOfSeriesRelatedInstances = len(self.server.of(str(data.SeriesInstanceUID)))
        return few.to_json_dict()

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _misbehaves(self) -> bool:
        server = self.server
        if not server.fault or not re.search(server.at, self.path) or server.times <= 0:
            return False
        server.times -= 1
        if server.fault.isdigit():
            status = int(server.fault)
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif server.fault == "slow":
            server.released.wait(20)
        elif server.fault == "held":
            server.released.wait(500)
            return False
        elif server.fault == "busy":
            self.send_response(503)
            self.send_header("Retry-After", "30")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif server.fault == "drip":
            self.send_response(200)
            self.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=cut')
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not server.released.wait(0.05):
                    self.wfile.write(b"x")
            self.close_connection = True
        elif server.fault == "drop":
            self.send_response(200)
            self.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=cut')
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + b"\0" * 128 + b"DICM" + b"x" * 2000)
            # the connection is torn, not ended
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif server.fault == "short":
            body = b"--cut\r\n\r\n" + b"\0" * 128 + b"DICM" + b"x" * 2000
            self._answer('multipart/related; type="application/dicom"; boundary=cut', body)
        else:
            self._answer("application/dicom+json", server.fault.encode())
        return True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pacs(studies: Path, tmp_path: Path) -> Iterator[Pacs]:
    report = pydicom.dcmread(studies / "film.dcm")
    report.Modality, report.SeriesInstanceUID = "SR", "1.2.3.4"
    report.save_as(tmp_path / "report.dcm")
    with Pacs([studies / "film.dcm", tmp_path / "report.dcm"]) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def conf() -> dict[str, str]:
    """Settings of the app; a test may add some before it uses `app`."""
    return {"targets": "lungs x-ray", "pacs_timeout": "1", "pacs_retries": "1"}


@pytest.fixture
def app(
    pacs: Pacs, tmp_path: Path, loaded: Any, conf: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> MedClipSamApp:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "pacs-user")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "pacs-password")
    return MedClipSamApp(str(tmp_path / "app"), pacs.url + "/", conf)


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
    assert any("transfer-syntax=*" in headers["Accept"] for _, _, headers in pacs.asked)


def test_an_original_label_is_kept_beside_the_fetched_series(app: MedClipSamApp, film: str) -> None:
    answer = app.infer({"model": "lungs_x_ray", "image": film, "save_label": True})
    Path(answer["file"]).unlink()
    assert answer["label"] == film
    assert Path(app.datastore().get_label_uri(film, "original")).is_file()


@pytest.mark.parametrize("image", ["1.2.3.4", "1.2.3", "labels"])
def test_what_is_not_listed_is_unknown(app: MedClipSamApp, pacs: Pacs, image: str) -> None:
    with pytest.raises(HTTPException, match="not among") as error:
        app.infer({"model": "lungs_x_ray", "image": image})
    assert error.value.status_code == 404
    assert pacs.retrieved == []


def test_a_failing_server_is_a_bad_gateway(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    pacs.break_down("500")
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
    assert store.forget_series(-1000) == 1
    assert Path(store.get_label_uri(film, "original")).is_file()
    Path(app.infer({"model": "lungs_x_ray", "image": film})["file"]).unlink()
    assert pacs.retrieved == [film, film]


def test_a_fetched_series_that_vanishes_while_it_is_looked_at_is_passed_over(
    app: MedClipSamApp, film: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = app.datastore()
    folder = app.image_path(film)
    stat = Path.stat

    def vanishing(self: Path, **options: Any) -> Any:
        state = stat(self, **options)
        if self == folder:
            shutil.rmtree(folder, ignore_errors=True)
        return state

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", vanishing)
        assert store.forget_series(-1000) == 0
    assert not folder.exists()


def test_what_a_killed_process_was_fetching_goes_at_the_next_start(
    app: MedClipSamApp, pacs: Pacs, conf: dict[str, str], tmp_path: Path
) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    place = Path(store.get_image_uri(store.list_images()[0])).parent
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    left = [place / f".1.2.3.{ended.pid}.partial", place / "labels" / "final" / f".1.2.3.{ended.pid}.partial"]
    kept = place / f".1.2.4.{os.getpid()}.partial"
    for folder in (*left, kept):
        folder.mkdir()
        (folder / "0.dcm").write_text("half")
    MedClipSamApp(str(tmp_path / "app"), pacs.url, conf)
    assert not any(folder.exists() for folder in left)
    assert kept.exists()


@pytest.fixture
def patient(conf: dict[str, str]) -> None:
    """Wait long for the server; used before `app` is made."""
    conf["pacs_timeout"] = "500"


@pytest.fixture
def clients() -> Iterator[httpx.Client]:
    """A client for many threads."""
    with httpx.Client(timeout=500, limits=httpx.Limits(max_connections=None)) as client:
        yield client


def test_fifty_clients_of_a_slow_series_keep_nobody_from_an_answer(
    patient: None, app: MedClipSamApp, pacs: Pacs, film: str, live: Callable[..., str], clients: httpx.Client
) -> None:
    asgi = create_app(app)
    url = live(asgi)
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    turn = store._fetching[film] = Turn("a series", seconds=500)
    pacs.break_down("held", _RETRIEVE)
    with ThreadPoolExecutor(50) as threads:
        where = f"{url}/datastore/image?image={film}"
        asked = [threads.submit(clients.head, where) for _ in range(50)]
        while turn.waiting < 49:
            time.sleep(0.01)
        # what does not need the series is answered meanwhile
        try:
            for path in ("healthz", "info/", "datastore/", "requests/", "proxy/dicom/qido/series"):
                assert clients.get(f"{url}/{path}").status_code == 200, path
            # the app is not the process's own here
            assert clients.get(f"{url}/readyz").status_code == 503
            assert not any(each.done() for each in asked)
        finally:
            pacs.released.set()
        assert {each.result().status_code for each in asked} == {200}
    assert pacs.retrieved == [film]
    asgi.state.queue.close()


def test_requests_that_wait_for_the_server_are_bounded(
    patient: None,
    app: MedClipSamApp,
    pacs: Pacs,
    live: Callable[..., str],
    clients: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the viewer, which are passed on, wait without a thread."""
    monkeypatch.setattr(proxy, "_THREADS", anyio.CapacityLimiter(3))
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    store._places, store._listing = Places(5, "the server"), Turn("the list", seconds=500)
    asgi = create_app(app)
    url = live(asgi)
    pacs.break_down("held", "series")
    with ThreadPoolExecutor(20) as threads:
        slow = [threads.submit(clients.get, f"{url}/datastore/") for _ in range(10)]
        passed = [threads.submit(clients.get, f"{url}/proxy/dicom/qido/series") for _ in range(10)]
        while sum(each.done() for each in slow) < 5:
            time.sleep(0.01)
        try:
            for path in ("healthz", "requests/", "metrics"):
                assert clients.get(f"{url}/{path}").status_code == 200, path
            refused = [each.result() for each in slow if each.done()]
            assert {answer.status_code for answer in refused} == {503}
            assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
        finally:
            pacs.released.set()
        assert [each.result().status_code for each in passed] == [200] * 10
        assert sorted(each.result().status_code for each in slow) == [200] * 5 + [503] * 5
    asgi.state.queue.close()


@pytest.mark.parametrize("times", [1, 1000])
def test_a_busy_servers_time_is_passed_on(viewer: TestClient, pacs: Pacs, film: str, times: int) -> None:
    pacs.break_down("busy", "", times=times)
    for path in (f"datastore/image?image={film}", "proxy/dicom/qido/series"):
        answer = viewer.get(f"/{path}")
        if times > 1 or path.startswith("proxy"):
            assert answer.status_code == (503 if times > 1 else 200)
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "30"


def test_an_answer_that_drips_is_given_up(viewer: TestClient, pacs: Pacs, film: str, tmp_path: Path) -> None:
    pacs.break_down("drip", _RETRIEVE)
    assert viewer.get("/datastore/image", params={"image": film}).status_code == 504
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_an_answer_that_breaks_off_is_not_passed_on_as_whole(
    app: MedClipSamApp, pacs: Pacs, film: str, live: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    asgi = create_app(app)
    url = live(asgi)
    study = pacs.of(film)[0].StudyInstanceUID
    for fault in ("drop", "drip"):
        pacs.break_down(fault, _RETRIEVE)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{url}/proxy/dicom/wado/studies/{study}/series/{film}", timeout=60)
    assert [record for record in caplog.records if record.exc_info] == []
    assert httpx.get(f"{url}/healthz").status_code == 200
    asgi.state.queue.close()


def test_a_series_is_fetched_once_by_many_threads(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    threads = [threading.Thread(target=app.image_path, args=(film,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pacs.retrieved == [film]


@pytest.fixture
def viewer(app: MedClipSamApp) -> Iterator[TestClient]:
    """A client of the routes that pass requests on, with credentials of its own."""
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


def multipart(*parts: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body of a store and its headers."""
    body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % part for part in parts) + b"--x--\r\n"
    return body, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}


def test_what_is_stored_is_in_the_audit_file(app: MedClipSamApp, pacs: Pacs, film: str, tmp_path: Path) -> None:
    app.audit = AuditFile(str(tmp_path / "audit.jsonl"))
    tokens = tmp_path / "tokens"
    tokens.write_text("ann annotator annotator-0123456789abcdef\n")
    tokens.chmod(0o600)
    asgi = create_app(app, Access(load_tokens(tokens)))
    client = TestClient(asgi, headers={"Authorization": "Bearer annotator-0123456789abcdef"})
    one, other = (io.BytesIO(), io.BytesIO())
    data = pacs.of(film)[0]
    data.save_as(one)
    first = str(data.SOPInstanceUID)
    data.SOPInstanceUID = "1.2.3.4.5"
    data.save_as(other)
    data.SOPInstanceUID = first
    body, headers = multipart(one.getvalue(), other.getvalue(), b"no DICOM")
    # the fake server names the first instance alone
    assert client.post("/proxy/dicom/stow/studies", content=body, headers=headers).status_code == 200
    for fault in ("409", "500", "busy", "401", "drop"):
        pacs.break_down(fault)
        client.post("/proxy/dicom/stow/studies", content=body, headers=headers)
    pacs.break_down("")
    cut = body[: len(body) - 30]
    client.post("/proxy/dicom/stow/studies", content=cut, headers=headers)
    assert client.post("/proxy/dicom/stow/studies", content=b"y", headers=headers).status_code == 200
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {(line["event"], line["user"], line["route"]) for line in lines} == {
        ("instances passed on", "ann", "POST /proxy/dicom/stow/studies")
    }
    told = [set(line["instances"].values()) for line in lines]
    assert lines[0]["instances"] == {first: "stored", "1.2.3.4.5": "unknown"}
    assert lines[0]["status"] == 200
    assert told[1:6] == [{"not stored"}, {"unknown"}, {"not stored"}, {"not stored"}, {"unknown"}]
    assert set(lines[6]["instances"]) == {first, "1.2.3.4.5"}
    assert lines[7]["instances"] == {}
    asgi.state.queue.close()


def test_a_server_that_fails_is_a_bad_gateway_for_the_viewer_too(viewer: TestClient, pacs: Pacs) -> None:
    pacs.break_down("500")
    answer = viewer.get("/proxy/dicom/qido/studies")
    assert answer.status_code == 502
    assert "500" in answer.json()["detail"]
    pacs.shutdown()
    pacs.server_close()
    assert viewer.get("/proxy/dicom/qido/studies").status_code == 502


def test_a_redirect_is_not_followed(viewer: TestClient, pacs: Pacs) -> None:
    pacs.break_down("302")
    answer = viewer.get("/proxy/dicom/qido/studies")
    assert (answer.status_code, "another address" in answer.json()["detail"]) == (502, True)


def test_a_form_that_the_viewer_wants_is_asked_for(viewer: TestClient, pacs: Pacs) -> None:
    kind = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    viewer.get("/proxy/dicom/wado/studies/1.2/series/1.3/instances/1.4/frames/1", headers={"Accept": kind})
    assert pacs.asked[-1][2]["Accept"] == kind


# WADO-RS of a series, not QIDO-RS below it.
_RETRIEVE = r"/series/[\d.]+$"

# What goes wrong, where, and the answer: a status and a word of its sentence.
FAULTS = {
    "down for searches": ("500", "series\\?", 502, "500"),
    "too busy": ("503", "", 502, "503"),
    "wrong password": ("401", "", 502, "refuses the credentials"),
    "forbidden": ("403", "/studies/", 502, "refuses the credentials"),
    "slow to list": ("slow", "series\\?", 504, "within 1 second"),
    "slow to send": ("slow", "/studies/", 504, "within 1 second"),
    "sends elsewhere": ("307", "/studies/", 502, "another address"),
    "drops in mid-download": ("drop", "/studies/", 502, "broke off"),
    "sends half of it": ("short", _RETRIEVE, 502, "broke off"),
    "500 for the series": ("500", "/studies/", 502, "500"),
    "malformed list": ('[{"0020000E": ', "series\\?", 502, "DICOM JSON"),
    "a web page": ("<html>log in</html>", "series\\?", 502, "DICOM JSON"),
    "no list": ('{"a": 1}', "series\\?", 502, "DICOM JSON"),
    "series without UID": ('[{"00080060": {"vr": "CS", "Value": ["DX"]}}]', "series\\?", 502, "SeriesInstanceUID"),
    "path for a UID": (
        '[{"0020000E": {"vr": "UI", "Value": ["../x"]}, "0020000D": {"vr": "UI", "Value": ["1"]}}]',
        "series\\?",
        502,
        "SeriesInstanceUID",
    ),
    "series deleted": ("404", "/studies/", 404, "any more"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_goes_wrong_is_told_and_leaves_nothing_behind(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, tmp_path: Path, case: str
) -> None:
    fault, at, status, words = FAULTS[case]
    pacs.break_down(fault, at)
    answer = viewer.post("/infer/lungs_x_ray", params={"image": film, "output": "json"})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert "pacs-password" not in answer.text
    left = [path.name for path in (tmp_path / "cache").glob("*/*") if path.name not in ("labels", ".lock", ".storing")]
    assert left == []
    # and once it is well again, all is
    pacs.break_down("")
    assert viewer.get("/info/").status_code == 200
    time.sleep(1.1 if status == 404 else 0)
    assert viewer.post("/infer/lungs_x_ray", params={"image": film, "output": "json"}).status_code == 200


ODD_ENTRIES: dict[str, dict[str, Any]] = {
    "no UIDs": {"00080060": {"vr": "CS", "Value": ["DX"]}},
    "an unknown VR": {"0020000D": {"vr": "ZZ", "Value": ["1.2"]}, "0020000E": {"vr": "UI", "Value": ["1.2.9"]}},
    "a number for a UID": {"0020000D": {"vr": "UI", "Value": [12]}, "0020000E": {"vr": "UI", "Value": ["1.2.9"]}},
    "half a surrogate": {
        "00080060": {"vr": "CS", "Value": ["DX"]},
        "0020000D": {"vr": "UI", "Value": ["1.2"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.9"]},
        "00100020": {"vr": "LO", "Value": ["\ud800"]},
    },
    "a list for a date": {
        "0020000D": {"vr": "UI", "Value": ["1.2"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.9"]},
        "00080020": {"vr": "DA", "Value": [{"a": 1}]},
    },
}


@pytest.mark.parametrize("entry", ODD_ENTRIES)
def test_an_odd_series_in_the_list_hides_no_other(viewer: TestClient, pacs: Pacs, film: str, entry: str) -> None:
    (known,) = [data for data in pacs.instances if str(data.SeriesInstanceUID) == film]
    usual = {
        name: {"vr": "UI" if name.startswith("0020") else "LO", "Value": [value]}
        for name, value in (
            ("0020000D", str(known.StudyInstanceUID)),
            ("0020000E", film),
            ("00100020", "P"),
        )
    }
    pacs.break_down(json.dumps([ODD_ENTRIES[entry], usual]), r"/series\?.*Modality=DX")
    listed = viewer.get("/datastore/?output=all")
    assert listed.status_code == 200, listed.text
    assert film in listed.json()["objects"]
    offered = [viewer.post("/activelearning/random", json={"client_id": str(person)}) for person in range(9)]
    # one that is listed and cannot be fetched is 404 for whom it was offered to
    assert {answer.status_code for answer in offered} <= {200, 404}
    assert film in {answer.json().get("id") for answer in offered}


@pytest.mark.parametrize("fault", ["500", "503", "drop", "short"])
def test_what_goes_wrong_once_is_tried_again(app: MedClipSamApp, pacs: Pacs, film: str, fault: str) -> None:
    pacs.break_down(fault, _RETRIEVE if fault == "short" else "/studies/", times=1)
    assert len(list(app.image_path(film).iterdir())) == 1


def test_a_wrong_password_is_tried_once(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    pacs.break_down("401")
    with pytest.raises(UpstreamError, match="refuses"):
        app.image_path(film)
    assert len(pacs.asked) == 1


def test_a_series_of_which_instances_are_missing_is_not_taken(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    app.datastore().list_images()
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    object.__setattr__(store._series()[film], "count", 3)
    with pytest.raises(UpstreamError, match="1 of 3"):
        app.image_path(film)


def test_an_instance_of_another_series_is_not_taken(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    app.datastore().list_images()
    pacs.of(film)[0].SeriesInstanceUID = "9.9.9"
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    with pytest.raises(UnknownError, match="any more"):
        store.get_image_uri(film)


def _label(folder: Path, picture: np.ndarray, label: int = 3) -> Path:
    """Write a label that lies on the film as ITK reads it."""
    mask = SimpleITK.GetImageFromArray(np.where(picture > 128, label, 0).astype(np.uint8)[None])
    mask.SetSpacing((1.5, 1.5, 1.0))
    SimpleITK.WriteImage(mask, folder / "label.nii.gz")
    return folder / "label.nii.gz"


def _forget_file(store: Any, image: str) -> None:
    """Remove the file here of a label that is on the server."""
    Path(store._label_path(image, "final", ".nii.gz")).unlink()


def _put(viewer: TestClient, image: str, file: Path, **params: Any) -> Any:
    with file.open("rb") as content:
        return viewer.put(
            "/datastore/label",
            params={"image": image, "tag": "final"},
            data={"params": json.dumps(params)},
            files={"label": (file.name, content)},
        )


def test_a_label_that_the_server_does_not_store_is_not_saved(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    file = _label(tmp_path, picture)
    pacs.break_down("507", "POST|studies/[0-9.]+$")
    viewer.get("/datastore/image/info", params={"image": film})
    pacs.break_down("")
    app.image_path(film)
    pacs.break_down("507", "studies/[0-9.]+$")
    answer = _put(viewer, film, file)
    assert (answer.status_code, "507" in answer.json()["detail"]) == (502, True)
    assert app.datastore().get_labeled_images() == []
    assert app.datastore().status()["completed"] == 0
    pacs.break_down("")
    assert _put(viewer, film, file).status_code == 200
    assert app.datastore().get_labeled_images() == [film]


def test_a_correction_takes_the_place_of_the_label_before(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 200
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200
    first, second = pacs.segmentations
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert second.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    store = app.datastore()
    # as another process sees it, which has saved nothing
    _forget_file(store, film)
    store.refresh()
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(store.get_label_uri(film, "final")))
    assert np.array_equal(found.reshape(picture.shape), np.where(picture > 128, 11, 0))
    info = store.get_label_info(film, "final")
    assert info["label_info"] == [{"name": "left lung", "idx": 11}]
    assert info["SOPInstanceUID"] == second.SOPInstanceUID
    assert store.get_labels_by_image_id(film) == {"final": film}


def _layers(folder: Path, picture: np.ndarray) -> tuple[Path, dict[str, np.ndarray]]:
    """Write segments that overlap on the film, as 3D Slicer does; return the file and the masks [row, column]."""
    masks = {name: np.zeros(picture.shape, bool) for name in ("left lung", "heart")}
    masks["left lung"][5:30, 5:40] = masks["heart"][10:20, 30:50] = True
    drawn = SimpleITK.GetImageFromArray(np.stack([*masks.values()], axis=-1)[None].astype(np.uint8), isVector=True)
    drawn.SetSpacing((1.5, 1.5, 1.0))
    for number, name in enumerate(masks):
        for key, text in (("Name", name), ("LabelValue", "1"), ("Layer", str(number))):
            drawn.SetMetaData(f"Segment{number}_{key}", text)
    SimpleITK.WriteImage(drawn, folder / "label.seg.nrrd")
    return folder / "label.seg.nrrd", masks


def test_segments_that_overlap_are_stored_and_come_back_whole(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    file, masks = _layers(tmp_path, picture)
    assert _put(viewer, film, file).status_code == 200
    (stored,) = pacs.segmentations
    assert stored.SegmentationType == "BINARY"
    frames = stored.pixel_array
    for segment, frame in zip(stored.SegmentSequence, frames, strict=True):
        assert np.array_equal(frame > 0, masks[segment.SegmentLabel])
    store = app.datastore()
    # as another process sees it, which has saved nothing
    Path(store._label_path(film, "final", ".seg.nrrd")).unlink()
    store.refresh()
    path = store.get_label_uri(film, "final")
    found = SimpleITK.ReadImage(path)
    layers = SimpleITK.GetArrayFromImage(found).reshape(*picture.shape, 2)
    for number in range(2):
        value, layer = (int(found.GetMetaData(f"Segment{number}_{key}")) for key in ("LabelValue", "Layer"))
        assert np.array_equal(layers[..., layer] == value, masks[found.GetMetaData(f"Segment{number}_Name")])
    # one that takes its place has one file, whatever its format
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 200
    assert [each.name for each in Path(path).parent.iterdir()] == [f"{film}.nii.gz"]


@pytest.fixture
def as_labelmap(conf: dict[str, str]) -> None:
    conf.update(pacs_seg_type="LABELMAP")


@pytest.mark.usefixtures("as_labelmap")
def test_segments_that_overlap_are_no_labelmap(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    answer = _put(viewer, film, _layers(tmp_path, picture)[0])
    assert answer.status_code == 400
    assert all(word in answer.json()["detail"] for word in ("'left lung'", "'heart'", "LABELMAP", "BINARY"))
    assert pacs.segmentations == []
    assert app.datastore().get_labeled_images() == []


@pytest.fixture
def as_labelmap_with_report(conf: dict[str, str]) -> None:
    conf.update(pacs_seg_type="LABELMAP", pacs_reports="true")


@pytest.mark.usefixtures("as_labelmap_with_report")
def test_a_label_is_stored_as_a_labelmap_with_a_report_of_its_measurements(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200
    (stored,) = pacs.segmentations
    assert stored.SegmentationType == "LABELMAP"
    named = app.datastore().get_label_info(film, "final")["report"]
    # as another process sees it, which has saved nothing
    store = app.datastore()
    _forget_file(store, film)
    store.refresh()
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(store.get_label_uri(film, "final")))
    assert np.array_equal(found.reshape(picture.shape), np.where(picture > 128, 11, 0))
    report = next(data for data in pacs.instances if data.get("Manufacturer") == "medclipsam" and data.Modality == "SR")
    assert named == {"SeriesInstanceUID": report.SeriesInstanceUID, "SOPInstanceUID": report.SOPInstanceUID}
    report.save_as(tmp_path / "sr.dcm")
    (finding,) = read_report(tmp_path / "sr.dcm")
    assert (finding.name, finding.segmentation, finding.segment) == ("left lung", stored.SOPInstanceUID, 1)
    assert finding.values["VOXELS", ""] == (picture > 128).sum()


@pytest.fixture(params=["BINARY", "LABELMAP"])
def of_each_kind(request: pytest.FixtureRequest, conf: dict[str, str]) -> None:
    conf["pacs_seg_type"] = request.param


@pytest.mark.usefixtures("of_each_kind")
def test_a_report_of_a_label_is_stored_when_it_is_asked_for(
    viewer: TestClient, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    where = f"/viewer/api/labels/{film}/report"
    assert viewer.post(where).status_code == 404
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200

    def reports() -> list[pydicom.Dataset]:
        return [data for data in pacs.instances if data.get("Manufacturer") == "medclipsam" and data.Modality == "SR"]

    assert reports() == []
    names = viewer.post(where).json()
    (report,) = reports()
    assert names == {"SeriesInstanceUID": report.SeriesInstanceUID, "SOPInstanceUID": report.SOPInstanceUID}
    report.save_as(tmp_path / "sr.dcm")
    (finding,) = read_report(tmp_path / "sr.dcm")
    (stored,) = pacs.segmentations
    assert (finding.name, finding.segmentation, finding.segment) == ("left lung", stored.SOPInstanceUID, 1)
    assert finding.values["VOXELS", ""] == (picture > 128).sum()
    # once for each label
    assert viewer.post(where).json() == names
    assert len(reports()) == 1
    assert _put(viewer, film, _label(tmp_path, 255 - picture, 13)).status_code == 200
    assert viewer.post(where).json() != names
    assert len(reports()) == 2
    # of a label without a finding nothing is measured
    assert _put(viewer, film, _label(tmp_path, 0 * picture, 13)).status_code == 200
    assert viewer.post(where).status_code == 200
    reports()[-1].save_as(tmp_path / "sr.dcm")
    assert [found.values["VOXELS", ""] for found in read_report(tmp_path / "sr.dcm")] == [0]


@pytest.mark.usefixtures("as_labelmap_with_report")
def test_a_label_is_saved_where_the_server_refuses_its_report(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    def refuse(data: pydicom.Dataset) -> None:
        if data.Modality == "SR":
            data.SOPInstanceUID = "1.2.3"
            pacs.break_down("507", "studies/[0-9.]+$", times=1)

    pacs.change = refuse
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200
    info = app.datastore().get_label_info(film, "final")
    assert "507" in info["report"]["error"]
    assert info["label_info"] == [{"name": "left lung", "idx": 11}]


def _list_what_arrived(pacs: Pacs, store: Any) -> None:
    pacs.instances += pacs.arrived
    pacs.arrived.clear()
    pacs.late = False
    store._segmentations.clear()
    store.refresh()


def _superseded(data: pydicom.Dataset) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in data.get("ReferencedInstanceSequence") or []]


def test_a_label_that_is_listed_late_counts_at_once_and_is_superseded(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    pacs.late = True
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 200
    assert pacs.segmentations == []
    assert store.get_labeled_images() == [film]
    answer = viewer.get("/datastore/label", params={"label": film, "tag": "final"})
    assert answer.status_code == 200
    # as after a restart, with the first one still not listed
    again = _started_again(store)
    assert again.get_labeled_images() == [film]
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200
    first, second = pacs.arrived
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert _superseded(second) == [first.SOPInstanceUID]
    _list_what_arrived(pacs, store)
    assert store.get_label_info(film, "final")["SOPInstanceUID"] == second.SOPInstanceUID
    assert store._sent.all() == []
    # and one that is listed, and then removed there, is gone
    pacs.instances = [data for data in pacs.instances if data.Modality != "SEG"]
    store.refresh()
    assert store.get_labeled_images() == []


def test_a_label_whose_store_timed_out_is_looked_for_and_superseded_later(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    store = app.datastore()
    app.image_path(film)
    pacs.late = True
    pacs.break_down("slow", "studies/[0-9.]+$", times=1)
    answer = _put(viewer, film, _label(tmp_path, picture))
    assert answer.status_code == 504
    assert store.get_labeled_images() == []
    first = pacs.arrived[0]
    pacs.late = False
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200
    (second,) = pacs.segmentations
    assert _superseded(second) == [first.SOPInstanceUID]
    _list_what_arrived(pacs, store)
    assert store.get_label_info(film, "final")["SOPInstanceUID"] == second.SOPInstanceUID


def test_a_label_whose_store_timed_out_and_that_is_listed_is_saved(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    app.image_path(film)
    pacs.late = True
    # what arrives is listed as soon as it is there
    pacs.arrived = pacs.instances
    pacs.break_down("slow", "studies/[0-9.]+$", times=1)
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 200
    assert app.datastore().get_labeled_images() == [film]
    assert len(pacs.segmentations) == 1


def test_a_label_that_the_server_refuses_is_not_superseded(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    app.image_path(film)
    pacs.break_down("409", "studies/[0-9.]+$", times=1)
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 502
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 200
    (stored,) = pacs.segmentations
    assert _superseded(stored) == []


def _clear(data: pydicom.Dataset) -> None:
    data.PixelData = bytes(len(data.PixelData))


def _flip_one_bit(data: pydicom.Dataset) -> None:
    data.PixelData = bytes([data.PixelData[0] ^ 1]) + data.PixelData[1:]


def _cut_off(data: pydicom.Dataset) -> None:
    data.PixelData = data.PixelData[: len(data.PixelData) // 2]


def _rename(data: pydicom.Dataset) -> None:
    data.SegmentSequence[0].SegmentLabel = "right lung"


def _recode(data: pydicom.Dataset) -> None:
    data.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "80891009"


def _renumber(data: pydicom.Dataset) -> None:
    data.SegmentSequence[0].private_block(0x0071, "MEDCLIPSAM SEGMENT")[0x01].value = 12


def _give_new_uid(data: pydicom.Dataset) -> None:
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"


def _move_to_another_series(data: pydicom.Dataset) -> None:
    data.SeriesInstanceUID = "1.2.3.98"


def _lose_the_series(data: pydicom.Dataset) -> None:
    data.PixelData = b""


_CHANGES = (_clear, _flip_one_bit, _cut_off, _lose_the_series, _rename, _recode, _renumber)


def _started_again(store: DicomWebStudies) -> DicomWebStudies:
    """Return the studies as a server finds them that is started later with the same cache."""
    return DicomWebStudies(
        store.pacs, store._root, images=store._images, describe=store._describe, label_of=store._label_of
    )


def _label_now(store: Any, film: str, picture: np.ndarray) -> np.ndarray:
    mask = SimpleITK.ReadImage(store.get_label_uri(film, "final"))
    return SimpleITK.GetArrayFromImage(mask).reshape(picture.shape)


@pytest.mark.parametrize("change", _CHANGES, ids=lambda change: change.__name__)
def test_a_label_that_the_server_changes_is_an_error_and_the_label_before_it_stays(
    viewer: TestClient,
    app: MedClipSamApp,
    pacs: Pacs,
    film: str,
    picture: np.ndarray,
    tmp_path: Path,
    change: Callable[[pydicom.Dataset], object],
) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    assert _put(viewer, film, _label(tmp_path, picture, 13)).status_code == 200
    first = pacs.segmentations[0]
    pacs.change = change
    # new to the server of the same cache and one that was started later alike
    assert _put(viewer, film, _label(tmp_path, picture.T.reshape(picture.shape), 11)).status_code == 502
    again = _started_again(store)
    _forget_file(store, film)
    for each in (store, again):
        assert np.array_equal(_label_now(each, film, picture), np.where(picture > 128, 13, 0))
        assert each.get_label_info(film, "final")["SOPInstanceUID"] == first.SOPInstanceUID
    # the next one takes the place of both, for other servers too
    pacs.change = lambda data: None
    wrong = pacs.segmentations[1].SOPInstanceUID
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 200
    assert set(_superseded(pacs.segmentations[2])) == {first.SOPInstanceUID, wrong}
    assert np.array_equal(_label_now(store, film, picture), np.where(picture > 128, 11, 0))
    assert list((store._root / ".sent").iterdir()) == []


@pytest.mark.parametrize("change", [_give_new_uid, _move_to_another_series], ids=lambda change: change.__name__)
def test_a_label_that_the_server_stores_under_another_uid_is_an_error(
    viewer: TestClient, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path, change: Callable[..., object]
) -> None:
    pacs.change = change
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 502


def test_a_first_label_that_the_server_changes_is_none(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    pacs.change = _clear
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 502
    assert len(pacs.segmentations) == 1
    assert app.datastore().get_labeled_images() == []
    assert viewer.get("/datastore/label", params={"label": film, "tag": "final"}).status_code == 404


_RETRIEVE_LABEL = r"/instances/[\d.]+$"


@pytest.mark.parametrize(("fault", "status"), [("500", 502), ("slow", 504), ("drop", 502), ("404", 502)])
@pytest.mark.parametrize("changed", [False, True])
def test_a_label_that_cannot_be_read_back_is_compared_at_its_first_reading(
    viewer: TestClient,
    app: MedClipSamApp,
    pacs: Pacs,
    film: str,
    picture: np.ndarray,
    tmp_path: Path,
    fault: str,
    status: int,
    changed: bool,
) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    assert _put(viewer, film, _label(tmp_path, picture, 13)).status_code == 200
    pacs.break_down(fault, _RETRIEVE_LABEL)
    pacs.change = _clear if changed else lambda data: None
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == status
    (copy,) = (store._root / ".sent").iterdir()
    assert pydicom.dcmread(copy).SOPInstanceUID == pacs.segmentations[1].SOPInstanceUID
    pacs.break_down("")
    store.refresh()
    assert np.array_equal(_label_now(store, film, picture), np.where(picture > 128, 13 if changed else 11, 0))
    assert list((store._root / ".sent").iterdir()) == []


def test_a_label_that_is_said_to_be_stored_and_is_not_leaves_the_one_before(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    assert _put(viewer, film, _label(tmp_path, picture, 13)).status_code == 200
    pacs.late = True
    pacs.change = lambda data: setattr(data, "SOPInstanceUID", "1.2.3.97")
    assert _put(viewer, film, _label(tmp_path, picture, 11)).status_code == 502
    assert np.array_equal(_label_now(app.datastore(), film, picture), np.where(picture > 128, 13, 0))


def test_what_was_corrected_in_the_headers_is_told(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    pacs.of(film)[0].PatientSex = "Male"
    answer = _put(viewer, film, _label(tmp_path, picture))
    assert answer.status_code == 200
    assert any("PatientSex" in note for note in answer.json()["corrections"])
    (stored,) = pacs.segmentations
    assert stored.PatientSex == "M"
    assert app.datastore().get_label_info(film, "final")["corrections"] == answer.json()["corrections"]


def test_a_label_that_is_removed_from_the_server_is_gone(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    _put(viewer, film, _label(tmp_path, picture))
    assert viewer.get("/datastore/label", params={"label": film, "tag": "final"}).status_code == 200
    assert viewer.delete("/datastore/label", params={"id": film, "tag": "final"}).status_code == 400
    pacs.instances = [data for data in pacs.instances if data.Modality != "SEG"]
    app.datastore().refresh()
    assert viewer.get("/datastore/label", params={"label": film, "tag": "final"}).status_code == 404
    assert app.datastore().get_unlabeled_images() == [film]


def test_a_confirmed_absence_is_a_label(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    file = _label(tmp_path, np.zeros_like(picture))
    assert _put(viewer, film, file, label_names={"heart": 13}).status_code == 200
    (stored,) = pacs.segmentations
    assert [segment.SegmentLabel for segment in stored.SegmentSequence] == ["heart"]
    assert not stored.pixel_array.any()
    assert stored.SeriesDescription == "medclipsam: no heart"
    store = app.datastore()
    _forget_file(store, film)
    assert not SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(store.get_label_uri(film, "final"))).any()
    assert store.get_label_info(film, "final")["label_names"] == {"heart": 13}
    # nobody said what was looked for
    assert _put(viewer, film, file).status_code == 200
    assert pacs.segmentations[-1].SegmentSequence[0].SegmentLabel == "no finding"
    assert store.get_labeled_images() == [film]


def test_a_label_says_who_made_it(
    viewer: TestClient, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    asked = {"image": film, "output": "image"}
    viewer.post("/infer/text_prompt", params=asked, data={"params": '{"text": "both lungs", "client_id": "c"}'})
    _put(viewer, film, _label(tmp_path, picture), client_id="c")
    changed = picture.copy()
    changed[12:14, 32:40] = 0
    _put(viewer, film, _label(tmp_path, changed), client_id="c")
    _put(viewer, film, _label(tmp_path, picture, 13), client_id="another")
    untouched, mended, drawn = (data.SegmentSequence[0] for data in pacs.segmentations)
    assert [each.SegmentAlgorithmType for each in (untouched, mended, drawn)] == [
        "AUTOMATIC",
        "SEMIAUTOMATIC",
        "MANUAL",
    ]
    for computed in (untouched, mended):
        assert computed.SegmentAlgorithmName == "MedCLIP-SAMv2 zero-shot"
        assert "prompt: both lungs" in computed.SegmentDescription
        assert computed.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    assert "Changed by a person" in mended.SegmentDescription
    assert "SegmentAlgorithmName" not in drawn
    code = mended.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("39607008", "SCT")
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "51440002"
    assert pacs.segmentations[0].ContentCreatorName == "anonymous^"


def test_a_mask_of_a_model_on_the_server_is_no_final_label(
    viewer: TestClient, app: MedClipSamApp, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    store = app.datastore()
    file = _label(tmp_path, picture)
    # as earlier versions saved it
    store.save_label(film, str(file), "final", {"model": "text_prompt", "params": {"text": "both lungs"}})
    assert store.get_labeled_images() == []
    assert store.status()["completed"] == 0
    assert _put(viewer, film, _label(tmp_path, picture[::-1])).status_code == 200
    assert store.get_labeled_images() == [film]
    kept = Path(store.get_label_uri(film, "final")).read_bytes()
    # nor does it take the place of one
    store.save_label(film, str(file), "final", {"model": "text_prompt", "params": {"text": "both lungs"}})
    store.refresh()
    assert store.get_label_info(film, "final")["SOPInstanceUID"]
    back = SimpleITK.ReadImage(store.get_label_uri(film, "final"))
    (tmp_path / "kept.nii.gz").write_bytes(kept)
    before = SimpleITK.ReadImage(str(tmp_path / "kept.nii.gz"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(back), SimpleITK.GetArrayFromImage(before))


def test_a_label_that_was_replaced_can_be_brought_back(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    assert _put(viewer, film, _label(tmp_path, picture)).status_code == 200
    assert _put(viewer, film, _label(tmp_path, np.zeros_like(picture))).status_code == 200
    where = {"label": film, "version": 1}
    (version,) = viewer.get("/datastore/label/versions", params={"label": film}).json()
    assert (version["version"], version["saved_by"]) == (1, "anonymous")
    assert viewer.put("/datastore/label/versions", params=where).status_code == 200
    _forget_file(app.datastore(), film)
    back = SimpleITK.ReadImage(app.datastore().get_label_uri(film, "final"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(back).squeeze() > 0, picture > 128)
    assert len(pacs.segmentations) == 3


def _foreign(pacs: Pacs) -> pydicom.Dataset:
    """Make the last segmentation one of another program."""
    data = pacs.segmentations[-1]
    data.Manufacturer = data.ManufacturerModelName = "another"
    for segment in data.SegmentSequence:
        del segment[0x0071, 0x0010], segment[0x0071, 0x1001]
    return data


@pytest.mark.parametrize("counts", [False, True])
def test_labels_of_other_programs_count_where_that_is_asked_for(
    viewer: TestClient,
    app: MedClipSamApp,
    pacs: Pacs,
    film: str,
    picture: np.ndarray,
    tmp_path: Path,
    counts: bool,
) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    store.pacs.options = PacsOptions(foreign_labels=counts)
    _put(viewer, film, _label(tmp_path, picture, 207), label_info=[{"name": "cyst", "idx": 207}])
    _foreign(pacs)
    # as a server sees it that has not saved the label itself
    _forget_file(store, film)
    store._segmentations.clear()
    store.refresh()
    assert store.get_labeled_images() == ([film] if counts else [])
    if counts:
        found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(store.get_label_uri(film, "final")))
        assert set(np.unique(found)) == {0, 201}
        assert store.get_label_info(film, "final")["label_names"] == {"cyst": 201}
        # ours goes first
        _put(viewer, film, _label(tmp_path, picture))
        assert store.get_label_info(film, "final")["label_names"] == {"lungs x-ray": 3}


def test_a_training_finds_what_it_asks_for(
    viewer: TestClient, app: MedClipSamApp, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    _put(viewer, film, _label(tmp_path, picture))
    store = app.datastore()
    (pair,) = store.datalist()
    assert pydicom.dcmread(next(Path(pair["image"]).iterdir())).SeriesInstanceUID == film
    assert SimpleITK.ReadImage(pair["label"]).GetSize() == (60, 40, 1)
    assert store.get_label(film, "final").read(2) == b"\x1f\x8b"
    assert pydicom.dcmread(store.get_image(film)).SeriesInstanceUID == film
    assert viewer.get("/datastore/", params={"output": "train"}).json() == [{"image": film, "label": f"{film}.nii.gz"}]
    everything = viewer.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert everything[film]["labels"]["final"]["info"]["label_names"] == {"lungs x-ray": 3}
    assert everything[film]["image"]["info"]["Modality"] == "DX"
    archive = viewer.get("/datastore/dataset")
    assert archive.status_code == 200
    with zipfile.ZipFile(io.BytesIO(archive.content)) as content:
        names = content.namelist()
    assert f"label/{film}.nii.gz" in names
    assert any(name.startswith(f"image/{film}/") for name in names)


def test_the_cache_keeps_to_its_bytes(app: MedClipSamApp, pacs: Pacs, film: str, tmp_path: Path) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    for number in range(1, 5):
        more = pydicom.dcmread(io.BytesIO(_bytes(pacs.of(film)[0])))
        more.SeriesInstanceUID, more.SOPInstanceUID = f"1.9.{number}", f"1.9.{number}.1"
        more.Rows, more.Columns = 3000, 2000
        more.PixelData = bytes(6_000_000)
        pacs.instances.append(more)
    store.pacs.options = PacsOptions(cache_mb=16)
    store.refresh()
    for number in (1, 2, 3):
        store.get_image_uri(f"1.9.{number}")
        _long_ago(store, f"1.9.{number}", 100 - number)
    # the first is asked for again, and so the second is the one that goes
    assert [folder.name for folder, _ in store._fetched_folders() if folder.name == "1.9.1"] == []
    store.get_image_uri("1.9.2")
    _long_ago(store, "1.9.2", 1)
    store.get_image_uri("1.9.4")
    assert sorted(folder.name for folder, _ in store._fetched_folders()) == ["1.9.2", "1.9.4"]


def _long_ago(store: DicomWebStudies, image: str, minutes: int) -> None:
    when = time.time() - 60 * minutes
    os.utime(store._folder(image), (when, when))


def _bytes(data: pydicom.Dataset) -> bytes:
    stored = io.BytesIO()
    data.save_as(stored)
    return stored.getvalue()


def test_a_search_filter_leaves_the_others_out(pacs: Pacs, conf: dict[str, str], request: Any, film: str) -> None:
    conf["pacs_filter"] = "PatientID=NOBODY"
    assert request.getfixturevalue("app").datastore().list_images() == []
    assert all("PatientID=NOBODY" in path for _, path, _ in pacs.asked)


def test_a_server_that_ignores_a_filter_is_not_believed(
    pacs: Pacs, conf: dict[str, str], request: Any, film: str
) -> None:
    conf["pacs_filter"] = "PatientID=NOBODY"
    app = request.getfixturevalue("app")
    answer = pydicom.dcmread(io.BytesIO(_bytes(pacs.of(film)[0])))
    few = {key: value for key, value in answer.to_json_dict().items() if key[:4] in ("0008", "0010", "0020")}
    pacs.break_down(json.dumps([few]), "series")
    assert app.datastore().list_images() == []


def test_a_token_goes_along_and_is_read_anew(
    pacs: Pacs, conf: dict[str, str], request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monailabel.config import settings

    conf["pacs_token_file"] = str(tmp_path / "token")
    (tmp_path / "token").write_text("one\n")
    with pytest.raises(OptionError, match="a token or a user"):
        request.getfixturevalue("app")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "")
    app = MedClipSamApp(str(tmp_path / "app"), pacs.url, conf)
    app.datastore().list_images()
    (tmp_path / "token").write_text("two\n")
    app.datastore().refresh()
    app.datastore().list_images()
    sent = [headers["Authorization"] for _, _, headers in pacs.asked]
    assert list(dict.fromkeys(sent)) == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("modalities", "CT,SEG", "modalities of images"),
        ("modalities", ",", "modalities of images"),
        ("modalities", "ct", "modalities of images"),
        ("filter", "Modality=CT", "other than Modality"),
        ("filter", "NoSuchThing=1", "DICOM keywords"),
        ("filter", "PatientID", "DICOM keywords"),
        ("timeout", "0", "from 1 to 3600"),
        ("retries", "eleven", "from 0 to 10"),
        ("cache_mb", "-1", "from 16"),
        ("ca_file", "/nowhere/ca.pem", "can be read"),
        ("foreign_labels", "perhaps", "true or false"),
    ],
)
def test_settings_out_of_range_are_told(key: str, value: str, allowed: str) -> None:
    with pytest.raises(OptionError, match=allowed) as error:
        PacsOptions.from_settings({f"pacs_{key}": value})
    assert f"pacs_{key}" in str(error.value)


def test_settings_are_read() -> None:
    given = {"pacs_modalities": "CT, PT", "pacs_filter": "StudyDate=20260101-; PatientID=A*", "pacs_cache_mb": "100"}
    options = PacsOptions.from_settings(given)
    assert options.modalities == ("CT", "PT")
    assert options.filters == (("StudyDate", "20260101-"), ("PatientID", "A*"))
    assert options.cache_mb == 100


def test_pictures_of_one_series_are_images_of_their_own(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    first = pacs.of(film)[0]
    second = pydicom.dcmread(io.BytesIO(_bytes(first)))
    second.SOPInstanceUID = "1.9.2"
    second.PixelData = picture[::-1].tobytes()
    pacs.instances.append(second)
    store = app.datastore()
    assert store.list_images() == [first.SOPInstanceUID, "1.9.2"]
    refused = viewer.get("/datastore/image", params={"image": film})
    assert (refused.status_code, "2 pictures" in refused.json()["detail"]) == (404, True)
    mask = app.infer({"model": "text_prompt", "image": "1.9.2", "text": "both lungs"})["file"]
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(mask)).reshape(picture.shape)
    Path(mask).unlink()
    assert np.array_equal(found > 0, picture[::-1] > 128)
    assert _put(viewer, "1.9.2", _label(tmp_path, picture[::-1])).status_code == 200
    assert store.get_labeled_images() == ["1.9.2"]
    assert store.get_unlabeled_images() == [first.SOPInstanceUID]
    assert store.get_image_info("1.9.2")["SeriesInstanceUID"] == film
    _forget_file(store, "1.9.2")
    back = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(store.get_label_uri("1.9.2", "final")))
    assert np.array_equal(back.reshape(picture.shape) > 0, picture[::-1] > 128)


def test_a_label_of_another_program_that_does_not_fit_is_none(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, picture: np.ndarray, tmp_path: Path
) -> None:
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    store.pacs.options = PacsOptions(foreign_labels=True)
    _put(viewer, film, _label(tmp_path, picture))
    foreign = _foreign(pacs)
    foreign.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence = []
    _forget_file(store, film)
    store._segmentations.clear()
    store.refresh()
    assert store.get_label_uri(film, "final") == ""
    assert viewer.get("/datastore/label", params={"label": film, "tag": "final"}).status_code == 404


def test_counting_asks_the_server_once_however_slow_it_is(app: MedClipSamApp, pacs: Pacs, film: str) -> None:
    for number in range(20):
        more = pydicom.dcmread(io.BytesIO(_bytes(pacs.of(film)[0])))
        more.SeriesInstanceUID, more.SOPInstanceUID = f"1.8.{number}", f"1.8.{number}.1"
        pacs.instances.append(more)
    store = app.datastore()
    assert isinstance(store, DicomWebStudies)
    # every answer is too old at once
    store._fresh = -1.0
    for ask in (store.status, store.json, store.get_labeled_images, store.get_unlabeled_images):
        pacs.asked.clear()
        ask()
        assert len(pacs.asked) < 25


def test_rounds_go_by_the_series_of_the_server(
    viewer: TestClient,
    app: MedClipSamApp,
    pacs: Pacs,
    film: str,
    picture: np.ndarray,
    tmp_path: Path,
    write_series: Callable[..., Path],
) -> None:
    folder = write_series(np.stack([picture] * 4), tmp_path / "ct", uid="rounds", start=1)
    slices = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    for data in slices:
        data.PatientID = "somebody else"
    pacs.instances += slices
    volume = str(slices[0].SeriesInstanceUID)
    store, rounds = app.datastore(), app.rounds
    store.refresh()
    rounds.look()
    listed = {row["image"]: row for row in rounds.ledger.images()}
    patients = {film: f"patient:{pacs.of(film)[0].PatientID}", volume: "patient:somebody else"}
    assert {image: row["subject"] for image, row in listed.items()} == patients
    split = rounds.networks.store.split()
    assert all(row["validation"] == split.holds(row["subject"]) for row in listed.values())
    # patients are told without fetching their images
    assert pacs.retrieved == []

    rounds.ledger.set_scores("network", {volume: Score(1.0, {}, None, (2, 0, 1))})
    asked = [viewer.post("/activelearning/uncertainty", json={"client_id": who}).json() for who in ("ada", "bob")]
    offered = {each["id"]: each for each in asked}
    assert offered.keys() == {film, volume}
    assert offered[volume]["planes"] == [2, 0, 1]
    assert {image: each["validation"] for image, each in offered.items()} == {
        image: row["validation"] for image, row in listed.items()
    }
    holder = offered[film]["lease"]["holder"]
    for _ in range(2):
        assert _put(viewer, film, _label(tmp_path, picture), client_id=holder).status_code == 200
    assert [lease["image"] for lease in viewer.get("/rounds/leases", params={"all": True}).json()] == [volume]
    (label,) = rounds.ledger.labels(current=False)
    assert (label.image, label.reader, label.seconds is not None) == (film, holder, True)

    pacs.instances = [data for data in pacs.instances if str(data.SeriesInstanceUID) != volume]
    store.refresh()
    rounds.look()
    assert [row["image"] for row in rounds.ledger.images()] == [film]
    assert viewer.post("/activelearning/uncertainty", json={"client_id": "eve"}).json() == {}


def _hide_the_pixels(data: pydicom.Dataset) -> None:
    del data.PixelData


@pytest.mark.parametrize("fault", ["content", "damaged answer", "500"])
def test_a_series_that_cannot_be_read_is_offered_again_when_it_has_changed(
    viewer: TestClient, app: MedClipSamApp, pacs: Pacs, film: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    store, rounds = app.datastore(), app.rounds
    assert isinstance(store, DicomWebStudies)
    bad = pydicom.dcmread(io.BytesIO(_bytes(pacs.of(film)[0])))
    bad.SeriesInstanceUID, bad.SOPInstanceUID, bad.Modality = "1.9.1", "1.9.1.1", "CT"
    if fault == "content":
        _hide_the_pixels(bad)
    pacs.instances.append(bad)
    if fault != "content":
        pacs.break_down("500" if fault == "500" else "short", r"/series/1\.9\.1$")

    def asked(times: int = 3) -> set[str]:
        """Ask as somebody who labels nothing does."""
        store.refresh()
        rounds.look()
        answers = [viewer.post("/activelearning/random", json={"client_id": f"user {n}"}) for n in range(times)]
        for lease in rounds.ledger.leases():
            rounds.ledger.release(lease.image, lease.holder)
        return {answer.json().get("id") or str(answer.status_code) for answer in answers if answer.json()}

    # an error that may pass is told once
    assert asked() == ({film} if fault == "content" else {film, "502"})
    assert asked() == {film}
    told = viewer.get("/datastore/").json()["unreadable"]["images"]
    assert list(told) == ["1.9.1"]
    assert "/cache" not in told["1.9.1"]
    retrieved = len(pacs.asked)
    # a full cache brings it back to nobody
    store.forget_series(-1e6)
    assert asked() == {film}
    assert not any("1.9.1" in path for _, path, _ in pacs.asked[retrieved:])
    pacs.break_down("")
    more = pydicom.dcmread(io.BytesIO(_bytes(pacs.of(film)[0])))
    more.SeriesInstanceUID, more.SOPInstanceUID, more.Modality = "1.9.1", "1.9.1.2", "CT"
    if fault == "500":
        # what may pass is tried again after some minutes
        late = time.monotonic() + 3600
        monkeypatch.setattr("medclipsam.server.studies.dicomweb.time.monotonic", lambda: late)
        assert asked() == {film, "1.9.1"}
    else:
        # of one that has changed, two instances at one position make no volume
        pacs.instances.remove(bad)
        more.NumberOfFrames, more.InstanceNumber = 1, 2
        pacs.instances += [more, _beside(more)]
        store.refresh()
        assert viewer.get("/datastore/").json()["unreadable"]["images"] == {}
        rounds.look()
        assert "1.9.1" in rounds._list_studies()[0]


def _beside(data: pydicom.Dataset) -> pydicom.Dataset:
    other = pydicom.dcmread(io.BytesIO(_bytes(data)))
    other.SOPInstanceUID, other.InstanceNumber = f"{data.SOPInstanceUID}.2", 3
    return other


def test_labels_of_the_phases_of_one_instance_are_kept_apart(
    pacs: Pacs, conf: dict[str, str], write_phases: Callable[..., Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pixels = np.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
    pacs.instances = [pydicom.dcmread(write_phases(pixels, tmp_path / "phases.dcm"))]
    series = str(pacs.instances[0].SeriesInstanceUID)
    app = request.getfixturevalue("app")
    store = app.datastore()
    with pytest.raises(UnknownError):
        store.get_image_uri(series)
    drawn = {}
    for number, image_id in enumerate([f"{series}-time1", f"{series}-time2"]):
        image = read_image(store.get_image_uri(image_id))
        drawn[image_id] = np.zeros((4, 6, 8), np.uint8)
        drawn[image_id][number : number + 2, 2:4] = 13
        mask = write_mask(drawn[image_id], image, tmp_path / "label.nii.gz")
        store.save_label(image_id, str(mask), "final", {"label_info": [{"name": "heart", "idx": 13}]})
    # as another server finds them
    shutil.rmtree(store._root / "labels")
    again = _started_again(store)
    assert again.get_labeled_images() == list(drawn)
    for image_id, labels in drawn.items():
        mask = read_mask(Path(again.get_label_uri(image_id, "final")), read_image(again.get_image_uri(image_id)))
        assert np.array_equal(mask, labels)
