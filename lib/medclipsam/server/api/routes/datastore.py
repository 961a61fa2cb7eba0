"""Images and labels of the studies."""

from __future__ import annotations

import hashlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging.label_map import ValueNames, read_kept_label
from medclipsam.server.api.access import AsAdmin, AsAnnotator, AsUser, User
from medclipsam.server.api.routes.common import (
    LARGEST,
    App,
    caller_of,
    file_answer,
    is_known_reviewer,
    mime_type,
    receive,
    refuse_on_dicomweb,
    turns,
)
from medclipsam.server.base.errors import ConflictError, UnknownError
from medclipsam.server.base.names import checked_name, checked_tag, file_suffix, id_from_file
from medclipsam.server.inference.infer_request import AnswerFormat
from medclipsam.server.inference.last_masks import client_of
from medclipsam.server.inference.request_schema import parse_params
from medclipsam.server.inference.results import write_result
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.studies.datastore import FINAL
from medclipsam.server.studies.images import series_as_volume, unknown_image
from medclipsam.server.studies.kept_info import image_info, label_info, new_label_info
from medclipsam.studies.final import ANONYMOUS

router = APIRouter(prefix="/datastore", tags=["Datastore"])


class Listing(StrEnum):
    """What the listing of the studies holds."""

    stats = "stats"
    all = "all"
    train = "train"


@router.get("/", summary="List images and labels")
def listing(app: App, user: AsUser, output: Listing = Listing.stats) -> Any:
    """Answer counts, all images and labels, or the pairs of images and final labels.

    The first two also have `unreadable`: files that are not listed since they cannot be read, listed images that could
    not be read when they were last asked for, and the reason for each.
    """
    store = app.datastore()
    if output is Listing.train:
        return [{kind: os.path.basename(path) for kind, path in pair.items()} for pair in store.datalist()]
    answer = store.json() if output is Listing.all else store.status()
    return {**answer, "unreadable": app.unreadable()}


@router.put("/", include_in_schema=False)
@router.put("/image", summary="Add an image")
def add_image(
    request: Request,
    app: App,
    user: AsAnnotator,
    file: Annotated[UploadFile, File(description="an image file")],
    image: str | None = None,
    params: Annotated[str, Form(description="JSON object that is kept with the image")] = "{}",
) -> dict[str, str]:
    """Add an image to a studies folder; its id is the file's name unless `image` names one."""
    from medclipsam.imaging import read_image

    refuse_on_dicomweb(app, "images are added")
    image_id = checked_name(image, "Image") if image else id_from_file(file.filename)
    info = image_info(parse_params(params))
    suffix = file_suffix(file.filename)
    if not suffix:
        raise InputError(
            f"The file {file.filename!r} is not an image that is served; its name must end in .nii.gz, .png ..."
        )
    if image_id in app.datastore().list_images():
        raise ConflictError(f"Image {image_id!r} is among the studies already; remove it first, or name another id.")
    # DICOM files often have names without an end
    path = receive(file, file_suffix(file.filename) or ".dcm")
    try:
        try:
            with turns.of(user.username):
                read_image(path)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), file.filename or "The file")) from None
        added = app.datastore().add_image(image_id, str(path), {**info, "user": user.username})
    finally:
        path.unlink(missing_ok=True)
    return {"image": str(added)}


@router.delete("/", include_in_schema=False)
@router.delete("/image", summary="Remove an image and its labels")
def remove_image(request: Request, app: App, user: AsAdmin, id: str) -> dict[str, Any]:
    """Remove an image of a studies folder."""
    refuse_on_dicomweb(app, "images are removed")
    app.image_path(id)
    app.datastore().remove_image(id)
    app.audit.label(caller_of(request, user.username), "image removed", id, "")
    return {}


@router.get("/image", summary="Download an image")
def get_image(app: App, user: AsUser, image: str) -> FileResponse:
    """Answer the image's file; a series of DICOM files as the NIfTI volume that masks are made on."""
    path = app.image_path(image)
    if not path.is_dir():
        return file_answer(str(path), f"Image {image!r}")
    with turns.of(user.username):
        volume = series_as_volume(app.images.read(path))
    name = f"{image}.nii.gz"
    return FileResponse(volume, media_type="application/gzip", filename=name, background=BackgroundTask(volume.unlink))


@router.head("/image", summary="Check whether an image is here")
def check_image(app: App, user: AsUser, image: str, check_sum: str | None = None) -> Response:
    """Answer 200 where the image is here and has the checksum, given as "SHA256:digest"."""
    path = app.image_path(image)
    if check_sum:
        kind, _, digest = check_sum.rpartition(":")
        if (kind or "SHA256") not in ("SHA256", "SHA512", "MD5"):
            raise InputError(f"The checksum {check_sum[:40]!r} cannot be checked; allowed: SHA256, SHA512 or MD5.")
        if not path.is_file() or _digest(path, kind or "SHA256") != digest.lower():
            raise UnknownError(f"Image {image!r} has another checksum.")
    return Response()


