"""Locks between processes, on every system: `filelock`, which uses the kernel's own locks.

A lock ends with the process that holds it, however that ends, so that no stale lock file is ever in the way. Whatever
is to be said about the holder is written to another file: Windows lets nobody else read a locked one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

# Seconds between two attempts to take a lock.
_POLL = 0.02


def take_lock(path: Path, *, patience: float = 0.0, mode: int = 0o600) -> BaseFileLock | None:
    """Take a lock, held until its `release` is called or the process ends.

    Parameters
    ----------
    path : Path
        Lock file; made if it does not exist, and never removed.
    patience : float
        Seconds to wait for another process; `lock_is_held` of another process holds a lock for a moment.
    mode : int
        Rights of a file that is made; by default for its owner only.

    Returns
    -------
    filelock.BaseFileLock or None
        None if another process holds the lock.

    Raises
    ------
    OSError
        If the file cannot be made.
    """
    lock = FileLock(path, mode=mode, thread_local=False)
    try:
        lock.acquire(timeout=patience, poll_interval=_POLL)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it; arguments as for `take_lock`."""
    with FileLock(path, mode=0o600, thread_local=False).acquire(poll_interval=_POLL):
        yield


def lock_is_held(path: Path) -> bool:
    """Return whether some process, this one included, holds a lock; False where the file does not exist.

    Raises
    ------
    OSError
        If the file cannot be opened for writing.
    """
    if not path.exists():
        return False
    lock = take_lock(path)
    if lock is None:
        return True
    lock.release()
    return False


def process_start(pid: int) -> str | None:
    """Return when a process started, so that another one that got its number later is told apart.

    Parameters
    ----------
    pid : int
        Process id.

    Returns
    -------
    str or None
        On Linux "boot id:clock ticks", else seconds since 1970; None where no such process runs.
    """
    if not sys.platform.startswith("linux"):
        return _start_elsewhere(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # the command's name, in brackets, may itself hold brackets and spaces
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # a zombie has ended
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _start_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
