"""Outlines of masks as polygons, and polygons filled: what RTSTRUCT, COCO and the axes of findings are made of.

An outline runs through the middles of the edges between pixels inside and outside (marching squares at one half, by
contourpy), so that it lies within half a pixel of each edge, and filling it gives the mask back pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, eq=False)
class Outline:
    """The outline of one connected part of a mask.

    Parameters
    ----------
    outer : ndarray of float64, shape (n, 2)
        Its corners (row, column) in pixels, the centre of the first pixel at (0, 0); the last is not the first again.
    holes : tuple of ndarray of float64, shape (n, 2)
        The outlines of its holes.
    """

    outer: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    @property
    def rings(self) -> tuple[np.ndarray, ...]:
        """The outline and those of its holes."""
        return (self.outer, *self.holes)


def outlines(mask: np.ndarray) -> list[Outline]:
    """Return the outlines of a mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (H, W)

    Returns
    -------
    list of Outline
        One for each part; none of an empty mask. The corners are multiples of one half.
    """
    from contourpy import FillType, contour_generator

    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return []
    first = np.array([rows[0], columns[0]])
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # a ring of zeros closes outlines at the image's border
    padded = np.pad(part, 1).astype(np.float64)
    found = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    made = []
    for points, offsets in zip(*found, strict=True):
        ends = np.asarray(offsets, dtype=np.int64)
        # contourpy has x before y, and the first point again at the end
        rings = [points[start : stop - 1, ::-1] - 1 + first for start, stop in pairwise(ends)]
        made.append(Outline(rings[0], tuple(rings[1:])))
    return made


def fill(rings: Iterable[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Fill closed polygons by the even-odd rule: a ring inside another one is a hole.

    Parameters
    ----------
    rings : iterable of ndarray of float64, shape (n, 2)
        Corners (row, column) in pixels, the centre of the first pixel at (0, 0). They may lie outside the image.
    shape : sequence of int
        (H, W).

    Returns
    -------
    ndarray of bool, shape (H, W)
        The pixels whose centres are inside.
    """
    height, width = shape
    starts, ends = [], []
    for ring in rings:
        if len(ring) > 2:
            starts.append(ring)
            ends.append(np.roll(ring, -1, axis=0))
    if not starts:
        return np.zeros((height, width), bool)
    start, end = np.concatenate(starts), np.concatenate(ends)
    # each edge from its upper end, so that one that is passed both ways crosses a row at the same place both times
    upper = (start[:, 0] < end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] <= end[:, 1]))
    top, bottom = (np.where(upper[:, None], *pair) for pair in ((start, end), (end, start)))
    # an edge crosses the rows from its upper end on to before its lower end
    first = np.clip(np.ceil(top[:, 0]), 0, height).astype(np.int64)
    last = np.clip(np.ceil(bottom[:, 0]), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (row - top[edge, 0]) / (bottom[edge, 0] - top[edge, 0])
    column = top[edge, 1] + share * (bottom[edge, 1] - top[edge, 1])
    # the first pixel to the right of a crossing, from which on inside and outside change places
    turns = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(turns, (row, np.clip(np.ceil(column), 0, width).astype(np.int64)), 1)
    return np.bitwise_xor.accumulate(turns, axis=1)[:, :width].astype(bool)
