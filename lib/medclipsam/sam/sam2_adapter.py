"""What is used of sam2: SAM 2's networks from the package's configurations, with the parts that `SamModel` asks for.

The package's predictors keep a whole video in memory and read it from files; its networks do not. Features of a plane
are packed into one tensor, so that they are cached, converted and shared as those of SAM are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from medclipsam.base.extras import missing_extra

# Architecture -> configuration of the package, and the side of the square input where it is another than there.
ARCHS: dict[str, tuple[str, int | None]] = {
    "sam2.1_hiera_tiny": ("sam2.1_hiera_t", None),
    "sam2.1_hiera_small": ("sam2.1_hiera_s", None),
    "sam2.1_hiera_base_plus": ("sam2.1_hiera_b+", None),
    "sam2.1_hiera_large": ("sam2.1_hiera_l", None),
    # MedSAM2 (Ma et al., 2025, arXiv 2504.03600) is a tiny one fine-tuned on planes of 512 pixels.
    "medsam2": ("sam2.1_hiera_t", 512),
}
# Input pixels to a cell of the coarsest features.
_STRIDE = 16
# On the 0-255 scale.
_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# The package's own setting of its decoder: of an unstable single mask the best of three takes the place.
_DECODER = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


def build_base(arch: str, size: int | None = None) -> Any:
    """Return the package's `SAM2Base` of an architecture with random weights, in eval mode.

    Parameters
    ----------
    arch : str
        One of `ARCHS`.
    size : int, optional
        Side of the square input, a multiple of 64; the architecture's own by default.

    Raises
    ------
    MissingExtraError
        If the package is not installed.
    """
    try:
        import sam2
        from hydra.utils import instantiate
        from omegaconf import OmegaConf
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None

    name, own_size = ARCHS[arch]
    size = size or own_size
    config = OmegaConf.load(Path(next(iter(sam2.__path__))) / "configs" / "sam2.1" / f"{name}.yaml").model
    config.sam_mask_decoder_extra_args = _DECODER
    if size is not None:
        config.image_size = size
        layer = config.memory_attention.layer
        for attention in (layer.self_attention, layer.cross_attention):
            attention.feat_sizes = [size // _STRIDE, size // _STRIDE]
    return instantiate(config, _recursive_=True).eval()


class Sam2(nn.Module):
    """SAM 2 as `SamModel` sees a SAM; `base` is the package's network.

    Parameters
    ----------
    base : sam2.modeling.sam2_base.SAM2Base
        The network.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.image_encoder = _ImageEncoder(base)
        self.prompt_encoder = _PromptEncoder(base)
        self.mask_decoder = _MaskDecoder(base, self.image_encoder)
        self.register_buffer("pixel_mean", torch.tensor(_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(_DEVIATION).view(-1, 1, 1), persistent=False)

    @staticmethod
    def postprocess_masks(
        masks: torch.Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> torch.Tensor:
        """Bring logits [B, M, h, w] to the plane; the plane was stretched over the whole input."""
        return F.interpolate(masks.float(), original_size, mode="bilinear", align_corners=False)


class _Part(nn.Module):
    """A part of `Sam2` that uses the network without owning its parameters a second time."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self._base = (base,)

    @property
    def base(self) -> Any:
        return self._base[0]


class _ImageEncoder(nn.Module):
    """Inputs [B, 3, S, S] to the packed features [B, N] of three levels, finest first."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        # owned, so that the parameters are seen by whoever converts or counts them
        self.trunk = base.image_encoder
        self.finest, self.finer = base.sam_mask_decoder.conv_s0, base.sam_mask_decoder.conv_s1
        self.img_size = int(base.image_size)
        cells = self.img_size // _STRIDE
        channels = base.hidden_dim
        self.shapes = [(channels // 8, 4 * cells, 4 * cells), (channels // 4, 2 * cells, 2 * cells)]
        self.shapes.append((channels, cells, cells))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        finest, finer, coarse = self.trunk(x)["backbone_fpn"]
        return torch.cat([part.flatten(1) for part in (self.finest(finest), self.finer(finer), coarse)], dim=1)

    def unpack(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return the features [B, C, h, w] of each level."""
        sizes = [channels * rows * columns for channels, rows, columns in self.shapes]
        parts = features.split(sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


class _PromptEncoder(_Part):
    """The package's, given boxes as its predictors give them: as two corner points before the others."""

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if boxes is not None:
            corners = boxes.reshape(-1, 2, 2)
            labels = torch.tensor([[2, 3]], dtype=torch.int, device=boxes.device).repeat(len(corners), 1)
            if points is not None:
                corners = torch.cat([corners, points[0]], dim=1)
                labels = torch.cat([labels, points[1]], dim=1)
            points = corners, labels
        sparse, dense = self.base.sam_prompt_encoder(points=points, boxes=None, masks=masks)
        return sparse, dense

    def get_dense_pe(self) -> torch.Tensor:
        """Return the positional encoding of the features' cells."""
        encoding: torch.Tensor = self.base.sam_prompt_encoder.get_dense_pe()
        return encoding

    @property
    def mask_input_size(self) -> tuple[int, int]:
        """Size of a mask as prompt."""
        rows, columns = self.base.sam_prompt_encoder.mask_input_size
        return rows, columns


class _MaskDecoder(_Part):
    """The package's, from packed features of a plane without memory."""

    def __init__(self, base: Any, encoder: _ImageEncoder) -> None:
        super().__init__(base)
        self._unpack = encoder.unpack

    def forward(
        self,
        *,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        finest, finer, coarse = self._unpack(image_embeddings)
        # a plane on its own: the package says so by this vector
        coarse = coarse + self.base.no_mem_embed.permute(0, 2, 1).unsqueeze(-1)
        masks, scores, _, _ = self.base.sam_mask_decoder(
            image_embeddings=coarse,
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse_prompt_embeddings,
            dense_prompt_embeddings=dense_prompt_embeddings,
            multimask_output=multimask_output,
            repeat_image=len(sparse_prompt_embeddings) > 1,
            high_res_features=[finest, finer],
        )
        return masks, scores


class Memory:
    """A structure's way through the planes of a volume in one direction, by SAM 2's memory of the planes before.

    Only the planes that the memory looks back on are kept, so that the bytes do not grow with the volume.

    Parameters
    ----------
    sam : Sam2
        The network.
    n_planes : int
        Planes of the volume.
    direction : {-1, 1}
        Towards lower or higher planes.
    """

    def __init__(self, sam: Sam2, n_planes: int, direction: int) -> None:
        self.sam = sam
        self.base = sam.base
        self.n_planes = n_planes
        self.direction = direction
        self._outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        self._depth = max(self.base.num_maskmem, self.base.max_obj_ptrs_in_encoder)

    @property
    def remembered(self) -> int:
        """Number of planes that are in memory."""
        return sum(map(len, self._outputs.values()))

    @torch.inference_mode()
    def begin(self, plane: int, features: torch.Tensor, mask: torch.Tensor) -> None:
        """Take a plane's mask, bool [H, W], as given; `features` are packed, [1, N]."""
        size = self.base.image_size
        given = mask[None, None].float()
        if given.shape[-2:] != (size, size):
            resized = F.interpolate(given, (size, size), mode="bilinear", align_corners=False, antialias=True)
            given = (resized >= 0.5).float()
        levels = self._levels(features)
        made = self._step(plane, levels, given)
        whole = F.interpolate(made["pred_masks"], (size, size), mode="bilinear", align_corners=False)
        memory, position = self.base._encode_new_memory(
            current_vision_feats=levels["current_vision_feats"],
            feat_sizes=levels["feat_sizes"],
            pred_masks_high_res=whole,
            object_score_logits=made["object_score_logits"],
            is_mask_from_pts=True,
        )
        made["maskmem_features"], made["maskmem_pos_enc"] = memory.to(torch.bfloat16), position
        self._outputs["cond_frame_outputs"][plane] = made

    @torch.inference_mode()
    def step(self, plane: int, features: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, float]:
        """Return the logits [H, W] of the next plane's mask, and the probability that the structure is there."""
        made = self._step(plane, self._levels(features), None)
        made["maskmem_features"] = made["maskmem_features"].to(torch.bfloat16)
        kept = self._outputs["non_cond_frame_outputs"]
        kept[plane] = made
        for old in [each for each in kept if abs(plane - each) >= self._depth]:
            del kept[old]
        logits = self.sam.postprocess_masks(made["pred_masks"], (), shape)[0, 0]
        return logits, float(made["object_score_logits"].sigmoid())

    def _step(self, plane: int, levels: dict[str, Any], mask: torch.Tensor | None) -> dict[str, Any]:
        made = self.base.track_step(
            frame_idx=plane,
            is_init_cond_frame=mask is not None,
            **levels,
            point_inputs=None,
            mask_inputs=mask,
            output_dict=self._outputs,
            num_frames=self.n_planes,
            track_in_reverse=self.direction < 0,
            run_mem_encoder=mask is None,
        )
        # a plane's masks at full resolution are large, and are not looked at again
        kept = ("maskmem_features", "maskmem_pos_enc", "pred_masks", "obj_ptr", "object_score_logits")
        return {name: made[name] for name in kept}

    def _levels(self, features: torch.Tensor) -> dict[str, Any]:
        """Return packed features as the package passes them on: [h * w, 1, C] a level, with positions and sizes."""
        levels = self.sam.image_encoder.unpack(features)
        encoding = self.base.image_encoder.neck.position_encoding
        return {
            "current_vision_feats": [level.flatten(2).permute(2, 0, 1) for level in levels],
            "current_vision_pos_embeds": [encoding(level).flatten(2).permute(2, 0, 1) for level in levels],
            "feat_sizes": [tuple(level.shape[-2:]) for level in levels],
        }
