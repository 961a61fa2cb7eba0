"""DICOM files and series folders (pydicom)."""

from __future__ import annotations

import warnings
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length

from medclipsam.errors import ImageError
from medclipsam.imaging.decoding import decode
from medclipsam.imaging.dicom_geometry import (
    file_geometry,
    functional_geometry,
    functional_groups,
    is_slice,
    mean_gap,
    series_geometry,
    sort_slices,
    ultrasound_region,
)
from medclipsam.imaging.dicom_repair import repaired
from medclipsam.imaging.dicom_series import SLICE_TAGS, SeriesVolume, Slice, kind_of, names_of, pixel_digest, volumes_of
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.volumes import MAX_VOXELS, check_size, check_voxels

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

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

# The largest data set of deflated files: 16-bit voxels of the largest image that is read.
MAX_DEFLATED = 2 * MAX_VOXELS
# The largest file whose structure is repaired, which is done in memory.
MAX_REPAIRED = 2**29
# The file meta information lies within these first bytes.
_META_BYTES, _BLOCK = 4096, 2**20

_LUT_ELEMENTS = (
    "PhotometricInterpretation",
    "PixelRepresentation",
    "BitsAllocated",
    "BitsStored",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
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

_PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_RESCALE_ELEMENTS = ("PixelRepresentation", "RescaleSlope", "RescaleIntercept")
_ORIGIN_TAGS = ["PatientID", "StudyInstanceUID", "Modality"]
_HEADER_TAGS = [*SLICE_TAGS, "Modality", "NumberOfFrames"]


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
    """Return the few elements that tell images, series and slices apart; None if the file is not a DICOM image."""
    try:
        header = _dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        with warnings.catch_warnings():
            # values are converted when they are asked for first
            warnings.simplefilter("ignore")
            usable = bool(header.get("Rows")) and header.get("Modality") not in NOT_IMAGES
            is_slice(header)
    except Exception:
        return None
    return header if usable else None


def read_elements(path: Path, names: Sequence[str]) -> Dataset:
    """Return some elements of a DICOM file, whatever it holds, and its file meta information.

    Parameters
    ----------
    path : Path
        The file.
    names : sequence of str
        Keywords of the elements.

    Raises
    ------
    Exception
        Whatever pydicom says is wrong.
    """
    return _dcmread(path, stop_before_pixels=True, specific_tags=[*names, "SOPClassUID", "Rows"])


def should_hold_image(header: Dataset) -> bool:
    """Return whether a header is that of an image by its SOP class, or says nothing of what it is.

    Parameters
    ----------
    header : pydicom.Dataset
        With SOPClassUID, or its file meta information.
    """
    meta = getattr(header, "file_meta", None) or Dataset()
    sop_class = header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID")
    return not sop_class or "Image Storage" in uid.UID(sop_class).name


def read_origin(path: Path) -> tuple[str | None, str | None, str | None]:
    """Return patient, study and modality of a DICOM file or a folder with one series; None for each that is not said.

    Parameters
    ----------
    path : Path
        Image file or series folder; a file of another format says none of them.

    Returns
    -------
    patient : str or None
        PatientID.
    study : str or None
        StudyInstanceUID.
    modality : str or None

    Raises
    ------
    ImageError
        If it cannot be read who the patient is: taken for a patient of its own, the image could be trained on and
        validated with at once.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error.strerror or error}.") from error
    problem: Exception | None = None
    for file in files:
        if path.is_dir() and (file.name.startswith(".") or file.is_dir()):
            continue
        try:
            origin = _origin(file)
        except Exception as error:
            problem = problem or error
        else:
            if origin is not None:
                return origin
    if problem is not None:
        raise ImageError(f"The patient of {path} cannot be read: {_sentence(problem)}.") from problem
    return None, None, None


def _origin(file: Path) -> tuple[str | None, str | None, str | None] | None:
    """Return patient, study and modality of a DICOM file; None for a file of another format."""
    file.open("rb").close()  # not to be opened is another thing than to be of another format
    if not looks_like_dicom(file):
        if file.name.lower().endswith(DICOM_SUFFIXES):
            raise ImageError(f"{file.name} is not DICOM")
        return None
    header = _dcmread(file, stop_before_pixels=True, specific_tags=[*_ORIGIN_TAGS, "Rows"])
    patient, study, modality = (str(header.get(tag) or "").strip() or None for tag in _ORIGIN_TAGS)
    if patient is None and study is None and "Rows" not in header:
        raise ImageError(f"the header of {file.name} is cut off")
    return patient, study, modality


def read_dicom(path: Path, modality: str | None = None) -> MedicalImage:
    """Read one DICOM file, single-frame or multi-frame; see `read_image`."""
    data = _read(path)
    stored = _pixels(path, data)
    frames = stored.shape[0]
    modality = modality or data.get("Modality") or None
    groups = functional_groups(data, frames)
    geometry = functional_geometry(path, data, groups) or file_geometry(data, frames, modality)
    return MedicalImage(
        source=path,
        stored=stored,
        grid=geometry.grid,
        layout=geometry.layout,
        modality=modality,
        known_spacing=geometry.spacing,
        luts=[_lut_elements(data, group) for group in groups] or [_lut_elements(data)],
        region=ultrasound_region(data),
    )


def read_series(folder: Path, files: Sequence[Path], modality: str | None = None) -> MedicalImage:
    """Read the DICOM files of one folder as one volume, sorted by position; see `read_image`.

    Scouts, screenshots and second copies of a slice are not part of the volume; `MedicalImage.notes` names them. The
    slices may differ in data type and rescale; where their distance varies, `plane_spacing` is None and the voxel grid
    has the mean distance, as in ITK.

    Raises
    ------
    ImageError
        If the files are of several series or form several volumes, or are not the slices of one volume: two slices at
        one position, or a gap where slices are missing.
    """
    ordered, positions, volume = _volume_files(folder, files)
    for copy, kept in volume.copies:
        _check_copy(copy, kept)
    if len(ordered) == 1:
        image = read_dicom(ordered[0], modality)
        image.notes = volume.notes
        return image
    first = _read(ordered[0])
    stored = np.empty(0)
    luts = []
    for index, path in enumerate(ordered):
        data = first if index == 0 else _read(path)
        pixels = _pixels(path, data)
        if index == 0:
            check_size(folder, (len(ordered), *pixels.shape[1:3]))
            stored = np.empty((len(ordered), *pixels.shape[1:]), dtype=pixels.dtype)
        if pixels.shape[1:] != stored.shape[1:]:
            raise ImageError(
                f"{path} holds pixels of shape {pixels.shape[1:]}, the slices before it {stored.shape[1:]}; one volume "
                "is allowed."
            )
        if pixels.dtype != stored.dtype:
            stored = stored.astype(np.result_type(stored.dtype, pixels.dtype), copy=False)
        stored[index] = pixels[0]
        luts.append(_lut_elements(data))
    modality = modality or first.get("Modality") or None
    geometry = series_geometry(first, _read(ordered[-1], pixels=False), positions, modality)
    notes = volume.notes
    if mean_gap(positions) is None:
        gaps = np.diff(positions)
        notes += (
            f"The distance of slices varies from {gaps.min():.2f} to {gaps.max():.2f} mm. Masks are made slice by "
            "slice; NIfTI and NRRD files of this image have the mean distance.",
        )
    return MedicalImage(
        source=folder,
        stored=stored,
        grid=geometry.grid,
        layout=geometry.layout,
        modality=modality,
        known_spacing=geometry.spacing,
        luts=luts,
        notes=notes,
    )


def source_headers(path: Path) -> list[Dataset]:
    """Return the headers, whole but for the pixels, of the DICOM files that an image was read from.

    Parameters
    ----------
    path : Path
        A file, or the folder of a series.

    Returns
    -------
    list of pydicom.Dataset
        In the order of the voxels' first axis: slice by slice as ITK stacks them, or one multi-frame file.

    Raises
    ------
    ImageError
        Where `read_image` raises it.
    """
    if not path.is_dir():
        return [_read(path, pixels=False)]
    files, _, _ = _volume_files(path, sorted(file for file in path.iterdir() if looks_like_dicom(file)))
    return [_read(file, pixels=False) for file in files]


def stored_pixels(path: Path) -> str:
    """Return a digest of a DICOM file's pixels as they are stored; that of its name where they cannot be read."""
    try:
        return pixel_digest(_dcmread(path, specific_tags=[*_PIXEL_ELEMENTS, "BitsAllocated", *_RESCALE_ELEMENTS]))
    except Exception:
        return str(path)


def _volume_files(folder: Path, files: Sequence[Path]) -> tuple[list[Path], np.ndarray, SeriesVolume]:
    """Return the files of the one volume of a folder in the order of their positions, the positions, and what it is."""
    headers = _image_headers(folder, files)
    if len(headers) == 1:
        return [headers[0][0]], np.zeros(1), SeriesVolume("", (headers[0][0],))
    known = dict(headers)
    slices = [Slice.from_header(path, header) for path, header in headers if is_slice(header)]
    volumes = volumes_of(slices, stored_pixels)
    if len(volumes) > 1:
        names = ", ".join(f"{volume.key} ({len(volume.files)} slices)" for volume in volumes)
        raise ImageError(
            f"{folder} holds {len(volumes)} volumes of one series: {names}; give a folder with one of them. In a "
            "studies folder each of them is an image."
        )
    volume = volumes[0]
    apart = [path for path, header in headers if not is_slice(header)]
    if apart:
        volume = replace(
            volume,
            left_out=(*volume.left_out, *apart),
            notes=(*volume.notes, f"Left out as scouts or screenshots: {names_of(apart)}."),
        )
    if len(volume.files) == 1:
        return [volume.files[0]], np.zeros(1), volume
    ordered, positions = sort_slices(folder, [(path, known[path]) for path in volume.files])
    return ordered, positions, volume


def _check_copy(copy: Path, kept: Path) -> None:
    """Raise ImageError if a file that should hold the same slice as another one holds other pixels."""
    one, other = (_pixels(path, _read(path)) for path in (copy, kept))
    if not np.array_equal(one, other):
        raise ImageError(f"{copy} and {kept.name} have one SOP Instance UID but other pixels; remove one of them.")


def _image_headers(folder: Path, files: Sequence[Path]) -> list[tuple[Path, Dataset]]:
    """Return the files that hold images with their few elements, where they are of one series."""
    headers = [(path, header) for path in files if (header := read_header(path)) is not None]
    if not headers:
        raise ImageError(f"{folder} holds no DICOM image.")
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for path, header in headers:
        series[str(header.get("SeriesInstanceUID", ""))].append((path, header))
    if len(series) > 1:
        names = ", ".join(f"{name or 'without a UID'} ({len(members)} files)" for name, members in series.items())
        raise ImageError(f"{folder} holds {len(series)} DICOM series; give a folder with one of them: {names}.")
    slices = [path for path, header in headers if is_slice(header)]
    others = [path for path, header in headers if not is_slice(header) and kind_of(header) == "slice"]
    if len(headers) > 1 and (others or not slices):
        raise ImageError(
            f"{folder} holds {len(headers)} DICOM files that are not slices of one volume ({names_of(others)}: no "
            "position in the patient, or several frames); give one file."
        )
    return headers


def _dcmread(path: Path, **options: Any) -> Dataset:
    with warnings.catch_warnings():
        # Broken value representations and the like are common and none of the user's business.
        warnings.simplefilter("ignore")
        _check_deflated(path)
        try:
            try:
                data = pydicom.dcmread(path, **options)
            except InvalidDicomError:
                data = pydicom.dcmread(path, force=True, **options)
            if not _lacks_pixels(data, options):
                return data
        except Exception:
            data = None
        content = repaired_file(path)
        if content is not None:
            return pydicom.dcmread(BytesIO(content), force=True, **options)
        return pydicom.dcmread(path, force=True, **options) if data is None else data


def _lacks_pixels(data: Dataset, options: dict[str, Any]) -> bool:
    """Return whether a file that should hold an image was read without its size, or with too few of its pixels."""
    wanted = options.get("specific_tags")
    if wanted is not None and "Rows" not in wanted:
        return False
    if not data.get("Rows"):
        return should_hold_image(data)
    if options.get("stop_before_pixels") or wanted is not None:
        return False
    meta = getattr(data, "file_meta", None) or Dataset()
    if "PixelData" not in data or uid.UID(meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)).is_encapsulated:
        return "PixelData" not in data and "FloatPixelData" not in data and "DoubleFloatPixelData" not in data
    return len(data.PixelData or b"") < get_expected_length(data)


