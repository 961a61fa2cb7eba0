"""What the viewer of this package asks beside DICOMweb: which image a frame belongs to, labels, overlays, state."""

from __future__ import annotations

import datetime
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image

from medclipsam.base.errors import InputError, OptionError
from medclipsam.imaging.frames import ImageFrames
from medclipsam.imaging.label_map import label_numbers
from medclipsam.measurements import Axis, measure
from medclipsam.measurements.table import as_csv, row
from medclipsam.server.api.access import AsAnnotator, AsUser
from medclipsam.server.api.routes.common import App, caller_of, give_client, viewer_turns
from medclipsam.server.api.routes.tasks import running_trainer
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.base.names import checked_name
from medclipsam.server.inference.drawn import Segment, read_segments
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.monai_label.saved import SaveConflictError, SavedSegments
from medclipsam.server.studies.datastore import FINAL, Datastore
from medclipsam.server.studies.dicomweb import DicomWebStudies
from medclipsam.server.studies.images import unknown_image
from medclipsam.studies.final import SAVED_BY

router = APIRouter(prefix="/viewer/api", tags=["Viewer"])

_MOST = 2**31 - 1


def _saved(request: Request) -> SavedSegments:
    found: SavedSegments = request.app.state.saved
    return found


SavedStore = Annotated[SavedSegments, Depends(_saved)]


@router.get("/image", summary="Find the image of a DICOM series, instance or frame")
def image(
    request: Request,
    response: Response,
    app: App,
    user: AsUser,
    study: Annotated[str, Query(alias="StudyInstanceUID")],
    series: Annotated[str, Query(alias="SeriesInstanceUID")],
    instance: Annotated[str | None, Query(alias="SOPInstanceUID")] = None,
    frame: Annotated[int | None, Query(ge=1, le=_MOST, description="frame number, from 1")] = None,
) -> dict[str, Any]:
    """Answer the image's id, and the instance and frame of each of its planes in the order of the plane index.

    Everything else that is sent to and from a viewer names planes by this index, and points and masks in the frame's
    own pixels. `spacing_mm` is that of planes (null for a single one, or where not known), rows and columns. `reports`
    says whether measurements of a saved label are stored in the PACS as a structured report: "always", "offered", where
    the route that stores one does, or null in a folder.
    """
    give_client(request, response)
    with viewer_turns.of(user.username):
        image_id = app.viewed.image_of(study, series, instance, frame)
        frames = app.viewed.frames(image_id)
    rows, columns = frames.shape
    return {
        "image": image_id,
        "name": app.viewed.describe(image_id)["name"],
        "modality": frames.image.modality,
        "rows": rows,
        "columns": columns,
        "spacing_mm": None if frames.spacing is None else list(frames.spacing),
        "planes": [{"sop": instance, "frame": number} for instance, number in frames.frames],
        "labelled": app.datastore().get_labels_by_image_id(image_id),
        "lease": app.rounds.lease_of(image_id),
        "reports": _reports(app),
    }


def _reports(app: MedClipSamApp) -> Literal["always", "offered"] | None:
    store = app.datastore()
    if not isinstance(store, DicomWebStudies):
        return None
    return "always" if store.pacs.options.reports else "offered"


@router.get("/labels/{image}", summary="Get the final label in segments", responses={204: {"description": "No label"}})
def get_label(request: Request, app: App, saved: SavedStore, user: AsUser, image: str) -> Response:
    """Answer the segments of the final label, who saved it and when, and its version.

    Of an image that several people read it is the asker's own, until there is a consensus.
    """
    with viewer_turns.of(user.username):
        found = saved.get(_known_image(app, image), caller_of(request, user.username))
    return Response(status_code=204) if found is None else _answer(found)


