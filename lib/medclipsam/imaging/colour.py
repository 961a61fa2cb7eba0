"""The colours of labels; and three numbers a voxel: colours as 8 bits, or a sentence where they are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medclipsam.base.errors import ImageError

# Bright colours that stay apart on grey for colour-blind readers too (after Okabe and Ito, 2008).
COLOURS = (
    (255, 176, 0),
    (64, 196, 255),
    (0, 214, 143),
    (255, 94, 122),
    (190, 130, 255),
    (225, 240, 80),
    (255, 128, 64),
    (140, 220, 220),
)

# Bits that scanners and cameras give a colour; the fewest that hold the greatest value count.
_DEPTHS = (8, 10, 12, 14, 16)
# Whole numbers below this that no header calls colours are labels rather than a picture that is next to black.
_LEAST_COLOUR = 16


def as_colours(path: Path, array: np.ndarray, *, stated: bool) -> np.ndarray:
    """Return colours as 8 bits, scaled by the bits that they are made of.

    Parameters
    ----------
    path : Path
        The file, for the sentence.
    array : ndarray, shape (..., 3)
        Whole numbers, or real ones from 0 to 1 (or to 255 or 65535).
    stated : bool
        Whether the file says that these are colours. Where it does not, real numbers are taken for vectors, and a few
        small whole numbers for labels.

    Returns
    -------
    ndarray of uint8, shape (..., 3)

    Raises
    ------
    ImageError
        If these are no colours.
    """
    low, high = float(array.min()), float(array.max())
    is_real = array.dtype.kind == "f"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"{path} holds NaN or infinite values; replace them before use.")
    if low < 0 or high >= 2 ** _DEPTHS[-1] or (not stated and (is_real or 0 < high < _LEAST_COLOUR)):
        raise ImageError(
            f"{path} holds 3 values of type {array.dtype} a voxel, from {low:g} to {high:g}, which are no colours but "
            "vectors, a list or labels; give one grey value or one RGB colour a voxel."
        )
    if is_real and high <= 1:
        return _to_8_bits(array, 1.0)
    if array.dtype == np.uint8:
        return array
    return _to_8_bits(array, float(2 ** next(bits for bits in _DEPTHS if high < 2**bits) - 1))


def _to_8_bits(array: np.ndarray, white: float) -> np.ndarray:
    made = np.empty(array.shape, np.uint8)
    for index in range(len(array)):  # piece by piece: the whole in double precision would cost memory
        made[index] = np.rint(array[index] * (255.0 / white))
    return made
