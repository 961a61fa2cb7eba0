"""Sessions: images that a client sends once and asks about for a while."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, UploadFile

from medclipsam.base.errors import InputError
from medclipsam.imaging.archives import unpack
from medclipsam.server.api.access import AsUser
from medclipsam.server.api.routes.common import LARGEST, App, file_answer, turns
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.base.names import checked_name
from medclipsam.server.inference.infer_request import SessionImage
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.monai_label.upstream import SessionInfo, Sessions

router = APIRouter(prefix="/session", tags=["Session"])

_SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# MONAI Label keeps what it knows of a session beside its image under this name.
_META = "meta.info"


def session_image(app: MedClipSamApp, session_id: str) -> SessionImage:
    """Return a session's image, and count the session as used.

    Raises
    ------
    UnknownError
        If there is no such session.
    """
    return SessionImage(Path(_session(app, session_id, use=True).image))


@router.put("/", summary="Send an image for a session")
def create_session(
    app: App,
    user: AsUser,
    files: Annotated[list[UploadFile], File(description="one image file, the files of a DICOM series, or an archive")],
    uncompress: bool = False,
    expiry: Annotated[int, Query(le=LARGEST)] = 0,
) -> dict[str, Any]:
    """Answer the session's id; `uncompress` says that the one file is a zip or tar archive."""
    store = _sessions(app)
    if uncompress and len(files) != 1:
        raise InputError(f"The request has {len(files)} files to unpack; allowed: one archive.")
    names = [_file_name(file.filename, number) for number, file in enumerate(files)]
    if len(set(names)) != len(names):
        names = [f"{number:05d}-{name}" for number, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as received:
        sent = Path(received, "sent")
        sent.mkdir()
        for name, file in zip(names, files, strict=True):
            with open(sent / name, "wb") as copy:
                shutil.copyfileobj(file.file, copy, 1024 * 1024)
        image = sent / names[0] if len(files) == 1 else sent
        if uncompress:
            image = Path(received, "series")
            image.mkdir()
            with turns.of(user.username):
                unpack(sent / names[0], image, max_bytes=4 * app.app_conf.limits.max_upload_mb * 2**20)
        # MONAI Label's own ids hold the time and the machine, and can be guessed
        session_id, info = store.add_session(str(image), max(0, expiry), session_id=str(uuid.uuid4()))
    return {"session_id": session_id, "session_info": _shown(info)}


@router.get("/{session_id}", summary="Tell of a session, or get its image")
def get_session(app: App, user: AsUser, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """Answer what is known of a session; `image` asks for its image file."""
    info = _session(app, session_id, use=update_ts)
    if image:
        return file_answer(info.image, f"The image of session {session_id!r}")
    return _shown(info)


@router.delete("/{session_id}", summary="End a session")
def remove_session(app: App, user: AsUser, session_id: str) -> dict[str, Any]:
    """Remove a session and its image."""
    info = _session(app, session_id, use=False)
    _sessions(app).remove_session(session_id)
    return _shown(info)


def _sessions(app: MedClipSamApp) -> Sessions:
    sessions = app.sessions()
    if sessions is None:
        raise UnknownError("Sessions are switched off on this server (MONAI_LABEL_SESSIONS).")
    return sessions


def _session(app: MedClipSamApp, session_id: str, *, use: bool) -> SessionInfo:
    known = _SESSION_ID.fullmatch(session_id)
    info = _sessions(app).get_session(session_id, update_ts=use) if known else None
    if info is None:
        raise UnknownError(f"Session {session_id!r} is not known here, or has expired.")
    return info


def _file_name(name: str | None, number: int) -> str:
    """Return under which name a file is kept: the end of what the client calls it."""
    plain = re.split(r"[/\\]", name or "")[-1] or f"file{number}"
    if plain == _META:
        raise InputError(f"A file of a session cannot be named {_META}.")
    return checked_name(plain, "File")


def _shown(info: SessionInfo) -> dict[str, Any]:
    """Return what a client may know: where the server keeps the image is none of its business."""
    return {**info.to_json(), "path": "", "image": Path(info.image).name}
