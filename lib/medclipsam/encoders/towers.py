"""Vision towers split at a transformer block: suffix(prefix(x, l), l) equals the whole tower.

M2IB puts its bottleneck on the output of block l. Blocks 0..l then run once for an image, and only the rest runs again
in each optimisation step.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class _SplitTower:
    n_blocks: int

    def _check(self, layer: int) -> None:
        if not 0 <= layer < self.n_blocks:
            raise OptionError("layer", layer, f"a block of this vision tower, 0 to {self.n_blocks - 1}")


class OpenClipTower(_SplitTower):
    """open_clip's own `VisionTransformer`."""

    def __init__(self, visual: Any) -> None:
        if getattr(visual, "attn_pool", None) is not None:
            raise WeightsError(
                "The vision tower pools by attention; only class-token and average pooling are supported."
            )
        self._visual = visual
        self._blocks: Sequence[Any] = visual.transformer.resblocks
        self._batch_first = bool(visual.transformer.batch_first)
        self.n_blocks = len(self._blocks)
        self.n_prefix_tokens = 1
        self.grid = tuple(visual.grid_size)

    def prefix(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        return self._run(self._visual._embeds(x), 0, layer + 1)

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        pooled, _ = self._visual._pool(self._run(tokens, layer + 1, self.n_blocks))
        return pooled if self._visual.proj is None else pooled @ self._visual.proj

    def patch_features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        self._check(layer)
        patches = self._visual.ln_post(self._run(tokens, layer + 1, self.n_blocks))[:, 1:]
        return patches if self._visual.proj is None else patches @ self._visual.proj

    def _run(self, tokens: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if not self._batch_first:
            tokens = tokens.transpose(0, 1)
        for block in self._blocks[start:stop]:
            tokens = block(tokens)
        return tokens if self._batch_first else tokens.transpose(0, 1)


class TimmTower(_SplitTower):
    """open_clip's `TimmModel` round a timm `VisionTransformer` trunk (BiomedCLIP)."""

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


class EmbeddingTower(_SplitTower):
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
        If the tower is no plain vision transformer (a ResNet, say).
    """
    if isinstance(visual, EmbeddingVision):
        return EmbeddingTower(visual)
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(visual, TimmModel) and isinstance(visual.trunk, TimmVisionTransformer):
        return TimmTower(visual)
    trunk = getattr(visual, "trunk", visual)
    raise WeightsError(
        f"The vision tower is a {type(trunk).__name__}; saliency needs a vision transformer of open_clip or timm."
    )
