"""How large a mask is, in the units of its image."""

from __future__ import annotations

import math

from medclipsam.imaging.image import MedicalImage

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


def size_in_words(pixels: int, image: MedicalImage) -> str:
    """Return the size of a mask for people: "12.3 mL" of a volume, "450 mm²" of one plane; pixels without a spacing.

    Parameters
    ----------
    pixels : int
        Pixels (voxels) of the mask.
    image : MedicalImage
        The image.
    """
    area, volume = area_mm2(pixels, image), volume_mm3(pixels, image)
    if area is None:
        return f"{pixels} pixels"
    if image.n_planes == 1:
        return f"{rounded(area)} mm²"
    if volume is None:
        return f"{rounded(area)} mm² on all planes together"
    return f"{rounded(volume / 1000)} mL" if volume >= _MILLILITRES_FROM else f"{rounded(volume)} mm³"


def rounded(value: float) -> str:
    """Return a number with three significant digits and without an exponent: 48213 is "48200", 0.0123 is "0.0123"."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):.{max(0, digits)}f}"
