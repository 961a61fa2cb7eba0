"""The file from which an interrupted training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medclipsam.base.errors import TrainingError
from medclipsam.base.files import atomic_write


class OtherTrainingError(TrainingError):
    """A folder holds a training with other data, options or weights.

    Parameters
    ----------
    folder : Path
        The folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} holds a training with other data, options or weights; name another folder, or start the "
            "training over."
        )


class Checkpoint:
    """State of a training in a file.

    Parameters
    ----------
    file : Path
        The file; its folder exists.
    key : str
        Hash of everything that the training depends on.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the file by a new state: tensors, numbers, texts, and lists and dicts of these."""
        save_state({**state, "key": self.key}, self.file)

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """Return the state, None where there is no file.

        Raises
        ------
        OtherTrainingError
            If it is another training's.
        TrainingError
            If it cannot be read.
        """
        if not self.file.is_file():
            return None
        try:
            state = dict(torch.load(self.file, map_location=device, weights_only=True))
        except Exception as error:
            raise TrainingError(f"The checkpoint {self.file} is damaged; start the training over.") from error
        if state.get("key") != self.key:
            raise OtherTrainingError(self.file.parent)
        return state


def save_state(state: Mapping[str, Any], file: Path) -> None:
    """Write what `torch.save` takes to a file, which appears under its name only when complete."""
    with atomic_write(file) as temporary:
        torch.save(dict(state), temporary)
