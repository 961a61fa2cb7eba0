"""Primitives that the phantoms are drawn with: coordinates, irregular outlines, smooth noise, a scanner's traces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Rng = np.random.Generator
Plane = np.ndarray


def between(rng: Rng, low: float, high: float) -> float:
    """Draw one number from [low, high)."""
    return float(rng.uniform(low, high))


def chance(rng: Rng, probability: float) -> bool:
    """Return True with the given probability."""
    return bool(rng.random() < probability)


def image_shape(rng: Rng, size: int, *, square: float = 0.5, widest: float = 1.5) -> tuple[int, int]:
    """Draw (height, width) whose longer side is `size`.

    Parameters
    ----------
    square : float
        Probability of a square image.
    widest : float
        Largest ratio of width to height; the smallest is 1 / 1.25.
    """
    if chance(rng, square):
        return size, size
    aspect = between(rng, 0.8, widest)
    return (round(size / aspect), size) if aspect >= 1 else (size, round(size * aspect))


def centred_grid(shape: tuple[int, int]) -> tuple[Plane, Plane]:
    """Return x (to the right) and y (down), both 0 at the image's centre and 1 at half the shorter side."""
    height, width = shape
    unit = min(height, width) / 2
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (x - (width - 1) / 2) / unit, (y - (height - 1) / 2) / unit


def posed_grid(
    rng: Rng,
    shape: tuple[int, int],
    *,
    degrees: float,
    scale: tuple[float, float],
    shift: float,
    warp: float,
) -> tuple[Plane, Plane]:
    """Return anatomical coordinates of every pixel under a random pose.

    Parameters
    ----------
    degrees, scale, shift : float, (float, float), float
        Bounds of the rotation, of the size of the anatomy, and of its displacement (in half sides).
    warp : float
        Amplitude of a smooth deformation (in half sides), so that no outline is exactly the formula's.
    """
    x, y = centred_grid(shape)
    x = x + warp * smooth_noise(rng, shape, max(shape) / 3) - between(rng, -shift, shift)
    y = y + warp * smooth_noise(rng, shape, max(shape) / 3) - between(rng, -shift, shift)
    turn = np.deg2rad(between(rng, -degrees, degrees))
    zoom = between(rng, *scale)
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    return (cos * x + sin * y).astype(np.float32), (-sin * x + cos * y).astype(np.float32)


def smooth_noise(rng: Rng, shape: tuple[int, ...], cell: float) -> Plane:
    """Return noise of about unit variance that varies over `cell` pixels."""
    height, width = shape
    rows, cols = (max(2, int(np.ceil(side / cell)) + 1) for side in (height, width))
    coarse = Image.fromarray(rng.standard_normal((rows, cols)).astype(np.float32))
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return fine / max(float(fine.std()), 1e-3) if rows * cols > 16 else fine


@dataclass(frozen=True)
class Outline:
    """An ellipse with an uneven edge.

    `rho` is 0 at the centre, 1 on the edge, and grows outwards.
    """

    x: float
    y: float
    rx: float
    ry: float
    angle: float = 0.0
    waves: tuple[tuple[int, float, float], ...] = ()

    @classmethod
    def draw(
        cls,
        rng: Rng,
        x: float,
        y: float,
        rx: float,
        ry: float,
        *,
        angle: float = 0.0,
        rough: float = 0.05,
        spikes: float = 0.0,
    ) -> Outline:
        """Draw an outline: `rough` bends it slowly, `spikes` sets many short spurs (a spiculated mass)."""
        waves = [(k, between(rng, -rough, rough), between(rng, 0, 6.283)) for k in (2, 3, 4, 5)]
        if spikes:
            waves += [(int(rng.integers(6, 14)), between(rng, 0, spikes), between(rng, 0, 6.283)) for _ in range(3)]
        return cls(x, y, rx, ry, angle, tuple(waves))

    def rho(self, x: Plane, y: Plane, grow: float = 1.0) -> Plane:
        """Return the relative distance of each pixel from the centre; `grow` scales the radii."""
        dx, dy = x - self.x, y - self.y
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = (cos * dx + sin * dy) / (self.rx * grow), (-sin * dx + cos * dy) / (self.ry * grow)
        distance = np.hypot(u, v)
        if not self.waves:
            return distance
        theta = np.arctan2(v, u)
        edge = np.ones_like(distance)
        for k, amplitude, phase in self.waves:
            edge += amplitude * np.cos(k * theta + phase)
        return distance / np.maximum(edge, 0.3)


def ramp(values: Plane, width: float) -> Plane:
    """Return a soft step: 0 well below zero, 1 well above, over about `width`."""
    return np.clip(values / width + 0.5, 0, 1)


def rescale(image: Plane, low: float, high: float) -> Plane:
    """Map [low, high] to [0, 1] and clip."""
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def tone(rng: Rng, image: Plane, *, gamma: tuple[float, float] = (0.65, 1.5)) -> Plane:
    """Apply a random intensity curve to an image in [0, 1]: gamma, contrast and brightness."""
    curved = np.clip(image, 0, 1) ** between(rng, *gamma)
    low, high = between(rng, 0, 0.12), between(rng, 0.8, 1.0)
    return low * chance(rng, 0.5) + curved * high


def detector(rng: Rng, image: Plane, *, blur: float, noise: float) -> Plane:
    """Blur an image in [0, 1], sometimes record it coarsely, and add Gaussian noise."""
    soft = ndimage.gaussian_filter(image, between(rng, 0.35, blur))
    if chance(rng, 0.2):
        height, width = soft.shape
        factor = between(rng, 0.45, 0.8)
        coarse = Image.fromarray(soft.astype(np.float32)).resize((round(width * factor), round(height * factor)))
        soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.standard_normal(soft.shape).astype(np.float32)
    if chance(rng, 0.4):
        grain = ndimage.gaussian_filter(grain, 0.7) * 2
    return soft + between(rng, 0.2, 1.0) * noise * grain


def to_uint8(image: Plane) -> np.ndarray:
    """Turn an image in [0, 1] to uint8."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_text(image: np.ndarray, text: str, at: tuple[int, int], grey: int, height: int) -> np.ndarray:
    """Burn a short text into a uint8 image [H, W] at (x, y)."""
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text(at, text, fill=grey, font=ImageFont.load_default(height))
    return np.asarray(picture).copy()