@router.get(
    "/proposals/{image}",
    summary="Get the mask of a model that waits with an image",
    responses={204: {"description": "No mask, or a label that was saved"}},
)
def get_proposal(request: Request, app: App, saved: SavedStore, user: AsUser, image: str) -> Response:
    """Answer the segments of the mask that a network, a batch or a cohort has left for whoever labels an image.

    `by` names the network and its version, or is "zero-shot", or "pre-annotation" where nothing is known. The rounds
    count it as offered: what is saved is measured against it.
    """
    with viewer_turns.of(user.username):
        found = saved.proposed(_known_image(app, image), caller_of(request, user.username))
    return Response(status_code=204) if found is None else _answer(found)


@router.put("/labels/{image}", summary="Save segments as the final label")
async def put_label(request: Request, app: App, saved: SavedStore, user: AsAnnotator, image: str) -> Response:
    """Save the segments of an image as its final label; answered once it is read back.

    The body is a JSON object: `segments`, `base` (the version of the label that they began with, or null) and `as_new`.
    409, with the label that is there as `theirs`, where it has another version by now, unless `as_new` is true. The
    label that was there stays as an earlier version: one that was changed counts no more, and one that `as_new` leaves
    aside counts as a reading beside this one.
    """
    body, caller = await request.body(), caller_of(request, user.username)

    def put() -> Response:
        name, given = _known_image(app, image), _object(body, {"segments", "base", "as_new"})
        as_new = given.get("as_new", False)
        if not isinstance(as_new, bool):
            raise OptionError("as_new", as_new, "true or false")
        try:
            with viewer_turns.of(user.username):
                answer = saved.put(name, given.get("segments"), _version(given), caller, as_new=as_new)
        except SaveConflictError as error:
            return _answer({"detail": str(error), "theirs": error.theirs}, 409)
        corrections = app.datastore().corrections(name, "final")
        return _answer({**answer, **({"corrections": corrections} if corrections else {})})

    return await run_in_threadpool(put)


@router.post("/labels/{image}/report", summary="Store the final label's measurements in the PACS")
def store_report(app: App, request: Request, user: AsAnnotator, image: str) -> dict[str, str]:
    """Store the measurements of the final label as a structured report (TID 1500) beside its DICOM SEG.

    Answers the UIDs of the report. One that is stored for this label already is not stored again.
    """
    store, name = app.datastore(), _known_image(app, image)
    if not isinstance(store, DicomWebStudies):
        raise InputError(
            "Reports of measurements are stored in a PACS, and these studies are in a folder; "
            "GET /viewer/api/measurements/{image} answers them as CSV or JSON."
        )
    with viewer_turns.of(user.username):
        report = store.store_report(name)
    app.audit.label(caller_of(request, user.username), "measurements stored", name, FINAL)
    return report


@router.post("/measurements/{image}", summary="Measure segments that are drawn")
async def measure_drawn(request: Request, app: App, user: AsUser, image: str) -> Response:
    """Answer `measurements`: what each segment of the body measures on the image, in the order of the segments.

    The body is a JSON object with `segments`, as a label has them; nothing is kept. An axis has its `plane`,
    `length_mm` (null where distances are not known), `length_pixels`, and its `start` and `end` as [x, y] in pixels of
    the plane's frame.
    """
    body = await request.body()

    def work() -> Response:
        name, given = _known_image(app, image), _object(body, {"segments"})
        with viewer_turns.of(user.username):
            frames = app.viewed.frames(name)
            segments = read_segments(given.get("segments"), frames)
            return _answer({"measurements": _measured(segments, frames)})

    return await run_in_threadpool(work)


