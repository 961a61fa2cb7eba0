"""Options of a fine-tuning, typed and checked where they come in."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from medclipsam.base.errors import OptionError
from medclipsam.base.options import Options, option

Loss = Literal["dhn-nce", "infonce", "dcl", "hn-nce", "siglip"]

# Temperature, beta of both directions: DHN-NCE's as published, HN-NCE's beta as DiHT's; CLIP's initial temperature for
# the losses without one of their own.
_DEFAULTS: dict[Loss, tuple[float, float]] = {
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

# What decides how fast it goes and what is written, but not the result.
_WITHOUT_EFFECT = frozenset({"tracker", "checkpoint_steps", "workers", "max_bad"})


class LossOptions(Options):
    """Which loss, and its constants. None takes the loss's own."""

    loss: Loss = option("dhn-nce", "Contrastive loss")
    temperature: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Temperature of the loss; SigLIP learns it from there on",
        json_schema_extra={"x-allowed": "a number above 0 and at most 10"},
    )
    beta1: float | None = option(None, "Hardness of negatives from image to text, of DHN-NCE and HN-NCE", 0, 10)
    beta2: float | None = option(None, "Hardness of negatives from text to image, of DHN-NCE and HN-NCE", 0, 10)

    @model_validator(mode="after")
    def _has_constants(self) -> Self:
        for key, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if value and self.loss not in _HARD:
                raise OptionError(key, value, f"nothing for {self.loss}, which weights no negatives")
        return self

    def constants(self) -> dict[str, float]:
        """Return the values that are used, the loss's own where none was given."""
        temperature, beta = _DEFAULTS[self.loss]
        chosen = {"temperature": temperature if self.temperature is None else self.temperature}
        if self.loss in _HARD:
            chosen |= {key: beta if getattr(self, key) is None else getattr(self, key) for key in ("beta1", "beta2")}
        return chosen


class FinetuneOptions(Options):
    """How a CLIP is fine-tuned. The defaults are the paper's where it names one. None stands for "auto"."""

    loss: Loss = option("dhn-nce", "Contrastive loss")
    temperature: float | None = option(None, "Temperature of the loss (auto: the loss's own)", 1e-4, 10)
    beta1: float | None = option(
        None, "Hardness of negatives from image to text, of dhn-nce and hn-nce (auto: the loss's own)", 0, 10
    )
    beta2: float | None = option(
        None, "Hardness of negatives from text to image, of dhn-nce and hn-nce (auto: the loss's own)", 0, 10
    )
    method: Literal["full", "heads", "lora"] = option(
        "full", "Part that is trained: all weights, the two projections, or low-rank updates (package peft)"
    )
    epochs: int = option(10, "Passes over the pairs", 1, 10_000)
    batch_size: int = option(64, "Pairs that are negatives of each other, over all processes", 2, 1 << 20)
    chunk_size: int | None = option(
        None, "Pairs in the model at once, with the gradient of the whole batch (auto: the batch)", 1, 1 << 20
    )
    learning_rate: float = option(1e-6, "Largest learning rate of AdamW", 1e-12, 1)
    weight_decay: float = option(0.1, "Weight decay of AdamW; biases and norms do not decay", 0, 10)
    warmup: float = option(0.05, "Share of the steps in which the rate rises, before a cosine decay to 0", 0, 0.9)
    lora_rank: int = option(8, "Rank of the low-rank updates", 1, 1024)
    lora_alpha: float = option(16.0, "Scale of the low-rank updates, which is divided by their rank", 1e-3, 4096)
    validation: float = option(0.1, "Share of the pairs that is held out, without validation pairs", 0.01, 0.9)
    gallery: int = option(50, "Candidates of a query in validation", 2, 1 << 20)
    max_bad: float = option(0.1, "Share of the rows that may be unusable", 0, 1)
    checkpoint_steps: int = option(500, "Steps between two checkpoints, besides one after each epoch", 1, 1 << 30)
    workers: int = option(0, "Processes that read images", 0, 256)
    tracker: Literal["none", "tensorboard", "mlflow"] = option(
        "none", "Tracker of each step's figures beside the log", setting=None
    )
    seed: int = option(0, "Seed of the held-out pairs, the order of the pairs and dropout", 0, 2**31 - 1)

    @model_validator(mode="after")
    def _has_loss(self) -> Self:
        self.loss_options()
        return self

    def loss_options(self) -> LossOptions:
        """Return the loss with its constants."""
        return LossOptions(loss=self.loss, temperature=self.temperature, beta1=self.beta1, beta2=self.beta2)

    def to_dict(self) -> dict[str, Any]:
        """Return the options, JSON-able, with the constants that the loss uses."""
        return {**super().to_dict(), **self.loss_options().constants()}

    def identity(self) -> dict[str, Any]:
        """Return the options that the result depends on."""
        return {key: value for key, value in self.to_dict().items() if key not in _WITHOUT_EFFECT}


# What a server's fine-tunings take: the tracker writes into a folder that a server does not keep.
SERVED_OPTIONS = tuple(FinetuneOptions.settings())
