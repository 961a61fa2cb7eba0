"""Headers that DICOM does not allow: each label is saved as a DICOM SEG all the same, and read back as it was."""

import io
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

from medclipsam.base.errors import ImageError, InputError
from medclipsam.demo.dicom import ct_slice
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_seg import SegmentInfo, read_segmentation, write_segmentation
from medclipsam.imaging.dicom_sources import sources_for

LIVER = SegmentInfo("Leber é", 5)
SPACING, DISTANCE = 1.5, 4.0


def _slices(count: int = 3) -> list[FileDataset]:
    made = []
    for index in range(count):
        data = ct_slice(np.full((12, 10), 40 * index, np.int16), 1, index + 1, spacing=SPACING)
        data.ImagePositionPatient = [-7.5, -9.0, DISTANCE * index]
        data.SliceThickness = 3
        made.append(data)
    return made


def _set(data: Dataset, keyword: str, value: bytes | None) -> None:
    """Put bytes into a header as they are; None removes the element."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    if value is None:
        data.pop(tag, None)
        return
    value += b" " * (len(value) % 2)
    data[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def _image(folder: Path, slices: list[FileDataset]) -> MedicalImage:
    folder.mkdir()
    for index, data in enumerate(slices):
        content = io.BytesIO()
        data.save_as(content)
        (folder / f"{(2 * index + 1) % 5}.dcm").write_bytes(content.getvalue())
    return read_image(folder)


def _files(image: MedicalImage) -> list[Path]:
    return list(image.source.iterdir()) if image.source.is_dir() else [image.source]


def _labels(image: MedicalImage) -> np.ndarray:
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[0, 2:7, 3:5] = labels[-1, 1:3, 6:9] = LIVER.label
    return labels


def _round_trip(image: MedicalImage, folder: Path) -> tuple[Dataset, list[str]]:
    """Write a label, and hold what another process reads from the files against it."""
    labels = _labels(image)
    before = {file: file.read_bytes() for file in _files(image)}
    notes: list[str] = []
    write_segmentation(labels, image, [LIVER], folder / "seg.dcm", noted=notes.append)
    again = read_image(image.source)
    assert np.array_equal(read_segmentation(folder / "seg.dcm", again, lambda segment: segment.label or 0)[0], labels)
    assert {file: file.read_bytes() for file in _files(image)} == before
    made = pydicom.dcmread(folder / "seg.dcm")
    sources = {str(pydicom.dcmread(file).SOPInstanceUID) for file in before}
    (series,) = made.ReferencedSeriesSequence
    assert {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedInstanceSequence} == sources
    for frame in made.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID in sources
    return made, notes


def _complaints(file: Path) -> set[str]:
    """Return what a validator finds wrong."""
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    found = subprocess.run([validator, str(file)], capture_output=True, text=True, check=False).stderr
    return {line for line in found.splitlines() if line.startswith("Error")}


# Element, what the file holds, what the segmentation must hold; "" and None both stand for no value.
VALUES: list[tuple[str, bytes | None, str]] = [
    ("PatientBirthDate", b"01.02.1970", "19700201"),
    ("PatientBirthDate", b"1.2.1970", "19700201"),
    ("PatientBirthDate", b"1970-01-02", "19700102"),
    ("PatientBirthDate", b"1970.01.02", "19700102"),
    ("PatientBirthDate", b"1970/01/02", "19700102"),
    ("PatientBirthDate", b"02/01/1970", ""),
    ("PatientBirthDate", b"19700000", ""),
    ("PatientBirthDate", b"19700230", ""),
    ("PatientBirthDate", b"197001", ""),
    ("PatientBirthDate", b"1970", ""),
    ("PatientBirthDate", b"0", ""),
    ("PatientBirthDate", b"ANON", ""),
    ("PatientBirthDate", b"19700102\\19700103", ""),
    ("PatientBirthDate", b"19700102\\19700102", "19700102"),
    ("PatientBirthDate", b"19700102\0", "19700102"),
    ("PatientBirthDate", None, ""),
    ("StudyDate", b"2026-01-01", "20260101"),
    ("StudyDate", b"31.01.2026", "20260131"),
    ("StudyDate", b"20260101120000.00", "20260101"),
    ("StudyDate", b"2026-01-01T12:00:00", "20260101"),
    ("StudyDate", b"today", ""),
    ("StudyDate", b"20261301", ""),
    ("StudyTime", b"240000", ""),
    ("StudyTime", b"12:30:00", "123000"),
    ("StudyTime", b"9:05", "0905"),
    ("StudyTime", b"120000.0000000", "120000.000000"),
    ("StudyTime", b"120000.", "120000"),
    ("StudyTime", b"126000", ""),
    ("StudyTime", b"120060", "120059"),
    ("StudyTime", b"noon", ""),
    ("StudyTime", b"12", "12"),
    ("PatientBirthTime", b"25:00:00", ""),
    ("PatientSex", b"f", "F"),
    ("PatientSex", b"Male", "M"),
    ("PatientSex", b"female", "F"),
    ("PatientSex", b"Other", "O"),
    ("PatientSex", b"Unknown", ""),
    ("PatientSex", b"X", ""),
    ("PatientSex", b"F\\M", ""),
    ("PatientSex", "männlich".encode(), ""),
    ("PatientAge", b"45Y", "045Y"),
    ("PatientAge", b"045y", "045Y"),
    ("PatientAge", b"45", ""),
    ("PatientAge", b"1000Y", ""),
    ("PatientAge", b"forty", ""),
    ("PatientWeight", b"70,5", "70.5"),
    ("PatientWeight", b"heavy", ""),
    ("PatientWeight", b"NaN", ""),
    ("PatientSize", b"1.8000000000000000001", "1.8"),
    ("PatientName", b"A^" + 80 * b"b", "A^" + 62 * "b"),
    ("PatientName", b"A\\B", "A/B"),
    ("PatientName", b"", ""),
    ("PatientName", None, ""),
    # a shortened identifier is another one
    ("PatientID", 80 * b"7", 80 * "7"),
    ("PatientID", b" 12 ", "12"),
    ("PatientID", None, ""),
    ("AccessionNumber", b"2026-01-01-000000000123", "2026-01-01-000000000123"),
    ("StudyID", 20 * b"8", 20 * "8"),
    ("StudyDescription", 100 * b"x", 64 * "x"),
    ("StudyDescription", b"CT\\ABDOMEN", "CT/ABDOMEN"),
    ("StudyDescription", b"line\r\nbreak", "linebreak"),
    ("ReferringPhysicianName", None, ""),
    ("ReferringPhysicianName", b"Dr\\Who", "Dr/Who"),
    ("PatientIdentityRemoved", b"no", "NO"),
    ("SeriesNumber", b"one", "300"),
    ("Laterality", b"", ""),
    ("PositionReferenceIndicator", None, ""),
    ("PositionReferenceIndicator", 80 * b"p", 64 * "p"),
]


@pytest.mark.parametrize(("keyword", "given", "expected"), VALUES)
def test_a_value_of_wrong_form_is_corrected_or_left_empty(
    keyword: str, given: bytes | None, expected: str, tmp_path: Path
) -> None:
    slices = _slices()
    plain = _image(tmp_path / "plain", slices)
    _, expected_notes = _round_trip(plain, tmp_path)
    allowed = _complaints(tmp_path / "seg.dcm")
    for data in slices:
        _set(data, keyword, given)
    image = _image(tmp_path / "image", slices)
    made, notes = _round_trip(image, tmp_path)
    assert str(made.get(keyword) or "") == expected
    if (given or b"").strip(b" \0").decode() != expected and keyword in made:
        assert any(note.startswith(keyword) for note in notes) or keyword == "SeriesNumber"
    assert expected_notes == []
    if len(expected) <= 64 and keyword not in ("AccessionNumber", "StudyID"):
        assert _complaints(tmp_path / "seg.dcm") <= allowed


# Specific Character Set, the bytes of a name, the name.
NAMES: list[tuple[bytes | None, bytes, str]] = [
    (None, b"Doe^Jane", "Doe^Jane"),
    (b"ISO_IR 100", "Müller^Änne".encode("latin-1"), "Müller^Änne"),
    (b"ISO_IR 192", "Müller^Änne".encode(), "Müller^Änne"),
    (b"", "Müller".encode("latin-1"), "Müller"),
    (b"", "Müller".encode(), "Müller"),
    (None, "Иванов".encode(), "Иванов"),
    (b"ISO_IR 144", "Иванов".encode("iso8859-5"), "Иванов"),
    (
        b"\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    (
        b"\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (b"GB18030", "王^小东".encode("gb18030"), "王^小东"),
    (b"ISO IR 100", "Müller".encode("latin-1"), "Müller"),
    (b"ISO-IR 100", "Müller".encode("latin-1"), "Müller"),
    (b"UTF-8", "Müller".encode(), "Müller"),
    (b"KLINGON", b"Doe^Jane", "Doe^Jane"),
    (b"KLINGON", "Müller".encode(), "Müller"),
    (b"KLINGON", "Müller".encode("latin-1"), ""),
]


@pytest.mark.parametrize(("charset", "raw", "name"), NAMES)
def test_names_of_any_character_set_are_taken_over(
    charset: bytes | None, raw: bytes, name: str, tmp_path: Path
) -> None:
    slices = _slices(2)
    for data in slices:
        _set(data, "SpecificCharacterSet", charset)
        _set(data, "PatientName", raw)
    made, _ = _round_trip(_image(tmp_path / "image", slices), tmp_path)
    assert str(made.PatientName) == name
    assert made.SegmentSequence[0].SegmentLabel == LIVER.name


def _set_in_all(keyword: str, value: bytes | None) -> Callable[[list[FileDataset]], None]:
    def change(slices: list[FileDataset]) -> None:
        for data in slices:
            _set(data, keyword, value)

    return change


def _tilt_a_little(slices: list[FileDataset]) -> None:
    for index, data in enumerate(slices):
        data.ImageOrientationPatient = [1, 2e-4 * index, 0, -2e-4 * index, 1, 0]


def _long_cosines(slices: list[FileDataset]) -> None:
    for data in slices:
        data.ImageOrientationPatient = [1.01, 0, 0, 0, 0.99, 0]


def _other_frames_of_reference(slices: list[FileDataset]) -> None:
    for index, data in enumerate(slices):
        data.FrameOfReferenceUID = f"1.2.3.{index + 1}"


def _padded_uids(slices: list[FileDataset]) -> None:
    for index, data in enumerate(slices):
        _set(data, "SOPInstanceUID", f"1.2.03.{index + 1}  ".encode())
        data.file_meta.MediaStorageSOPInstanceUID = f"1.2.03.{index + 1}"


def _same_instance_numbers(slices: list[FileDataset]) -> None:
    for data in slices:
        data.InstanceNumber = 1


def _odd_sop_class(slices: list[FileDataset]) -> None:
    for data in slices:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.113619.4.2"


def _uneven_distances(slices: list[FileDataset]) -> None:
    slices[-1].ImagePositionPatient = [-7.5, -9.0, DISTANCE * 2 + 0.9]


HEADERS: dict[str, Callable[[list[FileDataset]], None]] = {
    **{
        f"SliceThickness {value!r}": _set_in_all("SliceThickness", value)
        for value in (None, b"", b"0", b"-3", b"thin", b"NaN", b"9")
    },
    **{f"PixelSpacing {value!r}": _set_in_all("PixelSpacing", value) for value in (None, b"", b"0\\0")},
    **{
        f"FrameOfReferenceUID {value!r}": _set_in_all("FrameOfReferenceUID", value)
        for value in (None, b"", b"none", b"1.2.3 ")
    },
    "several frames of reference": _other_frames_of_reference,
    "orientation digits": _tilt_a_little,
    "orientation lengths": _long_cosines,
    "padded UIDs": _padded_uids,
    "one instance number": _same_instance_numbers,
    "no instance number": _set_in_all("InstanceNumber", None),
    "unknown SOP class": _odd_sop_class,
    "uneven distances": _uneven_distances,
}


@pytest.mark.parametrize(("case", "count"), itertools.product(HEADERS, (1, 3)))
def test_a_series_with_an_odd_header_gets_a_segmentation_in_its_place(case: str, count: int, tmp_path: Path) -> None:
    slices = _slices(count)
    HEADERS[case](slices)
    image = _image(tmp_path / "image", slices)
    made, _ = _round_trip(image, tmp_path)
    measures = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    stated = not case.startswith("PixelSpacing")
    expected = (SPACING, SPACING) if stated else image.grid.spacing[1::-1]
    assert list(map(float, measures.PixelSpacing)) == pytest.approx(expected)
    thickness = 9.0 if case.endswith("b'9'") else image.grid.spacing[2] if case.startswith("SliceThickness") else 3.0
    assert float(measures.SliceThickness) == pytest.approx(thickness)
    places = sorted(
        tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))
        for frame in made.PerFrameFunctionalGroupsSequence
    )
    assert places == sorted(tuple(map(float, data.ImagePositionPatient)) for data in slices)
    classes = {str(item.ReferencedSOPClassUID) for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert classes == {str(slices[0].SOPClassUID)}


def test_segmentations_of_a_series_without_frame_of_reference_share_one(tmp_path: Path) -> None:
    slices = _slices()
    _set_in_all("FrameOfReferenceUID", None)(slices)
    image = _image(tmp_path / "image", slices)
    made = [write_segmentation(_labels(image), image, [LIVER], tmp_path / f"{n}.dcm") for n in range(2)]
    assert made[0].FrameOfReferenceUID == made[1].FrameOfReferenceUID


def test_a_picture_without_a_place_gets_a_segmentation_without_one(tmp_path: Path) -> None:
    slices = _slices(1)
    for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        _set(slices[0], keyword, None)
    made, _ = _round_trip(_image(tmp_path / "image", slices), tmp_path)
    assert "FrameOfReferenceUID" not in made
    assert "PixelMeasuresSequence" not in made.SharedFunctionalGroupsSequence[0]


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_an_image_that_nothing_can_refer_to_is_refused(keyword: str, tmp_path: Path) -> None:
    slices = _slices(2)
    _set_in_all(keyword, b"")(slices)
    image = _image(tmp_path / "image", slices)
    with pytest.raises(ImageError, match="UID"):
        write_segmentation(_labels(image), image, [LIVER], tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_instances_that_share_a_uid_are_refused(tmp_path: Path) -> None:
    slices = _slices(2)
    image = _image(tmp_path / "image", slices)
    slices[1].SOPInstanceUID = slices[0].SOPInstanceUID
    with pytest.raises(ImageError, match="SOPInstanceUID"):
        sources_for(slices, image)


def test_a_segmentation_that_does_not_read_back_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = _image(tmp_path / "image", _slices())
    path = tmp_path / "seg.dcm"
    write_segmentation(_labels(image), image, [LIVER], path)
    before = path.read_bytes()
    read = "medclipsam.imaging.dicom_seg.read_segmentation"
    monkeypatch.setattr(read, lambda *_: (np.zeros_like(_labels(image)), []))
    with pytest.raises(InputError, match="differs"):
        write_segmentation(_labels(image), image, [LIVER], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
