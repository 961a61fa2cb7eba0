"""Phantoms: deterministic, varied, with masks that fit the anatomy and the picture."""

import numpy as np
import pytest

from medclipsam.base.errors import InputError
from medclipsam.demo.phantoms import MODALITIES, make_phantom, make_volume

STRUCTURES = {
    "US": {"breast tumour", "skin", "breast fat", "breast gland", "chest muscle"},
    "MR": {"brain tumour", "ventricles", "brain", "skull"},
    "XR": {"left lung", "right lung", "lungs", "heart"},
    "CT": {"left lung", "right lung", "lungs", "heart", "spine", "nodule"},
}
FINDING = {"US": "breast tumour", "MR": "brain tumour", "CT": "nodule"}


def centre(mask):
    return np.array(np.nonzero(mask)).mean(axis=1)


@pytest.fixture(scope="module")
def phantoms():
    return {modality: [make_phantom(modality, seed, size=128) for seed in range(12)] for modality in MODALITIES}


@pytest.mark.parametrize("modality", MODALITIES)
def test_same_seed_gives_the_same_phantom_and_another_seed_another(modality):
    first, again, other = (make_phantom(modality, seed, size=96) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert first.masks.keys() == again.masks.keys()
    assert all(np.array_equal(first.masks[name], again.masks[name]) for name in first.masks)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("modality", MODALITIES)
def test_images_and_masks_have_the_stated_form(phantoms, modality):
    for phantom in phantoms[modality]:
        assert phantom.image.dtype == np.uint8
        assert max(phantom.image.shape[:2]) == 128
        assert np.ptp(phantom.image) > 60
        for name, mask in phantom.masks.items():
            assert name in STRUCTURES[modality]
            assert mask.dtype == bool
            assert mask.shape == phantom.image.shape[:2]
            assert mask.any()
    assert {name for phantom in phantoms[modality] for name in phantom.masks} == STRUCTURES[modality]


@pytest.mark.parametrize("modality", MODALITIES)
def test_shapes_of_image_vary(phantoms, modality):
    assert len({phantom.image.shape[:2] for phantom in phantoms[modality]}) > 2


@pytest.mark.parametrize(("modality", "finding"), FINDING.items())
def test_pathology_can_be_asked_for_and_left_out(modality, finding):
    for seed in range(8):
        sick = make_phantom(modality, seed, size=128, pathology=True)
        well = make_phantom(modality, seed, size=128, pathology=False)
        assert finding in sick.masks
        assert sick.facts["pathology"] is True
        assert finding not in well.masks
        assert well.facts["pathology"] is False


@pytest.mark.parametrize("modality", ["XR", "CT"])
def test_patient_right_is_at_image_left_and_lungs_are_both_sides(phantoms, modality):
    for phantom in phantoms[modality]:
        masks = phantom.masks
        if {"left lung", "right lung"} <= masks.keys():
            assert centre(masks["right lung"])[1] < centre(masks["left lung"])[1]
            assert np.array_equal(masks["lungs"], masks["left lung"] | masks["right lung"])
            assert not (masks["lungs"] & masks.get("heart", False)).any()


def test_heart_lies_on_the_patients_left_of_the_spine_on_xray(phantoms):
    shifts = [
        centre(p.masks["heart"])[1] - (centre(p.masks["right lung"])[1] + centre(p.masks["left lung"])[1]) / 2
        for p in phantoms["XR"]
    ]
    assert np.mean(shifts) > 0


def test_brain_holds_tumour_and_ventricles(phantoms):
    for phantom in phantoms["MR"]:
        brain = phantom.masks["brain"]
        for name in ("brain tumour", "ventricles"):
            if name in phantom.masks:
                assert not (phantom.masks[name] & ~brain).any()


def test_side_of_a_brain_tumour_is_the_patients(phantoms):
    for phantom in phantoms["MR"]:
        if phantom.facts["side"] and "brain tumour" in phantom.masks:
            offset = centre(phantom.masks["brain tumour"])[1] - centre(phantom.masks["brain"])[1]
            if abs(offset) > 6:
                assert (phantom.facts["side"] == "left") == (offset > 0)


def test_lungs_are_darker_than_the_heart_on_xray(phantoms):
    for phantom in phantoms["XR"]:
        assert phantom.image[phantom.masks["lungs"]].mean() + 10 < phantom.image[phantom.masks["heart"]].mean()


@pytest.mark.parametrize(("modality", "target"), [("CT", "lungs"), ("MR", "brain tumour")])
def test_volume_lacks_its_target_at_both_ends_and_holds_it_in_one_run_between(modality, target):
    stack, masks = make_volume(modality, 3, 16, size=96)
    assert stack.dtype == np.uint8
    assert stack.shape == masks[target].shape
    there = masks[target].any(axis=(1, 2))
    assert not there[0]
    assert not there[-1]
    run = np.nonzero(there)[0]
    assert len(run) >= 2
    assert np.array_equal(run, np.arange(run[0], run[-1] + 1))


def test_raw_ct_volume_is_in_hounsfield_units():
    stack, masks = make_volume("CT", 1, 8, size=96, raw=True)
    assert stack.dtype == np.int16
    assert np.median(stack[masks["lungs"]]) == pytest.approx(-790, abs=120)
    assert np.median(stack[:, 0, 0]) == pytest.approx(-1000, abs=60)


def test_unknown_modality_size_and_volume_are_refused_in_a_sentence():
    with pytest.raises(InputError, match="'PET' is unknown; allowed: US, MR, XR, CT"):
        make_phantom("PET", 0)
    with pytest.raises(InputError, match="at least 64"):
        make_phantom("US", 0, size=8)
    with pytest.raises(InputError, match="CT or MR; given 'US'"):
        make_volume("US", 0, 8)
    with pytest.raises(InputError, match="at least 4 planes"):
        make_volume("CT", 0, 2)
