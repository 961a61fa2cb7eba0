"""Label maps as DICOM Segmentation objects (DICOM PS3.3 A.51) and back, by highdicom.

A segmentation of slices or frames that have a place in the patient carries that place. Where there is none (CR, DX, MG,
US, loops) each frame of it names the frame that it was drawn on, which PS3.3 A.51.5 allows in place of a geometry.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

import medclipsam
from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import isolation
from medclipsam.imaging.colour import COLOURS
from medclipsam.imaging.dicom import has_short_header, read_data, read_tags, source_headers
from medclipsam.imaging.dicom_sources import sources_for
from medclipsam.imaging.frames import ImageFrames
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.label_map import LabelMap
from medclipsam.imaging.limits import allow_voxels
from medclipsam.imaging.masks import flatten
from medclipsam.imaging.write import check_same, replace_file
from medclipsam.targets import SnomedCode, StructureCode

if TYPE_CHECKING:
    from highdicom import PlanePositionSequence
    from highdicom.seg import Segmentation, SegmentDescription

# BINARY has a frame of bits for each segment and plane, FRACTIONAL one of probabilities; LABELMAP (DICOM Supplement
# 243) has one frame of segment numbers for each plane.
SegmentationKind = Literal["BINARY", "LABELMAP", "FRACTIONAL"]
SEGMENTATION_KINDS: tuple[str, ...] = get_args(SegmentationKind)

MANUFACTURER = "medclipsam"
MODEL_NAME = "MedCLIP-SAM for MONAI Label"

# What a segment is taken for about which nothing is known.
TISSUE = StructureCode(SnomedCode("85756007", "Tissue"), SnomedCode("85756007", "Tissue"))

# The private block that keeps a segment's number in label maps, and its only element.
_PRIVATE_GROUP, _PRIVATE_CREATOR, _LABEL_ELEMENT = 0x0071, "MEDCLIPSAM SEGMENT", 0x01
# DICOM has no code for it.
_SUPERSEDED = ("SUPERSEDED", "99MEDCLIPSAM", "Superseded segmentation")
_LONGEST_LO = 64
# The value of a FRACTIONAL segmentation that means 1.
_WHOLE = 255


@dataclass(frozen=True)
class SegmentInfo:
    """What is said of one segment.

    Parameters
    ----------
    name : str
        Its label in words.
    label : int or None
        Its number in label maps; None where a segmentation read from elsewhere does not say it.
    code : StructureCode
        What it is.
    algorithm : {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}
        Computed, computed and then mended by a person, or drawn by a person.
    algorithm_name, algorithm_version : str
        Of what computed it; not used for MANUAL.
    parameters : dict of str to str
        What it was computed with: the prompt, the weights.
    description : str
        For people.
    """

    name: str
    label: int | None
    code: StructureCode = TISSUE
    algorithm: str = "MANUAL"
    algorithm_name: str = ""
    algorithm_version: str = ""
    parameters: dict[str, str] = field(default_factory=dict, hash=False)
    description: str = ""


@dataclass(frozen=True)
class Reference:
    """A segmentation that lies in the PACS."""

    series: str
    instance: str
    number: int = 1
    sop_class: str = str(uid.SegmentationStorage)


def write_segmentation(
    labels: np.ndarray | Mapping[int, np.ndarray],
    image: MedicalImage,
    segments: Sequence[SegmentInfo],
    path: str | os.PathLike[str],
    *,
    kind: SegmentationKind = "BINARY",
    series_description: str = "",
    content_description: str = "",
    creator: str = "",
    supersedes: Reference | Sequence[Reference] = (),
    identity: str = "",
    noted: Callable[[str], None] | None = None,
) -> Dataset:
    """Write a label map, or masks that may overlap, as a DICOM SEG with one segment for each structure.

    Parameters
    ----------
    labels : ndarray of uint8, shape (n_planes, H, W), or mapping of int to ndarray of that shape
        In display orientation. A label map: each value but 0 is the label of one of `segments`. Or by label, masks of
        bool, which may overlap; or probabilities, floats in [0, 1], for FRACTIONAL.
    image : MedicalImage
        The image, read from DICOM.
    segments : sequence of SegmentInfo
        At least one. A segment of which the label map holds nothing is described all the same: it was looked for and
        is not there. Where that holds for all of them, frames in the middle are written, and are empty.
    path : str or path-like
        The file; it appears under its name only when complete.
    kind : {"BINARY", "LABELMAP", "FRACTIONAL"}
        BINARY is read by most programs. LABELMAP is far smaller (it is compressed by RLE), and cannot hold masks that
        overlap. FRACTIONAL holds probabilities in steps of 1/255.
    series_description, content_description, creator : str
        For people; cut to the 64 characters that DICOM allows.
    supersedes : Reference or sequence of Reference
        The segmentations that this one takes the place of. The new one joins the series of the first.
    identity : str
        What the UIDs are made from, so that the same segmentation written again has the same ones; random by default.
    noted : callable, optional
        Called with a sentence for each element of the image's headers that was corrected, left empty or assumed, since
        its value is not one that DICOM allows. The sentences hold no values.

    Returns
    -------
    pydicom.Dataset
        What was written.

    Raises
    ------
    InputError
        If there is no segment, a label has none, the image is not DICOM, the kind cannot hold the masks, or the file,
        read back, does not hold them. A file that was there before stays.
    ImageError
        If its headers do not allow it, or the file cannot be read back.
    """
    from highdicom.seg import Segmentation

    if not segments:
        raise InputError("A DICOM SEG describes at least one segment; none is given.")
    originals = source_headers(image.source)
    earlier = (supersedes,) if isinstance(supersedes, Reference) else tuple(supersedes)
    pixels = _pixels(labels, image, segments, kind)
    first, end = _extent(pixels)
    given: dict[str, Any] = {"omit_empty_frames": False}
    now = datetime.datetime.now()
    try:
        with warnings.catch_warnings():
            # empty segmentations and long names are meant
            warnings.simplefilter("ignore")
            sources = sources_for(originals, image)
            if len(pixels) > 1:
                given["plane_positions"] = [_position(sources.headers, index) for index in range(first, end)]
                # the frames of a loop are found by their numbers, and need no neighbours
                given["omit_empty_frames"] = not sources.placed and bool(pixels.any())
            made = Segmentation(
                source_images=sources.headers,
                pixel_array=pixels[first:end],
                segmentation_type=kind,
                segment_descriptions=[_describe(number, each) for number, each in enumerate(segments, start=1)],
                series_instance_uid=earlier[0].series if earlier else _make_uid(identity, "series"),
                series_number=300,
                sop_instance_uid=_make_uid(identity, "instance"),
                instance_number=max((each.number for each in earlier), default=0) + 1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MODEL_NAME,
                software_versions=medclipsam.__version__,
                device_serial_number="none",
                content_label="SEGMENTATION",
                max_fractional_value=_WHOLE,
                content_description=one_line(content_description) or None,
                content_creator_name=person_name(creator) or None,
                series_description=one_line(series_description) or None,
                **given,
            )
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ImageError(f"No DICOM SEG can be made of {image.source.name}: {_reason(error)}.") from error
    sources.complete(made)
    if not sources.placed:
        _take_places_away(made)
        # DICOM wants it where there is no orientation in space
        made.PatientOrientation = sources.headers[0].PatientOrientation
    if not creator:
        made.ContentCreatorName = ""
    for keyword, value in (("SeriesDate", now.strftime("%Y%m%d")), ("SeriesTime", now.strftime("%H%M%S.%f"))):
        setattr(made, keyword, value)
    if earlier:
        made.ReferencedInstanceSequence = DicomSequence([_superseded(each) for each in earlier])

    if kind == "LABELMAP":
        # the background last: OHIF takes the place of a segment among the others for its number
        made.SegmentSequence = sorted(made.SegmentSequence, key=lambda each: not each.SegmentNumber)
        made.compress(uid.RLELossless, generate_instance_uid=False)

    def write(temporary: Path) -> None:
        made.save_as(temporary, enforce_file_format=True)
        _check_reads_back(temporary, image, labels, segments)

    replace_file(Path(path), ".dcm", write)
    if noted is not None:
        for note in sources.notes:
            noted(note)
    return made


def _make_uid(identity: str, what: str) -> str:
    return str(uid.generate_uid(entropy_srcs=[identity, what] if identity else None))


def read_seg_header(path: Path) -> Dataset:
    """Return what stands in a DICOM SEG before its pixels.

    Raises
    ------
    ImageError
        If the file is no segmentation or damaged.
    """
    try:
        data = read_tags(path, None)
    except Exception as error:
        raise ImageError(f"{path.name} cannot be read as DICOM; it is damaged or no DICOM file.") from error
    if data.get("Modality") != "SEG":
        raise ImageError(f"{path.name} is a DICOM {data.get('Modality', 'object')}, not a segmentation.")
    return data


def read_segmentation(
    path: str | os.PathLike[str],
    image: MedicalImage,
    label_of: Callable[[SegmentInfo], int],
    frames: ImageFrames | None = None,
) -> tuple[np.ndarray, list[tuple[int, SegmentInfo]]]:
    """Read a DICOM SEG, ours or another program's, as a label map of the image that it was drawn on.

    Parameters
    ----------
    path : str or path-like
        The segmentation.
    image : MedicalImage
        The image, read from DICOM unless `frames` are given.
    label_of : callable
        Gives a segment its label, 1 to 255; 0 leaves it out.
    frames : ImageFrames, optional
        The frames that viewers are shown for an image of another format.

    Returns
    -------
    labels : ndarray of uint8, shape (n_planes, H, W)
        In display orientation. Where segments overlap the smaller one counts; a fraction counts from one half.
    segments : list of (int, SegmentInfo)
        Label and description of each segment, those that are empty too.

    Raises
    ------
    ImageError
        If the file is no segmentation or damaged.
    InputError
        If it was not drawn on this image.
    """
    label, segments = read_seg_label_map(path, image, label_of, frames)
    return label.values, segments


def read_seg_label_map(
    path: str | os.PathLike[str],
    image: MedicalImage,
    label_of: Callable[[SegmentInfo], int],
    frames: ImageFrames | None = None,
) -> tuple[LabelMap, list[tuple[int, SegmentInfo]]]:
    """Read a DICOM SEG as `read_segmentation` does, with segments that overlap whole.

    Parameters
    ----------
    path, image, label_of, frames
        See `read_segmentation`, whose errors it raises.

    Returns
    -------
    label : LabelMap
        Its names are those of the segments.
    segments : list of (int, SegmentInfo)
        Label and description of each segment, those that are empty too.
    """
    reading = _Reading(Path(path), image, label_of, frames)
    values, beneath = reading.call(_read_labels, reading.labels)
    names: dict[str, int] = {}
    for label, segment in reading.found:
        if label:
            names.setdefault(segment.name, label)
    shown, covered = reading.displayed(values), [reading.displayed(layer) for layer in beneath]
    whole = {"beneath": np.stack(covered)} if covered else {}
    return LabelMap(shown, image, names, names, **whole), reading.found


def read_masks(
    path: str | os.PathLike[str],
    image: MedicalImage,
    label_of: Callable[[SegmentInfo], int],
    frames: ImageFrames | None = None,
) -> tuple[dict[int, np.ndarray], list[tuple[int, SegmentInfo]]]:
    """Read each segment of a DICOM SEG by itself: where segments overlap, and the probabilities of a FRACTIONAL one.

    Parameters
    ----------
    path, image, label_of, frames
        See `read_segmentation`, whose errors it raises.

    Returns
    -------
    masks : dict of int to ndarray, shape (n_planes, H, W)
        By label, in display orientation: bool, or float32 in [0, 1] where the segmentation is FRACTIONAL. Of segments
        with one label the greater value counts.
    segments : list of (int, SegmentInfo)
        Label and description of each segment, those that are empty too.
    """
    reading = _Reading(Path(path), image, label_of, frames)
    masks: dict[int, np.ndarray] = {}
    for number, label in reading.labels:
        mask = reading.displayed(reading.call(_read_mask, number))
        masks[label] = np.maximum(masks[label], mask) if label in masks else mask
    return masks, reading.found


class _Reading:
    """A segmentation that is being read.

    Attributes
    ----------
    found : list of (int, SegmentInfo)
        Label and description of each segment.
    labels : list of (int, int)
        Number and label of each segment that is not left out.
    displayed : callable
        Brings what is read to display orientation.
    """

    displayed: Callable[[np.ndarray], np.ndarray]

    def __init__(
        self, path: Path, image: MedicalImage, label_of: Callable[[SegmentInfo], int], frames: ImageFrames | None
    ) -> None:
        self._path = path
        if frames is None:
            self._drawn_on, self.displayed = _DrawnOn.of(source_headers(image.source), image), image.from_native
        else:
            self._drawn_on, self.displayed = _DrawnOn.of_frames(frames), np.asarray
        # what is uncompressed and short is parsed by Python code alone, in memory that the file's own size bounds
        self._call = _call_here if has_short_header(path) else _call_isolated
        described = self.call(_read_infos)
        self.found = [(label_of(info), info) for _, info in described]
        self.labels = [(number, label) for (number, _), (label, _) in zip(described, self.found, strict=True) if label]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the file and what it was drawn on, in another process where that is safer."""
        return self._call(function, self._path, self._drawn_on, *args)


