"""Damaged and hostile files: a sentence or an image, soon, and without taking the machine's memory."""

from __future__ import annotations

import gzip
import random
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.errors import ImageError
from medclipsam.imaging import dicom, read_image
from medclipsam.imaging.volumes import MAX_PLANE, MAX_VOXELS

# pydicom has something to say about many a damaged value
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CASES = 200
SLOW_SECONDS = 20.0
MUCH_MEMORY = 2**30


def _pictures(folder: Path) -> None:
    random_values = np.random.default_rng(0)
    grey = random_values.integers(0, 255, (12, 16), dtype=np.uint8)
    colour = random_values.integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(colour).convert("P").save(folder / "palette.png")
    Image.fromarray(colour).save(folder / "colour.jpg")
    Image.fromarray(colour).save(folder / "plain.tif")
    Image.fromarray(colour).save(folder / "packed.tif", compression="tiff_lzw")
    Image.fromarray(grey).save(folder / "grey.bmp")


def _volumes(folder: Path) -> None:
    volume = sitk.GetImageFromArray(np.random.default_rng(1).integers(-99, 99, (4, 6, 5), dtype=np.int16))
    volume.SetSpacing((0.7, 0.8, 2.5))
    for name in ("plain.nii", "packed.nii.gz", "plain.nrrd"):
        sitk.WriteImage(volume, str(folder / name))
    sitk.WriteImage(volume, str(folder / "packed.nrrd"), True)
    sitk.WriteImage(volume, str(folder / "detached.nhdr"))


def _dicom_files(folder: Path, write_radiograph: Callable[[np.ndarray, Path], None]) -> None:
    import shutil

    from pydicom.data import get_testdata_file

    write_radiograph(np.random.default_rng(2).integers(0, 255, (12, 16), dtype=np.uint8), folder / "plain.dcm")
    for name in ("MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm"):
        found = get_testdata_file(name, download=False)
        assert isinstance(found, str)
        shutil.copy(found, folder / name)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, write_radiograph: Callable[[np.ndarray, Path], None]
) -> dict[str, bytes]:
    """One small file of every format, by name."""
    folder = tmp_path_factory.mktemp("whole")
    _pictures(folder)
    _volumes(folder)
    _dicom_files(folder, write_radiograph)
    for file in folder.iterdir():
        if file.suffix != ".raw" and not file.name.endswith(".raw.gz"):
            assert read_image(file).n_planes >= 1
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def resealed(content: bytes) -> bytes:
    """Return a PNG file with the checksums of its chunks put right."""
    data = bytearray(content)
    start = 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(data)


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


FORMATS = ["grey.png", "palette.png", "colour.jpg", "plain.tif", "packed.tif", "grey.bmp", "plain.nii", "packed.nii.gz"]
FORMATS += ["plain.nrrd", "packed.nrrd", "detached.nhdr", "plain.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
FORMATS += ["JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_an_image_or_a_sentence(
    whole: dict[str, bytes], damaged: Callable[[bytes, random.Random], bytes], tmp_path: Path, name: str
) -> None:
    for other, content in whole.items():
        if ".raw" in other:
            (tmp_path / other).write_bytes(content)
    chance = random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused = 0
    for _ in range(CASES):
        content = damaged(whole[name], chance)
        # checksums find most damage: it is done below them as well
        if name.endswith(".gz") and chance.random() < 0.7:
            content = gzip.compress(damaged(gzip.decompress(whole[name]), chance), 1)
        if name.endswith(".png") and chance.random() < 0.7:
            content = resealed(content)
        path = tmp_path / name
        path.write_bytes(content)
        start = time.monotonic()
        sentence = look(path)
        assert time.monotonic() - start < SLOW_SECONDS
        if sentence is not None:
            refused += 1
            assert "\n" not in sentence
            assert sentence.endswith(".")
            assert name in sentence
    assert 0 < refused < CASES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MUCH_MEMORY


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
    import pydicom

    write_radiograph(np.zeros((8, 8), np.uint8), tmp_path / "small.dcm")
    data = pydicom.dcmread(tmp_path / "small.dcm")
    data.NumberOfFrames = 100_000_000
    data.save_as(tmp_path / "bomb.dcm")
    with pytest.raises(ImageError, match="100000000 x 8 x 8"):
        read_image(tmp_path / "bomb.dcm")


def test_a_deflated_dicom_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, write_radiograph: Callable[[np.ndarray, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pydicom

    write_radiograph(np.zeros((512, 512), np.uint8), tmp_path / "plain.dcm")
    data = pydicom.dcmread(tmp_path / "plain.dcm")
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    assert (tmp_path / "deflated.dcm").stat().st_size < 4000
    assert read_image(tmp_path / "deflated.dcm").plane_shape == (512, 512)
    monkeypatch.setattr(dicom, "MAX_DEFLATED", 200_000)
    with pytest.raises(ImageError, match="unpacks to more than 200000 bytes"):
        read_image(tmp_path / "deflated.dcm")


# Headers that name other files


@pytest.mark.parametrize(
    "field",
    [
        "data file: {}",
        "Data File: {}",
        "datafile:{}",
        "data file: ../beside/voxels.raw",
        "data file: LIST\n{}",
    ],
)
def test_an_nrrd_header_opens_no_file_of_another_folder(tmp_path: Path, field: str) -> None:
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
        with pytest.raises(ImageError, match="another folder"):
            read_image(own / name)


def test_an_nrrd_header_may_name_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(range(64)))
    text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ncontent: a/b\ndata file: voxels.raw\n"
    (tmp_path / "image.nhdr").write_text(text)
    assert read_image(tmp_path / "image.nhdr").plane(1)[0, 1, 0] == 17
