"""The network of a plan, and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medclipsam.training.examples import IGNORE
from medclipsam.training.plan import Plan

_SMOOTH = 1e-5
_LEAST_SHARE = 1e-3


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
            out_channels=plan.n_outputs,
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.filters,
            deep_supervision=plan.heads > 0,
            deep_supr_num=max(1, plan.heads),
        )
        self.heads = plan.heads

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return logits [B, outputs, h, w] of the finest level; in training those of the supervised levels too.

        DynUNet itself enlarges the lower levels to the finest; the label made smaller costs less and is nnU-Net's way.
        """
        out = [self.body.output_block(self.body.skip_layers(x))]
        if self.training and self.heads:
            out += self.body.heads
        return out

    @torch.no_grad()
    def expect(self, shares: Sequence[float]) -> None:
        """Let every output begin with the probability that a pixel is in its class, by its bias.

        A sigmoid that begins at one half is driven far below the share of a small class within a few steps, from where
        it comes back slowly. Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4.1.

        Parameters
        ----------
        shares : sequence of float
            Of the pixels, of each output; less than 0.001 counts as that.
        """
        bias = torch.logit(torch.tensor(shares, dtype=torch.float32).clamp(_LEAST_SHARE, 1 - _LEAST_SHARE))
        heads = self.body.deep_supervision_heads if self.heads else []
        for block in (self.body.output_block, *heads):
            block.conv.conv.bias.copy_(bias)


class FinestLevel(nn.Module):
    """A network's logits [B, outputs, h, w] of the finest level alone."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[0]


def to_probabilities(logits: torch.Tensor, *, multilabel: bool) -> torch.Tensor:
    """Return logits [B, outputs, h, w] as probabilities.

    Parameters
    ----------
    logits : torch.Tensor
    multilabel : bool
        Whether each channel is a class that may overlap others (sigmoid); else the channels are the background and the
        classes, of which a pixel is one (softmax).
    """
    return logits.sigmoid() if multilabel else logits.softmax(dim=1)


def dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 - the mean soft Dice of the classes (without the background), pooled over the batch.

    Pooling lets images without a class count: what is wrongly found there lowers the batch's Dice.

    Parameters
    ----------
    probabilities : torch.Tensor
        float [B, classes + 1, h, w]; of classes that may overlap [B, classes, h, w].
    labels : torch.Tensor
        int64 [B, h, w]: the class of each pixel; of classes that may overlap [B, classes, h, w]: 1 inside and 0 outside
        of each. Pixels of value 255 do not count.
    """
    known = labels != IGNORE
    if labels.ndim == 4:
        return _pooled_dice_loss(probabilities * known, (labels == 1) * known)
    valid = known[:, None]
    target = F.one_hot(torch.where(valid[:, 0], labels, 0), probabilities.shape[1]).permute(0, 3, 1, 2)
    return _pooled_dice_loss((probabilities * valid)[:, 1:], (target * valid)[:, 1:])


def _pooled_dice_loss(guess: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
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
        float [B, classes + 1, h, w]; of classes that may overlap [B, classes, h, w].
    labels : torch.Tensor
        As in `dice_loss`. Where classes may overlap, y says for each of them whether a pixel is in it.
    q : float
        In (0, 1].
    weights : torch.Tensor, optional
        Of each channel of the probabilities.
    """
    valid = labels != IGNORE
    known = torch.where(valid, labels, 0)
    if labels.ndim == 4:
        right = torch.where(known == 1, probabilities, 1 - probabilities)
    else:
        right = probabilities.gather(1, known[:, None])[:, 0]
    each = (1 - right.clamp_min(1e-7) ** q) / q
    return _weighted_mean(each, valid, _by_pixel(known, weights))


def binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean over pixels and classes of the cross-entropy of each class with its absence.

    Parameters
    ----------
    logits : torch.Tensor
        float [B, classes, h, w].
    labels : torch.Tensor
        int64 [B, classes, h, w]: 1 inside and 0 outside of a class; pixels of value 255 do not count.
    weights : torch.Tensor, optional
        Of each class, [classes].
    """
    each = F.binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype), reduction="none")
    return _weighted_mean(each, labels != IGNORE, _by_pixel(labels, weights))


def _by_pixel(labels: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor | None:
    """Return the weight of each pixel: that of its class, or of the channel that it is in."""
    if weights is None:
        return None
    return weights[labels] if labels.ndim == 3 else weights[:, None, None]


def _weighted_mean(each: torch.Tensor, valid: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    share = valid.float() if weights is None else valid * weights
    return (each * share).sum() / share.sum().clamp_min(1e-7)


class SegmentationLoss(nn.Module):
    """Dice plus (generalised) cross-entropy over all supervised levels, level i weighted by 1 / 2^i.

    Of classes that may overlap the cross-entropy is the sum over the classes of that of each with its absence.

    Parameters
    ----------
    kind : {"dice_ce", "dice_gce"}
    q : float
        See `generalised_cross_entropy`.
    weights : sequence of float, optional
        Of each channel in the cross-entropy: of the background and each class, or of each class where they may overlap.
    """

    weights: torch.Tensor | None

    def __init__(self, kind: str = "dice_ce", q: float = 0.7, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.q = q
        self.register_buffer("weights", None if weights is None else torch.tensor(weights, dtype=torch.float32))

    def forward(self, levels: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits [B, classes + 1, h_i, w_i] of each level, given int64 labels [B, h, w].

        Of classes that may overlap both are [B, classes, h, w]; see `dice_loss`.
        """
        shares = [0.5**index for index in range(len(levels))]
        losses = []
        for logits in levels:
            target = labels
            if logits.shape[2:] != labels.shape[-2:]:
                layers = labels if labels.ndim == 4 else labels[:, None]
                smaller = F.interpolate(layers.float(), logits.shape[2:], mode="nearest-exact").long()
                target = smaller if labels.ndim == 4 else smaller[:, 0]
            losses.append(self._level(logits.float(), target))
        return sum(
            (share / sum(shares) * loss for share, loss in zip(shares, losses, strict=True)), labels.new_zeros(())
        )

    def _level(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        multilabel = labels.ndim == 4
        probabilities = to_probabilities(logits, multilabel=multilabel)
        if self.kind == "dice_gce":
            pixels = generalised_cross_entropy(probabilities, labels, self.q, self.weights)
        elif multilabel:
            pixels = binary_cross_entropy(logits, labels, self.weights)
        else:
            each = F.cross_entropy(logits, labels, weight=self.weights, ignore_index=IGNORE, reduction="sum")
            valid = labels != IGNORE
            share = valid.sum() if self.weights is None else self.weights[labels[valid]].sum()
            pixels = each / share.clamp_min(1e-7)
        # a pixel's classes are answers to as many questions
        return dice_loss(probabilities, labels) + (labels.shape[1] * pixels if multilabel else pixels)
