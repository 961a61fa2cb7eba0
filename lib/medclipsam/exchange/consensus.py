"""Labels of several readers of one image: how well they agree, and one label made of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.base.metrics import dice
from medclipsam.imaging.label_map import LabelMap
from medclipsam.sam.voting import staple

Method = Literal["staple", "majority"]
METHODS: tuple[str, ...] = get_args(Method)
# Voxels around all readers' masks that STAPLE looks at: with more background it trusts whoever marks most.
_MARGIN = 5


@dataclass(frozen=True)
class Consensus:
    """One label of several readers.

    Attributes
    ----------
    label : LabelMap
    agreement : dict of str to dict of str to float
        For each reader, the Dice of each structure with the consensus.
    """

    label: LabelMap
    agreement: dict[str, dict[str, float]]


def pairwise_dice(readings: Mapping[str, LabelMap]) -> dict[str, dict[tuple[str, str], float]]:
    """Return how well readers agree.

    Parameters
    ----------
    readings : mapping of str to LabelMap
        The label of each reader, on one image.

    Returns
    -------
    dict of str to dict
        For each structure that two readers looked for, the Dice of each pair of these; 1 where neither found it.
    """
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name in sorted({name for label in readings.values() for name in label.names}):
        looked = [reader for reader in sorted(readings) if name in readings[reader].names]
        pairs = {
            (one, other): dice(_mask(readings[one], name), _mask(readings[other], name))
            for one, other in combinations(looked, 2)
        }
        if pairs:
            found[name] = pairs
    return found


def consensus(readings: Mapping[str, LabelMap], method: Method = "staple") -> Consensus:
    """Make one label of those of several readers.

    Parameters
    ----------
    readings : mapping of str to LabelMap
        The label of each reader, on one image; at least two.
    method : {"staple", "majority"}
        "staple": Warfield, Zou and Wells, IEEE TMI 23(7), 2004, for each structure by itself, within a box around what
        any reader has marked; a voxel belongs to the structure of the greatest posterior above one half. "majority":
        what more than half of the readers have marked.

    Returns
    -------
    Consensus
        Of a structure, only the readers who looked for it count: those whose label names it.

    Raises
    ------
    InputError
        If there are fewer than two readers, the method is unknown, or labels have other shapes.
    """
    if method not in METHODS:
        raise InputError(f"A consensus cannot be made by {method!r}; allowed: {', '.join(METHODS)}.")
    if len(readings) < 2:
        raise InputError(f"A consensus is made of two readers at least; there are {len(readings)}.")
    first = next(iter(readings.values()))
    if any(label.values.shape != first.values.shape for label in readings.values()):
        raise InputError("The labels of a consensus have other shapes; allowed: labels of one image.")
    names = list(dict.fromkeys(name for label in readings.values() for name in label.names))
    values = np.zeros(first.values.shape, np.uint8)
    best = np.full(first.values.shape, 0.5, np.float32)
    numbers: dict[str, int] = {}
    for name in names:
        wanted = next(label.names[name] for label in readings.values() if name in label.names)
        taken = set(numbers.values())
        numbers[name] = wanted if wanted not in taken else min(set(range(1, 256)) - taken)
        masks = np.stack([_mask(label, name) for label in readings.values() if name in label.names])
        posterior = _posterior(masks, method)
        # a part of a consensus of several names goes to the likeliest; among equals to the first
        wins = posterior > best
        values[wins], best[wins] = numbers[name], posterior[wins]
    label = LabelMap(values, first.image, numbers, numbers)
    agreement = {
        reader: {name: dice(_mask(reading, name), _mask(label, name)) for name in reading.names}
        for reader, reading in readings.items()
    }
    return Consensus(label, agreement)


def _mask(label: LabelMap, name: str) -> np.ndarray:
    found: np.ndarray = label.values == label.names[name]
    return found


def _posterior(masks: np.ndarray, method: Method) -> np.ndarray:
    """Return how likely each voxel is marked rightly, float32; masks are bool [readers, n_planes, H, W]."""
    if method == "majority" or len(masks) == 1:
        return masks.mean(axis=0, dtype=np.float32)
    union = masks.any(axis=0)
    posterior = np.zeros(union.shape, np.float32)
    if union.any():
        box = tuple(
            slice(max(0, int(places.min()) - _MARGIN), int(places.max()) + _MARGIN + 1) for places in np.nonzero(union)
        )
        posterior[box] = staple(masks[(slice(None), *box)])
    return posterior
