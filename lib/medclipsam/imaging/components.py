"""Connected components of a volume in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components


class VolumeComponents:
    """Connected components of a volume (26 neighbours), found plane by plane so that they take no second volume.

    Parameters
    ----------
    mask : numpy.ndarray
        bool [N, H, W]; not copied.

    Attributes
    ----------
    sizes : numpy.ndarray
        int [K], voxels of each component, in the order of their first planes.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self._mask = mask
        self._first = np.zeros(len(mask) + 1, dtype=np.int64)  # number of the first part of each plane
        sizes: list[np.ndarray] = []
        pairs: list[np.ndarray] = []
        before: np.ndarray | None = None
        for plane in range(len(mask)):
            labels, count = self._labels(plane)
            sizes.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
            self._first[plane + 1] = self._first[plane] + count
            if before is not None and count:
                pairs.append(_touching(before, labels) + self._first[plane - 1 : plane + 1] - 1)
            before = labels if count else None
        total = int(self._first[-1])
        one, two = np.concatenate([*pairs, np.zeros((0, 2), dtype=np.int64)]).T
        graph = coo_array((np.ones(len(one), dtype=bool), (one, two)), shape=(total, total))
        _, self._component = connected_components(graph, directed=False)
        weights = np.concatenate([*sizes, np.zeros(0)])
        self.sizes = np.bincount(self._component, weights=weights).astype(np.int64)

    def only(self, kept: set[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (plane, mask) where something goes, with the components of these numbers alone."""
        wanted = np.isin(self._component, list(kept))
        for plane in range(len(self._mask)):
            parts = wanted[self._first[plane] : self._first[plane + 1]]
            if not parts.all():
                labels, _ = self._labels(plane)
                yield plane, np.concatenate([[False], parts])[labels]

    def _labels(self, plane: int) -> tuple[np.ndarray, int]:
        return ndimage.label(self._mask[plane], np.ones((3, 3)))


def _touching(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return the pairs of labels, int [K, 2], that touch between neighbouring planes."""
    height, width = one.shape
    # a sparse matrix keeps each pair once, without sorting all pixels
    touching = csr_array((int(one.max()) + 1, int(two.max()) + 1), dtype=bool)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            a = one[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
            b = two[max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
            both = (a > 0) & (b > 0)
            pairs = (a[both], b[both])
            touching += coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=touching.shape).tocsr()
    return np.stack(touching.nonzero(), axis=1).astype(np.int64)