@dataclass(frozen=True)
class _DrawnOn:
    """What a segmentation must have been drawn on: files of one plane each, or frames of one file.

    Parameters
    ----------
    instances : list of str
        The SOP Instance UIDs.
    size : tuple of int
        Rows and columns.
    frames : list of int
        Numbers of the frames, counted from 1; empty where each plane is a file.
    others : bool
        Whether the file holds further frames.
    """

    instances: list[str]
    size: tuple[int, int]
    frames: list[int]
    others: bool

    @classmethod
    def of(cls, sources: Sequence[Dataset], image: MedicalImage) -> _DrawnOn:
        """Return what the labels of an image are drawn on, given its headers."""
        count = int(sources[0].get("NumberOfFrames") or 1)
        frames = [frame + 1 for frame in image.frames or range(count)] if count > 1 else []
        names = [str(source.SOPInstanceUID) for source in sources]
        return cls(names, (int(sources[0].Rows), int(sources[0].Columns)), frames, image.frames is not None)

    @classmethod
    def of_frames(cls, frames: ImageFrames) -> _DrawnOn:
        """Return what the labels of frames that have the pixels of the display planes are drawn on."""
        instances = list(dict.fromkeys(instance for instance, _ in frames.frames))
        numbers = [number for _, number in frames.frames] if len(instances) < len(frames.frames) else []
        return cls(instances, frames.shape, numbers, others=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [k, j, i] of a label map in stored order."""
        return (len(self.frames) or len(self.instances), *self.size)


def _call_here(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _call_isolated(function: Callable[..., Any], path: Path, *args: Any) -> Any:
    try:
        return isolation.call(function, path, *args, preload=("highdicom.seg", "PIL.Image", "gdcm", "jpeg_ls"))
    except isolation.IsolationError as error:
        raise ImageError(f"{path.name} cannot be read as a DICOM SEG: {error}") from error


def _read_infos(path: Path, drawn_on: _DrawnOn) -> list[tuple[int, SegmentInfo]]:
    """Return number and description of each segment, having checked that the segmentation is one of the image."""
    segmentation = _segmentation(path)
    size = (int(segmentation.Rows), int(segmentation.Columns))
    if size != drawn_on.size:
        raise InputError(
            f"The segmentation has {size[1]} x {size[0]} pixels, the image {drawn_on.size[1]} x {drawn_on.size[0]}; "
            "one that was drawn on the image's own pixels is allowed."
        )
    _check_drawn_on(segmentation, drawn_on)
    numbers = segmentation.segment_numbers
    return [(number, _info(segmentation.get_segment_description(number))) for number in numbers]


def _read_labels(path: Path, drawn_on: _DrawnOn, labels: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the label map [k, j, i] of segments, given number and label of each, and what it covers [n, k, j, i]."""
    # highdicom may make floats of the voxels of one segment
    allow_voxels(4 * math.prod(drawn_on.shape))
    segmentation = _segmentation(path)
    if segmentation.SegmentationType == "LABELMAP":
        # highdicom wants all of them, for a number type that holds the greatest
        numbers = list(segmentation.segment_numbers)
        pixels = _frames(segmentation, drawn_on, numbers, combine_segments=True)
        table = np.zeros(max(int(pixels.max()), *numbers, 0) + 1, dtype=np.uint8)
        for number, label in labels:
            table[number] = label
        return table[pixels], np.zeros((0, *drawn_on.shape), np.uint8)
    masks = ((label, _frames(segmentation, drawn_on, [number])[..., 0] >= 0.5) for number, label in labels)
    return flatten(masks, drawn_on.shape)


def _read_mask(path: Path, drawn_on: _DrawnOn, number: int) -> np.ndarray:
    """Return a segment [k, j, i], bool, or float32 in [0, 1] of a FRACTIONAL segmentation."""
    allow_voxels(4 * math.prod(drawn_on.shape))
    segmentation = _segmentation(path)
    pixels = _frames(segmentation, drawn_on, [number])[..., 0]
    return pixels.astype(np.float32 if segmentation.SegmentationType == "FRACTIONAL" else np.bool_)


def check_same_segments(
    found: Sequence[tuple[int, SegmentInfo]], meant: Sequence[tuple[int, SegmentInfo]], what: str
) -> None:
    """Raise `InputError` if the segments that were read back do not mean what those that were written mean.

    Parameters
    ----------
    found, meant : sequence of (int, SegmentInfo)
        Label and description of each segment. Labels, names, codes and who drew them (`algorithm`) are compared.
    what : str
        The segmentation, for the sentence.
    """
    if len(found) != len(meant):
        raise InputError(f"{what} has {len(found)} segments for {len(meant)} when it is read back; it is not kept.")
    for (label, segment), (meant_label, meant_segment) in zip(found, meant, strict=True):
        if (label, *_meaning(segment)) != (meant_label, *_meaning(meant_segment)):
            raise InputError(
                f"{what} names the segment {meant_segment.name!r} (label {meant_label}) as {segment.name!r} (label "
                f"{label}), or describes it otherwise, when it is read back; it is not kept."
            )


def _meaning(segment: SegmentInfo) -> tuple[str | None, ...]:
    """Return what a segment means, by codes and not by the words that go with them."""
    code = segment.code
    concepts = (code.category, code.type, code.modifier, code.region)
    return (segment.name, segment.algorithm, *(concept.value if concept else None for concept in concepts))


def is_ours(data: Dataset) -> bool:
    """Whether a segmentation (or its metadata) says that this package wrote it."""
    return data.get("Manufacturer") == MANUFACTURER and data.get("ManufacturerModelName") == MODEL_NAME


def is_by_model(data: Dataset) -> bool:
    """Whether a segmentation of this package (or its metadata) says that a model made it and no person saved it."""
    kinds = {str(item.get("SegmentAlgorithmType", "")) for item in data.get("SegmentSequence") or []}
    return kinds == {"AUTOMATIC"} and not str(data.get("ContentCreatorName") or "").strip()


def superseded_instances(data: Dataset) -> set[str]:
    """Return the SOP Instance UIDs of the segmentations that one takes the place of."""
    found = set()
    for item in data.get("ReferencedInstanceSequence") or []:
        purpose = (item.get("PurposeOfReferenceCodeSequence") or [Dataset()])[0]
        if (purpose.get("CodeValue"), purpose.get("CodingSchemeDesignator")) == _SUPERSEDED[:2]:
            found.add(str(item.ReferencedSOPInstanceUID))
    return found


def _segmentation(path: Path) -> Segmentation:
    from highdicom.seg import Segmentation

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = read_data(path)
            if data.get("Modality") != "SEG":
                raise ImageError(f"{path.name} is a DICOM {data.get('Modality', 'object')}, not a segmentation.")
            return Segmentation.from_dataset(data, copy=False)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path.name} cannot be read as a DICOM SEG: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".").strip("'\"")


