"""A tiny SAM of random weights, and planes."""

from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam

from medclipsam.sam import SamModel, build_sam
from medclipsam.sam.segment_anything_adapter import fuse_attention

TINY: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "window_size": 3,
    "global_attn_indexes": [1],
    "prompt_dim": 32,
    "mask_in_chans": 4,
    "decoder_depth": 1,
    "decoder_mlp_dim": 32,
    "decoder_num_heads": 2,
    "iou_head_depth": 2,
    "iou_head_hidden_dim": 16,
    "pixel_mean": [120.0, 118.0, 110.0],
    "pixel_std": [60.0, 57.0, 55.0],
}


def random_sam(seed: int = 0) -> Sam:
    """A tiny SAM whose zero-initialised tables are random too, and whose masks hold both classes."""
    torch.manual_seed(seed)
    sam = build_sam(TINY)
    with torch.no_grad():
        for name, parameter in sam.image_encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.5)
        # Mask logits of random weights are nearly constant: spread them, or masks would be all or nothing.
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(40)
            mlp.layers[-1].bias.normal_(std=3)
    return sam


@pytest.fixture
def tiny_arch() -> dict[str, Any]:
    return dict(TINY)


@pytest.fixture
def reference_sam() -> Sam:
    """The package's own network, attention untouched."""
    return random_sam()


@pytest.fixture
def model() -> SamModel:
    """The same weights behind this library's interface."""
    sam = random_sam()
    fuse_attention(sam.image_encoder)
    return SamModel(sam, identity="weights-0")


@pytest.fixture(params=[(64, 64), (50, 90), (131, 77)], ids=lambda shape: f"{shape[0]}x{shape[1]}")
def plane(request: pytest.FixtureRequest) -> np.ndarray:
    """Random planes: the input size itself, wide, and higher than wide and larger than the input."""
    return np.random.default_rng(1).integers(0, 256, (*request.param, 3), dtype=np.uint8)
