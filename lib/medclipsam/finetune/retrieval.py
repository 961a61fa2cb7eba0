"""Retrieval of captions by images and of images by captions, as the fine-tuned models were published with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medclipsam.base.errors import InputError

# The published protocol on ROCO: five shuffled passes over the held-out pairs in galleries of 50.
GALLERY = 50
RUNS = 5
TOP = (1, 2)
DIRECTIONS = ("image to text", "text to image")


@dataclass(frozen=True)
class Retrieval:
    """How well pairs find each other.

    Attributes
    ----------
    pairs : int
        Number of pairs.
    gallery : int
        How many candidates a query had: the size of the galleries, or all pairs.
    rates : dict
        "image to text top-1" and so on -> mean over the runs, in [0, 1].
    deviations : dict
        The same -> standard deviation over the runs (0 for one run).
    hits : numpy.ndarray
        float64 [pairs]: for each pair the mean of all its hits (both directions, all k, all runs), what two models are
        compared by, pair for pair.
    """

    pairs: int
    gallery: int
    rates: dict[str, float]
    deviations: dict[str, float]
    hits: np.ndarray

    @property
    def score(self) -> float:
        """Mean of all rates; what the best checkpoint is chosen by."""
        return float(np.mean(list(self.rates.values())))

    def to_dict(self) -> dict[str, object]:
        """Return the figures, JSON-able."""
        return {
            "pairs": self.pairs,
            "gallery": self.gallery,
            "score": round(self.score, 6),
            "rates": {key: round(value, 6) for key, value in self.rates.items()},
            "deviations": {key: round(value, 6) for key, value in self.deviations.items()},
        }


def top_hits(similarity: np.ndarray, k: int) -> np.ndarray:
    """Return whether each query finds its own candidate among the first k.

    Candidates that are exactly as similar as the own one come in random order, so that a hit is the probability of
    one: a model that gives everything the same feature reaches chance, not all.

    Parameters
    ----------
    similarity : numpy.ndarray
        [N, N], queries in rows; the own candidate of query i is candidate i.
    k : int
        At least 1.

    Returns
    -------
    numpy.ndarray
        float64 [N] in [0, 1].
    """
    own = np.diagonal(similarity)[:, None]
    better = (similarity > own).sum(axis=1)
    tied = (similarity == own).sum(axis=1)
    return np.clip((k - better) / tied, 0.0, 1.0)


def retrieval(
    images: torch.Tensor,
    texts: torch.Tensor,
    *,
    gallery: int | None = GALLERY,
    runs: int = RUNS,
    seed: int = 0,
    top: Sequence[int] = TOP,
) -> Retrieval:
    """Measure retrieval both ways.

    Parameters
    ----------
    images, texts : torch.Tensor
        [N, E] unit features, row i of one belongs to row i of the other.
    gallery : int or None
        Pairs are shuffled and cut into galleries of this size, in each of which pairs look for each other; what is left
        over is spread over the galleries, so that every pair is counted. None, or less than two galleries: all pairs
        are one gallery.
    runs : int
        Shuffles; one is enough where there is one gallery.
    seed : int
        Of the shuffles.
    top : sequence of int
        The k of top-k.

    Returns
    -------
    Retrieval

    Raises
    ------
    InputError
        If there are less than two pairs, or the gallery is smaller than 2.
    """
    count = len(images)
    if count < 2:
        raise InputError(f"Retrieval needs at least two pairs; given {count}.")
    if gallery is not None and gallery < 2:
        raise InputError(f"A gallery must have at least two pairs; given {gallery}.")
    groups = 1 if gallery is None else max(1, count // gallery)
    rounds = runs if groups > 1 else 1
    similarity = (images.double() @ texts.double().T).cpu().numpy()
    names = [f"{direction} top-{k}" for direction in DIRECTIONS for k in top]
    found = np.zeros((rounds, len(names), count))
    for number in range(rounds):
        order = np.random.default_rng([seed, number]).permutation(count)
        for members in np.array_split(order, groups):
            part = similarity[np.ix_(members, members)]
            hits = [top_hits(way, k) for way in (part, part.T) for k in top]
            found[number][:, members] = np.stack(hits)
    by_run = found.mean(axis=2)
    return Retrieval(
        pairs=count,
        gallery=count if groups == 1 else int(gallery or count),
        rates=dict(zip(names, by_run.mean(axis=0).tolist(), strict=True)),
        deviations=dict(zip(names, by_run.std(axis=0, ddof=1 if rounds > 1 else 0).tolist(), strict=True)),
        hits=found.mean(axis=(0, 1)),
    )
