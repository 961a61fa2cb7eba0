"""Damaged and hostile files: a sentence or an image, soon, and without taking the machine's memory."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medclipsam.base.errors import ImageError
from medclipsam.imaging import dicom, read_image
from medclipsam.imaging.limits import MAX_EXTENSIONS, MAX_EXTRA, MAX_PLANE, MAX_VOXELS
from medclipsam.imaging.whole import is_whole

# pydicom has something to say about many a damaged value
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def look(path: Path) -> str | None:
    """Read and show an image; return the sentence where it is refused."""
    try:
        image = read_image(path)
        for index in {0, image.n_planes // 2, image.n_planes - 1}:
            assert image.plane(index).dtype == np.uint8
            image.valid_region(index)
        image.describe()
    except ImageError as error:
        return str(error)
    return None


# Small files that state or unpack to sizes that no machine holds


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_a_picture_that_states_too_many_pixels_is_refused_unread(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(ImageError, match=f"{MAX_PLANE}"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("shape", [(30_000, 30_000, 3), (2000, 2000, 2000), (32_767, 32_767, 32_767)])
def test_a_nifti_file_that_states_too_many_voxels_is_refused_unread(tmp_path: Path, shape: tuple[int, ...]) -> None:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(ImageError, match=f"at most {MAX_VOXELS} voxels"):
        read_image(tmp_path / "bomb.nii.gz")


def test_a_nifti_file_whose_voxels_begin_far_away_is_refused(tmp_path: Path) -> None:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2, 2, 2))
    header["vox_offset"] = 2.0**40
    (tmp_path / "far.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(ImageError, match="begin at byte 1099511627776"):
        read_image(tmp_path / "far.nii.gz")


def test_an_nrrd_file_that_states_too_many_voxels_is_refused_unread(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4000 4000 4000\nencoding: gzip\n\n"
    (tmp_path / "bomb.nrrd").write_bytes(header + gzip.compress(bytes(1000)))
    with pytest.raises(ImageError, match="4000 x 4000 x 4000"):
        read_image(tmp_path / "bomb.nrrd")


def test_a_dicom_file_that_states_too_many_pixels_is_refused_undecoded(
    tmp_path: Path, write_radiograph: Callable[[np.ndarray, Path], None]
) -> None:
    write_radiograph(np.zeros((8, 8), np.uint8), tmp_path / "small.dcm")
    data = pydicom.dcmread(tmp_path / "small.dcm")
    data.NumberOfFrames = 100_000_000
    data.save_as(tmp_path / "bomb.dcm")
    with pytest.raises(ImageError, match="100000000 x 8 x 8"):
        read_image(tmp_path / "bomb.dcm")


@pytest.fixture
def deflate(
    tmp_path: Path, write_radiograph: Callable[[np.ndarray, Path], None]
) -> Callable[[Callable[[pydicom.Dataset], None]], Path]:
    """Write a deflated file that `change` has been applied to, of 512 x 512 pixels."""

    def write(change: Callable[[pydicom.Dataset], None]) -> Path:
        write_radiograph(np.full((512, 512), 7, np.uint8), tmp_path / "plain.dcm")
        data = pydicom.dcmread(tmp_path / "plain.dcm")
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        change(data)
        data.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
        return tmp_path / "deflated.dcm"

    return write


Deflate = Callable[[Callable[[pydicom.Dataset], None]], Path]


def long_group_2(data: pydicom.Dataset) -> None:
    data.file_meta.PrivateInformationCreatorUID = "1.2.3"
    data.file_meta.PrivateInformation = bytes(5000)


@pytest.mark.parametrize("padding", [b"", b"\0", b"\0\0\0"])
@pytest.mark.parametrize("change", [lambda data: None, long_group_2])
def test_a_deflated_dicom_file_is_read_with_and_without_a_byte_of_padding(
    deflate: Deflate, change: Callable[[pydicom.Dataset], None], padding: bytes
) -> None:
    path = deflate(change)
    path.write_bytes(path.read_bytes() + padding)
    image = read_image(path)
    assert (image.voxels() == 7).all()
    assert image.plane_shape == (512, 512)
    header = dicom.read_header(path)
    assert header is not None
    assert header.Rows == 512
    assert is_whole(path)


def test_a_truncated_deflated_dicom_file_is_refused(deflate: Deflate) -> None:
    path = deflate(lambda data: None)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError):
        read_image(path)
    assert not is_whole(path)


@pytest.mark.parametrize("group_length", [None, 0, 0x7FFFFFFF])
def test_a_deflated_dicom_file_that_unpacks_to_more_than_it_states_is_refused(
    deflate: Deflate, group_length: int | None
) -> None:
    def grow(data: pydicom.Dataset) -> None:
        long_group_2(data)
        # behind the pixels
        data.add_new(0x7FE10010, "LO", "much")
        data.add_new(0x7FE11010, "OB", bytes(MAX_EXTRA + 2))

    path = deflate(grow)
    assert path.stat().st_size < 200_000
    if group_length is not None:
        content = bytearray(path.read_bytes())
        content[140:144] = struct.pack("<I", group_length)
        path.write_bytes(content)
    with pytest.raises(ImageError, match="unpacks to more than"):
        read_image(path)


# Headers that name other files


@pytest.mark.parametrize(
    "field",
    [
        "data file: {}",
        "Data File: {}",
        "datafile:{}",
        "data file: ../beside/voxels.raw",
        "data file: LIST\n{}",
        "data file: LIST\nvoxels.raw",
        "data file: %d%s%s%s%s%s 1 9 1",
        "data file: %03d.raw 1 4 1 2",
        "data file:",
        "content: x\rdata file: {}",
    ],
)
def test_an_nrrd_header_opens_no_file_but_one_beside_it(tmp_path: Path, field: str) -> None:
    beside, own = tmp_path / "beside", tmp_path / "own"
    beside.mkdir()
    own.mkdir()
    (beside / "voxels.raw").write_bytes(bytes(range(64)))
    text = (
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
        + field.format(beside / "voxels.raw")
        + "\n"
    )
    for name in ("image.nhdr", "image.nrrd"):
        (own / name).write_text(text)
        with pytest.raises(ImageError, match="keeps its voxels in"):
            read_image(own / name)


@pytest.mark.parametrize(
    "fields",
    [
        "dimension: 16\nsizes: " + "1 " * 16,
        "dimension: 3\nsizes: " + "2 " * 16,
        "dimension: 3\nsizes: 4 4 4\nspace: left-posterior-superior\nspace origin: (" + "1" * 9000 + ",0,0)",
        "dimension: 3\nsizes: 4 4 4\nspace dimension: 16\nspace origin: (" + "0," * 15 + "0)",
        "dimension: 3\nsizes: 400 400 400",
    ],
)
def test_an_nrrd_header_with_too_much_is_refused(tmp_path: Path, fields: str) -> None:
    header = f"NRRD0004\ntype: uchar\n{fields}\nencoding: raw\n\n"
    (tmp_path / "image.nrrd").write_bytes(header.encode() + bytes(64))
    with pytest.raises(ImageError):
        read_image(tmp_path / "image.nrrd")


def test_a_nifti_file_with_long_extensions_is_refused(tmp_path: Path) -> None:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2, 2, 2))
    length = MAX_EXTENSIONS + 16
    header["vox_offset"] = 352 + length
    content = header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", length, 6) + bytes(length)
    (tmp_path / "long.nii.gz").write_bytes(gzip.compress(content))
    (tmp_path / "long.nii").write_bytes(content)
    for name in ("long.nii.gz", "long.nii"):
        with pytest.raises(ImageError, match="extensions"):
            read_image(tmp_path / name)
        assert not is_whole(tmp_path / name)


def test_a_tiff_file_of_many_pages_is_refused_without_counting_them(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((2, 2), np.uint8))
    page.save(tmp_path / "one.tif")
    content = bytearray((tmp_path / "one.tif").read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    (entries,) = struct.unpack_from("<H", content, first)
    # the page behind the first is the first
    struct.pack_into("<I", content, first + 2 + 12 * entries, first)
    (tmp_path / "loop.tif").write_bytes(content)
    page.save(tmp_path / "many.tif", save_all=True, append_images=[page] * 2000)
    with pytest.raises(ImageError, match="more than one page"):
        read_image(tmp_path / "many.tif")
    assert look(tmp_path / "loop.tif") is None or "loop.tif" in str(look(tmp_path / "loop.tif"))


def test_an_nrrd_header_may_name_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(range(64)))
    text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ncontent: a/b\ndata file: voxels.raw\n"
    (tmp_path / "image.nhdr").write_text(text)
    assert read_image(tmp_path / "image.nhdr").plane(1)[0, 1, 0] == 17
