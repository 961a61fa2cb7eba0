"""Is the target in the plane at all? Asked before a mask is drawn.

    p = sigmoid(logit_scale * (s+ - s-))

s+ is the similarity of the plane to the target's captions (averaged and normalised), s- the greatest similarity to one
of the things that could be there instead, logit_scale the model's own. A saliency map always has a maximum, so without
this question every plane of a volume gets a mask.

CLIP does not understand "no X": what is absent is described by what is there instead. A known target brings its own
absence captions; all targets, and free text above all, are also compared with a bank of normal images of each modality,
captions of targets of other modalities, and things that are no medical image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medclipsam.encoders import Encoder
from medclipsam.errors import InputError
from medclipsam.targets import Target, TargetSet

DEFAULT_THRESHOLD = 0.5

# DICOM modalities that look alike to a text: one entry of the bank each.
_FAMILIES = {"US": "US", "MR": "MR", "CT": "CT", "CR": "XR", "DX": "XR", "MG": "XR", "RF": "XR", "XR": "XR"}

NORMAL_CAPTIONS: dict[str, tuple[str, ...]] = {
    "US": ("a normal ultrasound image", "normal breast tissue on ultrasound", "an ultrasound scan without a lesion"),
    "MR": ("a normal brain MRI", "a healthy brain on magnetic resonance imaging", "a normal MRI scan of the head"),
    "XR": ("a normal chest x-ray", "a healthy chest radiograph", "a normal radiograph"),
    "CT": ("a normal chest CT", "a normal computed tomography scan", "a healthy CT slice"),
}

GENERIC_CAPTIONS: tuple[tuple[str, ...], ...] = (
    ("a photograph of a dog", "a photograph of a cat"),
    ("a street with cars", "a photograph of a city"),
    ("a plate of food", "a red apple on a table"),
    ("a page of printed text", "random words without meaning"),
)


@dataclass(frozen=True)
class PresenceReference:
    """What a plane is compared with.

    Attributes
    ----------
    positive : torch.Tensor
        [E], unit prototype of the target's captions.
    negatives : torch.Tensor
        [K, E], unit prototypes of what could be there instead.
    """

    positive: torch.Tensor
    negatives: torch.Tensor


@dataclass(frozen=True)
class PresenceScores:
    """Presence of one target in each of B planes: float64 [B] each; `score` is p."""

    score: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def family(modality: str | None) -> str | None:
    """Return the bank's entry for a DICOM modality: "US", "MR", "XR", "CT", or None if it has none."""
    return _FAMILIES.get(modality or "")


def presence_reference(
    encoder: Encoder,
    captions: Sequence[str],
    target: Target | None,
    targets: TargetSet,
    modality: str | None,
) -> PresenceReference:
    """Collect what a target's presence is judged against.

    Parameters
    ----------
    encoder : Encoder
        The CLIP.
    captions : sequence of str
        Captions of the target.
    target : Target or None
        The known target that the captions mean; None for free text.
    targets : TargetSet
        All known targets; those of other modalities are part of the bank.
    modality : str or None
        DICOM modality of the image, where known.

    Returns
    -------
    PresenceReference
    """
    own = {family(name) for name in target.modality} if target else {family(modality)}
    groups: list[Sequence[str]] = [*GENERIC_CAPTIONS]
    if target is not None:
        if target.absence_captions:
            groups.append(target.absence_captions)
        groups += [texts for name, texts in NORMAL_CAPTIONS.items() if name not in own]
    else:
        # Free text has no absence captions: the normal image of its own modality takes their place.
        groups += list(NORMAL_CAPTIONS.values())
    if None not in own:
        # Other targets of the same modality may well stand beside this one in the same plane: they are no negatives.
        meaning = target.meaning if target else None
        for name in targets.names():
            other = targets.get(name)
            if other.meaning != meaning and not own & {family(code) for code in other.modality} and other.modality:
                groups.append(other.captions)
    prototypes = torch.stack([encoder.text_prototype(list(texts)) for texts in groups])
    return PresenceReference(encoder.text_prototype(captions), prototypes)


