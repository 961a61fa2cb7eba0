"""Whether a new network may take the place of the one before: both on the same validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.base.metrics import dice
from medclipsam.base.statistics import DRAWS, interval_of_mean
from medclipsam.training.layers import class_mask

if TYPE_CHECKING:
    from medclipsam.imaging import MedicalImage
    from medclipsam.training.examples import Example

# A child may be worse by so much Dice, at the lower bound of the 95 % interval.
MARGIN = 0.01
# With fewer validation images nothing is known well enough to be relied upon.
LEAST_IMAGES = 10

Status = Literal["published", "unvalidated", "refused"]
# Returns the classes in layers, as `Example.layers`: uint8 [n_layers, n_planes, H, W] in display orientation.
Predict = Callable[["MedicalImage"], np.ndarray]


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
        Mean of child - parent (of a first network: child - zero-shot masks), and its bootstrap 95 % interval.
    zero_shot : float or None
        Mean Dice of the zero-shot masks that a first network was held against.
    """

    status: Status
    sentence: str
    n: int
    child: float | None = None
    parent: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    zero_shot: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-able."""
        return asdict(self)


def score(
    examples: Iterable[Example],
    classes: Mapping[str, int],
    predict: Predict,
    *,
    each: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Score a network on labelled images.

    Parameters
    ----------
    examples : iterable of Example
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
        For each image, by name: Dice of each class, over all planes together; 1 where it is in neither mask. Where
        classes overlap, of the whole class on both sides.
    """
    found: dict[str, dict[str, float]] = {}
    for number, example in enumerate(examples, start=1):
        image = example.read()
        truth, made = example.layers(image, max(classes.values())), predict(image)
        found[example.name] = dice_by_class(made, truth, classes)
        if each is not None:
            each(number)
    return found


def dice_by_class(made: np.ndarray, truth: np.ndarray, classes: Mapping[str, int]) -> dict[str, float]:
    """Return the Dice of each whole class of two labels in layers, uint8 [n_layers, n_planes, H, W]."""
    return {name: dice(class_mask(made, index), class_mask(truth, index)) for name, index in classes.items()}


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each image's mean Dice over classes."""
    return {name: float(np.mean(list(classes.values()))) for name, classes in scores.items()}


def judge(
    child: Mapping[str, float],
    parent: Mapping[str, float] | None,
    *,
    zero_shot: Mapping[str, float] | None = None,
    patients: Mapping[str, str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Verdict:
    """Decide whether a child is published.

    Parameters
    ----------
    child, parent : mapping of str to float
        Dice of each validation image; the parent is None for a first network.
    zero_shot : mapping of str to float, optional
        Dice of the masks that people had before a first network, of those validation images that have one.
    patients : mapping of str to str, optional
        Whose each image is; images of one patient are drawn together. By default each is a patient of its own.
    draws, seed : int
        Of the paired bootstrap over patients.

    Returns
    -------
    Verdict
        `unvalidated` with fewer than `LEAST_IMAGES` images. A child is `published` where the lower bound of the 95 %
        interval of its mean difference to the parent is above -`MARGIN`. A first network is, unless it is shown to be
        worse than the zero-shot masks of `LEAST_IMAGES` images or more: unless the interval's upper bound is below 0.
        Else `refused`.

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

    def interval(before: Mapping[str, float]) -> tuple[float, float, float]:
        names = sorted(before)
        whose = [(patients or {}).get(name, name) for name in names]
        return interval_of_mean([child[name] - before[name] for name in names], whose, draws=draws, seed=seed)

    if parent is None:
        first = f"The first network of its kind, with a mean Dice of {mean:.3f} on {n} validation images."
        if zero_shot is None or len(zero_shot) < LEAST_IMAGES:
            return Verdict("published", first, n, mean)
        gap, low, high = interval(zero_shot)
        status: Status = "refused" if high < 0 else "published"
        masks = float(np.mean(list(zero_shot.values())))
        sentence = (
            f"{first} Zero-shot masks of {len(zero_shot)} of these have {masks:.3f}: a difference of {gap:+.3f} "
            f"(95 % interval {low:+.3f} to {high:+.3f}), so that the network is "
            f"{'shown to be worse' if status == 'refused' else 'not shown to be worse'}."
        )
        return Verdict(status, sentence, n, mean, None, gap, low, high, masks)
    gap, low, high = interval(parent)
    status = "published" if low > -MARGIN else "refused"
    sentence = (
        f"Mean Dice {mean:.3f} against the parent's {other:.3f} on {n} validation images: a difference of "
        f"{gap:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), and the lower bound is "
        f"{'' if status == 'published' else 'not '}above -{MARGIN:g}."
    )
    return Verdict(status, sentence, n, mean, other, gap, low, high)
