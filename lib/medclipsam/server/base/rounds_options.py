"""How the rounds of a server go, typed once from the strings of `--conf`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import field_validator

from medclipsam.base.options import Options, option


class RoundsOptions(Options):
    """How rounds go."""

    retrain_after: int = option(20, "New final labels after which a training starts by itself; 0 for never", 0, 10**6)
    retrain_options: str = option(
        "{}",
        "Options of a training that starts by itself, a JSON object",
        allowed='a JSON object of options of the trainer, as in {"epochs": 100}',
    )
    lease_minutes: float = option(
        30.0, "Time that an image is kept for whom it was offered to", 0.01, 7 * 24 * 60, unit="minutes"
    )
    max_leases: int = option(50, "Largest number of images kept for one person at a time", 1, 10**6)
    prelabels: int = option(4, "Number of next images for which masks are made ahead; 0 for none", 0, 1000)
    sampling_seed: int = option(0, "Seed of all that is drawn", 0, 2**31 - 1)

    @field_validator("retrain_options")
    @classmethod
    def _is_object(cls, text: str) -> str:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(cls.options()["retrain_options"].allowed)
        return text

    @property
    def training(self) -> dict[str, Any]:
        """The options of the trainings; the trainer checks them."""
        return dict(json.loads(self.retrain_options))
