"""M2IB against a plain, slow version of the same equations with the same noise."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from medclipsam.base.errors import OptionError
from medclipsam.demo.phantoms import make_phantom
from medclipsam.encoders import load_folder
from medclipsam.encoders.towers import Tower, split_tower
from medclipsam.pipeline.zero_shot import load_encoder
from medclipsam.saliency.m2ib import FAST, PUBLISHED, Schedule, kl_divergence, m2ib_maps, noise_generator
from medclipsam.weights import resolve


def naive_m2ib(
    visual: torch.nn.Module,
    block: torch.nn.Module,
    image: torch.Tensor,
    text: torch.Tensor,
    generator: torch.Generator,
    *,
    beta: float,
    variance: float,
    steps: int,
    samples: int,
    negatives: torch.Tensor | None = None,
    contrast: float = 0.0,
) -> torch.Tensor:
    """Run the whole tower for every sample of every step, one plane at a time, by the letter of the equations."""
    seen = SimpleNamespace(z=None, replace=None)

    def bottleneck(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        if seen.replace is None:
            seen.z = output.detach()
            return None
        return seen.replace

    handle = block.register_forward_hook(bottleneck)
    try:
        with torch.no_grad():
            visual(image[None])
        z = seen.z[0]
        alpha = torch.full_like(z, 5.0, requires_grad=True)
        adam = torch.optim.Adam([alpha], lr=1)
        for _ in range(steps):
            eps = torch.randn(samples, *z.shape, generator=generator).to(z.dtype) * variance**0.5
            lam = torch.sigmoid(alpha)
            kl = 0.5 * ((lam * z) ** 2 / variance + (1 - lam) ** 2 - torch.log((1 - lam) ** 2) - 1)
            loss = beta * kl.mean()
            for sample in range(samples):
                seen.replace = (lam * z + (1 - lam) * eps[sample])[None]
                feature = visual(image[None])[0]
                loss = loss - F.cosine_similarity(feature, text, dim=0) / samples
                if negatives is not None:
                    for negative in negatives:
                        similarity = F.cosine_similarity(feature, negative, dim=0)
                        loss = loss + contrast * similarity / samples / len(negatives)
            adam.zero_grad()
            loss.backward()
            adam.step()
        lam = torch.sigmoid(alpha.detach())
        kl = 0.5 * ((lam * z) ** 2 / variance + (1 - lam) ** 2 - torch.log((1 - lam) ** 2) - 1)
        return kl.sum(dim=1)[1:]
    finally:
        handle.remove()


def small_clip(dtype: torch.dtype) -> open_clip.CLIP:
    torch.manual_seed(0)
    return (
        open_clip.CLIP(
            embed_dim=24,
            vision_cfg={"image_size": 48, "layers": 4, "width": 48, "head_width": 16, "patch_size": 8},
            text_cfg={"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
        )
        .to(dtype)
        .eval()
        .requires_grad_(False)
    )


def unit(*shape: int, dtype: torch.dtype, seed: int = 3) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype), dim=-1)


def images_of(count: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7)).to(dtype)


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours.flatten() - reference.flatten()).abs().max() / reference.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("beta", "variance", "layer", "contrast"), [(0.1, 1.0, 1, 0.0), (2.0, 0.3, 2, 0.7)])
def test_maps_equal_the_plain_version(
    dtype: torch.dtype, tolerance: float, beta: float, variance: float, layer: int, contrast: float
) -> None:
    """Two planes, two targets, all in one optimisation, against one slow run each."""
    model = small_clip(dtype)
    tower = split_tower(model.visual)
    images, texts, negatives = images_of(2, 48, dtype), unit(2, 24, dtype=dtype), unit(3, 24, dtype=dtype, seed=9)
    pairs = [(0, 0), (1, 0), (1, 1)]
    contents = [b"first plane", b"second plane"]
    maps = m2ib_maps(
        tower,
        tower.prefix(images, layer),
        [plane for plane, _ in pairs],
        texts[[target for _, target in pairs]],
        [negatives] * len(pairs),
        generators=[noise_generator(11, content) for content in contents],
        beta=[beta] * len(pairs),
        variance=variance,
        layer=layer,
        schedule=Schedule((3,) * 6),
        contrast=contrast,
    )
    assert maps.shape == (3, 6, 6)
    for made, (plane, target) in zip(maps, pairs, strict=True):
        reference = naive_m2ib(
            model.visual,
            model.visual.transformer.resblocks[layer],
            images[plane],
            texts[target],
            noise_generator(11, contents[plane]),
            beta=beta,
            variance=variance,
            steps=6,
            samples=3,
            negatives=negatives,
            contrast=contrast,
        )
        assert relative(made, reference) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3)])
def test_maps_equal_the_plain_version_at_biomedclip_size(
    biomedclip_folder: Path, dtype: torch.dtype, tolerance: float
) -> None:
    encoder = load_folder(biomedclip_folder)
    if dtype is torch.float64:
        encoder.double()
    image, text = images_of(1, 224, dtype), encoder.encode_texts(["left lung"])
    made = m2ib_maps(
        encoder.tower,
        encoder.tower.prefix(image, 9),
        [0],
        text,
        generators=[noise_generator(0, b"plane")],
        beta=[1.0],
        variance=1.0,
        layer=9,
        schedule=Schedule((2, 2)),
    )
    trunk = encoder.model.visual.trunk
    reference = naive_m2ib(
        encoder.model.visual,
        trunk.blocks[9],
        image[0],
        text[0],
        noise_generator(0, b"plane"),
        beta=1.0,
        variance=1.0,
        steps=2,
        samples=2,
    )
    assert made.shape == (1, 14, 14)
    assert relative(made[0], reference) < tolerance


def scheduled_m2ib(
    tower: Tower, z: torch.Tensor, text: torch.Tensor, generator: torch.Generator, samples: Sequence[int], layer: int
) -> torch.Tensor:
    """One plane with kept slopes and paired noise, by the chain rule: d/dalpha = lambda (1 - lambda) d/dlambda."""
    alpha = torch.full_like(z, 5.0)
    adam = torch.optim.Adam([alpha], lr=1)
    slope = torch.zeros_like(z)
    for count in samples:
        lam = torch.sigmoid(alpha)
        if count:
            drawn = torch.randn(count // 2, *z.shape, generator=generator).to(z.dtype)
            total = torch.zeros_like(z)
            for eps in [*drawn, *-drawn, *([torch.zeros_like(z)] * (count % 2))]:
                noisy = (lam * z + (1 - lam) * eps).requires_grad_(True)
                similarity = F.cosine_similarity(tower.suffix(noisy[None], layer)[0], text, dim=0)
                (gradient,) = torch.autograd.grad(similarity, noisy)
                total += gradient * (z - eps)
            slope = total / count
        compression = (lam * z**2 - (1 - lam)) + 1 / (1 - lam)
        alpha.grad = (compression / z.numel() - slope) * lam * (1 - lam)
        adam.step()
    return kl_divergence(z, alpha, 1.0).sum(dim=1)[1:]


def test_kept_slopes_and_paired_noise_equal_the_plain_version() -> None:
    tower = split_tower(small_clip(torch.float64).visual)
    tokens, text = tower.prefix(images_of(1, 48, torch.float64), 1), unit(1, 24, dtype=torch.float64)
    samples = (1, 0, 2, 0, 0, 3, 0)
    made = m2ib_maps(
        tower,
        tokens,
        [0],
        text,
        generators=[noise_generator(4, b"plane")],
        beta=[1.0],
        variance=1.0,
        layer=1,
        schedule=Schedule(samples, paired=True),
    )
    reference = scheduled_m2ib(tower, tokens[0], text[0], noise_generator(4, b"plane"), samples, 1)
    assert relative(made[0], reference) < 1e-7


def test_paired_noise_has_its_mean_and_the_variance_of_independent_noise() -> None:
    schedule = Schedule((4, 1, 5), paired=True)
    four, one, five = (schedule.draw(step, (300, 50), noise_generator(step, b"")) for step in range(3))
    assert [len(four), len(one), len(five)] == [4, 1, 5]
    assert all(torch.allclose(noise.sum(dim=0), torch.zeros(300, 50), atol=1e-6) for noise in (four, one, five))
    assert abs(float(four.var()) - 1) < 0.03
    assert not one.any()


@pytest.mark.parametrize("samples", [(), (0, 2), (2, -1)])
def test_a_schedule_that_cannot_begin_is_refused(samples: tuple[int, ...]) -> None:
    with pytest.raises(OptionError):
        Schedule(samples)


@pytest.mark.parametrize(("modality", "text"), [("US", "breast tumour"), ("XR", "heart"), ("MR", "brain tumour")])
def test_the_fast_schedule_gives_nearly_the_map_of_many_samples(modality: str, text: str) -> None:
    """A twentieth of the published runs, on a phantom with the package's own transformer."""
    encoder = load_encoder(resolve("demo_clip"))
    plane = make_phantom(modality, 710_003, size=192, pathology=True).image
    if plane.ndim == 2:
        plane = np.repeat(plane[..., None], 3, axis=2)
    tensor, _ = encoder.preprocess(plane)
    tokens = encoder.tower.prefix(tensor[None], 1)
    asked = {"beta": [3.0], "variance": 1.0, "layer": 1}
    fast, many, independent = (
        m2ib_maps(
            encoder.tower,
            tokens,
            [0],
            encoder.text_prototype([text])[None],
            generators=[noise_generator(seed, b"")],
            schedule=schedule,
            **asked,
        ).flatten()
        for seed, schedule in ((0, FAST), (1, Schedule((40,) * 10, paired=True)), (0, Schedule((1,) * 5)))
    )
    assert FAST.work * 20 == PUBLISHED.work
    assert np.corrcoef(fast, many)[0, 1] > 0.97
    assert np.corrcoef(fast, many)[0, 1] > np.corrcoef(independent, many)[0, 1]


