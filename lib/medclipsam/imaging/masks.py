"""Masks back from files: label maps that lie on an image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from medclipsam.base.errors import ImageError, InputError
from medclipsam.base.formats import LABEL_SUFFIXES, LOSSLESS_SUFFIXES, suffix_of
from medclipsam.imaging.geometry import Grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.pictures import read_indices
from medclipsam.imaging.read import read_image
from medclipsam.imaging.seg_nrrd import Segment, has_layers, read_segments
from medclipsam.imaging.volumes import nrrd_fields, read_layers

# How far from a whole number a label's value may be.
_WHOLE_WITHIN = 1e-3


def read_mask(path: str | os.PathLike[str], image: MedicalImage) -> np.ndarray:
    """Read a label map that was drawn on an image: the way back of `write_mask`.

    Parameters
    ----------
    path : str or path-like
        A NIfTI or NRRD file on the image's voxel grid, or a picture of an image of one plane. A picture, and an NRRD
        file without a `space` where the image has no place in space either, are held against the image's size alone.
        A picture is grey, or has a palette, whose indices count. Of segments that overlap (.seg.nrrd) the smaller one
        has the voxels of both; `medclipsam.imaging.label_map.read_label_map` reads them whole.
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
        # an empty or missing file is refused by `read_image`
        if path.suffix.lower() == ".nrrd" and path.is_file() and path.stat().st_size and has_layers(path):
            return _flat(path, image)
        mask = read_image(path)
        values = _values(path, mask)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from None
    if values.ndim == 4:
        raise InputError(f"The label {path.name} holds colours; one whole number a voxel is allowed.")
    by_size = bool(suffix_of(path.name, LOSSLESS_SUFFIXES)) or is_placeless(path, image)
    check_grid(mask.grid, image, f"The label {path.name}", by_size=by_size)
    return image.from_native(whole_labels(values, f"The label {path.name}"))


def read_segment_masks(path: Path, image: MedicalImage) -> Iterator[tuple[Segment, np.ndarray]]:
    """Read the segments of an NRRD file of layers one by one, as 3D Slicer writes it.

    Parameters
    ----------
    path : Path
        The file.
    image : MedicalImage
        The image that it was drawn on.

    Yields
    ------
    segment : Segment
    mask : ndarray of bool, shape (n_planes, H, W)
        In display orientation.

    Raises
    ------
    ImageError
        If it cannot be read.
    InputError
        If it does not fit the image, or a segment is in a layer that is not there.
    """
    segments, _ = read_segments(path)
    layers, grid = read_layers(path)
    values = whole_labels(layers, "The label")
    check_grid(grid, image, "The label", by_size=is_placeless(path, image))
    for segment in segments:
        if not 0 <= segment.layer < values.shape[-1]:
            raise InputError(f"The label's segment {segment.name!r} is in layer {segment.layer}, which is not there.")
        yield segment, image.from_native(values[..., segment.layer] == segment.value)


def mask_of(label: int, values: np.ndarray, beneath: np.ndarray) -> np.ndarray:
    """Return where a label is, on top or beneath another one.

    Parameters
    ----------
    label : int
    values, beneath : ndarray of uint8
        As `flatten` returns them.

    Returns
    -------
    ndarray of bool
        Of the shape of `values`.
    """
    mask: np.ndarray = values == label
    for layer in beneath:
        mask |= layer == label
    return mask


def flatten(masks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return masks that may overlap as a label map in which the smaller of them are on top.

    Parameters
    ----------
    masks : iterable of (int, ndarray of bool)
        Label, 1 to 255, and mask. Masks of one label are one.
    shape : tuple of int
        Of each mask.

    Returns
    -------
    values : ndarray of uint8
        The label on top of each voxel, 0 where there is none; of masks of one size the later one is on top.
    beneath : ndarray of uint8, shape (n_layers, ...)
        The labels that are covered; no layers where no masks overlap.
    """
    values = np.zeros(shape, np.uint8)
    layers: list[np.ndarray] = []
    sizes: dict[int, int] = {}
    for label, mask in masks:
        sizes.setdefault(label, 0)
        # plane by plane, for which little memory is needed
        for plane in range(shape[0]):
            here = mask[plane]
            if here.any():
                sizes[label] += _put(values, layers, label, here, plane)
    if not layers:
        return values, np.zeros((0, *shape), np.uint8)
    # the ranks of the labels of each voxel, in order: the smallest on top, what is no label beneath all
    place = {label: number for number, label in enumerate(sizes)}
    ranked = sorted(sizes, key=lambda label: (sizes[label], -place[label]))
    rank, label_at = np.full(256, 255, np.uint8), np.zeros(256, np.uint8)
    rank[ranked], label_at[: len(ranked)] = range(len(ranked)), ranked
    for plane in range(shape[0]):
        where = layers[0][plane] != 0
        if where.any():
            covered = np.stack([values[plane][where], *(layer[plane][where] for layer in layers)])
            ordered = label_at[np.sort(rank[covered], axis=0)]
            for layer, of_layer in zip((values, *layers), ordered, strict=True):
                layer[plane][where] = of_layer
    return values, np.stack(layers)


def _put(values: np.ndarray, layers: list[np.ndarray], label: int, mask: np.ndarray, plane: int) -> int:
    """Put a label into a plane, where others are into the first layer that is free; return in how many voxels."""
    taken = mask & (values[plane] != 0)
    put = int(np.count_nonzero(mask) - np.count_nonzero(taken))
    if not taken.any():
        values[plane][mask] = label
        return put
    values[plane][mask & ~taken] = label
    # where it is already, from another mask
    for layer in (values, *layers):
        taken &= layer[plane] != label
    put += int(np.count_nonzero(taken))
    for layer in layers:
        free = taken & (layer[plane] == 0)
        layer[plane][free] = label
        taken &= ~free
    if taken.any():
        layers.append(np.zeros_like(values))
        layers[-1][plane][taken] = label
    return put


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


def _flat(path: Path, image: MedicalImage) -> np.ndarray:
    """Return the segments of a file of layers as one label map, uint8 in display orientation."""
    owner: dict[int, str] = {}

    def labelled() -> Iterator[tuple[int, np.ndarray]]:
        for segment, mask in read_segment_masks(path, image):
            if owner.setdefault(segment.value, segment.name) != segment.name:
                raise InputError(
                    f"The value {segment.value} of {path.name} is called both {owner[segment.value]!r} and "
                    f"{segment.name!r}, in two layers."
                )
            if segment.value:
                yield segment.value, mask

    values, _ = flatten(labelled(), (image.n_planes, *image.plane_shape))
    return values


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
