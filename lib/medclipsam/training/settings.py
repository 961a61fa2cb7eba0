"""What a training is asked for: which labels and names, beside how it trains (`medclipsam.training.options`)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from medclipsam.base.errors import OptionError, UnknownOptionError
from medclipsam.training.names import DEFAULT_NAME, checked_network_name
from medclipsam.training.options import CheckedOptions, TrainingOptions, choice, number, whole

# Where curves can be written besides the report, see `medclipsam.training.tracking`.
TRACKERS = ("none", "tensorboard", "mlflow")


@dataclass(frozen=True)
class RunOptions(CheckedOptions):
    """What is trained on which labels; how is `TrainingOptions`'s business.

    Parameters
    ----------
    name : str
        Name of the network: one for each set of labels and kind of image.
    targets : str
        Names of the labels to train, separated by "," or ";"; empty for the ones of the network before, else for all
        that the label files name.
    modality : str
        DICOM modality of the images; "auto" for that of the network before, else for the only one there is.
    min_presence : float or None
        Least presence score of a pseudo-label; None takes the threshold that it was made with.
    min_sam_score : float
        Least score that SAM gave a pseudo-label.
    min_agreement : float
        Least Dice between a pseudo-label and the mask of the published network, where that one's own Dice on the
        validation images is no lower; 0 does without.
    absent_below : float
        A pseudo-label with a presence score below it says that the target is absent; 0 uses none so.
    resume : bool
        Whether an interrupted training on the same labels with the same options is gone on with.
    processes : int or None
        Processes that train together; None is one a GPU, and one on a CPU.
    tracking : {"none", "tensorboard", "mlflow"}
        Where the curves are written besides the report: the workspace's `networks/tracking`.
    """

    name: str = DEFAULT_NAME
    targets: str = ""
    modality: str = "auto"
    min_presence: float | None = number(None, 0, 1)
    min_sam_score: float = number(0.5, 0, 1)
    min_agreement: float = number(0.5, 0, 1)
    absent_below: float = number(0.0, 0, 1)
    resume: bool = True
    processes: int | None = whole(None, 1, 64)
    tracking: str = choice("none", *TRACKERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_network_name(self.name)
        if self.modality != "auto" and not re.fullmatch(r"[A-Z][A-Z0-9_]{1,15}", self.modality):
            raise OptionError("modality", self.modality, "auto, or a DICOM modality such as US, MR, CT or DX")

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
        """Make a request of strings or JSON values, see `CheckedOptions.from_mapping`."""
        own = {each.name for each in dataclasses.fields(RunOptions)}
        theirs = {each.name for each in dataclasses.fields(TrainingOptions)}
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
