"""A ledger with images, and a clock that is moved by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from medclipsam.active.ledger import Ledger


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """Ten images, "i0" to "i9", of which "i8" and "i9" are of the validation set."""
    made = Ledger(tmp_path / "rounds.sqlite", clock)
    made.sync_images({f"i{k}": (f"p{k}", k >= 8) for k in range(10)})
    yield made
    made.close()


@pytest.fixture
def mask() -> Callable[..., np.ndarray]:
    """Return the function that draws a square of an edge into a label map, uint8 [1, 16, 16]."""

    def draw(value: int = 1, *, edge: int = 4) -> np.ndarray:
        labels = np.zeros((1, 16, 16), np.uint8)
        labels[0, 2 : 2 + edge, 2 : 2 + edge] = value
        return labels

    return draw
