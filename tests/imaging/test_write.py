"""Writing masks and finding images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from medclipsam.base.errors import InputError, StorageError
from medclipsam.imaging import read_image, write_mask


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), np.int16), np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("name", "labels", "sentence"),
    [
        ("mask.mha", np.zeros((4, 5, 6), np.uint8), r"cannot be written to mask\.mha; allowed are \.nii\.gz"),
        ("mask.png", np.zeros((4, 5, 6), np.uint8), r"mask\.png cannot hold the 4 planes"),
        ("mask.nii.gz", np.zeros((4, 5, 6), np.int16), "int16 cannot be written; uint8 is allowed"),
        ("mask.nii.gz", np.zeros((4, 6, 5), np.uint8), r"allowed is \(4, 5, 6\)"),
        ("mask.nii.gz", np.zeros((5, 6), np.uint8), r"allowed is \(4, 5, 6\)"),
        ("missing/mask.nii.gz", np.zeros((4, 5, 6), np.uint8), "cannot be written: No such file"),
    ],
)
def test_masks_that_cannot_be_written_leave_nothing_behind(
    name: str, labels: np.ndarray, sentence: str, volume: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        write_mask(labels, read_image(volume), volume.parent / name)
    assert [file.name for file in volume.parent.iterdir()] == ["volume.nii.gz"]


def test_a_failed_write_keeps_the_file_that_was_there(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volume.parent / "mask.nii.gz"
    image = read_image(volume)
    write_mask(np.ones((4, 5, 6), np.uint8), image, path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        write_mask(np.zeros((4, 5, 6), np.uint8), image, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in volume.parent.iterdir()) == ["mask.nii.gz", "volume.nii.gz"]


def test_the_same_mask_gives_the_same_file(volume: Path) -> None:
    image = read_image(volume)
    for suffix in (".nii.gz", ".nrrd"):
        contents = []
        for _ in range(2):
            write_mask(np.ones((4, 5, 6), np.uint8), image, volume.parent / f"mask{suffix}")
            contents.append((volume.parent / f"mask{suffix}").read_bytes())
        assert contents[0] == contents[1]


def test_a_single_dicom_frame_can_have_a_png_mask(make_dicom, save_dicom, tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint16)
    path = save_dicom(
        make_dicom(pixels, "DX", uid.DigitalXRayImageStorageForPresentation, PatientOrientation=["R", "F"])
    )
    labels = np.zeros((1, 4, 6), np.uint8)
    labels[0, 0, 0] = 5  # display: the patient's right; stored with the right at the end of the row
    write_mask(labels, read_image(path), tmp_path / "mask.png")
    stored = np.asarray(Image.open(tmp_path / "mask.png"))
    assert stored[0, 5] == 5
    assert stored.sum() == 5