def repaired_file(path: Path) -> bytes | None:
    """Return a DICOM file with its structure repaired; None where that need not or cannot be."""
    return repaired(path.read_bytes()) if path.stat().st_size <= MAX_REPAIRED else None


def _check_deflated(path: Path) -> None:
    """Raise ImageError if a file whose whole data set is deflated unpacks to more than an image may be.

    pydicom unpacks it in one piece, to whatever size; this looks first, a little at a time.
    """
    with path.open("rb") as file:
        head = file.read(_META_BYTES)
        if uid.DeflatedExplicitVRLittleEndian.encode() not in head:
            return
        # the group length, 12 bytes behind the preamble, counts from its own end
        file.seek(144 + int.from_bytes(head[140:144], "little"))
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := inflate.unconsumed_tail or file.read(_BLOCK):
            size += len(inflate.decompress(block, _BLOCK))
            if size > MAX_DEFLATED:
                raise ImageError(f"{path} unpacks to more than {MAX_DEFLATED} bytes; that is no image.")


def _read(path: Path, pixels: bool = True) -> Dataset:
    try:
        data = _dcmread(path, stop_before_pixels=not pixels)
    except ImageError:
        raise
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
    check_size(path, (int(data.get("NumberOfFrames") or 1), int(data.Rows), int(data.Columns)))
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
            pixels = decode(data)
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
    return check_voxels(path, pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


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


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or type(error).__name__
