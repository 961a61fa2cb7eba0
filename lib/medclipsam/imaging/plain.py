"""Which files are read in this process: short headers, uncompressed or small, and parsed by Python code alone."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from medclipsam.base.formats import NIFTI_SUFFIXES
from medclipsam.imaging.dicom import has_short_header, looks_like_dicom
from medclipsam.imaging.limits import SMALL_FILE

_PNG = b"\x89PNG\r\n\x1a\n"
_NIFTI_BYTES = 540
_LITTLE, _BIG = "<", ">"
# Bytes of voxels that are unpacked in this process.
_SMALL_IMAGE = 16 * SMALL_FILE


def are_plain(files: Iterable[Path]) -> bool:
    """Return whether all files are plain, see `is_plain`."""
    return all(map(is_plain, files))


def is_plain(path: Path) -> bool:
    """Return whether a file can be read in this process.

    These are uncompressed DICOM files with a short header, NIfTI files without long extensions, and small PNG files.
    All others, and whatever looks damaged, are read in another process, see `medclipsam.imaging.isolation`.
    """
    name = path.name.lower()
    try:
        if name.endswith(NIFTI_SUFFIXES):
            return _nifti(path)
        if name.endswith(".png"):
            return _png(path)
        return looks_like_dicom(path) and has_short_header(path)
    except Exception:
        # formats break in more ways than can be listed
        return False


def _png(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(24)
    width, height = struct.unpack(">II", head[16:24])
    return head.startswith(_PNG) and width * height <= SMALL_FILE and path.stat().st_size <= SMALL_FILE


def _nifti(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    if path.name.lower().endswith(".gz"):
        if path.stat().st_size > SMALL_FILE:
            return False
        head = zlib.decompressobj(31).decompress(head, _NIFTI_BYTES)
    order = next(order for order in (_LITTLE, _BIG) if struct.unpack_from(f"{order}i", head)[0] in (348, 540))
    if struct.unpack_from(f"{order}i", head)[0] == 348:
        shape, bits = struct.unpack_from(f"{order}8h", head, 40), struct.unpack_from(f"{order}h", head, 72)[0]
        offset = struct.unpack_from(f"{order}f", head, 108)[0]
    else:
        shape, bits = struct.unpack_from(f"{order}8q", head, 16), struct.unpack_from(f"{order}h", head, 14)[0]
        offset = struct.unpack_from(f"{order}q", head, 168)[0]
    size = math.prod(max(1, length) for length in shape[1 : 1 + shape[0]]) * bits // 8
    if not 0 <= offset <= 4096 or not 0 < shape[0] < 8 or bits < 0:
        return False
    return size <= _SMALL_IMAGE if path.name.lower().endswith(".gz") else size <= path.stat().st_size
