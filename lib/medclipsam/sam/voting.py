"""How SAM's three candidate masks of one prompt become one mask."""

from __future__ import annotations

import numpy as np
import torch

from medclipsam.base.errors import OptionError
from medclipsam.base.options import VOTINGS

STAPLE_ITERATIONS = 100


def vote(logits: torch.Tensor, scores: torch.Tensor, voting: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Combine the candidate masks of one prompt.

    Parameters
    ----------
    logits : Tensor
        Float, shape [M, H, W]: mask logits of the candidates, foreground above 0.
    scores : Tensor
        Float, shape [M]: the overlap (IoU) that SAM predicts for each candidate.
    voting : {"single", "mrm", "staple", "average"}
        "single": the first candidate as it is (SAM was asked for one mask).
        "mrm": the mean of the probability maps, weighted by the scores, above 0.5. Scores below 0 count as 0; if
        all are, the weights are equal.
        "staple": the candidates' binary masks fused by STAPLE (Warfield, Zou and Wells, IEEE TMI 23(7), 2004, as in
        SimpleITK): the posterior of the true segmentation above 0.5.
        "average": the mean of the probability maps above 0.5.

    Returns
    -------
    mask : Tensor
        bool, shape [H, W].
    probability : Tensor
        Float, shape [H, W], in [0, 1].
    score : float
        The candidates' score under the same weights: the first one's for "single", the weighted mean for "mrm",
        the mean otherwise. As SAM predicts it, so it may lie a little outside [0, 1].

    Raises
    ------
    OptionError
        If `voting` is unknown.
    """
    if voting == "single":
        # By the logit as SamPredictor does: the sigmoid of a tiny positive logit rounds to exactly 0.5.
        return logits[0] > 0, logits[0].sigmoid(), float(scores[0])
    if voting in ("mrm", "average"):
        weights = scores.clamp(min=0) if voting == "mrm" else torch.ones_like(scores)
        weights = weights / weights.sum() if weights.sum() > 0 else torch.full_like(scores, 1 / len(scores))
        probability = torch.einsum("m,mhw->hw", weights, logits.sigmoid())
        return probability > 0.5, probability, float((weights * scores).sum())
    if voting == "staple":
        fused = torch.from_numpy(staple((logits > 0).cpu().numpy())).to(logits.device)
        return fused > 0.5, fused, float(scores.mean())
    raise OptionError("voting", voting, "one of " + ", ".join(VOTINGS))


def staple(masks: np.ndarray) -> np.ndarray:
    """Fuse binary masks with STAPLE.

    Parameters
    ----------
    masks : ndarray
        bool, shape [M, H, W].

    Returns
    -------
    ndarray
        float32, shape [H, W]: posterior probability of foreground.
    """
    # STAPLE's prior is the mean foreground: at exactly 0 or 1 it divides by zero, and the answer is known anyway.
    if not masks.any() or masks.all():
        return masks[0].astype(np.float32)
    import SimpleITK as sitk

    filter_ = sitk.STAPLEImageFilter()
    filter_.SetForegroundValue(1.0)
    filter_.SetMaximumIterations(STAPLE_ITERATIONS)
    fused = filter_.Execute([sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks])
    return sitk.GetArrayFromImage(fused).astype(np.float32)
