"""Measurement reports: read back by highdicom, held against a validator and against the pixels of the image's files."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.sr import ComprehensiveSR
from pydicom.sr.codedict import codes
from scipy import ndimage

from medclipsam.base.errors import ImageError, InputError
from medclipsam.demo.dicom import DicomPhantom, ultrasound, volume, xray
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_seg import SegmentationKind, SegmentInfo, write_segmentation
from medclipsam.measurements import Measurements, measure
from medclipsam.measurements.report import read_report, write_report
from medclipsam.targets import TargetSet

TARGETS = TargetSet.load()
SEGMENTS = [
    SegmentInfo("left lung", 11, TARGETS.get("left lung").code, "AUTOMATIC"),
    SegmentInfo("breast tumour", 1, TARGETS.get("breast tumour").code),
    SegmentInfo("heart", 13, TARGETS.get("heart").code),
]


def _turned() -> DicomPhantom:
    """A CT whose rows run to the right and whose columns run to the front, so that display turns them."""
    made = volume("CT", 1, 4, size=64)
    for data in made.files:
        data.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    return made


def _coronal() -> DicomPhantom:
    """A CT whose rows run to the feet, so that display swaps rows and columns."""
    made = volume("CT", 1, 4, size=64)
    for index, data in enumerate(made.files):
        data.ImageOrientationPatient = [0, 0, -1, 1, 0, 0]
        data.ImagePositionPatient = [0, 10 * index, 0]
    return made


MADE: dict[str, Callable[[], DicomPhantom]] = {
    "CT": lambda: volume("CT", 1, 4, size=64),
    "turned CT": _turned,
    "coronal CT": _coronal,
    "MR": lambda: volume("MR", 1, 4, size=64),
    "DX": lambda: xray("DX", 1, size=96),
    "US loop": lambda: ultrasound(1, size=96, frames=4),
}


@pytest.fixture(params=MADE)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> MedicalImage:
    return _image(MADE[request.param](), tmp_path / "image")


def _image(phantom: DicomPhantom, folder: Path) -> MedicalImage:
    folder.mkdir()
    for index, content in enumerate(phantom.contents()):
        (folder / f"{index}.dcm").write_bytes(content)
    return read_image(folder)


def _written(
    image: MedicalImage, folder: Path, creator: str = "", kind: SegmentationKind = "BINARY"
) -> tuple[list[Measurements], pydicom.Dataset]:
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[0, 10:30, 20:28] = 11
    labels[-1, 5:9, 3:33] = labels[-1, 9:14, 3:5] = 1
    segmentation = write_segmentation(labels, image, SEGMENTS, folder / "seg.dcm", kind=kind)
    measured = [measure(labels == segment.label, image) for segment in SEGMENTS]
    write_report(measured, segmentation, image, folder / "sr.dcm", creator=creator)
    return measured, segmentation


def test_a_report_is_valid_and_states_what_was_measured(image: MedicalImage, tmp_path: Path) -> None:
    measured, segmentation = _written(image, tmp_path, creator="Jane Doe")
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    found = subprocess.run([validator, str(tmp_path / "sr.dcm")], capture_output=True, text=True, check=False).stderr
    assert "Error" not in found, found
    assert "ComprehensiveSR" in found
    report = highdicom.sr.srread(tmp_path / "sr.dcm")
    assert isinstance(report, ComprehensiveSR)
    source = pydicom.dcmread(next(image.source.iterdir()) if image.source.is_dir() else image.source)
    assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 3
    for number, (group, segment, meant) in enumerate(zip(groups, SEGMENTS, measured, strict=True), start=1):
        assert group.tracking_identifier == segment.name
        assert group.finding_type.value == segment.code.type.value
        reference = group.referenced_segment[0].ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == number
        for concept, value, unit in (
            (codes.SCT.Volume, meant.volume_mm3, "mm3"),
            (codes.SCT.Area, meant.area_mm2, "mm2"),
            (codes.SCT.LongAxis, meant.long_axis_mm, "mm"),
            (codes.SCT.ShortAxis, meant.short_axis_mm, "mm"),
        ):
            stated = group.get_measurements(name=concept)
            assert [each.value for each in stated] == ([] if value is None else [pytest.approx(value, rel=1e-8)])
            assert {each.unit.value for each in stated} <= {unit}
        attenuation = {
            each.derivation.meaning: each.value
            for each in group.get_measurements(name=codes.DCM.AttenuationCoefficient)
        }
        if image.modality == "CT" and meant.values is not None:
            assert attenuation["Mean"] == pytest.approx(meant.values.mean, rel=1e-8)
            assert attenuation["Standard Deviation"] == pytest.approx(meant.values.sd, rel=1e-8)
        else:
            assert not attenuation


def test_the_axes_are_lines_on_the_files_own_pixels(image: MedicalImage, tmp_path: Path) -> None:
    measured, _ = _written(image, tmp_path)
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    assert len(groups) == sum(found.long_axis_mm is not None for found in measured)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    for number, group in enumerate(groups, start=1):
        for line in group.get_measurements():
            (coordinates,) = line.referenced_coordinates
            ends, source = coordinates.value, coordinates.ContentSequence[0].ReferencedSOPSequence[0]
            options = {"segment_numbers": [number], "ignore_spatial_locations": True}
            instance = source.ReferencedSOPInstanceUID
            if "ReferencedFrameNumber" in source:
                pixels = seg.get_pixels_by_source_frame(
                    instance, [source.ReferencedFrameNumber], assert_missing_frames_are_empty=True, **options
                )
            else:
                pixels = seg.get_pixels_by_source_instance([instance], **options)
            # DICOM counts columns and rows from the corner of the first pixel; the ends are at edges of the mask
            near = ndimage.distance_transform_edt(pixels[0, :, :, 0] == 0)
            for column, row in ends:
                around = [near[int(row - 0.5 + dy), int(column - 0.5 + dx)] for dy in (0, 1) for dx in (0, 1)]
                assert min(around) == 0 < max(around)
            spacing = image.pixel_spacing
            assert spacing is not None
            if spacing[0] == spacing[1]:
                assert line.value == pytest.approx(np.linalg.norm(ends[1] - ends[0]) * spacing[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_our_own_reader_finds_the_same(tmp_path: Path, kind: SegmentationKind) -> None:
    image = _image(MADE["CT"](), tmp_path / "image")
    measured, segmentation = _written(image, tmp_path, kind=kind)
    found = read_report(tmp_path / "sr.dcm")
    assert [(each.name, each.segment) for each in found] == [("left lung", 1), ("breast tumour", 2), ("heart", 3)]
    assert {each.segmentation for each in found} == {str(segmentation.SOPInstanceUID)}
    assert found[0].values["118565006", ""] == pytest.approx(measured[0].volume_mm3)
    assert found[2].values == {("COMPONENTS", ""): 0, ("VOXELS", ""): 0}


def test_bad_input_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    image = _image(MADE["DX"](), tmp_path / "image")
    measured, segmentation = _written(image, tmp_path)
    with pytest.raises(InputError, match="2 measurements for 3 segments"):
        write_report(measured[:2], segmentation, image, tmp_path / "other.dcm")
    assert not (tmp_path / "other.dcm").exists()
    for file in (tmp_path / "seg.dcm", tmp_path / "sr.dcm", tmp_path / "none.dcm"):
        if file.name == "sr.dcm":
            file.write_bytes(file.read_bytes()[:900])
        with pytest.raises(ImageError, match="measurement report"):
            read_report(file)
