"""Masks as a DICOM RT Structure Set (RTSTRUCT, DICOM PS3.3 A.19) and back.

Each structure is a set of closed polygons on the slices of the image it was drawn on. They run through the middles of
the edges between pixels inside and outside, so that a reader that fills them gets the mask back. A hole is joined to
the outline around it by a channel without width (the keyhole technique that the standard recommends), for readers that
know no holes.
"""

from __future__ import annotations

import datetime
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence

import medclipsam
from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import isolation
from medclipsam.imaging.colour import COLOURS
from medclipsam.imaging.dicom import read_data, source_headers
from medclipsam.imaging.dicom_seg import (
    MANUFACTURER,
    MODEL_NAME,
    TISSUE,
    SegmentInfo,
    add_label,
    check_same_segments,
    label_in,
    one_line,
    person_name,
)
from medclipsam.imaging.dicom_sources import Sources, sources_for
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.outlines import Outline, fill, outlines
from medclipsam.imaging.write import check_same, replace_file
from medclipsam.targets import SnomedCode, StructureCode

# Of the patient and the study, what sources_for gives; the classes of references are the true ones.
_PATIENT_AND_STUDY = (
    *(
        "SpecificCharacterSet",
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "PatientAge",
        "PatientSize",
    ),
    *("PatientWeight", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription"),
    *("ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator"),
)
# Shares of the distance between slices by which a contour may lie beside its slice, and may be tilted.
_BESIDE, _TILTED = 0.25, 0.1
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# Digits after the point of millimetres; DICOM has room for 16 characters.
_DIGITS = 4


def write_structure_set(
    labels: np.ndarray | Mapping[int, np.ndarray],
    image: MedicalImage,
    segments: Sequence[SegmentInfo],
    path: str | os.PathLike[str],
    *,
    series_description: str = "",
    creator: str = "",
) -> Dataset:
    """Write a label map, or masks that may overlap, as an RT Structure Set with one structure for each segment.

    Parameters
    ----------
    labels : ndarray of uint8, shape (n_planes, H, W), or mapping of int to ndarray of bool of that shape
        In display orientation: a label map, each value but 0 the label of one of `segments`, or masks by label.
    image : MedicalImage
        The image, read from DICOM slices or frames that have a place in the patient.
    segments : sequence of SegmentInfo
        At least one. A structure without any voxel has no contours: it was looked for and is not there.
    path : str or path-like
        The file; it appears under its name only when complete.
    series_description, creator : str
        For people; cut to the 64 characters that DICOM allows.

    Returns
    -------
    pydicom.Dataset
        What was written.

    Raises
    ------
    InputError
        If there is no segment, a label has none, the image has no place in the patient, or the file, read back, does
        not hold the masks. A file that was there before stays.
    ImageError
        If the image is not DICOM, or its headers do not allow it.
    """
    if not segments:
        raise InputError("An RT Structure Set has at least one structure; none is given.")
    masks = _masks(labels, segments)
    sources = sources_for(source_headers(image.source), image)
    if not sources.placed:
        raise InputError(
            f"{image.source.name} has no place in the patient, which an RT Structure Set needs; write a DICOM SEG."
        )
    made = _header(sources, creator, series_description)
    made.StructureSetROISequence = DicomSequence()
    made.ROIContourSequence = DicomSequence()
    made.RTROIObservationsSequence = DicomSequence()
    for number, segment in enumerate(segments, start=1):
        mask = masks.get(segment.label or 0)
        contours = [] if mask is None else _contours(image.to_native(mask), sources)
        made.StructureSetROISequence.append(_structure(number, segment, made.FrameOfReferenceUID))
        made.ROIContourSequence.append(_drawn(number, segment, contours))
        made.RTROIObservationsSequence.append(_observation(number, segment))

    def write(temporary: Path) -> None:
        made.save_as(temporary, enforce_file_format=True)
        found, described = read_structure_set(temporary, image, lambda segment: segment.label or 0)
        what = f"The RTSTRUCT of {image.source.name}"
        for label, mask in masks.items():
            check_same(found[label], mask, what)
        check_same_segments(described, [(each.label or 0, _kept(n, each)) for n, each in enumerate(segments, 1)], what)

    replace_file(Path(path), ".dcm", write)
    return made


def read_structure_set(
    path: str | os.PathLike[str], image: MedicalImage, label_of: Callable[[SegmentInfo], int]
) -> tuple[dict[int, np.ndarray], list[tuple[int, SegmentInfo]]]:
    """Read an RT Structure Set, ours or another program's, as masks of the image that it was drawn on.

    Parameters
    ----------
    path : str or path-like
        The structure set.
    image : MedicalImage
        The image, read from DICOM.
    label_of : callable
        Gives a structure its label, 1 to 255; 0 leaves it out.

    Returns
    -------
    masks : dict of int to ndarray of bool, shape (n_planes, H, W)
        By label, in display orientation: the voxels whose centres are inside. A contour within another one of the same
        structure and slice is a hole. Structures with one label are one mask.
    segments : list of (int, SegmentInfo)
        Label and description of each structure, those without contours too.

    Raises
    ------
    ImageError
        If the file is no structure set or damaged.
    InputError
        If it was drawn in another frame of reference, or a contour is not closed, or does not lie on a slice.
    """
    path = Path(path)
    try:
        frame, structures = isolation.call(_read_structures, path)
    except isolation.IsolationError as error:
        raise ImageError(f"{path.name} cannot be read as an RT Structure Set: {error}") from error
    sources = sources_for(source_headers(image.source), image)
    own = str(sources.headers[0].get("FrameOfReferenceUID", ""))
    if not sources.placed or (frame and own and frame != own):
        raise InputError(f"{path.name} was not drawn on {image.source.name}: it is in another frame of reference.")
    planes = _Planes(sources)
    shape = (len(planes.origins), *planes.shape)
    masks: dict[int, np.ndarray] = {}
    found = []
    for info, contours in structures:
        label = label_of(info)
        found.append((label, info))
        if not label:
            continue
        mask = _filled(contours, planes, shape, f"{path.name}, structure {info.name!r}")
        displayed = image.from_native(mask)
        masks[label] = masks[label] | displayed if label in masks else displayed
    return masks, found


class _Planes:
    """Where the slices or frames of an image lie: pixel indices to millimetres in the patient, and back."""

    def __init__(self, sources: Sources) -> None:
        first = sources.headers[0]
        groups: list[Any] = sources.headers
        shared = first
        if "PerFrameFunctionalGroupsSequence" in first:
            groups = [group.PlanePositionSequence[0] for group in first.PerFrameFunctionalGroupsSequence]
            shared = Dataset()
            shared.update(first.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0])
            shared.update(first.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0])
        self.shape = (int(first.Rows), int(first.Columns))
        self.origins = np.array([list(map(float, group.ImagePositionPatient)) for group in groups])
        row_mm, column_mm = map(float, shared.PixelSpacing)
        directions = np.array(list(map(float, shared.ImageOrientationPatient))).reshape(2, 3)
        # a step down the rows runs along the columns' direction
        self.steps = np.stack([directions[1] * row_mm, directions[0] * column_mm])
        self.normal = np.cross(directions[0], directions[1])
        heights = self.origins @ self.normal
        gaps = np.diff(np.sort(heights))
        self.heights = heights
        self.gap = float(gaps.min()) if gaps.size else float(shared.get("SliceThickness") or 1.0)

    def to_patient(self, ring: np.ndarray, plane: int) -> np.ndarray:
        """Return corners (row, column) on a slice as points [n, 3] in millimetres."""
        points: np.ndarray = self.origins[plane] + ring @ self.steps
        return points

    def on_plane(self, points: np.ndarray, what: str) -> tuple[int, np.ndarray]:
        """Return the slice that points [n, 3] lie on, and their (row, column)."""
        heights = points @ self.normal
        plane = int(np.abs(self.heights - heights.mean()).argmin())
        if np.ptp(heights) > 2 * _TILTED * self.gap:
            raise InputError(f"{what}: a contour runs across slices; allowed are contours on the image's own slices.")
        if abs(self.heights[plane] - heights.mean()) > _BESIDE * self.gap:
            raise InputError(
                f"{what}: a contour lies {abs(self.heights[plane] - heights.mean()):.3g} mm beside the nearest slice; "
                "allowed are contours on the image's own slices."
            )
        inverse = np.linalg.pinv(self.steps)
        return plane, (points - self.origins[plane]) @ inverse


