"""From saliency to visual prompts: coarse mask, components, boxes and points."""

from medclipsam.prompting.coarse import coarse_mask, kmeans_split, largest_components
from medclipsam.prompting.visual import VisualPrompt, boxes_of, sample_points, visual_prompt

__all__ = [
    "VisualPrompt",
    "boxes_of",
    "coarse_mask",
    "kmeans_split",
    "largest_components",
    "sample_points",
    "visual_prompt",
]
