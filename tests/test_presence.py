from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError
from medclipsam.encoders import Encoder, load_open_clip
from medclipsam.presence import (
    GENERIC_CAPTIONS,
    NORMAL_CAPTIONS,
    PresenceReference,
    calibrate_threshold,
    consistent_planes,
    family,
    presence_reference,
    presence_scores,
    smooth_over_planes,
)
from medclipsam.targets import TargetSet


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_open_clip("ViT-B-32", seed=0)


def test_the_score_is_the_sigmoid_of_the_scaled_margin() -> None:
    features = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    positive, first, second = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    scores = presence_scores(features, PresenceReference(positive, torch.stack([first, second])), 25.0)
    for row, feature in enumerate(features.double().numpy()):
        plus = feature @ positive.double().numpy()
        minus = max(feature @ first.double().numpy(), feature @ second.double().numpy())
        assert scores.score[row] == pytest.approx(1 / (1 + np.exp(-25 * (plus - minus))), abs=1e-6)
        assert scores.positive[row] == pytest.approx(plus)
        assert scores.negative[row] == pytest.approx(minus)


@pytest.mark.parametrize("modality", ["US", "MR", None])
def test_a_known_target_is_judged_against_absence_captions_and_what_the_image_might_be(
    encoder: Encoder, modality: str | None
) -> None:
    targets = TargetSet.load()
    tumour = targets.get("breast tumour")
    reference = presence_reference(encoder, tumour.captions, tumour, targets, modality)
    torch.testing.assert_close(reference.positive, encoder.text_prototype(tumour.captions))

    def has(captions: tuple[str, ...]) -> bool:
        wanted = encoder.text_prototype(captions)
        return bool(torch.isclose(reference.negatives, wanted, atol=1e-6).all(dim=1).any())

    assert has(tumour.absence_captions)
    assert has(GENERIC_CAPTIONS[0])
    # An image that says it is an ultrasound shows no brain.
    assert has(targets.get("brain tumour").captions) is (modality != "US")
    assert has(NORMAL_CAPTIONS["MR"]) is (modality != "US")
    assert not has(tumour.captions)
    assert not has(NORMAL_CAPTIONS["US"])


def test_what_the_modality_shows_too_is_no_negative_under_another_modalitys_name(encoder: Encoder) -> None:
    """Every chest CT lies near "the lungs on an x-ray", whether it shows a nodule or not."""
    targets = TargetSet.load()
    nodule = targets.get("lung nodule")
    reference = presence_reference(encoder, nodule.captions, nodule, targets, None)
    for name, expected in (("lungs x-ray", False), ("lungs CT", False), ("breast tumour", True), ("brain", True)):
        wanted = encoder.text_prototype(targets.get(name).captions)
        assert bool(torch.isclose(reference.negatives, wanted, atol=1e-6).all(dim=1).any()) is expected


def test_a_target_without_absence_captions_is_judged_against_the_bank_alone(encoder: Encoder) -> None:
    targets = TargetSet.load()
    bare = replace(targets.get("breast tumour"), absence_captions=())
    reference = presence_reference(encoder, bare.captions, bare, targets, "US")
    full = presence_reference(encoder, bare.captions, targets.get("breast tumour"), targets, "US")
    assert len(full.negatives) == len(reference.negatives) + 1


def test_what_may_stand_beside_free_text_in_the_same_modality_is_no_negative(encoder: Encoder) -> None:
    targets = TargetSet.load()
    lungs = encoder.text_prototype(targets.get("lungs x-ray").captions)
    for modality, expected in (("DX", False), ("US", True), (None, False)):
        reference = presence_reference(encoder, ["a pneumothorax"], None, targets, modality)
        found = torch.isclose(reference.negatives, lungs, atol=1e-6).all(dim=1).any()
        assert bool(found) is expected


@pytest.mark.parametrize(("code", "expected"), [("CR", "XR"), ("DX", "XR"), ("US", "US"), ("PT", None), (None, None)])
def test_modalities_fall_into_families(code: str | None, expected: str | None) -> None:
    assert family(code) == expected


def test_smoothing_weighs_neighbours_once_and_itself_twice() -> None:
    scores = np.random.default_rng(0).random(6)
    planes = [2, 3, 4, 8, 9, 11]
    smoothed = smooth_over_planes(scores, planes)
    by_plane = dict(zip(planes, scores, strict=True))
    for plane, value in zip(planes, smoothed, strict=True):
        weights = {plane + step: weight for step, weight in ((-1, 1), (0, 2), (1, 1)) if plane + step in by_plane}
        expected = sum(weight * by_plane[other] for other, weight in weights.items()) / sum(weights.values())
        assert value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("present", "steady"),
    [
        ("0010000", "0000000"),
        ("0110110", "0111110"),
        ("1000000", "0000000"),
        ("1100001", "1100000"),
        ("1010100", "1111100"),
        ("0000000", "0000000"),
        ("1111111", "1111111"),
    ],
)
def test_what_lasts_one_plane_only_is_removed(present: str, steady: str) -> None:
    given = np.array([character == "1" for character in present])
    made = consistent_planes(given, range(len(present)))
    assert "".join("1" if here else "0" for here in made) == steady


def test_a_plane_without_a_looked_at_neighbour_is_left_as_it_is() -> None:
    assert consistent_planes(np.array([True, False, True]), [0, 5, 9]).tolist() == [True, False, True]


@pytest.mark.parametrize("sensitivity", [0.8, 0.95, 1.0])
@pytest.mark.parametrize("apart", [0.0, 0.5])
def test_the_calibrated_threshold_keeps_the_sensitivity_and_where_it_can_the_specificity(
    sensitivity: float, apart: float
) -> None:
    rng = np.random.default_rng(5)
    absent = rng.uniform(0, 0.5, 200)
    present = rng.uniform(apart, apart + 0.5, 57)
    threshold = calibrate_threshold(present, absent, sensitivity=sensitivity)
    assert np.mean(present >= threshold) >= sensitivity
    if apart:
        assert np.mean(absent < threshold) >= 0.99
    else:
        # Any greater threshold that differs in what it lets through would miss too many.
        above = present[present > threshold + 1e-4].min()
        assert np.mean(present > above) < sensitivity


def test_one_odd_image_does_not_push_the_threshold_to_the_edge() -> None:
    absent = np.append(np.full(299, 0.1), 0.899)
    assert calibrate_threshold(np.full(50, 0.9), absent) == pytest.approx(0.5, abs=1e-3)
    assert calibrate_threshold(np.full(50, 0.9), absent, specificity=1.0) == pytest.approx(0.8995, abs=1e-3)


def test_a_calibration_needs_images_that_show_the_target() -> None:
    with pytest.raises(InputError, match="without scores"):
        calibrate_threshold(np.array([]), np.array([0.5]))
    with pytest.raises(InputError, match=r"sensitivity 1\.5"):
        calibrate_threshold(np.array([0.5]), np.array([0.5]), sensitivity=1.5)
    assert calibrate_threshold(np.array([0.6]), np.array([])) == pytest.approx(0.3)
