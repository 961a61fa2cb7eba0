"""What a training is asked for: which labels and names, beside how it trains (`medclipsam.training.options`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import field_validator

from medclipsam.base.errors import UnknownOptionError
from medclipsam.base.options import Options, option
from medclipsam.training.names import DEFAULT_NAME, checked_network_name
from medclipsam.training.options import TrainingOptions


class RunOptions(Options):
    """What is trained on which labels; how it is trained is in `TrainingOptions`. None stands for "auto"."""

    name: str = option(DEFAULT_NAME, "Name of the network, one for each set of labels and kind of image")
    targets: str = option(
        "", 'Labels to train, separated by "," or ";" (empty: those of the network before, else all)', shown="empty"
    )
    modality: str = option(
        "auto",
        "DICOM modality of the images (auto: that of the network before, else the only one)",
        pattern=r"^(auto|[A-Z][A-Z0-9_]{1,15})$",
        allowed="auto, or a DICOM modality such as US, MR, CT or DX",
    )
    min_presence: float | None = option(
        None, "Least presence score of a pseudo-label (auto: the threshold that it was made with)", 0, 1
    )
    min_sam_score: float = option(0.5, "Least score that SAM gave a pseudo-label", 0, 1)
    min_agreement: float = option(
        0.5,
        "Least Dice of a pseudo-label with the published network's mask; 0 for none",
        0,
        1,
    )
    absent_below: float = option(
        0.0, "Presence score below which an empty pseudo-label counts as absence; 0 for never", 0, 1
    )
    resume: bool = option(True, "Continue an interrupted training of the same labels and options")
    processes: int | None = option(None, "Processes that train together (auto: one for each GPU, one on a CPU)", 1, 64)
    tracking: Literal["none", "tensorboard", "mlflow"] = option(
        "none", "Tracker that writes training curves beside the report"
    )

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        checked_network_name(name)
        return name

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names in `targets`."""
        return tuple(name for part in re.split("[,;]", self.targets) if (name := part.strip()))


@dataclass(frozen=True)
class Request:
    """One training.

    Parameters
    ----------
    run : RunOptions
    training : TrainingOptions
    """

    run: RunOptions = field(default_factory=RunOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make a request of strings or JSON values, see `Options.from_mapping`."""
        own, theirs = RunOptions.options().keys(), TrainingOptions.options().keys()
        for key, value in values.items():
            if key not in own | theirs:
                raise UnknownOptionError(key, value, own | theirs)
        return cls(
            RunOptions.from_mapping({key: value for key, value in values.items() if key in own}),
            TrainingOptions.from_mapping({key: value for key, value in values.items() if key in theirs}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all options, JSON-able."""
        return {**self.run.to_dict(), **self.training.to_dict()}
