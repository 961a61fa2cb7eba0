"""A CLIP whose vision tower begins with a frozen SAM image encoder: the image embedding is the tower's prefix.

The tower's own blocks are a small U-shaped convolutional network on the embedding (32 x 32 tokens). For every direction
of the text space that stands for a structure it says how much of each token that structure covers, p_k; the image
feature is the sum of the directions, each weighted by how much of its structure the image shows:

    q_k = log(1 + sum_i p_k(i)^2 / c) / log(1 + n_k / c)
    f   = sum_k q_k v_k + sum_g a_g sigmoid(g) v_g + a_rest v_rest,        image feature = f / |f|

n_k is the usual size of structure k in tokens, v are the orthonormal directions in which the text tower was taught, and
g are directions of the whole image (its modality, "a normal brain MRI"). The sum grows with every token of the
structure, however large or small it is, so that M2IB's gradient covers the structure and not its strongest part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from medclipsam.base.errors import OptionError
from medclipsam.encoders.fit import Fit

# Plane -> input of SAM's image encoder, float32 [3, size, size], and the (H, W) of the plane at its top left.
Prepare = Callable[[np.ndarray], tuple[torch.Tensor, tuple[int, int]]]


class Embedded(Protocol):
    """An image embedding: `features`, float [1, C, h, w]."""

    @property
    def features(self) -> torch.Tensor: ...


class Embedder(Protocol):
    """What embeds planes: a `medclipsam.sam.SamModel`, whose cache then serves CLIP, SAM and refinement alike.

    Attributes
    ----------
    identity : str
        sha256 of the SAM's weights.
    image_size : int
        Side of the image encoder's square input.
    prepare : callable
        See `Prepare`; can be sent to worker processes.
    image_encoder : torch.nn.Module
        The frozen network from inputs [B, 3, size, size] to embeddings [B, C, h, w].
    """

    identity: str

    @property
    def prepare(self) -> Prepare: ...

    @property
    def image_size(self) -> int: ...

    @property
    def image_encoder(self) -> nn.Module: ...

    def embed(self, plane: np.ndarray) -> Embedded: ...


@dataclass(frozen=True)
class EmbeddingInput:
    """Plane -> input of SAM's image encoder; see `Encoder.preprocess`."""

    prepare: Prepare
    size: int
    dtype: torch.dtype

    def __call__(self, plane: np.ndarray) -> torch.Tensor:
        """Return [3, size, size] on the CPU for uint8 [H, W, 3]."""
        return self.fitted(plane)[0]

    def fitted(self, plane: np.ndarray) -> tuple[torch.Tensor, Fit]:
        """Return the input and the way back to the plane."""
        pixels, (rows, columns) = self.prepare(plane)
        height, width = plane.shape[:2]
        return pixels.to(self.dtype), Fit((height, width), self.size, (0, height, 0, width), (0, rows, 0, columns))


def check_fit(fit: str) -> None:
    """Raise `OptionError` for a fit other than the one that SAM's image encoder was trained with."""
    if fit != "letterbox":
        raise OptionError("fit", fit, "letterbox, since these weights work on SAM's image embedding")


# Amount of a structure, in tokens, from which the feature grows as the logarithm.
_UNIT = 1.0


class _Norm(nn.Module):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-5)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


class _Block(nn.Module):
    """Depthwise convolution, normalisation and a pointwise network, added to the input."""

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = _Norm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x)))))


def _blocks(channels: int, depth: int, kernel: int = 5) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels, kernel) for _ in range(depth)))


