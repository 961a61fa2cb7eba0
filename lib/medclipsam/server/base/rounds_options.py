"""How the rounds of a server go."""

from __future__ import annotations

import json
from typing import Any

from pydantic import field_validator

from medclipsam.base.options import Options, option


class RoundsOptions(Options):
    """How rounds go."""

    retrain_after: int = option(20, "New final labels after which a training starts by itself; 0 for never", 0, 10**6)
    # The trainer checks them.
    training: dict[str, Any] = option(
        {},
        "Options of a training that starts by itself; they take precedence over train_... settings",
        allowed='a JSON object of options of the trainer, as in {"epochs": 100}',
        setting="retrain_options",
    )
    lease_minutes: float = option(
        30.0, "Time that an image is reserved for the person it was offered to", 0.01, 7 * 24 * 60, unit="minutes"
    )
    max_leases: int = option(50, "Largest number of images reserved for one person at a time", 1, 10**6)
    second_read_share: float = option(
        0.0, "Share of the images that a second person reads too, unaware of the first", 0, 1
    )
    prelabels: int = option(4, "Number of next images for which masks are made ahead; 0 for none", 0, 1000)
    sampling_seed: int = option(0, "Seed of all that is drawn", 0, 2**31 - 1)

    @field_validator("training", mode="before")
    @classmethod
    def _from_json(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return json.loads(given)
        except (ValueError, RecursionError):
            raise ValueError(cls.options()["training"].allowed) from None
