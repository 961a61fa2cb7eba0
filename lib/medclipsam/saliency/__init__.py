"""Saliency maps: where in a plane is what the text says."""

from medclipsam.saliency.m2ib import FAST, PUBLISHED, Schedule, m2ib_maps
from medclipsam.saliency.maps import SaliencyRequest, SaliencySettings, patch_similarity, saliency_maps
from medclipsam.saliency.nib import nib_maps

__all__ = [
    "FAST",
    "PUBLISHED",
    "SaliencyRequest",
    "SaliencySettings",
    "Schedule",
    "m2ib_maps",
    "nib_maps",
    "patch_similarity",
    "saliency_maps",
]
