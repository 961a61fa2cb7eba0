"""CLIP encoders, frozen, with their vision towers split at a block."""

from medclipsam.encoders.encoder import Encoder, PlaneInput
from medclipsam.encoders.fit import Fit, fit_plane
from medclipsam.encoders.load import load_demo, load_embedding_clip, load_folder, load_open_clip

__all__ = [
    "Encoder",
    "Fit",
    "PlaneInput",
    "fit_plane",
    "load_demo",
    "load_embedding_clip",
    "load_folder",
    "load_open_clip",
]