def _check_drawn_on(segmentation: Dataset, drawn_on: _DrawnOn) -> None:
    """Raise `InputError` if a frame of a segmentation was drawn on something else than the image, or does not say."""
    shared = (segmentation.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in segmentation.get("PerFrameFunctionalGroupsSequence") or []:
        derivations = frame.get("DerivationImageSequence") or shared.get("DerivationImageSequence") or []
        references = [each for derivation in derivations for each in derivation.get("SourceImageSequence") or []]
        instances = {str(reference.ReferencedSOPInstanceUID) for reference in references}
        numbers = {number for reference in references for number in referenced_frames(reference)}
        others = drawn_on.others and not (numbers and numbers.issubset(drawn_on.frames))
        if not instances or not instances.issubset(drawn_on.instances) or others:
            raise InputError("The segmentation was not drawn on the frames of this image, or does not say on which.")


def drawn_on(data: Dataset) -> tuple[str, str, str, int]:
    """Return what a segmentation was drawn on: UIDs of study, series and one instance, and one of its frames.

    Raises
    ------
    InputError
        If it does not say, or refers to several series.
    """
    series = {str(item.get("SeriesInstanceUID", "")) for item in data.get("ReferencedSeriesSequence") or []}
    references = [
        item
        for frame in data.get("PerFrameFunctionalGroupsSequence") or []
        for derivation in frame.get("DerivationImageSequence") or []
        for item in derivation.get("SourceImageSequence") or []
    ]
    if len(series) != 1 or not references or not data.get("StudyInstanceUID"):
        raise InputError("The segmentation does not say on which frames of one series it was drawn.")
    first = references[0]
    frame = (referenced_frames(first) or [1])[0]
    return str(data.StudyInstanceUID), series.pop(), str(first.get("ReferencedSOPInstanceUID", "")), frame


def referenced_frames(reference: Dataset) -> list[int]:
    """Return the numbers of the frames, counted from 1, that a reference names; empty where it names none."""
    value = reference.get("ReferencedFrameNumber")
    return [] if value is None else [int(number) for number in np.atleast_1d(value)]


def _frames(
    segmentation: Segmentation, drawn_on: _DrawnOn, numbers: Sequence[int], *, combine_segments: bool = False
) -> np.ndarray:
    """Return segments frame by frame of the image they were drawn on, [k, j, i, segment], or combined [k, j, i]."""
    if not numbers:
        return np.zeros(drawn_on.shape, np.uint8)
    options: dict[str, Any] = {
        "segment_numbers": numbers,
        "combine_segments": combine_segments,
        # slices without the segment are left out
        "assert_missing_frames_are_empty": True,
        # said by few; what frames refer to, and their size, is checked
        "ignore_spatial_locations": True,
    }
    try:
        if drawn_on.frames:
            return np.asarray(
                segmentation.get_pixels_by_source_frame(drawn_on.instances[0], drawn_on.frames, **options)
            )
        return np.asarray(segmentation.get_pixels_by_source_instance(drawn_on.instances, **options))
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"The segmentation was not drawn on the frames of this image: {_reason(error)}.") from error


