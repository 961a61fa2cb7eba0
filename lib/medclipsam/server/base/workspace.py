"""The workspace: a private folder for what one served set of studies writes, used by one server at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock

from medclipsam.base.errors import InputError
from medclipsam.base.files import PRIVATE, write_json
from medclipsam.base.locks import lock_is_held, process_start, take_lock
from medclipsam.dicomweb.addresses import is_url, without_user
from medclipsam.studies.identity import workspace_of
from medclipsam.training.lock import holder_of

LOCK_FILE, OWNER_FILE = "lock", "owner.json"
# Folder of what viewers are given.
VIEWER = "viewer"
# Seconds after which a lock whose holder is not known is taken as held by a server: to look takes it for a moment.
_PATIENCE = 2.0
# What MONAI Label loads as the app; the repository's apps/medclipsam/main.py is the same for the stock start command.
_MAIN = "from medclipsam.server.monai_label.app import MedClipSamApp\n\n__all__ = ['MedClipSamApp']\n"


class Workspace:
    """A locked workspace.

    Parameters
    ----------
    folder : Path
        Made if it is not there, readable by its owner only.

    Raises
    ------
    InputError
        If the folder cannot be made, or another server uses it.

    Notes
    -----
    The lock ends with the server's process, however that ends, so that no stale lock file is ever in the way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        before = os.umask(0o077)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._lock = self._acquire()
            # a training that outlived the server before still works in it
            if holder_of(self.networks) is None:
                shutil.rmtree(self.temporary, ignore_errors=True)
            _remove_parts(folder, self.networks)
            for part in (self.app, self.temporary, self.sessions, self.dicomweb, self.networks):
                part.mkdir(exist_ok=True)
            (self.app / "main.py").write_text(_MAIN)
        except OSError as error:
            raise InputError(f"Workspace {folder} cannot be used: {error.strerror}.") from error
        finally:
            os.umask(before)

    @property
    def app(self) -> Path:
        """The app folder that MONAI Label is given; it writes its logs and empty folders there."""
        return self.folder / "app"

    @property
    def temporary(self) -> Path:
        """Uploads and results on their way; emptied at each start, but where a training still runs."""
        return self.folder / "tmp"

    @property
    def sessions(self) -> Path:
        """Images of client sessions."""
        return self.folder / "sessions"

    @property
    def dicomweb(self) -> Path:
        """Series fetched from a DICOMweb server."""
        return self.folder / "dicomweb"

    @property
    def networks(self) -> Path:
        """Trained networks."""
        return self.folder / "networks"

    @property
    def audit(self) -> Path:
        """One line for each mask and label."""
        return self.folder / "audit.jsonl"

    def expire(self, seconds: float) -> int:
        """Remove temporary files that have not been touched for so long, and return how many."""
        oldest = time.time() - seconds
        removed = 0
        for file in self.temporary.iterdir():
            # whoever uses the file may remove it in this moment
            with contextlib.suppress(OSError):
                if file.is_file() and file.stat().st_mtime < oldest:
                    file.unlink()
                    removed += 1
        return removed

    def release(self) -> None:
        """Let another server use the workspace."""
        (self.folder / OWNER_FILE).unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _acquire(self) -> BaseFileLock:
        lock = take_lock(self.folder / LOCK_FILE)
        if lock is None and owner_of(self.folder) is None:
            lock = take_lock(self.folder / LOCK_FILE, patience=_PATIENCE)
        if lock is None:
            owner = owner_of(self.folder) or "another process"
            raise InputError(
                f"Workspace {self.folder} is in use by {owner}; stop that server or name another with --workspace."
            )
        write_json(self.folder / OWNER_FILE, {"pid": os.getpid(), "started": process_start(os.getpid())}, mode=PRIVATE)
        return lock


def _remove_parts(*folders: Path) -> None:
    """Remove the files that processes that have ended were writing: `.<name>.<process id>`."""
    for folder in folders:
        for file in folder.glob(".*.[0-9]*"):
            pid = file.name.rpartition(".")[2]
            if pid.isascii() and pid.isdigit() and process_start(int(pid)) is None:
                file.unlink(missing_ok=True)


def owner_of(folder: Path) -> str | None:
    """Return which process serves from a workspace, as "process 4711"; None where none does.

    Parameters
    ----------
    folder : Path
        The workspace; it need not exist.

    Raises
    ------
    OSError
        If the lock file may not be opened.
    """
    if not lock_is_held(folder / LOCK_FILE):
        return None
    try:
        owner = json.loads((folder / OWNER_FILE).read_text())
        pid, started = int(owner["pid"]), owner["started"]
    except (OSError, ValueError, TypeError, KeyError):  # somebody only looks, or the lock has just been taken
        return None
    return f"process {pid}" if process_start(pid) == started else None


def default_workspace(studies: str) -> Path:
    """Return the workspace of a studies folder or URL: one each, so that nothing of one project is served to another.

    A folder that was moved is known by the id that it keeps, see `medclipsam.studies.identity`.

    Parameters
    ----------
    studies : str
        Absolute path or URL; a user name and password in a URL make no difference.
    """
    if is_url(studies):
        studies = without_user(studies)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    name = re.sub(r"[^A-Za-z0-9]+", "-", studies.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "studies"
    digest = hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:10]
    default = data / "medclipsam" / "workspaces" / f"{name[:40]}-{digest}"
    return default if is_url(studies) else workspace_of(Path(studies), default)
