"""Masks kept for clicks, and the image that is kept with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medclipsam.server.base.audit import Caller
from medclipsam.server.inference.last_masks import LastMasks, client_of


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    return path


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (1, 50, 50)).astype(np.uint8)


def test_each_client_finds_its_own_mask(image: Path) -> None:
    masks = LastMasks()
    masks.keep("one", image, noise(1), {"heart": 3})
    masks.keep("two", image, noise(2), {})
    masks.keep("two", image, noise(3), {"lung": 4})
    found, names, _ = masks.find("one", image) or (None, None, None)
    assert np.array_equal(found, noise(1))
    assert names == {"heart": 3}
    found, names, _ = masks.find("two", image) or (None, None, None)
    assert np.array_equal(found, noise(3))
    assert masks.find("", image) is None
    assert masks.find("one", image.with_name("other.png")) is None


def test_another_users_client_finds_nothing(image: Path) -> None:
    masks = LastMasks()

    def as_user(user: str, client: str) -> str:
        return client_of(Caller(user, client))

    masks.keep(as_user("ada", "slicer"), image, noise(1), {"heart": 3})
    assert masks.find(as_user("ada", "slicer"), image) is not None
    for user, client in (("bob", "slicer"), ("anonymous", "slicer"), ("bob", as_user("ada", "slicer"))):
        assert masks.find(as_user(user, client), image) is None
    assert as_user("", "slicer") == as_user("anonymous", "slicer") == "slicer"


def test_masks_are_dropped_by_age_and_by_size(image: Path) -> None:
    now = [0.0]
    masks = LastMasks(max_bytes=6000, max_seconds=10, clock=lambda: now[0])
    for seed in range(3):  # some 2500 bytes each, and noise does not pack
        masks.keep(str(seed), image, noise(seed), {})
        masks.find("0", image)
    assert [masks.find(str(seed), image) is not None for seed in range(3)] == [True, False, True]
    now[0] = 11
    assert [masks.find(str(seed), image) is not None for seed in range(3)] == [False, False, False]


def test_a_mask_goes_with_the_image_it_was_made_on(image: Path) -> None:
    masks = LastMasks()
    masks.keep("", image, noise(1), {})
    os.utime(image, (1, 1))
    assert masks.find("", image) is None


def test_what_overlaps_is_kept_whole(image: Path) -> None:
    masks = LastMasks()
    beneath = np.stack([noise(2), noise(3)])
    masks.keep("one", image, noise(1), {"heart": 3}, beneath=beneath)
    found = masks.find("one", image)
    assert found is not None
    assert np.array_equal(found.beneath, beneath)
    label = int(beneath[1].max())
    assert np.array_equal(found.mask_of(label), (noise(1) == label) | (beneath == label).any(axis=0))