def _pixels(
    labels: np.ndarray | Mapping[int, np.ndarray],
    image: MedicalImage,
    segments: Sequence[SegmentInfo],
    kind: SegmentationKind,
) -> np.ndarray:
    """Return segment numbers [k, j, i] of a label map, or a channel for each segment [k, j, i, segment] of masks."""
    if kind not in SEGMENTATION_KINDS:
        raise InputError(f"A DICOM SEG cannot be {kind!r}; allowed: {', '.join(SEGMENTATION_KINDS)}.")
    held = set(np.unique(labels).tolist()) if isinstance(labels, np.ndarray) else set(labels)
    stray = sorted(held - {0} - {segment.label for segment in segments})
    if stray:
        raise InputError(f"The label map holds {', '.join(map(str, stray))}, of which no segment is described.")
    if isinstance(labels, np.ndarray):
        numbers = np.zeros(256, dtype=np.uint8)
        for number, segment in enumerate(segments, start=1):
            if segment.label is not None:
                numbers[segment.label] = number
        return numbers[_native(np.asarray(labels, dtype=np.uint8), image)]
    fractional = any(mask.dtype.kind == "f" for mask in labels.values())
    if fractional and kind != "FRACTIONAL":
        raise InputError(f"A DICOM SEG of the kind {kind} cannot hold probabilities; allowed: FRACTIONAL.")
    for label, mask in labels.items():
        if not ((mask >= 0) & (mask <= 1)).all():
            raise InputError(f"The mask of the label {label} holds {mask.min():g} to {mask.max():g}; allowed: 0 to 1.")
    if kind == "LABELMAP":
        flat = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
        names = {segment.label: segment.name for segment in segments}
        for label, mask in labels.items():
            others = flat[mask != 0]
            if others.any():
                other = names[int(others[others != 0][0])]
                raise InputError(
                    f"The segments {other!r} and {names[label]!r} overlap, which a DICOM SEG of the kind LABELMAP "
                    "cannot hold; allowed: BINARY and FRACTIONAL."
                )
            flat[mask != 0] = label
        return _pixels(flat, image, segments, kind)
    empty = np.zeros((image.n_planes, *image.plane_shape), np.float32 if fractional else np.uint8)
    of_each = [labels.get(segment.label or 0, empty) for segment in segments]
    stacked = np.stack([_native(mask, image) for mask in of_each], axis=-1)
    # in the steps of the file, so that what it cannot hold is not there for any check either
    return np.rint(stacked * _WHOLE).astype(np.float32) / _WHOLE if fractional else stacked.astype(np.uint8)


