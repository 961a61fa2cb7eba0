"""DICOM files and series folders (pydicom)."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import Tag

from medclipsam.base.errors import ImageError, OptionError
from medclipsam.base.formats import DICOM_SUFFIXES
from medclipsam.imaging import isolation
from medclipsam.imaging.decoding import decode
from medclipsam.imaging.dicom_frames import FRAME_TAGS, FrameVolume, read_choice, volumes_of_frames
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
from medclipsam.imaging.limits import HEADER_SECONDS, MAX_EXTRA, MAX_HEADER, allow_voxels
from medclipsam.imaging.volumes import check_size, check_voxels

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


# The largest file whose structure is repaired, which is done in memory.
MAX_REPAIRED = 2**29
_BLOCK = 2**20
# What the size of the pixel data is computed from.
_SIZE_TAGS = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"]
_PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)

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

# Modalities that tell nothing of how the image was made, and those that are one kind of image.
_UNTOLD = frozenset({"OT", "SC", "DOC", "XC"})
_RADIOGRAPHS = frozenset({"CR", "DX"})
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
        header = read_tags(path, ["SOPClassUID", "Rows"])
    except Exception:
        return False
    return "SOPClassUID" in header or "Rows" in header


def read_header(path: Path) -> Dataset | None:
    """Return the few elements that tell images, series and slices apart; None if the file is not a DICOM image."""
    try:
        header = read_tags(path, _HEADER_TAGS)
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
    return read_tags(path, [*names, "SOPClassUID", "Rows"])


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
    header = read_tags(file, [*_ORIGIN_TAGS, "Rows"])
    patient, study, modality = (str(header.get(tag) or "").strip() or None for tag in _ORIGIN_TAGS)
    if patient is None and study is None and "Rows" not in header:
        raise ImageError(f"the header of {file.name} is cut off")
    return patient, study, modality


def read_frame_volumes(path: Path) -> list[FrameVolume]:
    """Return the volumes of a multi-frame file that holds several.

    Returns
    -------
    list of FrameVolume
        Two or more; empty for any other file, and where the header does not tell.
    """
    try:
        volumes = _frame_volumes(read_tags(path, FRAME_TAGS))
    except Exception:  # who reads the file gets a sentence
        return []
    return volumes if len(volumes) > 1 else []


def _frame_volumes(data: Dataset) -> list[FrameVolume]:
    """Return the volumes of a file's frames, see `volumes_of_frames`; none where its header is too broken to tell."""
    try:
        return volumes_of_frames(data)
    except Exception:  # its geometry is checked by itself
        return []


def read_dicom(path: Path, modality: str | None = None, volume: str | None = None) -> MedicalImage:
    """Read one DICOM file, single-frame or multi-frame; see `read_image`.

    Parameters
    ----------
    path : Path
        The file.
    modality : str, optional
        Where the file does not say it.
    volume : str, optional
        Key of one of several volumes that the frames form, see `read_frame_volumes`.

    Raises
    ------
    ImageError
        If the frames form several volumes and none of them is named, or one that is not there.
    """
    data = _read(path)
    stored = _pixels(path, data)
    frames = stored.shape[0]
    modality = _modality(path, data, modality)
    groups = functional_groups(data, frames)
    chosen = _chosen_volume(path, _frame_volumes(data), volume)
    if chosen is not None:
        stored = stored[list(chosen.frames)]
        groups = [groups[frame] for frame in chosen.frames]
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
        notes=chosen.notes if chosen is not None else (),
        frames=chosen.frames if chosen is not None else None,
    )


