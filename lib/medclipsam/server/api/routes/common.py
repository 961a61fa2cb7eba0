"""What the routes share: the app, the queue, received files and answers with files."""

from __future__ import annotations

import mimetypes
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request, Response, UploadFile
from fastapi.responses import FileResponse

from medclipsam.base.errors import InputError
from medclipsam.server.api.users import User
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.errors import BusyError, UnknownError
from medclipsam.server.inference.work import WorkQueue
from medclipsam.server.monai_label.app import MedClipSamApp


def _app(request: Request) -> MedClipSamApp:
    found: MedClipSamApp = request.app.state.label_app
    return found


def _queue(request: Request) -> WorkQueue:
    found: WorkQueue = request.app.state.queue
    return found


# The largest whole number of a parameter: longer ones are no number of anything here, and no name of a file.
LARGEST = 2**31 - 1

# Parameters of a route: the MONAI Label app, and the queue for model work.
App = Annotated[MedClipSamApp, Depends(_app)]
Queue = Annotated[WorkQueue, Depends(_queue)]


# Tells a browser from others: the pages of the viewer name no client in what they ask.
CLIENT_COOKIE = "medclipsam_client"
_CLIENT = re.compile(r"[0-9a-f]{32}")
# The longest that browsers keep a cookie.
_CLIENT_SECONDS = 400 * 24 * 3600


def client_named(request: Request, params: Mapping[str, Any]) -> str:
    """Return the client that a request comes from: the `client_id` of its params, or else the browser of its cookie."""
    cookie = request.cookies.get(CLIENT_COOKIE, "")
    return str(params.get("client_id") or "") or (f"browser-{cookie}" if _CLIENT.fullmatch(cookie) else "")


def give_client(request: Request, response: Response) -> None:
    """Give a browser that has none the cookie that tells it from others; its drafts are kept under it."""
    if not _CLIENT.fullmatch(request.cookies.get(CLIENT_COOKIE, "")):
        secure = request.url.scheme == "https"
        response.set_cookie(
            CLIENT_COOKIE,
            secrets.token_hex(16),
            max_age=_CLIENT_SECONDS,
            httponly=True,
            samesite="strict",
            secure=secure,
        )


def caller_of(request: Request, user: str, params: Mapping[str, Any] | None = None) -> Caller:
    """Return who asks, by which route; `params` may name the client."""
    return Caller(user, client_named(request, params or {}), f"{request.method} {request.url.path}")


def is_known_reviewer(request: Request, user: User) -> bool:
    """Return whether somebody has logged in as a reviewer; without log-in everybody may review, and none is known."""
    return bool(request.app.state.access.authenticates) and user.has("reviewer")


def refuse_on_dicomweb(app: MedClipSamApp, what: str) -> None:
    """Raise `InputError` where the studies lie on a DICOMweb server: there `what` is that server's business."""
    if app.datastore().is_remote:
        raise InputError(f"The studies lie on a DICOMweb server; {what} there.")


def mime_type(file: str | Path) -> str:
    """Return the media type that a file's name tells."""
    return mimetypes.guess_type(file, strict=False)[0] or "application/octet-stream"


class Turns:
    """Let each user have one file read at a time outside the models' queue; the others wait, and are refused if many.

    Parameters
    ----------
    waiting : int
        Requests of a user that may wait.
    seconds : float
        Seconds that they wait at the most.
    """

    def __init__(self, waiting: int = 4, seconds: float = 60.0) -> None:
        self._most = waiting + 1
        self._seconds = seconds
        self._lock = threading.Lock()
        self._users: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, user: str) -> Iterator[None]:
        """Hold the user's turn.

        Raises
        ------
        BusyError
            If too many requests of the user wait, or the turn does not come in time.
        """
        with self._lock:
            turn, asking = self._users.get(user, (threading.Lock(), 0))
            if asking >= self._most:
                raise BusyError(f"User {user!r} has {asking} files being read already; ask again later.", 5)
            self._users[user] = turn, asking + 1
        try:
            if not turn.acquire(timeout=self._seconds):
                raise BusyError(f"Another file of user {user!r} is being read; ask again later.", 5)
            try:
                yield
            finally:
                turn.release()
        finally:
            with self._lock:
                turn, asking = self._users.pop(user)
                if asking > 1:
                    self._users[user] = turn, asking - 1


turns = Turns()
# Viewers ask for many pictures at once.
viewer_turns = Turns(waiting=32)


def receive(upload: UploadFile, suffix: str) -> Path:
    """Copy a received file to a temporary one, which the caller removes."""
    handle, name = tempfile.mkstemp(suffix=suffix)
    try:
        with os.fdopen(handle, "wb") as copy:
            shutil.copyfileobj(upload.file, copy, 1024 * 1024)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def file_answer(path: str, what: str) -> FileResponse:
    """Return the answer that is a file.

    Raises
    ------
    UnknownError
        If there is none.
    """
    if not path or not os.path.isfile(path):
        raise UnknownError(f"{what} is not here as a file.")
    return FileResponse(path, media_type=mime_type(path), filename=os.path.basename(path))
