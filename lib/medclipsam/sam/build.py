"""SAM models from a checkpoint file: the published architectures and small ones described by a dictionary."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medclipsam.base.errors import WeightsError
from medclipsam.sam.sam2_adapter import ARCHS, Sam2, build_base
from medclipsam.sam.segment_anything_adapter import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
    fuse_attention,
    sam_model_registry,
)
from medclipsam.sam.tiny_vit import EMBED_DIM, GRID, IMAGE_SIZE, TinyViT

# MedSAM is a vit_b with its own preprocessing.
SAM_NAMES = ("vit_h", "vit_l", "vit_b", "medsam", "lite_medsam", *ARCHS)
# Those whose parameters take hundreds of megabytes.
_LARGE = ("vit_h", "vit_l", "vit_b", "medsam")
PREPROCESSINGS = ("sam", "medsam", "lite_medsam", "sam2")
# Trained with boxes as prompts alone.
BOXES_ONLY = ("medsam", "lite_medsam", "medsam2")

_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_ARCH_KEYS = frozenset(
    {
        "image_size",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "mlp_ratio",
        "window_size",
        "global_attn_indexes",
        "prompt_dim",
        "mask_in_chans",
        "decoder_depth",
        "decoder_mlp_dim",
        "decoder_num_heads",
        "iou_head_depth",
        "iou_head_hidden_dim",
        "pixel_mean",
        "pixel_std",
    }
)

# Whether the weights were trained with masks as prompts; no part of the network.
_OPTIONAL_KEYS = frozenset({"mask_prompts"})


def build_sam(arch: str | Mapping[str, Any]) -> Sam | Sam2:
    """Build a SAM with random weights, in eval mode.

    Parameters
    ----------
    arch : str or mapping
        A published architecture, one of `SAM_NAMES`, or a description with the keys `image_size` and `patch_size`
        (pixels), `embed_dim`,
        `depth`, `num_heads`, `mlp_ratio`, `window_size` (0: all blocks attend globally) and `global_attn_indexes` of
        the image encoder, `prompt_dim` and `mask_in_chans` of the prompt encoder, `decoder_depth`,
        `decoder_mlp_dim`, `decoder_num_heads`, `iou_head_depth` and `iou_head_hidden_dim` of the mask decoder,
        `pixel_mean` and `pixel_std` (three numbers each, on the 0-255 scale). `mask_prompts` (bool, false by default)
        tells whether weights were trained with masks as prompts.

    Raises
    ------
    WeightsError
        If the name is unknown, or the description lacks a key, has an unknown one, or describes no SAM.
    """
    if isinstance(arch, str):
        if arch not in SAM_NAMES:
            raise WeightsError(f"There is no SAM architecture {arch!r}; allowed: {', '.join(SAM_NAMES)}.")
        if arch in ARCHS:
            return Sam2(build_base(arch))
        return _build_lite() if arch == "lite_medsam" else sam_model_registry["vit_b" if arch == "medsam" else arch]()
    if set(arch) - _OPTIONAL_KEYS != _ARCH_KEYS:
        missing, unknown = sorted(_ARCH_KEYS - set(arch)), sorted(set(arch) - _ARCH_KEYS - _OPTIONAL_KEYS)
        raise WeightsError(
            f"The SAM architecture lacks the keys {missing or 'none'} and has the unknown keys {unknown or 'none'}."
        )
    try:
        return _build_described(arch)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise WeightsError(f"The SAM architecture {dict(arch)} cannot be built: {error}.") from error


def _build_lite() -> Sam:
    """Build LiteMedSAM: SAM's prompt encoder and mask decoder behind a TinyViT for 256 pixels."""
    prompt_encoder = PromptEncoder(
        embed_dim=EMBED_DIM,
        image_embedding_size=(GRID, GRID),
        input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
        mask_in_chans=16,
    )
    decoder = MaskDecoder(
        transformer_dim=EMBED_DIM,
        transformer=TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8),
    )
    # Its input is scaled to [0, 1] by the preprocessing; mean and standard deviation are never applied.
    return Sam(TinyViT(), prompt_encoder, decoder, [0.0] * 3, [1.0] * 3).eval()