def _chosen_volume(path: Path, volumes: Sequence[FrameVolume], key: str | None) -> FrameVolume | None:
    """Return the volume of a file that is read; None where all frames are."""
    if key is None and len(volumes) < 2:
        return volumes[0] if volumes else None
    found = next((each for each in volumes if each.key == key), None)
    if found is None:
        names = ", ".join(f"{each.key} ({len(each.frames)} frames)" for each in volumes)
        raise ImageError(
            f"{path} holds {len(volumes)} volumes in its frames: {names}; which of them is meant is not known. In a "
            "studies folder each of them is an image."
        )
    return found


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
        choice = read_choice(folder)
        image = read_dicom(ordered[0], modality, choice)
        image.notes += volume.notes
        if choice is not None:
            # by which the volume is found again
            image.source = folder
        return image
    first = _read(ordered[0])
    stored = np.empty(0)
    luts = []
    for index, path in enumerate(ordered):
        data = first if index == 0 else _read(path)
        pixels = _pixels(path, data)
        if index == 0:
            check_size(folder, (len(ordered), *pixels.shape[1:3]), pixels[0, 0, 0].nbytes)
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
    modality = _modality(folder, first, modality)
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


def _modality(path: Path, data: Dataset, given: str | None) -> str | None:
    """Return the modality of a DICOM file; `given` stands for one that the file does not say."""
    said = str(data.get("Modality") or "").strip() or None
    if given is None or said is None or said in _UNTOLD:
        return given or said
    if said != given.upper() and not {said, given.upper()} <= _RADIOGRAPHS:
        raise OptionError("modality", given, f"{said}, which {path.name} says itself, or none")
    return given


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
        digest: str = _stored_pixels(path) if has_short_header(path) else isolation.call(_stored_pixels, path)
    except Exception:
        return str(path)
    return digest


def _stored_pixels(path: Path) -> str:
    return pixel_digest(read_data(path))


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


def has_short_header(path: Path) -> bool:
    """Return whether a file is uncompressed and holds little beside its pixels, so that it takes little to parse."""
    try:
        with path.open("rb") as file:
            head = _Bounded(file, MAX_HEADER)
            data = _parse(path, head, _SIZE_TAGS)
            syntax = data.file_meta.get("TransferSyntaxUID")
            if syntax is not None and (syntax.is_compressed or syntax.is_deflated):
                return False
            start, size = head.tell(), path.stat().st_size
            tag, length = _next_element(file, data)
    except Exception:
        return False
    if tag not in _PIXEL_DATA or not data.get("Rows"):
        return False
    # a length that is wrong is corrected in the other process
    stated = _check_stated_size(path, data)
    # of bits, and of colours of which some are stored for two pixels, there are fewer bytes
    least = stated // 8 if data.get("BitsAllocated") == 1 else stated * 2 // 3
    return bool(least <= length <= size - start <= length + MAX_HEADER)


@contextmanager
def at_pixels(path: Path, tags: Sequence[str | int]) -> Iterator[tuple[Dataset, BinaryIO, int]]:
    """Open a DICOM file at the value of its pixel data.

    Parameters
    ----------
    path : Path
        The file.
    tags : sequence of str
        Keywords of the elements before the pixels that are wanted.

    Yields
    ------
    header : pydicom.Dataset
        These elements, and the file meta information.
    file : binary file
        At the first byte of the value.
    length : int
        Bytes of the value; 2**32 - 1 where it is encapsulated.

    Raises
    ------
    ImageError
        If there is no pixel data behind a header of a usual length.
    """
    with path.open("rb") as file:
        try:
            data = _parse(path, _Bounded(file, MAX_HEADER if not isolation.inside else None), tags)
        except _LongHeaderError:
            raise ImageError(f"{path.name} has a header of more than {MAX_HEADER} bytes.") from None
        tag, length = _next_element(file, data)
        if tag not in _PIXEL_DATA:
            raise ImageError(f"{path.name} is DICOM but its pixel data is missing.")
        yield data, file, length


def _next_element(file: BinaryIO, data: FileDataset) -> tuple[int, int]:
    """Return tag and length of the element that a file is at, and go to its value."""
    head = file.read(8)
    implicit, little = data.original_encoding
    order = "<" if little else ">"
    if len(head) < 8:
        return 0, 0
    group, number, length = struct.unpack(f"{order}HHI", head)
    if not implicit:
        # the pixels' value representations have lengths of four bytes, behind two that are reserved
        (length,) = struct.unpack(f"{order}I", file.read(4).ljust(4, b"\0"))
    return group << 16 | number, length


class _LongHeaderError(Exception):
    """A header is longer than what is parsed in this process."""


