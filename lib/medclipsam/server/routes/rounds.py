"""Rounds: what came of them, who holds which image, and what reviewers say of labels."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from medclipsam.active.summary import plot
from medclipsam.server.access import AsReviewer, AsUser
from medclipsam.server.http import ConflictError, UnknownError
from medclipsam.server.names import checked_name
from medclipsam.server.rounds import who
from medclipsam.server.routes.common import App, note_caller, with_client

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
    note_caller(request, user.username, with_client(request, {"client_id": client_id}))
    if not app.rounds.is_used:
        return []
    return [asdict(lease) for lease in app.rounds.ledger.leases(None if all else who())]


@router.put("/leases", summary="Keep an image for longer")
def renew(request: Request, app: App, user: AsUser, image: str, client_id: str = "") -> dict[str, Any]:
    """Keep an image for the asker from now on, also one that nobody holds; 409 where another holds it."""
    note_caller(request, user.username, with_client(request, {"client_id": client_id}))
    lease = app.rounds.lease(checked_name(image, "Image"), who())
    if lease is None:
        raise ConflictError(f"Image {image!r} is kept for someone else.")
    return asdict(lease)


@router.delete("/leases", summary="Give an image back")
def release(request: Request, app: App, user: AsUser, image: str, client_id: str = "") -> dict[str, Any]:
    """Let others have an image that is kept for the asker."""
    note_caller(request, user.username, with_client(request, {"client_id": client_id}))
    if not app.rounds.is_used or not app.rounds.ledger.release(checked_name(image, "Image"), who()):
        raise UnknownError(f"Image {image!r} is not kept for you.")
    return {}


@router.put("/reviews", summary="Approve or reject a label")
def review(
    request: Request,
    app: App,
    user: AsReviewer,
    image: str,
    verdict: Literal["approved", "rejected"],
    client_id: str = "",
) -> dict[str, Any]:
    """Say what a reviewer thinks of the final label of an image; a rejected one is offered for labelling again."""
    note_caller(request, user.username, with_client(request, {"client_id": client_id}))
    label = app.rounds.ledger.review(checked_name(image, "Image"), who(), verdict)
    app.audit.label(f"label {verdict}", image, "final")
    return asdict(label)
