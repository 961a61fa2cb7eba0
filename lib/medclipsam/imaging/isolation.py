"""Calls in another process, which may crash, hang or take too much memory without harm to this one.

Parsers of foreign files that are native code, or may not end, run there. A worker process is started at the first
call, kept for further calls, replaced after a failure, and ends with this process. It protects from crashes, hangs and
memory; it is not a sandbox.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from medclipsam.base.errors import CancelledError, ImageError
from medclipsam.imaging.limits import READ_SECONDS

# Worker processes at the same time; one of them is kept when it has nothing to do.
MAX_WORKERS = 2
# What a worker inherits of the environment, which has secrets in it.
_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "HOME", "LD_LIBRARY_PATH", "SYSTEMROOT")
_SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "1",
}
# Seconds between two looks whether the caller still waits, and until a worker has imported what it needs.
_LOOK = 0.2
_START_SECONDS = 120.0

# Returns whether the caller no longer waits for the result; may raise an error that says why.
stop_asked: ContextVar[Callable[[], bool]] = ContextVar("stop_asked", default=lambda: False)

# Buffers begin at multiples of this, as processors want their numbers.
ALIGNMENT = 64

# Systems without these have no second process; calls are plain calls there.
_AVAILABLE = hasattr(socket, "send_fds") and hasattr(os, "register_at_fork")

# Whether this process is a worker, where calls are plain calls.
inside = False


class IsolationError(ImageError):
    """The process that worked on a file crashed, or took too long or too much memory."""


def call(function: Callable[..., Any], *args: Any, seconds: float = READ_SECONDS, preload: tuple[str, ...] = ()) -> Any:
    """Call a function in another process.

    Parameters
    ----------
    function : callable
        A function of a module; it is found by its name.
    *args : object
        Its arguments, which are pickled.
    seconds : float
        Most seconds that it may take.
    preload : tuple of str
        Modules that are imported before memory is limited.

    Returns
    -------
    object
        What it returns. Arrays are backed by memory that both processes have shared.

    Raises
    ------
    IsolationError
        If the process ended, or took too long or too much memory.
    CancelledError
        If the caller no longer waits; it says nothing of the file.
    Exception
        What the function raises, where that is an error of this package; RuntimeError for others.
    """
    if inside or not _AVAILABLE:
        return function(*args)
    return _pool.call((function.__module__, function.__qualname__, preload, seconds), args, seconds)


def start() -> None:
    """Start a worker now, so that the first call need not wait for it."""
    if _AVAILABLE:
        _pool.start()


def close() -> None:
    """End all workers; calls that run fail."""
    _pool.close()


class _Worker:
    """One process."""

    def __init__(self) -> None:
        # where this package was found, which may be none of the default places
        package = Path(__file__).resolve().parents[2]
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        here = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        self._socket, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "medclipsam.imaging.worker", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**here, **_SETTINGS, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
        self._ready = False
        self.busy = False

    def call(self, request: bytes, seconds: float) -> Any:
        """Return the answer; raise OSError or EOFError where the process ended, TimeoutError where it is late."""
        self.busy = True
        if not self._ready:
            self._receive(time.monotonic() + _START_SECONDS)
            self._ready = True
        descriptor = _memory_file()
        try:
            self._socket.settimeout(seconds)
            socket.send_fds(self._socket, [len(request).to_bytes(8, "little")], [descriptor])
            self._socket.sendall(request)
            outcome, sizes = pickle.loads(self._receive(time.monotonic() + seconds))
            self.busy = False
            if not sizes:
                raise outcome
            return _load(descriptor, sizes)
        finally:
            os.close(descriptor)

    def _receive(self, end: float) -> bytes:
        length = int.from_bytes(self._read(8, end), "little")
        return self._read(length, end)

    def _read(self, length: int, end: float) -> bytes:
        stopped = stop_asked.get()
        content = bytearray()
        while len(content) < length:
            self._socket.settimeout(_LOOK)
            try:
                piece = self._socket.recv(length - len(content))
            except TimeoutError:
                if stopped():
                    raise InterruptedError from None
                if time.monotonic() > end:
                    raise
                continue
            if not piece:
                raise EOFError
            content += piece
        return bytes(content)

    def end(self) -> None:
        """Kill the process."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class _Pool:
    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_WORKERS)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def call(self, header: Any, args: tuple[Any, ...], seconds: float) -> Any:
        request = pickle.dumps((header, args))
        stopped = stop_asked.get()
        while not self._slots.acquire(timeout=_LOOK):
            if stopped():
                raise CancelledError("The request was cancelled.")
        worker = None
        try:
            worker = self._take()
            return worker.call(request, seconds)
        except InterruptedError:
            raise CancelledError("The request was cancelled.") from None
        except TimeoutError:
            raise IsolationError(f"The file was given up after {seconds:g} s; it is damaged or too large.") from None
        except (OSError, EOFError, pickle.UnpicklingError):
            raise IsolationError("The reader crashed on the file, which is damaged or hostile.") from None
        finally:
            if worker is not None:
                self._give_back(worker)
            self._slots.release()

    def start(self) -> None:
        with self._lock:
            if not self._all:
                worker = _Worker()
                self._all.add(worker)
                self._idle.append(worker)

    def close(self) -> None:
        with self._lock:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.end()

    def pids(self) -> list[int]:
        with self._lock:
            return [worker.process.pid for worker in self._all]

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                self._all.discard(worker)
                worker.end()
            worker = _Worker()
            self._all.add(worker)
            return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if not worker.busy and not self._idle and worker in self._all:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.end()


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("medclipsam")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _load(descriptor: int, sizes: list[int]) -> Any:
    """Return the object that was pickled into a file: a stream, and buffers behind it."""
    # changes stay in this process, so that arrays can be written to
    content = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    parts, at = [], 0
    for size in sizes:
        parts.append(content[at : at + size])
        at += size + -size % ALIGNMENT
    return pickle.loads(parts[0], buffers=parts[1:])


_pool = _Pool()


def _forked() -> None:
    """Give a forked process its own workers: those it has inherited answer to its parent."""
    global _pool
    _pool = _Pool()


if _AVAILABLE:
    os.register_at_fork(after_in_child=_forked)
