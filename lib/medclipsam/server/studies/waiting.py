"""Bounds for threads that wait for another server, so that the others keep threads to answer with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from medclipsam.server.base.errors import BusyError

# Threads that answer requests, and those of them that may wait for the DICOMweb server, or for one thing of it; and
# threads beside them that pass on what viewers ask it.
THREADS = 120
WAITING_THREADS = 80
PROXY_THREADS = 40
_WAITING_FOR_ONE = 60
# Seconds that a thread waits for what another one fetches, and after which a client may ask again.
WAITING_SECONDS = 60.0
_AGAIN = 5.0


class Places:
    """A number of threads that may be inside at once; a thread that is inside may enter again.

    Parameters
    ----------
    most : int
        The number.
    what : str
        What they wait for, for the sentence of the refusal.
    """

    def __init__(self, most: int, what: str) -> None:
        self._free = threading.Semaphore(most)
        self._inside = threading.local()
        self._what = what

    @contextmanager
    def one(self) -> Iterator[None]:
        """Be inside.

        Raises
        ------
        BusyError
            At once, if all places are taken.
        """
        if getattr(self._inside, "yes", False):
            yield
            return
        if not self._free.acquire(blocking=False):
            raise BusyError(f"Too many requests wait for {self._what}; ask again later.", _AGAIN)
        self._inside.yes = True
        try:
            yield
        finally:
            self._inside.yes = False
            self._free.release()


class Turn:
    """A lock that not too many threads wait for, and not for long; the thread that holds it may take it again.

    Parameters
    ----------
    what : str
        What is waited for, for the sentence of the refusal.
    waiting : int
        Threads that may wait.
    seconds : float
        How long they wait.

    Attributes
    ----------
    waiting : int
        Threads that wait now.
    """

    def __init__(self, what: str, waiting: int = _WAITING_FOR_ONE, seconds: float = WAITING_SECONDS) -> None:
        self._lock = threading.RLock()
        self._most = waiting
        self._count = threading.Lock()
        self.waiting = 0
        self._seconds = seconds
        self._what = what

    def __enter__(self) -> None:
        """Take the lock.

        Raises
        ------
        BusyError
            If too many threads wait for it, or it is not free in time.
        """
        if self._lock.acquire(blocking=False):
            return
        with self._count:
            if self.waiting >= self._most:
                raise BusyError(f"Too many requests wait for {self._what}; ask again later.", _AGAIN)
            self.waiting += 1
        try:
            taken = self._lock.acquire(timeout=self._seconds)
        finally:
            with self._count:
                self.waiting -= 1
        if not taken:
            raise BusyError(f"{self._what[0].upper()}{self._what[1:]} takes long; ask again later.", _AGAIN)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
