"""Which workspace belongs to a studies folder, also after the folder was moved or renamed.

A studies folder keeps an id in a hidden file, and a workspace keeps the id and the path of the folder it belongs to.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medclipsam.base.files import PRIVATE, write_json

ID_FILE = ".medclipsam.json"
RECORD_FILE = "studies.json"


@dataclass(frozen=True)
class Record:
    """What a workspace keeps of the studies folder it belongs to: the folder's id and its path."""

    studies_id: str
    studies: str


def studies_id(folder: Path) -> str | None:
    """Return the id of a studies folder; None where it has none."""
    told = _read(folder / ID_FILE).get("id")
    return told if isinstance(told, str) and told else None


def record_of(workspace: Path) -> Record | None:
    """Return what a workspace keeps of its studies folder; None where it keeps nothing."""
    told = _read(workspace / RECORD_FILE)
    known = told.get("id"), told.get("studies")
    return Record(*known) if all(isinstance(value, str) and value for value in known) else None  # type: ignore[arg-type]


def workspace_of(folder: Path, default: Path) -> Path:
    """Return the workspace of a studies folder.

    Parameters
    ----------
    folder : Path
        The studies, absolute.
    default : Path
        The workspace by the folder's path, beside which the others are.

    Returns
    -------
    Path
        The workspace that was used with this folder before it was moved, else `default`. A copy of a folder that is
        still at its place does not get that folder's workspace.
    """
    own = studies_id(folder)
    record = record_of(default)
    if own is None or (record is not None and record.studies_id == own):
        return default
    for workspace in _workspaces(default.parent):
        record = record_of(workspace)
        if record is not None and record.studies_id == own and not _is_other(record, folder):
            return workspace
    return default


def remember(folder: Path, workspace: Path) -> None:
    """Note in a studies folder and in its workspace that they belong together.

    A folder that cannot be written to is left without an id. A copied folder gets an id of its own.
    """
    own = studies_id(folder)
    for other in _workspaces(workspace.parent):
        record = record_of(other)
        if other != workspace and record is not None and record.studies_id == own and _is_other(record, folder):
            own = None
    if own is None:
        own = uuid.uuid4().hex
        try:
            write_json(folder / ID_FILE, {"id": own}, mode=folder.stat().st_mode & 0o666)
        except OSError:
            return
    if record_of(workspace) != Record(own, str(folder)):
        write_json(workspace / RECORD_FILE, {"id": own, "studies": str(folder)}, mode=PRIVATE)


def nearby(default: Path) -> list[Path]:
    """Return workspaces of folders that had the same name and are not there any more, for a workspace that is new."""
    name = default.name.rpartition("-")[0]
    found: list[Path] = []
    if not name:  # no default workspace: those are called after their folder and a hash of its path
        return found
    for workspace in _workspaces(default.parent):
        record = record_of(workspace)
        if workspace == default or workspace.name.rpartition("-")[0] != name:
            continue
        if record is None or not Path(record.studies).is_dir():
            found.append(workspace)
    return [] if default.is_dir() else found


def _is_other(record: Record, folder: Path) -> bool:
    """Whether the folder of a record is still there, with its id, and is another one."""
    known = Path(record.studies)
    return known != folder and studies_id(known) == record.studies_id


def _workspaces(place: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(each for each in place.iterdir() if each.is_dir())
    return []


def _read(file: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        told = json.loads(file.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    return {}
