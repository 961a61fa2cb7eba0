"""Damaged files of every format: an image or a sentence, and bounded memory of the process that reads them."""

from __future__ import annotations

import gzip
import random
import resource
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file

from medclipsam.base.errors import ImageError
from medclipsam.imaging import read_image
from medclipsam.imaging.whole import is_whole
from medclipsam.studies.find import find_images

# A file that is not done by then has failed: the run is ended.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.timeout(3600)]

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
    whole: dict[str, bytes],
    damaged: Callable[[bytes, random.Random], bytes],
    drill_size: Callable[[str, int], int],
    note: Callable[[str, str, object], None],
    tmp_path: Path,
    name: str,
) -> None:
    for other, content in whole.items():
        if ".raw" in other:
            (tmp_path / other).write_bytes(content)
    chance = random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused = 0
    cases = -(-drill_size("files", 500) // len(FORMATS))
    for _ in range(cases):
        content = damaged(whole[name], chance)
        # checksums find most damage: it is done below them as well
        if name.endswith(".gz") and chance.random() < 0.7:
            content = gzip.compress(damaged(gzip.decompress(whole[name]), chance), 1)
        if name.endswith(".png") and chance.random() < 0.7:
            content = resealed(content)
        path = tmp_path / name
        path.write_bytes(content)
        sentence = look(path)
        is_whole(path)
        if sentence is not None:
            refused += 1
            assert "\n" not in sentence
            assert sentence.endswith(".")
            assert name in sentence
    assert len(find_images(tmp_path)) <= 3
    assert 0 < refused < cases
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert growth < MUCH_MEMORY
    note(f"damaged {name}", "read / refused / MiB more", f"{cases - refused} / {refused} / {growth // 2**20}")
