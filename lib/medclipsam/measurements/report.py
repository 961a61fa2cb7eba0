"""Measurements as a DICOM structured report (TID 1500, DICOM PS3.16) that refers to a segmentation, by highdicom."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import medclipsam
from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging.dicom import source_headers
from medclipsam.imaging.dicom_seg import MANUFACTURER, MODEL_NAME, one_line, person_name
from medclipsam.imaging.dicom_sources import Sources, sources_for
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.write import replace_file
from medclipsam.measurements.diameters import Axis
from medclipsam.measurements.measure import HOUNSFIELD, Measurements

if TYPE_CHECKING:
    from highdicom.sr import Measurement

# DICOM has no codes for them.
COMPONENTS = Code("COMPONENTS", "99MEDCLIPSAM", "Number of connected components")
VOXELS = Code("VOXELS", "99MEDCLIPSAM", "Number of voxels")
STORED_VALUE = Code("STOREDVALUE", "99MEDCLIPSAM", "Stored value")

_STATISTICS = (
    ("mean", codes.SCT.Mean),
    ("sd", codes.SCT.StandardDeviation),
    ("minimum", codes.SCT.Minimum),
    ("maximum", codes.SCT.Maximum),
)
# Values in a report have 16 characters (VR DS).
_DIGITS = 10


@dataclass(frozen=True)
class ReportedFinding:
    """One finding of a report.

    Attributes
    ----------
    name : str
        Its name, that of the segment.
    segmentation : str
        SOP Instance UID of the DICOM SEG.
    segment : int
        Number of the segment.
    values : dict of (str, str) to float
        By the code of what is measured and that of the derivation, which is empty where there is none: ("112031",
        "373098007") is the mean attenuation.
    """

    name: str
    segmentation: str
    segment: int
    values: dict[tuple[str, str], float]


def write_report(
    measured: Sequence[Measurements],
    segmentation: Dataset,
    image: MedicalImage,
    path: str | os.PathLike[str],
    *,
    creator: str = "",
) -> Dataset:
    """Write measurements as a Comprehensive SR after TID 1500, which refers to the segments that were measured.

    Parameters
    ----------
    measured : sequence of Measurements
        One for each segment, in the order of the segments.
    segmentation : pydicom.Dataset
        The DICOM SEG, as `medclipsam.imaging.dicom_seg.write_segmentation` returns it; pixels are not needed.
    image : MedicalImage
        The image that it was drawn on, read from DICOM.
    path : str or path-like
        The file; it appears under its name only when complete.
    creator : str
        The person who measured; without one the observer is the device.

    Returns
    -------
    pydicom.Dataset
        What was written.

    Raises
    ------
    InputError
        If there are not as many measurements as segments.
    ImageError
        If the headers do not allow it, or the file, read back, does not hold the measurements.
    """
    from highdicom import sr

    # a label map describes its background too, as segment 0
    segments = [segment for segment in segmentation.SegmentSequence if segment.SegmentNumber]
    if len(segments) != len(measured):
        raise InputError(
            f"There are {len(measured)} measurements for {len(segments)} segments; one for each is needed."
        )
    now = datetime.datetime.now()
    try:
        with warnings.catch_warnings():
            # long names are meant
            warnings.simplefilter("ignore")
            sources = sources_for(source_headers(image.source), image)
            evidence = [segmentation, *_evidence(sources)]
            groups: list[Any] = []
            for segment, found in zip(segments, measured, strict=True):
                groups += _groups(segment, found, segmentation, image, sources)
            content = sr.MeasurementReport(
                observation_context=_observer(creator),
                procedure_reported=_procedure(image.modality),
                imaging_measurements=groups,
            )
            made = sr.ComprehensiveSR(
                evidence=evidence,
                content=content[0],
                series_instance_uid=uid.generate_uid(),
                series_number=301,
                sop_instance_uid=uid.generate_uid(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                is_complete=True,
            )
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ImageError(f"No DICOM SR can be made of {image.source.name}: {error}.") from error
    made.ManufacturerModelName, made.SoftwareVersions = MODEL_NAME, medclipsam.__version__
    made.SeriesDescription = "Measurements"
    for keyword, value in (("SeriesDate", now.strftime("%Y%m%d")), ("SeriesTime", now.strftime("%H%M%S.%f"))):
        setattr(made, keyword, value)
    meant = [_values(found) for found in measured]

    def write(temporary: Path) -> None:
        made.save_as(temporary, enforce_file_format=True)
        back = read_report(temporary)
        if [(each.segment, each.values) for each in back] != list(enumerate(meant, start=1)):
            raise ImageError(f"The DICOM SR of {image.source.name} differs when it is read back, and is not kept.")

    replace_file(Path(path), ".dcm", write)
    return made


def read_report(path: str | os.PathLike[str]) -> list[ReportedFinding]:
    """Read the findings of a measurement report that refer to segments.

    Parameters
    ----------
    path : str or path-like
        A DICOM SR after TID 1500, ours or another program's.

    Returns
    -------
    list of ReportedFinding
        In the order of the report.

    Raises
    ------
    ImageError
        If the file is no such report, or damaged.
    """
    from highdicom import sr

    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = sr.srread(path).content
            groups = content.get_volumetric_roi_measurement_groups(reference_type=codes.DCM.ReferencedSegment)
            return [_reported(group) for group in groups]
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ImageError(f"{path.name} cannot be read as a measurement report (TID 1500): {reason}.") from error


def _reported(group: Any) -> ReportedFinding:
    reference = group.referenced_segment
    item = reference[0].ReferencedSOPSequence[0]
    values = {}
    for measurement in group.get_measurements():
        derivation = measurement.derivation
        values[measurement.name.value, "" if derivation is None else derivation.value] = float(measurement.value)
    segment = int(np.atleast_1d(item.ReferencedSegmentNumber)[0])
    return ReportedFinding(group.tracking_identifier, str(item.ReferencedSOPInstanceUID), segment, values)


def _evidence(sources: Sources) -> list[Dataset]:
    """Return the image's headers with their true classes."""
    headers = []
    for header in sources.headers:
        true = Dataset()
        true.update(header)
        true.SOPClassUID = sources.classes[str(header.SOPInstanceUID)]
        headers.append(true)
    return headers


