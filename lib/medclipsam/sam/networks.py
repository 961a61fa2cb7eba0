"""The networks of `segment_anything`, imported without its predictor and mask generator."""

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
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "TwoWayTransformer",
    "get_rel_pos",
    "sam_model_registry",
]
