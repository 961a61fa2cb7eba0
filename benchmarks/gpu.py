"""What a GPU makes of the parts that take time, with random weights: ratios to the first line of each part.

Image encoders of SAM (ViT-B, ViT-H: the package's attention beside fused attention) and LiteMedSAM, towers of
BiomedCLIP's size, M2IB, a training step of the network, and a CT volume from end to end; float32 beside bfloat16, and
batches. A line that does not fit into the memory says so.

    python benchmarks/gpu.py [--device cuda] [--small]

It takes less than ten minutes on a GPU. `--small`, the default without a GPU, tries everything with tiny sizes: its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from medclipsam.base.options import ZeroShotOptions
from medclipsam.encoders import load_open_clip
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.saliency.m2ib import Schedule, m2ib_maps, noise_generator
from medclipsam.sam import SamModel, build_sam
from medclipsam.sam.build import speed_up
from medclipsam.targets import TargetSet
from medclipsam.training.network import Network, SegmentationLoss
from medclipsam.training.plan import topology

TINY_SAM: dict[str, Any] = {
    **{"image_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    **{"window_size": 3, "global_attn_indexes": [1], "prompt_dim": 32, "mask_in_chans": 4, "decoder_depth": 1},
    **{"decoder_mlp_dim": 32, "decoder_num_heads": 2, "iou_head_depth": 2, "iou_head_hidden_dim": 16},
    **{"pixel_mean": [120.0, 118.0, 110.0], "pixel_std": [60.0, 57.0, 55.0]},
}


@dataclass
class Sizes:
    """How large everything is."""

    sams: dict[str, Any] = field(default_factory=lambda: {"vit_b": "vit_b", "vit_h": "vit_h"})
    lite: bool = True
    pair_sam: Any = "vit_b"
    clip: str = "ViT-B-16"
    text: dict[str, int] = field(default_factory=dict)  # BERT-base
    batches: tuple[int, ...] = (1, 4)
    tower_batches: tuple[int, ...] = (1, 8, 32)
    layer: int = 7
    steps: int = 10
    samples: int = 10
    planes: int = 200
    side: int = 512
    patch: int = 512
    train_batch: int = 12
    width: int = 32
    repeats: int = 5


SMALL = Sizes(
    sams={"tiny": TINY_SAM},
    lite=False,
    pair_sam=TINY_SAM,
    clip="ViT-S-32-alt",
    text={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    batches=(1, 2),
    tower_batches=(1, 2),
    layer=9,
    steps=1,
    samples=2,
    planes=2,
    side=64,
    patch=32,
    train_batch=2,
    width=4,
    repeats=1,
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", default=not torch.cuda.is_available())
    given = parser.parse_args(arguments)
    sizes = SMALL if given.small else Sizes()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {'small sizes' if given.small else 'full sizes'}, random weights")
    start = time.perf_counter()
    for part in (image_encoders, towers, saliency, training_step, volume):
        table = Table(part.__doc__ or "", device, sizes.repeats)
        part(table, sizes, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"all of it: {time.perf_counter() - start:.0f} s")


class Table:
    """Lines of one part: milliseconds of one item and the ratio to the part's first line with the same `group`."""

    def __init__(self, title: str, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.first: dict[str, float] = {}
        print(f"== {title}", flush=True)

    def line(
        self, group: str, what: str, work: Callable[[], object], items: int = 1, repeats: int | None = None
    ) -> None:
        """Time `work`, which handles `items` items."""
        try:
            seconds = self._seconds(work, repeats or self.repeats) / items
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            print(f"{group:<16}{what:<36} does not fit into the memory", flush=True)
            return
        first = self.first.setdefault(group, seconds)
        print(f"{group:<16}{what:<36}{1000 * seconds:>10.2f} ms{first / seconds:>8.2f} x", flush=True)

    def _seconds(self, work: Callable[[], object], repeats: int) -> float:
        if repeats > 1:
            work()  # warms up
        times = []
        for _ in range(repeats):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextlib.contextmanager
def precision(device: torch.device, bfloat16: bool, *, gradients: bool = False) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16), torch.inference_mode(not gradients):
        yield


def image_encoders(table: Table, sizes: Sizes, device: torch.device) -> None:
    """SAM's image encoders, a plane"""
    for name, arch in {**sizes.sams, **({"lite_medsam": "lite_medsam"} if sizes.lite else {})}.items():
        sam = build_sam(arch).requires_grad_(False)
        for way in ("as published", "sped up"):
            if way == "sped up":
                speed_up(sam)
            encoder = sam.image_encoder.to(device)
            for bfloat16 in (False, True):
                for batch in sizes.batches:
                    pixels = torch.rand(batch, 3, encoder.img_size, encoder.img_size, device=device)

                    def work(encoder: Any = encoder, pixels: torch.Tensor = pixels, low: bool = bfloat16) -> None:
                        with precision(device, low):
                            encoder(pixels)

                    table.line(name, f"{way}, {kind(bfloat16)}, batch {batch}", work, batch)


