"""The voxel grid of a file: where its voxels lie, in the convention of ITK (LPS, millimetres, index order i, j, k).

Masks are written on this grid, so it follows what ITK reads from the same file even where that is not the physical
truth (an ultrasound file's spacing in cm, a time stack's third axis). What is really known about distances is kept
apart, in `MedicalImage.pixel_spacing`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """Voxel grid of a 2-D or 3-D file.

    Parameters
    ----------
    size : tuple of int
        Number of voxels along i, j (and k); i runs along an image row, as in ITK.
    spacing : tuple of float
        Distance between voxel centres along i, j (and k), as ITK reads it.
    origin : tuple of float
        LPS position of the centre of voxel 0.
    direction : ndarray of float64, shape (d, d)
        Column n is the LPS direction of voxel axis n.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray = field(repr=False)

    @property
    def ndim(self) -> int:
        """2 for a picture, 3 for everything else (a single DICOM frame is a volume of one slice, as in ITK)."""
        return len(self.size)

    @property
    def is_orthonormal(self) -> bool:
        """Whether the axes are at right angles, which ITK demands."""
        product = self.direction.T @ self.direction
        return bool(np.allclose(product, np.eye(self.ndim), atol=1e-4))

    def affine_ras(self) -> np.ndarray:
        """Return the 4 x 4 matrix from voxel index (i, j, k) to RAS millimetres, NIfTI's convention."""
        matrix = np.eye(4)
        scaled = self.direction * np.asarray(self.spacing)
        matrix[: self.ndim, : self.ndim] = scaled
        matrix[: self.ndim, 3] = self.origin
        matrix[:3] = RAS_TO_LPS @ matrix[:3]
        return matrix

    def lies_on(self, other: Grid, tolerance: float = 0.1) -> bool:
        """Whether the voxels of this grid are those of another: as many along each axis, and at the same places.

        Parameters
        ----------
        other : Grid
            A 2-D grid is taken as one of a single slice, where the other of the two is 3-D.
        tolerance : float
            How far apart the same corners may be, as a share of the other grid's least spacing.
        """
        ndim = max(self.ndim, other.ndim)
        own, theirs = (grid._in(ndim) for grid in (self, other))
        if own.size != theirs.size:
            return False
        corners = np.array(list(itertools.product(*((0, size - 1) for size in own.size))), dtype=np.float64)
        apart = np.linalg.norm(own._positions(corners) - theirs._positions(corners), axis=1)
        return bool(apart.max() <= tolerance * min(other.spacing))

    def in_space(self) -> Grid:
        """Return this grid with three dimensions: a picture is one of a single slice."""
        return self._in(3)

    def _in(self, ndim: int) -> Grid:
        """Return this grid with as many dimensions, in the way ITK reads a slice as a volume."""
        if self.ndim == ndim:
            return self
        direction = np.eye(ndim)
        direction[: self.ndim, : self.ndim] = self.direction
        more = ndim - self.ndim
        return Grid(
            (*self.size, *(1,) * more), (*self.spacing, *(1.0,) * more), (*self.origin, *(0.0,) * more), direction
        )

    def _positions(self, indices: np.ndarray) -> np.ndarray:
        """Return the LPS positions of voxel indices [n, d]."""
        return np.asarray(self.origin) + (indices * np.asarray(self.spacing)) @ self.direction.T


def plain_grid(size: tuple[int, ...], spacing: tuple[float, ...] | None = None) -> Grid:
    """Return a grid at the origin along the LPS axes, ITK's reading of a file that says nothing."""
    ndim = len(size)
    return Grid(size, spacing or (1.0,) * ndim, (0.0,) * ndim, np.eye(ndim))


def grid_from_ras(size: tuple[int, ...], affine: np.ndarray) -> Grid:
    """Return the grid of a NIfTI affine (4 x 4, index to RAS millimetres); a 2-D size takes its upper left part."""
    ndim = len(size)
    lps = RAS_TO_LPS @ np.asarray(affine, dtype=np.float64)[:3]
    columns = lps[:ndim, :ndim]
    spacing = np.linalg.norm(lps[:, :ndim], axis=0)
    direction = columns / np.where(spacing > 0, spacing, 1.0)
    return Grid(size, tuple(map(float, spacing)), tuple(map(float, lps[:ndim, 3])), direction)
