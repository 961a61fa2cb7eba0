"""Masks back from files: label maps that lie on an image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medclipsam.base.errors import ImageError, InputError
from medclipsam.base.formats import LABEL_SUFFIXES, LOSSLESS_SUFFIXES, suffix_of
from medclipsam.imaging.geometry import Grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.pictures import read_indices
from medclipsam.imaging.read import read_image
from medclipsam.imaging.volumes import nrrd_fields

# How far from a whole number a label's value may be.
_WHOLE_WITHIN = 1e-3


def read_mask(path: str | os.PathLike[str], image: MedicalImage) -> np.ndarray:
    """Read a label map that was drawn on an image: the way back of `write_mask`.

    Parameters
    ----------
    path : str or path-like
        A NIfTI or NRRD file on the image's voxel grid, or a picture of an image of one plane. A picture, and an NRRD
        file without a `space` where the image has no place in space either, are held against the image's size alone.
        A picture is grey, or has a palette, whose indices count.
    image : MedicalImage
        The image.

    Returns
    -------
    numpy.ndarray
        uint8 [N, H, W], planes in display orientation.

    Raises
    ------
    ImageError
        If the file cannot be read.
    InputError
        If it is no label map (colours, or values that are not nearly whole numbers from 0 to 255), or does not lie on
        the image: another number of voxels, spacing, origin or direction.
    """
    path = Path(path)
    if not suffix_of(path.name, LABEL_SUFFIXES):
        raise InputError(f"The label {path.name} cannot be used; allowed are {', '.join(LABEL_SUFFIXES)}.")
    try:
        mask = read_image(path)
        values = _values(path, mask)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from None
    if values.ndim == 4:
        raise InputError(f"The label {path.name} holds colours; one whole number a voxel is allowed.")
    by_size = bool(suffix_of(path.name, LOSSLESS_SUFFIXES)) or is_placeless(path, image)
    check_grid(mask.grid, image, f"The label {path.name}", by_size=by_size)
    return image.from_native(whole_labels(values, f"The label {path.name}"))


def check_grid(grid: Grid, image: MedicalImage, what: str, *, by_size: bool = False) -> None:
    """Raise `InputError` where a label does not lie on its image.

    Parameters
    ----------
    grid : Grid
        The label's.
    image : MedicalImage
        The image.
    what : str
        The label, as the beginning of a sentence.
    by_size : bool
        Whether the number of voxels alone is compared.
    """
    if _three(grid.size) != _three(image.grid.size):
        own, theirs = (" x ".join(map(str, size)) for size in (grid.size, image.grid.size))
        raise InputError(f"{what} has {own} voxels, the image {theirs}.")
    if not by_size and not grid.lies_on(image.grid):
        raise InputError(
            f"{what} does not lie on the image: it has the spacing {_short(grid.spacing)} and the origin "
            f"{_short(grid.origin)}, the image {_short(image.grid.spacing)} and {_short(image.grid.origin)}, or its "
            "axes run in other directions."
        )


def whole_labels(values: np.ndarray, what: str) -> np.ndarray:
    """Return label values as whole numbers.

    Parameters
    ----------
    values : ndarray of any number type
        Values that went through floating point (the scaling of a NIfTI header, a resampling) come back near the whole
        numbers that they were: 1.0000001 is 1.
    what : str
        What holds them, as the beginning of a sentence.

    Returns
    -------
    ndarray of uint8
        Of the same shape.

    Raises
    ------
    InputError
        If a value is further than 0.001 from each whole number, or outside 0 to 255.
    """
    whole = np.rint(values) if values.dtype.kind == "f" else values
    low, high = values.min(), values.max()
    if whole.min() < 0 or whole.max() > 255:
        raise InputError(f"{what} holds values from {low:g} to {high:g}; whole numbers from 0 to 255 are allowed.")
    if whole is not values:
        odd = np.abs(values - whole) > _WHOLE_WITHIN
        if odd.any():
            raise InputError(
                f"{what} holds {values[odd].flat[0]:g} among values from {low:g} to {high:g}; whole numbers from 0 to "
                "255 are allowed."
            )
    return whole.astype(np.uint8)


def _values(path: Path, mask: MedicalImage) -> np.ndarray:
    """Return the voxels of a mask in stored order, [k, j, i]; [k, j, i, 3] only where they are real colours."""
    if path.suffix.lower() in LOSSLESS_SUFFIXES:
        indices = read_indices(path)
        if indices is not None:
            return indices[None]
    values = mask.voxels()
    return values[..., 0] if values.ndim == 4 and (values == values[..., :1]).all() else values


def has_place(path: Path) -> bool:
    """Return whether an NRRD file says where its voxels lie in space."""
    return bool({"space", "space dimension"} & nrrd_fields(path).keys())


def is_placeless(path: Path, image: MedicalImage) -> bool:
    """Return whether neither an NRRD label nor its image says where it lies; DICOM viewers know no more of such."""
    placed = any(image.grid.origin) or (image.grid.direction != np.eye(image.grid.ndim)).any()
    return not placed and path.suffix.lower() == ".nrrd" and not has_place(path)


def _three(size: tuple[int, ...]) -> tuple[int, ...]:
    return (*size, 1) if len(size) == 2 else size


def _short(numbers: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{number:.6g}" for number in numbers) + "]"
