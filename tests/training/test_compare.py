from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.training.collect import read_studies
from medclipsam.training.compare import LEAST_IMAGES, judge, means, score
from medclipsam.training.examples import Example


def scores(values: np.ndarray) -> dict[str, float]:
    return {f"image{index:03d}": float(value) for index, value in enumerate(values)}


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    parent = rng.uniform(0.6, 0.9, 40)
    child = np.clip(parent + rng.normal(0.01, 0.05, 40), 0, 1)
    verdict = judge(scores(child), scores(parent), draws=20_000)
    found = bootstrap(
        (child - parent,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert verdict.difference == pytest.approx((child - parent).mean())
    assert verdict.low == pytest.approx(found.low, abs=1e-3)
    assert verdict.high == pytest.approx(found.high, abs=1e-3)


@pytest.mark.parametrize(("shift", "status"), [(0.02, "published"), (0.0, "published"), (-0.009, "published"),
                                               (-0.011, "refused"), (-0.2, "refused")])  # fmt: skip
def test_a_child_may_be_little_worse(shift: float, status: str) -> None:
    parent = np.random.default_rng(0).uniform(0.5, 0.7, 30)
    verdict = judge(scores(parent + shift), scores(parent))
    assert verdict.status == status
    assert f"{parent.mean():.3f}" in verdict.sentence


def test_an_uncertain_child_is_refused() -> None:
    rng = np.random.default_rng(0)
    parent = rng.uniform(0.4, 0.6, 12)
    child = parent + rng.normal(0.02, 0.3, 12)
    assert judge(scores(child), scores(parent)).status == "refused"


def test_few_images_say_nothing() -> None:
    values = np.linspace(0.5, 0.9, LEAST_IMAGES - 1)
    better = judge(scores(values + 0.1), scores(values))
    assert better.status == "unvalidated"
    assert str(LEAST_IMAGES - 1) in better.sentence
    assert judge({}, None).child is None
    assert judge(scores(np.append(values, 0.9)), None).status == "published"


def test_images_of_one_patient_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    # 20 patients of 3 images each, which are alike: the truth is that of 20 images
    patients = np.repeat(np.arange(20), 3)
    parent = rng.uniform(0.6, 0.9, 60)
    gaps = rng.normal(0.01, 0.05, 20)
    whose = {name: f"patient{patient}" for name, patient in zip(scores(parent), patients, strict=True)}
    found = judge(scores(parent + gaps[patients]), scores(parent), patients=whose, draws=20_000)
    alone = judge(scores(gaps), scores(np.zeros(20)), draws=20_000)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-3)
    apart = judge(scores(parent + gaps[patients]), scores(parent), draws=20_000)
    assert found.low is not None
    assert apart.low is not None
    assert found.low < apart.low


@pytest.mark.parametrize(("shift", "status"), [(0.05, "published"), (-0.01, "published"), (-0.2, "refused")])
def test_a_first_network_is_refused_where_zero_shot_masks_are_shown_to_be_better(shift: float, status: str) -> None:
    rng = np.random.default_rng(0)
    masks = rng.uniform(0.5, 0.7, 20)
    network = masks + shift + rng.normal(0, 0.05, 20)
    verdict = judge(scores(network), None, zero_shot=scores(masks))
    assert verdict.status == status
    assert verdict.zero_shot == pytest.approx(masks.mean())
    assert f"{masks.mean():.3f}" in verdict.sentence
    # a few of them say nothing
    few = dict(list(scores(masks).items())[: LEAST_IMAGES - 1])
    assert judge(scores(network), None, zero_shot=few).status == "published"


def test_only_the_same_images_are_compared() -> None:
    values = np.linspace(0.5, 0.9, 12)
    with pytest.raises(InputError, match="different images"):
        judge(scores(values), {**scores(values[:-1]), "other": 0.5})


def test_scores_are_dice_by_class_with_absent_targets(studies: Any) -> None:
    studies.add("present", 1, "final")
    studies.add("absent", 2, "final", absent=True)
    examples = [
        Example(each.image_id, each.image, each.labels["final"].path, "final", values={0: 0, 1: 2})
        for each in read_studies(studies.folder)
    ]

    def all_of_class_two(image: MedicalImage) -> np.ndarray:
        return np.full((1, image.n_planes, *image.plane_shape), 2, np.uint8)

    found = score(examples, {"a": 1, "b": 2}, all_of_class_two)
    area = int((examples[1].labels(examples[1].read(), 2) == 2).sum())
    assert found["present"] == pytest.approx({"a": 1.0, "b": 2 * area / (area + 48 * 48)})
    assert found["absent"] == {"a": 1.0, "b": 0.0}
    assert means(found)["absent"] == 0.5
