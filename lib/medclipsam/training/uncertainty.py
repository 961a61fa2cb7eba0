"""How sure an ensemble is: maps over pixels, and one number for an image that says which one to look at next.

Maps: Zhao et al., "Efficient Bayesian uncertainty estimation for nnU-Net", MICCAI 2022, arXiv 2212.06278. Number:
Borges et al., "Soft Dice confidence", arXiv 2402.10665, made to hold where the target may be absent.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medclipsam.base.errors import InputError, OptionError

METHODS = ("class_entropy", "total_entropy", "welch", "none")
_LEAST = 1e-12


class Moments:
    """Mean and variance of the members' probabilities, gathered one member at a time (Welford 1962).

    Parameters
    ----------
    variance : bool
        Whether the variance is gathered too, which doubles the memory.
    """

    def __init__(self, *, variance: bool) -> None:
        self.count = 0
        self.mean: np.ndarray | None = None
        self._squares: np.ndarray | None = None
        self._with_variance = variance

    def add(self, probabilities: np.ndarray) -> None:
        """Take one member's probabilities, float32 of any shape."""
        self.count += 1
        if self.mean is None:
            self.mean = probabilities.astype(np.float32)
            self._squares = np.zeros_like(self.mean) if self._with_variance else None
            return
        off = probabilities - self.mean
        self.mean += off / self.count
        if self._squares is not None:
            self._squares += off * (probabilities - self.mean)

    @property
    def variance(self) -> np.ndarray:
        """Variance over the members (n - 1 in the denominator)."""
        if self._squares is None or self.count < 2:
            raise InputError("A variance needs the probabilities of two members or more.")
        return self._squares / (self.count - 1)


def class_entropies(mean: np.ndarray) -> np.ndarray:
    """Return for each class the entropy -(p log p + q log q) in nats, q = 1 - p.

    Parameters
    ----------
    mean : numpy.ndarray
        Mean probabilities of the classes, without the background: [..., classes, H, W].

    Returns
    -------
    numpy.ndarray
        float32, of the same shape; from 0 to log 2.
    """
    p = np.clip(mean, 0, 1)
    q = 1 - p
    return -(p * np.log(np.maximum(p, _LEAST)) + q * np.log(np.maximum(q, _LEAST))).astype(np.float32)


def total_entropy(mean: np.ndarray) -> np.ndarray:
    """Return the entropy of all classes, -sum p log p in nats, float32 [..., H, W]; from 0 to log(classes + 1)."""
    p = np.clip(mean, 0, 1)
    return -(p * np.log(np.maximum(p, _LEAST))).sum(axis=-3).astype(np.float32)


def welch(mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    """Return the p-value of Welch's t-test between a pixel's two most probable classes across the members.

    Near 0 the members agree which of the two it is; near 1 they cannot be told apart.

    Parameters
    ----------
    mean, variance : numpy.ndarray
        Of the members' probabilities, [..., classes + 1, H, W].
    count : int
        Number of members, at least 2.

    Returns
    -------
    numpy.ndarray
        float32 [..., H, W], from 0 to 1.

    Raises
    ------
    OptionError
        If there are less than two members.
    """
    from scipy.special import stdtr

    if count < 2:
        raise OptionError("uncertainty", "welch", "class_entropy or total_entropy for an ensemble of one member")
    order = np.argsort(mean, axis=-3)[..., -2:, :, :]
    means = np.take_along_axis(mean, order, axis=-3).astype(np.float64)
    errors = np.take_along_axis(variance, order, axis=-3).astype(np.float64) / count
    difference = means[..., 1, :, :] - means[..., 0, :, :]
    both = errors.sum(axis=-3)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / np.sqrt(both)
        freedom = both**2 / (errors**2).sum(axis=-3) * (count - 1)
        value = 2 * stdtr(freedom, -np.abs(t))
    # members that are all of one mind: certain where the classes differ, as unsure as can be where they do not
    return np.where(both > 0, value, np.where(difference > 0, 0.0, 1.0)).astype(np.float32)


def multilabel_welch(mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
    """Return the greatest of the classes' p-values of Welch's t-test between a class and its absence.

    Parameters
    ----------
    mean, variance : numpy.ndarray
        Of the members' probabilities of classes that may overlap, [..., classes, H, W].
    count : int
        Number of members, at least 2.

    Returns
    -------
    numpy.ndarray
        float32 [..., H, W], from 0 to 1; see `welch`.
    """
    pairs = (
        welch(np.stack([p, 1 - p], axis=-3), np.stack([v, v], axis=-3), count)
        for p, v in zip(np.moveaxis(mean, -3, 0), np.moveaxis(variance, -3, 0), strict=True)
    )
    return np.max(np.stack(list(pairs)), axis=0)


def boundary_length(mask: np.ndarray) -> int:
    """Return the number of a mask's pixels that touch the outside by an edge; the plane's border counts as outside.

    Parameters
    ----------
    mask : numpy.ndarray
        bool [H, W], or [n, H, W] of which each plane is counted on its own.
    """
    cross = ndimage.generate_binary_structure(2, 1)
    inner = ndimage.binary_erosion(mask, cross if mask.ndim == 2 else cross[None])
    return int(np.count_nonzero(mask & ~inner))


def image_score(uncertainty: np.ndarray, mask: np.ndarray) -> float:
    """Return the map's sum over the length of the mask's boundary; of an empty mask the sum itself (Zhao et al.).

    A boundary is always unsure, and a long one more so in sum; a target that was missed leaves no boundary to divide by
    and ranks high.

    Parameters
    ----------
    uncertainty : numpy.ndarray
        Float [H, W] or [n, H, W].
    mask : numpy.ndarray
        bool, of the same shape.
    """
    return float(np.sum(uncertainty, dtype=np.float64) / max(boundary_length(mask), 1))


def expected_dice_loss(mass: float, inside: float, marked: float, size: float) -> float:
    """Return how much Dice the mask is expected to lack: 1 - (2 inside + size) / (mass + marked + size).

    With `size` 0 this is 1 minus the soft Dice confidence, an estimate of 1 - Dice that is of no use where the mask is
    empty: it is 1 however sure the network is that nothing is there. With the size that a target usually has, an empty
    mask scores by how much of such a target is suspected: near 0 where there is none, near 1 where a whole one is.

    Parameters
    ----------
    mass : float
        Sum of the mean probabilities over all pixels.
    inside : float
        Sum of the mean probabilities over the pixels of the mask.
    marked : float
        Number of the mask's pixels.
    size : float
        Number of pixels of a usual target, above 0.

    Returns
    -------
    float
        From 0 to 1.
    """
    return float(np.clip(1 - (2 * inside + size) / (mass + marked + size), 0, 1))
