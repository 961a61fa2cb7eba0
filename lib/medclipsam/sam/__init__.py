"""Promptable segmentation with SAM: frozen weights, one embedding a plane, many prompts, votes on candidates."""

from medclipsam.sam.build import PREPROCESSINGS, SAM_NAMES, build_sam
from medclipsam.sam.cache import Embedding, EmbeddingCache
from medclipsam.sam.model import MaskResult, SamModel, load_sam
from medclipsam.sam.voting import vote

__all__ = [
    "PREPROCESSINGS",
    "SAM_NAMES",
    "Embedding",
    "EmbeddingCache",
    "MaskResult",
    "SamModel",
    "build_sam",
    "load_sam",
    "vote",
]
