"""Training examples of the demo SAM: phantoms and random shapes, augmented, with prompts as loose as zero-shot ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from medclipsam.demo.drawing import Outline, Rng, between, centred_grid, chance, image_shape, smooth_noise, to_uint8
from medclipsam.demo.phantoms import MODALITIES, make_phantom
from medclipsam.prompting import kmeans_split

# The network's input side in pixels.
SIZE = 256

# Small or rare structures are drawn more often.
_WEIGHTS = {"breast tumour": 2.0, "brain tumour": 2.0, "nodule": 3.0, "ventricles": 2.0, "heart": 1.5, "spine": 1.5}
# A box round the skull is a box round the brain: these take points or a coarse mask to tell them apart.
_NOT_BY_BOX = ("skull",)
# Sides of the saliency grids that zero-shot boxes come from, in tokens.
_GRIDS = (12, 24)


@dataclass(frozen=True)
class Example:
    """One image with prompts of one kind, all in pixels of the network's input.

    Parameters
    ----------
    image : ndarray
        uint8, shape [h, w], longest side `SIZE`.
    masks : ndarray
        bool, shape [K, h, w]: what each prompt means.
    boxes : ndarray or None
        float, shape [K, 4], [x0, y0, x1, y1] inclusive.
    points, labels : ndarray or None
        float, shape [K, N, 2], (x, y), and int, shape [K, N]: 1 inside, 0 outside.
    coarse : ndarray or None
        bool, shape [K, h, w]: masks as saliency maps give them, which are prompts beside the boxes round them.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray | None
    points: np.ndarray | None
    labels: np.ndarray | None
    coarse: np.ndarray | None = None


def draw_example(rng: Rng, phantom_seeds: Iterator[int], prompts: int, shapes: float) -> Example:
    """Draw an image, augment it, and prompt structures of it.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides everything but the phantom.
    phantom_seeds : iterator of int
        Seeds of the phantoms to use, one after the other.
    prompts : int
        Prompts (K), all of one kind; a structure may be prompted more than once.
    shapes : float
        Probability of random shapes in place of a phantom.
    """
    kind = rng.choice(["box", "points", "both", "coarse"], p=[0.5, 0.12, 0.13, 0.25])
    image, masks, weights = _draw_scene(rng, phantom_seeds, shapes, by_box=kind == "box")
    image, masks = _move(rng, image, masks)
    weights = weights * (masks.reshape(len(masks), -1).sum(axis=1) >= 20)
    if not weights.any():
        return draw_example(rng, phantom_seeds, prompts, shapes)
    chosen = rng.choice(len(masks), prompts, p=weights / weights.sum())
    masks = masks[chosen]
    image = _recolour(rng, image)

    if kind == "coarse":
        coarse = np.stack([coarse_mask(rng, mask) for mask in masks])
        return Example(image, masks, np.stack([true_box(mask) for mask in coarse]), None, None, coarse)
    boxes = None if kind == "points" else np.stack([draw_box(rng, mask) for mask in masks])
    points = labels = None
    if kind != "box":
        inside, outside = int(rng.integers(1, 9)), int(rng.integers(0, 4))
        drawn = [_draw_points(rng, mask, inside, outside) for mask in masks]
        points, labels = np.stack(drawn), np.tile([1] * inside + [0] * outside, (len(masks), 1))
    return Example(image, masks, boxes, points, labels)


