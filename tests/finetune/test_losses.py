"""Losses against plain double loops, and their limits."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError, OptionError
from medclipsam.finetune.losses import ContrastiveLoss
from medclipsam.finetune.options import Loss, LossOptions


def features(count, seed=0, size=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(F.normalize(torch.randn(count, size, generator=generator, dtype=dtype), dim=-1) for _ in range(2))


def by_loops(name, images, texts, temperature, beta1=0.0, beta2=0.0, captions=None):
    """The losses as their papers print them, one pair at a time."""
    count = len(images)
    captions = list(range(count)) if captions is None else captions
    s = [[float(images[i] @ texts[j]) / temperature for j in range(count)] for i in range(count)]

    def one(score, i, beta):
        others = [j for j in range(count) if captions[j] != captions[i]]
        if not others:
            return None
        hardness = sum(math.exp(beta * score(i, k)) for k in others)
        total = sum(len(others) * math.exp(beta * score(i, j)) / hardness * math.exp(score(i, j)) for j in others)
        if name in ("infonce", "hn-nce"):
            total += math.exp(score(i, i))
        return -score(i, i) + math.log(total)

    loss = 0.0
    for score, beta in ((lambda i, j: s[i][j], beta1), (lambda i, j: s[j][i], beta2)):
        values = [value for i in range(count) if (value := one(score, i, beta)) is not None]
        loss += sum(values) / len(values)
    return loss


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("infonce", {"temperature": 0.2}),
        ("dcl", {"temperature": 0.2}),
        ("hn-nce", {"temperature": 0.2, "beta1": 0.4, "beta2": 0.1}),
        ("dhn-nce", {"temperature": 0.6, "beta1": 0.15, "beta2": 0.15}),
        ("dhn-nce", {"temperature": 0.3, "beta1": 0.9, "beta2": 0.0}),
    ],
)
def test_value_is_that_of_a_plain_double_loop(name, constants, count):
    images, texts = features(count)
    loss = ContrastiveLoss(LossOptions(loss=name, **constants))(images, texts)
    assert float(loss) == pytest.approx(by_loops(name, images, texts, **constants), abs=1e-12)


def test_siglip_is_that_of_a_plain_double_loop():
    images, texts = features(5)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            logit = 10 * float(images[i] @ texts[j]) - 10
            expected -= math.log(1 / (1 + math.exp(-logit if i == j else logit))) / 5
    assert float(ContrastiveLoss(LossOptions(loss="siglip"))(images, texts)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["infonce", "dcl", "hn-nce", "dhn-nce"])
def test_same_captions_are_no_negatives(name):
    images, texts = features(5)
    captions = [0, 1, 0, 2, 1]
    loss = ContrastiveLoss(LossOptions(loss=name, temperature=0.5))
    betas = dict(zip(("beta1", "beta2"), loss.betas, strict=True))
    expected = by_loops(name, images, texts, 0.5, captions=captions, **betas)
    assert float(loss(images, texts, torch.tensor(captions))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", get_args(Loss))
def test_a_batch_of_one_caption_teaches_nothing_and_stays_finite(name):
    images = features(3)[0].requires_grad_()
    loss = ContrastiveLoss(LossOptions(loss=name))(images, features(3)[1], torch.zeros(3, dtype=torch.long))
    loss.backward()
    assert torch.isfinite(images.grad).all()
    if name != "siglip":
        assert float(loss) == 0
        assert not images.grad.any()


def test_dhn_nce_without_hardness_is_dcl_and_hn_nce_is_infonce():
    images, texts = features(6)
    for hard, plain in (("dhn-nce", "dcl"), ("hn-nce", "infonce")):
        one = ContrastiveLoss(LossOptions(loss=hard, temperature=0.3, beta1=0.0, beta2=0.0))(images, texts)
        other = ContrastiveLoss(LossOptions(loss=plain, temperature=0.3))(images, texts)
        assert float(one) == pytest.approx(float(other), abs=1e-12)


@pytest.mark.parametrize("name", get_args(Loss))
@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_finite_at_the_ends_of_the_cosine_with_a_small_temperature(name, cosine):
    images = torch.ones(4, 1).requires_grad_()
    texts = torch.full((4, 1), cosine).requires_grad_()
    loss = ContrastiveLoss(LossOptions(loss=name, temperature=0.01))(images, texts)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(images.grad).all()
    assert torch.isfinite(texts.grad).all()


def test_harder_negatives_weigh_more():
    images, texts = features(6)
    gradients = {}
    for beta in (0.0, 1.0):
        moved = texts.clone().requires_grad_()
        ContrastiveLoss(LossOptions(loss="dhn-nce", temperature=0.5, beta1=beta, beta2=0.0))(images, moved).backward()
        gradients[beta] = moved.grad
    similarity = (images @ texts.T).fill_diagonal_(-2)
    row = 0
    hardest = int(similarity[row].argmax())
    loss = [
        float(ContrastiveLoss(LossOptions(loss="dhn-nce", temperature=0.5, beta1=b))(images, texts)) for b in (0, 1.0)
    ]
    assert loss[1] > loss[0]
    assert not torch.allclose(gradients[0.0][hardest], gradients[1.0][hardest])


def test_computes_in_float32_under_autocast():
    images, texts = features(4, dtype=torch.float32)
    plain = ContrastiveLoss(LossOptions())(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ContrastiveLoss(LossOptions())(images, texts)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_refuses_what_is_no_batch_of_pairs():
    images, texts = features(3)
    with pytest.raises(InputError, match="at least two pairs"):
        ContrastiveLoss(LossOptions())(images[:1], texts[:1])
    with pytest.raises(InputError, match=r"\[B, E\]"):
        ContrastiveLoss(LossOptions())(images, texts[:2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "triplet"}, "loss.*dhn-nce"),
        ({"temperature": 0.0}, "temperature.*above 0"),
        ({"beta1": -1.0}, "beta1.*0 to 10"),
        ({"loss": "dcl", "beta2": 0.1}, "beta2.*dcl"),
    ],
)
def test_refuses_options_out_of_range(given, message):
    with pytest.raises(OptionError, match=message):
        LossOptions(**given)