def run(
    tower: Tower, images: torch.Tensor, contents: Sequence[bytes], text: torch.Tensor, **extra: int
) -> torch.Tensor:
    return m2ib_maps(
        tower,
        tower.prefix(images, 2),
        list(range(len(images))),
        text.expand(len(images), -1),
        generators=[noise_generator(extra.get("seed", 0), content) for content in contents],
        beta=[1.0] * len(images),
        variance=1.0,
        layer=2,
        per_token=bool(extra.get("per_token", 0)),
    )


@pytest.mark.parametrize("per_token", [0, 1])
def test_a_plane_alone_equals_the_plane_in_a_batch_in_any_order(per_token: int) -> None:
    tower = split_tower(small_clip(torch.float64).visual)
    images, text = images_of(5, 48, torch.float64), unit(1, 24, dtype=torch.float64)
    contents = [bytes([index]) for index in range(5)]
    together = run(tower, images, contents, text, per_token=per_token)
    backwards = run(tower, images.flip(0), contents[::-1], text, per_token=per_token)
    alone = run(tower, images[3:4], contents[3:4], text, per_token=per_token)
    assert relative(backwards.flip(0), together) < 1e-9
    assert relative(alone[0], together[3]) < 1e-9


def test_the_seed_and_the_content_decide_the_noise() -> None:
    tower = split_tower(small_clip(torch.float64).visual)
    images, text = images_of(1, 48, torch.float64), unit(1, 24, dtype=torch.float64)
    first = run(tower, images, [b"a"], text)
    assert torch.equal(first, run(tower, images, [b"a"], text))
    assert not torch.allclose(first, run(tower, images, [b"a"], text, seed=1))
    assert not torch.allclose(first, run(tower, images, [b"b"], text))


