"""Image files to display planes, and masks back to the files' own geometry."""

from medclipsam.imaging.dicom import read_origin
from medclipsam.imaging.geometry import Grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.masks import has_place, read_mask, whole_labels
from medclipsam.imaging.overlay import draw_overlay, write_evidence, write_overlay
from medclipsam.imaging.read import read_image
from medclipsam.imaging.windows import Window
from medclipsam.imaging.write import write_map, write_mask

__all__ = [
    "Grid",
    "MedicalImage",
    "Window",
    "draw_overlay",
    "has_place",
    "read_image",
    "read_mask",
    "read_origin",
    "whole_labels",
    "write_evidence",
    "write_map",
    "write_mask",
    "write_overlay",
]
