"""From a coarse mask to what SAM is given: boxes and points in pixels of the plane, (x, y), or the mask itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class VisualPrompt:
    """Boxes, points and a mask for SAM.

    Attributes
    ----------
    boxes : numpy.ndarray or None
        float32 [K, 4], [x0, y0, x1, y1], inclusive of x1, y1.
    points : numpy.ndarray or None
        float32 [M, 2], (x, y).
    point_labels : numpy.ndarray or None
        int32 [M]; 1 in the target, 0 outside.
    mask : numpy.ndarray or None
        bool [H, W], which SAM is to mend.
    """

    boxes: np.ndarray | None = None
    points: np.ndarray | None = None
    point_labels: np.ndarray | None = None
    mask: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the prompt as JSON-able lists; what was not used is left out, of a mask its pixels are counted."""
        parts = {"boxes": self.boxes, "points": self.points, "point_labels": self.point_labels}
        listed = {key: np.asarray(value).tolist() for key, value in parts.items() if value is not None}
        return listed if self.mask is None else {**listed, "mask_pixels": int(self.mask.sum())}


def boxes_of(mask: np.ndarray, per_component: bool = False) -> np.ndarray:
    """Return the boxes round a mask.

    Parameters
    ----------
    mask : numpy.ndarray
        bool [H, W].
    per_component : bool
        One box for each connected component, largest first, instead of one round all.

    Returns
    -------
    numpy.ndarray
        float32 [K, 4], [x0, y0, x1, y1] inclusive; K = 0 for an empty mask.
    """
    if not mask.any():
        return np.zeros((0, 4), dtype=np.float32)
    labels = mask.astype(np.int32)
    if per_component:
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
    found = ndimage.find_objects(labels)
    sizes = np.bincount(labels.ravel())[1:]
    boxes = [[cols.start, rows.start, cols.stop - 1, rows.stop - 1] for rows, cols in found]
    return np.asarray(boxes, dtype=np.float32)[np.argsort(-sizes, kind="stable")]


def sample_points(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw distinct pixels of a mask.

    Parameters
    ----------
    mask : numpy.ndarray
        bool [H, W].
    count : int
        How many; all pixels if the mask has fewer.
    rng : numpy.random.Generator
        Source of the draw.

    Returns
    -------
    numpy.ndarray
        float32 [M, 2], (x, y), without repetition.
    """
    rows, cols = np.nonzero(mask)
    chosen = rng.choice(rows.size, size=min(count, rows.size), replace=False)
    return np.stack([cols[chosen], rows[chosen]], axis=1).astype(np.float32)


def visual_prompt(
    mask: np.ndarray,
    kind: str = "boxes",
    *,
    box_per_component: bool = False,
    num_points: int = 5,
    negative_points: int = 0,
    seed: int = 0,
    valid: np.ndarray | None = None,
) -> VisualPrompt | None:
    """Make SAM's prompt from a coarse mask.

    Parameters
    ----------
    mask : numpy.ndarray
        bool [H, W].
    kind : {"boxes", "points", "both", "mask"}
        What to make; "mask" is the boxes and the coarse mask.
    box_per_component : bool
        See `boxes_of`.
    num_points, negative_points : int
        Points drawn in the mask and outside it, where points are made.
    seed : int
        Seed of the draw.
    valid : numpy.ndarray, optional
        bool [H, W]; negative points are drawn here only.

    Returns
    -------
    VisualPrompt or None
        None for an empty mask.
    """
    if not mask.any():
        return None
    boxes = boxes_of(mask, box_per_component) if kind != "points" else None
    if kind in ("boxes", "mask"):
        return VisualPrompt(boxes=boxes, mask=mask if kind == "mask" else None)
    rng = np.random.default_rng(seed)
    inside = sample_points(mask, num_points, rng)
    outside = sample_points(~mask if valid is None else valid & ~mask, negative_points, rng)
    labels = np.repeat([1, 0], [len(inside), len(outside)]).astype(np.int32)
    return VisualPrompt(boxes=boxes, points=np.concatenate([inside, outside]), point_labels=labels)
