"""Make `lite_clip` again: `python -m tools.demo_training --data REAL --out FOLDER`.

Embeds the planes of the queue (an hour on two cores; `--embed PART/PARTS` in several processes at once, `--minutes` to
stop early), trains on what is embedded, calibrates and writes `lite_clip.safetensors` and `lite_clip.json`. Each step
goes on where it ended. `--begin` trains weights on rather than from the beginning.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medclipsam.pipeline.zero_shot import load_encoder
from medclipsam.sam import SamModel
from medclipsam.weights import resolve
from tools.demo_training.embeddings import Embedded, embed_queue
from tools.demo_training.lite_clip import TRAINED_ON, Recipe, Trainer, blocks_of
from tools.demo_training.sources import counts, queue
from tools.demo_training.write_lite import write


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_training", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv and the real images")
    parser.add_argument("--out", type=Path, required=True, help="folder for embeddings, checkpoint and weights")
    parser.add_argument("--embed", metavar="PART/PARTS", help="only embed this share of the queue (0/2, 1/2)")
    parser.add_argument("--minutes", type=float, help="stop embedding after so long")
    parser.add_argument("--steps", type=int, help="training steps (the recipe's by default)")
    parser.add_argument("--begin", metavar="WEIGHTS", help="weights to train on, such as lite_clip")
    parser.add_argument("--threads", type=int, help="CPU threads (all by default)")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    jobs = queue(given.data)
    print("; ".join(f"{name}: {n}" for name, n in counts(jobs)))
    sam_weights = resolve("lite_medsam")
    sam = SamModel.from_weights(sam_weights)

    def embed(plane: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        made = sam.embed(plane)
        sam.cache.clear()
        return made.features, made.input_shape

    part, parts = (int(v) for v in (given.embed or "0/1").split("/"))
    seconds = None if given.minutes is None else 60 * given.minutes
    folder = given.out / "embeddings"
    embed_queue(folder, given.data, jobs, embed, sam.image_size, part=part, parts=parts, seconds=seconds)
    if given.embed:
        return 0
    recipe, begin = Recipe(), None
    if given.begin:
        recipe, begin = TRAINED_ON, blocks_of(resolve(given.begin).path)
    if given.steps:
        recipe = replace(recipe, steps=given.steps)
    text = load_encoder(resolve("demo_clip"))
    data = Embedded(folder)
    trainer = Trainer(data, text, recipe, begin)
    trainer.run(given.out / "checkpoint.pt")
    config = write(given.out, trainer.vision, text, data, recipe, sam_weights.sha256)
    print(json.dumps({key: config[key] for key in ("presence_thresholds", "free_text_threshold")}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
