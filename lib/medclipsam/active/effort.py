"""How much of a mask a person changed, and how well readers agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medclipsam.base.errors import InputError
from medclipsam.base.metrics import dice


@dataclass(frozen=True)
class Effort:
    """What lies between a pre-label and its correction.

    Attributes
    ----------
    dice : float
        Dice of the two, averaged over the structures that either of them holds; 1 where both are empty.
    path_length : int
        Added path length in pixels, summed over structures and planes.
    changed : int
        Pixels whose label, or where structures overlap one of whose labels, differs.
    """

    dice: float
    path_length: int
    changed: int


def added_path_length(before: np.ndarray, after: np.ndarray) -> int:
    """Return the added path length: pixels of the corrected contour that were not on the contour before.

    Parameters
    ----------
    before, after : numpy.ndarray
        bool [..., H, W]; contours are taken plane by plane, as they are drawn.

    Returns
    -------
    int
        In pixels. A contour that was only removed costs nothing here; `Effort.changed` counts it.

    Raises
    ------
    InputError
        If the shapes differ.

    Notes
    -----
    Vaassen et al., Phys. Imaging Radiat. Oncol. 13 (2020), without tolerance. A contour is the pixels of a mask that
    have a direct neighbour in the plane outside the mask, or lie on the plane's border.
    """
    if before.shape != after.shape:
        raise InputError(f"Masks of the shapes {before.shape} and {after.shape} cannot be compared.")
    return int(np.count_nonzero(_contour(after) & ~_contour(before)))


def effort(before: np.ndarray, after: np.ndarray) -> Effort:
    """Compare the label map that a person was shown with the one that was saved.

    Parameters
    ----------
    before, after : numpy.ndarray
        uint8 label maps [N, H, W] of one table of labels.

    Returns
    -------
    Effort
    """
    values = [int(value) for value in np.union1d(before, after) if value]
    return effort_of_masks((before == value, after == value) for value in values)


def effort_of_masks(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Effort:
    """Compare the masks of structures, which may overlap, before and after a person has corrected them.

    Parameters
    ----------
    pairs : iterable of (numpy.ndarray, numpy.ndarray)
        Of each structure the mask before and after, bool [N, H, W].
    """
    scores, length, changed = [], 0, np.zeros(1, bool)
    for before, after in pairs:
        if before.any() or after.any():
            scores.append(dice(before, after))
            length += added_path_length(before, after)
            changed = changed | (before != after)
    return Effort(float(np.mean(scores)) if scores else 1.0, length, int(np.count_nonzero(changed)))


def agreement(readings: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Return the Dice of each pair of readers of one image.

    Parameters
    ----------
    readings : mapping of str to numpy.ndarray
        Each reader's label map, uint8 [N, H, W].

    Returns
    -------
    dict
        The two readers in alphabetical order: Dice averaged over the structures that either of them drew.
    """
    return {
        (one, other): effort(readings[one], readings[other]).dice
        for one, other in itertools.combinations(sorted(readings), 2)
    }


def _contour(mask: np.ndarray) -> np.ndarray:
    cross = ndimage.generate_binary_structure(2, 1).reshape((1,) * (mask.ndim - 2) + (3, 3))
    inner: np.ndarray = ndimage.binary_erosion(mask.astype(bool), cross)
    return mask.astype(bool) & ~inner
