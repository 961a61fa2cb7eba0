"""Votes against plain NumPy."""

import numpy as np
import pytest
import torch

from medclipsam.base.errors import OptionError
from medclipsam.sam import vote
from medclipsam.sam.voting import staple


@pytest.fixture
def candidates() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return generator.normal(size=(3, 20, 24)).astype(np.float32) * 2, np.array([0.9, 0.2, 0.5], np.float32)


def run(logits: np.ndarray, scores: np.ndarray, voting: str) -> tuple[np.ndarray, np.ndarray, float]:
    mask, probability, score = vote(torch.from_numpy(logits), torch.from_numpy(scores), voting)
    return mask.numpy(), probability.numpy(), score


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def naive_staple(masks: np.ndarray) -> np.ndarray:
    """Expectation maximisation as in Warfield et al. 2004, equations 14, 18 and 19, pixel by pixel."""
    prior = masks.mean()
    sensitivity = specificity = np.full(len(masks), 0.99999)
    for _ in range(200):
        a = prior * np.prod([np.where(m, p, 1 - p) for m, p in zip(masks, sensitivity, strict=True)], axis=0)
        b = (1 - prior) * np.prod([np.where(m, 1 - q, q) for m, q in zip(masks, specificity, strict=True)], axis=0)
        posterior = a / (a + b)
        sensitivity = np.array([(posterior * m).sum() / posterior.sum() for m in masks])
        specificity = np.array([((1 - posterior) * ~m).sum() / (1 - posterior).sum() for m in masks])
    return posterior


def test_single_takes_the_first_candidate(candidates: tuple[np.ndarray, np.ndarray]) -> None:
    logits, scores = candidates
    mask, probability, score = run(logits, scores, "single")
    np.testing.assert_array_equal(mask, logits[0] > 0)
    np.testing.assert_allclose(probability, sigmoid(logits[0]), rtol=1e-5)
    assert score == pytest.approx(0.9)


def test_mrm_weights_the_probability_maps_by_the_scores(candidates: tuple[np.ndarray, np.ndarray]) -> None:
    logits, scores = candidates
    weights = np.array([0.9, 0.2, 0.5]) / 1.6
    expected = sum(weight * sigmoid(logit) for weight, logit in zip(weights, logits, strict=True))
    mask, probability, score = run(logits, scores, "mrm")
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    np.testing.assert_array_equal(mask, expected > 0.5)
    assert score == pytest.approx(float((weights * [0.9, 0.2, 0.5]).sum()))


def test_average_ignores_the_scores(candidates: tuple[np.ndarray, np.ndarray]) -> None:
    logits, scores = candidates
    expected = sigmoid(logits).mean(axis=0)
    mask, probability, score = run(logits, scores, "average")
    np.testing.assert_allclose(probability, expected, rtol=1e-5)
    np.testing.assert_array_equal(mask, expected > 0.5)
    assert score == pytest.approx(1.6 / 3)


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [-0.1, -0.2, 0.0]])
def test_mrm_without_any_positive_score_is_the_average(
    candidates: tuple[np.ndarray, np.ndarray], scores: list[float]
) -> None:
    logits, _ = candidates
    _, probability, _ = run(logits, np.array(scores, np.float32), "mrm")
    np.testing.assert_allclose(probability, sigmoid(logits).mean(axis=0), rtol=1e-5)


def test_mrm_gives_a_candidate_of_negative_score_no_say(candidates: tuple[np.ndarray, np.ndarray]) -> None:
    logits, _ = candidates
    _, probability, _ = run(logits, np.array([1.0, -5.0, 0.0], np.float32), "mrm")
    np.testing.assert_allclose(probability, sigmoid(logits[0]), rtol=1e-5)


def test_staple_is_the_expectation_maximisation_of_the_paper() -> None:
    generator = np.random.default_rng(5)
    truth = np.zeros((40, 50), bool)
    truth[8:30, 10:35] = True
    masks = np.stack([truth ^ (generator.random(truth.shape) < rate) for rate in (0.02, 0.1, 0.25)])
    fused = staple(masks)
    np.testing.assert_allclose(fused, naive_staple(masks), atol=1e-4)
    np.testing.assert_array_equal(fused > 0.5, naive_staple(masks) > 0.5)
    logits = np.where(masks, 2.0, -2.0).astype(np.float32)
    mask, _, score = run(logits, np.array([0.3, 0.6, 0.9], np.float32), "staple")
    np.testing.assert_array_equal(mask, fused > 0.5)
    assert score == pytest.approx(0.6)


@pytest.mark.parametrize("value", [False, True])
def test_staple_of_unanimous_candidates_is_what_they_say(value: bool) -> None:
    fused = staple(np.full((3, 6, 7), value))
    np.testing.assert_array_equal(fused, np.full((6, 7), float(value)))


def test_staple_with_an_empty_candidate_follows_the_two_that_agree() -> None:
    masks = np.zeros((3, 20, 20), bool)
    masks[:2, 4:9, 4:9] = True
    np.testing.assert_array_equal(staple(masks) > 0.5, masks[0])


def test_an_unknown_vote_is_refused(candidates: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(OptionError, match="'median'"):
        run(*candidates, "median")
