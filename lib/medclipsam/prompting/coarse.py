"""From a saliency map to the coarse mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medclipsam.base.errors import MedClipSamError, OptionError
from medclipsam.base.options import POSTPROCESS

# The published CRF settings (Koleilat et al. 2025): temperature of the unary, Gaussian and bilateral terms.
_TAU = 1.05
_GAUSSIAN = {"sxy": 5, "compat": 3}
_BILATERAL = {"sxy": 5, "srgb": 3, "compat": 5}
_ITERATIONS = 1


def kmeans_split(values: np.ndarray) -> float | None:
    """Return the exact threshold of 2-means on scalar values.

    In one dimension the two clusters of least within-class variance are separated by a threshold, found by sorting and
    cumulative sums: no random restart, no bins.

    Parameters
    ----------
    values : numpy.ndarray
        Any shape, finite.

    Returns
    -------
    float or None
        Midpoint between the two clusters: `values > threshold` is the upper one. None if all values are equal.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    count = ordered.size
    if count == 0 or ordered[0] == ordered[-1]:
        return None
    # Centred, so that the sums of squares do not cancel.
    centred = ordered - ordered.mean()
    below = np.cumsum(centred)[:-1]
    n_below = np.arange(1, count)
    # Total scatter is fixed, so least within-class means greatest between-class: n0 m0^2 + n1 m1^2 with m0 n0 = -m1 n1.
    between = below**2 * (1 / n_below + 1 / (count - n_below))
    between[ordered[1:] == ordered[:-1]] = -1.0  # equal values belong to one cluster
    best = int(np.argmax(between))
    return float((ordered[best] + ordered[best + 1]) / 2)


def coarse_mask(
    saliency: np.ndarray,
    method: str = "kmeans",
    *,
    threshold: float = 0.3,
    valid: np.ndarray | None = None,
    plane: np.ndarray | None = None,
) -> np.ndarray:
    """Turn a saliency map into a coarse mask.

    Parameters
    ----------
    saliency : numpy.ndarray
        float [H, W] in [0, 1].
    method : {"kmeans", "threshold", "crf"}
        Exact 2-means of the values; values above `threshold`; or a dense CRF (optional package pydensecrf2).
    threshold : float
        For "threshold".
    valid : numpy.ndarray, optional
        bool [H, W]; what lies outside takes no part and is never in the mask.
    plane : numpy.ndarray, optional
        uint8 [H, W, 3]; needed by "crf".

    Returns
    -------
    numpy.ndarray
        bool [H, W]; all False for a constant map.

    Raises
    ------
    OptionError
        If the method is unknown.
    MedClipSamError
        If "crf" is asked for and pydensecrf2 is not installed.
    """
    inside = np.ones(saliency.shape, dtype=bool) if valid is None else valid
    values = saliency[inside]
    if values.size == 0 or values.min() == values.max():
        return np.zeros(saliency.shape, dtype=bool)
    if method == "kmeans":
        return inside & (saliency > kmeans_split(values))
    if method == "threshold":
        return inside & (saliency > threshold)
    if method == "crf":
        if plane is None:
            raise OptionError("postprocess", method, "kmeans or threshold where there is no plane to refine on")
        return inside & _crf(saliency, plane)
    raise OptionError("postprocess", method, "one of " + ", ".join(POSTPROCESS))


def _crf(saliency: np.ndarray, plane: np.ndarray) -> np.ndarray:
    try:
        from pydensecrf import densecrf
    except ImportError:
        raise MedClipSamError(
            "The option postprocess=crf needs the package pydensecrf2: pip install 'medclipsam[crf]'."
        ) from None
    foreground = np.clip(saliency.astype(np.float32), 1e-6, 1 - 1e-6)
    p = np.stack([1 - foreground, foreground])
    unary = -np.log(p) / (_TAU / (1 + np.exp(-p)))
    height, width = saliency.shape
    crf = densecrf.DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(2, -1), dtype=np.float32))
    crf.addPairwiseGaussian(**_GAUSSIAN)
    crf.addPairwiseBilateral(rgbim=np.ascontiguousarray(plane), **_BILATERAL)
    labels = np.argmax(np.asarray(crf.inference(_ITERATIONS)), axis=0)
    return labels.reshape(height, width).astype(bool)


def largest_components(mask: np.ndarray, count: int, min_size: int = 0) -> np.ndarray:
    """Keep the largest connected components.

    Parameters
    ----------
    mask : numpy.ndarray
        bool [H, W] or [N, H, W]; neighbours by edges and corners.
    count : int
        How many to keep; equal sizes: the first in scan order.
    min_size : int
        Components with fewer pixels (voxels) are dropped.

    Returns
    -------
    numpy.ndarray
        bool, as mask.
    """
    labels, n_found = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, dtype=bool))
    if n_found == 0:
        return np.zeros(mask.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:count]
    kept = [index + 1 for index in order if sizes[index] >= min_size]
    return np.isin(labels, kept)
