"""How well a mask fits the truth, and how well a score tells presence from absence.

Two empty masks agree (1), an empty one and another do not (0): decided here, since the definitions divide by 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medclipsam.base.errors import InputError

# The tolerance of the published figures: 2 pixels, or 2 mm where the spacing is known.
TOLERANCE = 2.0


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice similarity coefficient 2 |A and B| / (|A| + |B|).

    Parameters
    ----------
    mask, truth : numpy.ndarray
        bool, of one shape.

    Returns
    -------
    float
        In [0, 1]; 1 where both are empty.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    mask, truth = _pair(mask, truth)
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(truth))
    return 1.0 if total == 0 else 2.0 * int(np.count_nonzero(mask & truth)) / total


def surface_dice(
    mask: np.ndarray, truth: np.ndarray, *, tolerance: float = TOLERANCE, spacing: Sequence[float] | None = None
) -> float:
    """Return the normalised surface Dice (NSD): the share of both boundaries that lies within a tolerance of the other.

    Boundary elements and their lengths (areas) are those of DeepMind's surface-distance, as MONAI computes them with
    `use_subvoxels=True`; the image's border counts as boundary where a mask touches it.

    Parameters
    ----------
    mask, truth : numpy.ndarray
        bool, [H, W] or [N, H, W].
    tolerance : float
        In the unit of `spacing`.
    spacing : sequence of float, optional
        Distance between pixels along each axis; 1 by default, so that the tolerance is in pixels.

    Returns
    -------
    float
        In [0, 1]; 1 where both are empty, 0 where one is.

    Raises
    ------
    InputError
        If the shapes differ or there are not two or three axes.

    Notes
    -----
    Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy for
    radiotherapy", arXiv 1809.04430.
    """
    mask, truth = _pair(mask, truth)
    if mask.ndim not in (2, 3):
        raise InputError(f"A surface Dice takes masks of two or three axes; given {mask.ndim}.")
    if not mask.any() or not truth.any():
        return 1.0 if mask.any() == truth.any() else 0.0
    import torch
    from monai.metrics import compute_surface_dice

    one, two = (torch.from_numpy(array)[None, None] for array in _cropped(mask, truth))
    with warnings.catch_warnings():
        # MONAI warns of a deprecated argument that it itself passes on.
        warnings.simplefilter("ignore")
        value = compute_surface_dice(
            one,
            two,
            class_thresholds=[float(tolerance)],
            include_background=True,
            spacing=[float(step) for step in spacing or (1.0,) * mask.ndim],
            use_subvoxels=True,
        )
    return float(value.item())


def hausdorff95(mask: np.ndarray, truth: np.ndarray, *, spacing: Sequence[float] | None = None) -> float | None:
    """Return the 95th percentile of the Hausdorff distance (HD95), as MONAI computes it.

    For each of the two boundaries, the distances of its pixels (voxels) to the other boundary are taken; the result is
    the greater of the two 95th percentiles.

    Parameters
    ----------
    mask, truth : numpy.ndarray
        bool, [H, W] or [N, H, W].
    spacing : sequence of float
        Distance between pixels along each axis; 1 by default, so that the result is in pixels.

    Returns
    -------
    float or None
        In the unit of `spacing`; 0 where both are empty, None where one is, since no distance is then defined.

    Raises
    ------
    InputError
        If the shapes differ or there are not two or three axes.
    """
    mask, truth = _pair(mask, truth)
    if mask.ndim not in (2, 3):
        raise InputError(f"A Hausdorff distance takes masks of two or three axes; given {mask.ndim}.")
    if not mask.any() or not truth.any():
        return 0.0 if mask.any() == truth.any() else None
    import torch
    from monai.metrics import compute_hausdorff_distance

    one, two = (torch.from_numpy(array)[None, None] for array in _cropped(mask, truth))
    with warnings.catch_warnings():
        # MONAI warns of a deprecated argument that it itself passes on.
        warnings.simplefilter("ignore")
        value = compute_hausdorff_distance(
            one,
            two,
            include_background=True,
            percentile=95,
            spacing=[float(step) for step in spacing or (1.0,) * mask.ndim],
        )
    return float(value.item())


def cohen_kappa(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return Cohen's kappa of two readers: their agreement beyond chance, over all elements.

    Parameters
    ----------
    one, other : numpy.ndarray
        bool, of one shape: what each of them has marked.

    Returns
    -------
    float or None
        At most 1; None where both marked nothing or both marked everything: chance then explains all agreement.

    Raises
    ------
    InputError
        If the shapes differ.

    Notes
    -----
    Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20(1), 1960.
    """
    one, other = _pair(one, other)
    n, first, second = one.size, int(np.count_nonzero(one)), int(np.count_nonzero(other))
    observed = (n - int(np.count_nonzero(one ^ other))) / n if n else 1.0
    # of whole numbers, so that it is exactly 1 where it must be
    expected = (first * second + (n - first) * (n - second)) / n**2 if n else 1.0
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(masks: Sequence[np.ndarray]) -> float | None:
    """Return Fleiss' kappa of several readers: their agreement beyond chance, over all elements.

    Parameters
    ----------
    masks : sequence of numpy.ndarray
        bool, of one shape: what each of at least two readers has marked.

    Returns
    -------
    float or None
        At most 1; None where all marked nothing or all marked everything.

    Raises
    ------
    InputError
        If there are fewer than two, or the shapes differ.

    Notes
    -----
    Fleiss, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76(5), 1971.
    """
    if len(masks) < 2:
        raise InputError(f"Fleiss' kappa takes the masks of two readers at least; given {len(masks)}.")
    m = len(masks)
    first = np.asarray(masks[0], dtype=bool)
    marks = np.zeros(first.shape, np.uint32)
    for mask in masks:
        np.add(marks, _pair(mask, first)[0], out=marks)
    # elements by how many readers have marked them
    counts = [int(count) for count in np.bincount(marks.ravel(), minlength=m + 1)]
    total = sum(counts)
    agreeing = sum(count * (k * (k - 1) + (m - k) * (m - k - 1)) for k, count in enumerate(counts))
    marked = sum(count * k for k, count in enumerate(counts))
    if marked in (0, total * m):
        return None
    observed = agreeing / (total * m * (m - 1))
    share = marked / (total * m)
    expected = share**2 + (1 - share) ** 2
    return (observed - expected) / (1 - expected)


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one image: connected components of a mask and of the truth, neighbours by faces, edges and corners.

    Attributes
    ----------
    true : int
        Lesions of the truth.
    found : int
        Those that the mask touches with at least one voxel.
    false : int
        Components of the mask that touch no lesion.
    """

    true: int
    found: int
    false: int

    @property
    def f1(self) -> float:
        """2 found / (2 found + false + missed); 1 where there is neither a lesion nor a false one."""
        total = self.found + self.false + self.true
        return 1.0 if total == 0 else 2 * self.found / total


def lesion_counts(mask: np.ndarray, truth: np.ndarray) -> LesionCounts:
    """Count the lesions that a mask finds and its components that are none.

    Parameters
    ----------
    mask, truth : numpy.ndarray
        bool, of one shape.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    from scipy import ndimage

    mask, truth = _pair(mask, truth)
    neighbours = np.ones((3,) * mask.ndim, dtype=bool)
    lesions, n_true = ndimage.label(truth, neighbours)
    parts, n_parts = ndimage.label(mask, neighbours)
    found = len(np.unique(lesions[mask & truth]))
    return LesionCounts(n_true, found, n_parts - len(np.unique(parts[mask & truth])))


