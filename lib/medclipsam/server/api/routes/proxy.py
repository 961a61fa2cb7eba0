"""The DICOMweb server of the studies, for viewers: searches, retrievals and stores, and nothing else of it.

The viewer's credentials stay here, and the server's own go to the DICOMweb server alone.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import IO, TypeVar

import anyio
import anyio.to_thread
import requests
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from medclipsam.base.errors import UpstreamBusyError, UpstreamError
from medclipsam.dicomweb.client import Pacs, says_stored
from medclipsam.dicomweb.multipart import instances_of
from medclipsam.server.api.access import AsAnnotator, AsUser
from medclipsam.server.api.routes.common import App, caller_of
from medclipsam.server.base.errors import BusyError, ForbiddenError, UnknownError
from medclipsam.server.monai_label.upstream import settings
from medclipsam.server.studies.dicomweb import DicomWebStudies
from medclipsam.server.studies.waiting import PROXY_THREADS, WAITING_SECONDS

router = APIRouter(prefix="/proxy/dicom", tags=["Others"], include_in_schema=False)

_UID = r"[0-9]+(\.[0-9]+)*"
_STUDY, _SERIES, _INSTANCE = (
    f"studies/{_UID}",
    f"(studies/{_UID}/)?series/{_UID}",
    f"studies/{_UID}/series/{_UID}/instances/{_UID}",
)
# DICOM PS3.18, the services Search (10.6), Retrieve (10.4) and Store (10.5) of studies
_SEARCH = re.compile(f"studies|series|instances|{_STUDY}/(series|instances)|{_SERIES}/instances")
_BULK = r"bulkdata(/[A-Za-z0-9._-]*[A-Za-z0-9_-])*"
_RETRIEVE = re.compile(
    f"({_STUDY}|studies/{_UID}/series/{_UID}|{_INSTANCE}|{_INSTANCE}/frames/[0-9]+(,[0-9]+)*)"
    f"(/(metadata|rendered|thumbnail|{_BULK}))?"
)
_STORE = re.compile(f"studies(/{_UID})?")
# Headers of the answer that are its own and not of the connection.
_PASSED = ("content-type", "content-length", "content-encoding", "content-location", "etag", "last-modified", "warning")
_OF_CONTENT = ("content-length", "content-encoding")
_THREADS = anyio.CapacityLimiter(PROXY_THREADS)

T = TypeVar("T")


@router.get("/{operation}/{path:path}")
async def retrieve(request: Request, app: App, user: AsUser, operation: str, path: str) -> StreamingResponse:
    """Pass on a search or a retrieval, with its query."""
    return await pass_on(request, _pacs(app), *_split(operation, path))


async def pass_on(
    request: Request, pacs: Pacs, operation: str, path: str, base: str | None = None
) -> StreamingResponse:
    """Pass on a search or a retrieval to the DICOMweb server.

    Parameters
    ----------
    request : Request
        Its query, and what it accepts, go along.
    pacs : Pacs
        The server.
    operation : {"qido", "wado", ""}
        The service, whose address may be one of its own.
    path : str
        What is asked for, below the service's address.
    base : str, optional
        Address that takes the place of the DICOMweb server's own in answers of JSON: browsers cannot reach that one.

    Raises
    ------
    ForbiddenError
        If that is neither a search nor a retrieval.
    """
    if not (_SEARCH.fullmatch(path) or _RETRIEVE.fullmatch(path)):
        raise ForbiddenError(f"{path[:80]!r} is no DICOMweb search or retrieval; only these and stores are passed on.")
    # some OHIF versions ask for metadata by the search service
    address = pacs.address("wado" if path.endswith("metadata") else operation, path)
    # what is wanted of several forms, such as a transfer syntax; nothing else that the viewer says leaves this server
    wanted = {"Accept": request.headers["accept"]} if "accept" in request.headers else {}
    params = list(request.query_params.multi_items())
    answer = await _in_thread(partial(pacs.send, "GET", address, params=params, headers=wanted, timeout=_timeout()))
    if base is None or "json" not in answer.headers.get("content-type", ""):
        return StreamingResponse(_blocks(pacs, answer), answer.status_code, _passed(answer))
    kept = {key: value for key, value in _passed(answer).items() if key.lower() not in _OF_CONTENT}
    blocks = _replaced(_blocks(pacs, answer, decode=True), pacs.url.encode(), base.encode())
    return StreamingResponse(blocks, answer.status_code, kept)


async def _replaced(blocks: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """Yield a body with one text in the place of another, wherever its blocks are cut."""
    rest = b""
    async for block in blocks:
        *parts, rest = (rest + block).split(old)
        # what may be the beginning of the text waits for more
        ready = max(len(rest) - len(old) + 1, 0)
        yield new.join([*parts, rest[:ready]])
        rest = rest[ready:]
    yield rest


def is_search(path: str) -> bool:
    """Return whether a path of DICOMweb is a search."""
    return _SEARCH.fullmatch(path) is not None


@router.post("/{operation}/{path:path}")
async def store(request: Request, app: App, user: AsAnnotator, operation: str, path: str) -> Response:
    """Pass on DICOM instances to be stored, and note in the audit file which they are and what came of it."""
    return await pass_on_store(request, app, user.username, _split(operation, path)[1])


async def pass_on_store(request: Request, app: App, user: str, path: str) -> Response:
    """Pass on instances to be stored to the DICOMweb server; `path` is below the service's address."""
    if not _STORE.fullmatch(path):
        raise ForbiddenError(f"{path[:80]!r} is no DICOMweb store; only searches, retrievals and stores are passed on.")
    pacs = _pacs(app)
    caller = caller_of(request, user)
    with tempfile.TemporaryFile() as body:
        await receive_body(request, body)
        kind = request.headers.get("content-type", "")
        return await _in_thread(
            partial(_store, pacs, partial(app.audit.stored, caller), pacs.address("stow", path), body, kind)
        )


