"""Masks: the infer route, and the progress of what it runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask

from medclipsam.base.errors import InputError, MedClipSamError, UnknownOptionError
from medclipsam.server.api.access import AsUser, User
from medclipsam.server.api.params import InferParams, ParamsOf
from medclipsam.server.api.routes import stream
from medclipsam.server.api.routes.common import App, Queue, caller_of, mime_type, receive
from medclipsam.server.api.routes.sessions import session_image
from medclipsam.server.base.errors import ForbiddenError, UnknownError, headers_of, status_of, told
from medclipsam.server.base.names import checked_name, checked_request_id, file_suffix
from medclipsam.server.inference.drawn import PartialMasks, drawn_params
from medclipsam.server.inference.infer_request import DrawnMask, ImageSource, InferRequest, StudyImage, Upload
from medclipsam.server.inference.request_schema import parse_params, without_address
from medclipsam.server.inference.work import Job, WorkQueue
from medclipsam.server.monai_label.app import CLICK_TASK, Inferred

router = APIRouter(tags=["Infer"])

# Seconds between two looks whether the client is still there.
_LOOK = 0.2
# Bytes of an answer that are in memory at a time.
_BLOCK = 256 * 1024

# What an infer request may be made of.
_ADDRESS = ("image", "session_id", "output", "request_id")
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_FIELDS = ("params", "file", "label")

# Characters of a sentence that go into a header; proxies take some kilobytes of headers.
_LONGEST_HEADER = 500


# What nginx notes of a client that did not wait for its answer; nobody reads it but the metrics.
_CLIENT_LEFT = 499


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Output(StrEnum):
    """What the answer of an infer request is made of."""

    all = "all"
    image = "image"
    json = "json"


@router.post("/infer/{model}", summary="Run a model on an image")
async def infer(
    request: Request,
    app: App,
    queue: Queue,
    user: AsUser,
    model: str,
    image: str = "",
    session_id: str = "",
    output: Output = Output.all,
    request_id: str | None = None,
    params: Annotated[str, Form(description="JSON object of options"), ParamsOf(InferParams, text=True)] = "{}",
    file: Annotated[UploadFile | None, File(description="an image, in place of an id")] = None,
    label: Annotated[UploadFile | None, File(description="a mask to begin with")] = None,
) -> Response:
    """Answer the mask as a file and its evidence as JSON, or one of the two.

    `request_id` names the request: `GET /requests/{request_id}` tells its progress, `DELETE` cancels it. A client that
    accepts `application/x-ndjson` is answered in lines while the work goes on: progress, masks of planes, the result.
    """
    files: list[Path] = []
    params = await _params(request, params)
    if stream.MEDIA_TYPE in request.headers.get("accept", ""):
        return await _stream(request, app, queue, user, model, image, request_id, params)
    try:
        asked = await run_in_threadpool(
            _prepare, app, request, user.username, model, image, session_id, params, file, label, files
        )
        if asked.save_as is not None and not user.has("annotator"):
            raise ForbiddenError(f"User {user.username!r} may not save labels; leave save_label out.")
        job = queue.submit(
            partial(app.run_infer, asked), what=model, owner=user.username, job_id=checked_request_id(request_id)
        )
        try:
            result = await _result(request, queue, job)
            answer = await run_in_threadpool(_answer, result, output)
        except ClientLeftError:
            answer = Response(status_code=_CLIENT_LEFT)
        except MedClipSamError as raised:
            error = told(raised)
            answer = JSONResponse({"detail": str(error)}, status_of(error), headers_of(error))
        answer.headers["X-Request-ID"] = job.id
        return answer
    finally:
        _remove(files)


async def _stream(
    request: Request, app: App, queue: Queue, user: User, model: str, image: str, request_id: str | None, params: str
) -> Response:
    """Answer in lines; what is wrong with the request is told before the first of them."""
    if not image:
        raise InputError("The request names no image of the studies; allowed in a request for lines: image.")
    files: list[Path] = []
    asked = await run_in_threadpool(_prepare, app, request, user.username, model, image, "", params, None, None, files)
    if asked.save_as is not None and not user.has("annotator"):
        raise ForbiddenError(f"User {user.username!r} may not save labels; leave save_label out.")
    partial_masks = PartialMasks()
    job = queue.submit(
        partial(app.run_infer, asked),
        what=model,
        owner=user.username,
        job_id=checked_request_id(request_id),
        keep_partial=partial_masks,
    )
    return stream.stream(app, queue, job, image, partial_masks, partial(_remove, files))


async def _params(request: Request, params: str) -> str:
    """Return the options of a request, from its form or its JSON body; nothing that it holds is ignored.

    Raises
    ------
    InputError
        If the address or the form has a name that is not known, or the body is of another type.
    """
    for key, value in request.query_params.items():
        if key not in _ADDRESS:
            raise UnknownOptionError(key, value, _ADDRESS, what="the address of the route; options go into params")
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in _FORMS:
        for key, field in (await request.form()).items():
            if key not in _FIELDS:
                raise UnknownOptionError(key, field, _FIELDS, what="the form; options go into params, a JSON object")
        return params
    body = await request.body()
    if not body.strip():
        return params
    if kind != "application/json":
        raise InputError(
            f"The body of the request is of the type {kind or 'unknown'!r}; allowed: a form with the field params, or "
            f"a JSON object of options (Content-Type: application/json)."
        )
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InputError("The body of the request is not UTF-8 text; allowed: a JSON object of options.") from None


def _prepare(
    app: App,
    request: Request,
    user: str,
    model: str,
    image: str,
    session_id: str,
    params: str,
    file: UploadFile | None,
    label: UploadFile | None,
    files: list[Path],
) -> InferRequest:
    """Return the checked request; what is wrong is told before it waits for its turn.

    What was sent along is added to `files`.
    """
    asked = without_address(parse_params(params), model=model, image=image)
    given = [name for name, value in (("image", image), ("session_id", session_id), ("file", file)) if value]
    if len(given) != 1:
        named = " and ".join(given) or "no image"
        raise InputError(f"The request names {named}; allowed: one of image, session_id and file.")
    source: ImageSource
    if file is not None:
        files.append(receive(file, file_suffix(file.filename)))
        source = Upload(files[-1])
    elif session_id:
        source = session_image(app, session_id)
    else:
        source = StudyImage(checked_name(image, "Image"))
    mask: Upload | DrawnMask | None = None
    if model == CLICK_TASK and isinstance(source, StudyImage) and {"clicks", "segments"} & asked.keys():
        app.image_path(source.id)
        asked, drawn = drawn_params(asked, app.viewed.frames(source.id), app.label_table)
        mask = DrawnMask(drawn)
    if label is not None:
        suffix = file_suffix(label.filename)
        if not suffix:
            raise InputError("The label that is sent along must be an image file, such as .nii.gz or .nrrd.")
        files.append(receive(label, suffix))
        mask = Upload(files[-1])
    checked = app.request(model, asked, source, caller_of(request, user, asked), mask)
    if isinstance(source, StudyImage):
        app.image_path(source.id)
    return checked


async def _result(request: Request, queue: WorkQueue, job: Job) -> Inferred:
    """Wait for a job's result; a client that leaves stops its work."""
    future = asyncio.wrap_future(job.future)
    left = False
    while not future.done():
        await asyncio.wait({future}, timeout=_LOOK)
        if not future.done() and not left and await request.is_disconnected():
            left = True
            queue.cancel(job)
    if left:
        if future.exception() is None:
            _remove([future.result().file])
        raise ClientLeftError
    result: Inferred = future.result()
    return result


