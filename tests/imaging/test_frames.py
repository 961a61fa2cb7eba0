"""Frames of DICOM and planes on display: masks in a frame's own pixels come to lie where the file has them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from pydicom import uid
from pydicom.dataset import Dataset

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_image, write_mask
from medclipsam.imaging.dicom_export import DicomNames
from medclipsam.imaging.frames import ImageFrames, decode_runs, encode_runs

MakeDicom = Callable[..., Dataset]
ORIENTATIONS = {
    "axial": ([1, 0, 0, 0, 1, 0], [0, 0, 1]),
    "axial, turned": ([0, 1, 0, 1, 0, 0], [0, 0, -1]),
    "axial, mirrored": ([-1, 0, 0, 0, -1, 0], [0, 0, 1]),
    "coronal": ([1, 0, 0, 0, 0, -1], [0, 1, 0]),
    "sagittal": ([0, 1, 0, 0, 0, -1], [1, 0, 0]),
    "sagittal, turned": ([0, 0, 1, 0, -1, 0], [-1, 0, 0]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_mask_in_the_files_own_pixels_lies_on_the_files(name: str, make_dicom: MakeDicom, tmp_path: Path) -> None:
    cosines, step = ORIENTATIONS[name]
    pixels = np.random.default_rng(3).integers(0, 1000, (4, 12, 9)).astype(np.int16)
    study, series = uid.generate_uid(), uid.generate_uid()
    folder = tmp_path / "series"
    folder.mkdir()
    files: dict[str, np.ndarray] = {}
    for k, plane in enumerate(pixels):
        data = make_dicom(
            plane,
            "MR",
            uid.MRImageStorage,
            StudyInstanceUID=study,
            SeriesInstanceUID=series,
            ImageOrientationPatient=cosines,
            ImagePositionPatient=[5.0 * k * each for each in step],
            PixelSpacing=[1.5, 0.5],
            InstanceNumber=k + 1,
            RescaleIntercept=0,
            RescaleSlope=1,
        )
        data.save_as(folder / f"{(k * 3) % 4}.dcm", enforce_file_format=True)
        files[str(data.SOPInstanceUID)] = plane
    frames = ImageFrames.of_dicom(read_image(folder))
    assert (frames.study, frames.series, frames.shape) == (study, series, (12, 9))
    assert frames.spacing is not None
    np.testing.assert_allclose(frames.spacing, (5.0, 1.5, 0.5))  # type: ignore[arg-type]

    # what a viewer draws on the files' own pixels
    sent = [
        {"plane": plane, "runs": encode_runs(files[instance] > 600)}
        for plane, (instance, _) in enumerate(frames.frames)
    ]
    mask = frames.decode(sent, "the segment")
    assert frames.encode(mask) == sent
    write_mask(mask, frames.image, tmp_path / "mask.nrrd")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, found = reader.Execute(), SimpleITK.ReadImage(tmp_path / "mask.nrrd")
    assert found.GetDirection() == pytest.approx(image.GetDirection())
    assert np.array_equal(SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(image) > 600)

    for plane, x, y in ((0, 0, 0), (2, 8, 11), (3, 4, 7)):
        ((i, j, k),) = frames.voxels([(plane, x + 0.3, y - 0.3)])
        assert image[i, j, k] == files[frames.frames[plane][0]][y, x]


CODES = ["".join(codes) for axes in itertools.permutations(("LR", "AP", "SI")) for codes in itertools.product(*axes)]


@pytest.mark.parametrize("codes", CODES)
def test_frames_that_are_made_show_the_file_in_every_order_of_axes(codes: str, tmp_path: Path) -> None:
    values = np.random.default_rng(5).integers(0, 1000, (5, 6, 7)).astype(np.int16)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) @ inv_ornt_aff(turn, values.shape)
    volume = nib.Nifti1Image(values, np.eye(4)).as_reoriented(turn)
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), affine), tmp_path / "volume.nii.gz")
    image = read_image(tmp_path / "volume.nii.gz")
    frames = DicomNames("folder", "volume").frames(image)
    assert len(set(frames.frames)) == image.n_planes

    mask = np.stack([image.values(plane) > 600 for plane in range(image.n_planes)])
    sent = frames.encode(mask)
    assert np.array_equal(frames.decode(sent, "the segment"), mask)
    write_mask(frames.decode(sent, "the segment"), image, tmp_path / "mask.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "mask.nii.gz").get_fdata() == 1, np.asarray(volume.dataobj) > 600)
    ((i, j, k),) = frames.voxels([(1, 2.0, 3.0)])
    assert np.asarray(volume.dataobj)[i, j, k] == image.values(1)[3, 2]


def test_frames_of_a_multi_frame_file_are_counted_from_one(make_dicom: MakeDicom, save_dicom: Any) -> None:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    data = make_dicom(pixels, "US", uid.UltrasoundMultiFrameImageStorage)
    frames = ImageFrames.of_dicom(read_image(save_dicom(data)))
    assert frames.frames == tuple((str(data.SOPInstanceUID), number) for number in (1, 2, 3))


def test_runs_are_those_of_a_walk_over_the_pixels() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        mask = rng.random((13, 17)) < share
        expected: list[int] = []
        inside = False
        for place, value in enumerate(mask.ravel()):
            if value and not inside:
                expected += [place, 0]
            if value:
                expected[-1] += 1
            inside = bool(value)
        assert encode_runs(mask) == expected
        assert np.array_equal(decode_runs(expected, (13, 17), "it"), mask)
    # a run may be split
    assert decode_runs([0, 2, 2, 3], (1, 6), "it").tolist() == [[True] * 5 + [False]]


@pytest.mark.parametrize(
    "runs", [None, "0,4", [0], [0, 0], [-1, 2], [4, 2, 3, 1], [95, 6], [0, 3, 2, 2], [0.0, 2], [True, 2], [0, 10**30]]
)
def test_runs_that_are_none_are_refused(runs: Any) -> None:
    with pytest.raises(InputError, match="100 pixels"):
        decode_runs(runs, (10, 10), "the lungs")


@pytest.mark.parametrize(
    "planes", [{}, [1], [{"plane": 2, "runs": []}], [{"plane": "0", "runs": []}], [{"plane": 0, "runs": []}] * 2]
)
def test_planes_that_are_none_are_refused(planes: Any, make_dicom: MakeDicom, save_dicom: Any) -> None:
    frames = ImageFrames.of_dicom(
        read_image(save_dicom(make_dicom(np.zeros((4, 4), np.uint8), "OT", uid.SecondaryCaptureImageStorage)))
    )
    with pytest.raises(InputError):
        frames.decode(planes, "the segment")
    with pytest.raises(InputError, match="outside"):
        frames.voxels([(0, 4, 0)])
