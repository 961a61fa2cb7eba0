"""Files that are all there, and files that are on their way."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from medclipsam.base.errors import ImageError
from medclipsam.imaging import read_image, read_origin
from medclipsam.imaging.whole import is_whole

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 50)).astype(np.uint8)


def write(folder: Path, name: str, radiograph: Any) -> Path:
    path = folder / name
    if name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(np.dstack([PIXELS] * 3).astype(np.int16), np.eye(4)), path)
    elif name == "packed.nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(PIXELS), path, useCompression=True)
    elif name == "raw.nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(PIXELS.astype(np.float32)), path, useCompression=False)
    elif name.startswith("dicom"):
        radiograph(PIXELS, path)
        if name == "dicom-deflated":
            data = pydicom.dcmread(path)
            data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            data.save_as(path, enforce_file_format=True)
        if name == "dicom-jpeg":
            data = pydicom.dcmread(path)
            Image.fromarray(PIXELS).save(folder / "frame.jpg")
            data.PixelData = encapsulate([(folder / "frame.jpg").read_bytes()])
            data["PixelData"].is_undefined_length = True
            data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
            data.save_as(path, enforce_file_format=True)
    else:
        Image.fromarray(PIXELS).save(path)
    return path


FORMATS = [
    *("a.nii", "a.nii.gz", "raw.nrrd", "packed.nrrd", "a.png", "a.jpg", "a.bmp", "a.tif"),
    *("dicom.dcm", "dicom", "dicom-jpeg", "dicom-deflated"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_a_complete_file_is_whole(tmp_path: Path, name: str, write_radiograph: Callable[..., None]) -> None:
    assert is_whole(write(tmp_path, name, write_radiograph))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("packed.nrrd", "a.tif")])
def test_a_part_of_a_file_is_not(
    tmp_path: Path, name: str, share: float, write_radiograph: Callable[..., None]
) -> None:
    path = write(tmp_path, name, write_radiograph)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert not is_whole(path)


def test_implicit_dicom_is_measured_too(tmp_path: Path, write_radiograph: Callable[..., None]) -> None:
    write_radiograph(PIXELS, tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    data.save_as(tmp_path / "b.dcm", implicit_vr=True)
    assert is_whole(tmp_path / "b.dcm")
    content = (tmp_path / "b.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(content[:-1])
    assert not is_whole(tmp_path / "b.dcm")


def test_more_than_the_voxels_is_no_harm(tmp_path: Path, write_radiograph: Callable[..., None]) -> None:
    path = write(tmp_path, "a.nii.gz", write_radiograph)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1000)))
    assert is_whole(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png", "a.dcm", "a.nrrd", "a.txt"])
def test_what_is_no_image_is_not_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("no image")
    assert not is_whole(tmp_path / name)
    assert not is_whole(tmp_path / "missing" / name)


BEHIND = 200_000


def test_pictures_with_data_behind_their_end_are_whole(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(PIXELS).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        before = np.asarray(read_image(tmp_path / name).plane(0))
        (tmp_path / name).write_bytes(content + bytes(BEHIND))
        assert is_whole(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name).plane(0), before)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_preview_within_a_jpeg_is_not_its_end(tmp_path: Path, progressive: bool) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 300)).astype(np.uint8)
    Image.fromarray(noise[:60, :60]).save(tmp_path / "preview.jpg")
    exif = b"Exif\0\0" + (tmp_path / "preview.jpg").read_bytes()
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif, progressive=progressive, restart_marker_rows=1)
    content = (tmp_path / "a.jpg").read_bytes()
    assert is_whole(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 2 // 3])
    assert not is_whole(tmp_path / "a.jpg")


def ge_group(data: pydicom.Dataset) -> None:
    block = data.private_block(0x7FE1, "GEMS_Ultrasound_MovieGroup_001", create=True)
    block.add_new(1, "OB", bytes(BEHIND))


def padding(data: pydicom.Dataset) -> None:
    data.DataSetTrailingPadding = bytes(BEHIND)


def signatures(data: pydicom.Dataset) -> None:
    item = pydicom.Dataset()
    item.MACIDNumber, item.Signature = 1, bytes(BEHIND)
    data.DigitalSignaturesSequence = [item]


@pytest.mark.parametrize("behind", [ge_group, padding, signatures])
@pytest.mark.parametrize("name", ["dicom.dcm", "dicom-jpeg"])
def test_elements_behind_the_pixels_are_no_harm(
    tmp_path: Path, name: str, behind: Callable[[Any], None], write_radiograph: Callable[..., None]
) -> None:
    path = write(tmp_path, name, write_radiograph)
    before = read_image(path).plane(0)
    data = pydicom.dcmread(path)
    behind(data)
    data.save_as(path, enforce_file_format=True)
    assert path.stat().st_size > BEHIND
    assert is_whole(path)
    np.testing.assert_array_equal(read_image(path).plane(0), before)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00") + 60])
    assert not is_whole(path)


def test_a_missing_delimiter_behind_all_frames_is_no_harm(
    tmp_path: Path, write_radiograph: Callable[..., None]
) -> None:
    path = write(tmp_path, "dicom-jpeg", write_radiograph)
    content = path.read_bytes()
    end = content.rindex(b"\xfe\xff\xdd\xe0")
    before = read_image(path).plane(0)
    path.write_bytes(content[:end])
    assert is_whole(path)
    np.testing.assert_array_equal(read_image(path).plane(0), before)
    path.write_bytes(content[: end - 10])
    assert not is_whole(path)


def test_the_origin_of_a_file_that_cannot_be_read_is_an_error_and_no_other_patient(
    tmp_path: Path, write_radiograph: Callable[..., None]
) -> None:
    write_radiograph(PIXELS, tmp_path / "a.dcm")
    data = pydicom.dcmread(tmp_path / "a.dcm")
    data.PatientID, data.StudyInstanceUID, data.Modality = "P1", "1.2.3", "DX"
    data.save_as(tmp_path / "a.dcm")
    assert read_origin(tmp_path / "a.dcm") == ("P1", "1.2.3", "DX")
    content = (tmp_path / "a.dcm").read_bytes()
    series = tmp_path / "series"
    series.mkdir()
    for broken in (content[: content.index(b"\x10\0\x20\0LO") - 3], content[:100], b""):
        (tmp_path / "b.dcm").write_bytes(broken)
        with pytest.raises(ImageError):
            read_origin(tmp_path / "b.dcm")
        (series / "1.dcm").write_bytes(broken)
        with pytest.raises(ImageError):
            read_origin(series)
    # one slice that can be read says it for all
    (series / "2.dcm").write_bytes(content)
    assert read_origin(series) == ("P1", "1.2.3", "DX")
    with pytest.raises(ImageError):
        read_origin(tmp_path / "gone.dcm")
    Image.fromarray(PIXELS).save(tmp_path / "c.png")
    assert read_origin(tmp_path / "c.png") == (None, None, None)
