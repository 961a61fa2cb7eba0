"""Saliency maps: where in a plane is what the text says."""

from medclipsam.saliency.m2ib import m2ib_maps
from medclipsam.saliency.maps import SaliencyRequest, SaliencySettings, saliency_maps

__all__ = ["SaliencyRequest", "SaliencySettings", "m2ib_maps", "saliency_maps"]
