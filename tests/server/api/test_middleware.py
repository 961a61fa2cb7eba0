"""What holds for every request, whatever its route."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, File, Request, UploadFile
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from medclipsam.server.api.middleware import (
    AccessFirst,
    BodyLimit,
    ComposedNames,
    SafeHeaders,
    SameOrigin,
    UnforeseenErrors,
)
from medclipsam.server.base.errors import UnauthenticatedError, status_of, storage_error


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()

    @app.post("/upload")
    async def upload(file: UploadFile = File()) -> dict[str, int]:  # noqa: B008 (as FastAPI has it)
        return {"bytes": len(await file.read())}

    @app.post("/raw")
    async def raw(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/patients/{name}")
    def fail(name: str) -> None:
        raise ZeroDivisionError("a secret")

    return app


def test_an_unforeseen_error_is_a_number_that_the_log_has_too(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    app.add_middleware(UnforeseenErrors)
    with caplog.at_level(logging.ERROR):
        answer = TestClient(app).get("/patients/John-Doe")
    assert answer.status_code == 500
    detail = answer.json()["detail"]
    assert "secret" not in detail
    assert "Traceback" not in detail
    (record,) = [record for record in caplog.records if record.name == "medclipsam.server.api.middleware"]
    assert detail.rstrip(".").split()[-1] in record.getMessage()
    assert record.exc_info is not None
    assert "John" not in record.getMessage()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/srv/secret"), 507),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/srv/secret"), 507),
        (OSError(errno.EROFS, "Read-only file system", "/srv/secret"), 503),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/secret"), 503),
        (OSError(errno.EIO, "Input/output error", "/srv/secret"), 503),
        (FileNotFoundError(errno.ENOENT, "No such file", "/srv/secret"), 500),
    ],
)
def test_a_disk_that_takes_nothing_is_no_failure_of_the_program(error: OSError, status: int) -> None:
    app = FastAPI()

    @app.get("/plain")
    def plain() -> None:
        raise error

    @app.get("/wrapped")
    def wrapped() -> None:
        raise ValueError("/srv/secret") from error

    app.add_middleware(UnforeseenErrors)
    for route in ("/plain", "/wrapped"):
        answer = TestClient(app).get(route)
        assert answer.status_code == status
        assert "secret" not in answer.text


def test_a_full_or_read_only_database_is_told_so(tmp_path: Path) -> None:
    def fill(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA max_page_count = 2")
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")

    def refuse(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA query_only = 1")
        db.execute("INSERT INTO t VALUES (1)")

    for number, (act, status) in enumerate([(fill, 507), (refuse, 503)]):
        with sqlite3.connect(tmp_path / f"{number}.sqlite") as db:
            db.execute("CREATE TABLE t (x)")
            with pytest.raises(sqlite3.Error) as caught:
                act(db)
        error = storage_error(caught.value)
        assert error is not None
        assert status_of(error) == status


def test_names_in_an_address_are_composed(app: FastAPI) -> None:
    @app.get("/name")
    def name(image: str, other: str = "") -> dict[str, str]:
        return {"image": image, "other": other}

    client = TestClient(ComposedNames(app))
    apart = unicodedata.normalize("NFD", "M\u00fcller & S\u00f6hne")
    assert client.get("/name", params={"image": apart, "other": ""}).json() == {
        "image": "M\u00fcller & S\u00f6hne",
        "other": "",
    }
    assert client.get("/name?image=%ff+a").status_code == 200


def test_a_body_up_to_the_limit_passes_and_a_larger_one_does_not(app: FastAPI) -> None:
    client = TestClient(BodyLimit(app, max_bytes=1000))
    assert client.post("/raw", content=b"x" * 1000).json() == {"bytes": 1000}
    answer = client.post("/raw", content=b"x" * 1001)
    assert answer.status_code == 413
    assert "max_upload_mb" in answer.json()["detail"]


def test_a_body_that_does_not_tell_its_length_is_counted(app: FastAPI) -> None:
    client = TestClient(BodyLimit(app, max_bytes=1000))
    assert client.post("/raw", content=iter([b"x" * 400] * 2)).json() == {"bytes": 800}
    assert client.post("/raw", content=iter([b"x" * 400] * 3)).status_code == 413


def test_reading_ends_where_the_limit_is_passed(app: FastAPI) -> None:
    """Also in a form, whose reader makes an answer of its own out of any error."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    given = 0
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal given
        given += 1
        return {"type": "http.request", "body": head if given == 1 else b"x" * 100, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/upload", "query_string": b"", "headers": headers}
    asyncio.run(BodyLimit(app, max_bytes=1000)(scope, receive, send))  # type: ignore[arg-type]
    assert given < 15
    assert sent[0]["status"] == 413
    assert b"max_upload_mb" in sent[1]["body"]


def test_a_body_that_is_parsed_in_memory_has_a_limit_of_its_own(app: FastAPI) -> None:
    client = TestClient(BodyLimit(app, max_bytes=10_000, max_text_bytes=1000, login="/raw"))
    small, large = b"x" * 900, b"x" * 2000
    assert client.post("/raw", content=small, headers={"Content-Type": "application/json"}).status_code == 200
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain", "multi", ""):
        assert client.post("/raw", content=large, headers={"Content-Type": kind}).status_code == 413
    assert client.post("/upload", files={"file": large}).json() == {"bytes": 2000}
    assert client.post("/upload", files={"file": b"x" * 10_000}).status_code == 413
    # no length that is stated is too long to be read
    assert client.post("/raw", content=b"", headers={"Content-Length": "9" * 5000}).status_code == 413


def test_the_body_that_anyone_may_send_is_small_whatever_its_type(app: FastAPI) -> None:
    client = TestClient(BodyLimit(app, max_bytes=2**30, login="/upload"))
    assert client.post("/upload", files={"file": b"x" * 60_000}).status_code == 200
    assert client.post("/upload", files={"file": b"x" * 70_000}).status_code == 413


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "QUERY"])
def test_nothing_is_read_of_callers_who_are_not_known(app: FastAPI, method: str) -> None:
    sent: list[dict[str, Any]] = []

    def known(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer right":
            raise UnauthenticatedError("Unknown.")

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=401)

    guarded = AccessFirst(app, known, refuse, open_paths={"/login"})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"900000000")]
    scope = {"type": "http", "method": method, "path": "/raw", "query_string": b"", "headers": headers}
    asyncio.run(guarded(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 401
    client = TestClient(guarded)
    assert client.post("/raw", content=b"x", headers={"Authorization": "Bearer right"}).json() == {"bytes": 1}
    assert client.post("/login", content=b"x").status_code == 404
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "https://viewer.example"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://127.0.0.1:9000"}, False),
        ({"Origin": "null"}, False),
        # the same name and port, but not the page that this server sends
        ({"Origin": "https://127.0.0.1:8000"}, False),
        ({"Origin": "ftp://127.0.0.1:8000"}, False),
        ({"Origin": "http://viewer.example"}, False),
        ({"Origin": "http://127.0.0.1:8000@evil.example"}, False),
        ({"Origin": "http://["}, False),
    ],
)
def test_pages_of_other_origins_change_nothing(app: FastAPI, headers: dict[str, str], passes: bool) -> None:
    wrapped = SameOrigin(app, ["https://viewer.example/"], local=True)
    client = TestClient(wrapped, base_url="http://127.0.0.1:8000")
    assert client.post("/raw", content=b"x", headers=headers).status_code == (200 if passes else 403)
    # reading is left to the browser's own rule, which needs a header that such pages do not get
    assert client.get("/docs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("base", "origin", "passes"),
    [
        ("https://srv.example", "https://srv.example", True),
        ("https://srv.example", "https://srv.example:443", True),
        ("https://srv.example:443", "https://SRV.example", True),
        ("http://srv.example:80", "http://srv.example", True),
        ("https://srv.example", "http://srv.example", False),
        ("http://srv.example", "https://srv.example", False),
        ("http://srv.example:443", "https://srv.example", False),
    ],
)
def test_an_origin_is_scheme_name_and_port(app: FastAPI, base: str, origin: str, passes: bool) -> None:
    client = TestClient(SameOrigin(app, [], local=False), base_url=base)
    headers = {"Origin": origin, "Host": base.partition("://")[2]}
    assert client.post("/raw", content=b"x", headers=headers).status_code == (200 if passes else 403)


