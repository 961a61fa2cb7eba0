"""Other formats as DICOM: valid for dciodvfy, and with the values and places that SimpleITK reads from the original."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom import uid

from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_export import DicomNames, write_dicom

NAMES = DicomNames("folder", "Größe^1")
RNG = np.random.default_rng(7)
OBLIQUE = np.array([[0.0, 0.0, 3.0, 4.0], [0.96, 0.28, 0.0, -2.0], [-0.28, 0.96, 0.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
PLACE = np.diag([-1.5, 1.2, 5.0, 1.0])


def _volume(values: np.ndarray, affine: np.ndarray | None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        nib.save(nib.Nifti1Image(values, affine), folder / "image.nii.gz")
        return folder / "image.nii.gz"

    return write


def _picture(values: np.ndarray, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        Image.fromarray(values).save(folder / name)
        return folder / name

    return write


def _nrrd(values: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = SimpleITK.GetImageFromArray(values)
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetOrigin((-10.0, 3.0, 40.0))
        SimpleITK.WriteImage(image, folder / "image.nrrd")
        return folder / "image.nrrd"

    return write


def _ct() -> np.ndarray:
    values = RNG.integers(-1000, 1500, (14, 12, 5)).astype(np.int16)
    values[:7] = -1000
    return values


def _whole(kind: type, most: int) -> np.ndarray:
    return RNG.integers(0, most, (14, 12, 5)).astype(kind)


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
COLOURS = RNG.integers(0, 255, (14, 12, 5, 3)).astype(np.uint8)
# name: how it is written, its modality, its SOP class, number of files
KINDS: dict[str, tuple[Callable[[Path], Path], str | None, str, int]] = {
    "CT": (_volume(_ct(), PLACE), None, uid.CTImageStorage, 5),
    "CT, oblique": (_volume(_ct(), OBLIQUE), None, uid.CTImageStorage, 5),
    "MR": (_volume(_whole(np.uint16, 4000), OBLIQUE), "MR", uid.MRImageStorage, 5),
    "MR, fractions": (_volume(RNG.random((14, 12, 5)).astype(np.float32), PLACE), "MR", uid.MRImageStorage, 5),
    "unknown": (_volume(_whole(np.int16, 4000), PLACE), None, uid.SecondaryCaptureImageStorage, 5),
    "NRRD": (_nrrd(_whole(np.int16, 900)), None, uid.SecondaryCaptureImageStorage, 14),
    "8 bits": (_volume(_whole(np.uint8, 255), PLACE), None, uid.SecondaryCaptureImageStorage, 5),
    "colours": (_volume(COLOURS.copy().view(RGB)[..., 0], PLACE), None, uid.SecondaryCaptureImageStorage, 5),
    "no place": (
        _volume(_whole(np.int16, 4000), None),
        None,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        1,
    ),
    "no place, 8 bits": (
        _volume(_whole(np.uint8, 255), None),
        None,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        1,
    ),
    "no place, colours": (
        _volume(COLOURS.copy().view(RGB)[..., 0], None),
        None,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
        1,
    ),
    "PNG": (_picture(COLOURS[:, :, 0], "a.png"), None, uid.SecondaryCaptureImageStorage, 1),
    "JPEG": (_picture(COLOURS[:, :, 0, 0].copy(), "a.jpg"), "US", uid.SecondaryCaptureImageStorage, 1),
    "TIFF, 16 bits": (
        _picture(_whole(np.uint16, 65535)[:, :, 0].copy(), "a.tiff"),
        None,
        uid.SecondaryCaptureImageStorage,
        1,
    ),
}


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, MedicalImage, list[Path]]:
    write, modality, _, _ = KINDS[request.param]
    folder = tmp_path / "dicom"
    folder.mkdir()
    image = read_image(write(tmp_path), modality=modality)
    return request.param, image, write_dicom(image, NAMES, folder)


def test_files_are_valid_and_have_the_class_of_what_they_hold(made: tuple[str, MedicalImage, list[Path]]) -> None:
    name, image, files = made
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    for file in (files[0], files[-1]):
        found = subprocess.run([validator, "-new", str(file)], capture_output=True, text=True, check=False).stderr
        assert "Error" not in found, found
    headers = [pydicom.dcmread(file) for file in files]
    assert {header.SOPClassUID for header in headers} == {KINDS[name][2]}
    assert len(files) == KINDS[name][3]
    frames = NAMES.frames(image)
    shown = [
        (str(header.SOPInstanceUID), n + 1) for header in headers for n in range(int(header.get("NumberOfFrames", 1)))
    ]
    assert list(frames.frames) == shown
    assert {(header.StudyInstanceUID, header.SeriesInstanceUID) for header in headers} == {
        (frames.study, frames.series)
    }
    assert {str(header.PatientID) for header in headers} == {"Größe^1"}


def test_frames_have_the_pixels_of_the_display_planes(made: tuple[str, MedicalImage, list[Path]]) -> None:
    _, image, files = made
    headers = [pydicom.dcmread(file) for file in files]
    pixels = np.concatenate(
        [
            header.pixel_array.reshape(-1, *header.pixel_array.shape[-3 if image.is_colour else -2 :])
            for header in headers
        ]
    )
    slope, intercept = float(headers[0].get("RescaleSlope", 1)), float(headers[0].get("RescaleIntercept", 0))
    scaled = "RescaleSlope" in headers[0] and slope != 1
    for plane in range(image.n_planes):
        if image.is_colour:
            assert np.array_equal(pixels[plane], image.plane(plane))
        elif image.has_units and scaled:
            np.testing.assert_allclose(pixels[plane] * slope + intercept, image.values(plane), atol=slope)
        elif image.has_units:
            assert np.array_equal(pixels[plane] + intercept, image.values(plane))
        else:
            assert np.array_equal(pixels[plane], image.plane(plane)[..., 0])


@pytest.mark.parametrize("name", ["CT", "CT, oblique", "MR", "unknown", "NRRD"])
def test_voxels_are_where_the_original_has_them(name: str, tmp_path: Path) -> None:
    write, modality, _, _ = KINDS[name]
    original = write(tmp_path)
    folder = tmp_path / "dicom"
    folder.mkdir()
    write_dicom(read_image(original, modality=modality), NAMES, folder)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs, ours = SimpleITK.ReadImage(original), reader.Execute()
    assert sorted(theirs.GetSize()) == sorted(ours.GetSize())
    for index in np.ndindex(*theirs.GetSize()):
        place = ours.TransformPhysicalPointToContinuousIndex(theirs.TransformIndexToPhysicalPoint(index))
        nearest = [round(each) for each in place]
        np.testing.assert_allclose(place, nearest, atol=0.01)
        assert ours[nearest] == theirs[index]


def test_the_same_image_has_the_same_names_and_others_have_others() -> None:
    again = DicomNames("folder", "Größe^1")
    assert (again.study, again.series, again.instance(3)) == (NAMES.study, NAMES.series, NAMES.instance(3))
    others = [NAMES.study, NAMES.series, NAMES.instance(0), NAMES.instance(1)]
    others += [DicomNames("folder", "b").study, DicomNames("other", "Größe^1").study]
    assert len(set(others)) == len(others)
    assert all(uid.UID(each).is_valid for each in others)


def test_the_window_is_the_one_that_planes_are_shown_through(tmp_path: Path) -> None:
    image = read_image(KINDS["MR"][0](tmp_path), modality="MR")
    folder = tmp_path / "dicom"
    folder.mkdir()
    data = pydicom.dcmread(write_dicom(image, NAMES, folder)[2])
    low = float(data.WindowCenter) - float(data.WindowWidth) / 2
    shown = np.clip((data.pixel_array - low) / float(data.WindowWidth), 0, 1) * 255
    assert np.abs(shown - image.plane(2)[..., 0]).max() <= 1.5