def _native(mask: np.ndarray, image: MedicalImage) -> np.ndarray:
    native = image.to_native(mask)
    return native.reshape((-1, *native.shape[-2:]))


def _describe(number: int, segment: SegmentInfo) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    def concept(code: SnomedCode) -> CodedConcept:
        return CodedConcept(code.value, "SCT", code.meaning)

    algorithm = None
    if segment.algorithm != "MANUAL":
        algorithm = AlgorithmIdentificationSequence(
            name=one_line(segment.algorithm_name or MODEL_NAME),
            family=codes.DCM.ArtificialIntelligence,
            version=one_line(segment.algorithm_version or medclipsam.__version__),
            source=MANUFACTURER,
            parameters=segment.parameters or None,
        )
    code = segment.code
    described = SegmentDescription(
        segment_number=number,
        segment_label=_segment_label(number, segment),
        segmented_property_category=concept(code.category),
        segmented_property_type=concept(code.type),
        algorithm_type=segment.algorithm,
        algorithm_identification=algorithm,
        anatomic_regions=[concept(code.region)] if code.region else None,
        display_color=CIELabColor.from_rgb(*COLOURS[((segment.label or 1) - 1) % len(COLOURS)]),
    )
    if code.modifier:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = DicomSequence(
            [concept(code.modifier)]
        )
    if segment.description:
        described.SegmentDescription = segment.description[:1024]
    add_label(described, segment.label)
    return described


