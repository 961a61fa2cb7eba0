from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.training.examples import PreparedImage, check_examples, identity_of
from medclipsam.training.plan import Normalisation, make_plan

CLASSES = {"disc": 1, "square": 2}


def test_values_of_the_file_become_the_network_s_classes(make_examples):
    example = make_examples(1)[0]
    image = example.read()
    plain = example.labels(image, 2)
    swapped = replace(example, values={1: 2, 2: 1}).labels(image, 2)
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1], np.uint8)[plain])
    np.testing.assert_array_equal(replace(example, values={1: 0, 2: 1}).labels(image, 1), plain == 2)


def test_a_value_that_is_no_class_is_refused_with_its_name(make_examples):
    example = make_examples(1)[0]
    with pytest.raises(InputError, match=r"picture0-0 holds the value 2, .*\(0, 1\)"):
        example.labels(example.read(), 1)
    with pytest.raises(InputError, match="maps the value 2 to the class 3"):
        replace(example, values={1: 1, 2: 3}).labels(example.read(), 2)


def test_a_label_of_another_size_is_refused_with_its_name(make_examples):
    example = make_examples(1)[0]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(example.mask)
    with pytest.raises(InputError, match="label of picture0-0"):
        example.labels(example.read(), 2)


def test_an_image_with_two_labels_is_refused(make_examples):
    one, two = make_examples(2)
    for double in (replace(two, name=one.name), replace(two, image=one.image, kind="original")):
        with pytest.raises(InputError, match=r"comes twice.*final one before the original"):
            check_examples([one, double])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_cannot_be_are_refused(make_examples, weight):
    with pytest.raises(InputError, match="weight"):
        check_examples([replace(make_examples(1)[0], weight=weight)])


def test_nothing_to_train_on_is_told(make_examples):
    with pytest.raises(InputError, match="nothing to train on"):
        check_examples([])
    with pytest.raises(InputError, match="every image is 0"):
        check_examples([replace(make_examples(1)[0], weight=0.0)])


def test_a_changed_label_is_another_example(make_examples):
    example = make_examples(1)[0]
    before = identity_of([example])
    assert identity_of([example]) == before
    Image.fromarray(np.zeros((48, 50), np.uint8)).save(example.mask)
    assert identity_of([example]) != before


def test_maps_come_back_to_the_image_s_own_pixels(make_examples, small):
    examples = make_examples(2, side=45)
    plan = make_plan(examples, CLASSES, small)
    prepared = PreparedImage(examples[0].read(), plan)
    back = prepared.restore(prepared.plane(0)[None])
    assert back.shape == (1, 1, 45, 45)
    shown = examples[0].read().plane(0)[..., 0].astype(float)
    assert np.corrcoef(back.numpy().ravel(), shown.ravel())[0, 1] > 0.9


def test_what_lies_outside_the_region_does_not_count(small, make_examples):
    plan = replace(make_plan(make_examples(2), CLASSES, small), max_side=20)
    grey = np.full((20, 20), 100, np.uint8)
    grey[:, :10] = 140
    grey[:, 15:] = 255
    image = MedicalImage.from_array(grey)
    image._region = np.arange(20)[None] < 15
    image._region = np.broadcast_to(image._region, (20, 20))
    prepared = PreparedImage(image, plan)
    mean, sd = grey[:, :15].mean() / 255, grey[:, :15].std() / 255
    np.testing.assert_allclose(prepared.plane(0)[0, :, 0], (140 / 255 - mean) / sd, rtol=1e-4)
    np.testing.assert_allclose(prepared.plane(0)[0, :, 16], -mean / sd, rtol=1e-4)


def test_a_constant_image_is_all_zero(small, make_examples):
    plan = make_plan(make_examples(2), CLASSES, small)
    made = PreparedImage(MedicalImage.from_array(np.full((32, 32), 7, np.uint8)), plan).plane(0)
    assert np.abs(made.numpy()).max() < 1e-3


def test_foreground_normalisation_clips(small, make_examples):
    plan = make_plan(make_examples(2), CLASSES, small)
    plan = replace(plan, source="values", normalisation=Normalisation("foreground", -50, 50, 10, 20), max_side=32)
    values = np.full((32, 32), 3000, np.int16)
    values[0] = -1000
    made = PreparedImage(MedicalImage.from_array(values, modality="CT"), plan).plane(0).numpy()
    assert made.min() == pytest.approx(-3)
    assert made.max() == pytest.approx(2)