@router.get(
    "/measurements/{image}",
    summary="Get the measurements of the final label",
    responses={200: {"content": {"text/csv": {}}}, 404: {"description": "No such image, or it has no label"}},
)
def measure_label(
    request: Request, app: App, saved: SavedStore, user: AsUser, image: str, format: Literal["json", "csv"] = "json"
) -> Response:
    """Answer what each segment of the final label measures: JSON as for drawn segments, or CSV.

    The CSV file has the columns that `medclipsam segment --measure` writes.
    """
    name = _known_image(app, image)
    with viewer_turns.of(user.username):
        frames = app.viewed.frames(name)
        label = saved.get(name, caller_of(request, user.username), frames)
        if label is None:
            raise UnknownError(f"Image {name!r} has no final label to measure.")
        segments = read_segments(
            [{"name": each["name"], "planes": each["planes"]} for each in label["segments"]], frames
        )
        if format == "json":
            told = {"image": name, "version": label["version"], "measurements": _measured(segments, frames)}
            return _answer(told)
        numbers = label_numbers([segment.name for segment in segments], app.label_table)
        lines = [row(name, each.name, numbers[each.name], measure(each.mask, frames.image)) for each in segments]
    file = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    headers = {"Content-Disposition": f'attachment; filename="{file}-measurements.csv"', "Cache-Control": "no-store"}
    return Response(as_csv(lines), media_type="text/csv; charset=utf-8", headers=headers)


def _measured(segments: Sequence[Segment], frames: ImageFrames) -> list[dict[str, Any]]:
    found = []
    for segment in segments:
        measured = measure(segment.mask, frames.image)
        axes = {name: _drawn_axis(getattr(measured, name), frames) for name in ("long_axis", "short_axis")}
        found.append({"name": segment.name, **measured.to_dict(), **axes})
    return found


def _drawn_axis(axis: Axis | None, frames: ImageFrames) -> dict[str, Any] | None:
    if axis is None:
        return None
    return {
        "plane": axis.plane,
        "length_mm": axis.length_mm,
        "length_pixels": math.dist(axis.start, axis.end),
        "start": list(frames.point(*axis.start)),
        "end": list(frames.point(*axis.end)),
    }


