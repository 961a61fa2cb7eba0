"""One vector for an image, from the CLIP image tower: what coverage and diversity are measured on."""

from __future__ import annotations

import numpy as np
import torch

from medclipsam.encoders import Encoder
from medclipsam.imaging import MedicalImage

# Planes of a volume that are looked at, evenly spread.
_PLANES = 8


def embed(image: MedicalImage, encoder: Encoder) -> np.ndarray:
    """Return an image's embedding.

    Parameters
    ----------
    image : MedicalImage
        A volume is looked at in eight planes, whose unit vectors are averaged.
    encoder : Encoder

    Returns
    -------
    numpy.ndarray
        float32 [E], unit length.
    """
    planes = np.unique(np.linspace(0, image.n_planes - 1, _PLANES).round().astype(int))
    inputs = torch.stack([encoder.preprocess(image.model_plane(int(index)))[0] for index in planes])
    mean = encoder.encode_images(inputs).mean(dim=0)
    vector: np.ndarray = torch.nn.functional.normalize(mean, dim=0).float().cpu().numpy()
    return vector