def _groups(
    segment: Dataset, found: Measurements, segmentation: Dataset, image: MedicalImage, sources: Sources
) -> list[Any]:
    """Return a segment's measurements: of the segment, and the axes as lines on the image."""
    from highdicom import sr

    number = int(segment.SegmentNumber)
    identity = str(segment.get("SegmentLabel") or f"segment {number}")
    tracking = uid.generate_uid(entropy_srcs=[str(segmentation.SOPInstanceUID), str(number)])
    category, kind = (_concept(segment[f"SegmentedProperty{part}CodeSequence"][0]) for part in ("Category", "Type"))
    of_segment = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier=identity, uid=tracking),
        referenced_segment=_reference(segmentation, number, sources),
        finding_type=kind,
        finding_category=category,
        measurements=[_measurement(key, value) for key, value in _values(found).items()],
    )
    lines = []
    for axis, concept in ((found.long_axis, codes.SCT.LongAxis), (found.short_axis, codes.SCT.ShortAxis)):
        drawn = None if axis is None else _drawn(axis, image, sources)
        if axis is not None and drawn is not None and axis.length_mm is not None:
            lines.append(
                sr.Measurement(
                    concept, _shortened(axis.length_mm), codes.UCUM.Millimeter, referenced_coordinates=[drawn]
                )
            )
    if not lines:
        return [of_segment]
    of_lines = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier=identity, uid=tracking),
        finding_type=kind,
        finding_category=category,
        measurements=lines,
    )
    return [of_segment, of_lines]


