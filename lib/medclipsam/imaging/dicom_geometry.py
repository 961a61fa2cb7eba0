"""Where DICOM frames lie: ITK's grid of a file, the display directions, and the distances that are really known.

The grid follows what ITK's GDCM reader makes of the same file, class by class, so that a mask lies on the image in any
ITK program; the tests compare it with SimpleITK. Distances that are really known are worked out apart from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from medclipsam.base.errors import ImageError
from medclipsam.imaging.geometry import Grid
from medclipsam.imaging.orientation import Layout, directions_from_letters, layout_for

Spacing = tuple[float | None, float | None, float | None]

_IMAGER_SPACING_CLASSES = frozenset(
    {
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.DigitalIntraOralXRayImageStorageForPresentation,
        uid.DigitalIntraOralXRayImageStorageForProcessing,
        uid.XRayAngiographicImageStorage,
        uid.XRayRadiofluoroscopicImageStorage,
    }
)
_PIXEL_SPACING_CLASSES = frozenset(
    {
        uid.CTImageStorage,
        uid.MRImageStorage,
        uid.NuclearMedicineImageStorage,
        uid.PositronEmissionTomographyImageStorage,
        uid.UltrasoundImageStorage,
        uid.UltrasoundMultiFrameImageStorage,
        uid.VLPhotographicImageStorage,
        uid.VLMicroscopicImageStorage,
    }
)
_SLICE_SPACING_CLASSES = _IMAGER_SPACING_CLASSES | {
    uid.CTImageStorage,
    uid.MRImageStorage,
    uid.NuclearMedicineImageStorage,
    uid.PositronEmissionTomographyImageStorage,
    uid.SecondaryCaptureImageStorage,
}
_FUNCTIONAL_GROUP_CLASSES = frozenset(
    {
        uid.EnhancedCTImageStorage,
        uid.EnhancedMRImageStorage,
        uid.EnhancedMRColorImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
        uid.OphthalmicTomographyImageStorage,
        uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
        uid.XRay3DAngiographicImageStorage,
        uid.XRay3DCraniofacialImageStorage,
        uid.BreastTomosynthesisImageStorage,
    }
)

# Frames closer than this, in millimetres, are at one position.
_SAME_POSITION = 1e-3
# Distances of slices that differ by more than this share of their median have no common value.
_UNEVEN = 0.1
# A gap that is larger than the usual one by this factor is where slices are missing, or where another distance begins.
_LARGE_GAP = 1.5
# As many neighbouring gaps of one size are another distance, not missing slices; fewer where slices are numbered.
_RUN, _NUMBERED_RUN = 3, 2
_NUMBER = "InstanceNumber"


@dataclass(frozen=True)
class FrameGeometry:
    """Geometry of the frames of a file or the files of a series.

    Parameters
    ----------
    grid : Grid
        Voxel grid as ITK reads it.
    layout : Layout
        How frames [k, j, i] become display planes.
    spacing : tuple of float or None
        Millimetres along k, j, i where really known.
    """

    grid: Grid
    layout: Layout
    spacing: Spacing


def is_slice(header: Dataset) -> bool:
    """Whether a header is that of one slice of a volume: a single frame with a position in the patient."""
    return (
        int(header.get("NumberOfFrames") or 1) == 1
        and len(header.get("ImagePositionPatient") or ()) == 3
        and len(header.get("ImageOrientationPatient") or ()) == 6
    )


def file_geometry(data: Dataset, frames: int, modality: str | None) -> FrameGeometry:
    """Return the geometry of a file without functional groups; its frames, if several, are in their stored order."""
    directions = _directions(data, modality)
    order = tuple(range(frames)) if frames > 1 else None
    grid = _classic_grid(data, frames)
    return FrameGeometry(
        grid, _layout(grid, directions, order), (None, *(_known_pixel_spacing(data, modality) or (None, None)))
    )


def series_geometry(first: Dataset, last: Dataset, positions: np.ndarray, modality: str | None) -> FrameGeometry:
    """Return the geometry of sorted slices from the first and the last one and their positions along the normal.

    ITK takes the first slice's place and pixel spacing, and the mean distance of the slices.
    """
    one, end = _classic_grid(first, 1), _classic_grid(last, 1)
    count = len(positions)
    gap = mean_gap(positions)
    distance = float(np.linalg.norm(np.subtract(end.origin, one.origin))) / (count - 1)
    i, j = cosines(first)
    direction = np.stack([i, j, np.cross(i, j)], axis=1)
    grid = Grid((*one.size[:2], count), (*one.spacing[:2], distance or 1.0), one.origin, direction)
    return FrameGeometry(
        grid,
        _layout(grid, np.stack([np.cross(i, j), j, i], axis=1), None),
        (gap, *(_known_pixel_spacing(first, modality) or (None, None))),
    )


def sort_slices(folder: Path, headers: Sequence[tuple[Path, Dataset]]) -> tuple[list[Path], np.ndarray]:
    """Sort the slices of a volume along their normal.

    Returns
    -------
    files : list of Path
    positions : ndarray of float64
        Ascending positions along the normal, in millimetres.

    Raises
    ------
    ImageError
        If sizes, orientations or pixel spacings differ, two slices share a position, or slices are missing in between.
    """
    reference = np.concatenate(cosines(headers[0][1]))
    sizes = {(int(header.Rows), int(header.Columns)) for _, header in headers}
    if len(sizes) > 1:
        raise ImageError(f"{folder} holds slices of several sizes {sorted(sizes)}; one volume is allowed.")
    spacing = pair(headers[0][1], "PixelSpacing")
    for path, header in headers:
        if not np.allclose(np.concatenate(cosines(header)), reference, atol=1e-3):
            raise ImageError(f"{folder} holds slices of several orientations ({path.name} differs); one is allowed.")
        other = pair(header, "PixelSpacing")
        if (other is None) != (spacing is None) or (spacing and other and not np.allclose(other, spacing, rtol=1e-3)):
            raise ImageError(
                f"{folder} holds slices of several pixel spacings ({path.name} has {other}, {headers[0][0].name} "
                f"{spacing}); one is allowed."
            )
    normal = np.cross(reference[:3], reference[3:])
    distances = np.array([np.asarray(header.ImagePositionPatient, dtype=float) @ normal for _, header in headers])
    order = np.argsort(distances, kind="stable")
    sorted_headers = [headers[n][1] for n in order]
    _check_positions(folder, distances[order], *(_numbers(sorted_headers, k) for k in ("SliceThickness", _NUMBER)))
    return [headers[n][0] for n in order], distances[order]


def functional_geometry(path: Path, data: Dataset, groups: Sequence[Dataset]) -> FrameGeometry | None:
    """Return the geometry of a multi-frame file from its functional groups, None where they hold none.

    Display planes go by position, whatever the order of the frames; frames that all lie at one position are a time
    stack and stay in their order.

    Raises
    ------
    ImageError
        If the frames are not one volume: several orientations or pixel spacings, positions that come twice, gaps.
    """
    if not groups:
        return None
    orientations = [_first(group, "PlaneOrientationSequence") for group in groups]
    positions = [_first(group, "PlanePositionSequence") for group in groups]
    measures = [_first(group, "PixelMeasuresSequence") for group in groups]
    if not all("ImageOrientationPatient" in item for item in orientations) or not all(
        "ImagePositionPatient" in item for item in positions
    ):
        return None
    i, j = cosines(orientations[0])
    for other in orientations[1:]:
        if not np.allclose(np.concatenate(cosines(other)), np.concatenate([i, j]), atol=1e-3):
            raise ImageError(f"{path} holds frames of several orientations; one volume is allowed.")
    spacings = {pair(item, "PixelSpacing") for item in measures}
    if len(spacings) > 1:
        raise ImageError(f"{path} holds frames of several pixel spacings {sorted(map(str, spacings))}; one is allowed.")
    pixel = spacings.pop()
    normal = np.cross(i, j)
    places = np.array([item.ImagePositionPatient for item in positions], dtype=float)
    distances = places @ normal
    frames = len(groups)

    order: tuple[int, ...] | None = None
    gap = None
    if frames > 1 and float(np.ptp(distances)) < _SAME_POSITION:
        order = tuple(range(frames))
    elif frames > 1:
        ascending = np.argsort(distances, kind="stable")
        _check_positions(path, distances[ascending])
        gap = mean_gap(distances[ascending])
        # Planes as if the frames ascended along the normal, then the frame that really is at each place.
        sorted_grid = Grid((1, 1, frames), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
        planes = _layout(sorted_grid, np.stack([normal, j, i], axis=1), None).plane_order
        order = tuple(int(ascending[n]) for n in planes)

    columns, rows, slices = _functional_spacing(distances, pixel, measures[0])
    grid = Grid(
        (int(data.Columns), int(data.Rows), frames),
        (columns, rows, abs(slices)),
        tuple(float(v) for v in places[0]),
        np.stack([i, j, -normal if slices < 0 else normal], axis=1),
    )
    return FrameGeometry(grid, _layout(grid, np.stack([normal, j, i], axis=1), order), (gap, *(pixel or (None, None))))


def cosines(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit LPS directions of i and j; along the axes where the file gives nothing usable."""
    values = data.get("ImageOrientationPatient")
    if values is not None and len(values) == 6:
        i, j = np.asarray(values[:3], float), np.asarray(values[3:], float)
        lengths = np.linalg.norm(i), np.linalg.norm(j)
        if min(lengths) > 0:
            return i / lengths[0], j / lengths[1]
    return np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])


