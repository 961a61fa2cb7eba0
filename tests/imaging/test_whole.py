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
