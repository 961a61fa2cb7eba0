"""Whether a file has arrived: its header is readable, and as many bytes are there as the header tells of."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.errors import InvalidDicomError

from medclipsam.imaging.dicom import looks_like_dicom, read_header

# What a DICOM file's meta information, and the end of its frames or of a picture, lie within.
_HEAD, _TAIL = 4096, 65536


def is_whole(path: Path) -> bool:
    """Return whether an image file is all there, as far as its format tells without reading the voxels.

    A truncated file of NIfTI (compressed or not), DICOM, PNG, JPEG, BMP and uncompressed NRRD is found out; of
    compressed NRRD and TIFF only the header is looked at. Bytes that are wrong are found by who reads the image.
    """
    name = path.name.lower()
    try:
        if path.stat().st_size == 0:
            return False
        if name.endswith((".nii", ".nii.gz")):
            return _nifti(path)
        if name.endswith(".nrrd"):
            return _nrrd(path)
        if looks_like_dicom(path):
            return _dicom(path)
        return _picture(path)
    except Exception:
        # formats break in more ways than can be listed, and here they all mean the same
        return False


def _nifti(path: Path) -> bool:
    header = nib.load(path).header
    if not isinstance(header, nib.Nifti1Header):
        return False
    voxels = header.get_data_dtype().itemsize
    for size in header.get_data_shape():
        voxels *= int(size)
    expected = int(header.get_data_offset()) + voxels
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size >= expected
    # a gzip stream ends with its length, modulo 2^32
    with path.open("rb") as file:
        file.seek(-4, 2)
        (length,) = struct.unpack("<I", file.read(4))
    return bool(length == expected % 2**32) or _gzip_ends(path)


def _gzip_ends(path: Path) -> bool:
    """Return whether a gzip stream ends, by unpacking it: more than the voxels may be packed in it."""
    unpack = zlib.decompressobj(31)
    with path.open("rb") as file:
        while not unpack.eof and (piece := file.read(1 << 20)):
            unpack.decompress(piece)
    return unpack.eof


def _nrrd(path: Path) -> bool:
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline().startswith(b"NRRD"):
            return False
        while line := file.readline(4096).strip():
            key, _, value = line.decode("utf-8", "replace").partition(":")
            fields[key.strip().lower()] = value.strip()
        start = file.tell()
    if fields.get("encoding") != "raw":
        return "sizes" in fields
    voxels = _NRRD_BYTES[fields["type"].lower()]
    for size in fields["sizes"].split():
        voxels *= int(size)
    return path.stat().st_size - start >= voxels


_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    **{"float": 4, "double": 8},
}


def _dicom(path: Path) -> bool:
    with path.open("rb") as file:
        if uid.DeflatedExplicitVRLittleEndian.encode() in file.read(_HEAD):
            # unpacked as a whole, which fails where a part is missing; how large it may be is looked at there
            return read_header(path) is not None
        file.seek(0)
        try:
            data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows"])
        except InvalidDicomError:
            file.seek(0)
            data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows"], force=True)
        if not data.get("Rows"):
            return True  # no image: whatever it is, it will not be listed
        implicit, little = data.original_encoding
        return _pixels_are_there(file, path.stat().st_size, bool(implicit), bool(little))


def _pixels_are_there(file: BinaryIO, size: int, implicit: bool, little: bool) -> bool:
    """Look at the element that reading stopped before: pixel data of a length, or of encapsulated frames."""
    order = "<" if little else ">"
    head = file.read(12)
    if len(head) < 12:
        return False
    start = file.tell() - (4 if implicit else 0)
    (length,) = struct.unpack_from(f"{order}I", head, 4 if implicit else 8)
    if length != 0xFFFFFFFF:
        return size >= start + length
    # encapsulated frames end with a sequence delimiter, near the end of the file
    file.seek(max(start, size - _TAIL))
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0) in file.read()


def _picture(path: Path) -> bool:
    with Image.open(path) as picture:
        kind = picture.format
    with path.open("rb") as file:
        if kind == "BMP":
            (length,) = struct.unpack_from("<I", file.read(6), 2)
            return path.stat().st_size >= length
        file.seek(-min(_TAIL, path.stat().st_size), 2)
        tail = file.read()
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in tail
    if kind == "JPEG":
        return b"\xff\xd9" in tail
    return True