def _draw_scene(
    rng: Rng, phantom_seeds: Iterator[int], shapes: float, *, by_box: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image [H, W], its masks [n, H, W] and how often each is to be drawn [n]."""
    if chance(rng, shapes):
        image, masks = draw_shapes(rng)
        return image, masks, np.ones(len(masks))
    modality = MODALITIES[rng.integers(len(MODALITIES))]
    phantom = make_phantom(modality, next(phantom_seeds), size=SIZE, pathology=True if chance(rng, 0.6) else None)
    image = phantom.image if phantom.image.ndim == 2 else phantom.image.mean(axis=2).astype(np.uint8)
    weights = [0.0 if by_box and name in _NOT_BY_BOX else _WEIGHTS.get(name, 1.0) for name in phantom.masks]
    return image, np.stack(list(phantom.masks.values())), np.array(weights)


def draw_shapes(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Draw smooth random shapes, each over the former ones, so that the model learns outlines beyond anatomy.

    Returns
    -------
    image : ndarray
        uint8, shape [H, W].
    masks : ndarray
        bool, shape [n, H, W]: the visible part of each shape; some are rings, some a pair at left and right.
    """
    shape = image_shape(rng, SIZE)
    x, y = centred_grid(shape)
    image = between(rng, 0.1, 0.9) + 0.08 * smooth_noise(rng, shape, between(rng, 2, 40))
    masks: list[np.ndarray] = []
    for _ in range(rng.integers(2, 7)):
        radius = float(np.exp(rng.uniform(np.log(0.04), np.log(0.6))))
        outline = Outline.draw(
            rng,
            between(rng, -0.9, 0.9),
            between(rng, -0.9, 0.9),
            radius,
            radius * between(rng, 0.4, 1),
            angle=between(rng, 0, np.pi),
            rough=between(rng, 0, 0.15),
        )
        drawn = outline.rho(x, y) < 1
        if chance(rng, 0.2):
            drawn |= drawn[:, ::-1]
        if chance(rng, 0.15):
            drawn &= ~ndimage.binary_erosion(drawn, iterations=int(rng.integers(4, 12)))
        if not drawn.any():
            continue
        masks = [earlier & ~drawn for earlier in masks] + [drawn]
        level = between(rng, 0, 1)
        if abs(level - image[drawn].mean()) < 0.12:
            level = (level + 0.4) % 1
        filling = level + between(rng, 0, 0.15) * smooth_noise(rng, shape, between(rng, 1, 12))
        image = np.where(drawn, filling, image)
    # A shape may lie outside the image altogether; even all of them may.
    visible = np.array(masks, dtype=bool).reshape(-1, *shape)
    return to_uint8(ndimage.gaussian_filter(image, between(rng, 0, 1.5))), visible


def _move(rng: Rng, image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop, flip, turn by quarters and rescale to the input size."""
    if chance(rng, 0.35):
        sides = [int(side * rng.uniform(0.6, 1)) for side in image.shape]
        top, left = (int(rng.integers(0, full - side + 1)) for full, side in zip(image.shape, sides, strict=True))
        window = (slice(top, top + sides[0]), slice(left, left + sides[1]))
        image, masks = image[window], masks[:, *window]
    if chance(rng, 0.5):
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    if chance(rng, 0.05):
        image, masks = image[::-1], masks[:, ::-1]
    if chance(rng, 0.03):
        image, masks = image.T, masks.transpose(0, 2, 1)
    if chance(rng, 0.12):
        image, _ = _fitted(image, masks[:0], int(rng.integers(128, SIZE)))
        masks = _fitted(image, masks, max(image.shape))[1]
    return _fitted(image, masks, SIZE)


def _fitted(image: np.ndarray, masks: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rescale so that the longest side of `image` is `size`; masks follow the image."""
    scale = size / max(image.shape)
    shape = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(shape, Image.Resampling.BILINEAR))
    moved = [
        np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(shape, Image.Resampling.BILINEAR)) > 127
        for mask in masks
    ]
    return resized, np.stack(moved) if moved else np.zeros((0, *resized.shape), bool)


