"""Breast ultrasound phantoms: layered tissue under speckle, seen by a linear or a curved probe."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medclipsam.demo.drawing import (
    Outline,
    Plane,
    Rng,
    between,
    chance,
    image_shape,
    ramp,
    smooth_noise,
    to_uint8,
    write_text,
)


def draw_ultrasound(
    rng: Rng, size: int, pathology: bool
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, object]]:
    """Draw one breast ultrasound image.

    Returns
    -------
    image : numpy.ndarray
        uint8 [H, W] or [H, W, 3].
    masks : dict
        bool [H, W] of "breast tumour" (with pathology), "skin", "breast fat", "breast gland" and "chest muscle".
    facts : dict
        pathology, kind ("malignant", "benign", "cyst" or None), probe.
    """
    shape = image_shape(rng, size, square=0.35, widest=1.5)
    curved = chance(rng, 0.25)
    x, depth, seen = _probe(rng, shape, curved)
    plain = chance(rng, 0.12)

    wave = 0.02 * smooth_noise(rng, shape, shape[1] / 2.5)
    tilt = between(rng, -0.04, 0.04) * x
    top = between(rng, 0.0, 0.05) + 0.3 * wave
    skin_end = top + between(rng, 0.03, 0.08) + 0.3 * wave
    fat_end = skin_end + between(rng, 0.04, 0.24) + wave + tilt
    gland_end = fat_end + between(rng, 0.3, 0.6) - wave * between(rng, -1, 1) + tilt
    skin = seen & (depth >= top) & (depth < skin_end)
    fat = seen & (depth >= skin_end) & (depth < fat_end)
    gland = seen & (depth >= fat_end) & (depth < gland_end)
    muscle = seen & (depth >= gland_end) & (depth < gland_end + between(rng, 0.14, 0.5))
    beyond = seen & (depth >= gland_end) & ~muscle

    # Echo strength, before speckle, in [0, 1] of the log-compressed display.
    echo = np.zeros(shape, dtype=np.float32)
    gland_echo = between(rng, 0.42, 0.72)
    echo[skin] = between(rng, 0.72, 1.0)
    echo[fat] = gland_echo * between(rng, 0.4, 0.8)
    echo[gland] = gland_echo
    echo[muscle] = gland_echo * between(rng, 0.5, 0.95)
    echo[beyond] = between(rng, 0.05, 0.3)
    if not plain:
        echo += 0.11 * smooth_noise(rng, shape, size / between(rng, 8, 20)) * gland
        streaks = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (1.0, between(rng, 8, 20)))
        echo += between(rng, 0.3, 0.9) * streaks * (muscle + 0.5 * fat)
        for _ in range(int(rng.integers(0, 5))):
            lobule = Outline.draw(
                rng, between(rng, -1, 1), between(rng, 0.1, 0.6), between(rng, 0.06, 0.2), between(rng, 0.03, 0.07)
            )
            echo -= 0.12 * ramp(1 - lobule.rho(x, depth), 0.4) * (fat | gland)
        ligament = np.abs(smooth_noise(rng, shape, size / 5)) < 0.05
        echo += 0.12 * (ligament & (fat | gland))

    masks = {"skin": skin, "breast fat": fat, "breast gland": gland, "chest muscle": muscle}
    kind = None
    gain = np.ones(shape, dtype=np.float32)
    if pathology:
        kind = str(rng.choice(["malignant", "benign", "cyst"], p=[0.5, 0.38, 0.12]))
        tumour, echo, gain = _tumour(rng, x, depth, echo, gland_echo, float(np.median(fat_end)), kind)
        tumour &= seen & ~skin
        masks = {name: mask & ~tumour for name, mask in masks.items()}
        masks["breast tumour"] = tumour
    if not plain and chance(rng, 0.15):
        # An air gap or a rib: a dark stripe of no echo from some depth on. It is no mass: it has no lower end.
        start = between(rng, -1, 1)
        gain *= 1 - between(rng, 0.2, 0.5) * ramp(between(rng, 0.03, 0.1) - np.abs(x - start), 0.08) * (depth > 0.08)

    gain *= np.clip(1 + between(rng, -0.5, 0.15) * (depth - 0.25), 0.25, 1.3)
    speckle = _speckle(rng, shape, between(rng, 0.5, 1.3), between(rng, 0.7, 2.4))
    strength = between(rng, 0.25, 0.9) * (0.35 if plain else 1.0)
    image = np.clip(echo, 0.015, None) * gain * (1 + strength * (speckle - 1))
    image = ndimage.gaussian_filter(image, between(rng, 0.3, 0.8)) * seen
    image = np.clip(image * between(rng, 0.8, 1.4), 0, 1) ** between(rng, 0.75, 1.3)
    image = image + between(rng, 0.0, 0.03)
    pixels = to_uint8(image)
    pixels = _annotations(rng, pixels, size)
    if chance(rng, 0.12):
        tint = np.array([1.0, between(rng, 0.9, 1), between(rng, 0.75, 1)])
        pixels = (pixels[..., None] * tint).astype(np.uint8)
    facts: dict[str, object] = {"pathology": pathology, "kind": kind, "probe": "curved" if curved else "linear"}
    return pixels, masks, facts


def _probe(rng: Rng, shape: tuple[int, int], curved: bool) -> tuple[Plane, Plane, Plane]:
    """Return lateral position (about -1 to 1), depth (0 to about 1) and the pixels that the probe sees."""
    height, width = shape
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32)
    if curved:
        radius = between(rng, 0.25, 0.9) * height
        half_angle = between(rng, 0.45, 0.8)
        dx, dy = cols - width / 2, rows + radius * np.cos(half_angle)
        r, theta = np.hypot(dx, dy), np.arctan2(dx, dy)
        reach = height * between(rng, 0.9, 1.0) - radius * (1 - np.cos(half_angle))
        depth, x = (r - radius) / reach, theta / half_angle
        return x, depth, (depth >= 0) & (depth <= 1) & (np.abs(x) <= 1)
    x, depth = (cols - width / 2) / (width / 2), rows / height
    seen = np.ones(shape, dtype=bool)
    if chance(rng, 0.35):
        left, right = between(rng, 0, 0.16), between(rng, 0, 0.16)
        above, below = between(rng, 0, 0.1), between(rng, 0, 0.14)
        seen[:, : round(left * width)] = False
        seen[:, width - round(right * width) :] = False
        seen[: round(above * height)] = False
        seen[height - round(below * height) :] = False
        depth = (depth - above) / (1 - above - below)
        x = (x + right - left) / (1 - left - right)
    return x, depth, seen


def _tumour(
    rng: Rng, x: Plane, depth: Plane, echo: Plane, gland_echo: float, fat_end: float, kind: str
) -> tuple[Plane, Plane, Plane]:
    """Return the tumour's mask, the echo with it, and the gain behind it (shadow or enhancement)."""
    height, width = x.shape
    # x runs over half the width, depth over the height: a radius in depth is this many radii in x.
    stretch = 2 * height / width
    ry = between(rng, 0.05, 0.17)
    ratio = between(rng, 0.65, 1.4) if kind == "malignant" else between(rng, 1.0, 2.0)
    rx = min(ry * ratio * stretch, 0.55)
    centre_depth = float(np.clip(between(rng, fat_end + 0.3 * ry, 0.72), 0.1 + ry, 0.9 - ry))
    outline = Outline.draw(
        rng,
        between(rng, -0.65, 0.65),
        centre_depth,
        rx,
        ry,
        angle=between(rng, -0.3, 0.3),
        rough={"malignant": 0.1, "benign": 0.04, "cyst": 0.02}[kind],
        spikes=between(rng, 0.03, 0.16) if kind == "malignant" and chance(rng, 0.75) else 0.0,
    )
    rho = outline.rho(x, depth)
    inside = rho < 1
    core = (
        gland_echo
        * {
            "malignant": between(rng, 0.12, 0.42),
            "benign": between(rng, 0.2, 0.5),
            "cyst": between(rng, 0.0, 0.08),
        }[kind]
    )
    echo = echo.copy()
    if kind == "malignant" and chance(rng, 0.6):
        echo += between(rng, 0.05, 0.2) * np.exp(-(((rho - 1.15) / 0.15) ** 2))
    if kind != "malignant" and chance(rng, 0.6):
        echo += between(rng, 0.1, 0.3) * np.exp(-(((rho - 1.05) / 0.05) ** 2))
    alpha = ramp(1 - rho, between(rng, 0.03, 0.25))
    texture = between(rng, 0.0, 0.06) * smooth_noise(rng, x.shape, height / 18)
    echo = echo * (1 - alpha) + np.clip(core + texture, 0.01, None) * alpha
    if kind == "malignant" and chance(rng, 0.25):
        calcifications = (rng.random(x.shape) < 0.02) & (rho < 0.8)
        echo[calcifications] = between(rng, 0.6, 1.0)
    behind = ramp(rx * between(rng, 0.7, 1.0) - np.abs(x - outline.x), 0.12) * ramp(depth - outline.y, 0.08) * ~inside
    change = -between(rng, 0.0, 0.75) if kind == "malignant" else between(rng, -0.15, 0.5)
    gain = 1 + change * behind * np.clip(1.6 - (depth - outline.y), 0.4, 1)
    return inside, echo, gain.astype(np.float32)


def _speckle(rng: Rng, shape: tuple[int, int], axial: float, lateral: float) -> Plane:
    """Return fully developed speckle: the magnitude of a band-limited complex field, mean 1."""
    field = [ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), (axial, lateral)) for _ in range(2)]
    magnitude = np.hypot(*field)
    return magnitude / magnitude.mean()


def _annotations(rng: Rng, pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape
    if chance(rng, 0.25):
        column = width - 1 - int(rng.integers(1, 5))
        pixels[:: max(6, height // int(rng.integers(6, 14))), column - 2 : column] = 220
    if chance(rng, 0.15):
        text = str(rng.choice(["BREAST", "L 2:00", "R 10:00", "12 MHz", "DEPTH 4.0", "FR 24"]))
        at = (int(rng.integers(2, max(3, width // 2))), int(rng.choice([1, height - size // 14])))
        pixels = write_text(pixels, text, at, 230, max(8, size // 20))
    return pixels
