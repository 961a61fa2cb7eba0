"""A second way to draw phantoms: filled polygons under power-law noise, for images unlike those of training.

It shares no drawing code with `medclipsam.demo.phantoms`, whose images the demo models learn from: outlines are
polygons filled by Pillow rather than implicit functions, and textures are made in the frequency domain. What a model
reaches here says how far it goes beyond the look of its own training images.

Coordinates are fractions of the image: x to the right, y down, (0, 0) the upper left corner.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from medclipsam.base.errors import InputError
from medclipsam.demo.phantoms import MODALITIES, Phantom

Rng = np.random.Generator
Points = np.ndarray

_SUPERSAMPLING = 3
_CORNERS = 96
# Apart from every stream that the phantoms' own generator draws from.
_STREAM = 7


def make_polygon_phantom(modality: str, seed: int, *, size: int = 256, pathology: bool | None = None) -> Phantom:
    """Draw one phantom; the arguments and the result are those of `medclipsam.demo.phantoms.make_phantom`.

    Raises
    ------
    InputError
        If the modality is unknown or the size too small.
    """
    if modality not in MODALITIES:
        raise InputError(f"Phantom modality {modality!r} is unknown; allowed: {', '.join(MODALITIES)}.")
    if size < 64:
        raise InputError(f"A phantom of {size} pixels is too small; at least 64.")
    rng = np.random.default_rng([_STREAM, MODALITIES.index(modality), seed])
    drawn = bool(rng.random() < 0.6)
    sick = drawn if pathology is None else pathology
    aspect = float(rng.uniform(0.85, 1.3)) if modality != "XR" else float(rng.uniform(0.85, 1.1))
    shape = (size, round(size / aspect)) if aspect > 1 else (round(size * aspect), size)
    draw = {"US": _ultrasound, "MR": _brain, "XR": _chest_xray, "CT": _chest_ct}[modality]
    picture, masks = draw(rng, shape, sick)
    image = (255 * np.clip(picture, 0, 1) + 0.5).astype(np.uint8)
    present = {name: mask for name, mask in masks.items() if mask.mean() >= 3e-4}
    return Phantom(image, modality, present, {"pathology": sick})


def _ultrasound(rng: Rng, shape: tuple[int, int], sick: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    x = np.linspace(0, 1, _CORNERS)

    def line(depth: float, swing: float) -> Points:
        waves = sum(np.sin(2 * np.pi * (k * x + rng.random())) / k for k in (1, 2, 3))
        return np.stack([x, depth + swing * waves / 2], axis=1)

    edges = [np.stack([x, np.zeros_like(x)], axis=1), line(rng.uniform(0.05, 0.08), 0.006)]
    for step in (rng.uniform(0.1, 0.2), rng.uniform(0.32, 0.45), rng.uniform(0.15, 0.3)):
        edges.append(line(float(edges[-1][:, 1].mean()) + step, 0.03))
    bands = [_fill(np.concatenate([top, low[::-1]]), shape) for top, low in pairwise(edges)]
    skin, fat, gland, muscle = (band > 0.5 for band in bands)
    fat, gland, muscle = fat & ~skin, gland & ~fat & ~skin, muscle & ~gland & ~fat
    gland_level = rng.uniform(0.45, 0.65)
    levels = (rng.uniform(0.8, 1.0), gland_level * rng.uniform(0.5, 0.75), gland_level, gland_level * 0.75)
    echo = np.full(shape, 0.12)
    for mask, level in zip((skin, fat, gland, muscle), levels, strict=True):
        echo[mask] = level
    grain = _field(rng, shape, 1.2, stretch=(1.0, 5.0))
    echo += 0.09 * grain * (fat | muscle) + 0.07 * _field(rng, shape, 1.6) * gland
    masks = {"skin": skin, "breast fat": fat, "breast gland": gland, "chest muscle": muscle}
    if sick:
        radius = rng.uniform(0.06, 0.13)
        centre = (rng.uniform(0.25, 0.75), float(edges[2][:, 1].mean()) + rng.uniform(0.12, 0.22))
        outline = _blob(rng, *centre, radius * rng.uniform(1.0, 1.5), radius, rough=rng.uniform(0.03, 0.12))
        cover = _fill(outline, shape)
        tumour = (cover > 0.5) & ~skin
        echo = echo * (1 - cover) + cover * gland_level * rng.uniform(0.1, 0.4)
        rows, columns = _grid(shape)
        behind = (np.abs(columns - centre[0]) < 0.8 * radius) & (rows > centre[1] + 0.8 * radius)
        echo *= 1 + rng.uniform(-0.45, 0.3) * _smooth(behind.astype(float), 4)
        masks = {name: mask & ~tumour for name, mask in masks.items()} | {"breast tumour": tumour}
    real, imaginary = (_field(rng, shape, 0.0, stretch=(1.0, 2.0), cut=0.35) for _ in range(2))
    speckle = np.hypot(real, imaginary) / 1.25
    rows, _ = _grid(shape)
    return np.clip(echo, 0.02, None) * (1 + rng.uniform(0.3, 0.6) * (speckle - 1)) * (1.1 - 0.35 * rows), masks


def _brain(rng: Rng, shape: tuple[int, int], sick: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    cx, cy = rng.uniform(0.47, 0.53, 2)
    rx, ry = rng.uniform(0.33, 0.38), rng.uniform(0.38, 0.44)
    turn = rng.uniform(-0.12, 0.12)
    head = _blob(rng, cx, cy, rx, ry, turn=turn, rough=0.012)
    middle = np.array([cx, cy])
    scalp, bone, gap = rng.uniform(0.05, 0.08), rng.uniform(0.06, 0.1), rng.uniform(0.01, 0.03)

    def shrunk(by: float) -> np.ndarray:
        return _fill(middle + (head - middle) * (1 - by), shape)

    outer, skull_out, skull_in, brain_in = shrunk(0), shrunk(scalp), shrunk(scalp + bone), shrunk(scalp + bone + gap)
    bright_fluid = bool(rng.random() < 0.4)
    fluid, grey, white, fat = (0.92, 0.62, 0.45, 0.6) if bright_fluid else (0.12, 0.42, 0.58, 0.9)
    signal = fat * outer * (1 - skull_out) + 0.04 * (skull_out - skull_in) + fluid * (skull_in - brain_in)
    # The cortex is what a wavy inner outline leaves.
    wave = 1 - 0.09 * (1 + np.sin(np.arange(_CORNERS) * 2 * np.pi * 13 / _CORNERS + rng.random())[:, None] / 2)
    inner = _fill(middle + (head - middle) * (1 - scalp - bone - gap) * wave, shape)
    signal += brain_in * (grey + (white - grey) * inner)
    masks = {"skull": (skull_out > 0.5) & (skull_in <= 0.5), "brain": brain_in > 0.5}
    ventricles = np.zeros(shape)
    size = rng.uniform(0.8, 1.3)
    for side in (-1, 1):
        front = _blob(rng, cx + side * 0.045, cy - 0.07, 0.024 * size, 0.085 * size, turn=side * 0.2 + turn, rough=0.08)
        back = _blob(rng, cx + side * 0.06, cy + 0.08, 0.02 * size, 0.075 * size, turn=-side * 0.35 + turn, rough=0.08)
        ventricles = np.maximum(ventricles, np.maximum(_fill(front, shape), _fill(back, shape)))
    signal = signal * (1 - ventricles) + fluid * ventricles
    masks["ventricles"] = ventricles > 0.5
    if sick:
        angle, far = rng.choice([0.0, np.pi]) + rng.uniform(-1, 1), rng.uniform(0.4, 0.65)
        radius = rng.uniform(0.05, 0.1)
        place = (cx + far * rx * 0.7 * np.cos(angle), cy + far * ry * 0.7 * np.sin(angle))
        cover = _fill(_blob(rng, *place, radius, radius * rng.uniform(0.8, 1.2), rough=0.07), shape) * brain_in
        signal = signal * (1 - cover) + rng.uniform(0.85, 1.0) * cover
        tumour = cover > 0.5
        masks["ventricles"] &= ~tumour
        masks["brain tumour"] = tumour
    signal += 0.03 * _field(rng, shape, 1.5) * outer
    noise = [0.03 * rng.standard_normal(shape) for _ in range(2)]
    return np.hypot(signal * (1 + 0.08 * _field(rng, shape, 3.0)) + noise[0], noise[1]), masks


def _chest_xray(rng: Rng, shape: tuple[int, int], sick: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows, columns = _grid(shape)
    body = _fill(
        _curve([(0.06, 1.0), (0.02, 0.35), (0.3, 0.08), (0.5, 0.02), (0.7, 0.08), (0.98, 0.35), (0.94, 1.0)]), shape
    )
    picture = 0.04 + 0.58 * body
    shift, top, bottom = rng.uniform(-0.02, 0.02), rng.uniform(0.1, 0.17), rng.uniform(0.72, 0.82)
    lungs = {}
    for name, side in (("right lung", -1), ("left lung", 1)):

        def at(out: float, y: float, side: int = side) -> tuple[float, float]:
            return 0.5 + shift + side * (out + float(rng.normal(0, 0.006))), y + float(rng.normal(0, 0.006))

        corners = [
            *(at(0.1, top + 0.02), at(0.17, top), at(0.27, top + 0.12), at(0.34, 0.45), at(0.36, bottom)),
            *(at(0.22, bottom - 0.05), at(0.1, bottom - 0.02), at(0.07, 0.5), at(0.075, 0.3)),
        ]
        lungs[name] = _fill(_curve(corners), shape)
    heart_corners = [
        *((0.44, 0.42), (0.5, 0.36), (0.57, 0.4), (0.62, 0.5), (0.68, 0.62), (0.7, 0.72), (0.6, 0.77), (0.46, 0.76)),
        (0.41, 0.64),
    ]
    wide = rng.uniform(0.85, 1.1)
    heart = _fill(_curve([(0.5 + shift + (px - 0.5) * wide, py) for px, py in heart_corners]), shape)
    for cover in lungs.values():
        picture -= rng.uniform(0.36, 0.44) * cover * (1 - heart)
    picture += 0.2 * heart * body + 0.18 * body * np.exp(-(((columns - 0.5 - shift) / 0.04) ** 2))
    phase, gap = rng.random(), rng.uniform(0.075, 0.095)
    ribs = np.sin(2 * np.pi * ((rows + 0.35 * (np.abs(columns - 0.5) - 0.2) ** 2 * 4) / gap + phase)) > 0.55
    chest = (rows > top) & (rows < bottom)
    picture += 0.07 * _smooth((ribs & chest).astype(float), 1.5) * body
    for side in (-1, 1):
        collar = [(0.5 + side * 0.06, top + 0.07), (0.5 + side * 0.22, top + 0.01), (0.5 + side * 0.38, top - 0.03)]
        picture += 0.1 * _stroke(collar, 0.025, shape) * body
    if sick:
        name = str(rng.choice(list(lungs)))
        inside = np.argwhere(lungs[name] * (1 - heart) > 0.5)
        y, x = inside[rng.integers(len(inside))] / np.array(shape)
        patch = _fill(_blob(rng, x, y, rng.uniform(0.05, 0.1), rng.uniform(0.05, 0.1), rough=0.15), shape)
        picture += rng.uniform(0.12, 0.22) * _smooth(patch, 5) * lungs[name]
    masks: dict[str, np.ndarray] = {name: (cover > 0.5) & (heart <= 0.5) for name, cover in lungs.items()}
    masks["lungs"] = masks["right lung"] | masks["left lung"]
    masks["heart"] = heart > 0.5
    picture = _smooth(picture, 1.0) + 0.03 * _field(rng, shape, 1.8) + 0.015 * rng.standard_normal(shape)
    return picture ** rng.uniform(0.8, 1.2) if picture.min() > 0 else np.clip(picture, 0, 1), masks


def _chest_ct(rng: Rng, shape: tuple[int, int], sick: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    abdomen = not sick and bool(rng.random() < 0.2)
    cx, cy = 0.5 + rng.uniform(-0.02, 0.02), 0.52
    rx, ry = rng.uniform(0.4, 0.45), rng.uniform(0.32, 0.38)
    body = _fill(_blob(rng, cx, cy, rx, ry, rough=0.015), shape)
    inside = _fill(_blob(rng, cx, cy, rx * 0.94, ry * 0.92, rough=0.01), shape)
    # Lungs keep within the ribs.
    cavity = _fill(_blob(rng, cx, cy, rx * 0.8, ry * 0.78, rough=0.01), shape)
    soft = rng.uniform(0.6, 0.75)
    picture = 0.02 + body * (soft - 0.16) + inside * 0.16
    spine_at = (cx, cy + 0.68 * ry)
    bone = np.maximum(
        _fill(_blob(rng, *spine_at, 0.055, 0.05, rough=0.05), shape),
        _stroke([(cx, spine_at[1] + 0.03), (cx, spine_at[1] + 0.1)], 0.022, shape),
    )
    masks: dict[str, np.ndarray] = {}
    if abdomen:
        liver = _fill(_blob(rng, cx - 0.17, cy - 0.02, 0.2, 0.2, rough=0.05), shape) * inside
        spleen = _fill(_blob(rng, cx + 0.27, cy + 0.05, 0.07, 0.12, rough=0.06), shape) * inside
        picture += 0.12 * liver + 0.1 * spleen
    else:
        heart = _fill(_blob(rng, cx + 0.05, cy - 0.08, 0.12, 0.12, turn=0.5, rough=0.04), shape)
        lungs = {}
        for name, side in (("right lung", -1), ("left lung", 1)):
            width = rng.uniform(0.135, 0.16)
            outline = _blob(rng, cx + side * 0.21, cy + 0.01, width, ry * 0.72, turn=side * 0.12, rough=0.05)
            lungs[name] = _fill(outline, shape) * cavity * (1 - heart) * (1 - bone)
            picture = picture * (1 - lungs[name]) + rng.uniform(0.08, 0.16) * lungs[name]
        vessels = np.clip(_field(rng, shape, 1.0) - 1.6, 0, 1)
        picture += 0.35 * vessels * (lungs["right lung"] + lungs["left lung"])
        picture += 0.05 * heart
        masks = {name: cover > 0.5 for name, cover in lungs.items()}
        if sick:
            name = str(rng.choice(list(lungs)))
            deep = np.argwhere(_smooth(lungs[name], 5) > 0.95)
            y, x = deep[rng.integers(len(deep))] / np.array(shape)
            radius = rng.uniform(0.02, 0.04)
            cover = _fill(_blob(rng, x, y, radius, radius, rough=0.08), shape)
            picture = picture * (1 - cover) + rng.uniform(0.65, 0.8) * cover
            masks["nodule"] = (cover > 0.5) & masks[name]
        masks["lungs"] = masks["right lung"] | masks["left lung"]
        masks["heart"] = (heart > 0.5) & ~masks["lungs"]
    picture = picture * (1 - bone) + rng.uniform(0.9, 1.0) * bone
    masks["spine"] = bone > 0.5
    for angle in np.linspace(0.15, np.pi - 0.15, 6):
        for side in (-1, 1):
            place = (cx + side * 0.87 * rx * np.sin(angle), cy - 0.87 * ry * np.cos(angle))
            rib = _fill(_blob(rng, *place, 0.022, 0.011, turn=side * (np.pi / 2 - angle), rough=0.05), shape)
            picture = np.maximum(picture, 0.95 * rib)
    return _smooth(picture, 0.7) + 0.025 * rng.standard_normal(shape) + 0.015 * _field(rng, shape, 1.0), masks


def _blob(rng: Rng, x: float, y: float, rx: float, ry: float, *, turn: float = 0.0, rough: float = 0.05) -> Points:
    """Return the corners of an uneven ellipse, float [K, 2]."""
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = 1 + sum(rough / k * rng.normal() * np.cos((k + 1) * angle + 2 * np.pi * rng.random()) for k in range(1, 7))
    u, v = rx * radius * np.cos(angle), ry * radius * np.sin(angle)
    return np.stack([x + np.cos(turn) * u - np.sin(turn) * v, y + np.sin(turn) * u + np.cos(turn) * v], axis=1)


def _curve(corners: list[tuple[float, float]]) -> Points:
    """Return a closed Catmull-Rom curve through corners, float [K, 2]."""
    p = np.asarray(corners)
    t = np.linspace(0, 1, 16, endpoint=False)[None, :, None]
    a, b, c, d = (np.roll(p, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


def _fill(points: Points, shape: tuple[int, int]) -> np.ndarray:
    """Return how much of each pixel a polygon covers, float [H, W] in [0, 1]."""
    height, width = shape
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    corners = points * [canvas.width, canvas.height]
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners], fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64) / 255


def _stroke(points: list[tuple[float, float]], width: float, shape: tuple[int, int]) -> np.ndarray:
    """Return how much of each pixel a line covers; its width is a fraction of the image's width."""
    canvas = Image.new("L", (shape[1] * _SUPERSAMPLING, shape[0] * _SUPERSAMPLING))
    corners = [(x * canvas.width, y * canvas.height) for x, y in points]
    ImageDraw.Draw(canvas).line(corners, fill=255, width=max(1, round(width * canvas.width)), joint="curve")
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float64) / 255


def _field(
    rng: Rng, shape: tuple[int, int], slope: float, *, stretch: tuple[float, float] = (1.0, 1.0), cut: float = 0.5
) -> np.ndarray:
    """Return noise of unit variance whose amplitude falls as frequency to the power -slope.

    `stretch` makes the grain longer along rows (second) or columns (first); frequencies above `cut` are left out.
    """
    fy, fx = np.fft.fftfreq(shape[0])[:, None] * stretch[0], np.fft.rfftfreq(shape[1])[None] * stretch[1]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * frequency**-slope * (frequency < cut)
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=shape)
    return noise / noise.std()


def _smooth(image: np.ndarray, pixels: float) -> np.ndarray:
    """Blur by a Gaussian in the frequency domain."""
    fy, fx = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])[None]
    kernel = np.exp(-2 * (np.pi * pixels) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(np.fft.rfft2(image) * kernel, s=image.shape)


def _grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return y and x of every pixel."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return rows / shape[0], columns / shape[1]
