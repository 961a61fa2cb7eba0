"""HTTP connections whose answers cannot take for ever, however slowly they arrive.

A time limit of a socket holds for each piece of an answer: one that comes byte by byte never ends.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# Bytes a second that an answer must bring, on average over one time limit.
LEAST_RATE = 1024
_BLOCK = 256 * 1024


class TotalTimeout(requests.Timeout):
    """A whole answer took longer than it may."""


class TooMuchError(requests.RequestException):
    """An answer has more bytes than it may have."""


@contextmanager
def ended_after(seconds: float, end: Callable[[], object]) -> Iterator[threading.Event]:
    """Call `end` from another thread if the block takes longer; the event tells whether it was called."""
    ended = threading.Event()

    def stop() -> None:
        ended.set()
        end()

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield ended
    finally:
        timer.cancel()


class _TimedHeaders:
    """A connection whose answer's headers must be complete within its time limit."""

    sock: Any
    timeout: Any

    def getresponse(self) -> Any:
        """Return the answer, its headers read."""
        with ended_after(float(self.timeout), lambda: _shut(self.sock)) as ended:
            try:
                answer = super().getresponse()  # type: ignore[misc]
            except Exception:
                if ended.is_set():
                    raise TimeoutError("timed out") from None
                raise
        if ended.is_set():
            raise TimeoutError("timed out")
        return answer


class _Connection(_TimedHeaders, HTTPConnection):
    pass


class _SecureConnection(_TimedHeaders, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class TimedAdapter(HTTPAdapter):
    """Transport of a `requests` session whose answers' headers must be complete within the time limit."""

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        """Make the pools of such connections."""
        super().init_poolmanager(*arguments, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def timed_chunks(
    answer: requests.Response, seconds: float, total: float, *, decode: bool = True, most: int | None = None
) -> Iterator[bytes]:
    """Yield the body of an answer as it arrives.

    Parameters
    ----------
    answer : requests.Response
        Made with `stream=True`.
    seconds : float
        In so many seconds of waiting at least `LEAST_RATE` bytes a second must come.
    total : float
        Seconds within which the body must be complete.
    decode : bool
        Whether a content encoding is undone.
    most : int, optional
        Bytes that are read at the most.

    Raises
    ------
    TotalTimeout
        If the whole body takes too long.
    requests.Timeout
        If it comes too slowly.
    TooMuchError
        If it has more than `most` bytes.
    requests.ConnectionError
        If the body ends before it is complete.
    """
    waited = arrived = read = 0.0
    with ended_after(total, answer.raw.shutdown) as ended:
        while True:
            start = time.monotonic()
            try:
                block = answer.raw.read1(_BLOCK, decode_content=decode)
            except Exception as error:
                if ended.is_set():
                    raise TotalTimeout("timed out") from None
                raise requests.ConnectionError(str(error)) from None
            if ended.is_set():
                raise TotalTimeout("timed out")
            if not block:
                return
            waited += time.monotonic() - start
            arrived += len(block)
            read += len(block)
            if most is not None and read > most:
                raise TooMuchError(f"more than {most} bytes")
            if waited >= seconds:
                if arrived < LEAST_RATE * waited:
                    raise requests.Timeout("timed out")
                waited = arrived = 0.0
            yield block


def _shut(sock: Any) -> None:
    # a TLS connection's own method would also let go of its state, which another thread uses
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except (OSError, TypeError):
        return
