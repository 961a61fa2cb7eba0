"""DICOM SEG as LABELMAP and FRACTIONAL, and masks that overlap, held against highdicom and dcmqi."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.seg import SegmentDescription
from pydicom import uid
from pydicom.sr.coding import Code

from medclipsam.base.errors import ImageError, InputError
from medclipsam.demo.dicom import DicomPhantom, ultrasound, volume, xray
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_seg import SegmentInfo, read_masks, read_segmentation, write_segmentation
from medclipsam.targets import TargetSet

TARGETS = TargetSet.load()
LUNG = SegmentInfo("left lung", 11, TARGETS.get("left lung").code, "AUTOMATIC", "a method", "1")
TUMOUR = SegmentInfo("breast tumour", 1, TARGETS.get("breast tumour").code)
HEART = SegmentInfo("heart", 13, TARGETS.get("heart").code)
SEGMENTS = [LUNG, TUMOUR, HEART]

MADE: dict[str, Callable[[], DicomPhantom]] = {
    "CT": lambda: volume("CT", 1, 4, size=64),
    "DX": lambda: xray("DX", 1, size=96),
    "US loop": lambda: ultrasound(1, size=96, frames=4),
}


def _image(phantom: DicomPhantom, folder: Path) -> MedicalImage:
    folder.mkdir()
    for index, content in enumerate(phantom.contents()):
        # names that do not follow the order in space
        (folder / f"{(7 * index + 3) % len(phantom.files)}.dcm").write_bytes(content)
    return read_image(folder)


@pytest.fixture(params=MADE)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> MedicalImage:
    return _image(MADE[request.param](), tmp_path / "image")


@pytest.fixture
def ct(tmp_path: Path) -> MedicalImage:
    return _image(MADE["CT"](), tmp_path / "image")


def _labels(image: MedicalImage) -> np.ndarray:
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[0, 10:30, 20:40] = 11
    labels[-1, 5:9, 3:33] = 1
    return labels


def _of_itself(segment: SegmentInfo) -> int:
    return segment.label or 0


def _dcmqi(program: str, *arguments: object) -> None:
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def test_a_labelmap_comes_back_and_names_its_segments(image: MedicalImage, tmp_path: Path) -> None:
    labels = _labels(image)
    made = write_segmentation(labels, image, SEGMENTS, tmp_path / "seg.dcm", kind="LABELMAP")
    assert made.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert made.SegmentationType == "LABELMAP"
    back, segments = read_segmentation(tmp_path / "seg.dcm", image, _of_itself)
    assert np.array_equal(back, labels)
    # the heart was looked for
    assert [(label, each.name, each.code) for label, each in segments] == [
        (each.label, each.name, each.code) for each in SEGMENTS
    ]
    masks, _ = read_masks(tmp_path / "seg.dcm", image, _of_itself)
    assert {label: mask.dtype for label, mask in masks.items()} == {11: bool, 1: bool, 13: bool}
    assert all(np.array_equal(mask, labels == label) for label, mask in masks.items())


def test_highdicom_reads_a_labelmap_where_the_image_lies(ct: MedicalImage, tmp_path: Path) -> None:
    labels = _labels(ct)
    write_segmentation(labels, ct, SEGMENTS, tmp_path / "seg.dcm", kind="LABELMAP")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    volume = read.get_volume(combine_segments=True, rescale_fractional=False)
    assert volume.array.shape[1:] == labels.shape[1:]
    # highdicom stacks from below upwards or the other way round, as positions say
    heights = [volume.map_indices_to_reference(np.array([[k, 0, 0]]))[0, 2] for k in range(len(volume.array))]
    stacked = volume.array[np.argsort(heights)]
    assert np.array_equal(np.array([0, 11, 1, 13])[stacked], labels)


def test_dcmqi_reads_a_labelmap(ct: MedicalImage, tmp_path: Path) -> None:
    labels = _labels(ct)
    write_segmentation(labels, ct, SEGMENTS, tmp_path / "seg.dcm", kind="LABELMAP")
    _dcmqi("segimage2itkimage", "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--prefix", "q")
    found = sitk.ReadImage(str(tmp_path / "q-1.nrrd"))
    assert np.array_equal(np.array([0, 11, 1, 13])[sitk.GetArrayFromImage(found)], labels)
    assert found.GetSpacing() == pytest.approx(ct.grid.spacing)
    assert found.GetOrigin() == pytest.approx(ct.grid.origin)


def test_a_labelmap_of_dcmqi_is_read(ct: MedicalImage, tmp_path: Path) -> None:
    labels = _labels(ct)
    write_segmentation(labels, ct, SEGMENTS, tmp_path / "binary.dcm")
    _dcmqi("bin2labelsegimage", "--inputDICOM", tmp_path / "binary.dcm", "--outputDICOM", tmp_path / "map.dcm")
    assert pydicom.dcmread(tmp_path / "map.dcm").SegmentationType == "LABELMAP"
    table = {"left lung": 11, "breast tumour": 1, "heart": 13}
    back, _ = read_segmentation(tmp_path / "map.dcm", ct, lambda segment: table.get(segment.name, 0))
    assert np.array_equal(back, labels)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless])
def test_labelmaps_of_any_numbers_and_syntaxes_are_read(ct: MedicalImage, tmp_path: Path, syntax: str) -> None:
    labels = _labels(ct)
    sources = sorted((pydicom.dcmread(file) for file in ct.source.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    code = Code("123", "99TEST", "anything")
    numbers = {7: "a", 300: "b"}
    made = highdicom.seg.Segmentation(
        sources,
        np.array([0, 300, *[0] * 9, 7])[ct.to_native(labels)].astype(np.uint16),
        "LABELMAP",
        [SegmentDescription(number, name, code, code, "MANUAL") for number, name in numbers.items()],
        *(uid.generate_uid(), 1, uid.generate_uid(), 1, "maker", "model", "1", "1"),
        transfer_syntax_uid=syntax,
    )
    made.save_as(tmp_path / "seg.dcm")
    back, found = read_segmentation(tmp_path / "seg.dcm", ct, lambda segment: {"a": 2, "b": 5}[segment.name])
    assert np.array_equal(back, np.array([0, 5, *[0] * 9, 2])[labels])
    assert [label for label, _ in found] == [2, 5]
    left_out, _ = read_segmentation(tmp_path / "seg.dcm", ct, lambda segment: {"a": 2, "b": 0}[segment.name])
    assert np.array_equal(left_out, 2 * (labels == 11))


def test_probabilities_come_back_to_the_nearest_step(image: MedicalImage, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (image.n_planes, *image.plane_shape)
    probabilities = {11: rng.random(shape, np.float32), 1: np.zeros(shape, np.float32)}
    probabilities[11][:, :5] = 0
    probabilities[11][:, 5:10] = 1
    made = write_segmentation(probabilities, image, SEGMENTS, tmp_path / "seg.dcm", kind="FRACTIONAL")
    assert made.SegmentationFractionalType == "PROBABILITY"
    validated = subprocess.run(["dciodvfy", str(tmp_path / "seg.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in validated.stderr, validated.stderr
    masks, segments = read_masks(tmp_path / "seg.dcm", image, _of_itself)
    assert masks[11].dtype == np.float32
    assert np.abs(masks[11] - probabilities[11]).max() <= 0.5 / 255 + 1e-6
    assert not masks[1].any()
    assert not masks[13].any()
    assert [each.name for _, each in segments] == ["left lung", "breast tumour", "heart"]
    # as a label map, what is likelier than not
    flat, _ = read_segmentation(tmp_path / "seg.dcm", image, _of_itself)
    assert np.array_equal(flat == 11, masks[11] >= 0.5)


def test_masks_that_overlap_come_back_each_whole(image: MedicalImage, tmp_path: Path) -> None:
    shape = (image.n_planes, *image.plane_shape)
    masks = {11: np.zeros(shape, bool), 1: np.zeros(shape, bool)}
    masks[11][:, 10:40, 10:40] = True
    masks[1][0, 20:50, 30:60] = True
    made = write_segmentation(masks, image, SEGMENTS, tmp_path / "seg.dcm")
    validated = subprocess.run(["dciodvfy", str(tmp_path / "seg.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in validated.stderr, validated.stderr
    assert made.SegmentsOverlap == "YES"
    found, _ = read_masks(tmp_path / "seg.dcm", image, _of_itself)
    assert all(np.array_equal(found[label], mask) for label, mask in masks.items())
    with pytest.raises(InputError, match="overlap"):
        write_segmentation(masks, image, SEGMENTS, tmp_path / "map.dcm", kind="LABELMAP")
    masks[1] &= ~masks[11]
    write_segmentation(masks, image, SEGMENTS, tmp_path / "map.dcm", kind="LABELMAP")
    flat, _ = read_segmentation(tmp_path / "map.dcm", image, _of_itself)
    assert np.array_equal(flat, 11 * masks[11].astype(np.uint8) + masks[1])


def test_bad_masks_and_kinds_are_refused_and_write_nothing(ct: MedicalImage, tmp_path: Path) -> None:
    shape = (ct.n_planes, *ct.plane_shape)
    path = tmp_path / "seg.dcm"
    with pytest.raises(InputError, match="allowed: BINARY, LABELMAP, FRACTIONAL"):
        write_segmentation(_labels(ct), ct, SEGMENTS, path, kind="SURFACE")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="probabilities"):
        write_segmentation({11: np.full(shape, 0.5, np.float32)}, ct, SEGMENTS, path)
    for value in (1.5, -0.1, np.nan):
        with pytest.raises(InputError, match="allowed: 0 to 1"):
            write_segmentation({11: np.full(shape, value, np.float32)}, ct, SEGMENTS, path, kind="FRACTIONAL")
    with pytest.raises(InputError, match="no segment is described"):
        write_segmentation({12: np.ones(shape, bool)}, ct, SEGMENTS, path)
    with pytest.raises(InputError, match="does not fit"):
        write_segmentation({11: np.ones((1, 2, 3), bool)}, ct, [LUNG], path)
    assert not path.exists()


def test_a_damaged_labelmap_is_an_error(ct: MedicalImage, tmp_path: Path) -> None:
    write_segmentation(_labels(ct), ct, SEGMENTS, tmp_path / "seg.dcm", kind="LABELMAP")
    content = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) - 60])
    with pytest.raises(ImageError):
        read_segmentation(tmp_path / "cut.dcm", ct, _of_itself)