def _masks(labels: np.ndarray | Mapping[int, np.ndarray], segments: Sequence[SegmentInfo]) -> dict[int, np.ndarray]:
    """Return the mask of each label, having checked that each is described."""
    is_map = isinstance(labels, np.ndarray)
    held = set(np.unique(labels).tolist()) - {0} if isinstance(labels, np.ndarray) else set(labels)
    stray = sorted(held - {segment.label for segment in segments})
    if stray:
        raise InputError(f"The label map holds {', '.join(map(str, stray))}, of which no structure is described.")
    return {label: (labels == label if is_map else np.asarray(labels[label]) != 0) for label in sorted(held)}


def _header(sources: Sources, creator: str, series_description: str) -> FileDataset:
    """Return all of a structure set but its structures."""
    now = datetime.datetime.now()
    first = sources.headers[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _PATIENT_AND_STUDY:
        if keyword in first:
            made[keyword] = first[keyword]
    values: dict[str, Any] = {
        **{
            "SOPClassUID": uid.RTStructureSetStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "RTSTRUCT",
        },
        **{"SeriesInstanceUID": uid.generate_uid(), "SeriesNumber": 302, "InstanceNumber": 1},
        **{"SeriesDescription": one_line(series_description) or "Structures", "OperatorsName": person_name(creator)},
        **{"Manufacturer": MANUFACTURER, "ManufacturerModelName": MODEL_NAME, "DeviceSerialNumber": "none"},
        **{"SoftwareVersions": medclipsam.__version__, "StructureSetLabel": "SEGMENTATION"},
        **{"SeriesDate": now.strftime("%Y%m%d"), "SeriesTime": now.strftime("%H%M%S")},
        **{"StructureSetDate": now.strftime("%Y%m%d"), "StructureSetTime": now.strftime("%H%M%S")},
        **{"InstanceCreationDate": now.strftime("%Y%m%d"), "InstanceCreationTime": now.strftime("%H%M%S")},
        "ApprovalStatus": "UNAPPROVED",
    }
    for keyword, value in values.items():
        setattr(made, keyword, value)
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = DicomSequence([_reference(sources, header) for header in sources.headers])
    # the class of a study component management, retired and still what this sequence wants
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", first.StudyInstanceUID
    study.RTReferencedSeriesSequence = DicomSequence([series])
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = DicomSequence([study])
    made.ReferencedFrameOfReferenceSequence = DicomSequence([frame])
    return made


def _reference(sources: Sources, header: Dataset, frame: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sources.classes[str(header.SOPInstanceUID)]
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _contours(native: np.ndarray, sources: Sources) -> list[Dataset]:
    """Return the contours of a mask in stored order, bool [k, j, i]."""
    planes = _Planes(sources)
    native = native.reshape((-1, *native.shape[-2:]))
    several = len(sources.headers) > 1
    found = []
    for plane in np.flatnonzero(native.any(axis=(1, 2))).tolist():
        frame = None
        if "NumberOfFrames" in sources.headers[0]:
            frame = 1 + (plane if sources.frames is None else sources.frames[plane])
        for outline in outlines(native[plane]):
            points = planes.to_patient(_with_channels(outline), plane)
            item = Dataset()
            item.ContourImageSequence = DicomSequence(
                [_reference(sources, sources.headers[plane if several else 0], frame)]
            )
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.ContourData = [_millimetres(value) for value in points.ravel()]
            found.append(item)
    return found


def _millimetres(value: float) -> str:
    text = f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _with_channels(outline: Outline) -> np.ndarray:
    """Return an outline and its holes as one ring: from its nearest corner to each hole, around it and back."""
    ring = _without_straight(outline.outer)
    for hole in map(_without_straight, outline.holes):
        apart = np.square(ring[:, None] - hole[None]).sum(axis=2)
        here, there = np.unravel_index(int(apart.argmin()), apart.shape)
        around = np.roll(hole, -int(there), axis=0)
        ring = np.concatenate([ring[: here + 1], around, around[:1], ring[here:]])
    return ring


def _without_straight(ring: np.ndarray) -> np.ndarray:
    """Return a ring without the corners at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[turns != 0]


def _structure(number: int, segment: SegmentInfo, frame_of_reference: str) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = frame_of_reference
    item.ROIName = _kept(number, segment).name
    item.ROIGenerationAlgorithm = segment.algorithm
    if segment.description:
        item.ROIDescription = segment.description[:1024]
    add_label(item, segment.label)
    return item


def _drawn(number: int, segment: SegmentInfo, contours: Sequence[Dataset]) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(COLOURS[((segment.label or 1) - 1) % len(COLOURS)])
    item.ReferencedROINumber = number
    if contours:
        item.ContourSequence = DicomSequence(contours)
    return item


def _observation(number: int, segment: SegmentInfo) -> Dataset:
    kind, item = Dataset(), Dataset()
    code = segment.code.type
    kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = code.value, "SCT", code.meaning
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIIdentificationCodeSequence = DicomSequence([kind])
    item.RTROIInterpretedType = item.ROIInterpreter = ""
    return item


def _kept(number: int, segment: SegmentInfo) -> SegmentInfo:
    """Return a segment with what a structure set keeps of it."""
    code = StructureCode(TISSUE.category, segment.code.type)
    return SegmentInfo(one_line(segment.name) or f"structure {number}", segment.label, code, segment.algorithm)


def _read_structures(path: Path) -> tuple[str, list[tuple[SegmentInfo, list[np.ndarray]]]]:
    """Return the frame of reference of a structure set, and each structure with its contours, points [n, 3]."""
    try:
        data = read_data(path)
        if data.get("Modality") != "RTSTRUCT":
            raise ImageError(f"{path.name} is a DICOM {data.get('Modality', 'object')}, not an RT Structure Set.")
        drawn = {int(item.ReferencedROINumber): item for item in data.get("ROIContourSequence") or []}
        codes = {
            int(item.ReferencedROINumber): SnomedCode(str(code.CodeValue), str(code.get("CodeMeaning") or ""))
            for item in data.get("RTROIObservationsSequence") or []
            for code in (item.get("RTROIIdentificationCodeSequence") or [])[:1]
            if code.get("CodingSchemeDesignator") == "SCT"
        }
        frames = set()
        found = []
        for item in data.get("StructureSetROISequence") or []:
            frames.add(str(item.get("ReferencedFrameOfReferenceUID") or ""))
            name = str(item.get("ROIName") or f"structure {item.ROINumber}")
            algorithm = str(item.get("ROIGenerationAlgorithm") or "MANUAL")
            code = StructureCode(TISSUE.category, codes.get(int(item.ROINumber), TISSUE.type))
            about = str(item.get("ROIDescription") or "")
            info = SegmentInfo(name, label_in(item), code, algorithm, description=about)
            contours = drawn.get(int(item.ROINumber), Dataset()).get("ContourSequence") or []
            found.append((info, [_points(contour, f"{path.name}, structure {name!r}") for contour in contours]))
    except (ImageError, InputError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ImageError(f"{path.name} cannot be read as an RT Structure Set: {reason}.") from error
    if not found:
        raise InputError(f"{path.name} has no structures.")
    if len(frames - {""}) > 1:
        raise InputError(f"{path.name} has structures in {len(frames)} frames of reference; allowed is one.")
    return frames.pop(), found


def _points(contour: Dataset, what: str) -> np.ndarray:
    kind = str(contour.get("ContourGeometricType") or "")
    if kind not in _CLOSED:
        raise InputError(f"{what}: a contour is {kind or 'of no type'}; allowed: {', '.join(_CLOSED)}.")
    numbers = np.array([float(value) for value in contour.get("ContourData") or []])
    if len(numbers) % 3 or not np.isfinite(numbers).all():
        raise InputError(
            f"{what}: a contour has {len(numbers)} coordinates; allowed: three finite ones for each point."
        )
    return numbers.reshape(-1, 3)


def _filled(contours: Sequence[np.ndarray], planes: _Planes, shape: tuple[int, int, int], what: str) -> np.ndarray:
    """Return the voxels [k, j, i] inside contours."""
    rings: dict[int, dict[bytes, np.ndarray]] = defaultdict(dict)
    for points in contours:
        # what has no area; some programs mark places so
        if len(points) > 2:
            plane, ring = planes.on_plane(points, what)
            # one that is there twice is no hole
            rings[plane][points.tobytes()] = ring
    mask = np.zeros(shape, bool)
    for plane, of_plane in rings.items():
        mask[plane] = fill(of_plane.values(), shape[1:])
    return mask
