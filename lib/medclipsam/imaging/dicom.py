"""DICOM files and series folders (pydicom).

The grid follows what ITK's GDCM reader makes of the same file, class by class, so that a mask lies on the image in any
ITK program; the tests compare it with SimpleITK. Distances that are really known are worked out apart from it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array

from medclipsam.errors import ImageError
from medclipsam.imaging.geometry import Grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.orientation import directions_from_letters, layout_for
from medclipsam.imaging.volumes import check_voxels

# Objects that lie beside images but are none.
NOT_IMAGES = frozenset(
    {
        "SEG",
        "SR",
        "PR",
        "KO",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "RTRECORD",
        "REG",
        "FID",
        "DOC",
        "PLAN",
        "ECG",
        "HD",
        "AU",
    }
)

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

_LUT_ELEMENTS = (
    "PhotometricInterpretation",
    "PixelRepresentation",
    "BitsAllocated",
    "BitsStored",
    "PixelPaddingValue",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PaletteColorLookupTableUID",
    *(f"{c}PaletteColorLookupTable{w}" for c in ("Red", "Green", "Blue", "Alpha") for w in ("Descriptor", "Data")),
    *(f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue", "Alpha")),
)

_HEADER_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
]


def looks_like_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content: the preamble, or a data set that starts without one."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    if head[128:132] == b"DICM":
        return True
    # Old files start with group 0002 or 0008, little or big endian.
    if head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"):
        return False
    try:
        header = _dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "Rows"])
    except Exception:
        return False
    return "SOPClassUID" in header or "Rows" in header


def read_header(path: Path) -> Dataset | None:
    """Return the few elements that tell images, series and slices apart; None if the file is no DICOM image."""
    try:
        header = _dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
    except Exception:
        return None
    if not header.get("Rows") or header.get("Modality") in NOT_IMAGES:
        return None
    return header


def is_slice(header: Dataset) -> bool:
    """Whether a header is that of one slice of a volume: a single frame with a position in the patient."""
    return (
        int(header.get("NumberOfFrames") or 1) == 1
        and len(header.get("ImagePositionPatient") or ()) == 3
        and len(header.get("ImageOrientationPatient") or ()) == 6
    )


def read_dicom(path: Path, modality: str | None = None) -> MedicalImage:
    """Read one DICOM file, single-frame or multi-frame; see `read_image`."""
    data = _read(path)
    stored = _pixels(path, data)
    frames = stored.shape[0]
    modality = modality or data.get("Modality") or None
    functional = _functional_groups(data, frames)
    geometry = _enhanced_geometry(path, data, functional) if functional else None
    if geometry is not None:
        grid, directions, order, plane_spacing, pixel_spacing = geometry
        spacing: tuple[float | None, float | None, float | None] = (
            plane_spacing,
            *(pixel_spacing or (None, None)),
        )
    else:
        grid = _classic_grid(data, frames)
        directions, order = _directions(data, modality), None if frames == 1 else tuple(range(frames))
        spacing = (None, *(_known_pixel_spacing(data, modality) or (None, None)))
    layout = layout_for(stored.shape[:3], (1.0, 1.0, 1.0), directions, stack_axis=0, plane_order=order)
    luts = [_lut_elements(data, group) for group in functional] if functional else [_lut_elements(data)]
    return MedicalImage(
        source=path,
        stored=stored,
        grid=grid,
        layout=layout,
        modality=modality,
        known_spacing=spacing,
        luts=luts,
        region=_ultrasound_region(data),
    )


def read_series(folder: Path, files: Sequence[Path], modality: str | None = None) -> MedicalImage:
    """Read the DICOM files of one folder as one volume, sorted by position; see `read_image`.

    Raises
    ------
    ImageError
        If the files are of several series, or are not the slices of one volume: other sizes or orientations, two
        slices at one position, or a gap where slices are missing.
    """
    headers = [(path, header) for path in files if (header := read_header(path)) is not None]
    if not headers:
        raise ImageError(f"{folder} holds no DICOM image.")
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for path, header in headers:
        series[str(header.get("SeriesInstanceUID", ""))].append((path, header))
    if len(series) > 1:
        names = ", ".join(f"{name or 'without a UID'} ({len(members)} files)" for name, members in series.items())
        raise ImageError(f"{folder} holds {len(series)} DICOM series; give a folder with one of them: {names}.")
    if len(headers) == 1:
        return read_dicom(headers[0][0], modality)
    if not all(is_slice(header) for _, header in headers):
        raise ImageError(
            f"{folder} holds {len(headers)} DICOM files that are not slices of one volume (no position in the "
            "patient, or several frames); give one file."
        )
    ordered, positions = _sort_slices(folder, headers)
    normal = _normal(ordered[0][1])
    first = _read(ordered[0][0])
    stored: np.ndarray | None = None
    luts = []
    for index, (path, _) in enumerate(ordered):
        data = first if index == 0 else _read(path)
        pixels = _pixels(path, data)
        if stored is None:
            stored = np.empty((len(ordered), *pixels.shape[1:]), dtype=pixels.dtype)
        if pixels.shape[1:] != stored.shape[1:]:
            raise ImageError(f"{path} has the shape {pixels.shape[1:]}, the series' others {stored.shape[1:]}.")
        if pixels.dtype != stored.dtype:
            raise ImageError(f"{path} holds {pixels.dtype} values, the series' other files {stored.dtype}.")
        stored[index] = pixels[0]
        luts.append(_lut_elements(data))
    assert stored is not None
    last = _read(ordered[-1][0], pixels=False)
    grid = _series_grid(first, last, len(ordered))
    modality = modality or first.get("Modality") or None
    i, j = _cosines(first)
    layout = layout_for(stored.shape[:3], (1.0, 1.0, 1.0), np.stack([normal, j, i], axis=1), stack_axis=0)
    gap = float(np.mean(np.diff(positions)))
    return MedicalImage(
        source=folder,
        stored=stored,
        grid=grid,
        layout=layout,
        modality=modality,
        known_spacing=(gap, *(_known_pixel_spacing(first, modality) or (None, None))),
        luts=luts,
    )


def _dcmread(path: Path, **options: Any) -> Dataset:
    with warnings.catch_warnings():
        # Broken value representations and the like are common and none of the user's business.
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, **options)
        except InvalidDicomError:
            return pydicom.dcmread(path, force=True, **options)


def _read(path: Path, pixels: bool = True) -> Dataset:
    try:
        data = _dcmread(path, stop_before_pixels=not pixels)
    except Exception as error:
        raise ImageError(f"{path} cannot be read as DICOM; it is damaged or truncated ({_sentence(error)}).") from error
    if data.get("Modality") in NOT_IMAGES:
        raise ImageError(f"{path} is a DICOM {data.Modality} object, not an image.")
    if not data.get("Rows") or not data.get("Columns"):
        raise ImageError(f"{path} is DICOM but holds no image (no rows and columns).")
    return data


def _pixels(path: Path, data: Dataset) -> np.ndarray:
    """Return the frames as [frame, row, column] or [frame, row, column, 3], and drop the encoded pixels."""
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ImageError(f"{path} is DICOM but its pixel data is missing.")
    if "TransferSyntaxUID" not in getattr(data, "file_meta", ()):
        implicit, little = data.original_encoding
        data.ensure_file_meta()
        data.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if implicit
            else uid.ExplicitVRLittleEndian
            if little
            else uid.ExplicitVRBigEndian
        )
    syntax = data.file_meta.TransferSyntaxUID
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = pixel_array(data)
    except Exception as error:
        if syntax.is_compressed:
            raise ImageError(
                f"{path} cannot be decoded from transfer syntax {syntax.name} ({syntax}): {_sentence(error)}."
            ) from error
        raise ImageError(f"{path} has unusable pixel data; it is damaged or truncated ({_sentence(error)}).") from error
    for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if name in data:
            del data[name]
    samples = int(data.get("SamplesPerPixel") or 1)
    shape = (-1, int(data.Rows), int(data.Columns)) + ((samples,) if samples > 1 else ())
    pixels = pixels.reshape(shape)
    if samples not in (1, 3):
        raise ImageError(f"{path} has {samples} samples a pixel; 1 and 3 are allowed.")
    return check_voxels(path, pixels)


def _lut_elements(data: Dataset, group: Dataset | None = None) -> Dataset:
    """Return the elements that turn stored values into shown ones; those of a frame's functional group go first."""
    lut = Dataset()
    # The byte order of look-up tables is read from here.
    lut.file_meta = data.file_meta
    for source in (data, *_value_groups(group)):
        for keyword in _LUT_ELEMENTS:
            if keyword in source and source[keyword].value not in (None, ""):
                lut[keyword] = source[keyword]
    if "RescaleSlope" in lut and float(lut.RescaleSlope) == 0.0:
        del lut.RescaleSlope
    if not _usable_window(lut) and "WindowWidth" in lut:
        del lut.WindowWidth
    return lut


