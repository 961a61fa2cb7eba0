"""Labels of several readers of one image: how well they agree, and one label made of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.base.metrics import cohen_kappa, dice, fleiss_kappa, hausdorff95
from medclipsam.imaging import MedicalImage
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


@dataclass(frozen=True)
class PairAgreement:
    """How well two readers agree on a structure.

    Attributes
    ----------
    readers : tuple of (str, str)
        In alphabetical order.
    dice : float
        1 where neither found it.
    hd95_mm : float or None
        95th percentile of the Hausdorff distance; None where one of the two found nothing, where the spacing is not
        known, and where it was not requested.
    kappa : float or None
        Cohen's kappa over all voxels; None where both marked nothing or everything, so that chance explains all.
    """

    readers: tuple[str, str]
    dice: float
    hd95_mm: float | None
    kappa: float | None


@dataclass(frozen=True)
class Agreement:
    """How well the readers of an image agree on a structure.

    Attributes
    ----------
    pairs : tuple of PairAgreement
        Of the readers who looked for it.
    fleiss_kappa : float or None
        Over all voxels, of three readers or more; None where there are fewer, or all marked nothing or everything.
    """

    pairs: tuple[PairAgreement, ...]
    fleiss_kappa: float | None


def agreement(readings: Mapping[str, LabelMap], *, distances: bool = True) -> dict[str, Agreement]:
    """Return how well readers of an image agree on each structure.

    Parameters
    ----------
    readings : mapping of str to LabelMap
        The label of each reader, on one image.
    distances : bool
        Whether to measure the Hausdorff distances, which takes longest.

    Returns
    -------
    dict of str to Agreement
        For each structure that two readers looked for: those whose label names it.

    Raises
    ------
    InputError
        If the labels have other shapes.
    """
    found = {}
    for name in sorted({name for label in readings.values() for name in label.names}):
        masks = {reader: readings[reader].mask(name) for reader in sorted(readings) if name in readings[reader].names}
        if len(masks) < 2:
            continue
        image = next(iter(readings.values())).image
        pairs = tuple(
            PairAgreement(
                (one, other),
                dice(masks[one], masks[other]),
                _distance(masks[one], masks[other], image) if distances else None,
                cohen_kappa(masks[one], masks[other]),
            )
            for one, other in combinations(masks, 2)
        )
        found[name] = Agreement(pairs, fleiss_kappa(list(masks.values())) if len(masks) > 2 else None)
    return found


def least_agreement(found: Mapping[str, Agreement]) -> float | None:
    """Return the Dice of the two readers who agree least, averaged over structures; None where no pair is known."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for structure in found.values():
        for pair in structure.pairs:
            pairs.setdefault(pair.readers, []).append(pair.dice)
    return min((float(np.mean(values)) for values in pairs.values()), default=None)


def _distance(one: np.ndarray, other: np.ndarray, image: MedicalImage) -> float | None:
    spacing = [*((image.plane_spacing,) if image.is_volume else ()), *(image.pixel_spacing or (None,))]
    known = [step for step in spacing if step is not None]
    if len(known) < len(spacing):
        return None
    return hausdorff95(one, other, spacing=known) if image.is_volume else hausdorff95(one[0], other[0], spacing=known)


def consensus(readings: Mapping[str, LabelMap], method: Method = "staple") -> Consensus:
    """Make one label of those of several readers.

    Parameters
    ----------
    readings : mapping of str to LabelMap
        The label of each reader, on one image; at least two.
    method : {"staple", "majority"}
        "staple": Warfield, Zou and Wells, IEEE TMI 23(7), 2004, for each structure by itself, within a box around what
        any reader has marked; a voxel belongs to the structure of the greatest posterior above one half, or to all
        above it where structures of a reader overlap. "majority": what more than half of the readers have marked.

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
    best = np.full(first.values.shape, 0.5, np.float32)
    overlap = any(label.overlaps for label in readings.values())
    found: dict[str, np.ndarray] = {}
    numbers: dict[str, int] = {}
    for name in names:
        wanted = next(label.names[name] for label in readings.values() if name in label.names)
        taken = set(numbers.values())
        numbers[name] = wanted if wanted not in taken else min(set(range(1, 256)) - taken)
        masks = np.stack([label.mask(name) for label in readings.values() if name in label.names])
        posterior = _posterior(masks, method)
        # where no reader's structures overlap, a voxel goes to the likeliest one; among equals to the first
        wins = posterior > best
        if not overlap:
            best[wins] = posterior[wins]
            for other in found:
                found[other] &= ~wins
        found[name] = wins
    label = LabelMap.from_masks(found, first.image, numbers, numbers)
    agreed = {
        reader: {name: dice(reading.mask(name), label.mask(name)) for name in reading.names}
        for reader, reading in readings.items()
    }
    return Consensus(label, agreed)


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
