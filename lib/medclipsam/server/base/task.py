"""What clients can ask a server to run, and how each is described to them."""

from __future__ import annotations

from typing import Any


class Task:
    """Something that a request can start.

    Parameters
    ----------
    description : str
        One sentence, shown beside the task's name.
    """

    def __init__(self, description: str) -> None:
        self.description = description

    def info(self) -> dict[str, Any]:
        """Return the task's entry in `/info/`."""
        return {"description": self.description}


class InferTask(Task):
    """A task that answers a request with a mask.

    Parameters
    ----------
    description : str
        One sentence, shown beside the task's name.
    type : {"segmentation", "deepedit"}
        What clients offer for it: a button, or points as well.
    labels : dict of str to int
        Label table that clients are told: name to id.
    config : dict
        Options with their defaults; a list offers a choice of which the first is the default.
    """

    # clients are told that masks are volumes; that of a picture has one plane
    dimension = 3

    def __init__(self, description: str, *, type: str, labels: dict[str, int], config: dict[str, Any]) -> None:
        super().__init__(description)
        self.type = type
        self.labels = labels
        self._config = config

    def config(self) -> dict[str, Any]:
        """Return the options with their defaults."""
        return self._config

    def info(self) -> dict[str, Any]:
        """Return the task's entry in `/info/`."""
        return {
            "type": self.type,
            "labels": self.labels,
            "dimension": self.dimension,
            "description": self.description,
            "config": self.config(),
        }

    def get_path(self, validate: bool = True) -> None:
        """Return None: a model is not a file that a client can download."""
        return None

    def is_valid(self) -> bool:
        """Return whether the task can be asked now.

        True unless a task knows better: weights are looked for at the first request, whose answer says what is missing.
        """
        return True


class TrainTask(Task):
    """A task that trains on what the studies hold."""

    def config(self) -> dict[str, Any]:
        """Return the options with their defaults."""
        return {}

    def stats(self) -> dict[str, Any]:
        """Return how the running or latest training goes."""
        return {}

    def info(self) -> dict[str, Any]:
        """Return the task's entry in `/info/`."""
        return {"description": self.description, "config": self.config()}
