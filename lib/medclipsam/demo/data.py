"""Phantoms in the layout of the paper's data, with the tasks file that `medclipsam evaluate` reads.

    FOLDER/<images of a modality>/<split>_images/*.png, <split>_masks/*.png
    FOLDER/tasks.yaml

Structures of one modality may overlap ("lungs" and "left lung"), so a mask is a label map in which each value stands
for one combination of structures; tasks.yaml says which values make up a structure. Where a structure is not in the
image, none of its values is in the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.base.progress import ProgressBar
from medclipsam.demo import captions
from medclipsam.demo.phantoms import MODALITIES, Phantom, make_phantom
from medclipsam.demo.polygons import make_polygon_phantom

# Seeds of the first phantom of each split: far apart, and below all that training takes (train_clip.FIRST_SEED).
FIRST_SEEDS = {"test": 700_000, "val": 720_000, "train": 740_000}
MOST_IMAGES = 10_000

# "phantoms" draws what the demo models were trained on, "polygons" images unlike those.
RENDERERS: dict[str, Callable[..., Phantom]] = {
    "phantoms": make_phantom,
    "polygons": make_polygon_phantom,
}

_FOLDERS = {"US": "breast-ultrasound", "MR": "brain-mri", "XR": "chest-xray", "CT": "chest-ct"}
_NAMES = {"US": "ultrasound", "MR": "MRI", "XR": "x-ray", "CT": "CT"}
_DICOM = {"US": "US", "MR": "MR", "XR": "DX", "CT": "CT"}
# What the known targets call a structure of the phantoms.
_PROMPTS = {("lungs", "XR"): "lungs x-ray", ("lungs", "CT"): "lungs CT", ("nodule", "CT"): "lung nodule"}
_PUBLISHED = {
    ("breast tumour", "US"): "breast",
    ("brain tumour", "MR"): "brain",
    ("lungs", "XR"): "lung x-ray",
    ("lungs", "CT"): "lung CT",
}
# Words that name the modality a held-out text was written for, where a structure is seen in two.
_SAID = {"XR": ("x-ray", "film", "radiograph"), "CT": ("ct", "tomography", "slice")}


def write_data(
    folder: Path,
    images: int,
    *,
    absent: int | None = None,
    seed: int | None = None,
    split: str = "test",
    renderer: str = "phantoms",
    show: bool = False,
) -> Path:
    """Write one split of demo data.

    Parameters
    ----------
    folder : pathlib.Path
        The data folder; made if needed. Other splits in it are left as they are.
    images : int
        Phantoms of each modality that have its finding (breast tumour, brain tumour, lung nodule), at least 1.
    absent : int, optional
        Further phantoms of each modality without the finding; half of `images` by default. X-rays have none: their
        structures are in every image.
    seed : int, optional
        Seed of the first phantom; each further one takes the next. By default one for each split, so that splits share
        no phantom with each other, nor with the demo models' training.
    split : {"train", "val", "test"}
        The split.
    renderer : {"phantoms", "polygons"}
        What draws them: the demo's own phantoms, or `medclipsam.demo.polygons`.
    show : bool
        Whether to show progress.

    Returns
    -------
    pathlib.Path
        The tasks file.

    Raises
    ------
    InputError
        If an argument is out of range, or the split holds images already.
    """
    if split not in FIRST_SEEDS:
        raise InputError(f"There is no split {split!r}; allowed: {', '.join(FIRST_SEEDS)}.")
    if renderer not in RENDERERS:
        raise InputError(f"There is no renderer {renderer!r}; allowed: {', '.join(RENDERERS)}.")
    without = images // 2 if absent is None else absent
    if images < 1 or without < 0 or images + without > MOST_IMAGES:
        raise InputError(
            f"Demo data cannot have {images} images with and {without} without a finding; allowed: at least 1 with, "
            f"and {MOST_IMAGES} together."
        )
    first = FIRST_SEEDS[split] if seed is None else seed
    if first < 0:
        raise InputError(f"The seed cannot be {first}; allowed: 0 or more.")
    for modality in MODALITIES:
        for kind in ("images", "masks"):
            part = folder / _FOLDERS[modality] / f"{split}_{kind}"
            if part.is_dir() and any(part.iterdir()):
                raise InputError(f"{part} holds files already; name another folder or remove it.")
            part.mkdir(parents=True, exist_ok=True)
    wanted = [
        (modality, first + index, index < images)
        for modality in MODALITIES
        for index in range(images if modality == "XR" else images + without)
    ]
    for modality, number, sick in ProgressBar(wanted, unit="image", show=show):
        # An X-ray's opacity is no structure: half of them have one.
        phantom = RENDERERS[renderer](modality, number, pathology=number % 2 == 0 if modality == "XR" else sick)
        name = f"{modality.lower()}-{number:07d}.png"
        Image.fromarray(phantom.image).save(folder / _FOLDERS[modality] / f"{split}_images" / name)
        mask = Image.fromarray(label_map(phantom.masks, structures(modality), phantom.image.shape[:2]))
        mask.save(folder / _FOLDERS[modality] / f"{split}_masks" / name)
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": tasks()}, sort_keys=False, width=120), encoding="utf-8")
    return file


def structures(modality: str) -> list[str]:
    """Return the structures that the masks of a modality may hold, in the order of their bits; "lungs" are two."""
    return [name for name in captions.STRUCTURES if modality in captions.SEEN_IN[name] and name != "lungs"]


def label_map(masks: dict[str, np.ndarray], names: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """Return uint8 [H, W] in which bit k of a pixel's value is structure k of `names`."""
    labels = np.zeros(shape, dtype=np.uint8)
    for bit, name in enumerate(names):
        if name in masks:
            labels[masks[name]] += 1 << bit
    return labels


def tasks() -> dict[str, dict[str, Any]]:
    """Return the entries of the tasks file: every structure in every modality, with texts that no training used."""
    entries: dict[str, dict[str, Any]] = {}
    for modality in MODALITIES:
        names = structures(modality)
        for structure in captions.STRUCTURES:
            if modality not in captions.SEEN_IN[structure]:
                continue
            parts = ("left lung", "right lung") if structure == "lungs" else (structure,)
            held = sum(1 << names.index(part) for part in parts)
            entry: dict[str, Any] = {
                "folder": _FOLDERS[modality],
                "prompt": _PROMPTS.get((structure, modality), structure),
                "modality": _DICOM[modality],
                "labels": [value for value in range(1, 1 << len(names)) if value & held],
                "paraphrases": _paraphrases(structure, modality),
            }
            if (structure, modality) in _PUBLISHED:
                entry["published"] = _PUBLISHED[structure, modality]
            entries[f"{structure}, {_NAMES[modality]}"] = entry
    return entries


def _paraphrases(structure: str, modality: str) -> list[str]:
    other = [word for name, words in _SAID.items() if name != modality for word in words]
    return [text for text in captions.HELD_OUT.get(structure, ()) if not set(text.lower().split()) & set(other)]
