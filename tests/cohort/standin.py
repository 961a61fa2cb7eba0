"""A cheap method in the place of the models, for tests of all that is around them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from medclipsam.cohort.methods import Made
from medclipsam.imaging import MedicalImage


class Bright:
    """Finds the pixels above half of the image's range.

    Parameters
    ----------
    seconds : float
        How long it takes.
    poison : str
        An image whose name has this in it ends the process.
    hang : str
        An image whose name has this in it takes an hour.
    bad : str
        An image whose name has this in it raises an error.
    tries : str
        Folder of a file for each call, named by image; "" for none.
    """

    def __init__(
        self, device: str, seconds: float = 0.0, poison: str = "", hang: str = "", bad: str = "", tries: str = ""
    ) -> None:
        self._seconds, self._poison, self._hang, self._bad, self._tries = seconds, poison, hang, bad, tries

    def segment(self, image: MedicalImage, text: str) -> Made:
        name = image.source.name
        if self._tries:
            Path(self._tries, f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()
        if self._poison and self._poison in name:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._bad and self._bad in name:
            raise ValueError(f"{name} is bad")
        time.sleep(3600 if self._hang and self._hang in name else self._seconds)
        planes = np.stack([image.plane(index) for index in range(image.n_planes)]).astype(float)
        if planes.ndim == 4:
            planes = planes.mean(axis=-1)
        mask = planes > (planes.min() + planes.max()) / 2
        voxels = int(mask.sum())
        finding = {
            **{"finding": "bright", "label": 1, "found": voxels > 0, "voxels": voxels},
            **{"presence": float(mask.mean()), "threshold": 0.05},
        }
        return Made(mask.astype(np.uint8), {"bright": 1}, [finding], {"text": text, "weights": "{}"})
