"""Errors as HTTP answers: one sentence and a status, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from medclipsam.errors import InputError, MedClipSamError


class UnknownError(InputError):
    """A request names an image, a model or a strategy that is not there."""


class UpstreamError(MedClipSamError):
    """The DICOMweb server that holds the studies did not do what it was asked."""


# The first class that fits decides.
_STATUS: tuple[tuple[type[MedClipSamError], int], ...] = (
    (UnknownError, 404),
    (UpstreamError, 502),
    (MedClipSamError, 400),
)


def status_of(error: Exception) -> int:
    """Return the HTTP status that answers an error of this package."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


@contextmanager
def as_http() -> Iterator[None]:
    """Turn this package's errors into HTTP errors with the same sentence."""
    try:
        yield
    except MedClipSamError as error:
        raise HTTPException(status_code=status_of(error), detail=str(error)) from None
