"""What a DICOM Segmentation takes from the headers of its image, in the form that DICOM requires.

Headers in practice hold values that DICOM does not allow. None of them may keep a label from being saved: highdicom is
given headers made here, with valid values only, and never those of the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.valuerep import DSfloat

from medclipsam.base.errors import ImageError
from medclipsam.imaging.dicom_geometry import functional_groups, is_slice
from medclipsam.imaging.dicom_values import ONE_LINE, PARAGRAPHS, codecs_of, corrected, decoded
from medclipsam.imaging.image import MedicalImage

# Elements of the patient and study that DICOM requires in each object, if only empty.
_TYPE_2 = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
# Further elements of the patient, the study, the equipment and the compression, taken over where they are there.
_TYPE_3 = (
    *("IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthTime"),
    *("QualityControlSubject", "OtherPatientNames", "OtherPatientIDsSequence", "EthnicGroupCodeSequence"),
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence"),
    *("BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization"),
    *("PatientComments", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID"),
    *("ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
    *("ClinicalTrialProtocolEthicsCommitteeName", "ClinicalTrialProtocolEthicsCommitteeApprovalNumber"),
    *("ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription"),
    *("IssuerOfAccessionNumberSequence", "ConsultingPhysicianName", "StudyDescription", "ProcedureCodeSequence"),
    *("PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "RequestingService"),
    *("AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize"),
    *("PatientBodyMassIndex", "PatientWeight", "MedicalAlerts", "Allergies", "Occupation", "SmokingStatus"),
    *("AdditionalPatientHistory", "LastMenstrualDate", "PatientSexNeutered", "ReasonForVisit", "AdmissionID"),
    *("ServiceEpisodeID", "ServiceEpisodeDescription", "PatientState"),
    *("Manufacturer", "ManufacturerModelName", "InstitutionName", "InstitutionAddress", "StationName"),
    *("InstitutionalDepartmentName", "DeviceSerialNumber", "SoftwareVersions"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
# PACSs match by these: one that was cut would name another patient or study, so that they are kept in full.
_IDENTIFIERS = frozenset({"PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID"})
# highdicom decides by the class what the headers must hold; these are classes of which it demands nothing else. The
# references that it makes get the true class afterwards.
_ONE_FRAME, _SEVERAL_FRAMES = uid.SecondaryCaptureImageStorage, uid.EnhancedCTImageStorage
_UTF8 = "ISO_IR 192"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
# Frames closer than this, in millimetres, are at one place.
_SAME_PLACE = 1e-3


@dataclass(frozen=True)
class Sources:
    """Headers for highdicom.

    Parameters
    ----------
    headers : list of pydicom.Dataset
        One for each slice, or one for all frames; their SOP classes are stand-ins.
    placed : bool
        Whether slices or frames have places in the patient.
    classes : dict of str to str
        The true SOP Class UID of each SOP Instance UID.
    notes : list of str
        What was corrected, left empty or assumed, a sentence each; values are not named.
    frames : tuple of int, optional
        The frames of the file, counted from 0, that the frames of its header stand for; by default all of them.
    """

    headers: list[Dataset]
    placed: bool
    classes: dict[str, str]
    notes: list[str]
    frames: tuple[int, ...] | None = None

    def complete(self, made: Dataset) -> None:
        """Set the true SOP classes and frames in all references of a segmentation that was made from the headers."""
        references = [*(made.get("SourceImageSequence") or [])]
        for series in made.get("ReferencedSeriesSequence") or []:
            references += series.get("ReferencedInstanceSequence") or []
        for frame in made.get("PerFrameFunctionalGroupsSequence") or []:
            for derivation in frame.get("DerivationImageSequence") or []:
                drawn_on = derivation.get("SourceImageSequence") or []
                references += drawn_on
                if self.frames is not None:
                    _renumber(drawn_on, self.frames)
        for reference in references:
            reference.ReferencedSOPClassUID = self.classes[str(reference.ReferencedSOPInstanceUID)]


def _renumber(references: Sequence[Dataset], frames: Sequence[int]) -> None:
    """Let references to the frames of a header name the frames of the file that these stand for."""
    for reference in references:
        numbers = np.atleast_1d(reference.get("ReferencedFrameNumber") or 1).tolist()
        reference.ReferencedFrameNumber = [frames[int(number) - 1] + 1 for number in numbers]


def sources_for(originals: Sequence[Dataset], image: MedicalImage) -> Sources:
    """Make the headers that a segmentation is written from.

    Parameters
    ----------
    originals : sequence of pydicom.Dataset
        Headers of the image's files, see `medclipsam.imaging.dicom.source_headers`; they are not changed.
    image : MedicalImage
        The image; its grid gives distances that the headers do not state.

    Raises
    ------
    ImageError
        If an instance has no UIDs of its own, so that nothing can refer to it.
    """
    first = originals[0]
    instances = [_uid(header, "SOPInstanceUID") for header in originals]
    study, series = _uid(first, "StudyInstanceUID"), _uid(first, "SeriesInstanceUID")
    if not (study and series and all(instances)):
        raise ImageError(
            f"{image.source.name} lacks a StudyInstanceUID, SeriesInstanceUID or SOPInstanceUID, so that no DICOM SEG "
            "can refer to it."
        )
    if len(set(instances)) < len(instances):
        raise ImageError(f"{image.source.name} holds files that share a SOPInstanceUID; each must have its own.")
    kinds = [_uid(header, "SOPClassUID") or str(_ONE_FRAME) for header in originals]
    classes = dict(zip(instances, kinds, strict=True))
    notes: list[str] = []
    codecs = _codecs(first)
    common = _patient_and_study(first, notes, codecs)
    indicator = _value(first, "PositionReferenceIndicator", notes, codecs) or ""
    common.StudyInstanceUID, common.SeriesInstanceUID = study, series
    common.Modality = str(first.get("Modality") or "OT")
    letters = _value(first, "PatientOrientation", [], codecs)
    common.PatientOrientation = letters if isinstance(letters, list) else []
    common.Rows, common.Columns = int(first.Rows), int(first.Columns)
    frames = int(first.get("NumberOfFrames") or 1) if image.frames is None else len(image.frames)
    if frames > 1 or image.frames is not None:
        geometry = _frames_geometry(first, image, notes)
        header = _copy(common, instances[0], _SEVERAL_FRAMES)
        header.NumberOfFrames = frames
        # highdicom takes several frames only where they have places; the caller removes made-up ones
        _add_frames(header, geometry or _made_up_geometry(frames))
        header.FrameOfReferenceUID = _frame_of_reference(first, series, notes if geometry else [])
        header.PositionReferenceIndicator = indicator
        return Sources([header], geometry is not None, classes, notes, image.frames)
    headers = [_copy(common, name, _ONE_FRAME) for name in instances]
    placed = all(is_slice(original) for original in originals)
    if placed:
        reference = _frame_of_reference(first, series, notes)
        # the digits of the slices may differ; those of the first hold for all, as in the image's own grid
        orientation = _orientation(first.ImageOrientationPatient)
        measures = _measures(first, image, len(originals) > 1, notes)
        for header, original in zip(headers, originals, strict=True):
            header.FrameOfReferenceUID, header.PositionReferenceIndicator = reference, indicator
            header.ImagePositionPatient, header.ImageOrientationPatient = (
                _numbers(original.ImagePositionPatient),
                orientation,
            )
            for keyword, value in measures.items():
                setattr(header, keyword, value)
    return Sources(headers, placed, classes, notes)


@dataclass(frozen=True)
class _Geometry:
    """Places of the frames of one file."""

    orientation: list[DSfloat]
    positions: list[list[DSfloat]]
    measures: Mapping[str, Any]


def _patient_and_study(header: Dataset, notes: list[str], codecs: list[str] | None) -> Dataset:
    common = Dataset()
    common.SpecificCharacterSet = _UTF8
    for keyword in (*_TYPE_2, *_TYPE_3):
        value = _value(header, keyword, notes, codecs)
        if value is not None and (value != "" or keyword in _TYPE_2):
            setattr(common, keyword, value)
        elif keyword in _TYPE_2:
            setattr(common, keyword, "")
    return common


def _copy(common: Dataset, instance: str, sop_class: str) -> Dataset:
    header = Dataset()
    header.update(common)
    header.SOPInstanceUID, header.SOPClassUID = instance, sop_class
    return header


def _value(header: Dataset, keyword: str, notes: list[str], codecs: list[str] | None) -> Any:
    """Return the valid value of an element: a text, a list of them, or a sequence; None where there is none."""
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in header:
        return None
    vr = dictionary_VR(tag)
    if vr == "SQ":
        return _sequence(header, keyword, notes, codecs)
    text = _raw_text(header, tag, vr, codecs)
    if text is None:
        _note(notes, keyword, kept=False)
        return None
    text = text.strip(" \0")
    if keyword in _IDENTIFIERS:
        return text
    single = dictionary_VM(tag) == "1"
    if vr in PARAGRAPHS:
        parts = [text]
    elif single and vr in ONE_LINE:
        parts = [text.replace("\\", "/")]
    else:
        parts = [part.strip(" \0") for part in text.split("\\")]
        if single:
            parts = list(dict.fromkeys(parts))
    values = [corrected(vr, part, sex=keyword == "PatientSex") for part in parts]
    if any(value is None for value in values) or (single and len(values) > 1):
        _note(notes, keyword, kept=False)
        return None
    if values != [part.strip(" \0") for part in text.split("\\")] and values != [text]:
        _note(notes, keyword, kept=True)
    return values if len(values) > 1 else values[0]


def _raw_text(header: Dataset, tag: int, vr: str, codecs: list[str] | None) -> str | None:
    """Return an element's text, its values parted by backslashes; None where it cannot be decoded."""
    element = header.get_item(tag)
    value = None if element is None else element.value
    if value is None:
        return ""
    if isinstance(value, bytes):
        return decoded(value, vr, codecs)
    return "\\".join(map(str, value)) if isinstance(value, (list, MultiValue)) else str(value)


