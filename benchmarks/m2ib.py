"""How much work a saliency map costs: ours against the plain way, side by side in one run.

The plain way runs the whole vision tower on every noise sample of every step and the text tower at every step, as the
published scripts do: once with gradients for all weights, once with the weights frozen. Ours runs the blocks up to the
bottleneck and the text once. Same equations, same noise, same map.

    python benchmarks/m2ib.py [--model ViT-B-16] [--layer 7] [--steps 3] [--samples 10]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from medclipsam.encoders import Encoder, load_open_clip
from medclipsam.saliency.m2ib import Schedule, m2ib_maps, noise_generator


def plain(encoder: Encoder, image: torch.Tensor, text: str, layer: int, steps: int, samples: int) -> torch.Tensor:
    """One map, every tower run in full at every step."""
    model, block = encoder.model, encoder.model.visual.transformer.resblocks[layer]
    device = image.device
    tokens = encoder.tokenizer([text]).to(device)
    generator = noise_generator(0, b"plane")
    state: dict[str, torch.Tensor] = {}

    def bottleneck(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if "alpha" not in state:
            state["alpha"] = torch.full_like(output[0].detach(), 5.0).requires_grad_(True)
        state["z"] = output[0].detach()
        lam = torch.sigmoid(state["alpha"])
        noise = torch.randn(samples, *output.shape[1:], generator=generator).to(device)
        return lam * output + (1 - lam) * noise

    handle = block.register_forward_hook(bottleneck)
    adam = None
    try:
        for _ in range(steps):
            features = F.normalize(model.visual(image.expand(samples, -1, -1, -1)), dim=-1)
            target = F.normalize(model.encode_text(tokens), dim=-1)
            loss = divergence(state["z"], state["alpha"]).mean() - (features @ target.T).mean()
            adam = adam or torch.optim.Adam([state["alpha"]], lr=1)
            adam.zero_grad()
            loss.backward()
            adam.step()
        return divergence(state["z"], state["alpha"].detach()).sum(dim=1)[1:]
    finally:
        handle.remove()


def divergence(z: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The published KL term, sigma = 1."""
    lam = torch.sigmoid(alpha)
    return 0.5 * ((lam * z) ** 2 + (1 - lam) ** 2 - torch.log((1 - lam) ** 2) - 1)


def ours(encoder: Encoder, image: torch.Tensor, text: str, layer: int, steps: int, samples: int) -> torch.Tensor:
    """One map by the library, prefix and text included."""
    encoder._texts.clear()
    with torch.no_grad():
        tokens = encoder.tower.prefix(image, layer)
    return m2ib_maps(
        encoder.tower,
        tokens,
        [0],
        encoder.encode_texts([text]),
        generators=[noise_generator(0, b"plane")],
        beta=[1.0],
        variance=1.0,
        layer=layer,
        schedule=Schedule((samples,) * steps),
    )


def seconds(work: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    if device.type == "cuda":
        work()
        torch.cuda.synchronize()
    start = time.perf_counter()
    made = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="open_clip ViT with random weights")
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="the ratio hardly depends on it; the default is 10")
    parser.add_argument("--samples", type=int, default=10)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_open_clip(given.model, seed=0, device=device)
    image = torch.randn(1, 3, encoder.image_size, encoder.image_size, generator=torch.Generator().manual_seed(1))
    image = image.to(device)
    text = "a malignant breast tumour with irregular margins on an ultrasound image"
    arguments = (encoder, image, text, given.layer, given.steps, given.samples)
    print(f"{given.model}, block {given.layer}, {given.steps} steps of {given.samples} samples, {device}")
    encoder.model.requires_grad_(True)
    unfrozen, first = seconds(lambda: plain(*arguments), device)
    encoder.model.requires_grad_(False)
    encoder.model.zero_grad(set_to_none=True)
    frozen, second = seconds(lambda: plain(*arguments), device)
    mine, third = seconds(lambda: ours(*arguments), device)
    error = float((third.flatten() - second).abs().max() / second.abs().max())
    assert torch.allclose(first, second, rtol=1e-2)
    print(f"plain, gradients for all weights: {unfrozen:7.2f} s  {unfrozen / mine:5.1f} x ours")
    print(f"plain, weights frozen:            {frozen:7.2f} s  {frozen / mine:5.1f} x ours")
    print(f"ours:                             {mine:7.2f} s")
    print(f"largest difference between the maps, relative to the map's maximum: {error:.1e}")


if __name__ == "__main__":
    main()