@router.get("/image/info", summary="Tell of an image")
def get_image_info(app: App, user: AsUser, image: str) -> dict[str, Any]:
    """Answer what is kept with an image."""
    _known_image(app, image)
    return {key: value for key, value in app.datastore().get_image_info(image).items() if key != "path"}


@router.put("/image/info", summary="Change what is told of an image")
def put_image_info(app: App, user: AsAnnotator, image: str, info: Annotated[str, Form()] = "{}") -> dict[str, Any]:
    """Add the JSON object `info` to what is kept with an image: at most 64 KiB, without keys that the server sets."""
    _known_image(app, image)
    added = image_info(parse_params(info, "info"))
    app.datastore().update_image_info(image, {**added, "user": user.username})
    return {}


@router.get("/image/labels", summary="List the labels of an image")
def get_image_labels(app: App, user: AsUser, image: str) -> dict[str, str]:
    """Answer the label's id for each tag that the image has a label of; nothing is fetched for it."""
    _known_image(app, image)
    return dict(app.datastore().get_labels_by_image_id(image))


@router.put("/label", summary="Save a label")
def save_label(
    request: Request,
    app: App,
    user: AsAnnotator,
    image: str,
    label: Annotated[UploadFile, File(description="the mask, an image file")],
    params: Annotated[str, Form(description="JSON object that is kept with the label")] = "{}",
    tag: str = FINAL,
) -> dict[str, Any]:
    """Save a label of an image under a tag; `final` is one that a person has approved."""
    _known_image(app, image)
    tag = checked_tag(tag, FINAL)
    # the masks that the client was given tell what a person has changed
    info = new_label_info(parse_params(params))
    caller = caller_of(request, user.username, info)
    if caller.client:
        info["client_id"] = caller.client
    suffix = file_suffix(label.filename)
    if not suffix:
        raise InputError(
            f"The label {label.filename!r} is not an image file; its name must end in .nii.gz, .nrrd, .png ..."
        )
    path = receive(label, suffix)
    try:
        with turns.of(user.username):
            label_id = app.save_label(image, path, tag, {**info, "user": user.username}, caller)
        answer = dict(app.on_save_label(image, label_id) or {})
        corrections = app.datastore().corrections(label_id, tag)
        if corrections:
            answer["corrections"] = corrections
    finally:
        path.unlink(missing_ok=True)
    return {**answer, "image": image, "label": label_id}


@router.delete("/label", summary="Remove a label")
def remove_label(request: Request, app: App, user: AsAdmin, id: str, tag: str) -> dict[str, Any]:
    """Remove the label of a tag."""
    _label_file(app, id, tag)
    app.datastore().remove_label(id, tag)
    app.audit.label(caller_of(request, user.username), "label removed", id, tag)
    if tag == FINAL:
        app.rounds.removed(id)
    return {}


@router.get("/label", summary="Download a label")
def get_label(
    request: Request,
    app: App,
    user: AsUser,
    label: str,
    tag: str,
    result_extension: Annotated[str | None, Query(description="format, as of an infer request")] = None,
    version: Annotated[int | None, Query(ge=1, le=LARGEST, description="an earlier version")] = None,
) -> FileResponse:
    """Answer the label's file as it is kept, or in another format; with `version` an earlier one.

    Of an image that several people read, the final label is the asker's own until there is a consensus; reviewers who
    have logged in get that of the last reader, and any version.

    With `result_extension` it lies on the image's grid as a mask of the infer route does: whole in `.seg.nrrd`; in the
    other formats the smaller of two segments that overlap has the voxels of both. A label that a model has made
    then counts as the mask that the client was given last: what is saved after it is told apart from it.
    """
    caller = _reader(request, user, tag)
    kept = _label_file(app, label, tag, caller) if version is None else _version_file(app, label, tag, version, caller)
    if result_extension is None:
        return file_answer(kept, f"Label {label!r}")
    asked = AnswerFormat.from_params({"result_extension": result_extension})
    source, store = app.image_path(label), app.datastore()
    info = store.get_label_info(label, tag) if version is None else store.label_version(label, tag, version).info
    with turns.of(user.username):
        mask = read_kept_label(kept, app.images.read(source), info)
    made = write_result(mask, asked)
    client = client_of(caller_of(request, user.username))
    if client and version is None and tag != FINAL and "model" in info:
        names = dict(ValueNames.from_monailabel(info).asked)
        app.masks.keep(client, source, mask.values, names, info, mask.beneath)
    return FileResponse(
        made,
        media_type=mime_type(made),
        filename=f"{label}{asked.extension}",
        background=BackgroundTask(made.unlink),
    )


@router.get("/label/versions", summary="List earlier versions of a label")
def list_versions(request: Request, app: App, user: AsUser, label: str, tag: str = FINAL) -> list[dict[str, Any]]:
    """Answer the versions that are kept of a label that was replaced or removed, the earliest first.

    `GET /datastore/label` and `PUT /datastore/label/versions` take the number `version`. At most 20 are kept. Of an
    image that several people read, a reader is told only of their own until there is a consensus.
    """
    _known_image(app, label)
    tag = checked_tag(tag, FINAL)
    versions = app.datastore().label_versions(label, tag)
    reader = _reader(request, user, tag)
    if reader is not None and app.readers.is_blind(label):
        versions = [each for each in versions if each.saved_by == reader]
    return [{"version": each.number, "saved_by": each.saved_by, "info": each.info} for each in versions]


