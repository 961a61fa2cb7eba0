"""Axial chest CT phantoms in Hounsfield units: from the neck through lungs and heart down to the upper abdomen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medclipsam.demo.drawing import (
    Outline,
    Plane,
    Rng,
    between,
    chance,
    image_shape,
    posed_grid,
    rescale,
    smooth_noise,
    to_uint8,
)

# (centre, width) in HU, and how often a plane is shown with it.
WINDOWS = {"lung": (-600, 1500), "soft tissue": (40, 400), "mediastinum": (40, 600), "wide": (-150, 1800)}
_WINDOW_ODDS = (0.35, 0.25, 0.2, 0.2)

LUNGS_FROM, LUNGS_TO = -0.62, 0.8


@dataclass(frozen=True)
class Chest:
    """One chest in normalised coordinates; z runs from -1 (upper abdomen) to 1 (neck)."""

    body: Outline
    fat: float
    wall: float
    lungs: tuple[Outline, Outline]
    heart: Outline
    liver: Outline
    spine: Outline
    nodule: Outline | None
    nodule_z: float
    lung_hu: float
    heart_hu: float
    bone_hu: float
    rib_phase: float
    table: bool
    plain: bool


def draw_chest(rng: Rng, pathology: bool, z: float | None = None) -> Chest:
    """Draw the parameters of one chest; with `z` the nodule is placed so that the plane at z cuts it well."""
    rx = between(rng, 0.84, 0.97)
    ry = rx * between(rng, 0.6, 0.82)
    wall = between(rng, 0.76, 0.86)
    lungs = tuple(
        Outline.draw(
            rng,
            side * between(rng, 0.45, 0.5) * rx * wall,
            between(rng, -0.06, 0.06),
            between(rng, 0.4, 0.46) * rx * wall,
            between(rng, 0.72, 0.86) * ry * wall,
            angle=side * between(rng, -0.05, 0.25),
            rough=0.035,
        )
        for side in (-1, 1)
    )
    heart = Outline.draw(
        rng,
        between(rng, 0.06, 0.18),
        -ry * between(rng, 0.18, 0.34),
        between(rng, 0.22, 0.32),
        between(rng, 0.19, 0.27),
        angle=between(rng, 0.2, 0.8),
        rough=0.04,
    )
    liver = Outline.draw(rng, -0.36 * rx, -0.05, 0.45 * rx, 0.62 * ry, rough=0.05)
    spine = Outline.draw(
        rng, between(rng, -0.02, 0.02), ry * between(rng, 0.46, 0.6), between(rng, 0.1, 0.14), between(rng, 0.09, 0.12)
    )
    nodule = None
    nodule_z = 0.0
    if pathology:
        lung = lungs[int(rng.integers(2))]
        radius = between(rng, 0.035, 0.11)
        nodule_z = between(rng, -0.15, 0.4) if z is None else z + between(rng, -0.4, 0.4) * radius
        # In the outer half of the lung, where neither heart nor liver covers it.
        outward, along = between(rng, 0.0, 0.55), between(rng, -0.5, 0.5)
        nodule = Outline.draw(
            rng,
            lung.x + float(np.sign(lung.x)) * outward * lung.rx,
            lung.y + along * lung.ry,
            radius,
            radius * between(rng, 0.8, 1.25),
            rough=0.06,
            spikes=0.1 if chance(rng, 0.3) else 0.0,
        )
    return Chest(
        body=Outline.draw(rng, 0, 0, rx, ry, rough=0.02),
        fat=between(rng, 0.02, 0.12),
        wall=wall,
        lungs=(lungs[0], lungs[1]),
        heart=heart,
        liver=liver,
        spine=spine,
        nodule=nodule,
        nodule_z=nodule_z,
        lung_hu=between(rng, -880, -690),
        heart_hu=between(rng, 30, 60) if chance(rng, 0.5) else between(rng, 120, 260),
        bone_hu=between(rng, 280, 750),
        rib_phase=between(rng, 0, 6.283),
        table=chance(rng, 0.5),
        plain=chance(rng, 0.12),
    )


def chest_slice(rng: Rng, chest: Chest, x: Plane, y: Plane, z: float) -> tuple[Plane, dict[str, np.ndarray]]:
    """Draw the plane at height z: Hounsfield units and the masks of what it cuts.

    Parameters
    ----------
    x, y : numpy.ndarray
        Anatomical coordinates [H, W]; y down is posterior, x to the right is the patient's left.
    """
    shape = x.shape
    neck = float(np.clip((z - 0.8) / 0.2, 0, 1))
    rho = chest.body.rho(x / (1 - 0.45 * neck), y / (1 - 0.2 * neck))
    body = rho < 1
    inner = rho < 1 - chest.fat
    hu = np.full(shape, -1000.0, dtype=np.float32)
    if chest.table:
        hu[np.abs(y - (chest.body.ry + 0.06) + 0.06 * x**2) < 0.012] = -200
    hu[body] = -100
    hu[body & (rho > 0.985)] = 20
    hu[inner] = 50
    if not chest.plain:
        hu[inner & (rho > chest.wall) & (smooth_noise(rng, shape, max(shape) / 16) > 0.7)] = -80

    spine = _spine(chest, x, y, hu, body)
    lungs = np.zeros(shape, dtype=bool)
    heart = np.zeros(shape, dtype=bool)
    sides = {"right lung": lungs, "left lung": lungs}
    middle = (LUNGS_FROM + LUNGS_TO) / 2
    reach = 1 - ((z - middle) / ((LUNGS_TO - LUNGS_FROM) / 2)) ** 2
    if reach > 0.03:
        grow = reach**0.3
        column = (np.abs(x - 0.03) < 0.09) | (spine & (rho < 1)) | (chest.spine.rho(x, y) < 1.25)
        if z < 0.2:
            size = float(np.clip((0.2 - z) / 0.2, 0, 1)) ** 0.4
            heart = (chest.heart.rho(x, y, size) < 1) & (rho < chest.wall)
        else:
            # Great vessels stand above the heart.
            column |= Outline(0.03, chest.heart.y + 0.03, 0.17, 0.17).rho(x, y) < 1
        blocked = column | heart
        if z < -0.25:
            dome = float(np.clip((-0.25 - z) / 0.4, 0, 1)) ** 0.5
            blocked |= chest.liver.rho(x, y, dome) < 1
        for name, outline in zip(("right lung", "left lung"), chest.lungs, strict=True):
            sides[name] = (outline.rho(x, y, grow) < 1) & (rho < chest.wall) & ~blocked
        lungs = sides["right lung"] | sides["left lung"]
        hu[(rho < chest.wall) & column & ~spine] = 20
        hu[lungs] = chest.lung_hu
        hu[heart] = chest.heart_hu
        _chest_details(rng, chest, x, y, z, hu, lungs)
        _ribs(chest, x, y, z, rho, hu)
    elif z < 0:
        _abdomen(rng, chest, x, y, rho, hu)
    if z > 0.15:
        hu[(Outline(0.02, chest.heart.y + 0.2, 0.045, 0.05).rho(x, y) < 1) & inner] = -980
    hu = np.where(spine, np.maximum(hu, 60), hu)

    masks = {"lungs": lungs, **sides, "heart": heart, "spine": spine}
    if chest.nodule is not None:
        distance = np.sqrt(chest.nodule.rho(x, y) ** 2 + ((z - chest.nodule_z) / chest.nodule.rx) ** 2)
        nodule = (distance < 1) & lungs
        hu[nodule] = 40
        masks["nodule"] = nodule
    return hu, masks


def draw_chest_ct(rng: Rng, size: int, pathology: bool) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, object]]:
    """Draw one axial CT plane: uint8 [H, W] under a random window, masks, facts (pathology, side, window, region)."""
    shape = image_shape(rng, size, square=0.6, widest=1.45)
    # A plane without the lungs, above or below them, now and then.
    region = "chest" if pathology or chance(rng, 0.84) else str(rng.choice(["abdomen", "neck"], p=[0.75, 0.25]))
    z = {"chest": between(rng, -0.3, 0.55), "abdomen": between(rng, -1, -0.7), "neck": between(rng, 0.88, 1)}[region]
    chest = draw_chest(rng, pathology, z)
    x, y = posed_grid(rng, shape, degrees=9, scale=(0.74, 1.08), shift=0.08, warp=0.012)
    hu, masks = chest_slice(rng, chest, x, y, z)
    hu = acquire(rng, hu)
    window = str(rng.choice(list(WINDOWS), p=_WINDOW_ODDS))
    nominal_centre, nominal_width = WINDOWS[window]
    centre = nominal_centre + nominal_width * between(rng, -0.08, 0.08)
    width = nominal_width * between(rng, 0.8, 1.25)
    shown = rescale(hu, centre - width / 2, centre + width / 2) ** between(rng, 0.8, 1.25)
    facts = {**chest_facts(chest), "window": window, "region": region}
    return to_uint8(shown), masks, facts


def chest_facts(chest: Chest) -> dict[str, object]:
    """Return what a caption may say of a chest."""
    side = None if chest.nodule is None else ("right" if chest.nodule.x < 0 else "left")
    return {"pathology": chest.nodule is not None, "side": side}


def acquire(rng: Rng, hu: Plane) -> Plane:
    """Add the scanner: a reconstruction kernel's blur and correlated noise, in HU."""
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape).astype(np.float32), between(rng, 0.3, 0.9))
    grain /= max(float(grain.std()), 1e-6)
    return ndimage.gaussian_filter(hu, between(rng, 0.4, 1.0)) + between(rng, 4, 32) * grain


