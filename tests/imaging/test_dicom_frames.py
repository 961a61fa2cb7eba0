"""Multi-frame files whose frames form several volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from highdicom.seg import segread
from pydicom import dcmread
from pydicom.uid import generate_uid

from medclipsam.base.errors import ImageError, InputError
from medclipsam.demo.dicom import volume
from medclipsam.imaging import MedicalImage, read_image, write_mask
from medclipsam.imaging.dicom import read_frame_volumes
from medclipsam.imaging.dicom_seg import SegmentInfo, read_segmentation, write_segmentation
from medclipsam.studies.find import find_volumes

WritePhases = Callable[..., Path]
PIXELS = np.random.default_rng(0).integers(0, 4000, (2, 4, 6, 8)).astype(np.uint16)
LUNG = SegmentInfo("left lung", 11)


@pytest.fixture
def file(tmp_path: Path, write_phases: WritePhases) -> Path:
    return write_phases(PIXELS, tmp_path / "phases.dcm")


@pytest.fixture
def phases(file: Path) -> dict[str, MedicalImage]:
    return {key: read_image(folder) for key, folder in find_volumes(file).items()}


def values(image: MedicalImage) -> np.ndarray:
    return np.stack([image.values(n) for n in range(image.n_planes)])


@pytest.mark.parametrize(
    ("told_by", "keys"),
    [
        ("time", ["time1", "time2"]),
        ("b", ["b0", "b500"]),
        ("echo", ["te5", "te10"]),
        ("dimension", ["dim1", "dim2"]),
    ],
)
def test_each_phase_has_the_pixels_of_its_frames(
    tmp_path: Path, write_phases: WritePhases, told_by: str, keys: list[str]
) -> None:
    file = write_phases(PIXELS, tmp_path / "phases.dcm", told_by=told_by)
    found = find_volumes(file)
    assert list(found) == keys
    frames = dcmread(file).pixel_array
    for number, folder in enumerate(found.values()):
        image = read_image(folder)
        assert np.array_equal(values(image), frames[number::2])
        assert np.array_equal(values(image), PIXELS[number])
        assert image.modality == "MR"
        assert image.plane_spacing == pytest.approx(2.5)
        assert image.pixel_spacing == pytest.approx((0.8, 0.7))


def test_the_geometry_of_a_phase_is_that_of_a_file_with_its_frames_alone(
    tmp_path: Path, phases: dict[str, MedicalImage], write_phases: WritePhases, assert_same_grid: Any
) -> None:
    for number, image in enumerate(phases.values()):
        alone = write_phases(PIXELS[number : number + 1], tmp_path / "alone.dcm")
        mask = write_mask(np.ones((4, 6, 8), np.uint8), image, tmp_path / "mask.nii.gz")
        assert_same_grid(SimpleITK.ReadImage(str(mask)), SimpleITK.ReadImage(str(alone)))


def test_the_whole_file_is_refused_and_its_volumes_are_named(file: Path) -> None:
    with pytest.raises(ImageError, match=r"time1 \(4 frames\), time2 \(4 frames\)"):
        read_image(file)


def test_frames_against_the_normal_are_put_in_order(tmp_path: Path, file: Path) -> None:
    data = dcmread(file)
    order = [5, 0, 3, 6, 1, 7, 2, 4]
    pixels = data.pixel_array[order]
    data.PerFrameFunctionalGroupsSequence = [data.PerFrameFunctionalGroupsSequence[n] for n in order]
    data.PixelData = pixels.tobytes()
    data.save_as(tmp_path / "mixed.dcm")
    for number, folder in enumerate(find_volumes(tmp_path / "mixed.dcm").values()):
        image = read_image(folder)
        assert np.array_equal(values(image), PIXELS[number])
        assert image.grid.origin == pytest.approx((-10, 20, 5))
        assert image.grid.spacing == pytest.approx((0.7, 0.8, 2.5))


def test_time_points_at_one_position_stay_one_image(tmp_path: Path, write_phases: WritePhases) -> None:
    file = write_phases(PIXELS[:, :1], tmp_path / "loop.dcm")
    assert read_frame_volumes(file) == []
    assert np.array_equal(values(read_image(file)), PIXELS[:, 0])


def test_phases_that_highdicom_has_put_into_one_file_are_told_apart(tmp_path: Path) -> None:
    slices = []
    for phase in (1, 2):
        for data in volume("MR", 1, 4, size=32).files:
            data.SOPInstanceUID = generate_uid()
            data.PixelData = (data.pixel_array // phase).tobytes()
            data.TemporalPositionIdentifier, data.NumberOfTemporalPositions = phase, 2
            data.InstanceNumber = len(slices) + 1
            data.AcquisitionDate, data.AcquisitionTime, data.PatientOrientation = "20260101", "000000", ""
            slices.append(data)
    made = LegacyConvertedEnhancedMRImage(
        slices, series_instance_uid="1.2.3.7", series_number=2, sop_instance_uid="1.2.3.8", instance_number=1
    )
    made.save_as(tmp_path / "converted.dcm")
    found = find_volumes(tmp_path / "converted.dcm")
    assert len(found) == 2
    for number, folder in enumerate(found.values()):
        stored = [data.pixel_array for data in slices[4 * number : 4 * number + 4]]
        assert np.array_equal(read_image(folder).stored_values(), stored)


def test_labels_name_the_frames_they_were_drawn_on(file: Path, phases: dict[str, MedicalImage], tmp_path: Path) -> None:
    drawn = {}
    for number, (key, image) in enumerate(phases.items()):
        labels = np.zeros((4, 6, 8), np.uint8)
        labels[number + 1 :, 1:4, 2 + number : 6] = 11
        drawn[key] = labels
        write_segmentation(labels, image, [LUNG], tmp_path / f"{key}.dcm")
        back, _ = read_segmentation(tmp_path / f"{key}.dcm", image, lambda segment: segment.label or 0)
        assert np.array_equal(back, labels)
    source, places = dcmread(file), list(range(1, 9))
    for number, key in enumerate(phases):
        options = {"assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
        pixels = segread(tmp_path / f"{key}.dcm").get_pixels_by_source_frame(source.SOPInstanceUID, places, **options)
        assert np.array_equal(pixels[number::2, ..., 0] * 11, drawn[key])
        assert not pixels[1 - number :: 2].any()
        for frame in dcmread(tmp_path / f"{key}.dcm").PerFrameFunctionalGroupsSequence:
            (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
            there = source.PerFrameFunctionalGroupsSequence[int(reference.ReferencedFrameNumber) - 1]
            place = there.PlanePositionSequence[0].ImagePositionPatient
            assert frame.PlanePositionSequence[0].ImagePositionPatient == place
            assert reference.ReferencedSOPClassUID == source.SOPClassUID


def test_the_label_of_one_phase_is_none_of_another(phases: dict[str, MedicalImage], tmp_path: Path) -> None:
    one, other = phases.values()
    write_segmentation(np.full((4, 6, 8), 11, np.uint8), one, [LUNG], tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="drawn on"):
        read_segmentation(tmp_path / "seg.dcm", other, lambda segment: 11)


def test_planes_of_a_localizer_are_images_of_their_own(file: Path, tmp_path: Path) -> None:
    data = dcmread(file)
    stored = data.pixel_array[:3]
    turned = ([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1])
    groups = data.PerFrameFunctionalGroupsSequence[:3]
    shared = data.SharedFunctionalGroupsSequence[0]
    for group, orientation in zip(groups, turned, strict=True):
        plane = dcmread(file).SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        plane[0].ImageOrientationPatient = orientation
        group.PlaneOrientationSequence = plane
    del shared.PlaneOrientationSequence
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames, data.PixelData = groups, 3, stored.tobytes()
    data.save_as(tmp_path / "scout.dcm")
    found = find_volumes(tmp_path / "scout.dcm")
    assert set(found) == {"axial", "coronal", "sagittal"}
    for key, frame in (("axial", 0), ("sagittal", 1), ("coronal", 2)):
        image = read_image(found[key])
        assert np.array_equal(image.stored_values()[0], stored[frame])
        labels = np.ones((image.n_planes, *image.plane_shape), np.uint8)
        written = write_segmentation(labels, image, [SegmentInfo("scout", 1)], tmp_path / "seg.dcm")
        back, _ = read_segmentation(tmp_path / "seg.dcm", image, lambda segment: 1)
        assert np.array_equal(back, labels)
        reference = written.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedFrameNumber == frame + 1