def add_label(described: Dataset, label: int | None) -> None:
    """Note the number that a segment or structure has in label maps, in a private element of its description."""
    if label is not None:
        block = described.private_block(_PRIVATE_GROUP, _PRIVATE_CREATOR, create=True)
        block.add_new(_LABEL_ELEMENT, "US", label)


def label_in(described: Dataset) -> int | None:
    """Return what `add_label` noted; None where it noted nothing."""
    try:
        return int(described.private_block(_PRIVATE_GROUP, _PRIVATE_CREATOR)[_LABEL_ELEMENT].value)
    except (KeyError, TypeError, ValueError):
        return None


def _info(described: Dataset) -> SegmentInfo:
    def concept(item: Dataset, keyword: str) -> SnomedCode | None:
        inner = (item.get(keyword) or [None])[0]
        if inner is None or not inner.get("CodeValue"):
            return None
        return SnomedCode(str(inner.CodeValue), str(inner.get("CodeMeaning") or ""))

    kind = concept(described, "SegmentedPropertyTypeCodeSequence") or TISSUE.type
    inner = (described.get("SegmentedPropertyTypeCodeSequence") or [Dataset()])[0]
    algorithm = (described.get("SegmentationAlgorithmIdentificationSequence") or [Dataset()])[0]
    return SegmentInfo(
        name=str(described.get("SegmentLabel") or kind.meaning or f"segment {described.SegmentNumber}"),
        label=label_in(described),
        code=StructureCode(
            concept(described, "SegmentedPropertyCategoryCodeSequence") or TISSUE.category,
            kind,
            concept(inner, "SegmentedPropertyTypeModifierCodeSequence"),
            concept(described, "AnatomicRegionSequence"),
        ),
        algorithm=str(described.get("SegmentAlgorithmType") or "MANUAL"),
        algorithm_name=str(described.get("SegmentAlgorithmName") or ""),
        algorithm_version=str(algorithm.get("AlgorithmVersion") or ""),
        description=str(described.get("SegmentDescription") or ""),
    )