async def receive_body(request: Request, body: IO[bytes]) -> None:
    """Write the body of a request to a file while it arrives."""
    async for chunk in request.stream():
        await _in_thread(partial(body.write, chunk))


def _store(
    pacs: Pacs, note: Callable[[Mapping[str, str], int | None], None], address: str, body: IO[bytes], kind: str
) -> Response:
    instances = instances_of(body, kind)
    body.seek(0)
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    try:
        with pacs.send("POST", address, data=body, headers=headers, timeout=_timeout()) as answer:
            content = pacs.body(answer)
    except UpstreamError as error:
        outcome = "not stored" if error.permanent or isinstance(error, UpstreamBusyError) else "unknown"
        note(dict.fromkeys(instances, outcome), None)
        raise
    note({each: _outcome(answer, content, each) for each in instances}, answer.status_code)
    # its length is that of what was decoded
    passed = {key: value for key, value in _passed(answer).items() if key.lower() not in _OF_CONTENT}
    return Response(content, answer.status_code, passed)


def _outcome(answer: requests.Response, content: bytes, instance: str) -> str:
    """Return what an answer to a store says of an instance."""
    if not answer.ok:
        return "not stored"
    return {True: "stored", False: "not stored", None: "unknown"}[says_stored(content, instance)]


def _split(operation: str, path: str) -> tuple[str, str]:
    """Return the service and the path below it; MONAI Label's route without a service has the path alone."""
    if operation in ("wado", "qido", "stow"):
        return operation, path
    return "", f"{operation}/{path}".rstrip("/")


def _pacs(app: App) -> Pacs:
    store = app.datastore()
    if not isinstance(store, DicomWebStudies):
        raise UnknownError("The studies lie in a folder; there is no DICOMweb server behind this one.")
    return store.pacs


def _timeout() -> float:
    return float(settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)


def _passed(answer: requests.Response) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if key.lower() in _PASSED}


async def _in_thread(work: Callable[[], T]) -> T:
    """Run what waits for the DICOMweb server in one of the threads for that.

    Raises
    ------
    BusyError
        If none is free in time.
    """
    try:
        with anyio.fail_after(WAITING_SECONDS):
            await _THREADS.acquire_on_behalf_of(token := object())
    except TimeoutError:
        raise BusyError("Too many requests wait for the DICOMweb server; ask again later.", 5) from None
    try:
        return await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
    finally:
        _THREADS.release_on_behalf_of(token)


async def _blocks(pacs: Pacs, answer: requests.Response, *, decode: bool = False) -> AsyncIterator[bytes]:
    chunks = pacs.chunks(answer, decode=decode)
    try:
        while block := await _in_thread(partial(next, chunks, b"")):
            yield block
    finally:
        chunks.close()
        answer.close()