def _sequence(header: Dataset, keyword: str, notes: list[str], codecs: list[str] | None) -> DicomSequence | None:
    """Return a sequence of items with valid values; other elements of its items are left out."""
    try:
        items = list(header[keyword].value or [])
    except Exception:
        _note(notes, keyword, kept=False)
        return None
    made = []
    for item in items:
        clean = Dataset()
        for tag in sorted(item.keys()):
            name = keyword_for_tag(tag)
            value = _value(item, name, notes, codecs) if name and name != "SpecificCharacterSet" else None
            if value is not None:
                setattr(clean, name, value)
        if len(clean):
            made.append(clean)
    return DicomSequence(made) if made else None


def _codecs(header: Dataset) -> list[str] | None:
    terms = header.get("SpecificCharacterSet") or []
    terms = [terms] if isinstance(terms, str) else list(terms)
    return codecs_of(terms) if any(terms) else []


def _note(notes: list[str], keyword: str, *, kept: bool) -> None:
    notes.append(
        f"{keyword} was corrected to the form that DICOM requires."
        if kept
        else f"{keyword} was left empty: its value is not one that DICOM allows."
    )


def _uid(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip(" \0")


def _frame_of_reference(header: Dataset, series: str, notes: list[str]) -> str:
    """Return the UID of the frame of reference; the slices of one series share one, whether it is named or not."""
    named = _uid(header, "FrameOfReferenceUID")
    if _UID.fullmatch(named) and len(named) <= 64:
        return named
    notes.append("FrameOfReferenceUID is missing in the image; one was made for its series.")
    # the same for all segmentations of the series
    return str(uid.generate_uid(entropy_srcs=[series, "frame of reference"]))


def _orientation(values: Sequence[Any]) -> list[DSfloat]:
    """Return the directions of rows and columns, of length 1."""
    numbers = np.asarray(values, dtype=float)
    lengths = np.linalg.norm(numbers.reshape(2, 3), axis=1).repeat(3)
    return _numbers(np.where(np.abs(lengths - 1) > 1e-4, numbers / np.maximum(lengths, 1e-6), numbers))


def _measures(stated: Dataset, image: MedicalImage, several: bool, notes: list[str]) -> dict[str, Any]:
    """Return pixel spacing and slice thickness; where they are not stated, those of the grid that masks lie on."""
    columns, rows, planes = image.grid.spacing
    pixel = _positive(stated, "PixelSpacing", 2)
    if pixel is None:
        notes.append(f"PixelSpacing is missing in the image; {rows:g} x {columns:g} mm were assumed.")
        pixel = [rows, columns]
    thickness = _positive(stated, "SliceThickness", 1)
    if thickness is None:
        kind = "the distance of the slices" if several else "the thickness"
        notes.append(f"SliceThickness is missing in the image; {kind}, {planes:g} mm, was taken.")
        thickness = [planes]
    return {"PixelSpacing": _numbers(pixel), "SliceThickness": _numbers(thickness)[0]}


def _positive(stated: Dataset, keyword: str, count: int) -> list[float] | None:
    try:
        numbers = [float(number) for number in np.atleast_1d(stated.get(keyword))]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(np.isfinite(n) and n > 0 for n in numbers) else None


def _numbers(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def _frames_geometry(header: Dataset, image: MedicalImage, notes: list[str]) -> _Geometry | None:
    """Return the places of a file's frames; None where they have none, or several of them share one."""
    frames = int(header.NumberOfFrames)
    groups = functional_groups(header, frames)
    if image.frames is not None:
        groups = [groups[frame] for frame in image.frames]
    positions = [group.get("PlanePositionSequence") for group in groups]
    turned = groups[0].get("PlaneOrientationSequence") if groups else None
    if not groups or not turned or not all(positions):
        return None
    places = [item[0].get("ImagePositionPatient") or () for item in positions if item]
    directions = turned[0].get("ImageOrientationPatient") or ()
    if len(directions) != 6 or any(len(place) != 3 for place in places):
        return None
    orientation = _orientation(directions)
    normal = np.cross(np.asarray(orientation[:3], float), np.asarray(orientation[3:], float))
    along = np.sort(np.asarray(places, dtype=float) @ normal)
    if len(along) > 1 and np.diff(along).min() < _SAME_PLACE:
        return None
    measures = (groups[0].get("PixelMeasuresSequence") or [Dataset()])[0]
    return _Geometry(orientation, [_numbers(place) for place in places], _measures(measures, image, True, notes))


def _made_up_geometry(frames: int) -> _Geometry:
    """Return places one behind the other, for frames that have none; highdicom sorts by falling z."""
    measures = {"PixelSpacing": _numbers((1.0, 1.0)), "SliceThickness": DSfloat(1.0, auto_format=True)}
    places = [_numbers((0.0, 0.0, -index)) for index in range(frames)]
    return _Geometry(_numbers((1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), places, measures)


def _add_frames(header: Dataset, geometry: _Geometry) -> None:
    shared, measures, turned = Dataset(), Dataset(), Dataset()
    for keyword, value in geometry.measures.items():
        setattr(measures, keyword, value)
    turned.ImageOrientationPatient = geometry.orientation
    shared.PixelMeasuresSequence = DicomSequence([measures])
    shared.PlaneOrientationSequence = DicomSequence([turned])
    header.SharedFunctionalGroupsSequence = DicomSequence([shared])
    groups = []
    for place in geometry.positions:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = place
        group.PlanePositionSequence = DicomSequence([position])
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
