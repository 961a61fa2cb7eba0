"""One training at a time for a workspace, and who runs it: a server that starts again sees one that outlived it.

The kernel's lock on the file (flock) decides: it goes when the training's process goes, however that ends. The file
says which process holds it, by its id and the time it started, since ids are used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from medclipsam.errors import InputError

_FILE, _STATE = "training.lock", "training.state.json"
_ENDED = ("done", "failed", "stopped")
# Seconds after which a lock that nobody admits to holding is taken as held.
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
        When the process started, as the kernel counts: boot and clock ticks since then.
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
        file = open(folder / _FILE, "a+")  # noqa: SIM115 (held open as long as the training runs)
        end = time.monotonic() + _PATIENCE
        while not _take(file):
            holder = _read(file)
            runs = holder is not None and start_time(holder.pid) == holder.started
            # else somebody only looks, which is over in a moment
            if runs or time.monotonic() > end:
                file.close()
                who = f"Process {holder.pid} trains {holder.what}" if holder else "Another process trains"
                raise TrainingRunsError(f"{who} in this workspace; one training runs at a time.")
            time.sleep(0.02)
        self._file: TextIO | None = file
        holder = Holder(os.getpid(), start_time(os.getpid()) or "", what, time.time())
        file.truncate(0)
        file.write(json.dumps(asdict(holder)))
        file.flush()
        self.tell({"state": "starting"})

    def tell(self, state: dict[str, Any]) -> None:
        """Say how far the training is; anyone may read it with `training_state`."""
        write_json(self._folder / _STATE, state)

    def release(self) -> None:
        """Let another training run."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

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
        file = open(folder / _FILE)  # noqa: SIM115 (closed below, with its lock)
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody holds it
        except BlockingIOError:
            holder = _read(file)
    return holder if holder is not None and start_time(holder.pid) == holder.started else None


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


def start_time(pid: int) -> str | None:
    """Return when a process started, as "boot id:clock ticks"; None where there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # the command's name, in brackets, may itself hold brackets and spaces; a zombie has ended
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it appears under its name only when complete, for its owner's eyes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _take(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: TextIO) -> Holder | None:
    file.seek(0)
    try:
        return Holder(**json.loads(file.read()))
    except (ValueError, TypeError):  # it is being written in this moment
        return None
