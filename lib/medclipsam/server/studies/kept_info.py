"""What clients may keep with images and labels: JSON of bounded size, without the keys that the server sets itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medclipsam.base.errors import InputError, TooLargeError
from medclipsam.studies.final import CONSENSUS, REMOVED, REPLACES, REVIEW, SAVED_BY

# Bytes of JSON that clients may keep with one image, and with one label: what a model has said of a volume fits.
MAX_IMAGE_INFO = 64 * 2**10
MAX_LABEL_INFO = 512 * 2**10

# Who changed it, when, and which file it is.
_BOTH = ("path", "file", "name", "ts", "user")
# What answers tell of an image beside its information, and what tells its patient and its series.
IMAGE_KEYS = frozenset(
    {
        *_BOTH,
        *("id", "why", "weight", "validation", "planes", "lease", "strategy"),
        *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "volume"),
    }
)
# What tells whose label it is, and which segmentation of a DICOMweb server.
LABEL_KEYS = frozenset(
    {
        *_BOTH,
        *(SAVED_BY, REPLACES, CONSENSUS, REMOVED, REVIEW),
        *("corrections", "algorithms", "SeriesInstanceUID", "SOPInstanceUID"),
    }
)
# What a model has noted of its mask cannot be changed afterwards.
MASK_KEYS = frozenset({"model", "params"})


def image_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client wants to be kept with an image.

    Raises
    ------
    InputError
        If it holds a key that only the server sets.
    TooLargeError
        If it is longer than is kept.
    """
    return _checked(info, IMAGE_KEYS, MAX_IMAGE_INFO, "an image")


def label_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client wants to be kept with a label that is there; errors as of `image_info`."""
    return _checked(info, LABEL_KEYS | MASK_KEYS, MAX_LABEL_INFO, "a label")


def new_label_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client wants to be kept with a label that it saves, without the keys that the server sets anew.

    Raises
    ------
    TooLargeError
        If it is longer than is kept.
    """
    kept = {key: value for key, value in info.items() if key not in LABEL_KEYS}
    _check_length(kept, MAX_LABEL_INFO, "a label")
    return kept


def merged_image_info(kept: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept with an image after more is added to it.

    Raises
    ------
    TooLargeError
        If that is longer than is kept.
    """
    together = {**kept, **info}
    _check_length(together, MAX_IMAGE_INFO, "an image")
    return together


def merged_label_info(kept: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept with a label after more is added to it, as `merged_image_info` does."""
    together = {**kept, **info}
    # a model's own account of its mask may be long
    _check_length({key: together[key] for key in together.keys() - MASK_KEYS}, MAX_LABEL_INFO, "a label")
    return together


def _checked(info: Mapping[str, Any], reserved: frozenset[str], most: int, what: str) -> dict[str, Any]:
    taken = sorted(reserved & info.keys())
    if taken:
        raise InputError(
            f"The key {taken[0]!r} cannot be kept with {what}: the server sets it. Allowed: other names than "
            f"{', '.join(sorted(reserved))}."
        )
    _check_length(info, most, what)
    return dict(info)


def _check_length(info: Mapping[str, Any], most: int, what: str) -> None:
    length = len(json.dumps(info, default=str))
    if length > most:
        raise TooLargeError(f"The information to keep with {what} has {length} bytes as JSON; allowed: up to {most}.")
