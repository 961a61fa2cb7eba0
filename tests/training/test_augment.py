import math

import numpy as np
import pytest
import torch

from medclipsam.training.augment import Augmenter, RandContrast, cut, resample
from medclipsam.training.examples import IGNORE


@pytest.fixture
def plane() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.arange(20 * 30, dtype=torch.float32).reshape(1, 20, 30)
    return image, (image[0] % 3).to(torch.uint8)


@pytest.mark.parametrize("centre", [(10, 15), (4, 4), (20, 30), (0, 0)])
def test_a_cut_is_the_plane_and_unknown_outside(plane, centre):
    image, label = plane
    made, mask = cut(image, label, centre, (12, 8))
    top, left = centre[0] - 6, centre[1] - 4
    for row, column in np.ndindex(12, 8):
        inside = 0 <= top + row < 20 and 0 <= left + column < 30
        assert made[0, row, column] == (image[0, top + row, left + column] if inside else 0)
        assert mask[row, column] == (label[top + row, left + column] if inside else IGNORE)


def test_a_small_plane_is_centred_and_a_far_cut_is_empty(plane):
    image, label = plane
    made, mask = cut(image, label, (10, 15), (40, 40))
    torch.testing.assert_close(made[:, 10:30, 5:35], image)
    assert (mask != IGNORE).sum() == label.numel()
    assert (cut(image, label, (500, 500), (8, 8))[1] == IGNORE).all()


def test_resampling_without_change_is_the_cut(plane):
    for centre in ((10, 15), (3, 28)):
        made, mask = resample(*plane, centre, (12, 8), 0.0, 1.0, (False, False))
        expected, known = cut(*plane, centre, (12, 8))
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(mask, known)


def test_image_and_label_turn_together_by_a_right_angle():
    image = torch.zeros(1, 9, 9)
    image[0, 1, 4] = 1
    made, mask = resample(image, image[0].to(torch.uint8), (4.5, 4.5), (9, 9), math.pi / 2, 1.0, (False, False))
    expected = torch.rot90(image[0])
    torch.testing.assert_close(made[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(mask.float(), expected)


def test_scaling_enlarges():
    label = torch.zeros(40, 40, dtype=torch.uint8)
    label[15:25, 15:25] = 1
    _, mask = resample(label[None].float(), label, (20, 20), (40, 40), 0.0, 1.4, (False, False))
    assert int((mask == 1).sum()) == pytest.approx(196, abs=30)


def test_the_same_chance_gives_the_same_patch(plane):
    augmenter = Augmenter((16, 16), (1,))
    made = []
    for seed in (0, 0, 1):
        rng = np.random.default_rng(seed)
        augmenter.seed(rng)
        patches = [augmenter(*plane, (10, 15), rng)[0] for _ in range(20)]
        made.append(torch.stack(patches))
    torch.testing.assert_close(made[0], made[1])
    assert not torch.allclose(made[0], made[2])


def test_only_allowed_axes_are_mirrored():
    image = torch.zeros(1, 16, 16)
    image[0, :8, :8] = 100.0
    corners = {}
    for axes in ((), (1,), (0, 1)):
        augmenter = Augmenter((16, 16), axes)
        rng = np.random.default_rng(0)
        augmenter.seed(rng)
        seen = set()
        for _ in range(60):
            patch = augmenter(image, torch.zeros(16, 16, dtype=torch.uint8), (8, 8), rng)[0][0]
            quarters = patch.reshape(2, 8, 2, 8).mean(dim=(1, 3))
            seen.add(int(quarters.argmax()))
        corners[axes] = seen
    assert corners == {(): {0}, (1,): {0, 1}, (0, 1): {0, 1, 2, 3}}


def test_without_augmentation_patches_are_only_cut(plane):
    rng = np.random.default_rng(0)
    made, mask = Augmenter((12, 8), (0, 1), enabled=False)(*plane, (10, 15), rng)
    expected, known = cut(*plane, (10, 15), (12, 8))
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(mask, known.long())


def test_contrast_keeps_mean_and_range():
    image = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    transform = RandContrast((0.5, 0.5), 1.0)
    transform.set_random_state(seed=0)
    made = transform(image)
    mean = image.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(made, mean + 0.5 * (image - mean))
    wide = RandContrast((3.0, 3.0), 1.0)(image)
    assert wide.amin() >= image.amin()
    assert wide.amax() <= image.amax()
