"""Parts of DICOM files as DICOMweb hands them out (DICOM PS3.18): metadata, frames, bulk data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import get_expected_length

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import isolation
from medclipsam.imaging.decoding import decode
from medclipsam.imaging.dicom import at_pixels, read_data, read_tags

# Bytes of a value that stands in the metadata itself.
_SHORT = 1024
_PIXELS = "7FE00010"
_SIZE_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("PhotometricInterpretation", "PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
# Names that can stand in an address; many files have some that are longer than the 64 characters of a UID.
_NAME = re.compile(r"[0-9.]{1,128}")
_PLAIN = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


@dataclass(frozen=True)
class Frames:
    """Frames of a file.

    Parameters
    ----------
    content : list of bytes
        One for each frame that was asked for.
    syntax : str
        Transfer syntax of the frames; Explicit VR Little Endian where they are not compressed.
    """

    content: list[bytes]
    syntax: str


def read_usable(path: Path, keywords: Sequence[str]) -> Dataset:
    """Return some elements of a DICOM file, without those whose values are damaged; empty where it cannot be read.

    Parameters
    ----------
    path : Path
        The file.
    keywords : sequence of str
        The elements.
    """
    usable = Dataset()
    try:
        found = read_tags(path, keywords)
        usable.file_meta = found.file_meta
    except Exception:  # who reads the image is told what is wrong with it
        return usable
    for keyword in keywords:
        with suppress(Exception):  # values of other programs fail in more ways than are foreseen
            if keyword in found:
                element = found[keyword]
                element.to_json_dict(None, 0)
                if element.VR == "IS":
                    int(element.value or 0)
                usable[keyword] = element
    return usable


def can_be_served(header: Dataset) -> bool:
    """Return whether a viewer can be given a file as it is: named by UIDs, and with pixels of whole bytes.

    Parameters
    ----------
    header : pydicom.Dataset
        With the UIDs, BitsAllocated and the file meta information.
    """
    named = all(
        _NAME.fullmatch(str(header.get(keyword) or ""))
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
    )
    syntax = uid.UID(getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID", ""))
    return bool(named and header.get("BitsAllocated") in (8, 16) and (syntax in _PLAIN or syntax.is_encapsulated))


def metadata(path: Path, address: str) -> dict[str, Any]:
    """Return what stands before a file's pixels, in the DICOM JSON model (PS3.18, F).

    Parameters
    ----------
    path : Path
        The file.
    address : str
        Of the instance; long values are found at `<address>/bulkdata/<n>`, and the pixels at
        `<address>/bulkdata/7FE00010`.
    """
    data, numbers = _before_pixels(path), itertools.count()
    answer = to_json(data, lambda element: f"{address}/bulkdata/{next(numbers)}")
    answer[_PIXELS] = {
        "vr": "OB" if data.get("BitsAllocated") == 8 else "OW",
        "BulkDataURI": f"{address}/bulkdata/{_PIXELS}",
    }
    return answer


def to_json(data: Dataset, bulk: Callable[[DataElement], str] | None = None) -> dict[str, Any]:
    """Return a data set in the DICOM JSON model, without values that are damaged.

    Parameters
    ----------
    data : pydicom.Dataset
    bulk : callable, optional
        Returns the address of a long binary value.
    """
    answer = data.to_json_dict(_SHORT, bulk, suppress_invalid_tags=True)
    # JSON is UTF-8
    if "00080005" in answer:
        answer["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return answer


def bulk_value(path: Path, number: int) -> bytes:
    """Return one of the long values that `metadata` names.

    Raises
    ------
    InputError
        If there is none of that number.
    """
    found: list[bytes] = []

    def note(element: DataElement) -> str:
        found.append(bytes(element.value))
        return ""

    # in the order in which the metadata name them
    to_json(_before_pixels(path), note)
    if not 0 <= number < len(found):
        raise InputError(f"The instance has no bulk data {number}; it has {len(found)} long values.")
    return found[number]


def frames(path: Path, numbers: Sequence[int], *, plain: bool = False) -> Frames:
    """Return frames of a file as they are stored.

    Parameters
    ----------
    path : Path
        The file.
    numbers : sequence of int
        Frames, counted from 1.
    plain : bool
        Whether compressed frames are decoded, which is done in another process.

    Raises
    ------
    InputError
        If there is no such frame.
    ImageError
        If the file is damaged.
    """
    try:
        found = _frames(path, tuple(numbers))
    except InputError:
        raise
    except Exception:
        # a long header, or one that is to be repaired
        found = _call(_frames, path, tuple(numbers))
    if plain and uid.UID(found.syntax).is_encapsulated:
        return _call(_decoded_frames, path, tuple(numbers))
    return found


def _call(function: Callable[..., Frames], path: Path, numbers: tuple[int, ...]) -> Frames:
    try:
        found: Frames = isolation.call(function, path, numbers, preload=("PIL.Image", "gdcm", "jpeg_ls"))
        return found
    except InputError:
        raise
    except Exception as error:
        raise ImageError(f"The pixels of {path.name} cannot be read; the file is damaged.") from error


def _frames(path: Path, numbers: tuple[int, ...]) -> Frames:
    with at_pixels(path, _SIZE_TAGS) as (header, file, length):
        count = int(header.get("NumberOfFrames") or 1)
        _check(numbers, count)
        syntax = uid.UID(str(header.file_meta.TransferSyntaxUID))
        if syntax.is_encapsulated:
            tables = [header.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
            extended: Any = tuple(tables) if all(tables) else None
            start = file.tell()
            found = []
            for number in numbers:
                file.seek(start)
                found.append(get_frame(file, number - 1, extended_offsets=extended, number_of_frames=count))
            return Frames(found, str(syntax))
        size = get_expected_length(header) // count
        start, end = file.tell(), file.tell() + length
        found = []
        for number in numbers:
            file.seek(start + (number - 1) * size)
            found.append(file.read(size))
            if len(found[-1]) != size or file.tell() > end:
                raise ImageError(f"The pixels of {path.name} end before frame {number} does.")
        return Frames(found, str(uid.ExplicitVRLittleEndian))


def _decoded_frames(path: Path, numbers: tuple[int, ...]) -> Frames:
    data = read_data(path)
    count = int(data.get("NumberOfFrames") or 1)
    _check(numbers, count)
    pixels = decode(data)
    if count == 1:
        pixels = pixels[None]
    little = pixels.dtype.newbyteorder("<")
    return Frames([pixels[number - 1].astype(little).tobytes() for number in numbers], str(uid.ExplicitVRLittleEndian))


def _check(numbers: Sequence[int], count: int) -> None:
    for number in numbers:
        if not 1 <= number <= count:
            raise InputError(f"The instance has no frame {number}; allowed: 1 to {count}.")


def _before_pixels(path: Path) -> Dataset:
    try:
        return read_tags(path, None)
    except Exception as error:
        raise ImageError(f"The header of {path.name} cannot be read; the file is damaged.") from error
