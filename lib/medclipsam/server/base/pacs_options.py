"""How the DICOMweb server of the studies is asked: typed once from the strings of `--conf pacs_... value`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword

from medclipsam.base.errors import OptionError
from medclipsam.imaging.dicom import NOT_IMAGES
from medclipsam.server.base.settings import as_switch

MODALITIES = ("CT", "MR", "CR", "DX", "MG", "US")
# Whole numbers: key -> (least, greatest).
_RANGES = {"timeout": (1, 3600), "max_seconds": (1, 86400), "retries": (0, 10), "cache_mb": (16, 1024 * 1024 * 16)}
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")


@dataclass(frozen=True)
class PacsOptions:
    """How the DICOMweb server of the studies is asked.

    Parameters
    ----------
    modalities : tuple of str
        DICOM modalities of the series that are listed.
    filters : tuple of (str, str)
        Further conditions of the search, as DICOM keyword and value: ("StudyDate", "20260101-").
    timeout : int
        Seconds within which the server must begin its answer, and go on with it at 1 KiB a second or more.
    max_seconds : int
        Seconds within which an answer must be complete.
    retries : int
        How often a search or retrieval that failed is tried again.
    cache_mb : int
        MiB that fetched series may take on this machine.
    foreign_labels : bool
        Whether a SEG of another program counts as the label of a series that has none of ours.
    ca_file : str or None
        Certificates (PEM) of those that may vouch for the server; the usual ones by default.
    token_file : str or None
        File that holds the bearer token; read anew for each request.
    """

    modalities: tuple[str, ...] = MODALITIES
    filters: tuple[tuple[str, str], ...] = ()
    timeout: int = 20
    max_seconds: int = 900
    retries: int = 2
    cache_mb: int = 20 * 1024
    foreign_labels: bool = False
    ca_file: str | None = None
    token_file: str | None = None

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> PacsOptions:
        """Read `--conf` strings, whose keys have the prefix `pacs_` taken away.

        Raises
        ------
        OptionError
            If a value is not allowed.
        """
        values: dict[str, Any] = {}
        for key, text in ((key, str(value).strip()) for key, value in given.items()):
            if key in _RANGES:
                low, high = _RANGES[key]
                if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
                    raise OptionError(f"pacs_{key}", text, f"a whole number from {low} to {high}")
                values[key] = int(text)
            elif key == "modalities":
                values[key] = checked_modalities(re.split(r"[,;\s]+", text))
            elif key == "filter":
                pairs = [part.partition("=") for part in text.split(";") if part.strip()]
                values["filters"] = checked_filters([(name.strip(), value.strip()) for name, _, value in pairs])
            elif key == "foreign_labels":
                values[key] = as_switch("pacs_foreign_labels", text)
            elif text:
                if not os.access(text, os.R_OK) or not Path(text).is_file():
                    raise OptionError(f"pacs_{key}", text, "a file that can be read")
                values[key] = text
        return cls(**values)


PACS_KEYS = (
    *("modalities", "filter", "timeout", "max_seconds", "retries", "cache_mb", "foreign_labels", "ca_file"),
    "token_file",
)


def checked_modalities(names: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities to list, each once.

    Raises
    ------
    OptionError
        If there is none, or one of them has no images.
    """
    found = tuple(dict.fromkeys(name for name in names if name))
    allowed = "DICOM modalities of images, such as CT,MR,CR,DX,MG,US"
    for name in found:
        if not _CODE.fullmatch(name) or name in NOT_IMAGES:
            raise OptionError("pacs_modalities", name, allowed)
    if not found:
        raise OptionError("pacs_modalities", "", allowed)
    return found


def checked_filters(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the conditions of a search.

    Raises
    ------
    OptionError
        If one of them is no DICOM keyword with a value, or is the modality.
    """
    found = tuple(pairs)
    for name, value in found:
        if name == "Modality" or tag_for_keyword(name) is None or not value or not value.isprintable():
            raise OptionError(
                "pacs_filter", f"{name}={value}", "DICOM keywords other than Modality, as in StudyDate=20260101-"
            )
    return found