def _value_groups(group: Dataset | None) -> list[Dataset]:
    if group is None:
        return []
    names = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    return [group[name][0] for name in names if group.get(name)]


def _usable_window(lut: Dataset) -> bool:
    width, center = lut.get("WindowWidth"), lut.get("WindowCenter")
    if width is None or center is None:
        return False
    widths, centers = np.atleast_1d(np.asarray(width, float)), np.atleast_1d(np.asarray(center, float))
    least = 1.0 if lut.get("VOILUTFunction", "LINEAR") == "LINEAR" else np.nextafter(0.0, 1.0)
    return bool(widths.size and centers.size and widths[0] >= least and np.isfinite(centers[0]))


def _cosines(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit LPS directions of i and j; along the axes where the file says nothing usable."""
    values = data.get("ImageOrientationPatient")
    if values is not None and len(values) == 6:
        i, j = np.asarray(values[:3], float), np.asarray(values[3:], float)
        lengths = np.linalg.norm(i), np.linalg.norm(j)
        if min(lengths) > 0:
            return i / lengths[0], j / lengths[1]
    return np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])


def _normal(data: Dataset) -> np.ndarray:
    return np.cross(*_cosines(data))


def _directions(data: Dataset, modality: str | None) -> np.ndarray | None:
    """Return the LPS directions of k, j, i for display, None where the file says nothing.

    Mammograms are hung by view, not by patient axes: they are shown as stored.
    """
    if len(data.get("ImageOrientationPatient") or ()) == 6:
        i, j = _cosines(data)
        return np.stack([np.cross(i, j), j, i], axis=1)
    if modality == "MG":
        return None
    orientation = data.get("PatientOrientation")
    return directions_from_letters(list(orientation)) if orientation and not isinstance(orientation, str) else None


def _numbers(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return `count` positive finite numbers of an element, None where it holds none."""
    value = data.get(keyword)
    if value is None or value == "":
        return None
    numbers = tuple(float(v) for v in np.atleast_1d(np.asarray(value, dtype=float)))
    return numbers if len(numbers) == count and all(np.isfinite(n) and n > 0 for n in numbers) else None


def _classic_grid(data: Dataset, frames: int) -> Grid:
    """Return ITK's grid of a file whose geometry lies in the top level of the data set."""
    sop_class = data.get("SOPClassUID")
    pixel = None
    if sop_class in _IMAGER_SPACING_CLASSES:
        pixel = _numbers(data, "ImagerPixelSpacing", 2)
    elif sop_class in _PIXEL_SPACING_CLASSES:
        pixel = _numbers(data, "PixelSpacing", 2)
    elif sop_class == uid.SecondaryCaptureImageStorage:
        pixel = _numbers(data, "PixelSpacing", 2) or _numbers(data, "NominalScannedPixelSpacing", 2)
    rows, columns = pixel or (1.0, 1.0)

    i, j = _cosines(data)
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


def _series_grid(first: Dataset, last: Dataset, count: int) -> Grid:
    """Return ITK's grid of a series: the first slice's, with the slices' mean distance."""
    one = _classic_grid(first, 1)
    end = _classic_grid(last, 1)
    distance = float(np.linalg.norm(np.subtract(end.origin, one.origin))) / (count - 1)
    return Grid((*one.size[:2], count), (*one.spacing[:2], distance or 1.0), one.origin, one.direction)


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


def _functional_groups(data: Dataset, frames: int) -> list[Dataset]:
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


def _enhanced_geometry(
    path: Path, data: Dataset, groups: list[Dataset]
) -> tuple[Grid, np.ndarray, tuple[int, ...] | None, float | None, tuple[float, float] | None] | None:
    """Return grid, directions, plane order, plane spacing and pixel spacing of functional groups, None without them."""
    orientations = [_first(group, "PlaneOrientationSequence") for group in groups]
    positions = [_first(group, "PlanePositionSequence") for group in groups]
    measures = [_first(group, "PixelMeasuresSequence") for group in groups]
    if any("ImageOrientationPatient" not in o for o in orientations) or any(
        "ImagePositionPatient" not in p for p in positions
    ):
        return None
    i, j = _cosines(orientations[0])
    for other in orientations[1:]:
        if not np.allclose(np.concatenate(_cosines(other)), np.concatenate([i, j]), atol=1e-3):
            raise ImageError(f"{path} holds frames of several orientations; one volume is allowed.")
    spacings = {_numbers(m, "PixelSpacing", 2) for m in measures}
    if len(spacings) > 1:
        raise ImageError(f"{path} holds frames of several pixel spacings: {sorted(map(str, spacings))}.")
    pixel = next(iter(spacings))
    normal = np.cross(i, j)
    places = np.array([p.ImagePositionPatient for p in positions], dtype=float)
    distances = places @ normal
    frames = len(groups)
    order: tuple[int, ...] | None = None
    gap = None
    stacked = frames > 1 and float(np.ptp(distances)) < 1e-3
    if stacked:
        order = tuple(range(frames))
    elif frames > 1:
        ascending = np.argsort(distances, kind="stable")
        gap = _check_positions(path, distances[ascending])
        towards_head = layout_for((frames, 1, 2), (1.0, 1.0, 1.0), np.stack([normal, j, i], 1), stack_axis=0)
        # layout_for orders planes that ascend along the normal; here the frames come in any order.
        order = tuple(int(ascending[n]) for n in towards_head.plane_order)

    mean = float(distances[-1] - distances[0]) / (frames - 1) if frames > 1 else 0.0
    regular = frames > 1 and not stacked and bool(np.all(np.abs(np.diff(distances) - mean) <= 1e-3))
    if frames == 1:
        between = measures[0].get("SpacingBetweenSlices")
        rows, columns = pixel or (1.0, 1.0)
        slices = float(between) if between else 1.0
    elif regular:
        rows, columns = pixel or (1.0, 1.0)
        slices = mean
    else:
        # ITK gives such files a spacing of 1 on all axes.
        rows = columns = slices = 1.0
    direction = np.stack([i, j, normal if slices > 0 else -normal], axis=1)
    grid = Grid(
        (int(data.Columns), int(data.Rows), frames),
        (columns, rows, abs(slices)),
        tuple(float(v) for v in places[0]),
        direction,
    )
    return grid, np.stack([normal, j, i], axis=1), order, gap, pixel  # type: ignore[return-value]


def _first(group: Dataset, name: str) -> Dataset:
    sequence = group.get(name)
    return sequence[0] if sequence else Dataset()


def _sort_slices(folder: Path, headers: list[tuple[Path, Dataset]]) -> tuple[list[tuple[Path, Dataset]], np.ndarray]:
    reference = headers[0][1]
    i, j = _cosines(reference)
    sizes = {(int(h.Rows), int(h.Columns)) for _, h in headers}
    if len(sizes) > 1:
        raise ImageError(f"{folder} holds slices of several sizes {sorted(sizes)}; one volume is allowed.")
    for path, header in headers:
        if not np.allclose(np.concatenate(_cosines(header)), np.concatenate([i, j]), atol=1e-3):
            raise ImageError(f"{folder} holds slices of several orientations ({path.name} differs); one is allowed.")
    normal = np.cross(i, j)
    distances = np.array([np.asarray(h.ImagePositionPatient, dtype=float) @ normal for _, h in headers])
    order = np.argsort(distances, kind="stable")
    _check_positions(folder, distances[order])
    return [headers[n] for n in order], distances[order]


def _check_positions(path: Path, ascending: np.ndarray) -> float:
    """Return the mean distance of slices; raise ImageError where two share a position or some are missing."""
    gaps = np.diff(ascending)
    typical = float(np.median(gaps))
    if (gaps < max(1e-3, 0.01 * typical)).any():
        at = float(ascending[int(np.argmin(gaps))])
        raise ImageError(
            f"{path} holds more than one slice at the same position ({at:.2f} mm along the stack), such as time points "
            "or echoes; one volume is allowed."
        )
    if (gaps > 1.5 * typical).any():
        n = int(np.argmax(gaps))
        raise ImageError(
            f"{path} misses slices between {ascending[n]:.2f} and {ascending[n + 1]:.2f} mm along the stack, where "
            f"slices lie {typical:.2f} mm apart."
        )
    return float(np.mean(gaps))


def _known_pixel_spacing(data: Dataset, modality: str | None) -> tuple[float, float] | None:
    """Return (row, column) millimetres in the patient, None where the file does not really say.

    Slices through the patient: Pixel Spacing. Ultrasound: the calibrated 2-D regions, where they agree. Projections
    (DICOM PS3.3 10.7.1.3): Pixel Spacing only where it is calibrated, by its calibration type or because it differs
    from Imager Pixel Spacing; distances at the detector are larger than in the patient and give no areas.
    """
    if data.get("SequenceOfUltrasoundRegions"):
        return _ultrasound_spacing(data)
    pixel = _numbers(data, "PixelSpacing", 2)
    if pixel is None:
        return None
    if is_slice(data) or modality in ("CT", "MR", "PT", "NM"):
        return pixel[0], pixel[1]
    imager = _numbers(data, "ImagerPixelSpacing", 2)
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


def _ultrasound_region(data: Dataset) -> np.ndarray | None:
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


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or type(error).__name__
