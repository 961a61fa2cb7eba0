"""One interface to all saliency methods: planes and targets in, maps over the planes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from medclipsam.base.errors import OptionError
from medclipsam.base.options import SALIENCY_METHODS
from medclipsam.encoders import Encoder, Fit
from medclipsam.saliency.m2ib import PUBLISHED, Schedule, m2ib_maps, noise_generator
from medclipsam.saliency.nib import nib_maps


@dataclass(frozen=True)
class SaliencySettings:
    """What a saliency map is made with, every value decided.

    Attributes
    ----------
    method : {"m2ib", "m2ib_token", "nib", "patch_text"}
        M2IB with an alpha for each element or each token; the narrowing bottleneck; or the cosine of projected patch
        tokens and the text.
    variance : float
        Noise variance sigma squared (M2IB).
    layer : int
        0-based vision block that carries the bottleneck (M2IB, NIB).
    schedule : Schedule
        Adam steps and their noise samples (M2IB).
    steps : int
        Points on the way from nothing to the whole image (NIB).
    seed : int
        Seed of the noise (M2IB).
    contrast : float
        Weight of the similarity to negative captions; 0 leaves them out.
    smooth : int
        Odd side of a mean filter over the token grid; 1 leaves it out.
    clip_percentile : float
        Tokens above this percentile are set to it before the map is scaled, since a few hot tokens otherwise own the
        range; 100 leaves it out.
    """

    method: str = "m2ib"
    variance: float = 1.0
    layer: int = 9
    schedule: Schedule = PUBLISHED
    steps: int = 10
    seed: int = 0
    contrast: float = 0.0
    smooth: int = 1
    clip_percentile: float = 100.0

    def __post_init__(self) -> None:
        if self.method not in SALIENCY_METHODS:
            raise OptionError("saliency", self.method, "one of " + ", ".join(SALIENCY_METHODS))
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise OptionError("smooth", self.smooth, "an odd number from 1")


@dataclass(frozen=True)
class SaliencyRequest:
    """One map that is asked for: a target on a plane.

    Attributes
    ----------
    plane : int
        Row of the plane in the batch.
    text : torch.Tensor
        [E], unit feature of the target's captions.
    negatives : torch.Tensor or None
        [K, E], unit features of negative captions.
    beta : float
        M2IB's trade-off for this target.
    """

    plane: int
    text: torch.Tensor
    negatives: torch.Tensor | None = None
    beta: float = 1.0


def saliency_maps(
    encoder: Encoder,
    tokens: torch.Tensor,
    fits: Sequence[Fit],
    contents: Sequence[bytes],
    requests: Sequence[SaliencyRequest],
    settings: SaliencySettings,
    *,
    max_copies: int = 80,
    on_step: Callable[[], None] | None = None,
) -> list[torch.Tensor]:
    """Compute saliency maps, many planes and targets in one optimisation.

    Parameters
    ----------
    encoder : Encoder
        The frozen CLIP.
    tokens : torch.Tensor
        [B, 1+P, D], output of block `settings.layer` for B planes.
    fits : sequence of Fit
        How each plane was brought to the encoder's input.
    contents : sequence of bytes
        Digest of each plane's content; with the seed it decides the noise.
    requests : sequence of SaliencyRequest
        Which targets on which planes.
    settings : SaliencySettings
        Method and its settings.
    max_copies : int
        At most so many noisy copies run through the tower at once; bounds the memory, changes no map.
    on_step : callable, optional
        Called after each optimisation step; may raise to stop.

    Returns
    -------
    list of torch.Tensor
        One float32 [H, W] a request, on the CPU, in [0, 1], min-max scaled over what is not padding; a constant map
        is all 0.
    """
    copies = 1 if settings.method == "nib" else max(settings.schedule.samples)
    step = max(1, max_copies // copies)
    maps: list[torch.Tensor] = []
    for start in range(0, len(requests), step):
        chosen = requests[start : start + step]
        grids = _grids(encoder, tokens, contents, chosen, settings, on_step)
        maps += [_to_plane(grid, fits[asked.plane], settings) for asked, grid in zip(chosen, grids, strict=True)]
    return maps


def _grids(
    encoder: Encoder,
    tokens: torch.Tensor,
    contents: Sequence[bytes],
    requests: Sequence[SaliencyRequest],
    settings: SaliencySettings,
    on_step: Callable[[], None] | None,
) -> torch.Tensor:
    if settings.method == "patch_text":
        return _patch_text(encoder, tokens, requests, settings)
    planes = [request.plane for request in requests]
    texts = torch.stack([request.text for request in requests])
    negatives = [request.negatives for request in requests]
    if settings.method == "nib":
        return nib_maps(
            encoder.tower,
            tokens,
            planes,
            texts,
            negatives,
            layer=settings.layer,
            steps=settings.steps,
            contrast=settings.contrast,
            on_step=on_step,
        )
    return m2ib_maps(
        encoder.tower,
        tokens,
        planes,
        texts,
        negatives,
        generators=[noise_generator(settings.seed, content) for content in contents],
        beta=[request.beta for request in requests],
        variance=settings.variance,
        layer=settings.layer,
        schedule=settings.schedule,
        contrast=settings.contrast,
        per_token=settings.method == "m2ib_token",
        on_step=on_step,
    )


@torch.no_grad()
def _patch_text(
    encoder: Encoder, tokens: torch.Tensor, requests: Sequence[SaliencyRequest], settings: SaliencySettings
) -> torch.Tensor:
    patches = F.normalize(encoder.tower.patch_features(tokens, settings.layer), dim=-1)
    maps = []
    for request in requests:
        similarity = patches[request.plane] @ request.text
        if settings.contrast and request.negatives is not None:
            similarity = similarity - settings.contrast * (patches[request.plane] @ request.negatives.T).mean(dim=1)
        maps.append(similarity)
    return torch.stack(maps).unflatten(1, encoder.tower.grid)


@torch.no_grad()
def patch_similarity(encoder: Encoder, tokens: torch.Tensor, fit: Fit, texts: torch.Tensor, layer: int) -> np.ndarray:
    """Return how similar each part of a plane is to each text: the cosine of projected patch and text.

    Parameters
    ----------
    encoder : Encoder
        The frozen CLIP.
    tokens : torch.Tensor
        [1, 1+P, D], output of block `layer` for the plane.
    fit : Fit
        How the plane was brought to the encoder's input.
    texts : torch.Tensor
        Features [T, E] of unit length.
    layer : int
        0-based block.

    Returns
    -------
    numpy.ndarray
        float32 [T, H, W].
    """
    patches = F.normalize(encoder.tower.patch_features(tokens, layer), dim=-1)[0]
    grid = (texts @ patches.T).float().unflatten(1, encoder.tower.grid)
    whole = F.interpolate(grid[None], size=(fit.size, fit.size), mode="bilinear", align_corners=False)[0]
    return fit.back(whole).cpu().numpy()


def _to_plane(grid: torch.Tensor, fit: Fit, settings: SaliencySettings) -> torch.Tensor:
    """Bring one map from the token grid to its plane: smooth, clip, bilinear, min-max over what is not padding."""
    saliency = grid.detach().float().cpu()[None, None]
    valid = fit.valid(grid.shape[-1])[None, None].float()
    if settings.smooth > 1:
        pad = settings.smooth // 2
        weight = F.avg_pool2d(valid, settings.smooth, 1, pad, count_include_pad=True)
        saliency = F.avg_pool2d(saliency * valid, settings.smooth, 1, pad, count_include_pad=True) / weight.clamp(1e-6)
    inside = saliency[valid.bool()]
    if settings.clip_percentile < 100 and inside.numel():
        saliency = saliency.clamp(max=float(torch.quantile(inside, settings.clip_percentile / 100)))
    saliency = F.interpolate(saliency, size=(fit.size, fit.size), mode="bilinear", align_corners=False)[0, 0]
    shown = saliency[fit.valid()]
    low, high = shown.min(), shown.max()
    if high <= low:
        return torch.zeros(fit.plane_shape)
    return fit.back(((saliency - low) / (high - low)).clamp(0, 1)).float()
