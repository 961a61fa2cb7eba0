"""DICOM files with structural faults are read as the good file is, by whoever reads them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medclipsam.base.errors import ImageError
from medclipsam.imaging import read_image, read_origin
from medclipsam.imaging.dicom import read_header
from medclipsam.imaging.dicom_repair import repaired
from medclipsam.imaging.whole import fault_of

EXPLICIT, IMPLICIT, JPEG = uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.JPEGBaseline8Bit
PIXELS = np.random.default_rng(0).integers(-1000, 1000, (12, 16)).astype(np.int16)
ITEM_END, SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, number, 0) for number in (0xE00D, 0xE0DD))


@pytest.fixture
def good(make_dicom: Callable[..., Dataset]) -> Callable[[uid.UID], bytes]:
    """Return a function that writes a CT slice with sequences of undefined length before its size."""

    def write(syntax: uid.UID) -> bytes:
        position = {"ImagePositionPatient": [0, 0, 5], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        pixels = PIXELS if syntax != JPEG else (PIXELS // 8 + 128).astype(np.uint8)
        data = make_dicom(pixels, "CT", uid.CTImageStorage, PixelSpacing=[0.7, 0.8], **position)
        inner, outer = Dataset(), Dataset()
        inner.CodeValue = "121320"
        outer.ReferencedSOPInstanceUID = "1.2.3"
        outer.PurposeOfReferenceCodeSequence = [inner]
        data.ReferencedImageSequence = [outer]
        for each, name in ((outer, "PurposeOfReferenceCodeSequence"), (data, "ReferencedImageSequence")):
            each[name].is_undefined_length = True
            each[name][0].is_undefined_length_sequence_item = True
        data.file_meta.TransferSyntaxUID = syntax
        buffer = BytesIO()
        if syntax == JPEG:
            Image.fromarray(pixels).save(buffer, "JPEG")
            data.PixelData = encapsulate([buffer.getvalue()])
            data["PixelData"].is_undefined_length = True
        buffer = BytesIO()
        data.save_as(buffer, implicit_vr=syntax == IMPLICIT, little_endian=True, enforce_file_format=True)
        return buffer.getvalue()

    return write


def meta_end(content: bytes) -> int:
    return 144 + int.from_bytes(content[140:144], "little")


def with_length(content: bytes, length: int) -> bytes:
    explicit = content.rfind(b"\xe0\x7f\x10\0OW")
    place = explicit + 8 if explicit >= 0 else content.rindex(b"\xe0\x7f\x10\0") + 4
    return content[:place] + struct.pack("<I", length) + content[place + 4 :]


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "outer sequence's end": lambda c: c[: (at := c.rindex(SEQUENCE_END))] + c[at + 8 :],
    "inner sequence's end": lambda c: c.replace(SEQUENCE_END, b"", 1),
    "all sequences' ends": lambda c: c.replace(SEQUENCE_END, b""),
    "outer item's end": lambda c: c[: (at := c.rindex(ITEM_END))] + c[at + 8 :],
    "all items' ends": lambda c: c.replace(ITEM_END, b""),
    "ends of the outer item and sequence": lambda c: (
        c[: (at := c.rindex(ITEM_END))] + c[at + 8 :].replace(SEQUENCE_END, b"", 1)
    ),
    "end that ends nothing": lambda c: c[: (at := c.rindex(SEQUENCE_END))] + SEQUENCE_END + c[at:],
    "pixels of length 0": lambda c: with_length(c, 0),
    "pixels of undefined length": lambda c: with_length(c, 0xFFFFFFFF),
    "pixels of half their length": lambda c: with_length(c, PIXELS.nbytes // 2),
    "zeros behind": lambda c: c + bytes(100_000),
    "anything behind": lambda c: c + os.urandom(777),
    "preamble": lambda c: c[132:],
    "meta information": lambda c: c[:132] + c[meta_end(c) :],
    "preamble and meta information": lambda c: c[meta_end(c) :],
}


def check(path: Path, expected: np.ndarray) -> None:
    image = read_image(path)
    np.testing.assert_array_equal(image.voxels()[0], expected)
    assert image.pixel_spacing == (0.7, 0.8)
    assert fault_of(path) is None
    header = read_header(path)
    assert header is not None
    assert list(header.ImagePositionPatient) == [0, 0, 5]
    assert read_origin(path)[0] == "SECRET-1"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_missing_or_too_much_changes_nothing(
    tmp_path: Path, good: Callable[[uid.UID], bytes], syntax: uid.UID, fault: str
) -> None:
    (tmp_path / "a.dcm").write_bytes(FAULTS[fault](good(syntax)))
    check(tmp_path / "a.dcm", PIXELS)


@pytest.mark.parametrize(("stated", "written"), [(EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT)])
def test_elements_written_otherwise_than_stated(
    tmp_path: Path, good: Callable[[uid.UID], bytes], stated: uid.UID, written: uid.UID
) -> None:
    head, body = good(stated), good(written)
    (tmp_path / "a.dcm").write_bytes(head[: meta_end(head)] + body[meta_end(body) :])
    check(tmp_path / "a.dcm", PIXELS)


def test_values_of_odd_length(tmp_path: Path, good: Callable[[uid.UID], bytes]) -> None:
    content = good(EXPLICIT).replace(b"\x28\0\x04\0CS\x0c\0MONOCHROME2 ", b"\x28\0\x04\0CS\x0b\0MONOCHROME2")
    assert content != good(EXPLICIT)
    (tmp_path / "a.dcm").write_bytes(content)
    check(tmp_path / "a.dcm", PIXELS)


@pytest.mark.parametrize("fault", ["the frames' end", "every sequence's end", "zeros behind"])
def test_encapsulated_frames(tmp_path: Path, good: Callable[[uid.UID], bytes], fault: str) -> None:
    content = good(JPEG)
    (tmp_path / "good.dcm").write_bytes(content)
    expected = read_image(tmp_path / "good.dcm").voxels()[0]
    end = content.rindex(SEQUENCE_END)
    made = {
        "the frames' end": content[:end],
        "every sequence's end": content.replace(SEQUENCE_END, b""),
        "zeros behind": content + bytes(100_000),
    }
    (tmp_path / "a.dcm").write_bytes(made[fault])
    check(tmp_path / "a.dcm", expected)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, JPEG], ids=["explicit", "implicit", "jpeg"])
def test_a_truncated_file_stays_refused(tmp_path: Path, good: Callable[[uid.UID], bytes], syntax: uid.UID) -> None:
    content = good(syntax)
    for made in (content, content.replace(SEQUENCE_END, b"", 1)):
        for share in (0.5, 0.8, 0.97):
            (tmp_path / "a.dcm").write_bytes(made[: int(share * len(made))])
            with pytest.raises(ImageError):
                read_image(tmp_path / "a.dcm")
            assert fault_of(tmp_path / "a.dcm") is not None


def test_nothing_is_done_to_a_good_file_or_to_what_is_none(good: Callable[[uid.UID], bytes]) -> None:
    for content in (good(EXPLICIT), good(IMPLICIT), good(JPEG), b"", b"\x08\0" * 5000, os.urandom(5000)):
        assert repaired(content) is None
