"""Small images that a network learns in seconds, and the options for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclipsam.training.examples import Example
from medclipsam.training.options import TrainingOptions


def draw(rng: np.random.Generator, side: int = 48, *, disc: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc and a dark square on grain, uint8 [side, side], and their labels 1 and 2."""
    y, x = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.uint8)
    if disc:
        row, column = rng.integers(side // 4, side * 3 // 4, 2)
        labels[(y - row) ** 2 + (x - column) ** 2 < (side / 6) ** 2] = 1
    row, column = rng.integers(2, side * 2 // 3, 2)
    labels[row : row + side // 4, column : column + side // 4] = 2
    picture = 110 + np.array([0, 80, -70])[labels] + rng.normal(0, 10, labels.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), labels


@pytest.fixture
def make_examples(tmp_path: Path) -> Callable[..., list[Example]]:
    """Return the function that writes pictures with labels; one in four has no disc."""

    def make(count: int = 12, *, seed: int = 0, side: int = 48, name: str = "picture") -> list[Example]:
        rng = np.random.default_rng(seed)
        made = []
        for index in range(count):
            picture, labels = draw(rng, side, disc=index % 4 != 3)
            image, mask = tmp_path / f"{name}{seed}-{index}.png", tmp_path / f"{name}{seed}-{index}-mask.png"
            Image.fromarray(picture).save(image)
            Image.fromarray(labels).save(mask)
            made.append(Example(f"{name}{seed}-{index}", image, mask, "final", modality="US"))
        return made

    return make


@pytest.fixture
def small() -> TrainingOptions:
    """Options of a training of seconds."""
    return TrainingOptions(
        device="cpu",
        epochs=4,
        iterations=3,
        cycles=2,
        keep=2,
        base_filters=4,
        max_filters=16,
        max_side=32,
        max_patch=32,
        batch_size=4,
    )


@pytest.fixture
def studies(tmp_path: Path, make_discs: Callable[[Path], Any]) -> Any:
    """A studies folder without an image."""
    return make_discs(tmp_path / "studies")
