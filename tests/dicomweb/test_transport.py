"""A DICOMweb server that is busy, or whose answers drip, over real sockets."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from medclipsam.base.errors import UpstreamBusyError, UpstreamError, UpstreamTimeoutError
from medclipsam.dicomweb import client as pacs_module
from medclipsam.dicomweb import transport
from medclipsam.dicomweb.client import Pacs
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.server.base.errors import headers_of, status_of

# Sends an answer over a connection whose request was read.
Answer = Callable[[socket.socket], None]
OURS = "1.2.3"


class Servant:
    """Answers each connection with the next of some answers, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/dicom-web"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            read = b""
            while b"\r\n\r\n" not in read:
                read += connection.recv(65536)
            self.requests.append(read.split(b" ")[0])
            (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(connection)

    def close(self) -> None:
        self._listener.close()


def whole(status: str, body: bytes = b"[]", **headers: str) -> Answer:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda connection: connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def dripping(start: bytes, piece: bytes = b" ") -> Answer:
    """Send a start, then a small piece every few moments without end."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(0.05)

    return answer


@pytest.fixture
def servant() -> Iterator[Callable[..., Servant]]:
    made: list[Servant] = []

    def make(*answers: Answer) -> Servant:
        made.append(Servant(*answers))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client waits for by itself, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(pacs_module.time, "sleep", found.append)
    return found


def in_seconds(seconds: float) -> str:
    return email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", ["503 Busy", "429 Too Many Requests"])
@pytest.mark.parametrize("when", ["7", lambda: in_seconds(7)])
def test_the_time_that_a_busy_server_names_is_waited(
    servant: Callable[..., Servant], slept: list[float], status: str, when: Any
) -> None:
    told = when if isinstance(when, str) else when()
    server = servant(whole(status, Retry_After=told), whole("200 OK"))
    assert Pacs(server.url, PacsOptions(retries=2)).search("studies", {}) == []
    assert len(server.requests) == 2
    (waited,) = slept
    assert 5.9 <= waited <= 9


def test_a_long_time_is_told_and_not_waited(servant: Callable[..., Servant], slept: list[float]) -> None:
    server = servant(whole("503 Busy", Retry_After="120"))
    with pytest.raises(UpstreamBusyError) as error:
        Pacs(server.url, PacsOptions(retries=5)).search("studies", {})
    assert slept == []
    assert len(server.requests) == 1
    assert status_of(error.value) == 503
    assert headers_of(error.value) == {"Retry-After": "120"}


@pytest.mark.parametrize(
    ("told", "passed"),
    [("9" * 9, "3600"), ("0", "1"), (in_seconds(-500), "1"), (in_seconds(10**6), "3600"), ("1e3", None), ("-5", None)],
    ids=["long", "zero", "past", "far", "exponent", "negative"],
)
def test_only_sensible_times_are_passed_on(servant: Callable[..., Servant], told: str, passed: str | None) -> None:
    server = servant(whole("503 Busy", Retry_After=told))
    with pytest.raises(UpstreamError) as error:
        Pacs(server.url, PacsOptions(retries=0)).search("studies", {})
    assert headers_of(error.value).get("Retry-After") == passed
    assert status_of(error.value) == (502 if passed is None else 503)


def test_a_store_is_sent_again_when_the_server_takes_it(servant: Callable[..., Servant], slept: list[float]) -> None:
    named = json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [OURS]}}]}}).encode()
    server = servant(whole("503 Busy", Retry_After="2"), whole("200 OK", named))
    Pacs(server.url, PacsOptions(retries=1)).store(b"DICM", "1.2", "1.3", OURS)
    assert server.requests == [b"POST", b"POST"]
    assert len(slept) == 1


def test_a_store_that_a_busy_server_never_takes_says_when_to_try_again(servant: Callable[..., Servant]) -> None:
    server = servant(whole("429 Slow down", Retry_After="90"), whole("200 OK"))
    with pytest.raises(UpstreamBusyError) as error:
        Pacs(server.url, PacsOptions(retries=0)).store(b"DICM", "1.2", "1.3", OURS)
    assert headers_of(error.value) == {"Retry-After": "90"}
    assert not error.value.permanent


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
DRIPS = {
    "status line": dripping(b"HTTP/1.1 2", b"0"),
    "header": dripping(HEAD + b"X-Long: ", b"x"),
    "headers": dripping(HEAD, b"X: y\r\n"),
    "body": dripping(HEAD + b"Content-Length: 1000000\r\n\r\n"),
    "body without a length": dripping(HEAD + b"Connection: close\r\n\r\n["),
    "chunks": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "one chunk": dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n"),
}


@pytest.mark.parametrize("case", DRIPS)
def test_answers_that_drip_end(servant: Callable[..., Servant], case: str) -> None:
    pacs = Pacs(servant(DRIPS[case]).url, PacsOptions(retries=0, timeout=1, max_seconds=60))
    with pytest.raises(UpstreamTimeoutError):
        pacs.search("studies", {})


@pytest.mark.parametrize(
    "start", [HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;x=", HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "]
)
def test_a_whole_answer_has_a_time_limit(servant: Callable[..., Servant], start: bytes) -> None:
    """Also where no byte of a body comes: within the size of a chunk, or behind the last one."""
    pacs = Pacs(servant(dripping(start, b"x")).url, PacsOptions(retries=3, timeout=20, max_seconds=1))
    with pytest.raises(UpstreamError):
        pacs.search("studies", {})


def test_an_answer_that_comes_steadily_takes_as_long_as_it_may(servant: Callable[..., Servant]) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n[")
        for _ in range(15):
            connection.sendall(b" " * 1024)
            time.sleep(0.1)
        connection.sendall(b"]")

    assert Pacs(servant(answer).url, PacsOptions(retries=0, timeout=1)).search("studies", {}) == []


def test_an_answer_without_end_is_not_kept(servant: Callable[..., Servant], monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n[")
        while True:
            connection.sendall(b" " * 65536)

    monkeypatch.setattr(pacs_module, "_MAX_TEXT", 2**22)
    with pytest.raises(UpstreamError, match=str(2**22)) as error:
        Pacs(servant(answer).url, PacsOptions(retries=3)).search("studies", {})
    assert error.value.permanent


def test_a_body_is_read_as_requests_reads_it(servant: Callable[..., Servant]) -> None:
    body = bytes(range(256)) * 4000
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:300_000], body[300_000:]))
    answers = [
        whole("200 OK", body),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body),
        lambda connection: connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n"
        ),
    ]
    for answer in answers:
        with Pacs(servant(answer).url).send("GET", servant(answer).url) as got:
            assert b"".join(transport.timed_chunks(got, 20, 60)) == body


@pytest.mark.parametrize("length", [b"Content-Length: 100\r\n\r\n[]", b"Transfer-Encoding: chunked\r\n\r\n5\r\n[]"])
def test_an_answer_that_is_cut_off_is_none(servant: Callable[..., Servant], length: bytes) -> None:
    server = servant(lambda connection: connection.sendall(HEAD + length))
    with Pacs(server.url).send("GET", server.url) as answer, pytest.raises(requests.ConnectionError):
        list(transport.timed_chunks(answer, 20, 60))
