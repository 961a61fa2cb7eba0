"""Random changes of a training plane: geometry, contrast, resolution, marks and borders."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

Rng = np.random.Generator

_LETTERS = list("RLA0123456789.cmHz MI/TE:")


def smooth_field(rng: Rng, shape: tuple[int, ...], knots: int, amplitude: float) -> np.ndarray:
    """Return a smooth random field, float [H, W], of about the given amplitude."""
    field = rng.normal(size=(knots, knots))
    return amplitude * ndimage.zoom(field, (shape[0] / knots, shape[1] / knots), order=3)[: shape[0], : shape[1]]


def augment(
    image: np.ndarray, masks: np.ndarray, modality: str, rng: Rng, untouched: float
) -> tuple[np.ndarray, np.ndarray]:
    """Change a plane as other scanners, sequences and exports would.

    Parameters
    ----------
    image : numpy.ndarray
        uint8 [H, W].
    masks : numpy.ndarray
        bool [K, H, W].
    modality : str
        "US", "MR", "XR", "CT" or other; heads and breasts are mirrored, chests never (the heart is on the left).
    rng : numpy.random.Generator
        Decides everything.
    untouched : float
        Share of planes that are returned as they are.

    Returns
    -------
    numpy.ndarray, numpy.ndarray
        As given, maybe of another size.
    """
    if rng.random() < untouched:
        return image, masks
    if rng.random() < 0.8:
        image, masks = _moved(image, masks, modality, rng)
    if rng.random() < 0.3 and modality != "CT":
        image, masks = _cropped(image, masks, rng)
    image = _toned(image, modality, rng)
    if rng.random() < 0.2:
        image = _marked(image, rng)
    if rng.random() < 0.15:
        height, width = image.shape
        pad = [int(v) for v in rng.uniform(0, 0.18, 4) * (height, height, width, width)]
        border = int(rng.choice([0, 0, 0, 255, 30]))
        image = np.pad(image, (pad[:2], pad[2:]), constant_values=border)
        masks = np.pad(masks, ((0, 0), pad[:2], pad[2:]))
    return image, masks


def _moved(image: np.ndarray, masks: np.ndarray, modality: str, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape
    angle = math.radians(rng.uniform(-6, 6) if modality == "XR" else rng.uniform(-12, 12))
    if modality == "MR" and rng.random() < 0.12:
        angle += math.pi / 2 * int(rng.integers(1, 4))
    zoom = rng.uniform(0.8, 1.0) if rng.random() < 0.35 else rng.uniform(1.0, 1.45) if rng.random() < 0.5 else 1.0
    stretch = math.exp(rng.uniform(-0.14, 0.14) * (1.6 if modality == "XR" else 1.0))
    across = -1 if modality in ("US", "MR") and rng.random() < 0.5 else 1
    down = -1 if modality == "MR" and rng.random() < 0.08 else 1
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * down * stretch, sin * across], [-sin * down, cos * across / stretch]]) / zoom
    room = abs(1 - 1 / zoom) / 2 + 0.04
    shift = rng.uniform(-room, room, 2) * (height, width)
    centre = np.array([height / 2, width / 2])
    offset = centre - matrix @ centre + shift
    mode = "constant" if rng.random() < 0.7 else "nearest"
    moved = ndimage.affine_transform(image, matrix, offset, order=1, mode=mode)
    turned = [ndimage.affine_transform(mask.astype(np.uint8), matrix, offset, order=0) > 0 for mask in masks]
    return moved, np.stack(turned)


def _cropped(image: np.ndarray, masks: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape
    top, bottom = (int(v * height) for v in rng.uniform(0, 0.14, 2))
    left, right = (int(v * width) for v in rng.uniform(0, 0.14, 2))
    rows, columns = slice(top, height - bottom), slice(left, width - right)
    return image[rows, columns], masks[:, rows, columns]


def _toned(image: np.ndarray, modality: str, rng: Rng) -> np.ndarray:
    height, width = image.shape
    grey = image.astype(np.float32) / 255
    if rng.random() < 0.7:
        low, high = np.percentile(grey, rng.uniform(0, 8)), np.percentile(grey, rng.uniform(96, 100))
        grey = np.clip((grey - low) / max(high - low, 0.05), 0, 1)
        grey = grey ** math.exp(rng.uniform(-0.55, 0.55)) * rng.uniform(0.7, 1.1) + rng.uniform(0, 0.08)
    curve = rng.random()
    if curve < 0.12:  # all grey levels alike often
        grey = np.searchsorted(np.sort(grey.ravel()), grey.ravel()).reshape(grey.shape) / grey.size
    elif curve < 0.24:
        grey = np.clip(grey, 0, 1)
        grey = grey + 0.25 * np.sin(grey * math.pi * rng.uniform(0.5, 1.5)) * rng.choice([-1, 1])
    if modality in ("XR", "MR") and rng.random() < 0.1:
        grey = 1 - np.clip(grey, 0, 1)
    if rng.random() < 0.3:  # a coil's or a beam's uneven field
        grey = grey * (1 + np.clip(smooth_field(rng, grey.shape, 4, 0.18), -0.5, 0.5))
    if rng.random() < 0.3:  # a coarser matrix
        factor = rng.uniform(1.2, 3)
        small = (max(16, int(width / factor)), max(16, int(height / factor)))
        picture = Image.fromarray((np.clip(grey, 0, 1) * 255).astype(np.uint8)).resize(small, Image.Resampling.BILINEAR)
        grey = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    if rng.random() < 0.4:
        grey = grey + rng.normal(size=grey.shape) * rng.uniform(0.005, 0.06)
    if modality == "US" and rng.random() < 0.3:
        speckle = ndimage.gaussian_filter(rng.normal(size=grey.shape), rng.uniform(0.5, 1.2))
        grey = grey * (1 + speckle * rng.uniform(0.1, 0.5))
    return (np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _marked(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Burn letters, rulers and bars into the image, as exports do."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    height, width = image.shape
    for _ in range(int(rng.integers(1, 5))):
        tone = int(rng.integers(150, 256))
        x = int(rng.integers(0, width // 5 + 1) if rng.random() < 0.5 else rng.integers(3 * width // 4, width))
        y = int(rng.integers(0, height))
        kind = rng.random()
        if kind < 0.6:
            pen.text((x, y), "".join(rng.choice(_LETTERS, int(rng.integers(1, 10)))), fill=tone)
        elif kind < 0.8:
            pen.line((x, y, x, min(height, y + int(rng.integers(10, 80)))), fill=tone)
        else:
            pen.rectangle((x, y, x + int(rng.integers(2, 14)), y + int(rng.integers(2, 30))), fill=tone)
    return np.asarray(picture)
