"""How large a mask is, in the units of its image."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from medclipsam.imaging.image import MedicalImage
from medclipsam.targets import Target

# From here on a volume is stated in millilitres, in cubic millimetres.
_MILLILITRES_FROM = 100.0


def area_mm2(pixels: int, image: MedicalImage) -> float | None:
    """Return the area of a number of pixels, of all planes together; None where the spacing is not known."""
    spacing = image.pixel_spacing
    return None if spacing is None else pixels * spacing[0] * spacing[1]


def volume_mm3(pixels: int, image: MedicalImage) -> float | None:
    """Return the volume of a number of voxels; None where a spacing is not known."""
    area = area_mm2(pixels, image)
    return None if area is None or image.plane_spacing is None else area * image.plane_spacing


def size_in_words(pixels: int, image: MedicalImage, diameter_mm: float | None = None) -> str:
    """Return the size of a mask for people: "12.3 mL" of a volume, "450 mm²" of one plane; pixels without a spacing.

    Parameters
    ----------
    pixels : int
        Pixels (voxels) of the mask.
    image : MedicalImage
        The image.
    diameter_mm : float, optional
        Its largest diameter, which is stated too.
    """
    size = _size_in_words(pixels, image)
    return size if diameter_mm is None else f"{size}, largest diameter {rounded(diameter_mm)} mm"


def _size_in_words(pixels: int, image: MedicalImage) -> str:
    area, volume = area_mm2(pixels, image), volume_mm3(pixels, image)
    if area is None:
        return f"{pixels} pixels"
    if image.n_planes == 1:
        return f"{rounded(area)} mm²"
    if volume is None:
        return f"{rounded(area)} mm² on all planes together"
    return f"{rounded(volume / 1000)} mL" if volume >= _MILLILITRES_FROM else f"{rounded(volume)} mm³"


def largest_diameter_mm(mask: np.ndarray, image: MedicalImage) -> float | None:
    """Return the long axis of a finding: the greatest distance within one connected part of it on one plane.

    Parameters
    ----------
    mask : ndarray of bool, shape (n_planes, H, W)
        In display orientation. Pixels that touch at a corner are connected.
    image : MedicalImage
        The image.

    Returns
    -------
    float or None
        Millimetres between the middles of outer edges of pixels, so that a row of four pixels is four pixels long;
        None where the mask is empty or the spacing is not known.
    """
    spacing = image.pixel_spacing
    if spacing is None or not mask.any():
        return None
    longest = 0.0
    for plane in mask[mask.any(axis=(1, 2))]:
        parts, _ = ndimage.label(plane, structure=np.ones((3, 3)))
        places = enumerate(ndimage.find_objects(parts), start=1)
        bounded = sorted(
            ((_bound(place, spacing), number, place) for number, place in places), key=lambda each: -each[0]
        )
        for bound, number, place in bounded:
            # a mask may have thousands of parts, most of them specks
            if bound <= longest * (1 + 1e-9):
                break
            longest = max(longest, _diameter(parts[place] == number, spacing))
    return longest


def _bound(place: tuple[slice, slice], spacing: tuple[float, float]) -> float:
    """Return what the diameter of a part within a box of pixels cannot exceed; that of one pixel is met."""
    rows, columns = (each.stop - each.start for each in place)
    sides = np.array([[rows, columns - 1], [rows - 1, columns], [rows - 0.5, columns - 0.5]]) * spacing
    return float(np.hypot(*sides.T).max())


def _diameter(part: np.ndarray, spacing: tuple[float, float]) -> float:
    """Return the greatest distance between middles of the edges of a mask's pixels, bool [H, W]."""
    rows = np.flatnonzero(part.any(axis=1))
    first = part[rows].argmax(axis=1)
    last = part.shape[1] - 1 - part[rows, ::-1].argmax(axis=1)
    # of each row the ends alone can be furthest apart
    ends = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
    steps = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
    points = (ends[:, None] + steps).reshape(-1, 2) * spacing
    return float(pdist(points[ConvexHull(points).vertices]).max())


def doubt_of_size(target: Target, pixels: int, image: MedicalImage) -> str:
    """Return a sentence where a mask has a size that a known target cannot have; empty otherwise.

    Parameters
    ----------
    target : Target
        Its area is looked at on an image of one plane, else its volume.
    pixels : int
        Pixels (voxels) of the mask.
    image : MedicalImage
        The image.
    """
    volume = volume_mm3(pixels, image)
    size, unit, plausible = (
        (area_mm2(pixels, image), "mm²", target.plausible_area_mm2)
        if image.n_planes == 1
        else (None if volume is None else volume / 1000, "mL", target.plausible_volume_ml)
    )
    if not pixels or size is None or plausible is None or plausible[0] <= size <= plausible[1]:
        return ""
    larger = size > plausible[1]
    bound = f"up to {rounded(plausible[1])}" if larger else f"from {rounded(plausible[0])}"
    return (
        f"{target.name} of {rounded(size)} {unit} is {'larger' if larger else 'smaller'} than expected "
        f"({bound} {unit}); check the mask."
    )


def rounded(value: float) -> str:
    """Return a number with three significant digits and without an exponent: 48213 is "48200", 0.0123 is "0.0123"."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):.{max(0, digits)}f}"
