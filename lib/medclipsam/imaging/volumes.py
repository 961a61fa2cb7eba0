"""NIfTI (through nibabel alone) and NRRD (through SimpleITK) volumes."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset

from medclipsam.base.errors import ImageError
from medclipsam.imaging import isolation
from medclipsam.imaging.colour import as_colours
from medclipsam.imaging.geometry import RAS_TO_LPS, Grid, grid_from_ras, plain_grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.limits import (
    HEADER_SECONDS,
    MAX_AXES,
    MAX_BYTES,
    MAX_EXTENSIONS,
    MAX_HEADER,
    MAX_LINE,
    MAX_PLANE,
    MAX_VOXELS,
    allow_voxels,
)
from medclipsam.imaging.orientation import layout_for

_NIFTI_BYTES = 540
# Deflate packs no more bytes into one.
_MAX_RATIO = 1032
# Bytes of a line of an NRRD header that is a field and no key with a text.
_MAX_FIELD = 4096
_NRRD_HEADER_END = re.compile(rb"\n\r?\n")
_NRRD_DATA_FILE = re.compile(rb"data ?file[^:\n]*:", re.IGNORECASE)

# NIFTI_INTENT_VECTOR and NIFTI_INTENT_RGB_VECTOR
_VECTORS = (1007, 2003)

_UNIT_IN_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_nifti(path: Path, modality: str | None = None) -> MedicalImage:
    """Read a .nii or .nii.gz file; see `read_image`."""
    try:
        # No memory map: the file may be replaced while the image is in use.
        check_nifti(path)
        file: Any = nib.load(path, mmap=False)
        header = file.header
        array = file.dataobj.get_unscaled()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path} cannot be read as NIfTI: {_first_line(error)}.") from error
    if not isinstance(file, nib.Nifti1Image):
        raise ImageError(f"{path} is not a NIfTI image (.nii or .nii.gz).")
    if array.dtype.names:
        if array.dtype.names[:3] != ("R", "G", "B"):
            raise ImageError(f"{path} holds voxels of type {array.dtype}; numbers and RGB are allowed.")
        array = np.stack([array[name] for name in ("R", "G", "B")], axis=-1)
        shape = array.shape[:-1]
    elif array.ndim == 5 and array.shape[3:] == (1, 3) and int(header["intent_code"]) in _VECTORS:
        # a vector a voxel, as ITK writes pictures in colour too
        array = as_colours(path, check_voxels(path, array), stated=False)
        shape = array.shape[:3]
    else:
        shape = array.shape
    spatial = _spatial_shape(path, shape)
    colour = (3,) if array.size > math.prod(shape) else ()
    array = check_voxels(path, array.reshape((*spatial, *colour)))

    ndim = 2 if len(spatial) == 2 else 3
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    known = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    unit = _UNIT_IN_MM.get(header.get_xyzt_units()[0], 1.0)
    affine[:3] *= unit
    if not np.isfinite(affine).all() or (np.linalg.norm(affine[:3, :ndim], axis=0) == 0).any():
        raise ImageError(f"{path} has no usable voxel geometry: its affine is {affine.tolist()}.")
    zooms = tuple(float(z) * unit for z in header.get_zooms()[:ndim])
    grid = itk_grid(header, tuple(int(s) for s in spatial), unit)
    spacing_ijk = tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)) if known else zooms
    # A header that gives neither orientation nor sizes other than 1 says nothing about distances.
    spacing_known = known or any(zoom != 1.0 for zoom in zooms)
    i, j, k = (*spacing_ijk, 1.0)[:3]
    stored = np.moveaxis(array if ndim == 3 else array[:, :, None], (0, 1, 2), (2, 1, 0))
    lps = RAS_TO_LPS @ affine[:3, :3]
    directions = (lps / np.where(np.linalg.norm(lps, axis=0) > 0, np.linalg.norm(lps, axis=0), 1.0))[:, ::-1]
    layout = layout_for(stored.shape[:3], (k, j, i), directions if known else None, stack_axis=0 if ndim == 2 else None)
    return MedicalImage(
        source=path,
        stored=stored,
        grid=grid,
        layout=layout,
        modality=modality,
        known_spacing=(k if ndim == 3 else None, j, i) if spacing_known else (None, None, None),
        luts=[] if colour else _rescale(file),
        nifti=_mask_header(header, shape),
    )


def _mask_header(header: nib.Nifti1Header, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """Return the header that masks take their geometry from: one number a voxel."""
    kept = header.copy()
    kept.set_data_shape(shape)
    return kept


def check_nifti(path: Path) -> None:
    """Raise ImageError if a header states too much; before nibabel reads the extensions behind it."""
    gz = path.name.lower().endswith(".gz")
    with gzip.open(path) if gz else path.open("rb") as file:
        content = file.read(_NIFTI_BYTES)
    is_second = len(content) == _NIFTI_BYTES and nib.Nifti2Header.may_contain_header(content)
    kind: Any = nib.Nifti2Header if is_second else nib.Nifti1Header
    header = kind(content[: kind.template_dtype.itemsize], check=False)
    offset, size = int(header.get_data_offset()), path.stat().st_size
    voxel = header.get_data_dtype().itemsize
    check_size(path, header.get_data_shape(), voxel)
    if offset > kind.template_dtype.itemsize + MAX_EXTENSIONS:
        raise ImageError(
            f"{path} states that its voxels begin at byte {offset}; at most {MAX_EXTENSIONS} bytes of extensions are "
            "allowed."
        )
    stated = offset + voxel * math.prod(int(length) for length in header.get_data_shape())
    if stated > size * (_MAX_RATIO if gz else 1):
        raise ImageError(f"{path} states {stated} bytes, which its {size} bytes cannot hold; it is truncated.")


def itk_grid(header: nib.Nifti1Header, size: tuple[int, ...], unit: float) -> Grid:
    """Return the grid as ITK reads it: the sform if its axes are at right angles, else the qform, else the sizes."""
    scale = np.diag([unit, unit, unit, 1.0])
    sform = grid_from_ras(size, scale @ header.get_sform())
    if int(header["sform_code"]) > 0 and (sform.is_orthonormal or int(header["qform_code"]) == 0):
        return sform
    if int(header["qform_code"]) > 0:
        return grid_from_ras(size, scale @ header.get_qform())
    return plain_grid(size, tuple(float(z) * unit for z in header.get_zooms()[: len(size)]))


def read_nrrd(path: Path, modality: str | None = None) -> MedicalImage:
    """Read an .nrrd or .nhdr file; see `read_image`."""
    try:
        import SimpleITK as sitk
    except ImportError:
        raise ImageError(
            f"{path} is NRRD, which needs SimpleITK: pip install 'medclipsam[server]', or convert it to .nii.gz."
        ) from None
    given = nrrd_fields(path)
    image = _read_by_itk(path)
    ndim = image.GetDimension()
    size = image.GetSize()
    if ndim == 4 and size[3] == 1:
        image = image[:, :, :, 0]
        ndim, size = 3, image.GetSize()
    if ndim not in (2, 3):
        raise ImageError(f"{path} has {ndim} dimensions {tuple(size)}; 2 or 3 are allowed.")
    components = image.GetNumberOfComponentsPerPixel()
    if components not in (1, 3) or "complex" in image.GetPixelIDTypeAsString():
        raise ImageError(
            f"{path} holds voxels of type {image.GetPixelIDTypeAsString()} with {components} components; "
            "one number or RGB is allowed."
        )
    grid = Grid(tuple(size), image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection()).reshape(ndim, ndim))
    array = check_voxels(path, sitk.GetArrayFromImage(image))
    if components == 3:
        array = as_colours(path, array, stated="color" in given.get("kinds", "").lower())
    stored = array if ndim == 3 else array[None]
    i, j, k = (*grid.spacing, 1.0)[:3]
    oriented = ndim == 3 and "space directions" in given and "space" in given
    spacing_known = "space directions" in given or "spacings" in given
    return MedicalImage(
        source=path,
        stored=stored,
        grid=grid,
        layout=layout_for(
            stored.shape[:3],
            (k, j, i),
            grid.direction[:, ::-1] if oriented else None,
            stack_axis=0 if ndim == 2 else None,
        ),
        modality=modality,
        known_spacing=(k if ndim == 3 else None, j, i) if spacing_known else (None, None, None),
    )


def check_size(path: Path, shape: Sequence[int], voxel_bytes: int = 1) -> None:
    """Raise ImageError if an image of this shape is larger than what is read; a check before anything is allocated.

    Where memory is limited, the process may use what such an image needs from here on.

    Parameters
    ----------
    path : Path
        The file, for the sentence.
    shape : sequence of int
        Voxels along each axis, without colour.
    voxel_bytes : int
        Bytes of a voxel, all its colours together.
    """
    sizes = sorted((max(int(size), 0) for size in shape), reverse=True)
    voxels = math.prod(sizes)
    if voxels > MAX_VOXELS or math.prod(sizes[:2]) > MAX_PLANE or voxels * voxel_bytes > MAX_BYTES:
        raise ImageError(
            f"{path} states a size of {' x '.join(map(str, shape))}; at most {MAX_VOXELS} voxels, "
            f"{MAX_PLANE} of them in a plane, of {MAX_BYTES} bytes together are allowed."
        )
    allow_voxels(voxels * voxel_bytes)


def check_voxels(path: Path, array: np.ndarray) -> np.ndarray:
    """Return `array` if it holds at least one voxel of a usable type and no NaN or infinity, else raise ImageError."""
    if array.size == 0:
        raise ImageError(f"{path} holds no voxels: its shape is {array.shape}.")
    if array.dtype.kind not in "uifb":
        raise ImageError(f"{path} holds voxels of type {array.dtype}; whole or real numbers are allowed.")
    if array.dtype.kind == "f":
        # Slab by slab: a mask of the whole volume would cost memory.
        axis = int(np.argmax(array.shape))
        if not all(np.isfinite(np.take(array, n, axis=axis)).all() for n in range(array.shape[axis])):
            raise ImageError(f"{path} holds NaN or infinite values; replace them before use.")
    return array.view(np.uint8) if array.dtype.kind == "b" else array


def _spatial_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) < 2 or 0 in shape:
        raise ImageError(f"{path} has the shape {shape}; an image needs at least 2 dimensions without a zero.")
    if any(size != 1 for size in shape[3:]):
        raise ImageError(
            f"{path} has the shape {shape}; 2-D and 3-D images are allowed, so give one volume of the series."
        )
    return shape[:3]


def _rescale(file: Any) -> list[Dataset]:
    slope, intercept = float(file.dataobj.slope), float(file.dataobj.inter)
    if (slope, intercept) == (1.0, 0.0):
        return []
    lut = Dataset()
    lut.RescaleSlope, lut.RescaleIntercept = slope, intercept
    return [lut]


def nrrd_fields(path: Path) -> dict[str, str]:
    """Return the fields and keys of an NRRD header by their names in lower case.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to str
        A spacing that is given is told by it from ITK's default of 1.

    Raises
    ------
    ImageError
        If it cannot be opened, or has no header of a usual length.
    """
    header = _nrrd_header(path)
    if not header.startswith(b"NRRD"):
        raise ImageError(f"{path} cannot be read as NRRD: it does not begin with NRRD.")
    fields = {}
    for line in header.split(b"\n"):
        limit = MAX_LINE if b":=" in line or line.startswith(b"#") else _MAX_FIELD
        if len(line) > limit:
            raise ImageError(f"{path} has an NRRD header with a line of {len(line)} bytes; allowed: {limit}.")
        name, _, value = line.decode("utf-8", "replace").partition(":")
        fields[name.strip().lower()] = value.removeprefix("=").strip()
    return fields


def read_layers(path: Path) -> tuple[np.ndarray, Grid]:
    """Return the voxels of an NRRD file of several layers and their grid; read in another process.

    Returns
    -------
    values : ndarray, shape (k, j, i, n_layers)
    grid : Grid

    Raises
    ------
    ImageError
        If it is damaged, or not an NRRD file.
    """
    found: tuple[np.ndarray, Grid] = isolation.call(_read_layers, path, preload=("SimpleITK",))
    return found


def _read_layers(path: Path) -> tuple[np.ndarray, Grid]:
    import SimpleITK as sitk

    image = _read_by_itk(path)
    n = image.GetDimension()
    grid = Grid(
        tuple(image.GetSize()), image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection()).reshape(n, n)
    )
    return sitk.GetArrayFromImage(image), grid


def read_texts(path: Path) -> tuple[dict[str, str], int]:
    """Return the keys and texts of an NRRD header, and how many layers its voxels have; read in another process.

    Raises
    ------
    ImageError
        If it is damaged, or not an NRRD file.
    """
    found: tuple[dict[str, str], int] = isolation.call(
        _read_texts, path, seconds=HEADER_SECONDS, preload=("SimpleITK",)
    )
    return found


def _read_texts(path: Path) -> tuple[dict[str, str], int]:
    reader = _nrrd_reader(path)
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}, reader.GetNumberOfComponents()


def _nrrd_reader(path: Path) -> Any:
    """Return ITK's reader of an NRRD file that has read its header, and the header states what the file can hold."""
    import SimpleITK as sitk

    given = nrrd_fields(path)
    _check_nrrd(path, given)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageError(f"{path} cannot be read as NRRD; it is damaged or not an NRRD file.") from error
    voxel = reader.GetNumberOfComponents() * _pixel_bytes(sitk.GetPixelIDValueAsString(reader.GetPixelID()))
    check_size(path, reader.GetSize(), voxel)
    _check_nrrd_data(path, given, voxel * math.prod(reader.GetSize()))
    return reader


