"""Clients that send half a request, or read half an answer, over real sockets."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from medclipsam.server.api import protocol
from medclipsam.server.api.middleware import UnforeseenErrors
from medclipsam.server.api.protocol import BoundedProtocol

HALF_HEAD = b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Long: "
HALF_BODY = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"


class Quick(BoundedProtocol):
    """The protocol with bounds of a second or less."""

    header_seconds = 0.3
    body_seconds = 0.5
    answer_seconds = 0.5
    waiting: ClassVar[dict[BoundedProtocol, None]] = {}


class Patient(BoundedProtocol):
    """The protocol with its own bounds, and connections of its own."""

    waiting: ClassVar[dict[BoundedProtocol, None]] = {}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/body")
    async def body(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/much")
    async def much() -> Response:
        return Response(b"x" * 2**24)

    app.add_middleware(UnforeseenErrors)
    return app


Serve = Callable[..., tuple[str, int]]


@pytest.fixture
def serve(app: FastAPI, live: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Serve:
    monkeypatch.setattr(protocol, "_LOOK_EVERY", 0.05)

    def run(kind: type[BoundedProtocol]) -> tuple[str, int]:
        where = urlsplit(live(app, kind, lifespan="off"))
        return str(where.hostname), int(where.port or 0)

    return run


def until_closed(connection: socket.socket) -> bytes:
    """Return what is sent before the other end closes."""
    connection.settimeout(20)
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(2**20):
            found += block
    return found


def drip(connection: socket.socket, content: bytes) -> None:
    """Send a byte now and then, until the other end closes."""

    def work() -> None:
        with contextlib.suppress(OSError):
            for number in range(10_000):
                connection.sendall(content[number % len(content) :][:1])
                time.sleep(0.02)

    threading.Thread(target=work, daemon=True).start()


@pytest.mark.parametrize("dripping", [False, True])
@pytest.mark.parametrize("begun", [b"", HALF_HEAD, HALF_BODY, b"\r\n"])
def test_half_a_request_ends(serve: Serve, begun: bytes, dripping: bool) -> None:
    where = serve(Quick)
    with socket.create_connection(where) as connection:
        connection.sendall(begun)
        if dripping:
            drip(connection, b"x")
        answer = until_closed(connection)
    # what dripped first may be no HTTP
    assert answer == b"" or answer.split()[1] in (b"408", b"400")
    assert httpx.get(f"http://127.0.0.1:{where[1]}/readyz").status_code == 200


def test_half_a_request_after_a_whole_one_ends(serve: Serve) -> None:
    with socket.create_connection(serve(Quick)) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" + HALF_HEAD)
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_an_answer_that_nobody_reads_ends(serve: Serve) -> None:
    where = serve(Quick)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(where)
        connection.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        deadline = time.monotonic() + 20
        while not Quick.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(2)
        assert len(until_closed(connection)) < 2**24


def test_a_slow_but_steady_body_is_taken(serve: Serve) -> None:
    def content() -> Iterator[bytes]:
        for _ in range(30):
            time.sleep(0.05)
            yield b"x" * 1024

    answer = httpx.post(f"http://127.0.0.1:{serve(Quick)[1]}/body", content=content(), timeout=20)
    assert answer.json() == {"bytes": 30 * 1024}


def send_to_each(
    stack: contextlib.ExitStack, where: tuple[str, int], count: int, content: bytes
) -> list[socket.socket]:
    """Open connections that the stack closes, then send something through each."""
    opened = [stack.enter_context(socket.create_connection(where, timeout=10)) for _ in range(count)]
    for each in opened:
        each.sendall(content)
    return opened


def test_many_half_requests_keep_nobody_from_an_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING", 100)
    # of which those that are being closed are none
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 120)
    where = serve(Patient)
    with contextlib.ExitStack() as stack:
        halves = send_to_each(stack, where, 300, HALF_HEAD)
        for _ in range(5):
            assert httpx.get(f"http://127.0.0.1:{where[1]}/readyz", timeout=10).status_code == 200
        assert len(Patient.waiting) <= 100
        # those that waited longest were closed
        assert until_closed(halves[0]).startswith(b"HTTP/1.1 408")
        halves[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            halves[-1].recv(1)


def test_half_requests_are_closed_before_connections_whose_bytes_are_unread(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING", 3)
    where = serve(Patient)
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_connection(where, timeout=10))
        halves = send_to_each(stack, where, 2, HALF_HEAD)
        deadline = time.monotonic() + 10
        while sum(bool(each._received) for each in list(Patient.waiting)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        stack.enter_context(socket.create_connection(where))
        assert until_closed(halves[0]).startswith(b"HTTP/1.1 408")
        silent.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert until_closed(silent).startswith(b"HTTP/1.1 200")


def test_connections_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 20)
    where = serve(Patient)
    with contextlib.ExitStack() as stack:
        send_to_each(stack, where, 20, HALF_BODY)
        deadline = time.monotonic() + 10
        answer = b""
        while not answer.startswith(b"HTTP/1.1 503") and time.monotonic() < deadline:
            with socket.create_connection(where) as more:
                more.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = until_closed(more)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After" in answer


GARBAGE = [
    b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    b"GET /readyz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n\0\1\2\3\r\n\r\n",
    b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" + bytes(range(200)),
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: \xc2\xb2\r\n\r\nx",
    b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxx",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_not_http_leaves_no_traceback(serve: Serve, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    where = serve(Patient)
    with caplog.at_level(logging.INFO), socket.create_connection(where) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        answer = until_closed(connection)
        assert httpx.get(f"http://127.0.0.1:{where[1]}/readyz").status_code == 200
    assert [record for record in caplog.records if record.exc_info] == []
    assert all(part.split()[0] in (b"200", b"400") for part in answer.split(b"HTTP/1.1 ")[1:])