def _spine(chest: Chest, x: Plane, y: Plane, hu: Plane, body: np.ndarray) -> np.ndarray:
    """Paint a vertebra and return its mask."""
    centre_x, centre_y = chest.spine.x, chest.spine.y
    width, depth = chest.spine.rx, chest.spine.ry
    rho = chest.spine.rho(x, y)
    arch_y = centre_y + 1.5 * depth
    arch = Outline(centre_x, arch_y, 0.85 * width, 0.65 * depth).rho(x, y)
    across, down = np.abs(x - centre_x), y - arch_y
    wings = (np.abs(down + 0.25 * across) < 0.28 * depth) & (across < 1.7 * width)
    process = (across < 0.22 * width) & (down > 0) & (down < 1.7 * depth)
    spine = ((rho < 1) | (arch < 1) | wings | process) & body
    hu[spine] = chest.bone_hu
    hu[(rho < 0.82) & body] = 0.55 * chest.bone_hu
    hu[(arch < 0.55) & body] = 25
    return spine


def _ribs(chest: Chest, x: Plane, y: Plane, z: float, rho: Plane, hu: Plane) -> None:
    theta = np.arctan2(y / chest.body.ry, x / chest.body.rx)
    wave = np.cos(9 * theta + chest.rib_phase + 14 * z)
    middle = (chest.wall + 1 - chest.fat) / 2 - 0.01
    hu[(np.abs(rho - middle) < 0.028) & (wave > 0.25)] = 0.8 * chest.bone_hu
    # The sternum closes the ring in front.
    hu[(np.abs(x) < 0.09) & (np.abs(rho - middle) < 0.04) & (y < 0)] = 0.6 * chest.bone_hu


