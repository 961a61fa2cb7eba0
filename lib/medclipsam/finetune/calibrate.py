"""Presence thresholds of fine-tuned weights, from held-out pairs alone: fine-tuning moves every similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medclipsam.encoders import Encoder
from medclipsam.finetune.data import PreparedPairs
from medclipsam.presence import (
    GENERIC_CAPTIONS,
    calibrate_threshold,
    family,
    presence_reference,
    presence_scores,
)
from medclipsam.targets import Target, TargetSet, normalise

# A threshold of its own needs so many images that show the target.
LEAST = 10
# Captions that are asked of all images.
_ASKED = 200
_SENSITIVITY, _SPECIFICITY = 0.95, 0.99


def calibrate(encoder: Encoder, pairs: PreparedPairs, images: torch.Tensor, targets: TargetSet) -> dict[str, Any]:
    """Choose presence thresholds on held-out pairs.

    What an image shows is known from its caption only. Free text: an image shows what its own caption says, and not
    what other captions say. A known target: images whose captions name it show it, and images whose captions name only
    targets of other modalities do not; the others say nothing, since a caption does not name all that is there.

    Parameters
    ----------
    encoder : Encoder
        The fine-tuned CLIP.
    pairs : PreparedPairs
        Held-out pairs.
    images : torch.Tensor
        [N, E], their unit image features.
    targets : TargetSet
        The known targets.

    Returns
    -------
    dict
        `free_text_threshold`; `presence_threshold` for all known targets (that of free text where captions name fewer
        than `LEAST`); `presence_thresholds` by name, for targets that `LEAST` or more captions name; and, where the
        encoder had one and texts of different targets still lie apart, `same_meaning`.
    """
    images = images.to(encoder.device)
    free = calibrate_threshold(*_free_text(encoder, pairs, images, targets), sensitivity=_SENSITIVITY)
    found: dict[str, Any] = {"free_text_threshold": free}
    shown, not_shown, by_name = [], [], {}
    named = [_named(text, modality, targets) for text, modality in zip(pairs.captions, pairs.modalities, strict=True)]
    for target in targets:
        present, absent = _known(encoder, pairs, images, targets, target, named)
        shown += present
        not_shown += absent
        if len(present) >= LEAST:
            by_name[target.name] = calibrate_threshold(
                np.asarray(present), np.asarray(absent), sensitivity=_SENSITIVITY
            )
    enough = len(shown) >= LEAST
    found["presence_threshold"] = (
        calibrate_threshold(np.asarray(shown), np.asarray(not_shown), sensitivity=_SENSITIVITY) if enough else free
    )
    found["presence_thresholds"] = by_name
    if "same_meaning" in encoder.defaults:
        least = _same_meaning(encoder, targets)
        if least is not None:
            found["same_meaning"] = least
    return found


def _free_text(
    encoder: Encoder, pairs: PreparedPairs, images: torch.Tensor, targets: TargetSet
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of images with their own captions, and with those of others."""
    present, absent = [], []
    numbers = pairs.caption_ids.numpy()
    chosen = np.random.default_rng(0).permutation(len(pairs))[:_ASKED]
    for index in chosen:
        scores = _scores(encoder, [pairs.captions[index]], None, targets, images, pairs.modalities)
        present.append(scores[index])
        absent.append(scores[numbers != numbers[index]])
    return np.asarray(present), np.concatenate(absent)


def _known(
    encoder: Encoder,
    pairs: PreparedPairs,
    images: torch.Tensor,
    targets: TargetSet,
    target: Target,
    named: Sequence[list[Target]],
) -> tuple[list[float], list[float]]:
    """Return scores of images that show a target, and of images that do not."""
    own = {family(code) for code in target.modality}
    shows = np.array([target in names for names in named])
    lacks = np.array(
        [bool(names) and not any(own & {family(code) for code in other.modality} for other in names) for names in named]
    )
    if not shows.any() or not target.modality:
        return [], []
    scores = _scores(encoder, target.captions, target, targets, images, pairs.modalities)
    return scores[shows].tolist(), scores[lacks].tolist()


def _scores(
    encoder: Encoder,
    captions: Sequence[str],
    target: Target | None,
    targets: TargetSet,
    images: torch.Tensor,
    modalities: Sequence[str | None],
) -> np.ndarray:
    """Return the presence score of every image, judged against the bank of its own modality."""
    scores = np.empty(len(images))
    for modality in set(modalities):
        members = [at for at, other in enumerate(modalities) if other == modality]
        reference = presence_reference(encoder, captions, target, targets, modality)
        scores[members] = presence_scores(images[members], reference, encoder.logit_scale).score
    return scores


def _named(caption: str, modality: str | None, targets: TargetSet) -> list[Target]:
    """Return the targets whose name, synonym or caption stands in a caption, word for word."""
    said = f" {normalise(caption)} "
    return [
        target
        for target in targets
        if target.in_modality(modality)
        and any(f" {normalise(text)} " in said for text in (target.name, *target.synonyms, *target.captions))
    ]


def _same_meaning(encoder: Encoder, targets: TargetSet) -> float | None:
    """Return the least cosine at which a text means a target; None where other texts lie as near."""
    known = [target for target in targets if target.synonyms]
    if not known:
        return None
    prototypes = torch.stack([encoder.text_prototype(target.captions) for target in known])
    own, others = [], []
    for at, target in enumerate(known):
        similar = (prototypes @ encoder.encode_texts([target.name, *target.synonyms]).T).clamp(0, 1)
        own += similar[at].tolist()
        for beside, other in enumerate(known):
            if other.meaning != target.meaning:
                others += similar[beside].tolist()
    for texts in GENERIC_CAPTIONS:
        others += (prototypes @ encoder.encode_texts(texts).T).clamp(0, 1).flatten().tolist()
    if np.quantile(own, 1 - _SENSITIVITY) <= np.quantile(others, _SPECIFICITY):
        return None
    return calibrate_threshold(np.asarray(own), np.asarray(others), sensitivity=_SENSITIVITY)
