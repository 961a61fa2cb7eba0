"""The network of a plan, and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medclipsam.training.examples import IGNORE
from medclipsam.training.plan import Plan

_SMOOTH = 1e-5


class Network(nn.Module):
    """MONAI's DynUNet in two dimensions, with its supervised levels each on its own resolution.

    Parameters
    ----------
    plan : Plan
        Says levels, filters, channels and classes.
    """

    def __init__(self, plan: Plan) -> None:
        from monai.networks.nets import DynUNet

        super().__init__()
        self.body = DynUNet(
            spatial_dims=2,
            in_channels=plan.channels,
            out_channels=plan.n_classes + 1,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.filters,
            deep_supervision=plan.heads > 0,
            deep_supr_num=max(1, plan.heads),
        )
        self.heads = plan.heads

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return logits [B, classes + 1, h, w] of the finest level; in training those of the supervised levels too.

        DynUNet itself enlarges the lower levels to the finest; the label made smaller costs less and is nnU-Net's way.
        """
        out = [self.body.output_block(self.body.skip_layers(x))]
        if self.training and self.heads:
            out += self.body.heads
        return out


class FinestLevel(nn.Module):
    """A network's logits [B, classes + 1, h, w] of the finest level alone."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[0]


def dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 - the mean soft Dice of the classes (without the background), pooled over the batch.

    Pooling lets images without a class count: what is wrongly found there lowers the batch's Dice.

    Parameters
    ----------
    probabilities : torch.Tensor
        float [B, classes + 1, h, w].
    labels : torch.Tensor
        int64 [B, h, w]; pixels of value 255 do not count.
    """
    valid = (labels != IGNORE)[:, None]
    target = F.one_hot(torch.where(valid[:, 0], labels, 0), probabilities.shape[1]).permute(0, 3, 1, 2)
    target = (target * valid)[:, 1:]
    guess = (probabilities * valid)[:, 1:]
    axes = (0, 2, 3)
    both = (guess * target).sum(axes)
    total = guess.sum(axes) + target.sum(axes)
    return 1 - ((2 * both + _SMOOTH) / (total + _SMOOTH)).mean()


def generalised_cross_entropy(
    probabilities: torch.Tensor, labels: torch.Tensor, q: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean of (1 - p_y^q) / q: cross-entropy as q goes to 0, mean absolute error at 1.

    Zhang and Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy labels", NeurIPS
    2018, equation 6.

    Parameters
    ----------
    probabilities : torch.Tensor
        float [B, classes + 1, h, w].
    labels : torch.Tensor
        int64 [B, h, w]; pixels of value 255 do not count.
    q : float
        In (0, 1].
    weights : torch.Tensor, optional
        Of each class, [classes + 1].
    """
    valid = labels != IGNORE
    known = torch.where(valid, labels, 0)
    right = probabilities.gather(1, known[:, None])[:, 0].clamp_min(1e-7)
    each = (1 - right**q) / q
    share = valid.float() if weights is None else valid * weights[known]
    return (each * share).sum() / share.sum().clamp_min(1e-7)


class SegmentationLoss(nn.Module):
    """Dice plus (generalised) cross-entropy over all supervised levels, level i weighted by 1 / 2^i.

    Parameters
    ----------
    kind : {"dice_ce", "dice_gce"}
    q : float
        See `generalised_cross_entropy`.
    weights : sequence of float, optional
        Of each class in the cross-entropy, the background first.
    """

    weights: torch.Tensor | None

    def __init__(self, kind: str = "dice_ce", q: float = 0.7, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.q = q
        self.register_buffer("weights", None if weights is None else torch.tensor(weights, dtype=torch.float32))

    def forward(self, levels: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits [B, classes + 1, h_i, w_i] of each level, given int64 labels [B, h, w]."""
        shares = [0.5**index for index in range(len(levels))]
        losses = []
        for logits in levels:
            target = labels
            if logits.shape[2:] != labels.shape[1:]:
                target = F.interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
            losses.append(self._level(logits.float(), target))
        return sum(
            (share / sum(shares) * loss for share, loss in zip(shares, losses, strict=True)), labels.new_zeros(())
        )

    def _level(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        probabilities = logits.softmax(dim=1)
        if self.kind == "dice_gce":
            pixels = generalised_cross_entropy(probabilities, labels, self.q, self.weights)
        else:
            each = F.cross_entropy(logits, labels, weight=self.weights, ignore_index=IGNORE, reduction="sum")
            valid = labels != IGNORE
            share = valid.sum() if self.weights is None else self.weights[labels[valid]].sum()
            pixels = each / share.clamp_min(1e-7)
        return dice_loss(probabilities, labels) + pixels
