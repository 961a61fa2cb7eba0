"""A CLIP made of a vision tower of ours and open_clip's text transformer, rebuilt from its parts.

`open_clip.CLIP` cannot be had without open_clip's own vision towers, nor imported without torchvision, timm and
transformers. Names of parameters, and numbers up to rounding, are those of `open_clip.CLIP`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class _Block(nn.Module):
    """Attention and a pointwise network, each behind a layer normalisation and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class TwoTowerClip(nn.Module):
    """A CLIP with any vision tower.

    Parameters
    ----------
    visual : torch.nn.Module
        From images to features [B, embed_dim], not normalised.
    embed_dim, context_length, vocab_size, width, layers, heads : int
        Of the text tower, as in open_clip's `CLIPTextCfg`. A text's feature is read where its token id is greatest.
    """

    attn_mask: torch.Tensor

    def __init__(
        self,
        visual: nn.Module,
        *,
        embed_dim: int,
        context_length: int,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context_length, width))
        self.transformer = _Transformer(width, layers, heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        later = torch.full((context_length, context_length), float("-inf")).triu(1)
        self.register_buffer("attn_mask", later, persistent=False)

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Return the features [B, embed_dim] of images."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Return the features [B, embed_dim] of token ids, int64 [B, context_length]."""
        length = text.shape[1]
        x = self.token_embedding(text) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, self.attn_mask[:length, :length]))
        features = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)] @ self.text_projection
        return F.normalize(features, dim=-1) if normalize else features
