"""The search of settings of protocol A: the published grid, on a few validation images with masks.

Only validation images can be searched on: a setting that was chosen on the images it is then measured on says nothing.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.base.metrics import dice
from medclipsam.base.options import ZeroShotOptions
from medclipsam.base.progress import ProgressBar
from medclipsam.evaluation.data import Case, read_case
from medclipsam.evaluation.predictors import ZeroShotPredictor
from medclipsam.pipeline.zero_shot import ZeroShot

# The published script's grid (Koleilat et al. 2025, MedCLIP-SAMv2), layers of 12, and its number of images.
BETAS = (0.1, 1.0, 2.0)
VARIANCES = (0.1, 1.0, 2.0)
LAYERS = (7, 8, 9)
LAYERS_OF = 12
IMAGES = 3

_COMPONENTS = (1, 2)


def search_settings(
    cases: Sequence[Case],
    pipeline: ZeroShot,
    options: ZeroShotOptions,
    *,
    images: int = IMAGES,
    show: bool = False,
) -> tuple[ZeroShotOptions, dict[str, Any]]:
    """Choose beta, variance, layer and post-processing for one task.

    As published, a setting of M2IB is scored by the Dice of the saliency map above `options.threshold`, without SAM,
    asked with one fixed text. With the best, the ways of post-processing are scored by the Dice of the final mask.

    Parameters
    ----------
    cases : sequence of Case
        Validation images of one task; of those that hold the target, `images` are drawn with the options' seed.
    pipeline : ZeroShot
        The loaded models.
    options : ZeroShotOptions
        What the search leaves as it is. Presence is not asked during the search.
    images : int
        How many images are looked at, at least 1.
    show : bool
        Whether to show progress.

    Returns
    -------
    options : ZeroShotOptions
        With the best settings; of equals the first.
    record : dict
        JSON-able: images, text, every score.

    Raises
    ------
    InputError
        If a case is no validation image, or none holds the target.
    """
    for case in cases:
        if case.split != "val":
            raise InputError(
                f"Settings cannot be searched on {case.image}, an image of the split {case.split!r}; allowed: val."
            )
    if images < 1:
        raise InputError(f"A search of settings cannot look at {images} images; allowed: 1 or more.")
    readable = ((case, *read_case(case)) for case in cases)
    holding = [(case, image, truth) for case, image, truth in readable if truth.any()]
    if not holding:
        raise InputError("Settings cannot be searched: no validation image holds the target.")
    drawn = np.random.default_rng(options.seed).permutation(len(holding))[:images]
    chosen = [holding[place] for place in sorted(drawn)]
    plain = options.replace(presence=False)
    depth = pipeline.encoder.tower.n_blocks
    layers = list(dict.fromkeys(min(depth - 1, round(layer * depth / LAYERS_OF)) for layer in LAYERS))
    ways = ["kmeans", "threshold", *(["crf"] if importlib.util.find_spec("pydensecrf") else [])]
    maps = [
        {"beta": beta, "variance": variance, "layer": layer}
        for beta, variance, layer in itertools.product(BETAS, VARIANCES, layers)
    ]
    processings = [{"postprocess": way, "num_components": count} for way, count in itertools.product(ways, _COMPONENTS)]
    record: dict[str, Any] = {
        "images": [case.name for case, *_ in chosen],
        "text": chosen[0][0].task.prompt,
        "saliency": [],
        "postprocessing": [],
    }
    best: dict[str, Any] = {}
    with ProgressBar(total=len(maps) + len(processings), desc="search", unit="setting", show=show) as bar:
        for key, settings, stage in (("saliency", maps, "saliency"), ("postprocessing", processings, "sam")):
            for setting in settings:
                predictor = ZeroShotPredictor(pipeline, plain.replace(**best, **setting), stage)
                scores = [dice(predictor.predict(image, case.task.prompt).mask, truth) for case, image, truth in chosen]
                record[key].append({**setting, "dice": float(np.mean(scores))})
                bar.update()
            winner = max(record[key], key=lambda entry: entry["dice"])
            best.update({name: value for name, value in winner.items() if name != "dice"})
    record["chosen"] = best
    return options.replace(**best), record
