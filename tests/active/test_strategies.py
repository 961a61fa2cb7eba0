"""Strategies on pools that can be reckoned by hand, their shares, determinism, and what they read of many images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medclipsam.active.ledger import Ledger, Score
from medclipsam.active.pool import DIMENSIONS, Pool
from medclipsam.active.strategies import STRATEGIES, SamplingOptions, choose
from medclipsam.base.errors import InputError, OptionError

Mask = Callable[..., np.ndarray]
PLAIN = SamplingOptions(validation=0, negatives=0)


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """The ten images, none of the validation set."""
    ledger.sync_images({f"i{k}": (f"p{k}", False) for k in range(10)})
    return ledger


def order(ledger: Ledger, strategy: str, options: SamplingOptions = PLAIN, seed: int = 0) -> list[str]:
    """Return the images in the order in which they are offered to one annotator who keeps them all."""
    pool = Pool(ledger, seed)
    found = []
    while (choice := choose(pool, strategy, options)) is not None:
        found.append(choice.image)
        ledger.lease(choice.image, "ada", 1e6)
        pool.refresh()
    return found


def scored(ledger: Ledger, **totals: float) -> None:
    ledger.set_scores("net", {image: Score(total, {"tumour": total}) for image, total in totals.items()})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_image_is_offered_once_and_none_that_is_labelled(ledger: Ledger, mask: Mask, strategy: str) -> None:
    ledger.record("i3", "bob", mask())
    scored(ledger, i1=2.0, i2=1.0)
    ledger.set_embeddings("clip", {f"i{k}": np.eye(4)[k % 4] for k in range(6)})
    assert sorted(order(ledger, strategy)) == [f"i{k}" for k in range(10) if k != 3]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_state_and_seed_give_the_same_choice(ledger: Ledger, strategy: str) -> None:
    scored(ledger, **{f"i{k}": 1.0 for k in range(10)})
    chosen = {choose(Pool(ledger, 5), strategy, PLAIN) for _ in range(3)}
    assert len(chosen) == 1


def test_random_depends_on_the_seed_and_not_on_other_images(ledger: Ledger) -> None:
    first = order(ledger, "random")
    assert sorted(first) == sorted(f"i{k}" for k in range(10))
    assert first != sorted(first)
    for lease in ledger.leases():
        ledger.release(lease.image, lease.holder)
    assert order(ledger, "random", seed=1) != first
    for lease in ledger.leases():
        ledger.release(lease.image, lease.holder)
    ledger.sync_images({f"i{k}": (f"p{k}", False) for k in range(0, 10, 2)})
    assert order(ledger, "random") == [image for image in first if int(image[1]) % 2 == 0]


def test_random_numbers_are_uniform(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "many.sqlite")
    ledger.sync_images({f"image {k}": (str(k), False) for k in range(20_000)})
    pool = Pool(ledger, 3)
    one, other = pool.uniform(0), pool.uniform(1)
    counts, _ = np.histogram(one, bins=20, range=(0, 1))
    assert np.square(counts - 1000).sum() / 1000 < 43.8  # the 0.1 % point of chi-squared with 19 degrees
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_uncertainty_offers_by_score_and_the_unscored_last(ledger: Ledger) -> None:
    scored(ledger, i4=0.1, i7=5.0, i2=3.0)
    assert order(ledger, "uncertainty")[:3] == ["i7", "i2", "i4"]


def test_disagreement_offers_where_the_masks_differ_most(ledger: Ledger) -> None:
    ledger.set_scores("net", {"i1": Score(9.0, {}, 0.2), "i2": Score(1.0, {}, 0.9), "i3": Score(5.0)})
    assert order(ledger, "disagreement")[:2] == ["i2", "i1"]


def test_coverage_is_greedy_k_centre(ledger: Ledger) -> None:
    rng = np.random.default_rng(2)
    vectors = {f"i{k}": rng.normal(size=3) for k in range(10)}
    ledger.set_embeddings("clip", vectors)
    # the plain version, on what float16 keeps of the vectors
    unit = np.array([np.float16(vectors[f"i{k}"]).astype(float) for k in range(10)])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    chosen = [int(np.argmax(unit @ unit.sum(axis=0)))]
    while len(chosen) < 10:
        away = [min(1 - unit[k] @ unit[c] for c in chosen) if k not in chosen else -1 for k in range(10)]
        chosen.append(int(np.argmax(away)))
    assert order(ledger, "coverage") == [f"i{k}" for k in chosen]


def test_distances_are_the_same_however_they_came_about(ledger: Ledger, mask: Mask) -> None:
    rng = np.random.default_rng(3)
    ledger.set_embeddings("clip", {f"i{k}": rng.normal(size=5) for k in range(10)})
    pool = Pool(ledger)
    ledger.record("i1", "ada", mask())
    pool.refresh()
    ledger.record("i2", "ada", mask())
    ledger.lease("i5", "ada")
    pool.refresh()
    np.testing.assert_allclose(pool.distance(batch=False), Pool(ledger).distance(batch=False))
    ledger.forget("i1")
    pool.refresh()
    np.testing.assert_allclose(pool.distance(batch=False), Pool(ledger).distance(batch=False))
    assert pool.distance(batch=False)[1] > 0.01


def test_small_changes_are_taken_in_without_loading_all(
    ledger: Ledger, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    ledger.set_embeddings("clip", {f"i{k}": rng.normal(size=5) for k in range(8)})
    scored(ledger, i1=1.0, i2=2.0)
    ledger.record("i1", "ada", mask())
    ledger.lease("i2", "bob")
    pool = Pool(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_load_images", lambda: pytest.fail("All images were loaded."))
        ledger.set_embeddings("clip", {"i1": rng.normal(size=5), "i9": rng.normal(size=5)})
        ledger.set_presence({"i3": -0.4})
        ledger.set_scores("net", {"i2": Score(3.0, {"tumour": 3.0}, 0.5, (2, 1), ("tumour",))})
        ledger.sync_images({f"i{k}": (f"p{k}", k == 4) for k in range(10)}, finished=["i1", "i5"])
        ledger.release("i2", "bob")
        ledger.lease("i6", "bob")
        assert pool.refresh()
    same(pool, Pool(ledger))
    # a network of which nothing is known, an image that came: loaded anew, or left for later
    ledger.set_scores("other", {"i3": Score(1.0, {"liver": 1.0})})
    assert not pool.refresh(reload=False)
    assert pool.structures == ["tumour"]
    assert pool.refresh()
    ledger.sync_images({f"i{k}": (f"p{k}", False) for k in range(1, 11)})
    assert not pool.refresh(reload=False)
    assert pool.refresh()
    same(pool, Pool(ledger))


def same(one: Pool, other: Pool) -> None:
    assert (one.images, one.structures, one.round) == (other.images, other.structures, other.round)
    for name in ("validation", "presence", "labelled", "leased", "batch", "total", "disagreement", "classes", "found"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for batch in (False, True):
        np.testing.assert_allclose(one.distance(batch=batch), other.distance(batch=batch), atol=1e-6)
    assert [one.planes(k) for k in range(len(one))] == [other.planes(k) for k in range(len(one))]


def test_long_embeddings_are_projected_and_keep_their_neighbours(ledger: Ledger) -> None:
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(2, 4 * DIMENSIONS))
    near = {f"i{k}": centres[k % 2] + 0.3 * rng.normal(size=4 * DIMENSIONS) for k in range(10)}
    ledger.set_embeddings("clip", near)
    ledger.lease("i0", "ada")
    distance = Pool(ledger).distance(batch=False)
    assert distance[2::2].max() < 0.3 < 0.7 < distance[1::2].min()


def test_combined_covers_first_and_asks_for_the_uncertain_later(ledger: Ledger, mask: Mask) -> None:
    ledger.set_embeddings("clip", {f"i{k}": np.eye(3)[k % 3] for k in range(10)})
    options = SamplingOptions(validation=0, negatives=0, cold=3, sharpness=1e6, diversity=0)
    for _ in range(3):
        choice = choose(Pool(ledger), "combined", options)
        assert choice is not None
        ledger.record(choice.image, "ada", mask())
    assert {int(label.image[1]) % 3 for label in ledger.labels()} == {0, 1, 2}
    left = [f"i{k}" for k in range(10) if f"i{k}" not in {label.image for label in ledger.labels()}]
    scored(ledger, **{image: float(rank + 1) for rank, image in enumerate(left)})
    assert order(ledger, "combined", options) == left[::-1]


def test_combined_lets_the_structures_take_turns(ledger: Ledger) -> None:
    ledger.set_scores(
        "net",
        {f"i{k}": Score(100.0 + k, {"a": 100.0 + k, "b": 1.0 if k < 2 else 0.001}) for k in range(10)},
    )
    options = SamplingOptions(validation=0, negatives=0, cold=0, sharpness=1e5, diversity=0)
    offered = order(ledger, "combined", options)
    assert offered[0] == "i9"
    assert offered[1] in ("i0", "i1")
    assert offered[2] == "i8"


def test_combined_keeps_a_batch_apart(ledger: Ledger) -> None:
    near, far = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    ledger.set_embeddings("clip", {f"i{k}": near if k < 9 else far for k in range(10)})
    scored(ledger, **{f"i{k}": 2.0 for k in range(9)}, i9=1.0)
    options = SamplingOptions(validation=0, negatives=0, cold=0, sharpness=1e4)
    ledger.lease("i0", "ada")
    choice = choose(Pool(ledger), "combined", options)
    assert choice is not None
    assert choice.image == "i9"


def test_the_noise_of_combined_decays_over_the_rounds(ledger: Ledger) -> None:
    scored(ledger, **{f"i{k}": 1.0 + 0.3 * k for k in range(10)})
    options = SamplingOptions(validation=0, negatives=0, cold=0, sharpness=1, growth=10, diversity=0)

    def best(seed: int) -> str:
        choice = choose(Pool(ledger, seed), "combined", options)
        assert choice is not None
        return choice.image

    early = [best(seed) for seed in range(30)]
    for _ in range(3):
        ledger.begin_training(None)
        ledger.end_training("published", "net")
    late = [best(seed) for seed in range(30)]
    assert len(set(early)) > 4
    assert set(late) == {"i9"}


def test_validation_images_come_at_their_share_and_at_random(ledger: Ledger) -> None:
    scored(ledger, **{f"i{k}": 1.0 for k in range(10)})
    options = SamplingOptions(validation=0.2, negatives=0)
    ledger.sync_images({f"i{k}": (f"p{k}", k >= 8) for k in range(10)})
    pool, kinds = Pool(ledger), []
    for _ in range(10):
        choice = choose(pool, "uncertainty", options)
        assert choice is not None
        kinds.append(choice.why)
        ledger.lease(choice.image, "ada")
        pool.refresh()
    assert kinds[:6] == ["validation", *["strategy"] * 4, "validation"]


def test_images_without_the_target_are_passed_over_but_for_their_share(ledger: Ledger) -> None:
    ledger.set_presence({"i0": -0.5, "i1": -0.2, "i2": 0.3})
    assert {*order(ledger, "random")[-2:]} == {"i0", "i1"}
    for lease in ledger.leases():
        ledger.release(lease.image, lease.holder)
    options = SamplingOptions(validation=0, negatives=0.25)
    offered = order(ledger, "random", options)
    assert offered[3] in ("i0", "i1")
    assert offered[7] in ("i0", "i1")


def test_a_rejected_label_is_offered_again(ledger: Ledger, mask: Mask) -> None:
    for k in range(10):
        ledger.record(f"i{k}", "ada", mask())
    assert choose(Pool(ledger), "random") is None
    ledger.review("i4", "bob", "rejected")
    choice = choose(Pool(ledger), "random")
    assert choice is not None
    assert choice.image == "i4"


def test_planes_of_a_volume_are_told(ledger: Ledger) -> None:
    ledger.set_scores("net", {"i1": Score(9.0, {}, None, (7, 3))})
    choice = choose(Pool(ledger), "uncertainty", PLAIN)
    assert choice is not None
    assert (choice.image, choice.value, choice.planes) == ("i1", 9.0, (7, 3))


def test_unknown_strategies_and_values_out_of_range_are_refused(ledger: Ledger) -> None:
    with pytest.raises(InputError, match=r"'best'; allowed: combined, .*random"):
        choose(Pool(ledger), "best")
    for wrong in ({"validation": 0.6}, {"negatives": -1}, {"growth": 0.5}, {"cold": "many"}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            SamplingOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_choice_reads_only_what_has_changed_and_is_that_of_a_new_pool(crowd: Any, strategy: str) -> None:
    ledger, pool = crowd
    pool.refresh()
    for number in range(3):
        choice = choose(pool, strategy)
        assert choice is not None
        assert choice == choose(Pool(ledger), strategy)
        ledger.lease(choice.image, "ada")
        ledger.record(choice.image, "ada", np.ones((1, 8, 8), np.uint8))
        ledger.set_scores("net", {f"image {number}": Score(2.0 + number, {"a": 2.0 + number}, 0.5)})
        # loads no image that has not changed
        assert pool.refresh(reload=False)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A ledger of 2,000 images with embeddings and scores, and its pool."""
    ledger = Ledger(tmp_path_factory.mktemp("crowd") / "rounds.sqlite")
    names = [f"image {k}" for k in range(2000)]
    ledger.sync_images({name: (name, k % 7 == 0) for k, name in enumerate(names)})
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(names), 64)).astype(np.float16)
    ledger.set_embeddings("clip", dict(zip(names, vectors, strict=True)))
    scores = rng.random(len(names))
    ledger.set_scores(
        "net", {name: Score(score, {"a": score}, score) for name, score in zip(names, scores.tolist(), strict=True)}
    )
    for name in names[:50]:
        ledger.record(name, "ada", np.ones((1, 8, 8), np.uint8))
    return ledger, Pool(ledger)
