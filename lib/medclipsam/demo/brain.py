"""Axial brain MRI phantoms: scalp, skull, cortex, white matter, ventricles and a tumour, under several contrasts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    tone,
)

# Brightness in [0, 1] of scalp fat, fluid, grey matter, white matter, tumour, tumour core.
_CONTRASTS = {
    "T1": (0.92, 0.14, 0.42, 0.58, 0.26, 0.18),
    "T1 with contrast": (0.85, 0.14, 0.38, 0.5, 0.95, 0.22),
    "T2": (0.72, 0.96, 0.6, 0.42, 0.84, 0.95),
    "FLAIR": (0.6, 0.08, 0.48, 0.38, 0.95, 0.6),
    "PD": (0.6, 0.55, 0.66, 0.5, 0.95, 0.85),
}


@dataclass(frozen=True)
class Head:
    """One head in normalised coordinates; z runs from -1 (skull base) to 1 (vertex)."""

    outline: Outline
    scalp: float
    bone: float
    gap: float
    cortex: float
    ventricle_size: float
    ventricle_parts: tuple[Outline, ...]
    tumour: Outline | None
    tumour_z: float
    tumour_depth: float
    tumour_rim: float
    oedema: float
    contrast: str
    levels: tuple[float, ...]
    plain: bool


def draw_head(rng: Rng, pathology: bool, z: float | None = None) -> Head:
    """Draw the parameters of one head; with `z` the tumour is placed so that the plane at z cuts it well."""
    rx = between(rng, 0.66, 0.8)
    outline = Outline.draw(rng, 0, 0, rx, min(rx * between(rng, 1.08, 1.34), 0.97), rough=0.018)
    parts = []
    for side in (-1, 1):
        parts.append(
            Outline.draw(
                rng,
                side * between(rng, 0.09, 0.13),
                between(rng, -0.2, -0.1),
                between(rng, 0.05, 0.085),
                between(rng, 0.17, 0.25),
                angle=side * between(rng, 0.1, 0.35),
                rough=0.06,
            )
        )
        parts.append(
            Outline.draw(
                rng,
                side * between(rng, 0.12, 0.19),
                between(rng, 0.14, 0.24),
                between(rng, 0.045, 0.075),
                between(rng, 0.13, 0.22),
                angle=-side * between(rng, 0.2, 0.5),
                rough=0.06,
            )
        )
    parts.append(Outline(0, 0.05, between(rng, 0.012, 0.03), between(rng, 0.06, 0.12)))
    contrast = str(rng.choice([*_CONTRASTS, "other"], p=[0.15, 0.25, 0.2, 0.22, 0.08, 0.1]))
    levels = _levels(rng, contrast)
    tumour = None
    tumour_z = depth = 0.0
    if pathology:
        radius = between(rng, 0.08, 0.24)
        depth = radius * between(rng, 0.9, 1.5)
        tumour_z = between(rng, -0.1, 0.35) if z is None else z + between(rng, -0.4, 0.4) * depth
        # Anywhere in a hemisphere, the edge of the brain included, seldom on the midline.
        angle = between(rng, -1.25, 1.25) + (np.pi if chance(rng, 0.5) else 0)
        distance = between(rng, 0.35, 0.8)
        tumour = Outline.draw(
            rng,
            float(np.cos(angle)) * distance * outline.rx * 0.75,
            float(np.sin(angle)) * distance * outline.ry * 0.75,
            radius,
            radius * between(rng, 0.75, 1.25),
            angle=between(rng, 0, 3),
            rough=between(rng, 0.02, 0.1),
        )
    return Head(
        outline=outline,
        scalp=between(rng, 0.03, 0.08),
        bone=between(rng, 0.03, 0.08),
        gap=between(rng, 0.0, 0.03),
        cortex=between(rng, 0.06, 0.16),
        ventricle_size=between(rng, 0.65, 1.6),
        ventricle_parts=tuple(parts),
        tumour=tumour,
        tumour_z=tumour_z,
        tumour_depth=depth,
        tumour_rim=between(rng, 0.6, 0.85) if chance(rng, 0.4) else 0.0,
        oedema=between(rng, 1.25, 1.9) if chance(rng, 0.4) else 0.0,
        contrast=contrast,
        levels=levels,
        plain=chance(rng, 0.12),
    )


def head_slice(rng: Rng, head: Head, x: Plane, y: Plane, z: float, folds: Plane) -> tuple[Plane, dict[str, np.ndarray]]:
    """Draw the plane at height z: signal in about [0, 1] and the masks of what it cuts.

    Parameters
    ----------
    x, y : numpy.ndarray
        Anatomical coordinates [H, W]; y down is posterior, x to the right is the patient's left.
    folds : numpy.ndarray
        Smooth noise [H, W] that bends the cortex.
    """
    shrink = float(np.sqrt(max(1 - (0.93 * z) ** 2, 0.02)))
    rho = head.outline.rho(x, y, shrink)
    inner = 1 - (head.scalp + head.bone) / shrink
    edge = inner - head.gap / shrink
    fat, fluid, grey, white, tumour_level, core_level = head.levels
    in_head = rho < 1
    skull = (rho < 1 - head.scalp / shrink) & (rho >= inner)
    within = (rho < inner) & (inner > 0.3)
    brain = within & (rho < edge)

    signal = np.zeros(x.shape, dtype=np.float32)
    signal[in_head] = fat
    signal[skull] = 0.05
    signal[within] = fluid
    ribbon = rho > edge * (1 - head.cortex * (1 + 0.6 * np.clip(folds, -1.4, 2.5)))
    signal[brain] = white
    signal[brain & ribbon] = grey
    if not head.plain:
        signal[brain & (np.abs(folds) < 0.07) & (rho > 0.82 * edge)] = fluid
        fissure = (np.abs(x + 0.012 * folds) < 0.012) & (np.abs(y) > 0.33 * shrink)
        signal[brain & fissure] = fluid
        for side in (-1, 1):
            nucleus = Outline(side * 0.17, 0.04, 0.09, 0.16, side * 0.3)
            signal[brain & (nucleus.rho(x, y) < 1) & (-0.3 < z < 0.3)] = grey

    ventricles = np.zeros(x.shape, dtype=bool)
    reach = 1 - ((z - 0.15) / 0.42) ** 2
    if reach > 0.05:
        size = head.ventricle_size * float(np.sqrt(reach))
        for part in head.ventricle_parts:
            widened = Outline(part.x * size**0.5, part.y, part.rx, part.ry, part.angle, part.waves)
            ventricles |= widened.rho(x, y, size**0.7) < 1
    ventricles &= brain
    signal[ventricles] = fluid

    masks = {"brain": brain, "skull": skull, "ventricles": ventricles}
    if head.tumour is not None and abs(z - head.tumour_z) < head.tumour_depth * 2:
        across = (z - head.tumour_z) / head.tumour_depth
        distance = np.sqrt(head.tumour.rho(x, y) ** 2 + across**2)
        tumour = (distance < 1) & brain
        if head.oedema:
            swelling = ramp(head.oedema - distance - 0.12 * folds, 0.3) * brain * ~ventricles
            level = white + 0.35 * (max(tumour_level, fluid) - white)
            signal = signal * (1 - swelling) + level * swelling
        signal[tumour] = tumour_level * (1 + 0.06 * folds[tumour])
        if head.tumour_rim:
            signal[(distance < head.tumour_rim) & brain] = core_level
        masks["ventricles"] = ventricles & ~tumour
        masks["brain tumour"] = tumour
    if not head.plain:
        signal = signal + 0.03 * in_head * smooth_noise(rng, x.shape, max(x.shape) / 40)
    return signal, masks


def draw_brain(rng: Rng, size: int, pathology: bool) -> tuple[Plane, dict[str, np.ndarray], dict[str, object]]:
    """Draw one axial brain MRI plane: brightness in [0, 1] [H, W], masks and facts (pathology, side, contrast)."""
    shape = image_shape(rng, size, square=0.6, widest=1.3)
    z = between(rng, -0.2, 0.62)
    head = draw_head(rng, pathology, z)
    x, y = posed_grid(rng, shape, degrees=14, scale=(0.82, 1.12), shift=0.08, warp=0.012)
    signal, masks = head_slice(rng, head, x, y, z, cortex_folds(rng, shape))
    return scan(rng, signal), masks, head_facts(head)


def head_facts(head: Head) -> dict[str, object]:
    """Return what a caption may say of a head."""
    side = None if head.tumour is None else ("right" if head.tumour.x < 0 else "left")
    return {"pathology": head.tumour is not None, "side": side, "contrast": head.contrast}


def cortex_folds(rng: Rng, shape: tuple[int, int]) -> Plane:
    """Return the smooth noise that bends the cortex."""
    return smooth_noise(rng, shape, max(shape) / between(rng, 14, 24))


def scan(rng: Rng, signal: Plane) -> Plane:
    """Add the scanner: coil sensitivity, blur, Rician noise and an intensity curve."""
    bias = np.exp(between(rng, 0.0, 0.28) * smooth_noise(rng, signal.shape, max(signal.shape) / 1.5))
    noisy = detector(rng, signal * bias, blur=1.0, noise=0.05)
    other = between(rng, 0.005, 0.03) * rng.standard_normal(signal.shape)
    return tone(rng, np.hypot(noisy, other), gamma=(0.75, 1.35))


def _levels(rng: Rng, contrast: str) -> tuple[float, ...]:
    if contrast == "other":
        fat, fluid, grey, white = (between(rng, 0.1, 0.95) for _ in range(4))
        brain = (grey + white) / 2
        tumour = brain + between(rng, 0.25, 0.45) * (1 if brain < 0.55 else -1)
        return fat, fluid, grey, white, tumour, between(rng, 0.1, 0.9)
    levels = [float(np.clip(level + between(rng, -0.07, 0.07), 0.02, 1)) for level in _CONTRASTS[contrast]]
    brain = (levels[2] + levels[3]) / 2
    if abs(levels[4] - brain) < 0.18:
        levels[4] = brain + (0.22 if levels[4] >= brain else -0.22)
    return tuple(levels)
