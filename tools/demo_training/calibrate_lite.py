"""Presence thresholds of `lite_clip`, from the embedded planes that were held out for validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from medclipsam.demo import captions
from medclipsam.encoders import Encoder
from medclipsam.encoders.sam_clip import EmbeddingVision
from medclipsam.presence import calibrate_threshold, presence_reference, presence_scores
from medclipsam.targets import TargetSet
from tools.demo_training.embeddings import Embedded, Row
from tools.demo_training.lite_clip import DICOM, Questions
from tools.demo_training.sources import NONSENSE

# On planes of a volume, less than this share of the usual size of a structure other than a finding is its tip.
_TIP = 0.25
# Real images alone decide where so many show a target.
_ENOUGH_REAL = 20
# Free text that means a known target is judged as that target; for the rest a wrong mask is worse than none.
_FREE_TEXT_SENSITIVITY = 0.5


@torch.no_grad()
def calibrate(
    vision: EmbeddingVision,
    text: Encoder,
    data: Embedded,
    rows: Sequence[tuple[int, int, Row]],
    *,
    sensitivity: float = 0.97,
    sensitivity_of_findings: float = 0.93,
    scale: float = 20.0,
) -> dict[str, Any]:
    """Choose presence thresholds.

    Parameters
    ----------
    vision : EmbeddingVision
        The trained blocks.
    text : Encoder
        A CLIP with the text tower.
    data : Embedded
        Where the planes are.
    rows : sequence
        The planes to calibrate on; none that were trained on.
    sensitivity, sensitivity_of_findings : float
        Share of the planes with a target that have to be let through: of structures that every such image shows, and of
        tumours and nodules, where a mask that should not be there costs more.
    scale : float
        The logit scale.

    Returns
    -------
    dict
        `presence_thresholds` by the name of a known target, `presence_threshold` for all known targets together, and
        `free_text_threshold`.
    """
    questions, targets = Questions(text), TargetSet.load()
    scores: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    features, amounts, modalities = [], [], []
    findings = {
        target.name
        for target, structure in zip(questions.targets, questions.structures, strict=True)
        if structure in captions.FINDINGS
    }
    for row in rows:
        batch = data.take([row])
        feature = F.normalize(vision.feature(*vision.logits(vision.tokens(batch.embeddings))), dim=-1)[0]
        modality, amount = batch.modalities[0], batch.coverage[0].sum(dim=(1, 2))
        there, weight = questions.answers(amount, batch.known[0], modality)
        found = torch.sigmoid(questions.logits(feature, DICOM.get(modality), scale))
        kind = row[2].job["kind"]
        for index, target in enumerate(questions.targets):
            share = questions.amount(index, amount) / questions.amount(index, vision.sizes)
            is_tip = kind == "volume" and target.name not in findings and share < _TIP
            if weight[index] and not (there[index] and is_tip):
                scores[target.name, kind][0 if there[index] else 1].append(float(found[index]))
        features.append(feature)
        amounts.append((there, weight))
        modalities.append(modality)
    own = {}
    for target in questions.targets:
        name = target.name
        by_kind = {kind: pair for (of, kind), pair in scores.items() if of == name}
        decide = [pair for kind, pair in by_kind.items() if kind == "real" and len(pair[0]) >= _ENOUGH_REAL]
        present, absent = _together(decide or list(by_kind.values()))
        if len(present):
            wanted = sensitivity_of_findings if name in findings else sensitivity
            own[name] = calibrate_threshold(present, absent, sensitivity=wanted)
    everything = _together(list(scores.values()))
    free = _free_text(text, targets, questions, torch.stack(features), amounts, modalities, scale)
    return {
        "presence_threshold": calibrate_threshold(*everything, sensitivity=sensitivity),
        "presence_thresholds": own,
        "free_text_threshold": calibrate_threshold(*free, sensitivity=_FREE_TEXT_SENSITIVITY),
    }


def _together(pairs: Sequence[tuple[list[float], list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    present, absent = (np.array([score for pair in pairs for score in pair[k]]) for k in (0, 1))
    return present, absent


def _free_text(
    text: Encoder,
    targets: TargetSet,
    questions: Questions,
    features: torch.Tensor,
    answers: list[tuple[torch.Tensor, torch.Tensor]],
    modalities: list[str],
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of free text where its structure is there and where it is not, or means nothing."""
    present: list[float] = []
    absent: list[float] = []
    for modality in (*DICOM, NONSENSE):
        rows = [row for row, name in enumerate(modalities) if name == modality]
        if not rows:
            continue
        for number, structure in enumerate(questions.structures):
            for phrase in captions.STRUCTURES[structure][::5]:
                reference = presence_reference(text, [phrase], None, targets, DICOM.get(modality))
                found = presence_scores(features[rows], reference, scale).score
                for row, score in zip(rows, found.tolist(), strict=True):
                    there, weight = answers[row]
                    if weight[number]:
                        (present if there[number] else absent).append(score)
        for phrase in captions.GENERIC[::5]:
            reference = presence_reference(text, [phrase], None, targets, DICOM.get(modality))
            absent += presence_scores(features[rows], reference, scale).score.tolist() if modality != NONSENSE else []
    return np.array(present), np.array(absent)