def presence_scores(features: torch.Tensor, reference: PresenceReference, logit_scale: float) -> PresenceScores:
    """Score a target's presence in planes.

    Parameters
    ----------
    features : torch.Tensor
        [B, E], unit image features.
    reference : PresenceReference
        What to compare with.
    logit_scale : float
        The model's own.

    Returns
    -------
    PresenceScores
    """
    features = features.double()
    positive = features @ reference.positive.double()
    negative = (features @ reference.negatives.double().T).amax(dim=1)
    score = torch.sigmoid(logit_scale * (positive - negative))
    return PresenceScores(*(part.cpu().numpy() for part in (score, positive, negative)))


def calibrate_threshold(present: np.ndarray, absent: np.ndarray, sensitivity: float = 0.95) -> float:
    """Return the threshold that lets the fewest absent targets through while it keeps a share of the present ones.

    Parameters
    ----------
    present, absent : numpy.ndarray
        float [N] and [M]: scores in [0, 1] of development images that show the target and that do not.
    sensitivity : float
        Share of the present ones that have to reach the threshold, above 0 and at most 1.

    Returns
    -------
    float
        In [0, 1], rounded to 4 digits. It lies in the middle of the widest range of scores that let equally few
        absent targets through, so that neither side is cut close.

    Raises
    ------
    InputError
        If there are no scores of present targets, or the sensitivity is not in (0, 1].
    """
    present, absent = np.sort(present), np.sort(absent)
    if not len(present):
        raise InputError("A threshold cannot be calibrated without scores of images that show the target.")
    if not 0 < sensitivity <= 1:
        raise InputError(f"The sensitivity {sensitivity} of a calibration is not allowed; allowed: above 0, at most 1.")
    greatest = present[math.floor((1 - sensitivity) * len(present) + 1e-9)]
    rejected = absent[absent < greatest]
    least = rejected[-1] if len(rejected) else 0.0
    return round(float(least + greatest) / 2, 4)


def smooth_over_planes(scores: np.ndarray, planes: Sequence[int]) -> np.ndarray:
    """Smooth scores over neighbouring planes with the weights 1, 2, 1.

    Parameters
    ----------
    scores : numpy.ndarray
        float [N], one a looked-at plane.
    planes : sequence of int
        Index of each in the volume, ascending; planes that are not next to each other do not mix.

    Returns
    -------
    numpy.ndarray
        float [N].
    """
    index = np.asarray(planes)
    total, weight = 2.0 * scores, np.full(len(scores), 2.0)
    adjacent = np.diff(index) == 1
    total[1:][adjacent] += scores[:-1][adjacent]
    weight[1:][adjacent] += 1
    total[:-1][adjacent] += scores[1:][adjacent]
    weight[:-1][adjacent] += 1
    return total / weight


def steady_planes(present: np.ndarray, planes: Sequence[int]) -> np.ndarray:
    """Remove what lasts for one plane only: fill single gaps, then drop single planes.

    Parameters
    ----------
    present : numpy.ndarray
        bool [N], one a looked-at plane.
    planes : sequence of int
        Index of each in the volume, ascending. A plane without a looked-at neighbour is left as it is.

    Returns
    -------
    numpy.ndarray
        bool [N].
    """
    by_index = dict(zip(planes, present.tolist(), strict=True))
    filled = {
        plane: here or (by_index.get(plane - 1, False) and by_index.get(plane + 1, False))
        for plane, here in by_index.items()
    }
    steady = []
    for plane, here in filled.items():
        neighbours = [filled[beside] for beside in (plane - 1, plane + 1) if beside in filled]
        steady.append(here and (any(neighbours) or not neighbours))
    return np.asarray(steady, dtype=bool)
