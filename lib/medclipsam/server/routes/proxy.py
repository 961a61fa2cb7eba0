"""The DICOMweb server of the studies, for viewers: searches, retrievals and stores, and nothing else of it.

The viewer's credentials stay here, and the server's own go to the DICOMweb server alone.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import requests
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from monailabel.config import settings

from medclipsam.server.access import AsAnnotator, AsUser
from medclipsam.server.dicomweb import DicomWebStudies
from medclipsam.server.http import ForbiddenError, UnknownError
from medclipsam.server.routes.common import App

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
_BLOCK = 256 * 1024
# Headers of the answer that are its own and not of the connection.
_PASSED = ("content-type", "content-length", "content-encoding", "content-location", "etag", "last-modified", "warning")


@router.get("/{operation}/{path:path}")
def retrieve(request: Request, app: App, user: AsUser, operation: str, path: str) -> StreamingResponse:
    """Pass on a search or a retrieval, with its query."""
    operation, path = _split(operation, path)
    if not (_SEARCH.fullmatch(path) or _RETRIEVE.fullmatch(path)):
        raise ForbiddenError(f"{path[:80]!r} is no DICOMweb search or retrieval; only these and stores are passed on.")
    # some OHIF versions ask for metadata by the search service
    service = "wado" if path.endswith("metadata") else operation
    # what is wanted of several forms, such as a transfer syntax; nothing else that the viewer says leaves this server
    wanted = {"Accept": request.headers["accept"]} if "accept" in request.headers else {}
    return _pass_on(app, "GET", service, path, params=list(request.query_params.multi_items()), headers=wanted)


@router.post("/{operation}/{path:path}")
async def store(request: Request, app: App, user: AsAnnotator, operation: str, path: str) -> StreamingResponse:
    """Pass on DICOM instances to be stored."""
    operation, path = _split(operation, path)
    if not _STORE.fullmatch(path):
        raise ForbiddenError(f"{path[:80]!r} is no DICOMweb store; only searches, retrievals and stores are passed on.")
    with tempfile.TemporaryFile() as body:
        async for chunk in request.stream():
            body.write(chunk)
        body.seek(0)
        kind = request.headers.get("content-type", "")
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        return await run_in_threadpool(_pass_on, app, "POST", "stow", path, data=body, headers=headers)


def _split(operation: str, path: str) -> tuple[str, str]:
    """Return the service and the path below it; MONAI Label's route without a service has the path alone."""
    if operation in ("wado", "qido", "stow"):
        return operation, path
    return "", f"{operation}/{path}".rstrip("/")


def _pass_on(
    app: App,
    method: str,
    service: str,
    path: str,
    *,
    params: list[tuple[str, str]] | None = None,
    data: IO[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> StreamingResponse:
    store = app.datastore()
    if not isinstance(store, DicomWebStudies):
        raise UnknownError("The studies lie in a folder; there is no DICOMweb server behind this one.")
    answer = store.pacs.send(
        method,
        store.pacs.address(service, path),
        params=params,
        data=data,
        headers=headers,
        timeout=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
    )
    passed = {key: value for key, value in answer.headers.items() if key.lower() in _PASSED}
    return StreamingResponse(_blocks(answer), status_code=answer.status_code, headers=passed)


def _blocks(answer: requests.Response) -> Iterator[Any]:
    with answer:
        yield from answer.raw.stream(_BLOCK, decode_content=False)
