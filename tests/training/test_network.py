import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medclipsam.training.network import Network, SegmentationLoss, dice_loss, generalised_cross_entropy
from medclipsam.training.plan import make_plan

CLASSES = {"disc": 1, "square": 2}


@pytest.fixture
def probabilities() -> torch.Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(dim=1)


@pytest.fixture
def labels() -> torch.Tensor:
    made = torch.randint(0, 3, (2, 5, 4), generator=torch.Generator().manual_seed(1))
    made[0, 0] = 255
    return made


def test_dice_loss_is_pooled_over_the_batch_and_leaves_unknown_pixels_out(probabilities, labels):
    p, y = probabilities.numpy(), labels.numpy()
    known = y != 255
    dices = [2 * p[:, c][known & (y == c)].sum() / (p[:, c][known].sum() + (y == c).sum()) for c in (1, 2)]
    assert float(dice_loss(probabilities, labels)) == pytest.approx(1 - np.mean(dices), rel=1e-5)


def test_a_batch_without_any_class_asks_for_silence():
    empty = torch.zeros(1, 4, 4, dtype=torch.long)
    silent = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], dim=1)
    assert float(dice_loss(silent, empty)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(silent.flip(1), empty)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalised_cross_entropy_is_its_equation(probabilities, labels, q):
    p, y = probabilities.numpy(), labels.numpy()
    right = np.array([p[b, y[b, r, c], r, c] for b, r, c in np.argwhere(y != 255)])
    expected = ((1 - right**q) / q).mean()
    assert float(generalised_cross_entropy(probabilities, labels, q)) == pytest.approx(expected, rel=1e-5)


def test_generalised_cross_entropy_goes_to_cross_entropy(probabilities, labels):
    known = torch.where(labels == 255, -100, labels)
    expected = F.nll_loss(probabilities.log(), known)
    assert float(generalised_cross_entropy(probabilities, labels, 1e-4)) == pytest.approx(float(expected), rel=1e-3)


def test_wrong_labels_pull_less_on_it_than_on_cross_entropy():
    pulls = []
    for kind in ("dice_ce", "dice_gce"):
        logits = torch.tensor([6.0, -6.0])[None, :, None, None].repeat(1, 1, 4, 4).requires_grad_(True)
        loss = SegmentationLoss(kind)([logits], torch.ones(1, 4, 4, dtype=torch.long))
        loss.backward()
        pulls.append(float(logits.grad.abs().sum()))
    assert pulls[1] < 0.1 * pulls[0]


def test_levels_weigh_half_of_the_level_above(probabilities, labels):
    loss = SegmentationLoss()
    logits = probabilities.log()
    fine, coarse = F.interpolate(logits, (10, 8)), logits
    target = F.interpolate(labels[:, None].float(), (10, 8))[:, 0].long()
    expected = (loss([fine], target) + 0.5 * loss([coarse], labels)) / 1.5
    assert float(loss([fine, coarse], target)) == pytest.approx(float(expected), rel=1e-5)


def test_class_weights_are_those_of_cross_entropy(probabilities, labels):
    weights = [0.5, 1.0, 4.0]
    known = torch.where(labels == 255, -100, labels)
    expected = F.nll_loss(probabilities.log(), known, weight=torch.tensor(weights)) + dice_loss(probabilities, labels)
    made = SegmentationLoss(weights=weights)([probabilities.log()], labels)
    assert float(made) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["dice_ce", "dice_gce"])
def test_a_patch_wholly_outside_costs_nothing_and_breaks_nothing(kind):
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = SegmentationLoss(kind, weights=[1.0, 2.0])([logits], torch.full((1, 4, 4), 255))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_supervised_levels_come_only_in_training(make_examples, small):
    plan = make_plan(make_examples(2), CLASSES, small)
    network = Network(plan)
    x = torch.zeros(2, 1, 32, 32)
    assert [tuple(level.shape) for level in network.train()(x)] == [(2, 3, 32, 32), (2, 3, 16, 16)]
    assert [tuple(level.shape) for level in network.eval()(x)] == [(2, 3, 32, 32)]
