import numpy as np
import pytest
from scipy import stats

from medclipsam.base.errors import InputError, OptionError
from medclipsam.training.uncertainty import (
    Moments,
    boundary_length,
    class_entropies,
    expected_dice_loss,
    image_score,
    total_entropy,
    welch,
)


def members(count: int = 7, classes: int = 3) -> np.ndarray:
    """Probabilities of some members, float32 [count, classes, 6, 5]."""
    logits = np.random.default_rng(0).normal(size=(count, classes, 6, 5)) * 2
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def test_moments_are_mean_and_variance_over_the_members():
    p = members()
    moments = Moments(variance=True)
    for member in p:
        moments.add(member)
    np.testing.assert_allclose(moments.mean, p.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, p.var(axis=0, ddof=1), rtol=1e-4)


def test_moments_of_nearly_equal_members_keep_their_small_variance():
    p = 0.999 + 1e-5 * np.random.default_rng(1).normal(size=(10, 4)).astype(np.float32)
    moments = Moments(variance=True)
    for member in p.astype(np.float32):
        moments.add(member)
    np.testing.assert_allclose(moments.variance, p.astype(np.float64).var(axis=0, ddof=1), rtol=0.05)


def test_one_member_has_no_variance():
    moments = Moments(variance=True)
    moments.add(members()[0])
    with pytest.raises(InputError, match="two members"):
        moments.variance  # noqa: B018


def test_class_entropy_is_that_of_each_class_against_the_rest():
    mean = members().mean(axis=0)
    expected = np.stack([stats.entropy([mean[c], 1 - mean[c]]) for c in (1, 2)])
    np.testing.assert_allclose(class_entropies(mean[..., 1:, :, :]), expected, rtol=1e-4)


def test_total_entropy_is_that_of_all_classes():
    mean = members().mean(axis=0)
    np.testing.assert_allclose(total_entropy(mean), stats.entropy(mean, axis=0), rtol=1e-4)


def test_entropy_of_certainty_is_zero_and_of_a_tie_its_most():
    mean = np.stack([np.array([[1.0, 0.5]]), np.array([[0.0, 0.5]])])
    np.testing.assert_allclose(class_entropies(mean[..., 1:, :, :])[0], [[0, np.log(2)]], atol=1e-6)
    np.testing.assert_allclose(total_entropy(mean), [[0, np.log(2)]], atol=1e-6)


def test_welch_is_the_p_value_between_the_two_most_probable_classes():
    p = members().astype(np.float64)
    made = welch(p.mean(axis=0), p.var(axis=0, ddof=1), len(p))
    for row, column in np.ndindex(6, 5):
        first, second = np.argsort(p.mean(axis=0)[:, row, column])[-2:]
        expected = stats.ttest_ind(p[:, first, row, column], p[:, second, row, column], equal_var=False).pvalue
        assert made[row, column] == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_welch_of_members_of_one_mind_is_0_where_classes_differ_and_1_where_not():
    mean = np.array([0.9, 0.5])[None, None].repeat(2, axis=0)
    mean[1] = 1 - mean[0]
    np.testing.assert_array_equal(welch(mean, np.zeros_like(mean), 5), [[0, 1]])


def test_welch_needs_two_members():
    mean = members().mean(axis=0)
    with pytest.raises(OptionError, match="one member"):
        welch(mean, np.zeros_like(mean), 1)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [((2, 5), (2, 5), 8), ((0, 3), (0, 3), 8), ((2, 3), (2, 3), 1), ((2, 2), (2, 2), 0)],
)
def test_the_boundary_is_counted_by_hand(rows, columns, expected):
    mask = np.zeros((8, 8), bool)
    mask[slice(*rows), slice(*columns)] = True
    assert boundary_length(mask) == expected
    # planes of a volume are counted each on its own
    assert boundary_length(np.stack([mask, mask])) == 2 * expected


def test_the_image_score_divides_by_the_boundary_and_a_missed_target_ranks_high():
    uncertainty = np.zeros((8, 8), np.float32)
    uncertainty[2:5, 2:5] = 0.5
    mask = uncertainty > 0
    assert image_score(uncertainty, mask) == pytest.approx(4.5 / 8)
    assert image_score(uncertainty, np.zeros_like(mask)) == pytest.approx(4.5)


def test_the_expected_dice_loss_is_the_dice_loss_of_a_mask_that_is_certain_of_itself():
    rng = np.random.default_rng(0)
    truth, mask = rng.random((2, 20, 20)) > 0.6
    lack = expected_dice_loss(truth.sum(), (truth & mask).sum(), mask.sum(), 1e-9)
    assert lack == pytest.approx(1 - 2 * (truth & mask).sum() / (truth.sum() + mask.sum()))


def test_an_empty_mask_scores_by_how_much_of_a_usual_target_is_suspected():
    assert expected_dice_loss(0.0, 0.0, 0.0, 100.0) == 0
    assert expected_dice_loss(1.0, 0.0, 0.0, 100.0) < 0.01
    assert expected_dice_loss(100.0, 0.0, 0.0, 100.0) == pytest.approx(0.5)
    # a mask that is sure of itself is believed, one of a few doubtful pixels is not
    assert expected_dice_loss(100.0, 99.0, 100.0, 100.0) < 0.01 < expected_dice_loss(20.0, 6.0, 10.0, 100.0)
