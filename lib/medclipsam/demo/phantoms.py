"""Procedural phantoms: images that look like their modality at a glance, with exact masks, from a seed alone.

No patient's data went into them. They train and test the embedded demo models and fill the demo studies; they say
nothing about any real image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.demo import brain, chest_ct, chest_xray, ultrasound
from medclipsam.demo.drawing import Rng, chance, image_shape, posed_grid, rescale, to_uint8

MODALITIES = ("US", "MR", "XR", "CT")

# The mask that an image with pathology has; an X-ray's opacity has none.
_FINDINGS = {"US": "breast tumour", "MR": "brain tumour", "CT": "nodule"}

# Smaller than this share of the image, a structure counts as not cut by the plane.
_LEAST_SHARE = 3e-4


@dataclass(frozen=True)
class Phantom:
    """One image with what is known about it.

    Attributes
    ----------
    image : numpy.ndarray
        uint8 [H, W] or [H, W, 3], patient right at image left, head or front up.
    modality : str
        "US", "MR", "XR" or "CT".
    masks : dict of str to numpy.ndarray
        bool [H, W] for each structure that is there; structures may overlap ("lungs" and "left lung").
    facts : mapping
        What a caption may say: `pathology` (bool), `side` ("left" or "right" of the patient, or None) and what the
        modality adds (kind of mass, contrast, window, region).
    """

    image: np.ndarray
    modality: str
    masks: dict[str, np.ndarray]
    facts: Mapping[str, object] = field(default_factory=dict)


def make_phantom(modality: str, seed: int, *, size: int = 256, pathology: bool | None = None) -> Phantom:
    """Draw one phantom.

    Parameters
    ----------
    modality : {"US", "MR", "XR", "CT"}
        Breast ultrasound, axial brain MRI, frontal chest X-ray or axial chest CT.
    seed : int
        The same modality, seed, size and pathology give the same phantom.
    size : int
        Longer side in pixels, at least 64; the shorter one varies.
    pathology : bool, optional
        With or without the finding (breast tumour, brain tumour, lung opacity, lung nodule); None draws it.

    Raises
    ------
    InputError
        If the modality is unknown or the size too small.
    """
    rng = _generator(modality, seed, stream=0)
    if size < 64:
        raise InputError(f"A phantom of {size} pixels is too small; at least 64.")
    drawn = chance(rng, 0.62)
    sick = drawn if pathology is None else pathology
    while True:
        image, masks, facts = _draw(modality, rng, size, sick)
        present = _present(masks)
        # A nodule may have fallen behind heart or liver: then another body is drawn.
        if not sick or _FINDINGS.get(modality, "") in ("", *present):
            return Phantom(image, modality, present, facts)


def _draw(
    modality: str, rng: Rng, size: int, pathology: bool
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, object]]:
    if modality == "MR":
        signal, masks, facts = brain.draw_brain(rng, size, pathology)
        return to_uint8(signal), masks, facts
    draw = {"US": ultrasound.draw_ultrasound, "XR": chest_xray.draw_chest_xray, "CT": chest_ct.draw_chest_ct}[modality]
    return draw(rng, size, pathology)


def make_volume(
    modality: str, seed: int, n_planes: int, *, size: int = 192, pathology: bool = True, raw: bool = False
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draw a stack of axial planes through one body, from below upwards.

    The target (lungs of a chest CT, tumour of a brain MRI) is absent from the planes at both ends.

    Parameters
    ----------
    modality : {"CT", "MR"}
        Chest CT or brain MRI.
    seed : int
        The same arguments give the same volume.
    n_planes : int
        Number of planes, at least 4.
    size : int
        Longer side of a plane in pixels.
    pathology : bool
        With a lung nodule or brain tumour.
    raw : bool
        Hounsfield units (CT) or the scanner's own units (MR) instead of display values.

    Returns
    -------
    stack : numpy.ndarray
        [n_planes, H, W], uint8, or int16 if `raw`; plane 0 is the lowest.
    masks : dict of str to numpy.ndarray
        bool [n_planes, H, W] for each structure that any plane cuts.

    Raises
    ------
    InputError
        If the modality has no volumes or there are too few planes.
    """
    if modality not in ("CT", "MR"):
        raise InputError(f"Phantom volumes are CT or MR; given {modality!r}.")
    if n_planes < 4:
        raise InputError(f"A phantom volume has at least 4 planes; given {n_planes}.")
    rng = _generator(modality, seed, stream=1)
    shape = image_shape(rng, size, square=0.6, widest=1.3)
    planes, cuts = [], []
    if modality == "CT":
        chest = chest_ct.draw_chest(rng, pathology)
        x, y = posed_grid(rng, shape, degrees=4, scale=(0.85, 1.0), shift=0.03, warp=0.01)
        for z in np.linspace(-1, 1, n_planes):
            hu, masks = chest_ct.chest_slice(rng, chest, x, y, float(z))
            planes.append(chest_ct.acquire(rng, hu))
            cuts.append(_present(masks))
        stack = np.stack(planes)
        result = np.round(stack).astype(np.int16) if raw else to_uint8(rescale(stack, -1350, 150))
    else:
        head = brain.draw_head(rng, pathology)
        x, y = posed_grid(rng, shape, degrees=4, scale=(0.85, 1.0), shift=0.03, warp=0.01)
        folds = brain.cortex_folds(rng, shape)
        for z in np.linspace(-1, 1, n_planes):
            signal, masks = brain.head_slice(rng, head, x, y, float(z), folds)
            planes.append(signal)
            cuts.append(_present(masks))
        # One scan of the whole stack laid side by side: the same coil and curve for every plane.
        sheet = brain.scan(rng, np.concatenate(planes, axis=0))
        stack = np.stack(np.split(sheet, n_planes))
        result = np.round(1000 * np.clip(stack, 0, None)).astype(np.int16) if raw else to_uint8(stack)
    empty = np.zeros(shape, dtype=bool)
    names = sorted({name for cut in cuts for name in cut})
    return result, {name: np.stack([cut.get(name, empty) for cut in cuts]) for name in names}


def _generator(modality: str, seed: int, stream: int) -> Rng:
    if modality not in MODALITIES:
        raise InputError(f"Phantom modality {modality!r} is unknown; allowed: {', '.join(MODALITIES)}.")
    return np.random.default_rng([MODALITIES.index(modality), stream, seed])


def _present(masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: mask for name, mask in masks.items() if mask.mean() >= _LEAST_SHARE}