def _build_described(arch: Mapping[str, Any]) -> Sam:
    size, patch, dim = arch["image_size"], arch["patch_size"], arch["prompt_dim"]
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=patch,
        embed_dim=arch["embed_dim"],
        depth=arch["depth"],
        num_heads=arch["num_heads"],
        mlp_ratio=arch["mlp_ratio"],
        out_chans=dim,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=arch["window_size"],
        global_attn_indexes=tuple(arch["global_attn_indexes"]),
    )
    prompt_encoder = PromptEncoder(
        embed_dim=dim,
        image_embedding_size=(size // patch, size // patch),
        input_image_size=(size, size),
        mask_in_chans=arch["mask_in_chans"],
    )
    decoder = MaskDecoder(
        transformer_dim=dim,
        transformer=TwoWayTransformer(
            depth=arch["decoder_depth"],
            embedding_dim=dim,
            mlp_dim=arch["decoder_mlp_dim"],
            num_heads=arch["decoder_num_heads"],
        ),
        iou_head_depth=arch["iou_head_depth"],
        iou_head_hidden_dim=arch["iou_head_hidden_dim"],
    )
    return Sam(encoder, prompt_encoder, decoder, list(arch["pixel_mean"]), list(arch["pixel_std"])).eval()


def preprocessing_of(arch: str | Mapping[str, Any]) -> str:
    """Return how planes become the input of an architecture, one of `PREPROCESSINGS`."""
    if not isinstance(arch, str):
        return "sam"
    return "sam2" if arch in ARCHS else arch if arch in PREPROCESSINGS else "sam"


def speed_up(sam: Sam | Sam2) -> None:
    """Replace parts of an image encoder by faster ones with the same outputs (up to rounding), in place.

    Afterwards the network is for inference only: its state dictionary may differ from the checkpoint's.
    """
    if isinstance(sam.image_encoder, TinyViT):
        sam.image_encoder.fold()
    elif isinstance(sam, Sam):
        fuse_attention(sam.image_encoder)


def load_weights(path: Path, arch: str | Mapping[str, Any]) -> Sam | Sam2:
    """Build a SAM with the weights of a file: float32, on the CPU, eval mode, no parameter asking for a gradient.

    Parameters
    ----------
    path : Path
        `.safetensors`, or a PyTorch checkpoint: a state dictionary, or a dictionary that has one under "model" (as
        MedSAM's training script writes). Nothing in the file is executed.
    arch : str or mapping
        As in `build_sam`.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, holds something else, or holds another architecture.
    """
    state = _read_state(path)
    # The file's tensors become the parameters below, whatever is drawn at random here. For large networks nothing is
    # drawn, nor memory taken, on "meta"; for small ones that costs more than it saves, since torch then imports sympy
    # and its compiler.
    if arch in _LARGE:
        with torch.device("meta"):
            sam = build_sam(arch)
    else:
        with torch.random.fork_rng(devices=[]):
            sam = build_sam(arch)
    # SAM 2's weights are named as its package's network names them
    network = sam.base if isinstance(sam, Sam2) else sam
    _check_state(path, arch, network, state)
    network.load_state_dict(state, assign=True)
    return sam.float().requires_grad_(False)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise WeightsError(f"SAM weights {path}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"SAM weights {path}: the file is damaged or no checkpoint ({reason}).") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"SAM weights {path}: the file holds no state dictionary of tensors.")
    return content


def _check_state(
    path: Path, arch: str | Mapping[str, Any], sam: torch.nn.Module, state: dict[str, torch.Tensor]
) -> None:
    expected = sam.state_dict()
    wrong = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    if not any(wrong.values()):
        return
    counts = ", ".join(f"{len(keys)} {what} (first: {keys[0]})" for what, keys in wrong.items() if keys)
    asked = arch if isinstance(arch, str) else "SAM of the given description"
    patch_embedding = state.get("image_encoder.patch_embed.proj.weight")
    found = _WIDTHS.get(len(patch_embedding)) if patch_embedding is not None and patch_embedding.ndim else None
    hint = f"; the file looks like {found}" if found and "of another shape" in counts else ""
    raise WeightsError(f"SAM weights {path}: the file is no {asked}: tensors {counts}{hint}.")
