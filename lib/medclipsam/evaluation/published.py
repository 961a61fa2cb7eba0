"""The published figures, to stand beside ours: DSC and NSD in per cent.

Koleilat et al., Medical Image Analysis 107, 2025, 103749.

Zero-shot: a prompt for each image that names its class, and beta, variance and layer chosen on the masks of three
validation images (protocol A). Weakly supervised: a network trained on the zero-shot masks.
"""

PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "breast": {"zero-shot": (77.76, 81.11), "weakly supervised": (78.87, 84.58)},
    "brain": {"zero-shot": (76.52, 82.23), "weakly supervised": (80.03, 88.25)},
    "lung x-ray": {"zero-shot": (75.79, 80.88), "weakly supervised": (80.77, 84.53)},
    "lung CT": {"zero-shot": (80.38, 82.03), "weakly supervised": (88.78, 91.95)},
}
PUBLISHED_PROTOCOL = "A"
