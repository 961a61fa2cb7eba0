"""Prepared planes on disk: each training image is read and resampled once, and memory holds what is looked at."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from medclipsam.base.errors import CancelledError, TrainingError
from medclipsam.base.files import atomic_write, write_text
from medclipsam.training.examples import Example, PreparedImage
from medclipsam.training.layers import class_masks
from medclipsam.training.plan import Plan


class PlaneStore:
    """Planes of examples as the network sees them, in one file that is mapped into memory.

    Parameters
    ----------
    path : pathlib.Path
        The file; a JSON of the same name says what lies where.

    Attributes
    ----------
    classes : numpy.ndarray
        bool [n, classes + 1]: which classes each plane holds; the first is the background.
    weights : numpy.ndarray
        float64 [n]: how often each plane is drawn; the planes of an image share its weight.
    """

    def __init__(self, path: Path) -> None:
        try:
            index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            self._data = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise TrainingError(f"The prepared planes {path} cannot be read: {error}.") from error
        self.key = index["key"]
        self.channels = int(index["channels"])
        # of each plane's label: the classes that may overlap; 0 where it is one map of all classes
        self._label_channels = int(index["label_channels"])
        self._places = [tuple(entry) for entry in index["places"]]
        self.classes = np.asarray(index["classes"], dtype=bool)
        self.weights = np.asarray(index["weights"], dtype=np.float64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image (float32 [C, h, w]) and label of a plane.

        The label is uint8 [h, w], the class of each pixel; of classes that may overlap [classes, h, w], 1 inside.
        """
        start, rows, columns = self._places[index]
        pixels = rows * columns
        middle = start + 2 * self.channels * pixels
        image = self._data[start:middle].view(np.float16).reshape(self.channels, rows, columns)
        shape = (self._label_channels, rows, columns) if self._label_channels else (rows, columns)
        label = self._data[middle : middle + max(1, self._label_channels) * pixels].reshape(shape)
        return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label.copy())


def open_planes(
    examples: Sequence[Example],
    plan: Plan,
    path: Path,
    key: str,
    *,
    should_stop: Callable[[], bool] | None = None,
    step: Callable[[int], None] | None = None,
) -> PlaneStore:
    """Prepare the planes of examples, or open them where that was done before.

    Parameters
    ----------
    examples : sequence of Example
    plan : Plan
    path : pathlib.Path
        The file; written whole or not at all.
    key : str
        What the planes are made of; planes of another key are made anew.
    should_stop : callable, optional
        Asked before each image.
    step : callable, optional
        Called with the number of images done.

    Raises
    ------
    InputError
        If an image or label cannot be used.
    CancelledError
        If it was stopped.
    """
    with contextlib.suppress(TrainingError):  # not made yet, or only by half
        store = PlaneStore(path)
        if store.key == key:
            return store
    places: list[tuple[int, int, int]] = []
    classes: list[list[int]] = []
    weights: list[float] = []
    offset = 0
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        for done, example in enumerate(examples):
            if should_stop is not None and should_stop():
                raise CancelledError("The training was stopped before its first epoch.")
            image = example.read()
            layers = example.layers(image, plan.n_classes)
            prepared = PreparedImage(image, plan)
            for index in range(prepared.n_planes):
                if plan.multilabel:
                    label = prepared.masks(class_masks(layers[:, index], plan.n_classes)).numpy()
                    present = np.array([not label.any(axis=0).all(), *label.any(axis=(1, 2))])
                else:
                    label = prepared.label(layers[0, index]).numpy()
                    present = np.bincount(label.ravel(), minlength=plan.n_classes + 1) > 0
                content = prepared.plane(index).numpy().astype(np.float16).tobytes() + label.tobytes()
                content += b"\0" * (len(content) % 2)
                file.write(content)
                places.append((offset, *prepared.shape))
                offset += len(content)
                classes.append([int(value) for value in present])
                weights.append(example.weight / prepared.n_planes)
            if step is not None:
                step(done + 1)
        # the index of other planes must not be read with these
        path.with_suffix(".json").unlink(missing_ok=True)
    table = {
        "key": key,
        "channels": plan.channels,
        "label_channels": plan.n_classes if plan.multilabel else 0,
        "places": places,
        "classes": classes,
        "weights": weights,
    }
    write_text(path.with_suffix(".json"), json.dumps(table))
    return PlaneStore(path)
