"""NIB against the integral written out, and its completeness."""

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F

from medclipsam.encoders.towers import Tower, split_tower
from medclipsam.saliency.nib import nib_maps

LAYER = 1


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 48, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8},
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    )
    return split_tower(model.double().eval().requires_grad_(False).visual)


@pytest.fixture(scope="module")
def tokens(tower: Tower) -> torch.Tensor:
    return tower.prefix(torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(7)).double(), LAYER)


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(3)).double(), dim=-1)


def naive(tower: Tower, z: torch.Tensor, text: torch.Tensor, steps: int) -> torch.Tensor:
    """Shares of all elements [1+P, D] by the sum in the paper, one point at a time."""
    shares = torch.zeros_like(z)
    for step in range(1, steps + 1):
        point = (z * step / steps).clone().requires_grad_(True)
        F.cosine_similarity(tower.suffix(point[None], LAYER)[0], text, dim=0).backward()
        shares += z * point.grad / steps
    return shares


def test_maps_equal_the_plain_sum(tower: Tower, tokens: torch.Tensor, texts: torch.Tensor) -> None:
    made = nib_maps(tower, tokens, [0, 1, 1], texts, layer=LAYER, steps=6)
    assert made.shape == (3, 6, 6)
    for row, plane in enumerate([0, 1, 1]):
        expected = naive(tower, tokens[plane], texts[row], 6).sum(dim=1)[1:].view(6, 6)
        torch.testing.assert_close(made[row], expected)


class Mean:
    """A tower without normalisation, whose similarity is smooth down to nothing; it has no class token."""

    n_blocks, n_prefix_tokens, grid = 2, 0, (6, 6)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(48, 24, generator=generator).double()
        self.bias = torch.randn(24, generator=generator).double()

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        return torch.tanh(tokens.mean(dim=1) @ self.weight) + self.bias


def test_shares_add_up_to_what_the_image_adds(tokens: torch.Tensor, texts: torch.Tensor) -> None:
    tower: Any = Mean()
    z = tokens[:1, 1:]

    def similarity(at: torch.Tensor) -> float:
        return float(F.cosine_similarity(tower.suffix(at, LAYER)[0], texts[0], dim=0))

    made = nib_maps(tower, z, [0], texts[:1], layer=LAYER, steps=400)
    added = similarity(z) - similarity(torch.zeros_like(z))
    assert abs(added) > 0.1
    assert float(made.sum()) == pytest.approx(added, abs=2e-3)


def test_negatives_are_subtracted(tower: Tower, tokens: torch.Tensor, texts: torch.Tensor) -> None:
    """The attribution is linear in what is attributed."""
    both = nib_maps(tower, tokens[:1], [0], texts[:1], [texts[1:]], layer=LAYER, contrast=0.4)
    alone = [nib_maps(tower, tokens[:1], [0], texts[row : row + 1], layer=LAYER) for row in range(3)]
    torch.testing.assert_close(both, alone[0] - 0.2 * (alone[1] + alone[2]))


def test_the_callback_can_stop_the_work(tower: Tower, tokens: torch.Tensor, texts: torch.Tensor) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nib_maps(tower, tokens[:1], [0], texts[:1], layer=LAYER, on_step=stop)
