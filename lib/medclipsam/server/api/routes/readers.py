"""Several readers of one image: who reads what, how well readers agree, and the consensus of a reviewer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from medclipsam.active.ledger import Assignment
from medclipsam.base.errors import InputError, OptionError
from medclipsam.server.api.access import Access, AsReviewer, AsUser
from medclipsam.server.api.routes.common import App, caller_of, viewer_turns
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.base.names import checked_name, checked_person
from medclipsam.server.learning.readers import iso_time
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.monai_label.adjudication import ALL_METHODS, Adjudication
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.studies.images import unknown_image

router = APIRouter(tags=["Readers"])


def _adjudication(request: Request) -> Adjudication:
    found: Adjudication = request.app.state.adjudication
    return found


Adjudicates = Annotated[Adjudication, Depends(_adjudication)]


class AssignmentRequest(BaseModel):
    """Images for people."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(min_length=1, max_length=100_000)]
    readers: Annotated[list[str], Field(min_length=1, max_length=100)]


class ConsensusRequest(BaseModel):
    """How a consensus is made."""

    model_config = ConfigDict(extra="forbid")

    method: Annotated[str, Field(description=", ".join(ALL_METHODS))]
    reader: Annotated[str | None, Field(description="whose label it is, for the method reader")] = None
    segments: Annotated[list[Any] | None, Field(description="segments as of `PUT /viewer/api/labels/`, for drawn")] = (
        None
    )
    seen: Annotated[dict[str, str] | None, Field(description="version of each reader's label that was looked at")] = (
        None
    )


@router.get("/assignments", summary="List which images are given to whom")
def assignments(
    app: App,
    user: AsUser,
    image: Annotated[str | None, Query(description="only of this one")] = None,
    reader: Annotated[str | None, Query(description="only to this person")] = None,
) -> list[dict[str, Any]]:
    """Answer image, reader, who has given it and when, and whether it is done."""
    if not app.rounds.is_used:
        return []
    return [_told(each) for each in app.rounds.ledger.assignments(image=image, reader=reader)]


@router.put("/assignments", summary="Give images to people")
def assign(
    request: Request, app: App, user: AsReviewer, given: Annotated[AssignmentRequest, Body()]
) -> list[dict[str, Any]]:
    """Give each of the images to each of the readers; answer all assignments of these images.

    From then on these people alone are offered the images, before all others. An image that is given to several is read
    by each of them, unaware of the others.
    """
    known = set(app.datastore().list_images())
    images = [checked_name(image, "Image") for image in dict.fromkeys(given.images)]
    for image in images:
        if image not in known:
            raise unknown_image(image, known.__contains__)
    readers = [_reader(request, name) for name in dict.fromkeys(given.readers)]
    caller = caller_of(request, user.username)
    made = app.rounds.ledger.assign(images, readers, reader_of(caller))
    return [_told(each) for each in made]


@router.delete("/assignments", summary="Take images back from people")
def unassign(app: App, user: AsReviewer, image: str | None = None, reader: str | None = None) -> list[dict[str, Any]]:
    """End the assignments of an image, of a reader, or of one image to one reader; answer those that were ended."""
    if image is None and reader is None:
        raise InputError("The request names neither image nor reader; allowed: one of them, or both.")
    ended = app.rounds.ledger.unassign(image, reader) if app.rounds.is_used else []
    if not ended:
        what = [f"image {image!r}"] if image is not None else []
        what += [f"reader {reader!r}"] if reader is not None else []
        raise UnknownError(f"Nothing is assigned of {' and '.join(what)}.")
    return [_told(each) for each in ended]


@router.get("/readers", summary="List the images that wait for a consensus")
def waiting(app: App, user: AsUser) -> list[dict[str, Any]]:
    """Answer the images with labels of several readers and no consensus, the worst agreement first."""
    found = app.rounds.ledger.waiting() if app.rounds.is_used else []
    return [{**asdict(each), "since": iso_time(each.since)} for each in found]


@router.get("/readers/{image}", summary="Tell how well the readers of an image agree")
def agreement(app: App, user: AsUser, image: str) -> dict[str, Any]:
    """Answer the readers, and for each structure the Dice, HD95 (mm) and Cohen's kappa of each pair, and Fleiss' kappa.

    `dice` is that of the two readers who agree least; `waiting` tells whether the image waits for a consensus,
    `pending` who was given it and has not read it yet, `consensus` who has made it, and how.
    """
    with viewer_turns.of(user.username):
        return app.readers.state(_known(app, image))


@router.get("/readers/{image}/labels", summary="Get the labels of all readers of an image")
def labels(request: Request, app: App, adjudication: Adjudicates, user: AsReviewer, image: str) -> dict[str, Any]:
    """Answer the segments of each reader to a reviewer who is none of them; the rest as `GET /readers/{image}` does."""
    with viewer_turns.of(user.username):
        return adjudication.labels(_known(app, image), caller_of(request, user.username))


@router.get(
    "/viewer/api/readers/{image}",
    summary="Get what the asker may adjudicate of an image",
    responses={204: {"description": "The image does not wait for a consensus, or not for the asker's"}},
)
def to_adjudicate(request: Request, app: App, adjudication: Adjudicates, user: AsUser, image: str) -> Response:
    """Answer what `GET /readers/{image}/labels` does, or nothing where there is nothing for the asker to do."""
    image, caller = _known(app, image), caller_of(request, user.username)
    with viewer_turns.of(user.username):
        if not user.has("reviewer") or not app.readers.may_adjudicate(image, reader_of(caller)):
            return Response(status_code=204)
        return JSONResponse(adjudication.labels(image, caller), headers={"Cache-Control": "private, no-store"})


@router.put("/readers/{image}/consensus", summary="Make the consensus of the readers of an image")
def settle(
    request: Request,
    app: App,
    adjudication: Adjudicates,
    user: AsReviewer,
    image: str,
    given: Annotated[ConsensusRequest, Body()],
    client_id: str = "",
) -> dict[str, Any]:
    """Save a consensus as the final label, which is then trained on; a reviewer who has read the image cannot.

    By the method "staple" or "majority" it is computed, "reader" takes the label of a reader, and "drawn" the segments
    that are sent. 409 where a reader has saved another label than that of `seen`.
    """
    caller = caller_of(request, user.username, {"client_id": client_id})
    with viewer_turns.of(user.username):
        return adjudication.settle(_known(app, image), given.model_dump(exclude_none=True), caller)


def _known(app: MedClipSamApp, image: str) -> str:
    image, known = checked_name(image, "Image"), set(app.datastore().list_images())
    if image not in known:
        raise unknown_image(image, known.__contains__)
    return image


def _reader(request: Request, name: str) -> str:
    """Return the name of a person who may be given images: one who may save labels, where that is known."""
    access: Access = request.app.state.access
    name = checked_person(name)
    annotators = sorted(user.username for user in access.tokens.values() if user.has("annotator"))
    if access.tokens and access.oidc is None and name not in annotators:
        raise OptionError("readers", name, f"those who may save labels: {', '.join(annotators) or 'nobody'}")
    return name


def _told(assignment: Assignment) -> dict[str, Any]:
    return {**asdict(assignment), "at": iso_time(assignment.at)}
