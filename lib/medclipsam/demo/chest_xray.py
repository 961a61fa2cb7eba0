"""Frontal chest X-ray phantoms: what a body of soft tissue, air and bone casts on a film."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medclipsam.demo.drawing import (
    Outline,
    Plane,
    Rng,
    between,
    chance,
    detector,
    image_shape,
    posed_grid,
    ramp,
    smooth_noise,
    to_uint8,
    tone,
    write_text,
)


def draw_chest_xray(
    rng: Rng, size: int, pathology: bool
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, object]]:
    """Draw one frontal chest X-ray.

    Returns
    -------
    image : numpy.ndarray
        uint8 [H, W]; bone is bright, air dark, the patient's right at the image's left.
    masks : dict
        bool [H, W] of "left lung", "right lung", "lungs" (their union) and "heart"; the lungs are the visible lung
        fields, without what lies behind the heart and under the diaphragm.
    facts : dict
        pathology (an opacity in a lung), side.
    """
    shape = image_shape(rng, size, square=0.5, widest=1.3)
    plain = chance(rng, 0.12)
    x, y = posed_grid(rng, shape, degrees=6, scale=(0.82, 1.15), shift=0.08, warp=0.015)
    heart_outline = Outline.draw(
        rng,
        between(rng, 0.06, 0.17),
        between(rng, 0.18, 0.32),
        between(rng, 0.21, 0.34),
        between(rng, 0.2, 0.3),
        angle=between(rng, 0.15, 0.7),
        rough=0.04,
    )
    base = heart_outline.y + between(rng, 0.08, 0.24)
    fields = {side: _lung_field(rng, x, y, sign, base) for sign, side in ((-1, "right"), (1, "left"))}
    domes = {side: field[1] for side, field in fields.items()}
    abdomen = np.where(x < 0, y > domes["right"], y > domes["left"])
    heart = (heart_outline.rho(x, y) < 1) & ~(abdomen & (y > base + 0.03))
    mediastinum = np.abs(x - 0.02) < between(rng, 0.07, 0.12) + 0.05 * np.exp(-(((y + 0.25) / 0.15) ** 2))
    body = _body(rng, x, y)
    deep = ndimage.binary_erosion(body, iterations=max(2, size // 50), border_value=1)
    lungs = {side: field[0] & deep & ~heart & ~mediastinum for side, field in fields.items()}
    both = lungs["left"] | lungs["right"]

    film = np.where(body, between(rng, 0.5, 0.68), between(rng, 0.0, 0.1)).astype(np.float32)
    film += 0.05 * body * smooth_noise(rng, shape, size / 3)
    air = between(rng, 0.26, 0.46)
    # A lung is thinner at its edge, so the film darkens over a few pixels.
    film -= air * ndimage.gaussian_filter(both.astype(np.float32), between(rng, 0.8, size / 70))
    film[abdomen & body] += between(rng, 0.05, 0.16)
    film += between(rng, 0.08, 0.2) * ndimage.gaussian_filter((mediastinum & body & (y < base)).astype(np.float32), 4)
    film += between(rng, 0.08, 0.22) * ndimage.gaussian_filter(heart.astype(np.float32), between(rng, 0.8, 3))
    if not plain:
        film += _bones(rng, x, y, base) * body
        film += _vessels(rng, x, y, size) * both
        film -= between(rng, 0.08, 0.2) * ((np.abs(x) < 0.035) & (y < -0.2) & body)
        if chance(rng, 0.6):
            bubble = Outline.draw(rng, between(rng, 0.3, 0.45), base + between(rng, 0.22, 0.3), 0.12, 0.07)
            film -= between(rng, 0.1, 0.3) * ramp(1 - bubble.rho(x, y), 0.3) * abdomen
    side = None
    if pathology:
        side = "left" if chance(rng, 0.5) else "right"
        film += _opacity(rng, x, y, lungs[side], size)
    film = detector(rng, film, blur=1.6, noise=0.03)
    film *= 1 - between(rng, 0, 0.15) * (x**2 + y**2) / 2
    low, high = np.percentile(film, [between(rng, 0.2, 3), between(rng, 97, 99.8)])
    pixels = to_uint8(tone(rng, np.clip((film - low) / (high - low), 0, 1)))
    masks = {"left lung": lungs["left"], "right lung": lungs["right"], "lungs": both, "heart": heart}
    pixels, hidden = _borders(rng, pixels, size)
    masks = {name: mask & ~hidden for name, mask in masks.items()}
    return pixels, masks, {"pathology": pathology, "side": side}


def _lung_field(rng: Rng, x: Plane, y: Plane, sign: int, base: float) -> tuple[np.ndarray, Plane]:
    """Return one lung field and the height of its diaphragm over each column."""
    apex = between(rng, -0.8, -0.62)
    inner = between(rng, 0.07, 0.13)
    outer = between(rng, 0.62, 0.84)
    across = (sign * x - inner) / (outer - inner)
    # The right dome stands higher, as the liver pushes it up.
    rise = between(rng, 0.05, 0.16) + (0.03 if sign < 0 else 0.0)
    bend = np.clip(across, 0, 1.2)
    dome = base + rise * (2 * bend - 1) * np.abs(2 * bend - 1) - rise * 0.4 + between(rng, -0.03, 0.03)
    height = np.clip((base + 0.35 - y) / (base + 0.35 - apex), 0, None)
    power, lift = between(rng, 2.0, 3.2), between(rng, 0.15, 0.35)
    # The apex does not touch the spine: the inner edge leans outwards on the way up.
    leaning = across - lift * np.clip(height - 0.75, 0, None) * 1.5
    inside = (np.clip(across, 0, None) ** 2.4 + height**power < 1) & (leaning > 0) & (y < dome)
    return inside, dome


def _body(rng: Rng, x: Plane, y: Plane) -> np.ndarray:
    half = between(rng, 0.9, 1.25)
    neck = between(rng, 0.2, 0.34)
    shoulder = between(rng, -0.95, -0.74)
    slope = between(rng, 0.08, 0.3)
    torso = (np.abs(x) < half + 0.05 * y) & (y > shoulder + slope * np.clip(np.abs(x) - neck, 0, None) ** 1.5)
    return torso | (np.abs(x) < neck + 0.1 * np.clip(shoulder + 0.1 - y, 0, 1))


def _bones(rng: Rng, x: Plane, y: Plane, base: float) -> Plane:
    bones = np.zeros(x.shape, dtype=np.float32)
    across = np.abs(x)
    spacing = between(rng, 0.12, 0.18)
    drop, bow = between(rng, 0.15, 0.5), between(rng, 0.2, 0.6)
    strength = between(rng, 0.03, 0.12)
    # Posterior ribs run down and outwards, anterior ribs more steeply and fainter.
    for slant, share in ((drop, 1.0), (-1.6 * drop, between(rng, 0.0, 0.5))):
        phase = (y - slant * across + bow * across**2 + between(rng, 0, 1)) / spacing
        ridge = np.cos(2 * np.pi * phase)
        band = ramp(ridge - 0.35, 0.5)
        cortex = np.exp(-(((ridge - 0.35) / 0.22) ** 2))
        fade = ramp(0.92 - across, 0.15) * ramp(across - 0.06, 0.1) * ramp(base + 0.25 - y, 0.3)
        bones += strength * share * (band + 0.6 * cortex) * fade
    for sign in (-1, 1):
        clavicle = np.abs(y + 0.62 + between(rng, -0.08, 0.06) + between(rng, 0.1, 0.35) * (sign * x - 0.1))
        bones += 0.12 * ramp(0.032 - clavicle, 0.02) * ramp(sign * x - 0.08, 0.05) * ramp(0.85 - sign * x, 0.2)
    vertebra = np.cos(2 * np.pi * (y + between(rng, 0, 1)) / between(rng, 0.11, 0.16))
    bones += between(rng, 0.02, 0.08) * ramp(0.085 - across, 0.03) * (0.7 + 0.5 * (vertebra > -0.6))
    return bones


def _vessels(rng: Rng, x: Plane, y: Plane, size: int) -> Plane:
    ridges = ramp(0.16 - np.abs(smooth_noise(rng, x.shape, size / between(rng, 14, 26))), 0.2)
    hilum = np.exp(-((np.abs(x) - 0.18) ** 2 / 0.05 + (y - 0.0) ** 2 / 0.12))
    return between(rng, 0.05, 0.16) * (ridges * (0.15 + hilum)) + between(rng, 0.03, 0.12) * hilum


def _opacity(rng: Rng, x: Plane, y: Plane, lung: np.ndarray, size: int) -> Plane:
    rows, cols = np.nonzero(lung)
    pick = int(rng.integers(len(rows)))
    outline = Outline.draw(
        rng,
        float(x[rows[pick], cols[pick]]),
        float(y[rows[pick], cols[pick]]),
        between(rng, 0.08, 0.24),
        between(rng, 0.08, 0.24),
        rough=0.15,
    )
    patches = 1 + 0.35 * smooth_noise(rng, x.shape, size / 25)
    return between(rng, 0.1, 0.26) * ramp(1 - outline.rho(x, y), 0.6) * np.clip(patches, 0, 2) * lung


def _borders(rng: Rng, pixels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Burn in a side marker and cover the collimated edge; return the covered pixels too."""
    height, width = pixels.shape
    hidden = np.zeros(pixels.shape, dtype=bool)
    if chance(rng, 0.3):
        # The "R" stands at the patient's right, the image's left.
        letter, left = ("R", True) if chance(rng, 0.6) else ("L", False)
        column = int(between(rng, 0.02, 0.12) * width)
        at = (column if left else width - column - size // 14, int(between(rng, 0.03, 0.2) * height))
        pixels = write_text(pixels, letter, at, 250, max(9, size // 14))
    if chance(rng, 0.25):
        for side, extent in enumerate((height, height, width, width)):
            edge = int(between(rng, 0, 0.05) * extent)
            if edge:
                index: list[slice] = [slice(None), slice(None)]
                index[side // 2] = slice(0, edge) if side % 2 == 0 else slice(extent - edge, extent)
                hidden[tuple(index)] = True
        pixels = pixels.copy()
        pixels[hidden] = 0 if chance(rng, 0.75) else 255
    return pixels, hidden
