"""A DICOMweb server that misbehaves in every way: sentences, no half series, and no label that is lost or doubled."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from medclipsam.base.errors import MedClipSamError
from medclipsam.dicomweb.client import Pacs
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.imaging import read_image, read_mask, write_mask
from medclipsam.imaging.dicom_seg import SegmentInfo
from medclipsam.server.studies.dicomweb import DicomWebStudies, LabelText
from medclipsam.server.studies.images import ImageReader

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.timeout(3600)]

SERIES = "1.2.826.7"


@dataclass
class Answer:
    """What is about to be sent; a fault changes it, or sends something itself and returns None."""

    status: int
    headers: dict[str, str]
    body: bytes

    def send(self, connection: socket.socket, pause: float = 0.0, piece: int = 2**20) -> None:
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {value}" for name, value in self.headers.items())]
        content = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body
        for start in range(0, len(content), piece):
            connection.sendall(content[start : start + piece])
            time.sleep(pause)


Fault = Callable[[Answer, socket.socket], Answer | None]


def _status(status: int, **headers: str) -> Fault:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer, connection: Answer(status, {"Content-Length": "0", **told}, b"")


def _body(kind: str | None, change: Callable[[bytes], bytes]) -> Fault:
    """Send another body, with its right length."""

    def fault(answer: Answer, connection: socket.socket) -> Answer:
        body = change(answer.body)
        headers = {**answer.headers, "Content-Length": str(len(body))}
        if kind is not None:
            headers["Content-Type"] = kind
        return Answer(answer.status, headers, body)

    return fault


def _reset(answer: Answer, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _reset_within(answer: Answer, connection: socket.socket) -> None:
    Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]).send(connection)
    _reset(answer, connection)


def _truncated(answer: Answer, connection: socket.socket) -> None:
    Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]).send(connection)


def _dripping(answer: Answer, connection: socket.socket) -> None:
    answer.body += b" " * 4096
    answer.headers["Content-Length"] = str(len(answer.body))
    answer.send(connection, 0.05, 1)


def _garbage(answer: Answer, connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 4)


def _other_instance(body: bytes) -> bytes:
    """Replace the UIDs of instances by others of the same length."""
    return re.sub(rb"(?<=SOP-)[0-9]+", lambda found: found[0][::-1], body).replace(b"1.2.826.7.9", b"1.2.826.7.8")


def _doubled(body: bytes) -> bytes:
    parts = body.split(b"--cut")
    return b"--cut".join([*parts[:-1], parts[1], parts[-1]]) if len(parts) > 2 else body + body


FAULTS: dict[str, Fault] = {
    "500": _status(500),
    "503, retry after": _status(503, Retry_After="1"),
    "429, retry after": _status(429, Retry_After="3000"),
    "truncated": _truncated,
    "web page": _body("text/html", lambda body: b"<html>Log in</html>"),
    "wrong content type": _body("text/plain", lambda body: body),
    "dripping": _dripping,
    "reset": _reset,
    "reset within": _reset_within,
    "wrong instance": _body(None, _other_instance),
    "doubled": _body(None, _doubled),
    "cut": _body(None, lambda body: body[: len(body) * 2 // 3]),
    # by the large drill alone
    "401": _status(401),
    "204": _status(204),
    "302": _status(302, Location="http://127.0.0.1:9/"),
    "404": _status(404),
    "409": _status(409),
    "503": _status(503),
    "429, no time": _status(429, Retry_After="soon"),
    "garbage": _garbage,
    "empty": _body(None, lambda body: b""),
    "no boundary": _body("multipart/related", lambda body: body),
    "other boundary": _body('multipart/related; boundary="elsewhere"', lambda body: body),
    "nested": _body(None, lambda body: b"[" * 50_000),
    "list of odd things": _body(None, lambda body: b'[7, null, {"00080018": 3}, {"0020000E": {"vr": "UI"}}]'),
    "swapped bytes": _body(None, lambda body: body[::-1]),
}
SMALL = 12


class Archive:
    """A DICOMweb server in memory."""

    def __init__(self, instances: list[pydicom.Dataset]) -> None:
        self.instances = instances
        self.retrieved = 0

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        where = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(where.query).items()}
        steps = where.path.strip("/").split("/")
        if method == "POST":
            start, end = body.find(b"\r\n\r\n") + 4, body.rfind(b"\r\n--")
            data = pydicom.dcmread(io.BytesIO(body[start:end]))
            if data.SOPInstanceUID not in {each.SOPInstanceUID for each in self.instances}:
                self.instances.append(data)
            named = [{"00081155": {"vr": "UI", "Value": [str(data.SOPInstanceUID)]}}]
            return self._json({"00081199": {"vr": "SQ", "Value": named}})
        found = [data for data in self.instances if len(steps) < 4 or data.SeriesInstanceUID == steps[3]]
        if steps[-1] == "series":
            return self._json(self._series(query) if query.get("offset", "0") == "0" else [])
        if steps[-1] == "instances":
            found = [data for data in found if data.SOPInstanceUID == query.get("SOPInstanceUID", data.SOPInstanceUID)]
            found = found if query.get("offset", "0") == "0" else []
            return self._json([{"00080018": {"vr": "UI", "Value": [str(data.SOPInstanceUID)]}} for data in found])
        if steps[-1] == "metadata":
            headers = [data.to_json_dict() for data in found]
            return self._json([{key: value for key, value in each.items() if key != "7FE00010"} for each in headers])
        found = [data for data in found if len(steps) < 6 or data.SOPInstanceUID == steps[5]]
        parts = b""
        for data in found:
            file = io.BytesIO()
            data.save_as(file)
            parts += b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n"
        return self._whole('multipart/related; type="application/dicom"; boundary=cut', parts + b"--cut--\r\n")

    def forget_all_but_the_last(self, count: int) -> None:
        """Forget earlier segmentations, of which each new client would look at every one."""
        segmentations = [data for data in self.instances if data.Modality == "SEG"]
        forgotten = {data.SOPInstanceUID for data in segmentations[:-count]}
        self.instances = [data for data in self.instances if data.SOPInstanceUID not in forgotten]

    def _series(self, query: dict[str, str]) -> list[dict[str, Any]]:
        counts = Counter(data.SeriesInstanceUID for data in self.instances)
        found = []
        for uid, data in {data.SeriesInstanceUID: data for data in self.instances}.items():
            if data.Modality == query.get("Modality", data.Modality):
                few = pydicom.Dataset()
                few.StudyInstanceUID, few.SeriesInstanceUID, few.Modality = data.StudyInstanceUID, uid, data.Modality
                few.NumberOfSeriesRelatedInstances = counts[uid]
                found.append(few.to_json_dict())
        return found

    def _json(self, content: Any) -> Answer:
        return self._whole("application/dicom+json", json.dumps(content).encode())

    @staticmethod
    def _whole(kind: str, body: bytes) -> Answer:
        return Answer(200, {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}, body)


class FaultProxy(ThreadingHTTPServer):
    """Passes requests on to an archive, and lets a fault happen to some of its answers."""

    daemon_threads = True

    def __init__(self, archive: Archive) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.archive = archive
        self.fault: Fault | None = None
        self.at = re.compile("")
        self.left = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client has left."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        answer: Answer | None = server.archive.answer(self.command, self.path, body)
        if server.fault is not None and server.left > 0 and server.at.search(f"{self.command} {self.path}"):
            server.left -= 1
            assert answer is not None
            with contextlib.suppress(OSError):
                answer = server.fault(answer, self.connection)
        if answer is not None:
            with contextlib.suppress(OSError):
                answer.send(self.connection)
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


# The requests that a fault may happen to.
REQUESTS = {
    "list of series": r"GET /series\?",
    "list of instances": r"/instances\?",
    "metadata": r"/metadata",
    "retrieval": r"GET /studies/[^?]*series/[0-9.]+$",
    "retrieval of a label": r"GET /studies/.*/instances/[0-9.]+$",
    "store": r"^POST",
}


@dataclass
class Place:
    """A datastore behind the proxy, and what was saved through it."""

    proxy: FaultProxy
    make: Callable[..., DicomWebStudies]
    folder: Path
    acknowledged: np.ndarray | None = None
    sent: list[np.ndarray] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def save(self, studies: DicomWebStudies, label: np.ndarray) -> None:
        """Save a label; what was acknowledged is what must be found from now on."""
        image = read_image(studies.get_image_uri(SERIES))
        file = write_mask(label, image, self.folder / "label.nii.gz")
        self.sent.append(label)
        studies.save_label(SERIES, str(file), "final", {})
        self.acknowledged, self.sent = label, []

    def check(self) -> None:
        """Check that without faults all is well: the series, and the label that was acknowledged or a later one."""
        studies = self.make()
        image = read_image(studies.get_image_uri(SERIES))
        assert image.n_planes == 4
        path = studies.get_label_uri(SERIES, "final")
        found = read_mask(path, image) if path else None
        allowed = [self.acknowledged, *self.sent]
        assert any(
            (each is None) == (found is None) and (each is None or np.array_equal(each, found)) for each in allowed
        )
        self.acknowledged, self.sent = found, []
        left = [path.name for path in (self.folder / "cache").rglob("*") if path.name.endswith(".partial")]
        assert left == []


@pytest.fixture
def place(tmp_path: Path, write_series: Callable[..., Path]) -> Iterator[Place]:
    folder = write_series(np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8), tmp_path / "series")
    instances = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    study = generate_uid()
    for number, data in enumerate(instances):
        data.StudyInstanceUID, data.SeriesInstanceUID = study, SERIES
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.7.9.{number}"

    def make(retries: int = 0, timeout: int = 60) -> DicomWebStudies:
        options = PacsOptions(modalities=("CT",), retries=retries, timeout=timeout)
        return DicomWebStudies(
            Pacs(proxy.url, options),
            tmp_path / "cache",
            images=ImageReader(),
            describe=lambda *_: LabelText([SegmentInfo("heart", 1), SegmentInfo("lung", 2)]),
            label_of=lambda segment, taken: 1 if segment.name == "heart" else 2,
            fresh=0.0,
        )

    with FaultProxy(Archive(instances)) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield Place(proxy, make, tmp_path)
        proxy.shutdown()
        thread.join()


def test_faults_of_a_pacs_lose_nothing(
    place: Place, drill_size: Callable[[str, int], int], note: Callable[[str, str, object], None]
) -> None:
    size = drill_size("pacs", 0)
    chance = random.Random(11)
    draw = np.random.default_rng(11)
    if size:
        cases = [(chance.choice(list(FAULTS)), chance.choice(list(REQUESTS))) for _ in range(size)]
    else:
        # each of the main faults at two kinds of requests
        kinds = list(REQUESTS)
        cases = [
            (fault, kinds[(2 * number + k) % 6]) for number, fault in enumerate(list(FAULTS)[:SMALL]) for k in (0, 5)
        ]
    place.save(place.make(), draw.integers(0, 3, (4, 6, 8)).astype(np.uint8))
    place.check()
    for fault, kind in cases:
        studies = place.make(retries=chance.choice((0, 1)) if size else 0, timeout=1)
        if chance.random() < 0.5:
            studies.forget_series(-1000.0)
        place.proxy.fault, place.proxy.at = FAULTS[fault], re.compile(REQUESTS[kind])
        place.proxy.left = chance.choice((1, 2, 1000)) if size else 1000
        for work in (
            studies.list_images,
            lambda studies=studies: read_image(studies.get_image_uri(SERIES)),
            lambda studies=studies: studies.get_label_uri(SERIES, "final"),
            lambda studies=studies: place.save(studies, draw.integers(0, 3, (4, 6, 8)).astype(np.uint8)),
        ):
            try:
                work()
                place.outcomes["done"] += 1
            except MedClipSamError:
                place.outcomes["refused"] += 1
        place.proxy.left = 0
        place.check()
        place.proxy.archive.forget_all_but_the_last(20)
    assert place.outcomes["refused"] >= len(cases) / 2
    told = f"{len(cases)} / {place.outcomes['done']} / {place.outcomes['refused']} / 0"
    note("faults of a PACS", "faults / requests done / refused / labels lost", told)
