"""How the rounds of a server go, typed once from the strings of `--conf`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from medclipsam.base.errors import OptionError
from medclipsam.training.options import CheckedOptions, number, whole


@dataclass(frozen=True)
class RoundsOptions(CheckedOptions):
    """How rounds go.

    Parameters
    ----------
    retrain_after : int
        New `final` labels after which a training starts by itself; 0 never.
    retrain_options : str
        Options of the trainings that start by themselves, a JSON object; the trainer checks them.
    lease_minutes : float
        How long an image is kept for whom it was offered to.
    max_leases : int
        Images that are kept for one person at a time.
    prelabels : int
        The next images for which a mask is made before anyone opens them; 0 for none.
    sampling_seed : int
        Of all that is drawn.

    Raises
    ------
    OptionError
        If a value is not allowed.
    """

    retrain_after: int = whole(20, 0, 10**6)
    retrain_options: str = "{}"
    lease_minutes: float = number(30.0, 0.01, 7 * 24 * 60)
    max_leases: int = whole(50, 1, 10**6)
    prelabels: int = whole(4, 0, 1000)
    sampling_seed: int = whole(0, 0, 2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.training

    @property
    def training(self) -> dict[str, Any]:
        """The options of the trainings."""
        try:
            found = json.loads(self.retrain_options)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            allowed = 'a JSON object of options of the trainer, as in {"epochs": 100}'
            raise OptionError("retrain_options", self.retrain_options, allowed)
        return found
