"""What to look at next: strategies by name, and the shares of validation images and negatives that go before them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medclipsam.active.pool import Pool
from medclipsam.base.errors import InputError
from medclipsam.base.options import Options, option

# Streams of random numbers, so that no two uses see the same ones.
_RANDOM, _VALIDATION, _NEGATIVES, _NOISE, _TIES = range(5)


class SamplingOptions(Options):
    """Options of the choice of the next image."""

    # More than their share of all images: a network counts as validated once ten of them have a label.
    validation: float = option(0.25, "Share of validation images among all that are labelled or leased", 0, 0.5)
    negatives: float = option(0.1, "Share of images in which presence finds no target; all others are skipped", 0, 1)
    cold: int = option(8, "Labels up to which combined covers the images, before it takes uncertain ones", 0, 10**6)
    sharpness: float = option(
        2.0, "Weight of the uncertainty's logarithm against the noise in the first round with a network", 0, 10**6
    )
    growth: float = option(2.0, "Factor by which each further round multiplies sharpness", 1, 1000)
    diversity: float = option(1.0, "Weight of the logarithm of the distance to the batch so far", 0, 1000)


class Strategy(Protocol):
    """Says how much each image is worth."""

    description: str

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return float64 [N]; the highest is offered first. NaN: nothing is known, which goes after all others."""


class Random:
    """Any image, all alike."""

    description = "Any image, all alike"

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return random numbers."""
        return pool.uniform(_RANDOM)


class Uncertainty:
    """The image of which the checkpoint ensemble is least sure."""

    description = "Least certain to the network's checkpoint ensemble"

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return the ensemble's image score (Zhao et al., 2022)."""
        return pool.total


class Coverage:
    """The image least like all that were chosen; needs no labels.

    Greedy k-centre on the image embeddings (Sener and Savarese, ICLR 2018), from the most typical image on.
    """

    description = "Least like the images chosen so far; needs no network"

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return the distance to the nearest image that is labelled or leased; at first how typical an image is."""
        if (pool.labelled | pool.leased).any():
            return pool.distance(batch=False)
        return pool.typicality()


class Disagreement:
    """The image on which the network and the zero-shot pipeline differ most."""

    description = "Network and zero-shot masks differ most"

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return 1 - Dice of the two masks."""
        return pool.disagreement


class Foreground:
    """Any image in which the network finds a structure; the structures take turns."""

    description = "Any image in which the network finds a structure, each structure in turn"

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return random numbers where the structure whose turn it is was found."""
        if not pool.structures:
            return pool.uniform(_RANDOM)
        return np.where(pool.found[:, structure_for_round(pool)], pool.uniform(_RANDOM), np.nan)


class Combined:
    """Coverage at first, then uncertainty by structure, with noise that decays and images unlike each other.

    The structures take turns, so that a rare or small one is asked for as often as a large one; among the images the
    choice is by power noising, beta log(uncertainty) + Gumbel noise, with a beta that grows from round to round (Kirsch
    et al., TMLR 2023; ClaSP-PE combines the two for segmentation, 2025); an image near one of the batch so far is
    worth less (the aim of stochastic batches, Gaillochet et al., Medical Image Analysis 2023).
    """

    description = "Covers the images at first, then least certain by structure, and varied"

    def value(self, pool: Pool, options: SamplingOptions) -> np.ndarray:
        """Return the value of the stage that the project is in."""
        scored = np.isfinite(pool.total)
        if not scored.any() or int(pool.labelled.sum()) < options.cold:
            return Coverage().value(pool, options)
        doubt = pool.total
        if len(pool.structures) > 1:
            doubt = pool.classes[:, structure_for_round(pool)]
        beta = min(options.sharpness * options.growth ** (pool.round - 1), 1e6)
        noise = -np.log(-np.log(pool.uniform(_NOISE)))
        value: np.ndarray = beta * np.log(np.maximum(doubt, 1e-12)) + noise
        apart = pool.distance(batch=True)
        return value + options.diversity * beta * np.log(np.where(np.isfinite(apart), np.maximum(apart, 1e-6), 1.0))


STRATEGIES: Mapping[str, Callable[[], Strategy]] = {
    "combined": Combined,
    "coverage": Coverage,
    "uncertainty": Uncertainty,
    "disagreement": Disagreement,
    "foreground": Foreground,
    "random": Random,
}
DEFAULT = "combined"
# Strategies that look at what a network says of the images.
SCORED = frozenset(STRATEGIES) - {"coverage", "random"}


@dataclass(frozen=True)
class Choice:
    """An image that was chosen.

    Attributes
    ----------
    image : str
    why : str
        "strategy"; "validation": of the validation set, drawn at random; "negative": presence finds no target there;
        "assigned": given to the asker by name; "second read": another has read it; "adjudication": its readers' labels
        wait for a consensus; "offered before": the asker was offered it and has not labelled it, and nothing else is
        left; "taken over": another held it.
    value : float or None
        What the strategy gave it; None where nothing is known of it.
    planes : tuple of int
        Planes of a volume to look at, the most uncertain first.
    """

    image: str
    why: str
    value: float | None
    planes: tuple[int, ...] = ()


def choose(pool: Pool, strategy: str, options: SamplingOptions | None = None) -> Choice | None:
    """Choose the next image.

    Parameters
    ----------
    pool : Pool
        What there is to choose from, up to date.
    strategy : str
        A name of `STRATEGIES`.
    options : SamplingOptions, optional

    Returns
    -------
    Choice or None
        The same for the same state of the ledger and seed; None where every image is labelled, leased or closed.

    Raises
    ------
    InputError
        If there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"There is no strategy {strategy!r}; allowed: {', '.join(STRATEGIES)}.")
    options = options or SamplingOptions()
    taken = pool.labelled | pool.leased
    free = ~taken & ~pool.closed
    if not free.any():
        return None
    asked = int(taken.sum()) + 1
    held_out = free & pool.validation
    if held_out.any() and int((taken & pool.validation).sum()) < options.validation * asked:
        return _best(pool, pool.uniform(_VALIDATION), held_out, "validation")
    free &= ~pool.validation
    absent = pool.presence < 0
    negatives = free & absent
    if negatives.any() and int((taken & absent & ~pool.validation).sum()) < math.floor(options.negatives * asked):
        return _best(pool, pool.uniform(_NEGATIVES), negatives, "negative")
    wanted = free & ~absent
    if wanted.any():
        return _best(pool, STRATEGIES[strategy]().value(pool, options), wanted, "strategy")
    if negatives.any():
        return _best(pool, pool.uniform(_NEGATIVES), negatives, "negative")
    return _best(pool, pool.uniform(_VALIDATION), held_out, "validation")


def structure_for_round(pool: Pool) -> int:
    """Return which structure's turn it is: the position of one of `pool.structures`, by how many were chosen."""
    return int(pool.batch.sum()) % len(pool.structures)


def _best(pool: Pool, value: np.ndarray, among: np.ndarray, why: str) -> Choice:
    """Return the best of the images marked in `among`; ties and what nothing is known of by lot."""
    places = np.flatnonzero(among)
    known = np.where(np.isnan(value[places]), -np.inf, value[places])
    best = places[known == known.max()]
    place = int(best[np.argmax(pool.uniform(_TIES)[best])])
    given = float(value[place])
    return Choice(pool.images[place], why, given if math.isfinite(given) else None, tuple(pool.planes(place)))