def _extent(pixels: np.ndarray) -> tuple[int, int]:
    """Return the range of planes that a segmentation has frames of.

    It has the same for all segments, without gaps, and two planes at least: programs that make a volume of the frames,
    ITK among them, take the distance of the first two for that of all.
    """
    filled = np.flatnonzero(pixels.any(axis=tuple(range(1, pixels.ndim))))
    first, end = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (len(pixels) // 2, len(pixels) // 2 + 1)
    if end - first == 1 and len(pixels) > 1:
        return (first - 1, end) if first else (first, end + 1)
    return first, end


def _position(sources: Sequence[Dataset], index: int) -> PlanePositionSequence:
    """Return the place of one slice or frame."""
    from highdicom import PlanePositionSequence

    if len(sources) > 1:
        place = sources[index].ImagePositionPatient
    else:
        place = sources[0].PerFrameFunctionalGroupsSequence[index].PlanePositionSequence[0].ImagePositionPatient
    return PlanePositionSequence("PATIENT", tuple(map(float, place)))


def _take_places_away(made: Dataset) -> None:
    """Remove the made-up places and index the frames by the number of the frame that each was drawn on."""
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType"):
        made.pop(keyword, None)
    shared = made.SharedFunctionalGroupsSequence[0]
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        shared.pop(keyword, None)
    for index in made.DimensionIndexSequence:
        if index.get("FunctionalGroupPointer") == 0x00209113:
            index.DimensionIndexPointer = 0x00209128
            index.FunctionalGroupPointer = 0x00209111
            index.DimensionDescriptionLabel = "Temporal Position Index"
    for frame in made.PerFrameFunctionalGroupsSequence:
        if "PlanePositionSequence" not in frame:
            continue
        number = 1 - round(float(frame.PlanePositionSequence[0].ImagePositionPatient[2]))
        del frame.PlanePositionSequence
        content = frame.FrameContentSequence[0]
        content.TemporalPositionIndex = number
        # a label map has no index of the segment
        before = content.DimensionIndexValues
        content.DimensionIndexValues = [number] if isinstance(before, int) else [before[0], number]


def _superseded(earlier: Reference) -> Dataset:
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = _SUPERSEDED
    item = Dataset()
    item.ReferencedSOPClassUID = earlier.sop_class
    item.ReferencedSOPInstanceUID = earlier.instance
    item.PurposeOfReferenceCodeSequence = DicomSequence([purpose])
    return item


def _check_reads_back(
    path: Path,
    image: MedicalImage,
    labels: np.ndarray | Mapping[int, np.ndarray],
    segments: Sequence[SegmentInfo],
) -> None:
    """Raise where a segmentation that was just written does not give its masks and segments back."""
    what = f"The DICOM SEG of {image.source.name}"
    found: np.ndarray | dict[int, np.ndarray]
    try:
        read = read_segmentation if isinstance(labels, np.ndarray) else read_masks
        found, described = read(path, image, lambda segment: segment.label or 0)
    except InputError as error:
        reason = str(error).replace(path.name, "It")
        raise ImageError(f"{what} cannot be read back, and is not kept. {reason}") from error
    if isinstance(labels, np.ndarray):
        assert isinstance(found, np.ndarray)
        check_same(found, labels, what)
    else:
        for label, mask in labels.items():
            # a probability is kept to the nearest step
            apart = np.abs(found[label] - mask.astype(np.float32)) > 0.51 / _WHOLE
            check_same(apart, np.zeros_like(apart), what)
    meant = [
        (segment.label or 0, dataclasses.replace(segment, name=_segment_label(number, segment)))
        for number, segment in enumerate(segments, start=1)
    ]
    check_same_segments(described, meant, what)


def _segment_label(number: int, segment: SegmentInfo) -> str:
    """Return a segment's name as DICOM keeps it, where it must not be empty."""
    return one_line(segment.name) or f"segment {number}"


def one_line(text: str) -> str:
    """Return a text as DICOM's LO: one line of 64 characters, without a backslash and control characters."""
    line = " ".join(text.replace("\\", "/").split())
    return "".join(character for character in line if character.isprintable())[:_LONGEST_LO].strip()


def person_name(text: str) -> str:
    plain = one_line(text.replace("^", " ").replace("=", " "))
    return f"{plain}^" if plain else ""
