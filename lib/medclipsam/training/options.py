"""Typed options of a training, made once at the edge from strings or JSON and passed on unchanged."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import field_validator

from medclipsam.base.errors import OptionError
from medclipsam.base.options import Options, option

# What the options that are None become. "full" is the paper's training on nnU-Net's defaults, for a GPU; "small" is
# for CPUs: a few minutes on two cores for a hundred pictures.
PRESETS: dict[str, dict[str, Any]] = {
    "full": {
        "epochs": 600,
        "iterations": 250,
        "keep": 10,
        "base_filters": 32,
        "max_filters": 512,
        "max_patch": 1024,
        "max_side": 1024,
        "max_batch": 64,
        "memory": 8 * 10**9,
        "denominator": "total",
        "learning_rate": 0.01,
        "momentum": 0.99,
    },
    "small": {
        "epochs": 24,
        "iterations": 32,
        "keep": 3,
        "base_filters": 8,
        "max_filters": 128,
        "max_patch": 96,
        "max_side": 96,
        "batch_size": 4,
        "max_batch": 8,
        "memory": 2 * 10**9,
        "denominator": "cycle",
        # with few steps a momentum of 0.99 never gets under way, and the paper's rate is too low without it
        "learning_rate": 0.1,
        "momentum": 0.9,
    },
}


class TrainingOptions(Options):
    """Options of one training of the weakly supervised network. None stands for "auto"."""

    preset: Literal["auto", "full", "small"] = option(
        "auto", "Source of options that are auto (auto: full on a GPU, small on a CPU)"
    )
    device: str = option("auto", "Device: cpu, cuda, cuda:1 (auto: the GPU where there is one)")
    seed: int = option(0, "Seed of weights, sampling and augmentation", 0, 2**31 - 1)
    epochs: int | None = option(None, "Number of epochs", 1, 100_000)
    iterations: int | None = option(None, "Training steps of an epoch", 1, 100_000)
    cycles: int = option(3, "Number of cycles of the learning rate", 1, 1000)
    keep: int | None = option(None, "Checkpoints of each cycle that are kept for the checkpoint ensemble", 1, 1000)
    learning_rate: float | None = option(None, "Learning rate at the start of a cycle, after its first epoch", 1e-8, 10)
    restart_rate: float = option(0.1, "Learning rate of the first epoch of each cycle", 1e-8, 10)
    gamma: float = option(0.8, "Share of a cycle after which the learning rate stays constant", 0, 1)
    denominator: Literal["total", "cycle"] | None = option(
        None, "Epochs that the decay of the learning rate is relative to: those of all cycles, or of one"
    )
    momentum: float | None = option(None, "Nesterov momentum of SGD", 0, 0.9999)
    weight_decay: float = option(3e-5, "Weight decay of SGD", 0, 1)
    clip: float = option(12.0, "Largest norm of the gradient", 1e-6, 1e6)
    loss: Literal["dice_ce", "dice_gce"] = option(
        "dice_ce", "Loss: Dice with cross-entropy, or with generalised cross-entropy, which tolerates wrong labels"
    )
    q: float = option(0.7, "Exponent of the generalised cross-entropy: near 0 cross-entropy, 1 absolute error", 0.01, 1)
    multilabel: Literal["auto", "always", "never"] = option(
        "auto",
        "Decide each target for itself, so that they may overlap (auto: where they do in a training label)",
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", "Weights of the classes in the cross-entropy; balanced weights rare classes more"
    )
    foreground: float = option(0.33, "Share of each batch whose patches contain a class", 0, 1)
    final_weight: float = option(3.0, "Sampling weight of images with a corrected label", 0, 1000)
    original_weight: float = option(1.0, "Sampling weight of images with a pseudo-label", 0, 1000)
    augment: bool = option(True, "Augment the images as nnU-Net does")
    mirror: Literal["auto", "none", "horizontal", "both"] = option(
        "auto", "Axes that images are mirrored along (auto: left-right, none where a label's name has a side)"
    )
    deep_supervision: bool = option(True, "Compute the loss at all resolutions")
    spacing: float | None = option(
        None, "Pixel spacing that images are resampled to (auto: their median)", 1e-3, 1000, unit="mm"
    )
    max_side: int | None = option(None, "Longest side of an image; larger images are reduced", 16, 16384, unit="pixels")
    max_patch: int | None = option(None, "Longest side of the training patch", 16, 16384, unit="pixels")
    base_filters: int | None = option(None, "Filters of the network's first level", 2, 1024)
    max_filters: int | None = option(None, "Largest number of filters of a level", 2, 4096)
    batch_size: int | None = option(None, "Images in a batch (auto: what fits the memory)", 1, 4096)
    max_batch: int | None = option(None, "Largest batch size that auto chooses", 1, 4096)
    memory: int | None = option(
        None, 'Memory that the training may take on its device, also as "4 GB"', 50 * 10**6, 10**13, unit="bytes"
    )
    window: str | None = option(
        None,
        "CT window as centre/width in Hounsfield units (auto: none)",
        allowed='"centre/width" in Hounsfield units, such as "-600/1500"',
    )
    amp: bool = option(True, "Use mixed precision: float16 on CUDA, bfloat16 on CPUs that support it")
    validate_every: int = option(1, "Epochs between two validations", 1, 100_000)
    validation_planes: int = option(50, "Largest number of planes in each validation", 1, 100_000)

    @field_validator("window")
    @classmethod
    def _is_window(cls, window: str | None) -> str | None:
        if window is not None and _window(window) is None:
            raise ValueError(cls.options()["window"].allowed)
        return window

    def resolved(self) -> TrainingOptions:
        """Return the options with device and preset decided and nothing left open that a preset decides.

        Raises
        ------
        OptionError
            If the device is not there, or the cycles are too short for the checkpoints to be kept.
        """
        import torch

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        else:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError):
                raise OptionError("device", device, "cpu, or cuda where torch sees a GPU") from None
        preset = self.preset
        if preset == "auto":
            preset = "small" if device == "cpu" else "full"
        missing = {key: value for key, value in PRESETS[preset].items() if getattr(self, key) is None}
        if "keep" in missing and self.epochs is not None:
            missing["keep"] = max(1, min(missing["keep"], self.epochs // self.cycles))
        options = self.replace(device=device, preset=preset, **missing)
        assert options.epochs is not None
        assert options.keep is not None
        if options.epochs < options.cycles:
            raise OptionError("epochs", options.epochs, f"at least one for each of the {options.cycles} cycles")
        if options.keep > options.epochs // options.cycles:
            raise OptionError("keep", options.keep, f"up to {options.epochs // options.cycles}, the epochs of a cycle")
        return options

    def ct_window(self) -> tuple[float, float] | None:
        """Return the window as (centre, width) in Hounsfield units."""
        return None if self.window is None else _window(self.window)


def _window(text: str) -> tuple[float, float] | None:
    """Return "centre/width" as numbers; None if it is not a window."""
    try:
        centre, width = (float(part) for part in text.split("/"))
    except ValueError:
        return None
    return (centre, width) if math.isfinite(centre) and math.isfinite(width) and width >= 1 else None
