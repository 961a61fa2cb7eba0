"""The lock under which a studies folder is written to, by this server's threads, its sub-processes and others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medclipsam.base.locks import take_lock
from medclipsam.server.base.errors import BusyError

# Whoever may write to the folder may take its lock.
_MODE = 0o644
# Seconds that a change waits for the lock. What holds it here writes one file, or reads back a label.
PATIENCE = 10.0


class FolderLock:
    """A lock file.

    Parameters
    ----------
    path : Path
        Made where it is not there.
    patience : float, optional
        Seconds to wait for another holder, `PATIENCE` by default.
    """

    def __init__(self, path: Path, patience: float | None = None) -> None:
        self._path = path
        self._patience = PATIENCE if patience is None else patience
        # threads of this process take turns, so that another holder is another process
        self._turn = threading.Lock()
        self._foreign_since: float | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock.

        Raises
        ------
        BusyError
            If it cannot be had in time.
        OSError
            If the file cannot be made.
        """
        until = time.monotonic() + self._patience
        if not self._turn.acquire(timeout=self._patience):
            raise BusyError(
                f"Other changes of the labels have taken {self._patience:g} s, so that nothing was saved. Try again "
                "later.",
                self._patience,
            )
        try:
            lock = take_lock(self._path, patience=max(0.0, until - time.monotonic()), mode=_MODE)
            if lock is None:
                self._foreign_since = self._foreign_since or until - self._patience
                raise self._busy()
            self._foreign_since = None
            try:
                yield
            finally:
                lock.release()
        finally:
            self._turn.release()

    def is_foreign(self) -> bool:
        """Return whether another process has held the lock for longer than changes wait; looks without waiting."""
        if not self._turn.acquire(blocking=False):
            # a thread of this process holds it, or waits for it
            return self._is_late()
        try:
            lock = take_lock(self._path, mode=_MODE) if self._path.exists() else None
            if lock is not None:
                lock.release()
            if lock is not None or not self._path.exists():
                self._foreign_since = None
            elif self._foreign_since is None:
                self._foreign_since = time.monotonic()
        except OSError:
            # not to be written to: whoever saves a label is told so
            self._foreign_since = None
        finally:
            self._turn.release()
        return self._is_late()

    def _is_late(self) -> bool:
        since = self._foreign_since
        return since is not None and time.monotonic() - since >= self._patience

    def _busy(self) -> BusyError:
        return BusyError(
            f"The studies folder has been locked by another program for {self._patience:g} s, so that nothing was "
            "saved. Try again later; if it stays so, end the program that holds the file .lock there.",
            self._patience,
        )
