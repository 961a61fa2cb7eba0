"""Retrieval against a naive version, with ties and in galleries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError
from medclipsam.finetune.retrieval import retrieval, top_hits


def pairs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(count, 8, generator=generator), dim=-1)
    return images, F.normalize(images + 0.5 * torch.randn(count, 8, generator=generator), dim=-1)


def naive(images, texts, k):
    hits = []
    for i in range(len(images)):
        order = sorted(range(len(texts)), key=lambda j: -float(images[i].double() @ texts[j].double()))
        hits.append(float(i in order[:k]))
    return np.array(hits)


def test_rates_are_those_of_a_naive_search():
    images, texts = pairs(40)
    found = retrieval(images, texts, gallery=None)
    for k in (1, 2):
        assert found.rates[f"image to text top-{k}"] == naive(images, texts, k).mean()
        assert found.rates[f"text to image top-{k}"] == naive(texts, images, k).mean()
    assert 0 < found.score < 1
    assert found.hits.mean() == pytest.approx(found.score)


def test_ties_count_as_often_as_a_random_order_would_find_them():
    similarity = np.array([[0.5, 0.5, 0.5, 0.1], [0.9, 0.5, 0.5, 0.1], [0.9, 0.8, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]])
    np.testing.assert_allclose(top_hits(similarity, 1), [1 / 3, 0, 0, 1])
    np.testing.assert_allclose(top_hits(similarity, 2), [2 / 3, 1 / 2, 0, 1])


def test_a_collapsed_model_reaches_chance():
    same = F.normalize(torch.ones(20, 4), dim=-1)
    found = retrieval(same, same, gallery=None)
    assert found.rates["image to text top-1"] == pytest.approx(1 / 20)
    assert found.rates["text to image top-2"] == pytest.approx(2 / 20)


def test_galleries_cover_every_pair_and_repeat_by_seed():
    images, texts = pairs(107)
    found = retrieval(images, texts, gallery=20, runs=3, seed=4)
    again = retrieval(images, texts, gallery=20, runs=3, seed=4)
    other = retrieval(images, texts, gallery=20, runs=3, seed=5)
    assert found.rates == again.rates != other.rates
    assert found.gallery == 20
    assert found.hits.shape == (107,)
    whole = retrieval(images, texts, gallery=None)
    # a smaller gallery has fewer to be mistaken for
    assert found.score > whole.score
    assert max(found.deviations.values()) > 0


def test_fewer_pairs_than_a_gallery_are_one_gallery():
    images, texts = pairs(9)
    assert retrieval(images, texts, gallery=50).rates == retrieval(images, texts, gallery=None).rates


def test_refuses_what_cannot_be_searched():
    images, texts = pairs(3)
    with pytest.raises(InputError, match="two pairs"):
        retrieval(images[:1], texts[:1])
    with pytest.raises(InputError, match="gallery"):
        retrieval(images, texts, gallery=1)
