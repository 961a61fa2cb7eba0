"""Options of a fine-tuning, typed and checked where they come in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from medclipsam.base.errors import OptionError
from medclipsam.training.options import CheckedOptions, choice, number, whole

LOSSES = ("dhn-nce", "infonce", "dcl", "hn-nce", "siglip")

# Temperature, beta of both directions: DHN-NCE's as published, HN-NCE's beta as DiHT's; CLIP's initial temperature for
# the losses without one of their own.
_DEFAULTS: dict[str, tuple[float, float]] = {
    "dhn-nce": (0.6, 0.15),
    "infonce": (0.07, 0.0),
    "dcl": (0.07, 0.0),
    "hn-nce": (0.07, 0.25),
    "siglip": (0.1, 0.0),
}
# Losses whose positive pair is not in the denominator.
DECOUPLED = frozenset({"dhn-nce", "dcl"})
_HARD = frozenset({"dhn-nce", "hn-nce"})

LOSS_CONSTANTS = ("temperature", "beta1", "beta2")
METHODS = ("full", "heads", "lora")
TRACKERS = ("none", "tensorboard", "mlflow")

# What decides how fast it goes and what is written, but not the result.
_WITHOUT_EFFECT = frozenset({"tracker", "checkpoint_steps", "workers", "max_bad"})


@dataclass(frozen=True)
class LossOptions:
    """Which loss, and its constants.

    Parameters
    ----------
    name : {"dhn-nce", "infonce", "dcl", "hn-nce", "siglip"}
        The loss.
    temperature : float or None
        tau, above 0 and at most 10; None takes the loss's own. SigLIP learns its temperature from there on.
    beta1, beta2 : float or None
        Hardness from image to text and from text to image, 0 to 10; None takes the loss's own. Only DHN-NCE and HN-NCE
        have them.

    Raises
    ------
    OptionError
        If the loss is unknown or a value is out of range.
    """

    name: str = "dhn-nce"
    temperature: float | None = None
    beta1: float | None = None
    beta2: float | None = None

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise OptionError("loss", self.name, "one of " + ", ".join(LOSSES))
        if self.temperature is not None and not 0 < self.temperature <= 10:
            raise OptionError("temperature", self.temperature, "a number above 0 and at most 10")
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= 10:
                raise OptionError(key, value, "a number from 0 to 10")
            if value and self.name not in _HARD:
                raise OptionError(key, value, f"nothing for {self.name}, which weights no negatives")

    def constants(self) -> dict[str, float]:
        """Return the values that are used, the loss's own where none was given."""
        temperature, beta = _DEFAULTS[self.name]
        chosen = {"temperature": temperature if self.temperature is None else self.temperature}
        if self.name in _HARD:
            chosen |= {key: beta if getattr(self, key) is None else getattr(self, key) for key in ("beta1", "beta2")}
        return chosen


@dataclass(frozen=True)
class FinetuneOptions(CheckedOptions):
    """How a CLIP is fine-tuned. The defaults are the paper's where it names one.

    Parameters
    ----------
    loss : {"dhn-nce", "infonce", "dcl", "hn-nce", "siglip"}
        The loss, see `medclipsam.finetune.losses`.
    temperature, beta1, beta2 : float or None
        Its constants; None takes its own.
    method : {"full", "heads", "lora"}
        What is trained: all weights, the two projections into the common space, or low-rank updates of all attention
        and feed-forward weights, which are added to the weights at the end.
    epochs : int
        Passes over the pairs.
    batch_size : int
        Pairs that are negatives of each other, over all processes together.
    chunk_size : int or None
        Pairs that a process puts through the model at once; None the whole batch. The gradient is that of the whole
        batch (Gao et al., GradCache, RepL4NLP 2021), for one more forward pass.
    learning_rate, weight_decay : float
        AdamW's; biases and norms do not decay.
    warmup : float
        Share of the steps in which the rate rises, before it falls along a cosine to 0.
    lora_rank, lora_alpha : int, float
        Rank of the updates, and their scale (times alpha / rank).
    validation : float
        Share of the pairs that is held out where no validation pairs are given.
    gallery : int
        Candidates of a query in validation.
    max_bad : float
        Share of the rows that may be bad.
    checkpoint_steps : int
        Steps between two checkpoints; there is one after each epoch as well.
    workers : int
        Processes that read images.
    tracker : {"none", "tensorboard", "mlflow"}
        Where the figures of each step go beside the log.
    seed : int
        Of the split, the order of the pairs and dropout.

    Raises
    ------
    OptionError
        If a value is not allowed.
    """

    loss: str = choice("dhn-nce", *LOSSES)
    temperature: float | None = number(None, 1e-4, 10)
    beta1: float | None = number(None, 0, 10)
    beta2: float | None = number(None, 0, 10)
    method: str = choice("full", *METHODS)
    epochs: int = whole(10, 1, 10_000)
    batch_size: int = whole(64, 2, 1 << 20)
    chunk_size: int | None = whole(None, 1, 1 << 20)
    learning_rate: float = number(1e-6, 1e-12, 1)
    weight_decay: float = number(0.1, 0, 10)
    warmup: float = number(0.05, 0, 0.9)
    lora_rank: int = whole(8, 1, 1024)
    lora_alpha: float = number(16.0, 1e-3, 4096)
    validation: float = number(0.1, 0.01, 0.9)
    gallery: int = whole(50, 2, 1 << 20)
    max_bad: float = number(0.1, 0, 1)
    checkpoint_steps: int = whole(500, 1, 1 << 30)
    workers: int = whole(0, 0, 256)
    tracker: str = choice("none", *TRACKERS)
    seed: int = whole(0, 0, 2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss_options()

    def loss_options(self) -> LossOptions:
        """Return the loss with its constants."""
        return LossOptions(self.loss, self.temperature, self.beta1, self.beta2)

    def to_dict(self) -> dict[str, Any]:
        """Return the options, JSON-able, with the constants that the loss uses."""
        return {**super().to_dict(), **self.loss_options().constants()}

    def identity(self) -> dict[str, Any]:
        """Return the options that the result depends on."""
        return {key: value for key, value in self.to_dict().items() if key not in _WITHOUT_EFFECT}


# What a server's fine-tunings take: the tracker writes into a folder that a server does not keep.
SERVED_OPTIONS = tuple(option.name for option in dataclasses.fields(FinetuneOptions) if option.name != "tracker")
