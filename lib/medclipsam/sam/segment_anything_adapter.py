"""What is used of segment_anything, imported without its predictor and mask generator.

Its attention is replaced by PyTorch's fused kernel, which takes over the inner parts of the package's own.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from medclipsam.base.imports import import_part

import_part("segment_anything", "build_sam")

from segment_anything.build_sam import sam_model_registry  # noqa: E402
from segment_anything.modeling import (  # noqa: E402
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.image_encoder import Attention, get_rel_pos  # noqa: E402

__all__ = [
    "Attention",
    "FusedAttention",
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "TwoWayTransformer",
    "fuse_attention",
    "sam_model_registry",
]


class FusedAttention(nn.Module):
    """The numbers of `Attention` with relative positions, without its score matrices.

    The package makes the scores [B * heads, HW, HW] and adds to score (i, j) one term for the row and one for the
    column of key j, each a function of query i. Such a sum is itself a scalar product: of query i's terms for all
    rows and columns with the indicator of key j's row and column. Appended to queries and keys, the terms go through
    `scaled_dot_product_attention`, which never holds the matrix: memory grows with HW, not with its square.

    Parameters
    ----------
    attention : Attention
        Attention of an image-encoder block; its parameters are shared, under the same names.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.scale = attention.scale
        self.qkv = attention.qkv
        self.proj = attention.proj
        self.rel_pos_h = attention.rel_pos_h
        self.rel_pos_w = attention.rel_pos_w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend over tokens of shape [B, H, W, C]; the result has the same shape."""
        batch, height, width, _ = x.shape
        # [3, B, heads, HW, c]
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        grid = q.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, self.rel_pos_h)).flatten(2, 3)
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, self.rel_pos_w)).flatten(2, 3)
        is_row = torch.eye(height, device=x.device, dtype=x.dtype).repeat_interleave(width, dim=0)
        is_column = torch.eye(width, device=x.device, dtype=x.dtype).repeat(height, 1)
        indicators = torch.cat([is_row, is_column], dim=1).expand(batch, self.num_heads, -1, -1)
        q = torch.cat([q * self.scale, rows, columns], dim=-1)
        k = torch.cat([k, indicators], dim=-1)
        # The values are padded too, since the fused kernels want one width for all three.
        padded = F.pad(v, (0, height + width))
        y = F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]
        return self.proj(y.transpose(1, 2).reshape(batch, height, width, -1))


def fuse_attention(encoder: ImageEncoderViT) -> None:
    """Replace the attention of every block of an image encoder, in place; state-dict keys stay the same."""
    for block in encoder.blocks:
        if isinstance(block.attn, Attention) and block.attn.use_rel_pos:
            block.attn = FusedAttention(block.attn)
