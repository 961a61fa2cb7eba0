"""Errors as HTTP answers: one sentence and a status, never a traceback."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from medclipsam.errors import CancelledError, InputError, MedClipSamError
from medclipsam.training.lock import TrainingRunsError
from medclipsam.training.store import UnknownNetworkError


class UnknownError(InputError):
    """A request names an image, a model or a strategy that is not there."""


class UnauthenticatedError(InputError):
    """A request does not say who asks, or cannot prove it."""


class ForbiddenError(InputError):
    """Who asks may not do this, or nobody may."""


class TooLargeError(InputError):
    """A request holds more bytes than the server takes."""


class ConflictError(InputError):
    """What is asked for cannot be done as things stand now."""


class UpstreamError(MedClipSamError):
    """The DICOMweb server that holds the studies did not do what it was asked.

    Attributes
    ----------
    permanent : bool
        Whether asking again is of no use.
    """

    permanent = False

    def for_good(self) -> UpstreamError:
        """Return this error, as one for which asking again is of no use."""
        self.permanent = True
        return self


class UpstreamTimeoutError(UpstreamError):
    """The DICOMweb server that holds the studies did not answer in time."""


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
    (UpstreamError, 502),
    (AlreadyRunningError, 429),
    (TrainingRunsError, 429),
    (BusyError, 503),
    (MedClipSamError, 400),
)


def status_of(error: MedClipSamError) -> int:
    """Return the HTTP status that answers an error of this package."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def headers_of(error: MedClipSamError) -> dict[str, str]:
    """Return the headers that go with the answer."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else {}


@contextmanager
def as_http() -> Iterator[None]:
    """Turn this package's errors into HTTP errors with the same sentence."""
    try:
        yield
    except MedClipSamError as error:
        raise HTTPException(status_of(error), str(error), headers_of(error) or None) from None