def _concept(item: Dataset) -> Code:
    """Return a code without its modifiers, which a report has no place for."""
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _reference(segmentation: Dataset, number: int, sources: Sources) -> Any:
    from highdicom import sr

    first = sources.headers[0]
    if len(sources.headers) > 1:
        source: dict[str, Any] = {"source_series": sr.SourceSeriesForSegmentation(str(first.SeriesInstanceUID))}
    else:
        instance = str(first.SOPInstanceUID)
        source = {"source_images": [sr.SourceImageForSegmentation(sources.classes[instance], instance)]}
    return sr.ReferencedSegment(str(segmentation.SOPClassUID), str(segmentation.SOPInstanceUID), number, **source)


def _drawn(axis: Axis, image: MedicalImage, sources: Sources) -> Any:
    """Return an axis as a line on its slice or frame; None where planes of display are not those of the file."""
    from highdicom import sr

    layout = image.layout
    if layout.axes[0] != 0:
        return None
    index = layout.plane_order[axis.plane]
    ends = [layout.point_to_stored(*point, image.plane_shape) for point in (axis.start, axis.end)]
    header = sources.headers[index if len(sources.headers) > 1 else 0]
    instance = str(header.SOPInstanceUID)
    frames = None
    if "NumberOfFrames" in header:
        frames = [1 + (index if sources.frames is None else sources.frames[index])]
    # DICOM has the column first, and counts from a pixel's corner
    line = np.array([[column + 0.5, row + 0.5] for row, column in ends])
    return sr.CoordinatesForMeasurement(
        "POLYLINE", line, sr.SourceImageForRegion(sources.classes[instance], instance, frames)
    )


def _values(found: Measurements) -> dict[tuple[str, str], float]:
    """Return what a report states of a mask, by the codes of measurement and derivation."""
    values: dict[tuple[str, str], float] = {
        (COMPONENTS.value, ""): found.n_components,
        (VOXELS.value, ""): found.n_voxels,
    }
    for concept, value in (
        (codes.SCT.Area, found.area_mm2),
        (codes.SCT.Volume, found.volume_mm3),
        (codes.SCT.LongAxis, found.long_axis_mm),
        (codes.SCT.ShortAxis, found.short_axis_mm),
    ):
        if value is not None:
            values[concept.value, ""] = _shortened(value)
    if found.values is not None:
        concept = codes.DCM.AttenuationCoefficient if found.values.unit == HOUNSFIELD else STORED_VALUE
        for name, derivation in _STATISTICS:
            values[concept.value, derivation.value] = _shortened(getattr(found.values, name))
    return values


def _measurement(key: tuple[str, str], value: float) -> Measurement:
    from highdicom import sr

    units = {
        codes.SCT.Area: codes.UCUM.SquareMillimeter,
        codes.SCT.Volume: codes.UCUM.CubicMillimeter,
        codes.SCT.LongAxis: codes.UCUM.Millimeter,
        codes.SCT.ShortAxis: codes.UCUM.Millimeter,
        codes.DCM.AttenuationCoefficient: codes.UCUM.HounsfieldUnit,
        **dict.fromkeys((COMPONENTS, VOXELS, STORED_VALUE), codes.UCUM.NoUnits),
    }
    concept = next(each for each in units if each.value == key[0])
    derivation = next((code for _, code in _STATISTICS if code.value == key[1]), None)
    return sr.Measurement(concept, value, units[concept], derivation=derivation)


def _shortened(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _procedure(modality: str | None) -> Code:
    return {
        "CT": codes.cid100.CTUnspecifiedBodyRegion,
        "MR": codes.cid100.MRIUnspecifiedBodyRegion,
        **dict.fromkeys(("CR", "DX", "MG"), codes.cid100.XRUnspecifiedBodyRegion),
    }.get(modality or "", codes.cid100.ImagingProcedure)


def _observer(creator: str) -> Any:
    from highdicom import sr

    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            # the same for all reports of a version
            uid=uid.generate_uid(entropy_srcs=[MODEL_NAME, medclipsam.__version__]),
            name=MODEL_NAME,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
        ),
    )
    person = None
    if one_line(creator):
        person = sr.ObserverContext(codes.DCM.Person, sr.PersonObserverIdentifyingAttributes(name=person_name(creator)))
    return sr.ObservationContext(observer_person_context=person, observer_device_context=device)
