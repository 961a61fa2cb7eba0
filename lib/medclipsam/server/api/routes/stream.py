"""The answer of an infer request in lines of JSON, while the work goes on (NDJSON)."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from medclipsam.base.errors import InputError, MedClipSamError
from medclipsam.server.base.errors import status_of, told
from medclipsam.server.inference.drawn import PartialMasks, encode_segments
from medclipsam.server.inference.results import jsonable
from medclipsam.server.inference.work import Job, WorkQueue
from medclipsam.server.monai_label.app import Inferred, MedClipSamApp
from medclipsam.server.monai_label.upstream import settings

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/x-ndjson"
# Seconds between two looks for news, and the longest that a client hears nothing.
_LOOK, _SILENCE = 0.1, 1.0


def stream(
    app: MedClipSamApp, queue: WorkQueue, job: Job, image: str, partial: PartialMasks, done: Callable[[], None]
) -> StreamingResponse:
    """Return the answer of a job in lines: progress, masks of planes, and the result or an error.

    Parameters
    ----------
    app : MedClipSamApp
    queue : WorkQueue
        Where the job is.
    job : Job
        Comes to an `Inferred`.
    image : str
        Id of the image of the studies.
    partial : PartialMasks
        What the job hands out on its way.
    done : callable
        Called when the answer has ended, however it did.
    """
    headers = {"X-Request-ID": job.id, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    lines = _lines(app, queue, job, image, partial, done)
    return StreamingResponse(lines, media_type=MEDIA_TYPE, headers=headers)


async def _lines(
    app: MedClipSamApp, queue: WorkQueue, job: Job, image: str, partial: PartialMasks, done: Callable[[], None]
) -> AsyncIterator[bytes]:
    # the first to be called: the file is gone before the last line is sent
    job.future.add_done_callback(_remove_file)
    future = asyncio.wrap_future(job.future)
    # nobody asks for an error that comes after the client has left
    future.add_done_callback(lambda each: each.cancelled() or each.exception())
    try:
        before: tuple[Any, Any] | None = None
        said = time.monotonic()
        while not future.done():
            progress = _progress(queue, job)
            news = progress["fraction"], progress["message"]
            if news != before or time.monotonic() - said > _SILENCE:
                yield _line(progress)
                before, said = news, time.monotonic()
            await asyncio.wait({future}, timeout=_LOOK)
            masks = partial.take()
            if masks:
                # the job has read the image, so that this does not
                for line in await run_in_threadpool(_masks, app, image, masks):
                    yield line
                said = time.monotonic()
        try:
            yield await run_in_threadpool(_result, app, job, image, future.result())
        except MedClipSamError as raised:
            error = told(raised)
            yield _line({"event": "error", "status": status_of(error), "detail": str(error)})
        except Exception:
            number = secrets.token_hex(4)
            logger.exception("Error %s at a streamed infer request", number)
            yield _line({"event": "error", "status": 500, "detail": f"Internal error; see log entry {number}."})
    finally:
        # where the client has left
        if not job.future.done():
            queue.cancel(job)
        done()


def _progress(queue: WorkQueue, job: Job) -> dict[str, Any]:
    state = job.describe()
    before = queue.place(job)
    message = state["message"]
    if state["state"] == "waiting":
        message = f"waiting, {before} before" if before else "waiting"
    return {
        "event": "progress",
        "fraction": state["fraction"],
        "message": message or "reading the image",
        "seconds_left": state["seconds_left"],
    }


def _masks(app: MedClipSamApp, image: str, masks: list[tuple[str, int, np.ndarray]]) -> Iterator[bytes]:
    frames = app.viewed.frames(image)
    return iter(
        [
            _line({"event": "mask", "target": target, **{"plane": plane, "runs": frames.runs(mask)}})
            for target, plane, mask in masks
        ]
    )


def _result(app: MedClipSamApp, job: Job, image: str, result: Inferred) -> bytes:
    if result.mask is None:
        raise InputError("The model has no mask to show.")
    frames, label = app.viewed.frames(image), result.mask
    segments = encode_segments(label.masks(), frames, label.names)
    return _line(
        {
            "event": "result",
            "request": job.id,
            "params": result.params,
            "segments": segments,
            "maps": _maps(app, result.params, label.names),
        }
    )


def _maps(app: MedClipSamApp, params: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, Any]:
    """Return the addresses of the maps of each target, and the planes that have one."""
    shared = (params.get("uncertainty") or {}).get("evidence") if isinstance(params.get("uncertainty"), dict) else None
    own = {target.get("name"): target.get("evidence") for target in params.get("targets") or []}
    found: dict[str, Any] = {}
    for name in names:
        saliency, uncertainty = own.get(name) or {}, shared or {}
        tokens = {
            "saliency": _token(saliency.get("saliency")),
            "uncertainty": _token(uncertainty.get("uncertainty") or saliency.get("uncertainty")),
        }
        planes = sorted({plane for token in tokens.values() if token for plane in app.evidence.planes(token)})
        found[name] = {kind: _address(token, kind) for kind, token in tokens.items()} | {"planes": planes}
    return found


def _token(address: str | None) -> str | None:
    return address.split("/evidence/", 1)[1].split("/", 1)[0] if address else None


def _address(token: str | None, kind: str) -> str | None:
    return f"{settings.MONAI_LABEL_API_STR}/viewer/api/maps/{token}/{kind}" if token else None


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(jsonable(content), allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _remove_file(future: Future[Any]) -> None:
    """Remove the mask's file of a job that has ended: its lines hold the mask."""
    if not future.cancelled() and future.exception() is None and isinstance(future.result(), Inferred):
        file: Path = future.result().file
        file.unlink(missing_ok=True)