def _chest_details(rng: Rng, chest: Chest, x: Plane, y: Plane, z: float, hu: Plane, lungs: np.ndarray) -> None:
    aorta = Outline(chest.spine.x + 0.15, chest.spine.y - 0.1, 0.06, 0.06).rho(x, y) < 1
    hu[aorta & ~lungs] = chest.heart_hu
    if z >= 0.2 and not chest.plain:
        for at in (-0.08, 0.07, 0.16):
            vessel = Outline(at, chest.heart.y + 0.05 * np.cos(at * 40), 0.05, 0.05).rho(x, y) < 1
            hu[vessel & ~lungs] = chest.heart_hu
    if chest.plain:
        return
    hu[lungs] += 35 * smooth_noise(rng, x.shape, max(x.shape) / 12)[lungs]
    branches = np.abs(smooth_noise(rng, x.shape, max(x.shape) / between(rng, 9, 16)))
    crossing = np.abs(smooth_noise(rng, x.shape, max(x.shape) / between(rng, 9, 16)))
    near = np.exp(-(((np.abs(x) - 0.15) / 0.3) ** 2))
    hu[lungs & (branches * crossing < 0.012 * (0.3 + near))] = between(rng, -300, 30)


def _abdomen(rng: Rng, chest: Chest, x: Plane, y: Plane, rho: Plane, hu: Plane) -> None:
    cavity = rho < chest.wall
    bone = hu > 150
    hu[cavity & ~bone] = -90
    organs = (
        (chest.liver, between(rng, 50, 110)),
        (Outline.draw(rng, 0.45, 0.1, 0.17, 0.24, rough=0.05), between(rng, 45, 120)),
        (Outline.draw(rng, 0.3, -0.22, 0.25, 0.17, rough=0.08), between(rng, 0, 40)),
        (Outline.draw(rng, -0.3, 0.32, 0.11, 0.14), between(rng, 30, 180)),
        (Outline.draw(rng, 0.32, 0.32, 0.11, 0.14), between(rng, 30, 180)),
        (Outline(0.08, chest.spine.y - 0.18, 0.06, 0.06), chest.heart_hu),
    )
    for outline, value in organs:
        hu[(outline.rho(x, y) < 1) & cavity & ~bone] = value
    if chance(rng, 0.6):
        gas = Outline.draw(rng, 0.3, -0.3, between(rng, 0.05, 0.15), between(rng, 0.03, 0.07))
        hu[(gas.rho(x, y) < 1) & cavity & ~bone] = -900
