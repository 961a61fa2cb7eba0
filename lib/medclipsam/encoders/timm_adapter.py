"""What is used of the vision transformers of timm; most of it is not public, so that the version is bounded."""

from __future__ import annotations

from typing import Any

import torch

from medclipsam.base.errors import WeightsError
from medclipsam.encoders.towers import SplitTower


class TimmTower(SplitTower):
    """open_clip's `TimmModel` round a timm `VisionTransformer` trunk (BiomedCLIP), split at a block."""

    def __init__(self, visual: Any) -> None:
        self._trunk = visual.trunk
        self._head = visual.head
        self.n_blocks = len(self._trunk.blocks)
        self.n_prefix_tokens = self._trunk.num_prefix_tokens
        self.grid = tuple(self._trunk.patch_embed.grid_size)

    def prefix(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        trunk = self._trunk
        tokens = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(x))))
        return trunk.blocks[: layer + 1](tokens)

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        tokens = self._trunk.norm(self._trunk.blocks[layer + 1 :](tokens))
        return self._head(self._trunk.forward_head(tokens))

    def patch_features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        trunk = self._trunk
        if trunk.attn_pool is not None:
            raise WeightsError("The vision tower pools by attention, so its patches have no features of their own.")
        tokens = trunk.norm(trunk.blocks[layer + 1 :](tokens))[:, self.n_prefix_tokens :]
        return self._head(trunk.head(trunk.head_drop(trunk.fc_norm(tokens))))


def is_transformer(trunk: Any) -> bool:
    """Return whether a model of timm is a plain vision transformer."""
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(trunk, VisionTransformer)
