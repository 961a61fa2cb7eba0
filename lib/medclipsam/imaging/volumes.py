"""NIfTI (through nibabel alone) and NRRD (through SimpleITK) volumes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset

from medclipsam.errors import ImageError
from medclipsam.imaging.colour import as_colours
from medclipsam.imaging.geometry import RAS_TO_LPS, Grid, grid_from_ras, plain_grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.orientation import layout_for

# What an image may hold at the most, whatever its header states: 1024 planes of 1024 x 1024, and a plane as large as
# Pillow takes. A damaged or hostile file must not make the reader allocate or unpack without end.
MAX_VOXELS = 2**30
MAX_PLANE = 178_956_970
# Where the voxels of a NIfTI file may begin at the latest, past all extensions of the header.
_MAX_OFFSET = 2**28

_MAX_HEADER = 2**20
_NRRD_HEADER_END = re.compile(rb"\n\r?\n")
_NRRD_DATA_FILE = re.compile(rb"data ?file[^:\n]*:", re.IGNORECASE)

# NIFTI_INTENT_VECTOR and NIFTI_INTENT_RGB_VECTOR
_VECTORS = (1007, 2003)

_UNIT_IN_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_nifti(path: Path, modality: str | None = None) -> MedicalImage:
    """Read a .nii or .nii.gz file; see `read_image`."""
    try:
        # No memory map: the file may be replaced while the image is in use.
        file: Any = nib.load(path, mmap=False)
        header = file.header
        check_size(path, header.get_data_shape())
        if file.dataobj.offset > _MAX_OFFSET:
            raise ImageError(f"{path} states that its voxels begin at byte {file.dataobj.offset}; it is damaged.")
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
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("NrrdImageIO")
        reader.ReadImageInformation()
        check_size(path, reader.GetSize())
        image = reader.Execute()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path} cannot be read as NRRD; it is damaged or not an NRRD file.") from error
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


def check_size(path: Path, shape: Sequence[int]) -> None:
    """Raise ImageError if an image of this shape is larger than what is read; a check before anything is allocated.

    Parameters
    ----------
    path : Path
        The file, for the sentence.
    shape : sequence of int
        Voxels along each axis, without colour.
    """
    sizes = sorted((max(int(size), 0) for size in shape), reverse=True)
    if math.prod(sizes) > MAX_VOXELS or math.prod(sizes[:2]) > MAX_PLANE:
        raise ImageError(
            f"{path} states a size of {' x '.join(map(str, shape))}; at most {MAX_VOXELS} voxels, "
            f"{MAX_PLANE} of them in a plane, are allowed."
        )


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
    """Return the header's fields, whose names tell a given spacing from ITK's default of 1.

    A header may name other files that hold the voxels. They must lie beside it: an image that was sent to a server must
    not make it open any other of its files.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_HEADER)
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error.strerror or error}.") from error
    end = _NRRD_HEADER_END.search(content)
    header = content[: end.start()] if end else content
    if len(content) == _MAX_HEADER and (end is None or _NRRD_DATA_FILE.search(header)):
        raise ImageError(f"{path} is not NRRD, or damaged: its header does not end.")
    for named in _NRRD_DATA_FILE.finditer(header):
        value = header[named.end() :].split(b"\n")[0].strip()
        # a list of names goes on to the end of the file
        names = content[named.end() :] if value.upper().startswith(b"LIST") else value
        if b"/" in names or b"\\" in names:
            raise ImageError(f"{path} keeps its voxels in another folder; they must lie beside it.")
    pairs = (line.decode("ascii", "replace").partition(":") for line in header.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")
