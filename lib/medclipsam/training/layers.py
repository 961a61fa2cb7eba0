"""Labels of classes that may overlap: uint8 [n_layers, n_planes, H, W], the class on top of each pixel first."""

from __future__ import annotations

import numpy as np


def class_mask(layers: np.ndarray, index: int) -> np.ndarray:
    """Return where a class is, bool [...], on top or beneath another one.

    Parameters
    ----------
    layers : numpy.ndarray
        uint8 [n_layers, ...]: class indices.
    index : int
        The class.
    """
    inside: np.ndarray = (layers == index).any(axis=0)
    return inside


def class_masks(layers: np.ndarray, n_classes: int) -> np.ndarray:
    """Return where each class is, bool [classes, ...], in layers [n_layers, ...]."""
    return np.stack([class_mask(layers, index) for index in range(1, n_classes + 1)])


def close_up(layers: np.ndarray) -> np.ndarray:
    """Return layers in which every pixel has its classes at the top, each once, and no layer is empty.

    Layers get holes where a label that was on top is left out, or where two labels become one class.
    """
    closed = layers.copy()
    for upper in range(len(closed)):
        for lower in range(upper + 1, len(closed)):
            free = closed[upper] == 0
            closed[upper][free] = closed[lower][free]
            closed[lower][free | (closed[lower] == closed[upper])] = 0
    filled = [index for index in range(1, len(closed)) if closed[index].any()]
    return closed[[0, *filled]]
