"""How large a mask is, in the units of its image."""

from __future__ import annotations

import math

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
