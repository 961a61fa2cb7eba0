"""Label maps as DICOM SEG and back: every kind of image, held against highdicom's own reading and a validator."""

import io
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from highdicom.seg import SegmentDescription
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.sr.coding import Code

from medclipsam.base.errors import ImageError, InputError, MedClipSamError
from medclipsam.demo.dicom import DicomPhantom, phantom_series, projection, ultrasound, volume, xray
from medclipsam.demo.phantoms import make_phantom
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_seg import (
    Reference,
    SegmentInfo,
    is_ours,
    read_segmentation,
    superseded_instances,
    write_segmentation,
)
from medclipsam.targets import TargetSet

TARGETS = TargetSet.load()
LUNG = SegmentInfo(
    "left lung",
    11,
    TARGETS.get("left lung").code,
    "AUTOMATIC",
    "MedCLIP-SAMv2 zero-shot",
    "0.1",
    {"prompt": "the left lung"},
    "prompt: the left lung",
)
TUMOUR = SegmentInfo("breast tumour", 1, TARGETS.get("breast tumour").code, "SEMIAUTOMATIC", "a network", "2")
HEART = SegmentInfo("heart", 13, TARGETS.get("heart").code)


def _enhanced() -> DicomPhantom:
    """The CT as one enhanced multi-frame object."""
    slices = volume("CT", 1, 4, size=64).files
    for data in slices:
        data.PatientOrientation, data.FilterType, data.AcquisitionDate = "", "", "20260101"
        data.AcquisitionTime = "000000"
    made = LegacyConvertedEnhancedCTImage(
        legacy_datasets=slices,
        series_instance_uid=uid.generate_uid(entropy_srcs=["enhanced"]),
        series_number=2,
        sop_instance_uid=uid.generate_uid(entropy_srcs=["enhanced", "1"]),
        instance_number=1,
    )
    return DicomPhantom("enhanced", [made], {})


MADE: dict[str, Callable[[], DicomPhantom]] = {
    "MR": lambda: volume("MR", 1, 4, size=64),
    "CT": lambda: volume("CT", 1, 4, size=64),
    "CR": lambda: xray("CR", 1, size=96),
    "DX": lambda: xray("DX", 1, size=96),
    "MG": lambda: DicomPhantom("mg", [projection("MG", make_phantom("XR", 1, size=96).image, 1)], {}),
    "US": lambda: ultrasound(1, size=96),
    "US loop": lambda: ultrasound(1, size=96, frames=4),
    "enhanced CT": _enhanced,
}


def _image(phantom: DicomPhantom, folder: Path) -> MedicalImage:
    folder.mkdir()
    for index, content in enumerate(phantom.contents()):
        # names that do not follow the order in space
        (folder / f"{(7 * index + 3) % len(phantom.files)}.dcm").write_bytes(content)
    return read_image(folder)


def _files(image: MedicalImage) -> list[Path]:
    return list(image.source.iterdir()) if image.source.is_dir() else [image.source]


@pytest.fixture(params=MADE)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> MedicalImage:
    return _image(MADE[request.param](), tmp_path / "image")


@pytest.fixture
def film(tmp_path: Path) -> MedicalImage:
    return _image(MADE["DX"](), tmp_path / "image")


def _labels(image: MedicalImage) -> np.ndarray:
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[0, 10:30, 20:40] = LUNG.label
    labels[-1, 5:9, 3:33] = TUMOUR.label
    return labels


def _of_itself(segment: SegmentInfo) -> int:
    return segment.label or 0


def _validate(path: Path) -> None:
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    found = subprocess.run([validator, str(path)], capture_output=True, text=True, check=False).stderr
    assert "Error" not in found, found


def test_labels_come_back_and_the_file_is_valid(image: MedicalImage, tmp_path: Path) -> None:
    labels = _labels(image)
    written = write_segmentation(labels, image, [LUNG, TUMOUR, HEART], tmp_path / "seg.dcm", creator="jane")
    _validate(tmp_path / "seg.dcm")
    back, segments = read_segmentation(tmp_path / "seg.dcm", image, _of_itself)
    assert np.array_equal(back, labels)
    # the heart was looked for
    assert [(label, segment.name) for label, segment in segments] == [
        (11, "left lung"),
        (1, "breast tumour"),
        (13, "heart"),
    ]
    assert is_ours(written)
    assert written.ContentCreatorName == "jane^"


