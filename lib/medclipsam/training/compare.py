"""Whether a new network may take the place of the one before: both on the same validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medclipsam.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.metrics import dice
from medclipsam.training.examples import Example

# A child may be worse by so much Dice, at the lower bound of the 95 % interval.
MARGIN = 0.01
# With fewer validation images nothing is known well enough to be relied upon.
LEAST_IMAGES = 10
DRAWS = 2000

Status = Literal["published", "unvalidated", "refused"]
# Returns the class indices, uint8 [n_planes, H, W] in display orientation.
Predict = Callable[[MedicalImage], np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """What came of the comparison.

    Attributes
    ----------
    status : {"published", "unvalidated", "refused"}
    sentence : str
        Why, for people.
    n : int
        Validation images.
    child, parent : float or None
        Mean Dice over images (each the mean over classes); the parent's is None where there is none.
    difference, low, high : float or None
        Mean of child - parent, and its bootstrap 95 % interval.
    """

    status: Status
    sentence: str
    n: int
    child: float | None = None
    parent: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-able."""
        return asdict(self)


def score(
    examples: Sequence[Example],
    classes: Mapping[str, int],
    predict: Predict,
    *,
    each: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Score a network on labelled images.

    Parameters
    ----------
    examples : sequence of Example
        Images with the labels that it is held against.
    classes : mapping of str to int
        Label name to class index.
    predict : callable
        The network.
    each : callable, optional
        Called with the number of images done.

    Returns
    -------
    dict
        For each image, by name: Dice of each class, over all planes together; 1 where it is in neither mask.
    """
    found: dict[str, dict[str, float]] = {}
    for number, example in enumerate(examples, start=1):
        image = example.read()
        truth, mask = example.labels(image, max(classes.values())), predict(image)
        found[example.name] = {name: dice(mask == index, truth == index) for name, index in classes.items()}
        if each is not None:
            each(number)
    return found


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each image's mean Dice over classes."""
    return {name: float(np.mean(list(classes.values()))) for name, classes in scores.items()}


def judge(
    child: Mapping[str, float], parent: Mapping[str, float] | None, *, draws: int = DRAWS, seed: int = 0
) -> Verdict:
    """Decide whether a child is published.

    Parameters
    ----------
    child, parent : mapping of str to float
        Dice of each validation image; the parent is None for a first network.
    draws, seed : int
        Of the paired bootstrap over images.

    Returns
    -------
    Verdict
        `unvalidated` with fewer than `LEAST_IMAGES` images; `published` for a first network, and where the lower bound
        of the 95 % interval of the mean difference is above -`MARGIN`; else `refused`.

    Raises
    ------
    InputError
        If the two were not scored on the same images.
    """
    n = len(child)
    mean = float(np.mean(list(child.values()))) if n else None
    if parent is not None and parent.keys() != child.keys():
        raise InputError("Parent and child were scored on different images.")
    other = float(np.mean(list(parent.values()))) if parent else None
    if n < LEAST_IMAGES:
        sentence = f"There are {n} validation images with a final label; {LEAST_IMAGES} are needed to rely on a figure."
        return Verdict("unvalidated", sentence, n, mean, other)
    if parent is None:
        sentence = f"The first network of its kind, with a mean Dice of {mean:.3f} on {n} validation images."
        return Verdict("published", sentence, n, mean)
    differences = np.asarray([child[name] - parent[name] for name in sorted(child)])
    drawn = np.random.default_rng(seed).integers(0, n, (draws, n))
    low, high = np.percentile(differences[drawn].mean(axis=1), (2.5, 97.5))
    status: Status = "published" if low > -MARGIN else "refused"
    sentence = (
        f"Mean Dice {mean:.3f} against the parent's {other:.3f} on {n} validation images: a difference of "
        f"{differences.mean():+.3f} (95 % interval {low:+.3f} to {high:+.3f}), and the lower bound is "
        f"{'' if status == 'published' else 'not '}above -{MARGIN:g}."
    )
    return Verdict(status, sentence, n, mean, other, float(differences.mean()), float(low), float(high))
