"""What a second prompt on the same image costs beside the first, with the embedded demo models.

The first prompt pays for the vision prefix and SAM's image encoder; the second pays only for saliency and decoder.

    python benchmarks/second_prompt.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image

from medclipsam.base.options import ZeroShotOptions
from medclipsam.demo.phantoms import make_phantom
from medclipsam.imaging import read_image
from medclipsam.pipeline.zero_shot import ZeroShot

PAIRS = 8


def main() -> None:
    pipeline = ZeroShot.load("demo")
    options = ZeroShotOptions(presence=False)
    first, second, stages = [], [], {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(PAIRS + 1):
            path = Path(folder) / f"{seed}.png"
            Image.fromarray(make_phantom("XR", seed).image).save(path)
            image = read_image(path, modality="DX")
            times = []
            for text in ("both lungs", "heart"):
                start = time.perf_counter()
                result = pipeline.segment(image, text, options)
                times.append(time.perf_counter() - start)
                if seed:
                    stages["second" if text == "heart" else "first"].append(result.seconds)
            if seed:  # the first image warms up
                first.append(times[0])
                second.append(times[1])
    runs = pipeline.sam.encoder_runs
    assert runs == PAIRS + 1, runs
    one, two = statistics.median(first), statistics.median(second)
    print(f"demo models, chest X-ray phantoms, median of {PAIRS}")
    print(f"first prompt:  {one:6.3f} s")
    print(f"second prompt: {two:6.3f} s  {two / one:5.2f} of the first")
    for stage in ("prefix", "saliency", "sam_embed", "sam_decode"):
        a, b = (statistics.median(s.get(stage, 0.0) for s in stages[which]) for which in ("first", "second"))
        print(f"  {stage:<11} {a:6.3f} s {b:6.3f} s")
    print(f"runs of SAM's image encoder: {runs} for {2 * (PAIRS + 1)} prompts on {PAIRS + 1} images")


if __name__ == "__main__":
    main()
