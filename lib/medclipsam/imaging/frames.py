"""Planes of an image as frames of DICOM instances, and masks in the frames' own pixels.

A viewer knows an image as DICOM frames: pixels [row, column] in the order in which a frame stores them. This package
knows it as planes in display orientation. `ImageFrames` leads from one to the other, and `encode_runs` writes the mask
of one frame as a viewer sends and receives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.imaging.dicom import source_headers
from medclipsam.imaging.image import MedicalImage


@dataclass(frozen=True)
class ImageFrames:
    """Which DICOM frame shows each plane of an image.

    Parameters
    ----------
    study, series : str
        Study and Series Instance UID.
    frames : tuple of (str, int)
        SOP Instance UID and frame number, counted from 1, of each display plane.
    image : MedicalImage
        The image.
    as_displayed : bool
        Whether a frame has the pixels of the display plane, as those that are made of other formats have; else those of
        the file.
    """

    study: str
    series: str
    frames: tuple[tuple[str, int], ...]
    image: MedicalImage = field(repr=False)
    as_displayed: bool = False

    @classmethod
    def of_dicom(cls, image: MedicalImage) -> ImageFrames:
        """Return the frames of an image that was read from DICOM files.

        Raises
        ------
        ImageError
            If the files cannot be read any more.
        """
        headers = source_headers(image.source)
        names = [str(header.SOPInstanceUID) for header in headers]
        if len(names) == 1:
            stored = [(names[0], frame + 1) for frame in image.frames or range(image.n_planes)]
        else:
            stored = [(name, 1) for name in names]
        ordered = tuple(stored[k] for k in image.layout.plane_order)
        return cls(str(headers[0].StudyInstanceUID), str(headers[0].SeriesInstanceUID), ordered, image)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of a frame."""
        rows, columns = self.image.plane_shape
        return (columns, rows) if self._is_turned else (rows, columns)

    @property
    def spacing(self) -> tuple[float | None, float, float] | None:
        """Millimetres between planes (None for a single one, or where not known), rows and columns of a frame."""
        spacing = self.image.pixel_spacing
        if spacing is None:
            return None
        return (self.image.plane_spacing, *(spacing[::-1] if self._is_turned else spacing))

    @cached_property
    def planes(self) -> Mapping[tuple[str, int], int]:
        """The plane of each (SOP Instance UID, frame number)."""
        return {frame: plane for plane, frame in enumerate(self.frames)}

    def to_frame(self, plane: np.ndarray) -> np.ndarray:
        """Return a display plane [H, W] in the pixels of its frame [rows, columns]."""
        return plane if self.as_displayed else self.image.layout.plane_to_stored(plane)

    def to_plane(self, frame: np.ndarray) -> np.ndarray:
        """Return pixels of a frame [rows, columns] as the display plane [H, W]: the inverse of `to_frame`."""
        return frame if self.as_displayed else self.image.layout.plane_to_display(frame)

    def point(self, row: float, column: float) -> tuple[float, float]:
        """Return a point of a display plane as (x, y), column and row, of its frame.

        Coordinates are in pixels, the centre of the first one at (0, 0).
        """
        if not self.as_displayed:
            row, column = self.image.layout.point_to_stored(row, column, self.image.plane_shape)
        return column, row

    def voxels(self, points: Sequence[tuple[int, float, float]]) -> list[list[int]]:
        """Return points in frames as voxel indices of the file.

        Parameters
        ----------
        points : sequence of (int, float, float)
            Plane, x (column) and y (row) in the frame, from its first pixel's centre at 0; rounded to whole pixels.

        Returns
        -------
        list of [int, int, int]
            Indices [i, j, k], see `MedicalImage.display_index`.

        Raises
        ------
        InputError
            If one is outside the image.
        """
        rows, columns = self.shape
        found = []
        for plane, x, y in points:
            column, row = round(x), round(y)
            if not (0 <= plane < len(self.frames) and 0 <= row < rows and 0 <= column < columns):
                raise InputError(
                    f"The point x {x:g}, y {y:g} on plane {plane} is outside the image; allowed: planes 0 to "
                    f"{len(self.frames) - 1}, x 0 to {columns - 1}, y 0 to {rows - 1}."
                )
            # where a pixel comes to lie is asked of the same code that brings masks there
            place = np.zeros((rows, columns), bool)
            place[row, column] = True
            found.append((plane, *map(int, np.argwhere(self.to_plane(place))[0])))
        return [list(map(int, voxel)) for voxel in self.image.voxel_index(np.array(found).reshape(-1, 3))]

    def runs(self, plane: np.ndarray) -> list[int]:
        """Return the mask of one display plane, bool [H, W], as the runs of its frame."""
        return encode_runs(self.to_frame(plane))

    def encode(self, mask: np.ndarray) -> list[dict[str, Any]]:
        """Return a mask, bool [n_planes, H, W] in display orientation, as [{"plane": 3, "runs": [...]}].

        Planes on which the mask is empty are left out.
        """
        return [{"plane": plane, "runs": self.runs(each)} for plane, each in enumerate(mask) if each.any()]

    def decode(self, planes: Any, what: str) -> np.ndarray:
        """Return what `encode` writes as a mask, bool [n_planes, H, W] in display orientation.

        Parameters
        ----------
        planes : object
            As a client sent it.
        what : str
            What it is, for the sentence.

        Raises
        ------
        InputError
            If it is not such a list, names a plane twice or one that is not there, or has unusable runs.
        """
        mask = np.zeros((self.image.n_planes, *self.image.plane_shape), bool)
        if not isinstance(planes, list):
            raise InputError(f"The planes of {what} are {str(planes)[:40]!r}; allowed: a list of plane and runs.")
        seen = set()
        for entry in planes:
            plane = entry.get("plane") if isinstance(entry, Mapping) else None
            if type(plane) is not int or not 0 <= plane < len(mask) or plane in seen:
                raise InputError(
                    f"The plane {str(plane)[:40]!r} of {what} cannot be used; allowed: 0 to {len(mask) - 1}, each once."
                )
            seen.add(plane)
            mask[plane] = self.to_plane(decode_runs(entry.get("runs"), self.shape, f"{what} on plane {plane}"))
        return mask

    @property
    def _is_turned(self) -> bool:
        """Whether the frame's rows are the display's columns."""
        return not self.as_displayed and self.image.layout.axes[1] > self.image.layout.axes[2]


