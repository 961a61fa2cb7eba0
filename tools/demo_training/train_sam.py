"""Train the embedded demo SAM from scratch on phantoms and random shapes, as SAM itself was trained: from prompts.

The recipe is that of Segment Anything (Kirillov et al., 2023, appendix A): a structure of the image is drawn, prompted
with a box, points or both, and the decoder's masks are fitted with focal and dice loss at 20:1; of the three candidate
masks only the best one is fitted, which lets them differ where the prompt is ambiguous, and a head learns to predict
each mask's overlap. Boxes are jittered far more than SAM's: a zero-shot box comes from a coarse saliency map.

From the second stage on a part of the prompts is corrected, as an annotator would: the mask found is given back as a
mask prompt together with a click where it is wrong. In the third, masks as saliency maps give them are prompts too.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from medclipsam import __version__
from medclipsam.base.progress import ProgressBar
from medclipsam.demo.phantoms import MODALITIES, make_phantom
from medclipsam.sam import SamModel, build_sam
from medclipsam.sam.segment_anything_adapter import Sam, fuse_attention
from tools.demo_training.files import write_weights
from tools.demo_training.sam_examples import SIZE, Example, coarse_mask, draw_example, jitter_box, true_box

ARCH: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 16,
    "embed_dim": 192,
    "depth": 6,
    "num_heads": 6,
    "mlp_ratio": 4.0,
    "window_size": 0,
    "global_attn_indexes": [],
    "prompt_dim": 128,
    "mask_in_chans": 16,
    "decoder_depth": 2,
    "decoder_mlp_dim": 512,
    "decoder_num_heads": 8,
    "iou_head_depth": 3,
    "iou_head_hidden_dim": 128,
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "mask_prompts": True,
}
# Training phantoms take seeds from here on; smaller ones are for tests, examples and measurements.
FIRST_SEED = 1_000_000

# A mask without logits, as an annotator has it, is given to the prompt encoder as this inside and minus this outside.
MASK_LOGIT = 8.0

_LOSS_SIZE = 128


@dataclass(frozen=True)
class Stage:
    """One stretch of training with an optimiser of its own.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    learning_rate : float
        The greatest, of AdamW.
    corrected : float
        Share of images whose masks are corrected by a click and fitted a second time.
    """

    steps: int
    learning_rate: float
    corrected: float = 0.0


@dataclass(frozen=True)
class SamRecipe:
    """Everything that decides the demo SAM.

    Parameters
    ----------
    seed : int
        Of weights and examples.
    stages : tuple of Stage
        What is done one after the other.
    images, prompts : int
        Images a step and prompts an image.
    warmup : int
        Steps of linear warm-up before the cosine decay of each stage.
    weight_decay : float
        Of AdamW.
    shapes : float
        Share of images with random shapes in place of a phantom.
    measured : int
        Held-out phantoms of each structure on which the result is measured.
    """

    seed: int = 0
    stages: tuple[Stage, ...] = (
        Stage(1700, 8e-4),
        Stage(800, 6e-4, corrected=0.4),
        Stage(3900, 6e-4, corrected=0.3),
    )
    images: int = 6
    prompts: int = 4
    warmup: int = 100
    weight_decay: float = 0.02
    shapes: float = 0.08
    measured: int = 30

    @classmethod
    def quick(cls) -> SamRecipe:
        """Return a recipe of seconds, to try the code and not to get a model."""
        return cls(stages=(Stage(2, 8e-4), Stage(2, 8e-4, corrected=1.0)), images=2, prompts=2, warmup=1, measured=1)

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)


def train_sam(
    folder: Path, recipe: SamRecipe | None = None, *, device: str | torch.device = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Train the demo SAM and write `sam.safetensors` and `sam.json`.

    The same recipe gives the same weights on the same kind of processor with the same version of PyTorch and number
    of threads.

    Parameters
    ----------
    folder : Path
        Where to write; made if needed.
    recipe : SamRecipe, optional
        The shipped weights' recipe by default.
    device : str or torch.device
        Where to train.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        What `sam.json` holds: the architecture, and under "provenance" how the weights were made and their Dice on
        held-out phantoms.
    """
    recipe = recipe or SamRecipe()
    start = time.monotonic()
    phantom_seeds = itertools.count(FIRST_SEED)
    sam = _new_sam(recipe.seed).to(device)
    for number, stage in enumerate(recipe.stages):
        rng = np.random.default_rng([recipe.seed, 1 + number])
        run_stage(sam, stage, recipe, rng, phantom_seeds, progress=progress)
    seconds = time.monotonic() - start

    # Measured as it is written, in half precision.
    sam.load_state_dict({key: value.half() for key, value in sam.state_dict().items()})
    config: dict[str, Any] = {
        "arch": ARCH,
        "provenance": {
            "what": "trained from scratch on procedural phantoms and random shapes with their masks; no patient data",
            "version": __version__,
            "recipe": asdict(recipe),
            "training_images": recipe.steps * recipe.images,
            "training_prompts": recipe.steps * recipe.images * recipe.prompts,
            "seconds": round(seconds),
            "held_out_dice": measure(
                SamModel(sam, identity="just trained", device=device, mask_prompts=True),
                recipe.measured,
                progress=progress,
            ),
        },
    }
    return write_weights(folder, "sam", sam.state_dict(), config)


