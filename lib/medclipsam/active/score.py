"""What an ensemble's answer is worth to the choice of the next image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medclipsam.active.ledger import Score
from medclipsam.training.ensemble import NetworkResult

# Planes of a volume that are pointed out.
_PLANES = 5


def score_of(result: NetworkResult, names: Mapping[int, str], disagreement: float | None = None) -> Score:
    """Return what an ensemble's result says of an image, as the ledger keeps it.

    Parameters
    ----------
    result : NetworkResult
        With uncertainty.
    names : mapping of int to str
        Class index to structure.
    disagreement : float, optional
        1 - Dice of the network's and the zero-shot mask.
    """
    classes = {name: result.scores[name] for name in names.values()}
    found = tuple(name for index, name in names.items() if result.mask(index).any())
    planes: tuple[int, ...] = ()
    if result.plane_scores is not None and len(result.plane_scores) > 1:
        planes = tuple(int(index) for index in np.argsort(-result.plane_scores, kind="stable")[:_PLANES])
    return Score(result.scores["image"], classes, disagreement, planes, found)