def test_kl_is_that_of_two_normal_distributions() -> None:
    """Against torch.distributions, and finite where 1 - lambda underflows."""
    z = unit(7, 5, dtype=torch.float64) * 3
    alpha = torch.linspace(-4, 8, 35, dtype=torch.float64).view(7, 5)
    lam, variance = torch.sigmoid(alpha), 0.3
    bottleneck = torch.distributions.Normal(lam * z, (1 - lam) * variance**0.5)
    prior = torch.distributions.Normal(torch.zeros(()).double(), torch.tensor(variance**0.5).double())
    expected = torch.distributions.kl_divergence(bottleneck, prior)
    torch.testing.assert_close(kl_divergence(z, alpha, variance), expected)
    assert torch.isfinite(kl_divergence(torch.ones(3, 2), torch.full((3, 2), 80.0), 1.0)).all()


def test_gradients_stay_on_alpha() -> None:
    model = small_clip(torch.float32)
    run(split_tower(model.visual), images_of(1, 48, torch.float32), [b"a"], unit(1, 24, dtype=torch.float32))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_callback_can_stop_the_work() -> None:
    tower = split_tower(small_clip(torch.float32).visual)
    steps: list[int] = []

    def stop_at_third() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        m2ib_maps(
            tower,
            tower.prefix(images_of(1, 48, torch.float32), 2),
            [0],
            unit(1, 24, dtype=torch.float32),
            generators=[noise_generator(0, b"")],
            beta=[1.0],
            variance=1.0,
            layer=2,
            on_step=stop_at_third,
        )
    assert len(steps) == 3


@pytest.mark.cuda
def test_cuda_sees_the_same_noise_and_gives_the_same_map() -> None:
    model = small_clip(torch.float32)
    images, text = images_of(2, 48, torch.float32), unit(1, 24, dtype=torch.float32)
    on_cpu = run(split_tower(model.visual), images, [b"a", b"b"], text)
    model.cuda()
    on_gpu = run(split_tower(model.visual), images.cuda(), [b"a", b"b"], text.cuda())
    assert relative(on_gpu.cpu(), on_cpu) < 1e-2