def towers(table: Table, sizes: Sizes, device: torch.device) -> None:
    """Towers of BiomedCLIP's size, an image or text"""
    from transformers import BertConfig, BertModel

    vision = load_open_clip(sizes.clip, seed=0, device=device).model.visual
    text = BertModel(BertConfig(**sizes.text)).eval().requires_grad_(False).to(device)
    side = vision.image_size[0]
    for bfloat16 in (False, True):
        for batch in sizes.tower_batches:
            pixels = torch.rand(batch, 3, side, side, device=device)
            tokens = torch.randint(0, 1000, (batch, 256), device=device)

            def see(pixels: torch.Tensor = pixels, low: bool = bfloat16) -> None:
                with precision(device, low):
                    vision(pixels)

            def read(tokens: torch.Tensor = tokens, low: bool = bfloat16) -> None:
                with precision(device, low):
                    text(tokens)

            table.line("vision", f"{kind(bfloat16)}, batch {batch}", see, batch)
            table.line("text", f"{kind(bfloat16)}, batch {batch}", read, batch)


def saliency(table: Table, sizes: Sizes, device: torch.device) -> None:
    """M2IB, a map"""
    encoder = load_open_clip(sizes.clip, seed=0, device=device)
    features = encoder.encode_texts(["lungs on a CT scan", "spine on a CT scan"])
    for bfloat16 in (False, True):
        for planes in sizes.batches:
            images = torch.rand(planes, 3, encoder.image_size, encoder.image_size, device=device)
            with torch.no_grad():
                tokens = encoder.tower.prefix(images, sizes.layer)

            def work(tokens: torch.Tensor = tokens, planes: int = planes, low: bool = bfloat16) -> None:
                with precision(device, low, gradients=True):
                    m2ib_maps(
                        encoder.tower,
                        tokens,
                        [plane for plane in range(planes) for _ in range(2)],
                        features.repeat(planes, 1),
                        generators=[noise_generator(0, bytes([plane])) for plane in range(planes)],
                        beta=[0.1] * (2 * planes),
                        variance=1.0,
                        layer=sizes.layer,
                        schedule=Schedule((sizes.samples,) * sizes.steps),
                    )

            table.line("m2ib", f"{kind(bfloat16)}, {planes} planes of 2 targets", work, 2 * planes)


def training_step(table: Table, sizes: Sizes, device: torch.device) -> None:
    """A training step of the network, a plane"""
    (rows, columns), strides, kernels = topology((sizes.patch, sizes.patch))
    filters = [min(sizes.width * 2**level, 512) for level in range(len(strides))]
    plan: Any = SimpleNamespace(channels=1, n_outputs=3, kernels=kernels, strides=strides, filters=filters, heads=2)
    network, loss = Network(plan).to(device).train(), SegmentationLoss()
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    pixels = torch.rand(sizes.train_batch, 1, rows, columns, device=device)
    labels = torch.randint(0, 3, (sizes.train_batch, rows, columns), device=device)
    for bfloat16 in (False, True):

        def work(low: bool = bfloat16) -> None:
            optimiser.zero_grad(set_to_none=True)
            with precision(device, low, gradients=True):
                levels = network(pixels)
            loss(levels, labels).backward()
            optimiser.step()

        table.line("training step", f"{kind(bfloat16)}, batch {sizes.train_batch}", work, sizes.train_batch)


def volume(table: Table, sizes: Sizes, device: torch.device) -> None:
    """A CT volume from end to end, a plane"""
    encoder = load_open_clip(sizes.clip, seed=0, device=device)
    sam = build_sam(sizes.pair_sam)
    speed_up(sam)
    noise = np.random.default_rng(0).integers(0, 255, (sizes.planes, sizes.side, sizes.side), dtype=np.uint8)
    image = MedicalImage.from_array(noise)
    options = ZeroShotOptions(
        presence=False,
        layer=sizes.layer,
        steps=sizes.steps,
        samples=sizes.samples,
        visual_prompt="boxes",
        volume="planes",
    )
    for batch in (1, 8):
        pipeline = ZeroShot(
            encoder, SamModel(sam, identity=f"random {batch}", device=device), TargetSet.load(), batch_planes=batch
        )
        table.line(
            "volume",
            f"{sizes.planes} planes, {batch} side by side",
            lambda pipeline=pipeline: pipeline.segment(image, "both lungs", options),
            sizes.planes,
            repeats=1,
        )


def kind(bfloat16: bool) -> str:
    return "bfloat16" if bfloat16 else "float32"


if __name__ == "__main__":
    main()