def _read_by_itk(path: Path) -> Any:
    try:
        return _nrrd_reader(path).Execute()
    except RuntimeError as error:
        raise ImageError(f"{path} cannot be read as NRRD; it is damaged or not an NRRD file.") from error


def _nrrd_header(path: Path) -> bytes:
    """Return the header of an NRRD file, with every end of line as teem sees it made a line feed."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_HEADER)
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error.strerror or error}.") from error
    end = _NRRD_HEADER_END.search(content)
    if len(content) == MAX_HEADER and end is None:
        raise ImageError(f"{path} is not NRRD, or damaged: its header is longer than {MAX_HEADER} bytes.")
    header = content[: end.start()] if end else content
    return header.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _check_nrrd(path: Path, fields: Mapping[str, str]) -> None:
    """Raise ImageError if a header has too many axes, or keeps its voxels elsewhere than in one file beside it.

    An image that was sent to a server must not make it open any other of its files, and teem crashes on some headers.
    """
    for name in ("dimension", "space dimension"):
        if name in fields and not 1 <= _whole(fields[name]) <= MAX_AXES:
            raise ImageError(f"{path} has an NRRD header with {name} {fields[name][:20]!r}; allowed: 1 to {MAX_AXES}.")
    if len(fields.get("sizes", "").split()) > MAX_AXES:
        raise ImageError(f"{path} has an NRRD header with more than {MAX_AXES} sizes.")
    header = _nrrd_header(path)
    for named in _NRRD_DATA_FILE.finditer(header):
        value = header[named.end() :].split(b"\n")[0].strip()
        if value.upper().startswith(b"LIST") or b"%" in value or b"/" in value or b"\\" in value or not value:
            raise ImageError(
                f"{path} keeps its voxels in {value[:40].decode('utf-8', 'replace')!r}; allowed is the name of one "
                "file beside it, not a list, a pattern or another folder."
            )


def _check_nrrd_data(path: Path, fields: Mapping[str, str], stated: int) -> None:
    """Raise ImageError if the file with the voxels is too small to hold `stated` bytes."""
    name = next((value for field, value in fields.items() if _NRRD_DATA_FILE.match(f"{field}:".encode())), None)
    size = (path.parent / name if name else path).stat().st_size
    encoding = fields.get("encoding", "raw").lower()
    ratio = {"raw": 1, "gz": _MAX_RATIO, "gzip": _MAX_RATIO}.get(encoding)
    if ratio is not None and stated > size * ratio:
        raise ImageError(f"{path} states {stated} bytes, which {size} bytes cannot hold; it is truncated.")


def _pixel_bytes(kind: str) -> int:
    """Return the bytes of one component of a type as SimpleITK names it, such as "vector of 32-bit float"."""
    bits = re.search(r"(\d+)-bit", kind)
    return int(bits[1]) // 8 if bits else 16


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")
