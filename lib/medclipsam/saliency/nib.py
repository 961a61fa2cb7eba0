"""NIB: the narrowing information bottleneck (Zhu et al., ICLR 2025, arXiv 2502.14889).

Z [1+P, D] is the output of vision block l; s(.) is the cosine of text and image feature that the blocks after l make of
it. The bottleneck is narrowed from all of Z to nothing along lambda Z; each element is given what it adds on the way:

    A = integral over lambda from 0 to 1 of  Z * ds/dZ (lambda Z)  ~  1/n sum_{i=1..n} Z * ds/dZ (i/n Z)

There is no noise, no trade-off and nothing is optimised. The elements' shares add up to s(Z) - s(0) as n grows. The map
is their sum over D, the class token dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from medclipsam.encoders.towers import Tower
from medclipsam.saliency.m2ib import fitting_term


def nib_maps(
    tower: Tower,
    tokens: torch.Tensor,
    planes: Sequence[int],
    positives: torch.Tensor,
    negatives: Sequence[torch.Tensor | None] | None = None,
    *,
    layer: int,
    steps: int = 10,
    contrast: float = 0.0,
    on_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Return the attribution of each pair of a plane and a target on the patch grid.

    Parameters
    ----------
    tower : Tower
        The frozen vision tower.
    tokens : torch.Tensor
        [B, 1+P, D], output of block `layer` for each of B planes.
    planes : sequence of int
        For each of N pairs, its plane's row in `tokens`.
    positives : torch.Tensor
        [N, E], the unit text feature of each pair's target.
    negatives : sequence of torch.Tensor or None, optional
        For each pair the unit text features [K, E] of its negative captions; used when `contrast` > 0.
    layer : int
        0-based block whose output `tokens` is.
    steps : int
        Points n on the way.
    contrast : float
        Weight of the mean similarity to the negatives that s subtracts.
    on_step : callable, optional
        Called after every point; may raise to stop.

    Returns
    -------
    torch.Tensor
        [N, rows, cols] float, of either sign, on the device of `tokens`.
    """
    z = tokens.detach()[list(planes)]
    total = torch.zeros_like(z)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            narrowed = (z * (step / steps)).requires_grad_(True)
            features = F.normalize(tower.suffix(narrowed, layer), dim=-1)
            fitting = fitting_term(features[:, None], positives, negatives, contrast)
            (slope,) = torch.autograd.grad(fitting.sum(), narrowed)
        total += slope
        if on_step is not None:
            on_step()
    attribution = (z * total / steps).sum(dim=2)
    return attribution[:, tower.n_prefix_tokens :].unflatten(1, tower.grid)