def pair(data: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return the two positive finite numbers of an element, None where it holds none."""
    value = data.get(keyword)
    if value is None or value == "":
        return None
    numbers = np.atleast_1d(np.asarray(value, dtype=float))
    if numbers.shape != (2,) or not np.isfinite(numbers).all() or (numbers <= 0).any():
        return None
    return float(numbers[0]), float(numbers[1])


def _layout(grid: Grid, directions: np.ndarray | None, order: tuple[int, ...] | None) -> Layout:
    return layout_for(grid.size[::-1], (1.0, 1.0, 1.0), directions, stack_axis=0, plane_order=order)


def _functional_spacing(
    distances: np.ndarray, pixel: tuple[float, float] | None, measures: Dataset
) -> tuple[float, float, float]:
    """Return ITK's spacing along i, j, k; a negative k means that frames run against the normal.

    Frames at unequal distances (out of order, or a time stack) get 1 on all axes, as ITK gives them.
    """
    rows, columns = pixel or (1.0, 1.0)
    if len(distances) == 1:
        return columns, rows, float(measures.get("SpacingBetweenSlices") or 1.0)
    steps = np.diff(distances)
    mean = float(steps.mean())
    if abs(mean) < _SAME_POSITION or np.abs(steps - mean).max() > 1e-3:
        return 1.0, 1.0, 1.0
    return columns, rows, mean


def _directions(data: Dataset, modality: str | None) -> np.ndarray | None:
    """Return the LPS directions of k, j, i for display, None where the file says nothing.

    Mammograms are hung by view, not by patient axes: they are shown as stored.
    """
    if len(data.get("ImageOrientationPatient") or ()) == 6:
        i, j = cosines(data)
        return np.stack([np.cross(i, j), j, i], axis=1)
    if modality == "MG":
        return None
    orientation = data.get("PatientOrientation")
    return directions_from_letters(list(orientation)) if orientation and not isinstance(orientation, str) else None


def _classic_grid(data: Dataset, frames: int) -> Grid:
    """Return ITK's grid of a file whose geometry lies in the top level of the data set."""
    sop_class = data.get("SOPClassUID")
    pixel = None
    if sop_class in _IMAGER_SPACING_CLASSES:
        pixel = pair(data, "ImagerPixelSpacing")
    elif sop_class in _PIXEL_SPACING_CLASSES:
        pixel = pair(data, "PixelSpacing")
    elif sop_class == uid.SecondaryCaptureImageStorage:
        pixel = pair(data, "PixelSpacing") or pair(data, "NominalScannedPixelSpacing")
    rows, columns = pixel or (1.0, 1.0)

    i, j = cosines(data)
    k, slices = np.cross(i, j), 1.0
    between = data.get("SpacingBetweenSlices") if sop_class in _SLICE_SPACING_CLASSES else None
    if between:
        slices = abs(float(between))
        k = k if float(between) > 0 else -k
    elif frames > 1 and sop_class in _SLICE_SPACING_CLASSES and data.get("FrameIncrementPointer") == 0x00181063:
        slices = float(data.get("FrameTime") or 1.0)
    position = data.get("ImagePositionPatient")
    positioned = (
        position is not None
        and len(position) == 3
        and sop_class != uid.NuclearMedicineImageStorage
        and sop_class not in _FUNCTIONAL_GROUP_CLASSES
    )
    origin = tuple(float(v) for v in position) if positioned else (0.0, 0.0, 0.0)
    return Grid((int(data.Columns), int(data.Rows), frames), (columns, rows, slices), origin, np.stack([i, j, k], 1))


def functional_groups(data: Dataset, frames: int) -> list[Dataset]:
    """Return one data set a frame with its functional groups (the shared ones included), empty where there are none."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    if len(per_frame) not in (0, frames) or not (per_frame or shared):
        return []
    groups = []
    for index in range(frames):
        group = Dataset()
        for source in (*shared[:1], *per_frame[index : index + 1]):
            group.update(source)
        groups.append(group)
    return groups


def _first(group: Dataset, name: str) -> Dataset:
    sequence = group.get(name)
    return sequence[0] if sequence else Dataset()


def mean_gap(ascending: np.ndarray) -> float | None:
    """Return the distance of slices from their ascending positions, in millimetres; None where it varies."""
    gaps = np.diff(ascending)
    typical = float(np.median(gaps))
    return float(np.mean(gaps)) if (np.abs(gaps - typical) <= _UNEVEN * typical).all() else None


def _check_positions(
    path: Path,
    ascending: np.ndarray,
    thickness: np.ndarray | None = None,
    numbers: np.ndarray | None = None,
) -> None:
    """Raise ImageError where two slices share a position or some are missing in between.

    Parameters
    ----------
    path : Path
        For the message.
    ascending : ndarray
        Positions along the normal, in millimetres.
    thickness, numbers : ndarray, optional
        Slice thickness in millimetres and instance number of each slice, NaN where not given. They tell a scan whose
        slices are 2.5 mm apart in one part and 5 mm in another from one in which slices are missing.
    """
    gaps = np.diff(ascending)
    typical = float(np.median(gaps))
    if (gaps < max(1e-3, 0.01 * typical)).any():
        at = float(ascending[int(np.argmin(gaps))])
        raise ImageError(
            f"{path} holds more than one slice at the same position ({at:.2f} mm along the stack), such as time points "
            "or echoes; one volume is allowed."
        )
    usual = min(typical, float(np.quantile(gaps, 0.1)))
    for n in np.flatnonzero(gaps > _LARGE_GAP * usual):
        jump = None if numbers is None else _jump(numbers, int(n))
        if jump or (gaps[n] > _LARGE_GAP * typical and not _is_other_distance(gaps, int(n), thickness, jump is False)):
            raise ImageError(
                f"{path} misses slices between {ascending[n]:.2f} and {ascending[n + 1]:.2f} mm along the stack, where "
                f"slices are {usual:.2f} mm apart."
            )


def _jump(numbers: np.ndarray, n: int) -> bool | None:
    """Whether the numbers of slice n and the next one are further apart than usual; None where that is not known."""
    steps = np.abs(np.diff(numbers))
    if not np.isfinite(steps).all() or steps.min() == 0:
        return None
    return bool(steps[n] > _LARGE_GAP * np.median(steps))


def _is_other_distance(gaps: np.ndarray, n: int, thickness: np.ndarray | None, numbered: bool) -> bool:
    """Whether a large gap is the distance that slices have in that part of the scan."""
    if thickness is not None and np.isfinite(thickness).all() and np.ptp(thickness) > _UNEVEN * thickness.min():
        largest = float(np.max(thickness[n : n + 2]))
        if abs(largest - gaps[n]) <= _UNEVEN * gaps[n]:
            return True
    alike = np.abs(gaps - gaps[n]) <= _UNEVEN * gaps[n]
    first, last = n, n
    while first > 0 and alike[first - 1]:
        first -= 1
    while last + 1 < len(gaps) and alike[last + 1]:
        last += 1
    return last - first + 1 >= (_NUMBERED_RUN if numbered else _RUN)


def _numbers(headers: Sequence[Dataset], keyword: str) -> np.ndarray:
    """Return the number that an element holds in each header, NaN where there is none."""
    found = []
    for header in headers:
        try:
            found.append(float(header.get(keyword)))
        except (TypeError, ValueError):
            found.append(float("nan"))
    return np.array(found)


def _known_pixel_spacing(data: Dataset, modality: str | None) -> tuple[float, float] | None:
    """Return (row, column) millimetres in the patient, None where the file does not really say.

    Slices through the patient: Pixel Spacing. Ultrasound: the calibrated 2-D regions, where they agree. Projections
    (DICOM PS3.3 10.7.1.3): Pixel Spacing only where it is calibrated, by its calibration type or because it differs
    from Imager Pixel Spacing; distances at the detector are larger than in the patient and give no areas.
    """
    if data.get("SequenceOfUltrasoundRegions"):
        return _ultrasound_spacing(data)
    pixel = pair(data, "PixelSpacing")
    if pixel is None:
        return None
    if is_slice(data) or modality in ("CT", "MR", "PT", "NM"):
        return pixel[0], pixel[1]
    imager = pair(data, "ImagerPixelSpacing")
    calibrated = data.get("PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL")
    if calibrated or (imager is not None and not np.allclose(imager, pixel, rtol=1e-4)):
        return pixel[0], pixel[1]
    return None


def _tissue_regions(data: Dataset) -> list[Dataset]:
    """Return the regions with 2-D image content (spatial format 1), as opposed to traces, spectra and graphics."""
    return [r for r in data.get("SequenceOfUltrasoundRegions") or [] if r.get("RegionSpatialFormat") == 1]


def _ultrasound_spacing(data: Dataset) -> tuple[float, float] | None:
    found = set()
    for region in _tissue_regions(data):
        if region.get("PhysicalUnitsXDirection") != 3 or region.get("PhysicalUnitsYDirection") != 3:
            return None
        x, y = abs(float(region.get("PhysicalDeltaX") or 0)), abs(float(region.get("PhysicalDeltaY") or 0))
        if not (np.isfinite([x, y]).all() and x > 0 and y > 0):
            return None
        # Centimetres to millimetres; rounded, so that regions written with other digits agree.
        found.add((round(10 * y, 9), round(10 * x, 9)))
    return found.pop() if len(found) == 1 else None


def ultrasound_region(data: Dataset) -> np.ndarray | None:
    """Return the union of the 2-D regions as bool [rows, columns], None where there are none."""
    rows, columns = int(data.Rows), int(data.Columns)
    mask = np.zeros((rows, columns), dtype=bool)
    for region in _tissue_regions(data):
        corners = [region.get(f"RegionLocation{name}") for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if None in corners:
            continue
        x0, y0, x1, y1 = (int(c) for c in corners)
        mask[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)] = True
    return mask if mask.any() else None
