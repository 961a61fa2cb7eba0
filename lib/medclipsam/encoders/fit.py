"""How a plane becomes an encoder's square input, and how a map comes back: the same transform, inverted.

The published scripts crop the centre and then stretch the map over the whole image, which shifts it on every image that
is not square. Here each fit remembers its own geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError
from medclipsam.base.options import FITS


@dataclass(frozen=True)
class Fit:
    """Geometry between a plane and an encoder's input.

    Attributes
    ----------
    plane_shape : tuple of int
        (H, W) of the plane.
    size : int
        Side of the square input in pixels.
    source : tuple of int
        (row0, row1, col0, col1) of the plane that the input shows, half open.
    target : tuple of int
        (row0, row1, col0, col1) of the input that holds the plane, half open; the rest is padding.
    """

    plane_shape: tuple[int, int]
    size: int
    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]

    def valid(self, grid: int | None = None) -> torch.Tensor:
        """Return where the input (or a token grid over it) shows the plane rather than padding.

        Parameters
        ----------
        grid : int, optional
            Side of a token grid over the input; a token counts as valid when its centre is not padding.

        Returns
        -------
        torch.Tensor
            bool [size, size] or [grid, grid].
        """
        side = grid or self.size
        centres = (torch.arange(side) + 0.5) * (self.size / side)
        r0, r1, c0, c1 = self.target
        rows = (centres >= r0) & (centres < r1)
        cols = (centres >= c0) & (centres < c1)
        return rows[:, None] & cols[None, :]

    def back(self, maps: torch.Tensor) -> torch.Tensor:
        """Bring maps over the input back onto the plane.

        Parameters
        ----------
        maps : torch.Tensor
            float [..., size, size].

        Returns
        -------
        torch.Tensor
            float [..., H, W], bilinear; what the input never showed (`fit="crop"`) is 0.
        """
        r0, r1, c0, c1 = self.target
        s0, s1, t0, t1 = self.source
        flat = maps.reshape(-1, 1, *maps.shape[-2:])[:, :, r0:r1, c0:c1]
        shown = F.interpolate(flat, size=(s1 - s0, t1 - t0), mode="bilinear", align_corners=False)
        height, width = self.plane_shape
        plane = F.pad(shown, (t0, width - t1, s0, height - s1))
        return plane.reshape(*maps.shape[:-2], height, width)

    def covered(self) -> np.ndarray:
        """Return the part of the plane that the input shows, as bool [H, W]."""
        mask = np.zeros(self.plane_shape, dtype=bool)
        s0, s1, t0, t1 = self.source
        mask[s0:s1, t0:t1] = True
        return mask


def fit_plane(plane: np.ndarray, size: int, fit: str = "letterbox") -> tuple[torch.Tensor, Fit]:
    """Make an encoder's square input from a plane.

    Parameters
    ----------
    plane : numpy.ndarray
        uint8 [H, W, 3].
    size : int
        Side of the input in pixels.
    fit : {"letterbox", "squash", "crop"}
        Longest side to `size` and black padding round it; both sides to `size`; or the central square.

    Returns
    -------
    tensor : torch.Tensor
        float32 [3, size, size] in [0, 1], antialiased bicubic.
    geometry : Fit
        The way back.

    Raises
    ------
    InputError
        If the plane is not uint8 [H, W, 3], or the fit is unknown.
    """
    if plane.dtype != np.uint8 or plane.ndim != 3 or plane.shape[2] != 3 or 0 in plane.shape:
        raise InputError(f"A plane must be uint8 [H, W, 3]; given {plane.dtype} {list(plane.shape)}.")
    height, width = plane.shape[:2]
    source, target = (0, height, 0, width), (0, size, 0, size)
    if fit == "letterbox":
        scale = size / max(height, width)
        rows, cols = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (size - rows) // 2, (size - cols) // 2
        target = (top, top + rows, left, left + cols)
    elif fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        source = (top, top + side, left, left + side)
    elif fit != "squash":
        raise InputError(f"Fit {fit!r} is unknown; allowed: {', '.join(FITS)}.")
    geometry = Fit((height, width), size, source, target)
    s0, s1, t0, t1 = source
    pixels = torch.from_numpy(plane[s0:s1, t0:t1].copy()).permute(2, 0, 1)[None].float() / 255
    r0, r1, c0, c1 = target
    inner = F.interpolate(pixels, size=(r1 - r0, c1 - c0), mode="bicubic", antialias=True, align_corners=False)
    padded = F.pad(inner.clamp(0, 1), (c0, size - c1, r0, size - r1))
    return padded[0], geometry
