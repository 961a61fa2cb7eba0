"""Small studies, and a run on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclipsam.cohort.command import folder_source
from medclipsam.cohort.methods import describe_request, own_request
from medclipsam.cohort.store import Run
from medclipsam.cohort.work import WorkerSettings

STANDIN = "tests.cohort.standin:Bright"


@pytest.fixture
def write_studies(tmp_path: Path) -> Callable[..., Path]:
    """Write a number of PNG files with a bright half, by default into tmp_path/studies."""

    def write(count: int, folder: str = "studies", first: int = 0) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for number in range(first, first + count):
            pixels = np.full((8, 10), 20, np.uint8)
            pixels[: 1 + number % 7] = 200
            Image.fromarray(pixels).save(place / f"im{number:04d}.png", compress_level=0)
        return place

    return write


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Make a run of the stand-in on a folder, and list its studies."""

    def make(studies: Path, **arguments: Any) -> Run:
        request = describe_request(own_request(STANDIN, **arguments), ("nifti",))
        run = Run.create(tmp_path / "out", request, folder_source(studies))
        run.extend(WorkerSettings().open(run.source))
        return run

    return make
