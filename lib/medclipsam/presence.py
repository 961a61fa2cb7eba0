"""Is the target in the plane at all? Asked before a mask is drawn.

    p = sigmoid(logit_scale * (s+ - s-))

s+ is the similarity of the plane to the target's captions (averaged and normalised), s- the greatest similarity to one
of the things that could be there instead, logit_scale the model's own. A saliency map always has a maximum, so without
this question every plane of a volume gets a mask.

CLIP does not understand "no X": what is absent is described by what is there instead. A known target brings its own
absence captions; all targets, and free text above all, are also compared with a bank of normal images of each modality,
captions of targets that only other modalities show, and things that are no medical image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medclipsam.base.errors import InputError
from medclipsam.encoders import Encoder
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
        All known targets; those that only other modalities show are part of the bank.
    modality : str or None
        DICOM modality of the image, where known. If the target is known in it, only the absence captions and what is
        no medical image are compared with.

    Returns
    -------
    PresenceReference
    """
    own = {family(name) for name in target.modality} if target else {family(modality)}
    groups: list[Sequence[str]] = [*GENERIC_CAPTIONS]
    if target is not None and target.absence_captions:
        groups.append(target.absence_captions)
    # An image that says it is of the target's modality shows no other one's: those could only outbid by mistake.
    if target is None or modality is None or modality.upper() not in target.modality:
        # Free text has no absence captions: the normal image of its own modality takes their place.
        groups += [texts for name, texts in NORMAL_CAPTIONS.items() if target is None or name not in own]
        if None not in own:
            # What this modality shows too may well stand beside the target in the same plane and is no negative, by
            # whatever modality's name: "the lungs on an x-ray" lies near every chest CT, with and without a nodule.
            shown = {other.meaning for other in targets if own & {family(code) for code in other.modality}}
            if target is not None:
                shown.add(target.meaning)
            groups += [other.captions for other in targets if other.modality and other.meaning not in shown]
    prototypes = torch.stack([encoder.text_prototype(list(texts)) for texts in groups])
    return PresenceReference(encoder.text_prototype(captions), prototypes)


def resembled_target(
    encoder: Encoder, captions: Sequence[str], targets: TargetSet, modality: str | None
) -> Target | None:
    """Return the known target that a free text means to the model, if it means one.

    "Please outline both of the lungs" is no synonym that a file lists, yet lies where the lungs' captions lie. Judged
    as that target it has negatives that fit; the general bank's normal image shows lungs as well and would outbid it.

    Parameters
    ----------
    encoder : Encoder
        The CLIP. How near is near enough differs between models, so that the weights have to say it: the least cosine
        is their default `same_meaning`. Without it nothing is taken for a known target.
    captions : sequence of str
        The free text.
    targets : TargetSet
        All known targets.
    modality : str or None
        DICOM modality of the image, where known; targets of others are left out.

    Returns
    -------
    Target or None
    """
    least = encoder.defaults.get("same_meaning")
    candidates = [target for target in targets if target.in_modality(modality)]
    if least is None or not candidates:
        return None
    prototypes = torch.stack([encoder.text_prototype(target.captions) for target in candidates])
    similarity = prototypes @ encoder.text_prototype(captions)
    nearest = int(similarity.argmax())
    return candidates[nearest] if float(similarity[nearest]) >= least else None


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


def calibrate_threshold(
    present: np.ndarray, absent: np.ndarray, *, sensitivity: float = 0.95, specificity: float = 0.99
) -> float:
    """Choose a presence threshold on development images.

    Parameters
    ----------
    present, absent : numpy.ndarray
        float [N] and [M]: scores in [0, 1] of images that show the target and of images that do not.
    sensitivity : float
        Share of the present ones that have to reach the threshold, above 0 and at most 1.
    specificity : float
        Share of the absent ones that should stay below it, likewise; the sensitivity comes first.

    Returns
    -------
    float
        In [0, 1]. Where both shares can be had, the middle between the scores that decide them, so that neither side
        is cut close and a few odd images do not push the threshold to the other side's edge; else the score that
        just keeps the sensitivity.

    Raises
    ------
    InputError
        If there are no scores of present targets, or a share is not in (0, 1].
    """
    if not len(present):
        raise InputError("A threshold cannot be calibrated without scores of images that show the target.")
    for name, share in (("sensitivity", sensitivity), ("specificity", specificity)):
        if not 0 < share <= 1:
            raise InputError(f"The {name} {share} of a calibration is not allowed; allowed: above 0, at most 1.")
    greatest = float(np.quantile(present, 1 - sensitivity, method="lower"))
    least = float(np.quantile(absent, specificity, method="higher")) if len(absent) else 0.0
    # Rounded down: it must not step over a score that has to pass.
    return math.floor(1e4 * (greatest if least >= greatest else (least + greatest) / 2)) / 1e4


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


def consistent_planes(present: np.ndarray, planes: Sequence[int]) -> np.ndarray:
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
