"""Hostile files in the studies folder: the others are listed and read, and looking at the folder ends."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medclipsam.base.errors import ImageError
from medclipsam.imaging import isolation, read_image
from medclipsam.imaging.dicom import read_origin
from medclipsam.studies.find import find_images

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.timeout(300)]


def nested(depth: int) -> bytes:
    """Return a private sequence (explicit VR, undefined lengths) that is nested so deep."""
    head = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return head * depth + tail * depth


def in_sequences(depth: int) -> bytes:
    """Return the same in sequences and items of stated lengths, which pydicom leaves unparsed until they are used."""
    content = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
        content = struct.pack("<HH2sHI", 0x0009, 0x1010, b"SQ", 0, len(item)) + item
    return content


@pytest.fixture
def write_slice(write_radiograph: Callable[[np.ndarray, Path], None]) -> Callable[[Path, int, bytes], None]:
    """Write a CT slice at a position with elements of group 9 put in as they are."""

    def write(path: Path, position: int, private: bytes) -> None:
        write_radiograph(np.full((16, 16), position, np.uint8), path)
        data = pydicom.dcmread(path)
        data.Modality, data.SeriesInstanceUID = "CT", "1.2.3"
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{position}"
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, position], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [1, 1]
        data.add_new(0x00090010, "LO", "private")
        marker = Dataset()
        data.add_new(0x00091001, "SQ", Sequence([marker]))
        data.save_as(path, enforce_file_format=True)
        content = path.read_bytes()
        # in place of the last element of group 9
        start = content.index(struct.pack("<HH2s", 0x0009, 0x1001, b"SQ"))
        length = struct.unpack_from("<I", content, start + 8)[0]
        path.write_bytes(content[:start] + private + content[start + 12 + length :])

    return write


@pytest.mark.parametrize("private", [nested, in_sequences])
def test_sequences_nested_deeply_are_refused_or_read(
    write_slice: Callable[[Path, int, bytes], None], tmp_path: Path, private: Callable[[int], bytes]
) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for position in (1, 2):
        write_slice(folder / f"{position}.dcm", position, private(10_000))
    for work in (read_image, read_origin, find_images):
        with contextlib.suppress(ImageError):
            work(folder)
    # the reader works, or another has taken its place
    (folder / "1.dcm").unlink()
    (folder / "2.dcm").unlink()
    write_slice(folder / "1.dcm", 1, b"")
    write_slice(folder / "2.dcm", 2, b"")
    assert read_image(folder).n_planes == 2
    assert isolation.call(len, "abc") == 3
