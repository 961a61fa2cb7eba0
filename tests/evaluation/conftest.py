"""Small data in the paper's layout: bright discs, what the pipeline of tests/conftest.py looks for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

Write = Callable[..., Path]


def disc(shape: tuple[int, int], row: int, column: int, radius: int = 9) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def save(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    """A data folder of one task "spot": three images with a bright disc, one without; also two validation images."""
    data = tmp_path / "data"
    places = {"a": (30, 30), "b": (40, 60), "c": (25, 70), "none": None}
    for split, names in {"test": list(places), "val": ["a", "b"]}.items():
        for name in names:
            place = places[name]
            mask = np.zeros((64, 96), bool) if place is None else disc((64, 96), *place)
            save(np.where(mask, 255, 20), data / "spot" / f"{split}_images" / f"{name}.png")
            save(mask * 255, data / "spot" / f"{split}_masks" / f"{name}.png")
    entry = {
        "prompt": "something bright",
        "paraphrases": ["a bright disc"],
        "other_structures": ["a dark corner"],
        "other_modality": ["heart", "skull"],
        "nonsense": ["a parking ticket"],
    }
    (data / "tasks.yaml").write_text(yaml.safe_dump({"tasks": {"spot": entry}}))
    return data
