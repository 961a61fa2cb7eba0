"""How the rounds of a server go, typed once from the strings of `--conf`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medclipsam.active.strategies import SamplingOptions
from medclipsam.errors import OptionError


@dataclass(frozen=True)
class RoundsOptions:
    """How rounds go.

    Parameters
    ----------
    retrain_after : int
        New `final` labels after which a training starts by itself; 0 never.
    lease_minutes : float
        How long an image is kept for whom it was offered to.
    training : dict
        Options of the trainings that start by themselves; the trainer checks them.
    prelabels : int
        The next images for which a mask is made before anyone opens them; 0 for none.
    seed : int
        Of all that is drawn.
    sampling : SamplingOptions
        Options of the choice.

    Raises
    ------
    OptionError
        If a value is out of range.
    """

    retrain_after: int = 20
    lease_minutes: float = 30.0
    prelabels: int = 0
    seed: int = 0
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampling: SamplingOptions = dataclasses.field(default_factory=SamplingOptions)

    def __post_init__(self) -> None:
        for key, least, most in (
            ("retrain_after", 0, 10**6),
            ("lease_minutes", 0.01, 7 * 24 * 60),
            ("prelabels", 0, 1000),
            ("seed", 0, 2**31 - 1),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise OptionError(key, value, f"a number from {least:g} to {most:g}")

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> RoundsOptions:
        """Read `--conf` strings.

        Raises
        ------
        OptionError
            If a key is unknown or a value is not allowed.
        """
        values: dict[str, Any] = {}
        for key, text in given.items():
            if key == "training":
                values[key] = _object(text)
                continue
            kind = float if key == "lease_minutes" else int
            try:
                values[key] = kind(text)
            except ValueError:
                raise OptionError(key, text, "a number" if kind is float else "a whole number") from None
        return cls(**values)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise OptionError("retrain_options", text, 'a JSON object of options of the trainer, as in {"epochs": 100}')
    return found
