"""What a mask measures: parts, size, axes, values and place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.components import VolumeComponents
from medclipsam.imaging.sizes import area_mm2, volume_mm3
from medclipsam.measurements.diameters import Axis, axes

HOUNSFIELD, STORED = "HU", "stored values"


@dataclass(frozen=True)
class Values:
    """Statistics of the image's values within a mask.

    Attributes
    ----------
    mean, minimum, maximum : float
    sd : float
        Standard deviation of the sample (divided by n - 1), as ITK and 3D Slicer state it; 0 of a single voxel.
    unit : {"HU", "stored values"}
        Hounsfield units of a CT whose values are such; else the values that the file holds, after its rescale.
    """

    mean: float
    sd: float
    minimum: float
    maximum: float
    unit: str


@dataclass(frozen=True)
class Measurements:
    """What one mask measures on its image.

    Attributes
    ----------
    n_voxels : int
        Voxels of the mask (pixels, on an image of one plane). Where it is 0 all else is 0 or None.
    n_components : int
        Connected parts: voxels that touch at an edge or a corner are connected, across planes too.
    n_planes : int
        Planes that hold any of it.
    area_mm2 : float or None
        Of an image of one plane; None where the spacing is not known.
    volume_mm3 : float or None
        Of an image of several planes; None where a spacing is not known, and of loops, whose planes are times.
    long_axis, short_axis : Axis or None
        The longest diameter on any plane, and the longest one across it on that plane; see `axes`.
    values : Values or None
        Statistics of the image's values; None of colours.
    centre : tuple of float or None
        Centre of mass as the voxel index (i, j, k) of the file, in the order of ITK.
    centre_lps : tuple of float or None
        The same in millimetres to the left, to the back and to the head of the patient (DICOM's and ITK's axes); None
        where the file does not say where it lies.
    planes : tuple of int or None
        First and last plane, from 0, in display order.
    """

    n_voxels: int = 0
    n_components: int = 0
    n_planes: int = 0
    area_mm2: float | None = None
    volume_mm3: float | None = None
    long_axis: Axis | None = None
    short_axis: Axis | None = None
    values: Values | None = None
    centre: tuple[float, float, float] | None = None
    centre_lps: tuple[float, float, float] | None = None
    planes: tuple[int, int] | None = None

    @property
    def long_axis_mm(self) -> float | None:
        """Length of the long axis; None where there is none or the spacing is not known."""
        return None if self.long_axis is None else self.long_axis.length_mm

    @property
    def short_axis_mm(self) -> float | None:
        """Length of the short axis; None where there is none or the spacing is not known."""
        return None if self.short_axis is None else self.short_axis.length_mm

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as a JSON-able dictionary."""
        return asdict(self)


def measure(mask: np.ndarray, image: MedicalImage) -> Measurements:
    """Measure a mask on its image.

    Parameters
    ----------
    mask : ndarray of bool, shape (n_planes, H, W), or (H, W) of a single plane
        In display orientation. Another type is taken as true where it is not 0.
    image : MedicalImage
        The image that it lies on.

    Returns
    -------
    Measurements

    Raises
    ------
    InputError
        If the mask has another shape than the image's planes.
    ImageError
        If the image's look-up tables are broken.

    Examples
    --------
    >>> import numpy as np
    >>> from medclipsam import MedicalImage, measure
    >>> image = MedicalImage.from_array(np.full((60, 80), 7, np.int16))
    >>> mask = np.zeros((60, 80), bool)
    >>> mask[20:24, 30:60] = True
    >>> found = measure(mask, image)
    >>> found.n_voxels, found.n_components, found.values.mean
    (120, 1, 7.0)
    >>> found.long_axis_mm is None  # the array says nothing about distances
    True
    """
    mask = np.asarray(mask)
    mask = mask if mask.dtype == np.bool_ else mask != 0
    mask = mask[None] if mask.ndim == 2 else mask
    shape = (image.n_planes, *image.plane_shape)
    if mask.shape != shape:
        raise InputError(f"A mask of shape {mask.shape} does not fit {image.source.name}; allowed is {shape}.")
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    if not planes.size:
        return Measurements()
    first, last = int(planes[0]), int(planes[-1])
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in ((0, 2), (0, 1)))
    box = np.s_[first : last + 1, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    voxels = int(np.count_nonzero(mask[box]))
    lines = axes(mask, image.pixel_spacing)
    assert lines is not None
    corner = (first, int(rows[0]), int(columns[0]))
    centre = _centre(mask[box], corner, image)
    return Measurements(
        n_voxels=voxels,
        n_components=len(VolumeComponents(mask[box]).sizes),
        n_planes=len(planes),
        area_mm2=None if image.is_volume else area_mm2(voxels, image),
        volume_mm3=volume_mm3(voxels, image) if image.is_volume else None,
        long_axis=lines[0],
        short_axis=lines[1],
        values=None if image.is_colour else _statistics(mask, planes.tolist(), image),
        centre=centre,
        centre_lps=_in_patient(centre, image),
        planes=(first, last),
    )


def _statistics(mask: np.ndarray, planes: list[int], image: MedicalImage) -> Values:
    def within() -> Iterator[np.ndarray]:
        for plane in planes:
            yield image.values(plane)[mask[plane]].astype(np.float64)

    # plane by plane, and by deviations from the mean of all, which no rounding spoils
    total, count, low, high = 0.0, 0, np.inf, -np.inf
    for values in within():
        total, count = total + values.sum(), count + values.size
        low, high = min(low, values.min()), max(high, values.max())
    mean = total / count
    squares = sum(float(np.square(values - mean).sum()) for values in within())
    sd = (squares / (count - 1)) ** 0.5 if count > 1 else 0.0
    hounsfield = image.modality == "CT" and image.has_units and image.doubt_of_units() is None
    return Values(float(mean), sd, float(low), float(high), HOUNSFIELD if hounsfield else STORED)


def _centre(part: np.ndarray, corner: tuple[int, int, int], image: MedicalImage) -> tuple[float, float, float]:
    """Return the centre of mass of a mask's part at `corner` as the file's voxel index (i, j, k)."""
    stored = [0.0, 0.0, 0.0]
    for axis, length in enumerate((image.n_planes, *image.plane_shape)):
        count = part.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64)
        places = image.layout.stored_positions(axis, length)[corner[axis] : corner[axis] + len(count)]
        stored[image.layout.axes[axis]] = float((places * count).sum() / count.sum())
    k, j, i = stored
    return i, j, k


def _in_patient(centre: tuple[float, float, float], image: MedicalImage) -> tuple[float, float, float] | None:
    grid = image.grid
    if not image.is_placed:
        return None
    x, y, z = (np.asarray(grid.origin) + grid.direction @ (np.asarray(centre) * grid.spacing)).tolist()
    return x, y, z
