"""What each step of a prompt costs: the published way, eager torch, and ours, side by side in one run.

- published: M2IB as the published scripts run it (10 steps of 10 noise samples, the whole vision tower on every sample
  and the text tower at every step, with gradients for all weights), and image encoders as their packages run them. A
  map of a hundred samples takes minutes, so that one step of a few samples is timed and multiplied.
- eager: our pipeline with the published 10 x 10 samples and torch alone.
- ours: the defaults.

Rows: the default weights; random weights of the sizes of BiomedCLIP and SAM ViT-B; a network of the weakly supervised
step. "published" of a prompt is the sum of its published steps: its scripts repeat everything for a second text.

    python benchmarks/steps.py [--images 3] [--size 512] [--small]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from medclipsam.base.engine import compile_forward
from medclipsam.base.options import ZeroShotOptions
from medclipsam.demo.phantoms import make_phantom
from medclipsam.encoders import Encoder, PlaneInput, load_open_clip
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.refine import Clicks, refine
from medclipsam.pipeline.zero_shot import ZeroShot, load_encoder
from medclipsam.saliency import FAST, PUBLISHED, SaliencyRequest, SaliencySettings, Schedule, saliency_maps
from medclipsam.sam import SamModel, build_sam
from medclipsam.sam.build import load_weights, speed_up
from medclipsam.targets import TargetSet
from medclipsam.training.network import FinestLevel, Network
from medclipsam.training.plan import topology
from medclipsam.weights import default_pair, resolve_pair

STEPS, SAMPLES = 10, 10
FIRST, SECOND = "both lungs", "heart"

_TINY_SAM: dict[str, Any] = {
    **{"image_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    **{"window_size": 3, "global_attn_indexes": [1], "prompt_dim": 32, "mask_in_chans": 4, "decoder_depth": 1},
    **{"decoder_mlp_dim": 32, "decoder_num_heads": 2, "iou_head_depth": 2, "iou_head_hidden_dim": 16},
    **{"pixel_mean": [120.0, 118.0, 110.0], "pixel_std": [60.0, 57.0, 55.0]},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="images that are timed; one more warms up")
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument(
        "--small", action="store_true", help="small random networks: tries everything, measures nothing"
    )
    given = parser.parse_args(arguments)
    images = [draw(seed, given.size) for seed in range(given.images + 1)]
    print(f"{torch.get_num_threads()} threads, {given.images} images of {given.size} pixels, medians in seconds")
    print(f"{'':<34}{'published':>11}{'eager':>9}{'ours':>9}{'published/ours':>16}{'eager/ours':>12}")
    if not given.small:
        prompts(f"weights {default_pair()}", *of_package(), images)
    prompts("ViT-B sizes, random weights", *of_vit_b(given.small), images)
    network(given.small)


def draw(seed: int, size: int) -> MedicalImage:
    """Return a chest X-ray phantom."""
    return MedicalImage.from_array(make_phantom("XR", seed, size=size).image, modality="DX")


def of_package() -> tuple[torch.nn.Module, Encoder, ZeroShot, ZeroShot]:
    """Return the image encoder as published, a CLIP with it, and the pipelines eager and ours: the default pair."""
    clip, sam = resolve_pair(default_pair())
    published = load_weights(sam.path, sam.arch).image_encoder.eval()
    eager_sam, our_sam = (SamModel.from_weights(sam, engine=engine) for engine in ("torch", "auto"))
    eager = ZeroShot(load_encoder(clip, sam=eager_sam), eager_sam, TargetSet.load())
    ours = ZeroShot(load_encoder(clip, sam=our_sam).use_engine(), our_sam, TargetSet.load())
    return published, load_encoder(clip, sam=eager_sam), eager, ours


def of_vit_b(small: bool) -> tuple[torch.nn.Module, Encoder, ZeroShot, ZeroShot]:
    """Return the same with random weights of the sizes of BiomedCLIP's towers and SAM ViT-B."""
    model, arch = ("ViT-S-32-alt", _TINY_SAM) if small else ("ViT-B-16", "vit_b")
    sams = []
    for engine in ("torch", "auto"):
        torch.manual_seed(0)
        sam = build_sam(arch)
        speed_up(sam)
        sams.append(SamModel(sam, identity=f"random {arch if isinstance(arch, str) else 'tiny'}", engine=engine))
    eager = ZeroShot(load_open_clip(model, seed=0), sams[0], TargetSet.load())
    ours = ZeroShot(load_open_clip(model, seed=0).use_engine(), sams[1], TargetSet.load())
    torch.manual_seed(0)
    return build_sam(arch).image_encoder.eval(), load_open_clip(model, seed=0), eager, ours


def prompts(
    title: str,
    image_encoder: torch.nn.Module,
    plain: Encoder,
    eager: ZeroShot,
    ours: ZeroShot,
    images: list[MedicalImage],
) -> None:
    """Print the rows of one pair of weights."""
    print(title)
    layer = int(ours.encoder.defaults.get("saliency", {}).get("layer", min(7, ours.encoder.tower.n_blocks - 1)))
    plane = images[0].model_plane(0, None)
    map_published = published_map(plain, plane, layer)
    maps = [one_map(pipe.encoder, plane, layer, schedule) for pipe, schedule in ((eager, PUBLISHED), (ours, FAST))]
    row("saliency map", map_published, *maps)
    size = ours.sam.image_size
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    encoders = [seconds(lambda run=run: run(pixels)) for run in (image_encoder, eager.sam.encoder, ours.sam.encoder)]
    row("SAM's image encoder", *encoders)
    towers = [presence(pipe.encoder, plane, layer) for pipe in (eager, ours)]
    row(
        "presence of a plane, embedded" if ours.encoder.tower.n_prefix_tokens == 0 else "presence of a plane",
        None,
        *towers,
    )
    published = map_published + encoders[0]
    steps = [measure(pipe, images, schedule) for pipe, schedule in ((eager, "published"), (ours, "fast"))]
    names, wholes = ("first prompt", "second text", "click"), (published, published, None)
    for name, whole, *parts in zip(names, wholes, *steps, strict=True):
        row(name, whole, *parts)
    print(
        f"  second text: {steps[1][1] / steps[1][0]:.2f} of the first, {steps[1][1] / published:.4f} of the published"
    )


