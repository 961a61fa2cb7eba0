"""Errors as HTTP answers: one sentence and a status, never a traceback."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import sqlite3
import tempfile
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import HTTPException

from medclipsam.base.errors import (
    CancelledError,
    InputError,
    LockedError,
    MedClipSamError,
    StorageError,
    TooLargeError,
    UnknownError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamTimeoutError,
)
from medclipsam.imaging.write import DISK_FULL, NOT_WRITABLE
from medclipsam.training.lock import TrainingRunsError
from medclipsam.training.store import UnknownNetworkError


class UnauthenticatedError(InputError):
    """A request does not say who asks, or cannot prove it."""


class ForbiddenError(InputError):
    """Who asks may not do this, or nobody may."""


class ConflictError(InputError):
    """What is asked for cannot be done as things stand now."""


class BusyError(MedClipSamError):
    """The server could do this later.

    Parameters
    ----------
    sentence : str
        What is in the way.
    retry_after : float
        Seconds after which asking again may help.
    """

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = max(1, math.ceil(retry_after))


class AlreadyRunningError(BusyError):
    """A task that runs once at a time runs."""


# The first class that fits decides.
_STATUS: tuple[tuple[type[MedClipSamError], int], ...] = (
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (UnknownError, 404),
    (UnknownNetworkError, 404),
    (ConflictError, 409),
    (CancelledError, 409),
    (TooLargeError, 413),
    (UpstreamTimeoutError, 504),
    (UpstreamBusyError, 503),
    (UpstreamError, 502),
    (AlreadyRunningError, 429),
    (TrainingRunsError, 429),
    (BusyError, 503),
    (LockedError, 503),
    (StorageError, 503),
    (MedClipSamError, 400),
)


def status_of(error: MedClipSamError) -> int:
    """Return the HTTP status that answers an error of this package."""
    if isinstance(error, StorageError) and error.full:
        return 507
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def told(error: MedClipSamError) -> MedClipSamError:
    """Return an error as clients are told it: without the server's paths, and one of its storage as such."""
    storage = storage_error(error, _PLAIN)
    if storage is not None:
        return storage
    sentence = _without_named_folders(str(error), error)
    if sentence != str(error):
        error.args = (sentence,)
    return error


def _without_named_folders(sentence: str, error: BaseException) -> str:
    """Return an error's sentence with the files that the operating system named in it, without their folders."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            for name in (seen.filename, seen.filename2):
                path = os.fspath(name) if isinstance(name, (str, os.PathLike)) else ""
                if isinstance(path, str) and os.path.isabs(path):
                    folder, file = os.path.split(path.rstrip(os.sep))
                    sentence = sentence.replace(path, file)
                    # the file may go by a temporary name until it is complete
                    sentence = sentence.replace(folder + os.sep, "") if folder != os.sep else sentence
        seen = seen.__cause__ or seen.__context__
    return sentence


def without_folders(value: Any) -> Any:
    """Return what is answered to users without the folders of the server's files in its texts.

    Parameters
    ----------
    value : object
        Text, or JSON-able lists and mappings that hold texts.
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [without_folders(entry) for entry in value]
    return value


# The folders of an absolute path; an address of the web is none.
_FOLDERS = re.compile(r"(?<![\w/:.~-])(?:/[^\s/'\"<>|:;,()\[\]]+)+/")


def storage_error(error: BaseException, numbers: Collection[int] = (*DISK_FULL, *NOT_WRITABLE)) -> StorageError | None:
    """Return what an error says of the server's storage; None where another thing is wrong.

    Parameters
    ----------
    error : BaseException
        As it was raised; what caused it is looked at too.
    numbers : collection of int
        The numbers of the operating system's errors that count.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageError):
            return _storage_error(full=seen.full)
        if isinstance(seen, OSError) and seen.errno in numbers:
            return _storage_error(full=seen.errno in DISK_FULL)
        if isinstance(seen, sqlite3.Error) and (code := getattr(seen, "sqlite_errorcode", 0) & 0xFF) in _SQLITE:
            return _storage_error(full=code == sqlite3.SQLITE_FULL)
        if isinstance(seen, RuntimeError) and "itk" in str(seen).lower() and _is_full(tempfile.gettempdir()):
            return _storage_error(full=True)
        seen = seen.__cause__ or seen.__context__
    return None


def _storage_error(*, full: bool) -> StorageError:
    if full:
        return StorageError("The server's disk is full. Free some space there, then try again.", full=True)
    return StorageError(
        "The server cannot use its disk, which is read-only or out of reach. Try again once it is writable.", full=False
    )


def _is_full(folder: str) -> bool:
    return shutil.disk_usage(folder).free < _LEAST_FREE


# Of errors with a sentence of their own: whether a file may be read is another matter than whether one can be written.
_PLAIN = (*DISK_FULL, errno.EROFS)
_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_LEAST_FREE = 2**20


def headers_of(error: MedClipSamError) -> dict[str, str]:
    """Return the headers that go with the answer."""
    if isinstance(error, (BusyError, LockedError, UpstreamBusyError)):
        return {"Retry-After": str(error.retry_after)}
    return {}


@contextmanager
def as_http() -> Iterator[None]:
    """Turn this package's errors into HTTP errors with the same sentence."""
    try:
        yield
    except MedClipSamError as raised:
        error = told(raised)
        raise HTTPException(status_of(error), str(error), headers_of(error) or None) from None