class _Bounded:
    """A file of which only the first bytes can be read; without a limit all there are.

    More than there is may be asked for: a file object of Python takes that much memory, whatever the file's size.
    """

    def __init__(self, file: BinaryIO, limit: int | None = None) -> None:
        self._file = file
        self.is_whole = limit is None
        self._limit = os.fstat(file.fileno()).st_size if limit is None else limit
        self.name = file.name
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.tell() + size > self._limit:
            # at the end of the file less is read than was asked for
            rest = self._file.read(max(0, self._limit - self.tell()))
            if self._file.read(1):
                raise _LongHeaderError
            return rest
        return self._file.read(size)


def read_tags(path: Path, tags: Sequence[str | int] | None) -> Dataset:
    """Return a few elements of a DICOM file, or all that stand before the pixels.

    A long header is parsed in another process.

    Parameters
    ----------
    path : Path
        The file.
    tags : sequence of str, optional
        Keywords of the elements; by default all.

    Raises
    ------
    Exception
        Whatever the parser says is wrong.
    """
    try:
        with path.open("rb") as file:
            data = _parse(path, _Bounded(file, MAX_HEADER), tags)
        if not _lacks_pixels(data, tags, pixels=False):
            return data
    except Exception as error:
        _raise_if_unreadable(error)
    # a long header, or one to be repaired
    found: Dataset = isolation.call(_read_tags, path, tags, seconds=HEADER_SECONDS)
    return found


def _raise_if_unreadable(error: Exception) -> None:
    """Raise what the operating system says of a file; pydicom raises errors of the same type for damaged ones."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _read_tags(path: Path, tags: Sequence[str | int] | None) -> Dataset:
    data = _or_repaired(path, tags, pixels=False)
    # without the file
    found = Dataset(data)
    found.file_meta = data.file_meta
    return found


def _parse(path: Path, file: _Bounded, tags: Sequence[str | int] | None) -> FileDataset:
    """Return the elements before the pixels; `tags` names those that are kept."""
    stream, kept = cast(BinaryIO, file), _as_tags(tags)
    with warnings.catch_warnings():
        # Broken value representations and the like are common and none of the user's business.
        warnings.simplefilter("ignore")
        preamble = read_preamble(stream, force=True)
        meta = _read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            return _inflated(path, file, preamble, meta, tags, pixels=False)
        file.seek(0)
        return pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=kept)


def read_data(path: Path) -> Dataset:
    """Return a DICOM data set with its pixels; a deflated one only if it unpacks to no more than its size needs.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    Exception
        Whatever the parser says is wrong.
    """
    return _or_repaired(path, None, pixels=True)


def _or_repaired(path: Path, tags: Sequence[str | int] | None, *, pixels: bool) -> FileDataset:
    """Return a data set as it is, or, where that fails or lacks its pixels, as it is with its structure repaired."""
    problem: Exception | None = None
    data = None
    try:
        data = _read_pixels(path) if pixels else _read_elements(path, tags)
        if not _lacks_pixels(data, tags, pixels=pixels):
            return data
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path} takes more memory than its stated size allows; it is damaged or hostile.") from None
    except Exception as error:
        _raise_if_unreadable(error)
        problem = error
    content = repaired_file(path)
    if content is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(
                io.BytesIO(content), force=True, stop_before_pixels=not pixels, specific_tags=_as_tags(tags)
            )
    if data is None:
        assert problem is not None
        raise problem
    return data


def _read_elements(path: Path, tags: Sequence[str | int] | None) -> FileDataset:
    with path.open("rb") as file:
        return _parse(path, _Bounded(file), tags)


def _read_pixels(path: Path) -> FileDataset:
    with path.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = _Bounded(opened)
        stream = cast(BinaryIO, file)
        preamble = read_preamble(stream, force=True)
        meta = _read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            return _inflated(path, file, preamble, meta, None, pixels=True)
        if isolation.inside:
            # the size first, which the memory that is allowed goes by
            file.seek(0)
            _check_stated_size(path, _parse(path, file, _SIZE_TAGS))
        file.seek(0)
        return pydicom.dcmread(stream, force=True)


def _as_tags(tags: Sequence[str | int] | None) -> Any:
    return None if tags is None else [Tag(tag) for tag in tags]


def is_deflated(path: Path) -> bool:
    """Return whether the data set of a DICOM file is deflated as a whole."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = cast(BinaryIO, _Bounded(file, MAX_HEADER))
        read_preamble(head, force=True)
        return bool(_read_file_meta_info(head).get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian)