def _answer(result: Inferred, output: Output) -> Response:
    """Return the answer; the mask's file is removed at once where it is not sent, else with the end of the answer."""
    file = result.file
    if output is Output.image:
        return FileResponse(
            file,
            media_type=mime_type(file),
            filename=file.name,
            headers=_sentence(result),
            background=BackgroundTask(_remove, [file]),
        )
    try:
        if output is Output.json:
            return JSONResponse(result.params)
        return _multipart(result.params, file)
    finally:
        _remove([file])


def _multipart(params: dict[str, Any], file: Path) -> StreamingResponse:
    """Return an answer of two parts, whose mask is read while it is sent."""
    # an open file can be read after it was removed, and is gone once it is closed, however the answer ends
    mask = file.open("rb")
    message = MultipartEncoder(
        fields={
            "params": (None, json.dumps(params), "application/json"),
            "image": (file.name, mask, mime_type(file)),
        }
    )

    def parts() -> Iterator[bytes]:
        with mask:
            while block := message.read(_BLOCK):
                yield block

    length = {"Content-Length": str(message.len)}
    return StreamingResponse(parts(), media_type=message.content_type, headers=length)


def _sentence(result: Inferred) -> dict[str, str]:
    """Return the header with what was found, for those who ask for the mask alone; percent-encoded, as texts may be."""
    sentence = result.params.get("sentence")
    return {"X-Sentence": quote(sentence[:_LONGEST_HEADER])} if sentence else {}


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@router.get("/requests/", tags=["Requests"], summary="List the infer requests that run or wait")
def list_requests(queue: Queue, user: AsUser) -> list[dict[str, Any]]:
    """Answer the user's own requests in the order of their turns; an admin's answer has all."""
    return [_describe(queue, job) for job in queue.jobs() if _may_see(user, job)]


@router.get("/requests/{request_id}", tags=["Requests"], summary="Tell the progress of an infer request")
def get_request(queue: Queue, user: AsUser, request_id: str) -> dict[str, Any]:
    """Answer state, fraction and what is being done, seconds so far and (about) to go, and how many go before it."""
    return _describe(queue, _own(queue, request_id, user))


@router.delete("/requests/{request_id}", tags=["Requests"], summary="Cancel an infer request")
def cancel_request(queue: Queue, user: AsUser, request_id: str) -> dict[str, Any]:
    """Cancel a request that waits at once, one that runs at its next step; its infer request is answered 409."""
    job = _own(queue, request_id, user)
    queue.cancel(job)
    return _describe(queue, job)


def _own(queue: WorkQueue, request_id: str, user: User) -> Job:
    job = queue.get(checked_request_id(request_id) or "")
    if not _may_see(user, job):
        # as if it were not there: whose it is is none of this user's business
        raise UnknownError(f"Request {request_id!r} is not known here; it ended long ago or was never made.")
    return job


def _may_see(user: User, job: Job) -> bool:
    return job.owner == user.username or user.has("admin")


def _describe(queue: WorkQueue, job: Job) -> dict[str, Any]:
    return {**job.describe(), "before": queue.place(job)}
