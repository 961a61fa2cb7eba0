"""Which way round a plane is shown: patient right at image left, anterior or head up.

Stored volumes are numpy arrays [k, j, i]; display planes are views [row, column] of them. Directions are LPS vectors
(x to the patient's left, y to the back, z to the head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation

PLANE_NAMES = ("sagittal", "coronal", "axial")

# Patient axis (0 x, 1 y, 2 z) that a plane is stacked along -> ((row axis, sign), (column axis, sign)) on display.
_DISPLAY = {
    0: ((2, -1), (1, 1)),  # sagittal: head up, anterior at image left
    1: ((2, -1), (0, 1)),  # coronal: head up, patient right at image left
    2: ((1, 1), (0, 1)),  # axial: anterior up, patient right at image left
}

_LETTERS = {
    "L": (1.0, 0.0, 0.0),
    "R": (-1.0, 0.0, 0.0),
    "P": (0.0, 1.0, 0.0),
    "A": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}


@dataclass(frozen=True)
class Layout:
    """How a stored array [k, j, i] becomes display planes, and back.

    Parameters
    ----------
    axes : tuple of int
        Array axis of the stored volume that is the plane index, the row and the column of the display.
    flip_rows, flip_columns : bool
        Whether rows and columns run against the stored order.
    plane_order : tuple of int
        Position along the stored plane axis of each display plane.
    name : str or None
        "axial", "coronal" or "sagittal" (the closest one), None where the orientation is not known.
    """

    axes: tuple[int, int, int]
    flip_rows: bool
    flip_columns: bool
    plane_order: tuple[int, ...]
    name: str | None

    def plane(self, stored: np.ndarray, index: int) -> np.ndarray:
        """Return display plane `index` of a stored array [k, j, i] or [k, j, i, channel] as a view."""
        return self.plane_to_display(stored[(slice(None),) * self.axes[0] + (self.plane_order[index],)])

    def plane_to_stored(self, plane: np.ndarray) -> np.ndarray:
        """Return one display plane [row, column] in the order of the file's own rows and columns: a view.

        The exact inverse of what `plane` does to a plane, and `plane_to_display` is its inverse.
        """
        plane = plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return np.swapaxes(plane, 0, 1) if self.axes[1] > self.axes[2] else plane

    def plane_to_display(self, plane: np.ndarray) -> np.ndarray:
        """Return one plane in the file's own order of rows and columns as it is on display: a view."""
        if self.axes[1] > self.axes[2]:
            plane = np.swapaxes(plane, 0, 1)
        return plane[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def point_to_stored(self, row: float, column: float, shape: tuple[int, int]) -> tuple[float, float]:
        """Return a point of a display plane of some shape as (row, column) of the file's own plane.

        Coordinates are in pixels, the centre of the first one at (0, 0).
        """
        row = shape[0] - 1 - row if self.flip_rows else row
        column = shape[1] - 1 - column if self.flip_columns else column
        return (column, row) if self.axes[1] > self.axes[2] else (row, column)

    def to_stored(self, display: np.ndarray) -> np.ndarray:
        """Return an array [plane, row, column] in stored order [k, j, i]: the exact inverse of `plane`."""
        ordered = np.empty_like(display)
        ordered[np.asarray(self.plane_order)] = display[
            :, :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1
        ]
        return np.ascontiguousarray(np.transpose(ordered, np.argsort(self.axes)))

    def to_display(self, stored: np.ndarray) -> np.ndarray:
        """Return an array [k, j, i] in stored order as [plane, row, column]: the exact inverse of `to_stored`."""
        planes = np.transpose(stored, self.axes)[np.asarray(self.plane_order)]
        return np.ascontiguousarray(planes[:, :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1])

    def stored_positions(self, axis: int, length: int) -> np.ndarray:
        """Return where the indices along a display axis are along the stored axis that it shows.

        Parameters
        ----------
        axis : int
            0 planes, 1 rows, 2 columns; the stored axis is `axes[axis]`.
        length : int
            Indices along it.

        Returns
        -------
        ndarray of int, shape (length,)
        """
        if axis == 0:
            return np.asarray(self.plane_order)
        return np.arange(length)[:: -1 if (self.flip_rows, self.flip_columns)[axis - 1] else 1]

    def display_index(self, stored: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return stored indices [n, 3] of (k, j, i) as display indices (plane, row, column).

        Parameters
        ----------
        stored : ndarray of int, shape (n, 3)
            Within the array.
        shape : sequence of int
            Size of the stored array [k, j, i].
        """
        position = np.argsort(self.plane_order)
        plane, row, column = (stored[:, axis] for axis in self.axes)
        if self.flip_rows:
            row = shape[self.axes[1]] - 1 - row
        if self.flip_columns:
            column = shape[self.axes[2]] - 1 - column
        return np.stack([position[plane], row, column], axis=1)

    def stored_index(self, display: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return display indices [n, 3] of (plane, row, column) as stored indices (k, j, i).

        The exact inverse of `display_index`, whose parameters it takes.
        """
        plane, row, column = np.asarray(display).T
        if self.flip_rows:
            row = shape[self.axes[1]] - 1 - row
        if self.flip_columns:
            column = shape[self.axes[2]] - 1 - column
        stored = np.empty((len(plane), 3), np.int64)
        stored[:, self.axes[0]] = np.asarray(self.plane_order)[plane]
        stored[:, self.axes[1]], stored[:, self.axes[2]] = row, column
        return stored


def layout_for(
    shape: Sequence[int],
    spacing: tuple[float, float, float],
    directions: np.ndarray | None,
    *,
    stack_axis: int | None = None,
    plane_order: tuple[int, ...] | None = None,
) -> Layout:
    """Choose the acquisition axis and the display orientation of a stored volume.

    The acquisition axis is `stack_axis` where the file says it, else the only axis of size 1, else the axis of the
    largest spacing; among equal spacings (within 1 %) the one closest to head-foot wins, so planes are axial.
    Oblique volumes are shown by the closest patient axes. Planes run from right to left, front to back, or foot to
    head, so the same patient gives the same planes however the file stores them.

    Parameters
    ----------
    shape : sequence of int
        Size of the stored array [k, j, i].
    spacing : tuple of float
        Spacing along k, j, i.
    directions : ndarray of float64, shape (3, 3), or None
        Columns are the LPS directions of k, j, i. None: orientation unknown, planes are shown as stored.
    stack_axis : int, optional
        Array axis (0 k, 1 j, 2 i) the planes are stacked along.
    plane_order : tuple of int, optional
        Order of the planes along the stack axis, where the stored order is not spatial or has no spatial meaning.
    """
    world = None if directions is None else _closest_axes(directions)
    axis = stack_axis if stack_axis is not None else _acquisition_axis(shape, spacing, world)
    rest = [a for a in range(3) if a != axis]
    forward = tuple(range(shape[axis]))
    if world is None:
        return Layout((axis, rest[0], rest[1]), False, False, plane_order or forward, None)
    patient_axis = world[axis][0]
    (row_axis, row_sign), (column_axis, column_sign) = _DISPLAY[patient_axis]
    row = next(a for a in rest if world[a][0] == row_axis)
    column = next(a for a in rest if world[a][0] == column_axis)
    order = plane_order or (forward if world[axis][1] > 0 else forward[::-1])
    return Layout(
        (axis, row, column),
        world[row][1] != row_sign,
        world[column][1] != column_sign,
        order,
        PLANE_NAMES[patient_axis],
    )


def directions_from_letters(orientation: list[str]) -> np.ndarray | None:
    """Return directions of k, j, i from DICOM Patient Orientation (0020,0020), or None where it says nothing.

    Parameters
    ----------
    orientation : list of str
        Direction of the rows and of the columns, such as ["L", "F"]; the first letter of each counts
        (DICOM PS3.3 C.7.6.1.1.1). Only the human letters A, P, R, L, H, F are read.
    """
    if len(orientation) != 2:
        return None
    along_row, along_column = (_LETTERS.get(str(value)[:1].upper()) for value in orientation)
    if along_row is None or along_column is None:
        return None
    i, j = np.array(along_row), np.array(along_column)
    if abs(i @ j) > 0.5:
        return None
    return np.stack([np.cross(i, j), j, i], axis=1)


def _closest_axes(directions: np.ndarray) -> list[tuple[int, int]]:
    """Return (patient axis, sign) of each stored axis: the closest one-to-one assignment."""
    affine = np.eye(4)
    affine[:3, :3] = directions
    return [(int(axis), int(sign)) for axis, sign in io_orientation(affine)]


def _acquisition_axis(
    shape: Sequence[int], spacing: tuple[float, float, float], world: list[tuple[int, int]] | None
) -> int:
    single = [a for a in range(3) if shape[a] == 1]
    if len(single) == 1:
        return single[0]
    largest = max(spacing)
    candidates = [a for a in range(3) if spacing[a] >= largest * 0.99]
    if world is None:
        return candidates[0]
    return max(candidates, key=lambda a: world[a][0])