def _new_sam(seed: int) -> Sam:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_sam(ARCH)
        torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    fuse_attention(sam.image_encoder)
    return sam.train()


def run_stage(
    sam: Sam,
    stage: Stage,
    recipe: SamRecipe,
    rng: np.random.Generator,
    phantom_seeds: Iterator[int],
    *,
    progress: bool = True,
) -> None:
    """Train `sam`, in place, for one stage."""
    optimiser = torch.optim.AdamW(sam.parameters(), stage.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, stage.steps, recipe.warmup))
    bar = ProgressBar(range(stage.steps), desc="demo SAM", show=progress)
    mean = math.nan
    for _ in bar:
        batch = [draw_example(rng, phantom_seeds, recipe.prompts, recipe.shapes) for _ in range(recipe.images)]
        loss = batch_loss(sam, batch, rng, stage.corrected)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)


def _rate(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def batch_loss(
    sam: Sam, batch: list[Example], rng: np.random.Generator | None = None, corrected: float = 0.0
) -> torch.Tensor:
    """Return the mean loss of a batch's prompts, and of their corrections in a share `corrected` of the images."""
    device = sam.device

    def floats(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device, torch.float32)

    pixels = [sam.preprocess(floats(example.image).expand(3, *example.image.shape)) for example in batch]
    # The encoder takes half the time in bfloat16; the small decoder gains nothing and stays in float32.
    with torch.autocast(device.type, torch.bfloat16):
        features = sam.image_encoder(torch.stack(pixels))
    features = features.float()
    position = sam.prompt_encoder.get_dense_pe()
    logits, scores, truths = [], [], []

    def decode(feature: torch.Tensor, truth: torch.Tensor, points: Any, boxes: Any, masks: Any) -> torch.Tensor:
        # The decoder takes one image a call.
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
        found, predicted = sam.mask_decoder.predict_masks(feature[None], position, sparse, dense)
        logits.append(found)
        scores.append(predicted)
        truths.append(F.avg_pool2d(truth[:, None], SIZE // _LOSS_SIZE))
        return found[:, :1].detach()

    for example, feature in zip(batch, features, strict=True):
        boxes = None if example.boxes is None else floats(example.boxes)
        points = None
        if example.points is not None and example.labels is not None:
            points = (floats(example.points), torch.from_numpy(example.labels).to(device, torch.int32))
        height, width = example.image.shape
        padding = (0, SIZE - width, 0, SIZE - height)
        truth = F.pad(floats(example.masks), padding)
        coarse = None
        if example.coarse is not None:
            share = F.pad(floats(example.coarse), padding)
            share = F.avg_pool2d(share[:, None], SIZE // sam.prompt_encoder.mask_input_size[0])
            coarse = (share - 0.5) * 2 * MASK_LOGIT
        found = decode(feature, truth, points, boxes, coarse)
        if rng is not None and rng.random() < corrected:
            # An annotator's mask comes without the prompt that made it, and without its logits.
            if rng.random() < 0.5:
                points = boxes = None
            if rng.random() < 0.5:
                found = MASK_LOGIT * found.sign()
            decode(feature, truth, correction_clicks(rng, points, found, truth), boxes, found)
    return mask_loss(torch.cat(logits), torch.cat(scores), torch.cat(truths))


def correction_clicks(
    rng: np.random.Generator,
    points: tuple[torch.Tensor, torch.Tensor] | None,
    found: torch.Tensor,
    truth: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add to each prompt's points a click where its mask is wrong, as an annotator does.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the click among the wrong pixels.
    points : tuple of Tensor or None
        The prompts' points [K, N, 2], (x, y), and labels [K, N].
    found : Tensor
        Logits [K, 1, h, w] of the mask so far.
    truth : Tensor
        [K, H, W], in [0, 1], on the grid of the points.

    Returns
    -------
    tuple of Tensor
        Points [K, N + 1, 2] and labels [K, N + 1]: 1 for a click on what was missed, 0 for one on what is too much.
    """
    drawn = F.interpolate(found, truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
    clicks, labels = [], []
    for mask, right in zip(drawn.cpu().numpy(), truth.cpu().numpy() > 0.5, strict=True):
        wrong = np.argwhere(mask != right)
        row, column = wrong[rng.integers(len(wrong))] if len(wrong) else (0, 0)
        clicks.append([[float(column), float(row)]])
        labels.append([int(right[row, column])])
    added = torch.tensor(clicks, device=truth.device), torch.tensor(labels, dtype=torch.int, device=truth.device)
    if points is None:
        return added
    return torch.cat([points[0], added[0]], dim=1), torch.cat([points[1], added[1]], dim=1)


def mask_loss(logits: torch.Tensor, scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return 20 focal + dice of the single mask and of the best candidate, and the error of the predicted overlaps.

    Parameters
    ----------
    logits, scores : Tensor
        Shapes [B, 4, h, w] and [B, 4]: the single mask and three candidates, and their predicted overlap.
    truth : Tensor
        Shape [B, 1, H, W], in [0, 1].
    """
    logits = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
    truth = truth.expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = probability * truth + (1 - probability) * (1 - truth)
    focal = ((0.25 * truth + 0.75 * (1 - truth)) * (1 - right) ** 2 * entropy).mean(dim=(2, 3))
    both = (probability * truth).sum(dim=(2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1)
    masks = 20 * focal + dice
    single, candidates = masks[:, 0], masks[:, 1:]
    # A small share for the others keeps every candidate a mask of something.
    fitted = single + candidates.min(dim=1).values + 0.05 * candidates.mean(dim=1)
    with torch.no_grad():
        found, there = logits > 0, truth > 0.5
        union = (found | there).sum(dim=(2, 3)).clamp(min=1)
        overlap = (found & there).sum(dim=(2, 3)) / union
    return fitted.mean() + F.mse_loss(scores, overlap)


def measure(model: SamModel, n: int, *, first_seed: int = 500_000, progress: bool = True) -> dict[str, Any]:
    """Measure the Dice of boxes on held-out phantoms.

    Parameters
    ----------
    model : SamModel
        The model.
    n : int
        Phantoms for each structure.
    first_seed : int
        Phantoms of this seed and the following are drawn, until each structure has been seen `n` times.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        For each structure, as "modality name", the mean Dice for the true box ("true"), a box with sides scaled by
        0.85 to 1.4 and shifted ("jittered"), a box from a coarse mask ("grid"), and that with the mask ("mask").
    """
    found: dict[str, dict[str, list[float]]] = {}
    for modality in ProgressBar(MODALITIES, desc="held-out phantoms", show=progress):
        names: dict[str, dict[str, list[float]]] = {}
        rng = np.random.default_rng(first_seed)
        for index in range(6 * n):
            phantom = make_phantom(modality, first_seed + index, size=SIZE)
            for name, mask in phantom.masks.items():
                dices = names.setdefault(f"{modality} {name}", {"true": [], "jittered": [], "grid": [], "mask": []})
                if len(dices["true"]) >= n:
                    continue
                image = phantom.image if phantom.image.ndim == 3 else phantom.image[..., None].repeat(3, axis=2)
                embedding = model.embed(image)
                coarse = coarse_mask(rng, mask)
                prompts: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
                    "true": (true_box(mask), None),
                    "jittered": (jitter_box(rng, mask, 0.85, 1.4, 0.12), None),
                    "grid": (true_box(coarse), None),
                    "mask": (true_box(coarse), coarse),
                }
                for kind, (box, given) in prompts.items():
                    result = model.decode(embedding, box[None], mask=given).mask
                    dices[kind].append(2 * float((result & mask).sum()) / float(result.sum() + mask.sum()))
            if all(len(dices["true"]) >= n for dices in names.values()) and index >= 2 * n:
                break
        found.update(names)
    return {
        name: {**{kind: round(float(np.mean(values)), 3) for kind, values in kinds.items()}, "n": len(kinds["true"])}
        for name, kinds in sorted(found.items())
    }