def row(name: str, published: float | None, eager: float, ours: float) -> None:
    told = "" if published is None else f"{published:.2f}"
    ratio = "" if published is None else f"{published / ours:.1f}"
    print(f"  {name:<32}{told:>11}{eager:>9.3f}{ours:>9.3f}{ratio:>16}{eager / ours:>12.1f}", flush=True)


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median time of some runs after one that warms up."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def published_map(encoder: Encoder, plane: np.ndarray, layer: int, samples: int = 2) -> float:
    """Return the time of the published optimisation, from a step of a few samples."""
    tokens = encoder.tokenizer(["a malignant breast tumour with irregular margins on an ultrasound image"])
    inputs = encoder.preprocess(plane)[0][None].expand(samples, -1, -1, -1)
    embedder = getattr(getattr(encoder.tower, "embedder", None), "image_encoder", None)
    modules = [encoder.model, *([embedder] if embedder is not None else [])]

    def step() -> None:
        with torch.enable_grad():
            z = encoder.tower.prefix(inputs, layer) if embedder is None else vision_of(encoder, embedder, inputs)
            alpha = torch.full_like(z[0].detach(), 5.0).requires_grad_(True)
            lam = torch.sigmoid(alpha)
            noisy = lam * z + (1 - lam) * torch.randn_like(z)
            features = F.normalize(encoder.tower.suffix(noisy, layer), dim=-1)
            target = F.normalize(encoder.model.encode_text(tokens), dim=-1)
            kl = 0.5 * ((lam * z[0].detach()) ** 2 + (1 - lam) ** 2 - torch.log((1 - lam) ** 2) - 1)
            (kl.mean() - (features @ target.T).mean()).backward()

    try:
        for module in modules:
            module.requires_grad_(True)
        return seconds(step, 1) * STEPS * SAMPLES / samples
    finally:
        for module in modules:
            module.requires_grad_(False)
            module.zero_grad(set_to_none=True)


def vision_of(encoder: Encoder, embedder: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the tokens of a CLIP on SAM's embedding, with gradients for SAM's encoder too."""
    tokens: torch.Tensor = encoder.model.visual.tokens(embedder(inputs))
    return tokens


def one_map(encoder: Encoder, plane: np.ndarray, layer: int, schedule: Schedule) -> float:
    """Return the time of a map, with its plane's prefix."""
    tensor, fit = encoder.preprocess(plane)
    asked = SaliencyRequest(0, encoder.text_prototype([FIRST]))
    settings = SaliencySettings("m2ib", layer=layer, schedule=schedule)

    def work() -> None:
        tokens = encoder.prefix_tokens([PlaneInput(plane, tensor, fit, b"plane")], layer)
        saliency_maps(encoder, tokens, [fit], [b"plane"], [asked], settings)

    return seconds(work, 2)


def presence(encoder: Encoder, plane: np.ndarray, layer: int) -> float:
    """Return the time of a plane's image feature; a CLIP on SAM's embedding begins with the embedding."""
    tensor, fit = encoder.preprocess(plane)

    def work() -> None:
        encoder.forget_planes()
        encoder.features(encoder.prefix_tokens([PlaneInput(plane, tensor, fit, b"plane")], layer), layer)

    return seconds(work)


def measure(pipeline: ZeroShot, images: Sequence[MedicalImage], preset: str) -> list[float]:
    """Return the median seconds of a first prompt, a second text and a click; the first image warms up."""
    options = ZeroShotOptions(presence=False, saliency="m2ib", **({"preset": preset} if preset == "published" else {}))
    times = []
    for image in images:
        first, result = timed(lambda image=image: pipeline.segment(image, FIRST, options))
        second, _ = timed(lambda image=image: pipeline.segment(image, SECOND, options))
        mask = (result.labels > 0).astype(np.uint8)
        rows, columns = np.nonzero(mask[0] == 0)
        outside = [int(columns[len(rows) // 2]), int(rows[len(rows) // 2])]
        clicks = {1: Clicks.from_ijk(image, foreground=[outside])}
        click, _ = timed(lambda image=image, m=mask, c=clicks: refine(image, pipeline.sam, m, c))
        times.append((first, second, click))
    return [statistics.median(step) for step in zip(*times[1:], strict=True)]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def network(small: bool) -> None:
    """Print the row of a network of the weakly supervised step: a window of 256 x 256 pixels."""
    print("network of the weakly supervised step, random weights")
    (rows, columns), strides, kernels = topology((256, 256))
    filters = [min((2 if small else 32) * 2**level, 512) for level in range(len(strides))]
    plan: Any = SimpleNamespace(channels=1, n_outputs=3, kernels=kernels, strides=strides, filters=filters, heads=2)
    torch.manual_seed(0)
    module = FinestLevel(Network(plan)).eval().requires_grad_(False)
    window = torch.rand(1, 1, rows, columns)
    converted = compile_forward(module, (window,), None, name="network")
    row("a window", None, seconds(lambda: module(window)), seconds(lambda: converted(window)))


if __name__ == "__main__":
    main()
