"""One training at a time for a workspace, and who runs it: a server that starts again sees one that outlived it.

The lock decides: it ends with the training's process, however that ends. A file beside it says which process holds it,
by its id and the time it started, since ids are used again.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import BaseFileLock

from medclipsam.base.errors import InputError
from medclipsam.base.files import PRIVATE, write_json
from medclipsam.base.locks import lock_is_held, process_start, take_lock

LOCK_FILE, HOLDER_FILE = "training.lock", "training.holder.json"
_STATE = "training.state.json"
_ENDED = ("done", "failed", "stopped")
# Seconds after which a lock whose holder is not known is taken as held by a training: to look takes it for a moment.
_PATIENCE = 2.0


class TrainingRunsError(InputError):
    """Another training runs in this workspace."""


@dataclass(frozen=True)
class Holder:
    """The process that trains.

    Attributes
    ----------
    pid : int
        Process id.
    started : str
        When the process started, see `medclipsam.base.locks.process_start`.
    what : str
        What it trains.
    since : float
        Unix time at which it took the lock.
    """

    pid: int
    started: str
    what: str
    since: float


class TrainingLock:
    """Held while a training runs; a context manager.

    Parameters
    ----------
    folder : Path
        The workspace's folder of networks; made if it is not there.
    what : str
        What is trained, for whoever asks.

    Raises
    ------
    TrainingRunsError
        If another process trains.
    """

    def __init__(self, folder: Path, what: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._lock: BaseFileLock | None = take_lock(folder / LOCK_FILE)
        if self._lock is None and holder_of(folder) is None:
            self._lock = take_lock(folder / LOCK_FILE, patience=_PATIENCE)
        if self._lock is None:
            holder = holder_of(folder)
            who = f"Process {holder.pid} trains {holder.what}" if holder else "Another process trains"
            raise TrainingRunsError(f"{who} in this workspace; one training runs at a time.")
        holder = Holder(os.getpid(), process_start(os.getpid()) or "", what, time.time())
        write_json(folder / HOLDER_FILE, asdict(holder), mode=PRIVATE)
        self.tell({"state": "starting"})

    def tell(self, state: dict[str, Any]) -> None:
        """Say how far the training is; anyone may read it with `training_state`."""
        write_json(self._folder / _STATE, state, mode=PRIVATE)

    def release(self) -> None:
        """Let another training run."""
        if self._lock is not None:
            (self._folder / HOLDER_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> TrainingLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder_of(folder: Path) -> Holder | None:
    """Return the process that trains in a workspace's folder of networks, None where none does.

    A lock whose process is gone, or whose number is another process's by now, is nobody's.
    """
    try:
        if not lock_is_held(folder / LOCK_FILE):
            return None
        holder = Holder(**json.loads((folder / HOLDER_FILE).read_text()))
    except (OSError, ValueError, TypeError):  # nobody trains, or the lock has just been taken
        return None
    return holder if process_start(holder.pid) == holder.started else None


def training_state(folder: Path) -> dict[str, Any]:
    """Return what the latest training has said of itself; empty where there was none.

    `state` is "interrupted" where it was killed before it could say that it ended.
    """
    try:
        state = json.loads((folder / _STATE).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(state, dict):
        return {}
    if state.get("state") not in _ENDED and holder_of(folder) is None:
        state["state"] = "interrupted"
    return state