def area_flicker(mask: np.ndarray, truth: np.ndarray) -> float | None:
    """Return how much more a mask's area changes from plane to plane than the truth's does.

    With the areas a_k of the mask and t_k of the truth on plane k: the mean of |(a_{k+1} - a_k) - (t_{k+1} - t_k)| over
    the neighbouring planes of which at least one holds mask or truth, divided by the mean of t_k over the planes that
    hold the truth. 0 is a mask that changes exactly as the truth.

    Parameters
    ----------
    mask, truth : numpy.ndarray
        bool, [N, H, W].

    Returns
    -------
    float or None
        None where the truth is empty, or there is one plane only.

    Raises
    ------
    InputError
        If the shapes differ or there are not three axes.
    """
    mask, truth = _pair(mask, truth)
    if mask.ndim != 3:
        raise InputError(f"Flicker is that of planes [N, H, W]; given are {mask.ndim} axes.")
    areas, true_areas = (np.count_nonzero(each, axis=(1, 2)).astype(np.float64) for each in (mask, truth))
    if not true_areas.any() or len(areas) < 2:
        return None
    held = (areas > 0) | (true_areas > 0)
    excess = np.abs(np.diff(areas) - np.diff(true_areas))[held[1:] | held[:-1]]
    return float(excess.mean() / true_areas[true_areas > 0].mean())


def roc_auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Parameters
    ----------
    scores : sequence of float
        Larger means more likely positive.
    positive : sequence of bool
        The truth.

    Returns
    -------
    float or None
        None where one of the two kinds is missing.
    """
    from scipy.stats import rankdata

    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    n_positive = int(truth.sum())
    n_negative = truth.size - n_positive
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(values)
    return float((ranks[truth].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def calibration_bins(probability: np.ndarray, truth: np.ndarray, *, bins: int = 15) -> list[list[float]]:
    """Count how often the class that a probability favours is right, by how sure the probability is.

    Parameters
    ----------
    probability : numpy.ndarray
        Of the foreground, float of any shape, in [0, 1]; 0.5 or more favours the foreground.
    truth : numpy.ndarray
        bool, of the same shape.
    bins : int
        Number of bins of equal width for the confidence max(p, 1 - p).

    Returns
    -------
    list of [count, sum of confidences, count of right ones]
        One for each bin; lists of several images may be added up.
    """
    p = np.clip(np.asarray(probability, dtype=np.float64).ravel(), 0, 1)
    chosen = p >= 0.5
    confidence = np.where(chosen, p, 1 - p)
    right = chosen == np.asarray(truth, dtype=bool).ravel()
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counted = [np.bincount(place, weights=weights, minlength=bins) for weights in (None, confidence, right)]
    return [[float(value) for value in row] for row in np.stack(counted, axis=1)]


def expected_calibration_error(bins: Sequence[Sequence[float]]) -> float | None:
    """Return the mean gap between confidence and accuracy over bins of `calibration_bins`, weighted by their counts.

    Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.

    Returns
    -------
    float or None
        None where nothing was counted.
    """
    table = np.asarray(bins, dtype=np.float64).reshape(-1, 3)
    total = table[:, 0].sum()
    return None if total == 0 else float(np.abs(table[:, 1] - table[:, 2]).sum() / total)


def _cropped(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut both masks to the box round them, with a rim of background so that a mask at the image's border has a
    boundary there.
    """
    both = mask | truth
    axes = range(both.ndim)
    held = [np.flatnonzero(both.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    window = tuple(slice(int(places[0]), int(places[-1]) + 1) for places in held)
    return np.pad(mask[window], 1), np.pad(truth[window], 1)


def _pair(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask, truth = np.asarray(mask, dtype=bool), np.asarray(truth, dtype=bool)
    if mask.shape != truth.shape:
        raise InputError(f"A mask of shape {mask.shape} cannot be held against one of shape {truth.shape}.")
    return mask, truth
