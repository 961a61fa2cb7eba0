"""Contrastive losses of image and text features behind one interface: DHN-NCE and what it is compared with.

All are written for s_ij = cos(image_i, text_j) / tau, pairs on the diagonal, computed in float32 under autocast too.
With N_i the negatives of row i, the direction from image to text of the InfoNCE family is

    L_i = -s_ii + log( a e^{s_ii} + sum_{j in N_i} w_ij e^{s_ij} ),
    w_ij = |N_i| e^{beta s_ij} / sum_{k in N_i} e^{beta s_ik},

the other direction takes columns, and the loss is the sum of the two means.

    InfoNCE   a = 1, beta = 0    van den Oord et al., arXiv 1807.03748; Radford et al. (CLIP), ICML 2021
    DCL       a = 0, beta = 0    Yeh et al., Decoupled Contrastive Learning, ECCV 2022
    HN-NCE    a = 1, beta > 0    Radenovic et al., Filtering, Distillation, and Hard Negatives (DiHT), CVPR 2023
    DHN-NCE   a = 0, beta > 0    Koleilat et al., MedCLIP-SAM, MICCAI 2024, equations 1 to 3

SigLIP (Zhai et al., ICCV 2023) judges each pair by itself.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from medclipsam.base.distributed import rank, world_size
from medclipsam.base.errors import InputError
from medclipsam.finetune.options import DECOUPLED, LossOptions

_SIGLIP_BIAS = -10.0


class ContrastiveLoss(nn.Module):
    """A loss of paired features.

    Parameters
    ----------
    options : LossOptions
        Which one.

    Examples
    --------
    >>> loss = ContrastiveLoss(LossOptions(loss="dcl", temperature=1.0))
    >>> eye = torch.eye(2)
    >>> float(loss(eye, eye))  # -1 + log(e^0), both ways
    -2.0
    """

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        self.options = options
        constants = options.constants()
        self.temperature = constants["temperature"]
        self.betas = (constants.get("beta1", 0.0), constants.get("beta2", 0.0))
        if options.loss == "siglip":
            self.log_scale = nn.Parameter(torch.tensor(-math.log(self.temperature)))
            self.bias = nn.Parameter(torch.tensor(_SIGLIP_BIAS))

    def forward(self, images: torch.Tensor, texts: torch.Tensor, captions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        images, texts : torch.Tensor
            [B, E] features, B at least 2, row i of one belongs to row i of the other; normalised here.
        captions : torch.Tensor, optional
            int64 [B]; pairs with the same number have the same caption and are no negatives of each other.

        Returns
        -------
        torch.Tensor
            float32 (float64 for float64 features), 0-dimensional.

        Raises
        ------
        InputError
            If the batch has less than two pairs, or the shapes differ.
        """
        if images.shape != texts.shape or images.ndim != 2:
            raise InputError(f"Features must be [B, E] for both; given {list(images.shape)} and {list(texts.shape)}.")
        if len(images) < 2:
            raise InputError("A contrastive loss needs at least two pairs in a batch; given 1.")
        with torch.autocast(images.device.type, enabled=False):
            wide = torch.float64 if images.dtype == torch.float64 else torch.float32
            cosine = F.normalize(images.to(wide), dim=-1) @ F.normalize(texts.to(wide), dim=-1).T
            own = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
            same = own if captions is None else captions[:, None] == captions[None, :]
            if self.options.loss == "siglip":
                return _siglip(cosine * self.log_scale.exp() + self.bias, own, same)
            scores = cosine / self.temperature
            decoupled = self.options.loss in DECOUPLED
            return _direction(scores, same, self.betas[0], decoupled) + _direction(
                scores.T, same, self.betas[1], decoupled
            )


def _direction(scores: torch.Tensor, same: torch.Tensor, beta: float, decoupled: bool) -> torch.Tensor:
    """Return the mean over rows; a row that has no negatives in this batch teaches nothing and is left out."""
    positive = scores.diagonal()
    negatives = (~same).sum(dim=1)
    usable = negatives > 0
    # Multiplied before it is masked, since 0 * -inf is NaN; rows without negatives are filled, for finite gradients.
    hidden = same & usable[:, None]

    def total(exponent: float) -> torch.Tensor:
        return torch.logsumexp((exponent * scores).masked_fill(hidden, -math.inf), dim=1)

    rest = negatives.clamp_min(1).to(scores.dtype).log() + total(1 + beta) - total(beta)
    if not decoupled:
        rest = torch.logaddexp(positive, rest)
    losses = torch.where(usable, rest - positive, 0.0)
    return losses.sum() / usable.sum().clamp_min(1)


def _siglip(logits: torch.Tensor, own: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    signs = torch.where(own, 1.0, -1.0).to(logits)
    counted = own | ~same
    return -(F.logsigmoid(signs * logits) * counted).sum() / len(logits)


def gather(features: torch.Tensor) -> torch.Tensor:
    """Join the features of all processes, in the order of their ranks.

    The gradient of a row goes to the process that it came from. Where each process computes the same loss from the
    joined features, its features get the gradient that they have in a single process; the gradients of shared
    parameters are then to be *summed* over processes.

    Parameters
    ----------
    features : torch.Tensor
        [B, ...], the same shape in each process.

    Returns
    -------
    torch.Tensor
        [world * B, ...]; the argument itself where there is one process.
    """
    if world_size() == 1:
        return features
    return _Gather.apply(features)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, features: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(features) for _ in range(world_size())]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.chunk(world_size())[rank()]