def test_every_answer_has_safe_headers(app: FastAPI) -> None:
    @app.get("/page")
    def page() -> JSONResponse:
        return JSONResponse({}, headers={"Content-Security-Policy": "default-src 'self'"})

    app.add_middleware(UnforeseenErrors)
    client = TestClient(SafeHeaders(app))
    for path, status in (("/docs", 200), ("/nowhere", 404), ("/raw", 405), ("/patients/x", 500)):
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert client.get("/page").headers["content-security-policy"] == "default-src 'self'"


def test_a_client_that_leaves_is_no_failure(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError("an answer that nobody reads")

    app.add_middleware(UnforeseenErrors)
    scope = {"type": "http", "method": "POST", "path": "/raw", "query_string": b"", "headers": []}
    with caplog.at_level(logging.INFO):
        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert [record.levelname for record in caplog.records if record.exc_info or record.levelno > logging.INFO] == []


def test_text_that_cannot_be_written_is_the_requests_fault() -> None:
    app = FastAPI()

    @app.get("/repeat")
    def repeat() -> JSONResponse:
        return JSONResponse({"name": "\ud800"})

    @app.get("/wrapped")
    def wrapped() -> None:
        try:
            "\udcff".encode()
        except UnicodeEncodeError as error:
            raise ValueError("not kept") from error

    @app.get("/other")
    def other() -> None:
        "\u00e9".encode("ascii")

    app.add_middleware(UnforeseenErrors)
    client = TestClient(app)
    assert client.get("/repeat").status_code == 400
    assert client.get("/wrapped").status_code == 400
    assert client.get("/other").status_code == 500


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("[", False),
        ("", False),
    ],
)
def test_a_local_server_answers_to_local_names_only(app: FastAPI, host: str, passes: bool) -> None:
    client = TestClient(SameOrigin(app, [], local=True), base_url="http://127.0.0.1:8000")
    assert client.get("/docs", headers={"Host": host}).status_code == (200 if passes else 403)
    other = TestClient(SameOrigin(app, [], local=False), base_url="http://127.0.0.1:8000")
    assert other.get("/docs", headers={"Host": host}).status_code == 200
