"""Drafts of the viewer: what an annotator has drawn and not saved yet."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from medclipsam.base.errors import InputError
from medclipsam.server.api.access import AsUser, User
from medclipsam.server.api.routes.common import App, caller_of
from medclipsam.server.base.names import checked_name
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.studies.drafts import Draft, DraftConflictError, DraftStore
from medclipsam.server.studies.images import unknown_image

router = APIRouter(prefix="/viewer/api/drafts", tags=["Viewer"])


def _schema() -> dict[str, Any]:
    """Return the schema of a draft with its parts in their places: OpenAPI does not find them by their own names."""
    schema = Draft.model_json_schema()
    parts = schema.pop("$defs")

    def whole(given: Any) -> Any:
        if isinstance(given, dict) and "$ref" in given:
            return whole(parts[given["$ref"].rpartition("/")[2]])
        if isinstance(given, dict):
            return {key: whole(value) for key, value in given.items()}
        return [whole(each) for each in given] if isinstance(given, list) else given

    return dict(whole(schema))


@router.get("/{image}", summary="Get the draft of an image", responses={204: {"description": "There is none"}})
def get_draft(request: Request, app: App, user: AsUser, image: str) -> Response:
    """Answer the asker's draft; each annotator has drafts of their own.

    Where nobody logs in, annotators are told apart by their browsers. Then the answer to one that has no draft is the
    newest of another browser, with `own` false, so that work is found again on another computer; not of an image that
    several people read.
    """
    reader = _reader(request, user)
    store, image = _store(request), _known(app, image)
    found = store.get(image, reader)
    if found is None and not request.app.state.access.authenticates and not app.readers.is_blind(image):
        found = store.newest(image)
    return Response(status_code=204) if found is None else _answer({**found, "own": found["by"] == reader})


@router.put(
    "/{image}",
    summary="Keep the draft of an image",
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": _schema()}}}},
    responses={409: {"description": "Another draft than that of `revision` is kept; it is in `draft`"}},
)
async def keep_draft(request: Request, app: App, user: AsUser, image: str) -> Response:
    """Keep a draft in the place of the one that it is based on; it has been read back when it is answered."""
    body = await request.body()
    return await run_in_threadpool(_keep, request, app, user, image, body)


def _keep(request: Request, app: App, user: User, image: str, body: bytes) -> Response:
    try:
        draft = Draft.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise InputError(f"The draft cannot be kept: {where}: {first['msg']}.") from None
    try:
        return _answer(_store(request).keep(_known(app, image), _reader(request, user), draft))
    except DraftConflictError as error:
        return _answer({"detail": str(error), "draft": error.draft}, 409)


@router.delete("/{image}", status_code=204, summary="Drop the draft of an image")
def drop_draft(request: Request, app: App, user: AsUser, image: str) -> None:
    """Remove the asker's draft."""
    _store(request).drop(_known(app, image), _reader(request, user))


def _known(app: App, image: str) -> str:
    """Return the id of an image of the studies."""
    image = checked_name(image, "Image")
    store = app.datastore()
    if not store.get_image_info(image):
        raise unknown_image(image, lambda other: bool(store.get_image_info(other)))
    return image


def _reader(request: Request, user: User) -> str:
    return reader_of(caller_of(request, user.username))


def _store(request: Request) -> DraftStore:
    found: DraftStore = request.app.state.drafts
    return found


def _answer(content: dict[str, Any], status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, {"Cache-Control": "private, no-store"})
