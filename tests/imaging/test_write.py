"""Writing masks and finding images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from medclipsam.errors import ImageError, InputError
from medclipsam.imaging import find_images, read_image, write_mask


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
    with pytest.raises(InputError, match="No space left on device"):
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


def test_find_images_counts_a_series_folder_once(make_dicom, tmp_path: Path) -> None:
    def save(name: str, modality: str, sop_class: str, **elements: object) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_dicom(np.zeros((4, 6), np.uint16), modality, sop_class, **elements).save_as(path, enforce_file_format=True)

    for n in range(3):
        save(
            f"patient/ct/IM{n}", "CT", uid.CTImageStorage, SeriesInstanceUID="1.2.3",
            ImagePositionPatient=[0, 0, n], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )  # fmt: skip
        save(f"xrays/{n}", "DX", uid.DigitalXRayImageStorageForPresentation, SeriesInstanceUID="1.2.4")
    save("xrays/report", "SR", uid.BasicTextSRStorage)
    save("single/slice.dcm", "MR", uid.MRImageStorage, ImagePositionPatient=[0, 0, 0],
         ImageOrientationPatient=[1, 0, 0, 0, 1, 0])  # fmt: skip
    Image.new("L", (3, 3)).save(tmp_path / "b.png")
    Image.new("L", (3, 3)).save(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "fake.dcm").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / ".hidden" / "x.png")
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "patient/ct", "single/slice.dcm", "xrays/0", "xrays/1", "xrays/2"]
    assert [read_image(tmp_path / name).n_planes for name in found] == [1, 1, 3, 1, 1, 1, 1]


def test_a_folder_itself_can_be_the_series(make_dicom, tmp_path: Path) -> None:
    for n in range(2):
        data = make_dicom(
            np.zeros((4, 6), np.uint16), "CT", uid.CTImageStorage, SeriesInstanceUID="1.2.3",
            ImagePositionPatient=[0, 0, n], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )  # fmt: skip
        data.save_as(tmp_path / str(n), enforce_file_format=True)
    assert find_images(tmp_path) == [tmp_path]


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []
    with pytest.raises(ImageError, match="is not a folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(ImageError, match="folder without DICOM files"):
        read_image(tmp_path)


def test_a_volume_mixed_with_other_series_is_listed_and_its_series_are_named(make_dicom, tmp_path: Path) -> None:
    for n in range(3):
        data = make_dicom(
            np.zeros((4, 6), np.uint16),
            "CT",
            uid.CTImageStorage,
            SeriesInstanceUID="1.2.3" if n < 2 else "1.2.9",
            ImagePositionPatient=[0, 0, n],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )
        data.save_as(tmp_path / str(n), enforce_file_format=True)
    assert find_images(tmp_path) == [tmp_path, tmp_path / "2"]
    with pytest.raises(ImageError, match=r"2 DICOM series.*1\.2\.3 \(2 files\), 1\.2\.9 \(1 files\)"):
        read_image(tmp_path)
    assert read_image(tmp_path / "2").n_planes == 1