class EmbeddingVision(nn.Module):
    """The tower's own blocks, from SAM's image embedding to the image feature.

    Parameters
    ----------
    config : mapping
        `channels` of the embedding, `side` of the token grid (a multiple of 4), `widths` (three, from the full grid to
        a quarter of it), `depths` (number of blocks: three on the way down, two on the way up), `embed_dim`,
        `structures` (names of the directions with a place in the image), `globals` (names of those of the whole image)
        and `global_shares` (the amount of each in the feature), `rest_share`.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    directions: torch.Tensor
    sizes: torch.Tensor
    shares: torch.Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, (fine, middle, coarse), depths = config["channels"], config["widths"], config["depths"]
        self.grid = (config["side"], config["side"])
        # Not a submodule: its weights are those of the SAM, and are neither stored nor trained here.
        self._embedder: tuple[Embedder, ...] = ()
        n_local, n_global = len(config["structures"]), len(config["globals"])
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("directions", torch.zeros(n_local + n_global + 1, config["embed_dim"]))
        self.register_buffer("sizes", torch.ones(n_local))
        self.register_buffer("shares", torch.tensor([*config["global_shares"], config["rest_share"]]))
        self.stem = nn.Sequential(nn.Conv2d(channels, fine, 1), _Norm(fine))
        self.fine = _blocks(fine, depths[0])
        self.down = nn.Conv2d(fine, middle, 2, 2)
        # What the stem leaves out of the embedding reaches the middle level by this way.
        self.beside = nn.Conv2d(channels, middle, 2, 2)
        self.middle = _blocks(middle, depths[1])
        self.down_again = nn.Conv2d(middle, coarse, 2, 2)
        self.coarse = _blocks(coarse, depths[2], kernel=7)
        self.up = nn.Conv2d(coarse, middle, 1)
        self.middle_up = _blocks(middle, depths[3])
        self.up_again = nn.Conv2d(middle, fine, 1)
        self.fine_up = _blocks(fine, depths[4])
        self.local = nn.Sequential(_Norm(fine), nn.Conv2d(fine, n_local, 1))
        self.whole = nn.Linear(2 * coarse, n_global)

    def attach(self, embedder: Embedder) -> None:
        """Say what makes the image embeddings."""
        self._embedder = (embedder,)

    @property
    def embedder(self) -> Embedder:
        """What makes the image embeddings."""
        return self._embedder[0]

    @torch.no_grad()
    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run SAM's image encoder on inputs [B, 3, size, size] and return tokens [B, P, C]."""
        return self.tokens(self.embedder.image_encoder(inputs.float()))

    def tokens(self, embedding: torch.Tensor) -> torch.Tensor:
        """Bring an image embedding [B, C, h, w] to the token grid, standardised: [B, P, C]."""
        factor = embedding.shape[-1] // self.grid[1]
        pooled = F.avg_pool2d(embedding.to(self.mean), factor) if factor > 1 else embedding.to(self.mean)
        return (pooled.flatten(2).transpose(1, 2) - self.mean) / self.deviation

    def logits(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of every structure at every token [B, K, rows, cols], and of the whole image [B, G]."""
        planes = tokens.transpose(1, 2).unflatten(2, self.grid)
        x = self.fine(self.stem(planes))
        y = self.middle(self.down(x) + self.beside(planes))
        z = self.coarse(self.down_again(y))
        y = self.middle_up(y + F.interpolate(self.up(z), scale_factor=2.0, mode="bilinear", align_corners=False))
        x = self.fine_up(x + F.interpolate(self.up_again(y), scale_factor=2.0, mode="bilinear", align_corners=False))
        whole = self.whole(torch.cat([z.mean(dim=(2, 3)), z.amax(dim=(2, 3))], dim=1))
        return self.local(x), whole

    def feature(self, local: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Return the image feature [B, E], not normalised, from the logits; see the module."""
        amount = torch.sigmoid(local).square().sum(dim=(2, 3))
        found = torch.log1p(amount / _UNIT) / torch.log1p(self.sizes / _UNIT)
        rest = torch.ones_like(whole[:, :1])
        held = torch.cat([torch.sigmoid(whole), rest], dim=1) * self.shares
        return torch.cat([found, held], dim=1) @ self.directions

    def patch_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the directions of each token weighted by what covers it: [B, P, E]."""
        local, _ = self.logits(tokens)
        covered = torch.sigmoid(local).flatten(2).transpose(1, 2)
        rest = (1 - covered.amax(dim=2, keepdim=True)).clamp_min(0)
        n_local = covered.shape[2]
        return covered @ self.directions[:n_local] + rest * self.directions[-1]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the image feature [B, E] of inputs [B, 3, size, size] of SAM's image encoder."""
        return self.feature(*self.logits(self.embed(inputs)))
