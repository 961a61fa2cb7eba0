"""How much memory each set of weights needs: its parameters, and what its work takes beside them at the most.

The table in docs/weights.md comes from here. Sets that are not on the machine are measured with random weights of their
architecture, which take the same memory. Each is measured in a process of its own: on a CPU as the growth of the
resident memory's peak, on a GPU as the peak of the allocator.

    python benchmarks/memory.py [--device cpu] [NAME ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from medclipsam.base.options import ZeroShotOptions
from medclipsam.encoders import Encoder, load_open_clip
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import ZeroShot, load_encoder
from medclipsam.sam import SamModel
from medclipsam.sam.build import build_sam, preprocessing_of, speed_up
from medclipsam.targets import TargetSet
from medclipsam.weights import REGISTRY, resolve

# A batch of planes and two targets: what one request has in memory at the same time.
PLANES, TEXT = 8, "left lung; right lung"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *REGISTRY], metavar="NAME", help="all by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if len(given.names) == 1:
        weights, working = measure(given.names[0], given.device)
        print(f"{given.names[0]:<12} parameters {weights / 2**20:>7,.0f} MiB   working {working / 2**20:>7,.0f} MiB")
        return
    for name in given.names or REGISTRY:
        subprocess.run([sys.executable, __file__, name, "--device", given.device], check=True)


def measure(name: str, device: str) -> tuple[int, int]:
    """Return the bytes of a set's parameters and of what its work takes beside them."""
    if REGISTRY[name].kind == "sam":
        sam = _sam(name, device)
        plane = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
        box = np.array([[50.0, 50.0, 300.0, 300.0]])
        work = lambda: sam.decode(sam.embed(plane), box, voting="mrm")  # noqa: E731
        return _bytes_of(sam.network), _peak(work, device)
    # a CLIP on a SAM's image embedding has that SAM's encoder at work
    sam = _sam("lite_medsam" if REGISTRY[name].arch == "embedding" else "demo_sam", device)
    encoder = _encoder(name, device, sam)
    pipeline = ZeroShot(encoder, sam, TargetSet.load(), batch_planes=PLANES)
    options = ZeroShotOptions(presence=False, steps=1, volume="planes")
    image = _volume()
    # the stand-in of a missing set has a text tower of another size
    weights = REGISTRY[name].size if REGISTRY[name].missing() else _bytes_of(encoder.model)
    return weights, _peak(lambda: pipeline.segment(image, TEXT, options), device)


def _encoder(name: str, device: str, sam: SamModel) -> Encoder:
    if REGISTRY[name].in_package or not REGISTRY[name].missing():
        return load_encoder(resolve(name), device=device, sam=sam)
    # BiomedCLIP's vision tower is a ViT-B/16 at 224 pixels, and its text tower a BERT-base; only the first works here.
    return load_open_clip("ViT-B-16", device=device)


def _sam(name: str, device: str) -> SamModel:
    published = REGISTRY[name]
    if published.in_package or not published.missing():
        return SamModel.from_weights(resolve(name), device=device)
    network = build_sam(published.arch)
    speed_up(network)
    return SamModel(network, identity="random", preprocessing=preprocessing_of(published.arch), device=device)


def _volume() -> MedicalImage:
    return MedicalImage.from_array(np.random.default_rng(0).integers(0, 255, (PLANES, 512, 512), dtype=np.uint8))


def _bytes_of(network: torch.nn.Module) -> int:
    return sum(parameter.nelement() * parameter.element_size() for parameter in network.parameters())


def _peak(work: Callable[[], object], device: str) -> int:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    # 5 sets the peak of the resident memory back to what it is now
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
