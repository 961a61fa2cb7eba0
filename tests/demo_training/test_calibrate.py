"""Calibration of the demo CLIP's presence thresholds."""

from pathlib import Path

import numpy as np
import pytest

import medclipsam
from medclipsam.demo import captions
from medclipsam.demo.phantoms import make_phantom
from medclipsam.encoders import Encoder, load_demo
from medclipsam.presence import presence_reference, presence_scores, resembled_target
from medclipsam.targets import TargetSet
from tools.demo_training.calibrate import DEVELOPMENT_SEED, DICOM_MODALITY, calibrate

SHIPPED = Path(medclipsam.__file__).parent / "demo" / "weights"
N = 6


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_demo(SHIPPED / "clip.safetensors", SHIPPED / "clip.json")


def test_thresholds_keep_the_images_that_show_their_target(encoder: Encoder) -> None:
    thresholds = calibrate(encoder, N, sensitivity=1.0, progress=False)
    targets = TargetSet.load()
    assert set(thresholds) == {"presence_threshold", "presence_thresholds", "free_text_threshold"}
    assert all(0 <= value <= 1 for value in thresholds["presence_thresholds"].values())
    # Looked at again by hand for the tumours of the ultrasounds that were drawn with one.
    target = targets.get("breast tumour")
    reference = presence_reference(encoder, target.captions, target, targets, "US")
    scores = []
    for seed in range(DEVELOPMENT_SEED, DEVELOPMENT_SEED + N, 2):
        image = make_phantom("US", seed, pathology=True).image
        plane = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        features = encoder.encode_images(encoder.preprocess(plane)[0][None])
        scores.append(float(presence_scores(features, reference, encoder.logit_scale).score[0]))
    assert thresholds["presence_thresholds"]["breast tumour"] <= min(scores)
    assert thresholds["presence_threshold"] <= min(scores)


def test_shipped_weights_bring_a_threshold_for_every_structure_of_the_phantoms(encoder: Encoder) -> None:
    known = [target for target in TargetSet.load() if captions.structure_of(target) in captions.STRUCTURES]
    assert len(known) >= 16
    assert set(encoder.defaults["presence_thresholds"]) == {target.name for target in known}
    assert {"presence_threshold", "free_text_threshold"} <= set(encoder.defaults)
    for target in known:
        assert any(target.in_modality(code) for code in DICOM_MODALITY.values())


def test_shipped_weights_take_phrases_that_were_not_taught_for_the_targets_they_mean(encoder: Encoder) -> None:
    targets = TargetSet.load()
    for structure, phrases in captions.HELD_OUT.items():
        for phrase in phrases:
            for modality in captions.SEEN_IN[structure]:
                meant = resembled_target(encoder, [phrase], targets, DICOM_MODALITY[modality])
                assert meant is not None, phrase
                assert captions.structure_of(meant) == structure, phrase
                assert meant.in_modality(DICOM_MODALITY[modality])
    for nothing in ("a giraffe in the zoo", "pancreas on CT", "an MRI of the knee"):
        assert all(resembled_target(encoder, [nothing], targets, code) is None for code in DICOM_MODALITY.values())