def _inflated(
    path: Path,
    file: _Bounded,
    preamble: bytes | None,
    meta: FileMetaDataset,
    tags: Sequence[str | int] | None,
    *,
    pixels: bool,
) -> FileDataset:
    """Return the data set of a file that is deflated behind its meta information; `file` is at its start.

    pydicom inflates it in one piece, to whatever size; here as much as the header needs, and then no more than the
    stated voxels and `MAX_EXTRA` take.
    """
    start = file.tell()
    content, ended = _inflate(path, file, MAX_EXTRA if file.is_whole else MAX_HEADER)
    buffer = io.BytesIO(content)
    kept = _as_tags(_SIZE_TAGS if pixels else tags)
    data = read_dataset(buffer, False, True, stop_when=_at_pixels, specific_tags=kept)
    if not ended and len(content) - buffer.tell() < 12:
        if file.is_whole:
            raise ImageError(f"{path} has a header of more than {MAX_EXTRA} bytes; that is not an image.")
        raise _LongHeaderError
    if pixels:
        allowed = _check_stated_size(path, data) + MAX_EXTRA
        file.seek(start)
        content, ended = _inflate(path, file, allowed)
        if not ended:
            raise ImageError(f"{path} unpacks to more than {allowed} bytes, which its stated size does not need.")
        data = read_dataset(io.BytesIO(content), False, True)
    found = FileDataset(str(path), data, cast(Any, preamble), meta, False, True)
    found.set_original_encoding(False, True, data._character_set)
    return found


def _inflate(path: Path, file: _Bounded, limit: int) -> tuple[bytes, bool]:
    """Return at most `limit` bytes of a deflated stream, and whether that is all of it.

    A byte that makes the length even may follow the stream (PS3.5, A.5).
    """
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    content = bytearray()
    while not inflate.eof and len(content) < limit:
        block = inflate.unconsumed_tail or file.read(_BLOCK)
        piece = inflate.decompress(block, min(_BLOCK, limit - len(content)))
        if not block and not piece:
            raise ImageError(f"{path} ends within its deflated data set; it is truncated.")
        content += piece
    return bytes(content), inflate.eof


def _at_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_DATA


def _check_stated_size(path: Path, header: Dataset) -> int:
    """Return the bytes of the voxels that a header states, having checked that they are not too many."""
    try:
        rows, columns, frames, samples, bits = (int(header.get(tag) or 1) for tag in _SIZE_TAGS)
    except (TypeError, ValueError):
        return 0  # the reader will say what is wrong
    voxel = max(samples, 1) * max(bits, 8) // 8
    check_size(path, (frames, rows, columns), voxel)
    return max(frames, 0) * max(rows, 0) * max(columns, 0) * voxel


def _lacks_pixels(data: Dataset, tags: Sequence[str | int] | None, *, pixels: bool) -> bool:
    """Return whether a file that should hold an image was read without its size, or with too few of its pixels."""
    if tags is not None and "Rows" not in tags:
        return False
    if not data.get("Rows"):
        return should_hold_image(data)
    if not pixels:
        return False
    meta = getattr(data, "file_meta", None) or Dataset()
    if "PixelData" not in data or uid.UID(meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)).is_encapsulated:
        return "PixelData" not in data and "FloatPixelData" not in data and "DoubleFloatPixelData" not in data
    return len(data.PixelData or b"") < get_expected_length(data)


def repaired_file(path: Path) -> bytes | None:
    """Return a DICOM file with its structure repaired; None where that need not or cannot be."""
    size = path.stat().st_size
    if size > MAX_REPAIRED:
        return None
    allow_voxels(size)
    return repaired(path.read_bytes())


def _read(path: Path, pixels: bool = True) -> Dataset:
    try:
        data = read_data(path) if pixels else read_tags(path, None)
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