@router.get("/maps/{token}/{kind}", summary="Get a plane of a map as a picture")
def get_map(
    app: App,
    user: AsUser,
    token: str,
    kind: Literal["saliency", "uncertainty"],
    plane: Annotated[int, Query(ge=0, le=_MOST)] = 0,
) -> Response:
    """Answer the map of a plane as an 8-bit grey PNG with the size and the pixels of the plane's frame."""
    source, values = app.evidence.plane(token, kind, plane)
    image_id = app.datastore().image_at(source)
    if image_id is None:
        raise UnknownError("The image of this map is not among the studies any more.")
    with viewer_turns.of(user.username):
        frame = app.viewed.frames(image_id).to_frame(np.rint(values * 255).astype(np.uint8))
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(content, "PNG", compress_level=1)
    return Response(content.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/thumbnail", summary="Get a small picture of an image")
def thumbnail(app: App, user: AsUser, image: str) -> Response:
    """Answer a small JPEG of an image; the DICOMweb server that has it is asked to draw it."""
    name = _known_image(app, image)
    with viewer_turns.of(user.username):
        content = app.viewed.thumbnail(name)
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


@router.get("/studies", summary="List the images for people")
def studies(
    app: App,
    user: AsUser,
    offset: Annotated[int, Query(ge=0, le=_MOST)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 60,
    q: Annotated[str, Query(max_length=200, description="words that names must hold")] = "",
    labelled: Annotated[bool | None, Query(description="those with a final label, or those without")] = None,
) -> dict[str, Any]:
    """Answer `total` and `studies`: id, name, modality, planes, labels, picture and DICOM names of each image.

    `label` says of a final label who saved it, when, and what a reviewer has said of it, as far as it is known without
    asking a PACS; `lease` for whom an image is kept that has none.
    """
    store, viewed = app.datastore(), app.viewed
    if viewed.catalogue is not None:
        viewed.catalogue.wait()
    done = set(store.get_labeled_images())
    found = []
    for image_id in store.list_images():
        if labelled is not None and (image_id in done) is not labelled:
            continue
        try:
            told = viewed.describe(image_id)
        except UnknownError:  # it went away in this moment
            continue
        words = f"{image_id} {told['name']} {told['modality']}".casefold()
        if all(word in words for word in q.casefold().split()):
            found.append((image_id, told))
    return {
        "total": len(found),
        "labelled": sum(image_id in done for image_id, _ in found),
        "studies": [
            {
                "image": image_id,
                **told,
                "labelled": image_id in done,
                "label": _about_label(store, image_id) if image_id in done else None,
                "lease": None if image_id in done else app.rounds.lease_of(image_id),
                "tags": sorted(store.get_labels_by_image_id(image_id)),
                "picture": f"viewer/api/thumbnail?image={quote(image_id, safe='')}",
            }
            for image_id, told in found[offset : offset + limit]
        ],
    }


def _about_label(store: Datastore, image: str) -> dict[str, Any]:
    info = store.kept_label_info(image, FINAL)
    seconds = info.get("ts")
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC) if isinstance(seconds, (int, float)) else None
    when = None if at is None else at.isoformat(timespec="seconds")
    return {"by": str(info.get(SAVED_BY) or ""), "at": when, "review": info.get("review")}


@router.get("/state", summary="Tell how the work stands")
def state(request: Request, app: App, user: AsUser) -> dict[str, Any]:
    """Answer numbers of images and labels, the rounds, what is trained, and the asker's leases; and a sentence."""
    return state_of(app, caller_of(request, user.username), reviews=user.has("reviewer"))


def state_of(app: MedClipSamApp, caller: Caller, *, reviews: bool = False) -> dict[str, Any]:
    """Return how the work stands for somebody who may be a reviewer, see `state`."""
    counts, rounds, training = app.datastore().status(), app.rounds.brief(), running_trainer()
    reader, used = reader_of(caller), app.rounds.is_used
    leases = app.rounds.ledger.leases(reader) if used else []
    to_adjudicate = [each for each in app.rounds.ledger.waiting() if reader not in each.readers] if used else []
    waiting = rounds.get("waiting", 0)
    images, labelled = counts["total"], counts["completed"] - waiting
    parts = [f"{labelled} of {images} images labelled", f"round {rounds['round']}"]
    if training:
        parts.append(f"training {training}")
    elif rounds["retrain_after"]:
        parts.append(f"{rounds['new_labels']} of {rounds['retrain_after']} labels for the next training")
    if waiting:
        parts.append(f"{waiting} {'waits' if waiting == 1 else 'wait'} for adjudication")
    return {
        "images": images,
        "labelled": labelled,
        "rounds": rounds["round"],
        "new_labels": rounds["new_labels"],
        "retrain_after": rounds["retrain_after"],
        "waiting": waiting,
        "to_adjudicate": len(to_adjudicate) if reviews else 0,
        "last": rounds.get("last"),
        "training": training,
        "leases": [lease.image for lease in leases],
        "sentence": "; ".join(parts) + ".",
    }


def _known_image(app: MedClipSamApp, image: str) -> str:
    image = checked_name(image, "Image")
    known = set(app.datastore().list_images())
    if image not in known:
        raise unknown_image(image, known.__contains__)
    return image


def _object(body: bytes, keys: set[str]) -> dict[str, Any]:
    """Return the JSON object of a body, with none but some keys."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The body of the request is not JSON ({str(error)[:60]}).") from None
    if not isinstance(given, dict) or not given.keys() <= keys:
        raise InputError(f"The body of the request must be a JSON object of {', '.join(sorted(keys))}.")
    return given


def _version(given: dict[str, Any]) -> str | None:
    base = given.get("base")
    if base is not None and (not isinstance(base, str) or len(base) > 128):
        raise OptionError("base", str(base)[:40], "the version that the label was answered with, or null")
    return base


def _answer(content: dict[str, Any], status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, {"Cache-Control": "private, no-store"})
