"""Rounds: what came of them, who holds which image, and what reviewers say of labels."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from medclipsam.active.ledger import TooManyLeasesError
from medclipsam.active.summary import plot
from medclipsam.base.errors import InputError
from medclipsam.server.api.access import AsReviewer, AsUser
from medclipsam.server.api.routes.common import App, caller_of
from medclipsam.server.base.errors import ConflictError, ForbiddenError, UnknownError
from medclipsam.server.base.names import checked_name
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.studies.datastore import FINAL

router = APIRouter(prefix="/rounds", tags=["Rounds"])


@router.get("/", summary="Tell what the rounds came to")
def summary(app: App, user: AsUser) -> dict[str, Any]:
    """Answer a line for each round: labels, effort of correction, training, networks; empty before the first."""
    return app.rounds.summary()


@router.get("/plot.{kind}", summary="Draw the learning curve and the effort of correction")
def picture(app: App, user: AsUser, kind: Literal["png", "html"]) -> FileResponse:
    """Answer a picture, or a page with picture and table."""
    found = app.rounds.summary()
    if not found:
        raise UnknownError("No label has been saved yet, so that there is nothing to draw.")
    folder = Path(tempfile.mkdtemp(prefix="rounds-"))

    def clean() -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    try:
        path = plot(found, folder / f"rounds.{kind}")
    except BaseException:
        clean()
        raise
    return FileResponse(path, headers={"Cache-Control": "private, no-store"}, background=BackgroundTask(clean))


@router.get("/leases", summary="List the images that are kept for someone")
def leases(request: Request, app: App, user: AsUser, client_id: str = "", all: bool = False) -> list[dict[str, Any]]:
    """Answer the asker's leases, or everyone's."""
    caller = caller_of(request, user.username, {"client_id": client_id})
    if not app.rounds.is_used:
        return []
    return [asdict(lease) for lease in app.rounds.ledger.leases(None if all else reader_of(caller))]


@router.put("/leases", summary="Keep an image for longer")
def renew(request: Request, app: App, user: AsUser, image: str, client_id: str = "") -> dict[str, Any]:
    """Keep an image for the asker from now on, also one that nobody holds.

    409 where another holds it, or as many images are kept for the asker as may be.
    """
    caller = caller_of(request, user.username, {"client_id": client_id})
    try:
        lease = app.rounds.lease(checked_name(image, "Image"), reader_of(caller))
    except TooManyLeasesError as error:
        raise ConflictError(str(error)) from None
    if lease is None:
        raise ConflictError(f"Image {image!r} is kept for someone else.")
    return asdict(lease)


@router.delete("/leases", summary="Give an image back")
def release(
    request: Request,
    app: App,
    user: AsUser,
    image: str | None = None,
    holder: str | None = None,
    client_id: str = "",
) -> dict[str, Any]:
    """Let others have an image that is kept for the asker; answer the images in `released`.

    An administrator names whose leases end with `holder`, one with `image` and all of them without. Where users log in,
    `image` alone ends an administrator's own lease or anyone's.
    """
    caller = caller_of(request, user.username, {"client_id": client_id})
    admin = user.has("admin")
    if holder is not None and holder != reader_of(caller) and not admin:
        raise ForbiddenError(f"User {user.username!r} has not the role admin, which ends the leases of others.")
    if image is None and holder is None:
        raise InputError("The request names neither image nor holder; allowed: one of them, or both.")
    if image is not None:
        checked_name(image, "Image")
    anyone = holder is None and admin and request.app.state.access.authenticates
    ended = app.rounds.release(image, None if anyone else holder or reader_of(caller))
    if not ended:
        raise UnknownError(f"No image is kept for {holder!r}." if image is None else f"Image {image!r} is not kept so.")
    return {"released": ended}


@router.put("/reviews", summary="Approve or reject a label")
def review(
    request: Request,
    app: App,
    user: AsReviewer,
    image: str,
    verdict: Literal["approved", "rejected"],
    client_id: str = "",
    reason: Annotated[str, Query(max_length=1000, description="is kept with the label")] = "",
) -> dict[str, Any]:
    """Say what a reviewer thinks of the final label of an image; a rejected one is offered for labelling again."""
    caller = caller_of(request, user.username, {"client_id": client_id})
    image = checked_name(image, "Image")
    label = app.rounds.ledger.review(image, reader_of(caller), verdict)
    app.audit.label(caller, f"label {verdict}", image, FINAL)
    said = {"verdict": verdict, "by": reader_of(caller), "reason": reason}
    # a label of a DICOMweb server that was not read here has nothing kept with it
    with suppress(UnknownError):
        app.datastore().update_label_info(image, FINAL, {"review": said})
    return {**asdict(label), "reason": reason}