def _recolour(rng: Rng, image: np.ndarray) -> np.ndarray:
    """Change gamma, contrast, shading, sharpness and noise; now and then invert."""
    values = image.astype(np.float32) / 255
    values = values ** np.exp(rng.uniform(-0.5, 0.5))
    if chance(rng, 0.04):
        values = 1 - values
    if chance(rng, 0.2):
        values = values * (1 + rng.uniform(0.05, 0.3) * smooth_noise(rng, values.shape, SIZE / 2))
    values = (values - 0.5) * rng.uniform(0.6, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    if chance(rng, 0.2):
        values = ndimage.gaussian_filter(values, rng.uniform(0.3, 1.6))
    if chance(rng, 0.3):
        strength, grain = rng.uniform(0.01, 0.07), rng.uniform(1, 3)
        noise = smooth_noise(rng, values.shape, grain) * strength
        values = values + (noise * 2 * values if chance(rng, 0.4) else noise)
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def draw_box(rng: Rng, mask: np.ndarray) -> np.ndarray:
    """Draw a box as users and saliency maps give it: close, loose and shifted, on the coarse grid, or drawn out.

    A box that is drawn out reaches too far on one side, as one round a tumour and its shadow does.
    """
    kind = rng.choice(["close", "loose", "grid", "drawn out"], p=[0.2, 0.25, 0.4, 0.15])
    if kind == "grid":
        return true_box(coarse_mask(rng, mask))
    if kind == "drawn out":
        box = jitter_box(rng, mask, 0.9, 1.2, 0.05)
        # Below is where shadows lie; the other sides now and then.
        side = int(rng.choice(4, p=[0.15, 0.15, 0.15, 0.55]))
        reach = rng.uniform(0.2, 0.9) * (box[2:] - box[:2])[side % 2] * (1 if side >= 2 else -1)
        box[side] = np.clip(box[side] + reach, 0, mask.shape[1 - side % 2] - 1)
        return box
    return jitter_box(rng, mask, *((0.97, 1.06, 0.03) if kind == "close" else (0.85, 1.4, 0.12)))


def true_box(mask: np.ndarray) -> np.ndarray:
    """Return the box [x0, y0, x1, y1], inclusive, of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=float)


def jitter_box(rng: Rng, mask: np.ndarray, least: float, most: float, shift: float) -> np.ndarray:
    """Scale each side of a mask's box by `least` to `most` and shift it by up to `shift` of its side."""
    box = true_box(mask)
    side = box[2:] - box[:2] + 1
    centre = (box[:2] + box[2:]) / 2 + rng.uniform(-shift, shift, 2) * side
    half = side * rng.uniform(least, most, 2) / 2
    limits = np.array([mask.shape[1] - 1, mask.shape[0] - 1], dtype=float)
    first = np.clip(centre - half, 0, limits - 1)
    return np.concatenate([first, np.clip(centre + half, first + 1, limits)])


def coarse_mask(rng: Rng, mask: np.ndarray) -> np.ndarray:
    """Return the mask as a saliency map would show it: a coarse grid, blurred and a little wrong, split in two.

    What is smaller than a token comes out many times too large, as it does in a real map.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws grid, blur, errors and threshold.
    mask : ndarray
        bool, shape [h, w], at most `SIZE` each, not empty.

    Returns
    -------
    ndarray
        bool, as mask: the parts that touch the mask; the mask itself where none does.
    """
    grid = int(rng.integers(_GRIDS[0], _GRIDS[1] + 1))
    square = np.zeros((SIZE, SIZE), np.float32)
    square[: mask.shape[0], : mask.shape[1]] = mask
    cells = F.adaptive_avg_pool2d(torch.from_numpy(square)[None], grid)[0].numpy()
    cells = ndimage.gaussian_filter(cells / cells.max(), rng.uniform(0, 0.7))
    cells = cells / cells.max() * rng.uniform(0.7, 1.3, cells.shape) + rng.normal(0, 0.04, cells.shape)
    smooth = F.interpolate(torch.from_numpy(cells).float()[None, None], (SIZE, SIZE), mode="bilinear")[0, 0].numpy()
    values = smooth[: mask.shape[0], : mask.shape[1]]
    split = kmeans_split(values)
    coarse = values > (values.max() * rng.uniform(0.2, 0.7) if split is None or chance(rng, 0.3) else split)
    labels, _ = ndimage.label(coarse)
    # Noise far away is no part of the structure: the largest components are kept later.
    beside = np.unique(labels[mask & coarse])
    # The only cell kept may lie in the padding when the structure is a line at the image's very edge.
    return np.isin(labels, beside) & coarse if len(beside) else mask


def _draw_points(rng: Rng, mask: np.ndarray, inside: int, outside: int) -> np.ndarray:
    source, rest = mask, ~mask
    if chance(rng, 0.4):
        source = coarse_mask(rng, mask)
        rest = ~(source | mask)
    positive = np.argwhere(source)
    negative = np.argwhere(rest) if rest.any() else np.argwhere(~mask)
    if not len(negative):
        negative = np.zeros((1, 2), dtype=int)
    rows = [positive[rng.integers(len(positive), size=inside)], negative[rng.integers(len(negative), size=outside)]]
    return np.concatenate(rows)[:, ::-1].astype(float)