@router.put("/label/versions", summary="Bring back an earlier version of a label")
def restore_version(
    request: Request,
    app: App,
    user: AsAnnotator,
    label: str,
    version: Annotated[int, Query(ge=1, le=LARGEST)],
    tag: str = FINAL,
) -> dict[str, Any]:
    """Save an earlier version of a label again, as the user's; the one that it takes the place of is kept too."""
    _known_image(app, label)
    tag = checked_tag(tag, FINAL)
    _version_file(app, label, tag, version, _reader(request, user, tag))
    kept = app.datastore().label_version(label, tag, version)
    caller = caller_of(request, user.username)
    info = {**new_label_info(kept.info), "user": user.username}
    with turns.of(user.username):
        saved = app.save_label(label, kept.path, tag, info, caller)
    return {"image": label, "label": saved}


@router.head("/label", summary="Check whether a label is here")
def check_label(app: App, user: AsUser, tag: str, label: str | None = None, image: str | None = None) -> Response:
    """Answer 200 where the label is here; MONAI Label's own route calls the label's id `image`."""
    _label_file(app, label or image, tag)
    return Response()


@router.get("/label/info", summary="Tell of a label")
def get_label_info(request: Request, app: App, user: AsUser, label: str, tag: str) -> dict[str, Any]:
    """Answer what is kept with a label, of the final one that `GET /datastore/label` answers."""
    reader = _reader(request, user, tag)
    _label_file(app, label, tag, reader)
    shown = None if reader is None else app.readers.shown_to(label, reader)
    return dict(app.datastore().get_label_info(label, tag) if shown is None else shown[1])


@router.put("/label/info", summary="Change what is told of a label")
def put_label_info(
    app: App, user: AsAnnotator, label: str, tag: str, info: Annotated[str, Form()] = "{}"
) -> dict[str, Any]:
    """Add the JSON object `info` to what is kept with a label: at most 512 KiB, without keys that the server sets."""
    _label_file(app, label, tag)
    added = label_info(parse_params(info, "info"))
    app.datastore().update_label_info(label, tag, {**added, "user": user.username})
    return {}


@router.put("/updatelabelinfo", include_in_schema=False)
def put_label_info_by_params(
    app: App, user: AsAnnotator, label: str, tag: str, params: Annotated[str, Form()] = "{}"
) -> dict[str, Any]:
    """Do as `PUT /datastore/label/info` does."""
    return put_label_info(app, user, label, tag, params)


@router.get("/dataset", summary="Download images and final labels as a ZIP archive")
def get_dataset(
    app: App, user: AsAnnotator, limit_cases: Annotated[int | None, Query(ge=0, le=LARGEST)] = None
) -> FileResponse:
    """Answer an archive of the images that have a final label, at most `limit_cases` of them."""
    store = app.datastore()
    if not store.get_labeled_images():
        raise UnknownError("No image has a final label yet, so that there is no dataset.")
    path = Path(store.get_dataset_archive(limit_cases))
    return FileResponse(
        path, media_type="application/zip", filename="dataset.zip", background=BackgroundTask(path.unlink)
    )


def _known_image(app: MedClipSamApp, image: str) -> None:
    """Raise `UnknownError` where there is no such image; fetches nothing."""
    known = set(app.datastore().list_images())
    if checked_name(image, "Image") not in known:
        raise unknown_image(image, known.__contains__)


def _reader(request: Request, user: User, tag: str) -> str | None:
    """Return who opens a final label and may not be shown those of other readers; None for all else."""
    reader = reader_of(caller_of(request, user.username, request.query_params))
    reads = reader != ANONYMOUS and user.has("annotator") and not is_known_reviewer(request, user)
    return reader if tag == FINAL and reads else None


def _label_file(app: MedClipSamApp, label: str | None, tag: str, reader: str | None = None) -> str:
    """Return the file of a label, of a final one that which a reader is shown."""
    label, tag = checked_name(label, "Label"), checked_tag(tag, FINAL)
    path = app.datastore().get_label_uri(label, tag)
    if path and reader is not None:
        shown = app.readers.shown_to(label, reader)
        if shown is None:
            raise UnknownError(f"Image {label!r} is read by several people, and has no label of yours yet.")
        path = str(shown[0])
    if not path or not os.path.exists(path):
        raise UnknownError(f"Label {label!r} with the tag {tag!r} is not here.")
    return str(path)


def _version_file(app: MedClipSamApp, label: str, tag: str, version: int, reader: str | None) -> str:
    """Return the file of an earlier version of a label, which must be a reader's own where others are not shown."""
    _known_image(app, label)
    kept = app.datastore().label_version(label, checked_tag(tag, FINAL), version)
    if reader is not None and kept.saved_by != reader and app.readers.is_blind(label):
        raise UnknownError(f"Version {version} of the label {label!r} is of another reader, and there is no consensus.")
    return str(kept.path)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, kind.lower()).hexdigest()