def encode_runs(frame: np.ndarray) -> list[int]:
    """Return a mask, bool [rows, columns], as [start, length, start, length, ...] over its pixels row by row."""
    edges = np.flatnonzero(np.diff(np.ascontiguousarray(frame).ravel().astype(np.int8), prepend=0, append=0))
    edges[1::2] -= edges[::2]
    return [int(number) for number in edges]


def decode_runs(runs: Any, shape: tuple[int, int], what: str) -> np.ndarray:
    """Return the mask, bool [rows, columns], that `encode_runs` wrote.

    Parameters
    ----------
    runs : object
        As a client sent it.
    shape : tuple of int
        (rows, columns).
    what : str
        What it is, for the sentence.

    Raises
    ------
    InputError
        If it is not a list of starts and lengths in ascending order, without overlaps, within the frame.
    """
    numbers = np.empty(0, np.int64)
    usable = isinstance(runs, list) and len(runs) % 2 == 0 and all(type(number) is int for number in runs)
    size = shape[0] * shape[1]
    if usable and runs:
        usable = max(runs) <= size and min(runs) >= 0
    if usable:
        numbers = np.array(runs, np.int64)
        starts, ends = numbers[::2], numbers[::2] + numbers[1::2]
        usable = bool((numbers[1::2] > 0).all() and (starts[1:] >= ends[:-1]).all() and (ends <= size).all())
    if not usable:
        raise InputError(
            f"The runs of {what} cannot be used; allowed: a list of start, length, start, length, ... in ascending "
            f"order without overlaps, within the {size} pixels of a frame of {shape[0]} rows and {shape[1]} columns."
        )
    steps = np.zeros(size + 1, np.int8)
    # a run may begin where the one before it ends
    np.add.at(steps, numbers[::2], 1)
    np.add.at(steps, numbers[::2] + numbers[1::2], -1)
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool).reshape(shape)
