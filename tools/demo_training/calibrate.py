"""Calibration of the demo CLIP's presence thresholds on development phantoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medclipsam.base.progress import ProgressBar
from medclipsam.demo import captions
from medclipsam.demo.phantoms import MODALITIES, make_phantom
from medclipsam.encoders import Encoder
from medclipsam.presence import calibrate_threshold, presence_reference, presence_scores
from medclipsam.targets import Target, TargetSet
from tools.demo_training.scribbles import draw_nonsense

# Phantoms from here on choose settings; training has those from 1,000,000 and measurements those from 700,000.
DEVELOPMENT_SEED = 600_000

# Free text that means a known target is judged as that target; for the rest a wrong mask is worse than none.
_FREE_TEXT_SENSITIVITY = 0.5

# The DICOM modality of a phantom's modality.
DICOM_MODALITY: Mapping[str, str] = {"US": "US", "MR": "MR", "XR": "DX", "CT": "CT"}


def calibrate(encoder: Encoder, n: int = 200, *, sensitivity: float = 0.97, progress: bool = True) -> dict[str, Any]:
    """Choose presence thresholds on development phantoms.

    Parameters
    ----------
    encoder : Encoder
        The demo CLIP.
    n : int
        Phantoms of each modality, half of them drawn with the finding; a quarter as many pictures are no phantoms.
    sensitivity : float
        Share of the images with a target that have to be let through.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        `presence_thresholds` by the name of a known target, `presence_threshold` for all known targets together (one
        that a user adds has it), and `free_text_threshold`.
    """
    shown = _development_images(encoder, n, progress)
    targets = TargetSet.load()
    by_name: dict[str, float] = {}
    known, free = _Scores(), _Scores()
    for target in targets:
        structure = captions.structure_of(target)
        if structure not in captions.STRUCTURES:
            continue
        own = _Scores()
        own.ask(encoder, target.captions, target, targets, shown, structure)
        if own.present:
            by_name[target.name] = calibrate_threshold(*own.both(), sensitivity=sensitivity)
        known.add(own)
        for phrase in captions.STRUCTURES[structure][::5]:
            free.ask(encoder, [phrase], None, targets, shown, structure)
    phantoms: _Shown = {modality: images for modality, images in shown.items() if modality}
    for nothing in captions.GENERIC[::5]:
        free.ask(encoder, [nothing], None, targets, phantoms, structure=None)
    return {
        "presence_threshold": calibrate_threshold(*known.both(), sensitivity=sensitivity),
        "presence_thresholds": by_name,
        "free_text_threshold": calibrate_threshold(*free.both(), sensitivity=_FREE_TEXT_SENSITIVITY),
    }


# Phantom modality (None: no phantom) -> features [n, E] and the structures of each image.
_Shown = dict[str | None, tuple[torch.Tensor, list[set[str]]]]


class _Scores:
    """Scores of images that show a target and of images that do not."""

    def __init__(self) -> None:
        self.present: list[float] = []
        self.absent: list[float] = []

    def ask(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        known: Target | None,
        targets: TargetSet,
        shown: _Shown,
        structure: str | None,
    ) -> None:
        """Score all images for a target.

        One of another modality does not show it, unless it shows the same structure: that one is left out.
        """
        for modality, (features, structures) in shown.items():
            dicom = DICOM_MODALITY.get(modality or "")
            reference = presence_reference(encoder, texts, known, targets, dicom)
            scores = presence_scores(features, reference, encoder.logit_scale).score
            fits = known is None or (dicom is not None and known.in_modality(dicom))
            for score, names in zip(scores.tolist(), structures, strict=True):
                if structure not in names:
                    self.absent.append(score)
                elif fits:
                    self.present.append(score)

    def add(self, other: _Scores) -> None:
        self.present += other.present
        self.absent += other.absent

    def both(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.present), np.asarray(self.absent)


def _development_images(encoder: Encoder, n: int, progress: bool) -> _Shown:
    shown: _Shown = {}
    for modality in ProgressBar((*MODALITIES, None), desc="development phantoms", show=progress):
        features, structures = [], []
        for index in range(n if modality else n // 4):
            seed = DEVELOPMENT_SEED + index
            if modality is None:
                image, names = draw_nonsense(seed, 192), set()
            else:
                phantom = make_phantom(modality, seed, pathology=index % 2 == 0)
                image, names = phantom.image, set(phantom.masks)
            plane = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
            features.append(encoder.encode_images(encoder.preprocess(plane)[0][None])[0])
            structures.append(names)
        shown[modality] = torch.stack(features), structures
    return shown
