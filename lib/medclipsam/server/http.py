"""Errors as HTTP answers: one sentence and a 4xx, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from medclipsam.errors import InputError, MedClipSamError


class UnknownError(InputError):
    """A request names an image, a model or a strategy that is not there."""


class UpstreamError(MedClipSamError):
    """The DICOMweb server that holds the studies did not do what it was asked."""


@contextmanager
def as_http() -> Iterator[None]:
    """Turn this package's errors into HTTP errors with the same sentence: 404, 502 or 400."""
    try:
        yield
    except UnknownError as error:
        raise HTTPException(status_code=404, detail=str(error)) from None
    except UpstreamError as error:
        raise HTTPException(status_code=502, detail=str(error)) from None
    except MedClipSamError as error:
        raise HTTPException(status_code=400, detail=str(error)) from None
