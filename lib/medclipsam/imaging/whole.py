"""Whether a file is complete: its header is readable, and as many bytes are there as the header states."""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.errors import InvalidDicomError

from medclipsam.base.formats import DICOM_SUFFIXES, NIFTI_SUFFIXES
from medclipsam.imaging import isolation
from medclipsam.imaging.dicom import (
    is_deflated,
    looks_like_dicom,
    read_data,
    repaired_file,
    should_hold_image,
)
from medclipsam.imaging.limits import HEADER_SECONDS, MAX_EXTRA
from medclipsam.imaging.pictures import PICTURE_FORMATS
from medclipsam.imaging.plain import is_plain
from medclipsam.imaging.volumes import check_nifti, check_size

_BLOCK = 2**20
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
# The next marker of JPEG: no stuffed zero, restart or fill byte, as they are in entropy-coded data.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_END = 0xD9
_TRUNCATED = "it is truncated"
_TAGS = ["SOPClassUID", "Rows", "NumberOfFrames"]


def is_whole(path: Path) -> bool:
    """Return whether `fault_of` finds nothing wrong with an image file."""
    return fault_of(path) is None


def fault_of(path: Path) -> str | None:
    """Return what is wrong with an image file, as far as its format tells without reading the voxels.

    A truncated file of NIfTI (compressed or not), DICOM, PNG, JPEG, BMP and uncompressed NRRD is found; of compressed
    NRRD and TIFF only the header is looked at. Data behind the end of the image are allowed. Bytes that are wrong are
    found by `read_image`.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str or None
        The end of a sentence about the file, such as "it is empty"; None for a complete file.
    """
    if is_plain(path):
        return _fault_of(path)
    try:
        fault: str | None = isolation.call(_fault_of, path, seconds=HEADER_SECONDS)
    except Exception as error:
        return f"it cannot be read ({first_line(error)})"
    return fault


def _fault_of(path: Path) -> str | None:
    name = path.name.lower()
    try:
        if path.stat().st_size == 0:
            return "it is empty"
        if name.endswith(NIFTI_SUFFIXES):
            return _nifti(path)
        if name.endswith(".nrrd"):
            return _nrrd(path)
        if looks_like_dicom(path):
            return _dicom(path)
        if name.endswith(DICOM_SUFFIXES):
            path.open("rb").close()  # says so where it must not be opened
            return "its content is not DICOM"
        return _picture(path)
    except UnidentifiedImageError:
        return "its content is not an image of a format that is read"
    except OSError as error:
        return f"it cannot be opened ({error.strerror or first_line(error)})"
    except Exception as error:
        # formats break in more ways than can be listed
        return f"its header cannot be read ({first_line(error)})"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message without its full stop; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__


def _nifti(path: Path) -> str | None:
    check_nifti(path)
    header = nib.load(path).header
    if not isinstance(header, nib.Nifti1Header):
        return "its content is not NIfTI"
    voxels = header.get_data_dtype().itemsize
    for size in header.get_data_shape():
        voxels *= int(size)
    expected = int(header.get_data_offset()) + voxels
    if not path.name.lower().endswith(".gz"):
        return None if path.stat().st_size >= expected else _TRUNCATED
    # a gzip stream ends with its length, modulo 2^32
    with path.open("rb") as file:
        file.seek(-4, 2)
        (length,) = struct.unpack("<I", file.read(4))
    return None if length == expected % 2**32 or _gzip_ends(path, expected + MAX_EXTRA) else _TRUNCATED


def _gzip_ends(path: Path, limit: int) -> bool:
    """Return whether a gzip stream ends within `limit` bytes, by unpacking it: more than the voxels may be in it."""
    unpack, unpacked = zlib.decompressobj(31), 0
    with path.open("rb") as file:
        while not unpack.eof and unpacked <= limit and (piece := unpack.unconsumed_tail or file.read(_BLOCK)):
            unpacked += len(unpack.decompress(piece, _BLOCK))
    return unpack.eof