def test_frames_lie_where_the_image_lies_or_name_what_they_were_drawn_on(image: MedicalImage, tmp_path: Path) -> None:
    write_segmentation(_labels(image), image, [LUNG, TUMOUR], tmp_path / "seg.dcm")
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    sources = {str(item.SOPInstanceUID): item for item in map(pydicom.dcmread, _files(image))}
    for frame in data.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[reference.ReferencedSOPInstanceUID]
        if "ImagePositionPatient" in source:
            assert frame.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        elif "PerFrameFunctionalGroupsSequence" in source:
            place = source.PerFrameFunctionalGroupsSequence[int(reference.ReferencedFrameNumber) - 1]
            there = place.PlanePositionSequence[0].ImagePositionPatient
            assert frame.PlanePositionSequence[0].ImagePositionPatient == there
        else:
            assert "PlanePositionSequence" not in frame
            assert "FrameOfReferenceUID" not in data
            if "NumberOfFrames" in source:
                number = frame.FrameContentSequence[0].TemporalPositionIndex
                assert number == int(reference.ReferencedFrameNumber)


def _jpeg_2000(frame: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "JPEG2000")
    return content.getvalue()


@pytest.fixture
def write_encoded(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a label, as another program does, as a SEG of fractions in a transfer syntax."""

    def write(image: MedicalImage, labels: np.ndarray, syntax: str) -> Path:
        sources = [pydicom.dcmread(file) for file in _files(image)]
        sources.sort(key=lambda data: data.ImagePositionPatient[2])
        code = Code("123", "99TEST", "anything")
        described = SegmentDescription(1, "heart", code, code, "MANUAL")
        made = highdicom.seg.Segmentation(
            sources,
            image.to_native(labels).astype(np.float32),
            "FRACTIONAL",
            [described],
            *(uid.generate_uid(), 1, uid.generate_uid(), 1, "maker", "model", "1", "1"),
            transfer_syntax_uid=syntax
            if syntax in (uid.RLELossless, uid.JPEGLSLossless)
            else uid.ExplicitVRLittleEndian,
        )
        if syntax == uid.JPEG2000Lossless:
            made.PixelData = encapsulate(
                [_jpeg_2000(frame) for frame in made.pixel_array.reshape(-1, *image.plane_shape)]
            )
        made.file_meta.TransferSyntaxUID = syntax
        made.save_as(tmp_path / "encoded.dcm")
        return tmp_path / "encoded.dcm"

    return write


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.DeflatedExplicitVRLittleEndian]
)
def test_compressed_segmentations_are_read_in_another_process(
    tmp_path: Path, write_encoded: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    image = _image(MADE["MR"](), tmp_path / "image")
    labels = (_labels(image) > 0).astype(np.uint8)
    path = write_encoded(image, labels, syntax)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("parsed in this process")

    monkeypatch.setattr(highdicom.seg.Segmentation, "from_dataset", opened)
    found, segments = read_segmentation(path, image, lambda segment: 7)
    assert np.array_equal(found, 7 * labels)
    assert [segment.name for _, segment in segments] == ["heart"]


def test_damaged_compressed_segmentations_are_errors(
    tmp_path: Path, write_encoded: Callable[..., Path], damaged: Callable[[bytes, random.Random], bytes]
) -> None:
    image = _image(MADE["MR"](), tmp_path / "image")
    labels = (_labels(image) > 0).astype(np.uint8)
    data = pydicom.dcmread(write_encoded(image, labels, uid.JPEG2000Lossless))
    chance, content = random.Random(0), data.PixelData
    refused = 0
    for _ in range(10):
        data.PixelData = damaged(content, chance)
        data.save_as(tmp_path / "damaged.dcm")
        try:
            read_segmentation(tmp_path / "damaged.dcm", image, lambda segment: 7)
        except MedClipSamError:
            refused += 1
    assert refused > 2
    path = write_encoded(image, labels, uid.JPEG2000Lossless)
    assert np.array_equal(read_segmentation(path, image, lambda segment: 7)[0], 7 * labels)


def test_highdicom_reads_the_same_from_a_loop(tmp_path: Path) -> None:
    image = _image(MADE["US loop"](), tmp_path / "image")
    labels = _labels(image)
    write_segmentation(labels, image, [LUNG, TUMOUR], tmp_path / "seg.dcm")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    source = str(pydicom.dcmread(_files(image)[0]).SOPInstanceUID)
    pixels = read.get_pixels_by_source_frame(
        source, [1, 2, 3, 4], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(pixels[..., 0] > 0, labels == 11)
    assert np.array_equal(pixels[..., 1] > 0, labels == 1)


def test_an_absence_is_an_empty_frame_or_two(image: MedicalImage, tmp_path: Path) -> None:
    empty = np.zeros_like(_labels(image))
    written = write_segmentation(empty, image, [HEART], tmp_path / "seg.dcm")
    _validate(tmp_path / "seg.dcm")
    assert written.NumberOfFrames == min(image.n_planes, 2)
    back, segments = read_segmentation(tmp_path / "seg.dcm", image, _of_itself)
    assert not back.any()
    assert [segment.name for _, segment in segments] == ["heart"]


def test_what_is_said_of_a_segment_comes_back(film: MedicalImage, tmp_path: Path) -> None:
    write_segmentation(_labels(film), film, [LUNG, TUMOUR], tmp_path / "seg.dcm", series_description="a\\b\n" * 40)
    _, segments = read_segmentation(tmp_path / "seg.dcm", film, _of_itself)
    lung, tumour = (segment for _, segment in segments)
    assert (lung.algorithm, lung.algorithm_name, lung.algorithm_version) == (
        "AUTOMATIC",
        "MedCLIP-SAMv2 zero-shot",
        "0.1",
    )
    assert (lung.code, lung.description) == (LUNG.code, "prompt: the left lung")
    assert (tumour.code, tumour.algorithm) == (TUMOUR.code, "SEMIAUTOMATIC")
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    colours = [
        highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
        for item in data.SegmentSequence
    ]
    assert colours[0].to_rgb(clip=True) != colours[1].to_rgb(clip=True)
    algorithm = data.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert "prompt=the left lung" in algorithm.AlgorithmParameters
    assert len(data.SeriesDescription) <= 64
    assert "\\" not in data.SeriesDescription


def test_a_correction_names_what_it_takes_the_place_of(film: MedicalImage, tmp_path: Path) -> None:
    first = write_segmentation(_labels(film), film, [LUNG, TUMOUR], tmp_path / "1.dcm")
    earlier = Reference(str(first.SeriesInstanceUID), str(first.SOPInstanceUID))
    second = write_segmentation(_labels(film), film, [LUNG, TUMOUR], tmp_path / "2.dcm", supersedes=earlier)
    _validate(tmp_path / "2.dcm")
    assert second.SeriesInstanceUID == first.SeriesInstanceUID
    assert second.InstanceNumber == 2
    assert superseded_instances(pydicom.dcmread(tmp_path / "2.dcm")) == {first.SOPInstanceUID}
    assert superseded_instances(first) == set()


def test_a_segmentation_of_another_image_is_refused(film: MedicalImage, tmp_path: Path) -> None:
    write_segmentation(_labels(film), film, [LUNG, TUMOUR], tmp_path / "seg.dcm")
    other = _image(xray("DX", 1, size=128), tmp_path / "larger")
    with pytest.raises(InputError, match="pixels"):
        read_segmentation(tmp_path / "seg.dcm", other, _of_itself)
    data = projection("DX", make_phantom("XR", 1, size=96).image, 2)
    same_size = _image(DicomPhantom("other", [data], {}), tmp_path / "other")
    with pytest.raises(InputError, match="not drawn on"):
        read_segmentation(tmp_path / "seg.dcm", same_size, _of_itself)


def test_what_is_no_segmentation_is_refused(film: MedicalImage, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a segmentation"):
        read_segmentation(_files(film)[0], film, _of_itself)
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"x" * 50)
    with pytest.raises(ImageError, match=r"cannot be read|not a segmentation"):
        read_segmentation(tmp_path / "broken.dcm", film, _of_itself)


def test_labels_that_are_not_described_are_refused(film: MedicalImage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 1, of which"):
        write_segmentation(_labels(film), film, [LUNG], tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="at least one segment"):
        write_segmentation(_labels(film), film, [], tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm"])
def test_real_files_get_segmentations(name: str, tmp_path: Path) -> None:
    found = pydicom.data.get_testdata_file(name, download=False)
    assert found
    image = read_image(str(found))
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[-1, 3:9, 4:20] = LUNG.label
    write_segmentation(labels, image, [LUNG], tmp_path / "seg.dcm")
    _validate(tmp_path / "seg.dcm")
    assert np.array_equal(read_segmentation(tmp_path / "seg.dcm", image, _of_itself)[0], labels)


def test_all_demo_phantoms_are_images(tmp_path: Path) -> None:
    for phantom in phantom_series(1, size=64, n_planes=4):
        assert _image(phantom, tmp_path / phantom.name).n_planes == sum(
            int(file.get("NumberOfFrames", 1)) for file in phantom.files
        )
