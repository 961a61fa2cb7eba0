"""The axes of a finding as RECIST 1.1 has them: its longest diameter on one plane, and the longest one across it.

Eisenhauer et al., European Journal of Cancer 45, 2009, 228-247: lesions are measured in the plane of acquisition; the
long axis is the greatest distance within the outline, the short axis the greatest one perpendicular to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from medclipsam.imaging.outlines import outlines

# The middles of a pixel's edges.
_STEPS = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
# Relative; what differs by less is equal.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Axis:
    """A straight line across a mask, on one plane.

    Attributes
    ----------
    plane : int
        The plane, from 0.
    start, end : tuple of float
        (row, column) in pixels, the centre of the first pixel at (0, 0).
    length_mm : float or None
        None where the spacing of the pixels is not known.
    """

    plane: int
    start: tuple[float, float]
    end: tuple[float, float]
    length_mm: float | None


def axes(mask: np.ndarray, spacing: tuple[float, float] | None) -> tuple[Axis, Axis] | None:
    """Return the long and the short axis of a mask.

    Parameters
    ----------
    mask : ndarray of bool, shape (n_planes, H, W)
        In display orientation. Pixels that touch at a corner are connected.
    spacing : tuple of float or None
        Millimetres between rows and between columns; where it is not known, pixels are taken for squares.

    Returns
    -------
    tuple of Axis or None
        The long axis is the greatest distance within one connected part of one plane, between the middles of outer
        edges of pixels, so that a row of four pixels is four pixels long. The short axis is on the same plane, the
        greatest distance between two points of that part's outline on a line perpendicular to the long axis. None of an
        empty mask.
    """
    step = np.array(spacing or (1.0, 1.0))
    longest, found = 0.0, None
    for index in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
        plane, corner = _cropped(mask[index])
        parts, _ = ndimage.label(plane, structure=np.ones((3, 3)))
        places = enumerate(ndimage.find_objects(parts), start=1)
        bounded = sorted(((_bound(place, step), number, place) for number, place in places), key=lambda each: -each[0])
        for bound, number, place in bounded:
            # a mask may have thousands of parts, most of them specks
            if bound <= longest * (1 + _EQUAL):
                break
            part = parts[place] == number
            start, end = _long(part, step)
            length = float(np.linalg.norm((end - start) * step))
            if length > longest * (1 + _EQUAL):
                longest = length
                found = index, part, corner + [each.start for each in place], start, end
    if found is None:
        return None
    index, part, corner, start, end = found
    across = _short(part, start, end, step)

    def axis(first: np.ndarray, last: np.ndarray) -> Axis:
        length = None if spacing is None else float(np.linalg.norm((last - first) * step))
        return Axis(index, _point(first + corner), _point(last + corner), length)

    return axis(start, end), axis(*across)


def largest_diameter_mm(mask: np.ndarray, spacing: tuple[float, float] | None) -> float | None:
    """Return the length of a mask's long axis, see `axes`; None where it is empty or the spacing is not known."""
    found = None if spacing is None else axes(mask, spacing)
    return None if found is None else found[0].length_mm


def _cropped(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a plane that holds its mask, and where that begins."""
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    return plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.array([rows[0], columns[0]])


def _bound(place: tuple[slice, slice], step: np.ndarray) -> float:
    """Return what the diameter of a part within a box of pixels cannot exceed; that of one pixel is met."""
    rows, columns = (each.stop - each.start for each in place)
    sides = np.array([[rows, columns - 1], [rows - 1, columns], [rows - 0.5, columns - 0.5]]) * step
    return float(np.hypot(*sides.T).max())


def _long(part: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two middles of edges of a part's pixels (bool [H, W]) that are furthest apart."""
    rows = np.flatnonzero(part.any(axis=1))
    first = part[rows].argmax(axis=1)
    last = part.shape[1] - 1 - part[rows, ::-1].argmax(axis=1)
    # of each row the ends alone can be furthest apart
    ends = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
    points = (ends[:, None] + _STEPS).reshape(-1, 2)
    corners = points[np.sort(ConvexHull(points * step).vertices)]
    distances = squareform(pdist(corners * step))
    one, other = np.unravel_index(distances.argmax(), distances.shape)
    return corners[one], corners[other]


def _short(part: np.ndarray, start: np.ndarray, end: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the longest line across a part (bool [H, W]) at right angles to its long axis."""
    along = (end - start) * step / np.linalg.norm((end - start) * step)
    across = np.array([-along[1], along[0]])
    rings = [ring * step for outline in outlines(part) for ring in outline.rings]
    # the two ends of each edge: its place along the long axis, and its distance from it
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings])
    place, distance = edges @ along, edges @ across
    order = place.argsort(axis=1)
    place, distance = (np.take_along_axis(each, order, axis=1) for each in (place, distance))
    # the outline is made of straight edges, so that the line is longest at a corner: each edge is looked at
    # where corners lie between its ends
    slack = _EQUAL * max(1.0, float(np.abs(place).max()))
    corners = np.unique(place)
    first = np.searchsorted(corners, place[:, 0] - slack, "left")
    last = np.searchsorted(corners, place[:, 1] + slack, "right")
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    corner = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = place[edge, 1] - place[edge, 0]
    upright = width <= slack
    share = np.where(upright, 0.0, (corners[corner] - place[edge, 0]) / np.where(upright, 1.0, width)).clip(0, 1)
    value = distance[edge, 0] + share * (distance[edge, 1] - distance[edge, 0])
    # an edge along the line belongs to it with both ends
    corner, value = np.append(corner, corner[upright]), np.append(value, distance[edge, 1][upright])
    least, most = np.full(len(corners), np.inf), np.full(len(corners), -np.inf)
    np.minimum.at(least, corner, value)
    np.maximum.at(most, corner, value)
    best = int((most - least).argmax())
    ends = [(corners[best] * along + each[best] * across) / step for each in (least, most)]
    return ends[0], ends[1]


def _point(point: np.ndarray) -> tuple[float, float]:
    return round(float(point[0]), 4), round(float(point[1]), 4)
