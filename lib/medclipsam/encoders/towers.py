"""Vision towers split at a transformer block: suffix(prefix(x, l), l) equals the whole tower.

M2IB puts its bottleneck on the output of block l. Blocks 0..l then run once for an image, and only the rest runs again
in each optimisation step.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from medclipsam.base.errors import OptionError, WeightsError
from medclipsam.encoders.sam_clip import Embedder, EmbeddingVision


class Tower(Protocol):
    """A vision transformer that can be run in two halves.

    Attributes
    ----------
    n_blocks : int
        Number of transformer blocks.
    n_prefix_tokens : int
        Tokens before the patches (the class token).
    grid : tuple of int
        Rows and columns of the patch grid.
    """

    n_blocks: int
    n_prefix_tokens: int
    grid: tuple[int, int]

    def prefix(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """Run [B, 3, h, w] up to and with block `layer`: tokens [B, 1+P, D]."""
        ...

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        """Run tokens [B, 1+P, D] through the blocks after `layer`, the pooling and the projection: [B, E]."""
        ...

    def patch_features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        """Run tokens to the end and project each patch as if it were the pooled one: [B, P, E]."""
        ...


class SplitTower:
    """Base of towers: checks the block at which one is split."""

    n_blocks: int

    def _check(self, layer: int) -> None:
        if not 0 <= layer < self.n_blocks:
            raise OptionError("layer", layer, f"a block of this vision tower, 0 to {self.n_blocks - 1}")


class EmbeddingTower(SplitTower):
    """A vision tower on SAM's image embedding; its one block before the bottleneck is the embedding itself."""

    n_blocks = 1
    n_prefix_tokens = 0

    def __init__(self, visual: EmbeddingVision) -> None:
        self._visual = visual
        self.grid = visual.grid

    @property
    def embedder(self) -> Embedder:
        """What makes the image embeddings."""
        return self._visual.embedder

    def prefix(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        return self._visual.embed(x)

    def embed(self, plane: np.ndarray, layer: int) -> torch.Tensor:
        """Return the tokens [P, C] of a plane, uint8 [H, W, 3], by way of the SAM's cache."""
        self._check(layer)
        return self._visual.tokens(self._visual.embedder.embed(plane).features)[0]

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        return self._visual.feature(*self._visual.logits(tokens))

    def patch_features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        return self._visual.patch_features(tokens)


def split_tower(visual: Any) -> Tower:
    """Return the splittable view of an open_clip model's vision tower.

    Raises
    ------
    WeightsError
        If the tower is not a plain vision transformer (a ResNet, say).
    """
    if isinstance(visual, EmbeddingVision):
        return EmbeddingTower(visual)
    # open_clip and timm take seconds to import
    from medclipsam.encoders import open_clip_adapter, timm_adapter

    if open_clip_adapter.is_own_transformer(visual):
        return open_clip_adapter.OpenClipTower(visual)
    if open_clip_adapter.wraps_timm(visual) and timm_adapter.is_transformer(visual.trunk):
        return timm_adapter.TimmTower(visual)
    trunk = getattr(visual, "trunk", visual)
    raise WeightsError(
        f"The vision tower is a {type(trunk).__name__}; saliency needs a vision transformer of open_clip or timm."
    )