def _nrrd(path: Path) -> str | None:
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(4096).startswith(b"NRRD"):
            return "its content is not NRRD"
        while line := file.readline(4096).strip():
            key, _, value = line.decode("utf-8", "replace").partition(":")
            fields[key.strip().lower()] = value.strip()
        start = file.tell()
    if "sizes" not in fields:
        return _TRUNCATED
    voxels = _NRRD_BYTES.get(fields.get("type", "").lower())
    if fields.get("encoding", "").lower() != "raw" or voxels is None or {"data file", "datafile"} & fields.keys():
        return None
    for size in fields["sizes"].split():
        voxels *= int(size)
    return None if path.stat().st_size - start >= voxels else _TRUNCATED


_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    **{"float": 4, "double": 8},
}


def _dicom(path: Path) -> str | None:
    if is_deflated(path):
        read_data(path)  # fails where a part is missing
        return None
    with path.open("rb") as file:
        try:
            fault = _dicom_stream(file, path.stat().st_size)
        except Exception as error:
            fault = f"its header cannot be read ({first_line(error)})"
    if fault is None:
        return None
    # it may be one that is repaired when it is read
    content = repaired_file(path)
    return fault if content is None else _dicom_stream(BytesIO(content), len(content))


def _dicom_stream(file: BinaryIO, size: int) -> str | None:
    try:
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    except InvalidDicomError:
        file.seek(0)
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    if not data.get("Rows"):
        # other objects are complete without, and will not be listed
        return "it has no rows and columns" if should_hold_image(data) else None
    order = "<" if data.original_encoding[1] else ">"
    head = file.read(12)
    if len(head) < 12:
        return "its pixel data is missing"
    # as it is written, whatever the transfer syntax says; lengths are even, and these letters are not
    implicit = head[4:6] not in (b"OB", b"OW", b"OF", b"OD", b"UN")
    start = file.tell() - (4 if implicit else 0)
    (length,) = struct.unpack_from(f"{order}I", head, 4 if implicit else 8)
    if length == 0:
        return "its pixel data is missing"
    if length != 0xFFFFFFFF:
        return None if size >= start + length else _TRUNCATED
    file.seek(start)
    frames = str(data.get("NumberOfFrames") or 1)
    enough = _frames_are_there(file, size, order, int(frames) if frames.isdecimal() else 1)
    return None if enough else _TRUNCATED


def _frames_are_there(file: BinaryIO, size: int, order: str, frames: int) -> bool:
    """Walk along the items of encapsulated frames to their end; other elements may follow it.

    Some programs leave out the delimiter at the end: then as many items as frames, behind the table of offsets, are
    enough.
    """
    items = -1
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack(f"{order}HHI", head)
        if (group, element) == _SEQUENCE_END:
            return True
        if (group, element) != _ITEM or file.tell() + length > size:
            return False
        file.seek(length, 1)
        items += 1
    return items >= frames


def _picture(path: Path) -> str | None:
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        check_size(path, picture.size, len(picture.getbands()))
        kind = picture.format
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if kind == "BMP":
            (length,) = struct.unpack_from("<I", content, 2)
            whole = len(content) >= length
        elif kind == "PNG":
            whole = _png_ends(content)
        elif kind in ("JPEG", "MPO"):
            whole = _jpeg_ends(content)
        else:
            whole = True
    return None if whole or _loads(path) else _TRUNCATED


def _loads(path: Path) -> bool:
    """Return whether a picture that lacks its end is decoded all the same, as where only the end marker is missing."""
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as picture:
            picture.load()
    except Exception:
        return False
    return True


def _png_ends(content: mmap.mmap) -> bool:
    """Return whether the chunks of a PNG file go on to its last one."""
    place = 8
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IEND":
            return True
        place += 12 + length
    return False


def _jpeg_ends(content: mmap.mmap) -> bool:
    """Return whether the segments of a JPEG file go on to its end marker; previews within a segment are passed over."""
    place = 2
    while found := _JPEG_MARKER.search(content, place):
        marker = content[found.end() - 1]
        if marker == _JPEG_END:
            return True
        if found.end() + 2 > len(content):
            return False
        # the entropy-coded data of a scan follow its header, and are searched through as whatever lies between segments
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return False
