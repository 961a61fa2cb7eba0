"""What a person waits for on a laptop: the first prompt on an image, a second text on it, and a click.

Every pair of weights runs with the engine that is chosen by itself and with eager torch, on the same images of 512
pixels, models loaded. Ratios are those of medians.

    python benchmarks/laptop.py [PAIR ...] [--images 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medclipsam.base.options import ZeroShotOptions
from medclipsam.demo.phantoms import make_phantom
from medclipsam.encoders import Encoder
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.pipeline.refine import Clicks, refine
from medclipsam.pipeline.zero_shot import ZeroShot, load_encoder
from medclipsam.sam import SamModel
from medclipsam.targets import TargetSet
from medclipsam.weights import resolve_pair

STEPS = ("first prompt", "second text", "click")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=["demo", "default"], metavar="PAIR")
    parser.add_argument("--images", type=int, default=5, help="images that are timed; one more warms up")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    given = parser.parse_args(arguments)
    print(f"{torch.get_num_threads()} threads, images of {given.size} pixels, median of {given.images}, seconds")
    print(f"{'weights':<24}{'engine':<10}" + "".join(f"{step:>16}" for step in STEPS))
    with tempfile.TemporaryDirectory() as folder:
        images = [draw(Path(folder), seed, given.size) for seed in range(given.images + 1)]
        first: list[float] | None = None
        for pair in given.pairs:
            clip, sam = resolve_pair(pair)
            sams = [SamModel.from_weights(sam, engine=engine) for engine in ("auto", "torch")]
            chosen, eager = (measure(load_encoder(clip, sam=model), model, images) for model in sams)
            show(pair, "auto", chosen)
            show(pair, "torch", eager)
            show("", "ratio", [a / b for a, b in zip(chosen, eager, strict=True)])
            if first is not None:
                show("", f"to {given.pairs[0]}"[:9], [a / b for a, b in zip(chosen, first, strict=True)])
            first = first or chosen


def draw(folder: Path, seed: int, size: int) -> MedicalImage:
    """Return a chest X-ray phantom."""
    path = folder / f"{seed}.png"
    Image.fromarray(make_phantom("XR", seed, size=size).image).save(path)
    return read_image(path, modality="DX")


def measure(encoder: Encoder, sam: SamModel, images: Sequence[MedicalImage]) -> list[float]:
    """Return the median seconds of each step; the first image warms up."""
    pipeline = ZeroShot(encoder, sam, TargetSet.load())
    options = ZeroShotOptions(presence=False)
    times = []
    for image in images:
        first, result = seconds(lambda image=image: pipeline.segment(image, "both lungs", options))
        second, _ = seconds(lambda image=image: pipeline.segment(image, "heart", options))
        clicks = {1: Clicks.from_ijk(image, foreground=[outside(result.labels[0] > 0)])}
        click, _ = seconds(lambda image=image, r=result, c=clicks: refine(image, sam, (r.labels > 0).astype("u1"), c))
        times.append((first, second, click))
    return [statistics.median(step) for step in zip(*times[1:], strict=True)]


def outside(mask: np.ndarray) -> list[int]:
    """Return (i, j) of a pixel outside a mask, so that a click there asks SAM."""
    rows, columns = np.nonzero(~mask)
    middle = len(rows) // 2
    return [int(columns[middle]), int(rows[middle])]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def show(pair: str, engine: str, values: Sequence[float]) -> None:
    print(f"{pair:<24}{engine:<10}" + "".join(f"{value:>16.3f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
