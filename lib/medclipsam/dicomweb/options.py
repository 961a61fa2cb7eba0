"""How the DICOMweb server of the studies is asked: the settings `pacs_...`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, field_validator

from medclipsam.base.options import Options, option

MODALITIES = ("CT", "MR", "CR", "DX", "MG", "US")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")


def _readable(file: str) -> str:
    if not os.access(file, os.R_OK) or not Path(file).is_file():
        raise ValueError("a file that can be read")
    return file


ReadableFile = Annotated[str, AfterValidator(_readable)]


class PacsOptions(Options):
    """How the DICOMweb server of the studies is asked."""

    prefix: ClassVar[str] = "pacs_"

    modalities: tuple[str, ...] = option(
        MODALITIES,
        "DICOM modalities of the series that are listed",
        allowed="DICOM modalities of images, such as CT,MR,CR,DX,MG,US",
    )
    filters: tuple[tuple[str, str], ...] = option(
        (),
        "Further conditions of the search, separated by semicolons: StudyDate=20260101-; PatientID=TRIAL*",
        allowed="DICOM keywords other than Modality, as in StudyDate=20260101-",
        setting="filter",
    )
    timeout: int = option(
        20, "Time within which an answer must begin, and go on with 1 KiB/s or more", 1, 3600, unit="seconds"
    )
    max_seconds: int = option(900, "Time within which an answer must be complete", 1, 86400, unit="seconds")
    retries: int = option(2, "Number of further attempts at a failed search or retrieval", 0, 10)
    cache_mb: int = option(
        20 * 1024,
        "Disk space for fetched series; the least recently used are removed",
        16,
        1024 * 1024 * 16,
        unit="MiB",
    )
    seg_type: Literal["BINARY", "LABELMAP"] = option(
        "BINARY", "Kind of SEG that labels are stored as; LABELMAP is smaller, and fewer programs read it"
    )
    reports: bool = option(False, "Store the measurements of each label as a structured report (TID 1500) beside it")
    foreign_labels: bool = option(False, "Use the SEG of another program where a series has none of this server")
    ca_file: ReadableFile | None = option(
        None, "Certificates (PEM) that may vouch for the server", shown="the system's", allowed="a file"
    )
    token_file: ReadableFile | None = option(
        None, "File with a bearer token, read again for each request", shown="none", allowed="a file"
    )

    @field_validator("modalities", mode="before")
    @classmethod
    def _are_modalities(cls, given: Any) -> Any:
        from medclipsam.imaging.dicom import NOT_IMAGES

        if not isinstance(given, (str, list, tuple)):
            return given
        names = re.split(r"[,;\s]+", given) if isinstance(given, str) else given
        found = tuple(dict.fromkeys(name for name in names if name))
        if not found or any(not _CODE.fullmatch(name) or name in NOT_IMAGES for name in found):
            raise ValueError(cls.options()["modalities"].allowed)
        return found

    @field_validator("filters", mode="before")
    @classmethod
    def _are_conditions(cls, given: Any) -> Any:
        from pydicom.datadict import tag_for_keyword

        if isinstance(given, str):
            pairs = [part.partition("=") for part in given.split(";") if part.strip()]
            given = tuple((name.strip(), value.strip()) for name, _, value in pairs)
        if not isinstance(given, tuple):
            return given
        for name, value in given:
            if name == "Modality" or tag_for_keyword(name) is None or not value or not value.isprintable():
                raise ValueError(cls.options()["filters"].allowed)
        return given
