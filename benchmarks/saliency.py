"""What a saliency map costs and how near it is to the map of 100 noise samples a step, for every way of making one.

Published (10 steps of 10 samples), the fast schedule, NIB and the cosine of patch and text, on phantoms. Dice is that
of the map above its Otsu threshold with the truth, for the right text and for another structure's; the seconds are
those of the map alone.

    python benchmarks/saliency.py [--weights demo] [--images 4]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from skimage.filters import threshold_otsu

from medclipsam.base.metrics import dice
from medclipsam.demo.phantoms import make_phantom
from medclipsam.encoders import Encoder, PlaneInput
from medclipsam.pipeline.zero_shot import load_encoder
from medclipsam.saliency import FAST, PUBLISHED, SaliencyRequest, SaliencySettings, Schedule, saliency_maps
from medclipsam.sam import SamModel
from medclipsam.weights import resolve_pair

# Modality, structure, the text asked for, and another structure's text.
ASKED = (
    ("US", "breast tumour", "breast tumour", "skin"),
    ("MR", "brain tumour", "brain tumour", "ventricles"),
    ("XR", "heart", "heart", "left lung"),
    ("CT", "spine", "spine", "right lung"),
)
REFERENCE = Schedule((100,) * 10, paired=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--images", type=int, default=4, help="phantoms of each modality")
    parser.add_argument("--method", choices=("m2ib", "m2ib_token"), default="m2ib")
    given = parser.parse_args(arguments)
    clip, sam = resolve_pair(given.weights)
    encoder = load_encoder(clip, sam=SamModel.from_weights(sam))
    own = {**encoder.defaults.get("saliency", {}), "beta": encoder.defaults.get("saliency", {}).get("beta", 1.0)}
    base = {"layer": int(own.get("layer", 0)), "variance": 1.0, "clip_percentile": 99.0}
    ways = {
        "100 samples a step": SaliencySettings(given.method, schedule=REFERENCE, seed=1, **base),
        "published": SaliencySettings(given.method, schedule=PUBLISHED, **base),
        "fast": SaliencySettings(given.method, schedule=FAST, **base),
        "nib": SaliencySettings("nib", **base),
        "patch_text": SaliencySettings("patch_text", **base),
    }
    rows: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for modality, structure, text, other in ASKED:
        for number in range(given.images):
            phantom = make_phantom(modality, 720_000 + number, size=192, pathology=True)
            if structure not in phantom.masks:
                continue
            plane = phantom.image if phantom.image.ndim == 3 else np.repeat(phantom.image[..., None], 3, axis=2)
            truth, reference = phantom.masks[structure], None
            for name, settings in ways.items():
                seconds, saliency = made(encoder, plane, text, settings, own["beta"])
                reference = saliency if reference is None else reference
                wrong = made(encoder, plane, other, settings, own["beta"])[1]
                near = float(np.corrcoef(saliency.ravel(), reference.ravel())[0, 1])
                rows[name].append((near, overlap(saliency, truth), overlap(wrong, truth), seconds))
    print(f"{given.weights}, {given.method}, {len(rows['fast'])} phantoms, {torch.get_num_threads()} threads")
    print(f"{'':<22}{'correlation':>12}{'least':>8}{'Dice':>8}{'wrong text':>12}{'seconds':>10}{'ratio':>8}")
    whole = float(np.median([row[3] for row in rows["published"]]))
    for name, found in rows.items():
        near, right, wrong, seconds = np.array(found).T
        print(
            f"{name:<22}{near.mean():>12.4f}{near.min():>8.3f}{right.mean():>8.3f}{wrong.mean():>12.3f}"
            f"{np.median(seconds):>10.3f}{np.median(seconds) / whole:>8.3f}"
        )


def made(
    encoder: Encoder, plane: np.ndarray, text: str, settings: SaliencySettings, beta: float
) -> tuple[float, np.ndarray]:
    """Return the seconds that a map took, its plane's prefix known, and the map [H, W]."""
    tensor, fit = encoder.preprocess(plane)
    tokens = encoder.prefix_tokens([PlaneInput(plane, tensor, fit, plane.tobytes())], settings.layer)
    asked = SaliencyRequest(0, encoder.text_prototype([text]), beta=beta)
    start = time.perf_counter()
    (saliency,) = saliency_maps(encoder, tokens, [fit], [b"plane"], [asked], settings)
    return time.perf_counter() - start, saliency.numpy()


def overlap(saliency: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice of a map above its Otsu threshold and the truth."""
    return dice(saliency > threshold_otsu(saliency), truth)


if __name__ == "__main__":
    main()
