"""Typed options of a training, made once at the edge from strings or JSON and passed on unchanged."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from medclipsam.base.errors import OptionError, UnknownOptionError

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
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def number(default: float | None, low: float, high: float) -> Any:
    """Return a field that is a number in a range, both bounds allowed."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def whole(default: int | None, low: int, high: int) -> Any:
    """Return a field that is a whole number in a range, both bounds allowed."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "whole": True})


def choice(default: str | None, *choices: str) -> Any:
    """Return a field that is one of a few words."""
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class CheckedOptions:
    """Options whose fields are checked by their types and metadata when they are made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check(field)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make options from strings or JSON values.

        A list stands for a drop-down that nobody touched and means its first entry; an empty string, "auto" (where
        None is allowed) or None means the default.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {}
        for key, given in values.items():
            if key not in fields:
                raise UnknownOptionError(key, given, fields)
            value = given[0] if isinstance(given, (list, tuple)) and given else given
            if value is None or value == "" or (value == "auto" and fields[key].default is None):
                continue
            chosen[key] = _parse(fields[key], value)
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a JSON-able dictionary."""
        return dataclasses.asdict(self)

    def _check(self, field: dataclasses.Field[Any]) -> None:
        value, rules = getattr(self, field.name), field.metadata
        if value is None and field.default is None:
            return
        if "choices" in rules:
            if value not in rules["choices"]:
                raise OptionError(field.name, value, "one of " + ", ".join(rules["choices"]))
        elif "low" in rules:
            kinds = int if rules.get("whole") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not rules["low"] <= value <= rules["high"]:
                what = "a whole number" if rules.get("whole") else "a number"
                raise OptionError(field.name, value, f"{what} from {rules['low']:g} to {rules['high']:g}")
        elif isinstance(field.default, bool):
            if not isinstance(value, bool):
                raise OptionError(field.name, value, "true or false")
        elif not isinstance(value, str):
            raise OptionError(field.name, value, "a text")


@dataclass(frozen=True)
class TrainingOptions(CheckedOptions):
    """Options of one training of the weakly supervised network.

    Parameters
    ----------
    preset : {"auto", "full", "small"}
        Where options that are None come from (`PRESETS`); "auto" is "full" on a GPU and "small" on a CPU.
    device : str
        "auto" (the GPU where there is one), "cpu", "cuda", "cuda:1" ...
    seed : int
        Of weights, sampling and augmentation.
    epochs, iterations : int or None
        Epochs (T), and steps of an epoch.
    cycles : int
        Cycles of the learning rate (C).
    keep : int or None
        Checkpoints kept of the end of each cycle (K); the ensemble has `cycles * keep` members.
    learning_rate : float or None
        alpha_0.
    restart_rate : float
        alpha_r, the rate of the first epoch of a cycle.
    gamma : float
        Share of a cycle after which the rate no longer falls.
    denominator : {"total", "cycle"} or None
        What the rate's epoch is divided by: see `medclipsam.training.schedule`.
    momentum : float or None
        Of SGD, Nesterov's.
    weight_decay : float
    clip : float
        Greatest norm of the gradient.
    loss : {"dice_ce", "dice_gce"}
        Dice with cross-entropy, or with generalised cross-entropy, which wrong labels mislead less.
    q : float
        Of the generalised cross-entropy: near 0 it is cross-entropy, at 1 the mean absolute error.
    class_weights : {"none", "balanced"}
        "balanced" weights each class in the cross-entropy by the inverse square root of its share of pixels.
    foreground : float
        Share of each batch that is drawn so that a class lies in the patch.
    final_weight, original_weight : float
        How often a corrected image and one with a pseudo-label are drawn, relative to each other.
    augment : bool
        nnU-Net's augmentations.
    mirror : {"auto", "none", "horizontal", "both"}
        "auto": left and right are mirrored unless a class's name says "left" or "right".
    deep_supervision : bool
    spacing : float or None
        Millimetres of a pixel the network works on; None takes the training images' median.
    max_side : int or None
        Longest side in pixels the network works on: images are brought down to it.
    max_patch : int or None
        Longest side of the training patch in pixels.
    base_filters, max_filters : int or None
        Filters of the first level, doubled at each further level up to the greatest.
    batch_size : int or None
        None takes what fits the memory, up to `max_batch`.
    max_batch : int or None
    memory : int or None
        Bytes that training may take on its device, beside the libraries; also "4 GB", "500 MB".
    window : str or None
        Window of a CT in Hounsfield units, "centre/width"; None normalises Hounsfield units themselves.
    amp : bool
        Mixed precision: float16 on CUDA, bfloat16 on a CPU that has instructions for it.
    validate_every : int
        Epochs between two looks at the validation images; the last epoch always looks.
    validation_planes : int
        Planes of the validation images that are looked at, at most.
    """

    preset: str = choice("auto", "auto", *PRESETS)
    device: str = "auto"
    seed: int = whole(0, 0, 2**31 - 1)
    epochs: int | None = whole(None, 1, 100_000)
    iterations: int | None = whole(None, 1, 100_000)
    cycles: int = whole(3, 1, 1000)
    keep: int | None = whole(None, 1, 1000)
    learning_rate: float | None = number(None, 1e-8, 10)
    restart_rate: float = number(0.1, 1e-8, 10)
    gamma: float = number(0.8, 0, 1)
    denominator: str | None = choice(None, "total", "cycle")
    momentum: float | None = number(None, 0, 0.9999)
    weight_decay: float = number(3e-5, 0, 1)
    clip: float = number(12.0, 1e-6, 1e6)
    loss: str = choice("dice_ce", "dice_ce", "dice_gce")
    q: float = number(0.7, 0.01, 1)
    class_weights: str = choice("none", "none", "balanced")
    foreground: float = number(0.33, 0, 1)
    final_weight: float = number(3.0, 0, 1000)
    original_weight: float = number(1.0, 0, 1000)
    augment: bool = True
    mirror: str = choice("auto", "auto", "none", "horizontal", "both")
    deep_supervision: bool = True
    spacing: float | None = number(None, 1e-3, 1000)
    max_side: int | None = whole(None, 16, 16384)
    max_patch: int | None = whole(None, 16, 16384)
    base_filters: int | None = whole(None, 2, 1024)
    max_filters: int | None = whole(None, 2, 4096)
    batch_size: int | None = whole(None, 1, 4096)
    max_batch: int | None = whole(None, 1, 4096)
    memory: int | None = whole(None, 50 * 10**6, 10**13)
    window: str | None = None
    amp: bool = True
    validate_every: int = whole(1, 1, 100_000)
    validation_planes: int = whole(50, 1, 100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            self.ct_window()

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
        options = dataclasses.replace(self, device=device, preset=preset, **missing)
        assert options.epochs is not None
        assert options.keep is not None
        if options.epochs < options.cycles:
            raise OptionError("epochs", options.epochs, f"at least one for each of the {options.cycles} cycles")
        if options.keep > options.epochs // options.cycles:
            raise OptionError("keep", options.keep, f"up to {options.epochs // options.cycles}, the epochs of a cycle")
        return options

    def ct_window(self) -> tuple[float, float] | None:
        """Return the window as (centre, width).

        Raises
        ------
        OptionError
            If it is none.
        """
        if self.window is None:
            return None
        parts = str(self.window).split("/")
        try:
            centre, width = (float(part) for part in parts)
        except ValueError:
            centre, width = math.nan, math.nan
        if not (math.isfinite(centre) and math.isfinite(width) and width >= 1):
            raise OptionError("window", self.window, '"centre/width" in Hounsfield units, such as "-600/1500"')
        return centre, width


def _parse(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a string or JSON value as the field's type; what it cannot be is left to the field's own check."""
    if "low" in field.metadata:
        return _parse_number(field, value)
    if isinstance(field.default, bool):
        return value if isinstance(value, bool) else _WORDS.get(str(value).strip().lower(), value)
    return value.strip() if isinstance(value, str) else value


def _parse_number(field: dataclasses.Field[Any], value: Any) -> Any:
    if not isinstance(value, str):
        return int(value) if isinstance(value, float) and value.is_integer() and "whole" in field.metadata else value
    text, factor = value.strip(), 1
    if field.name == "memory":
        sized = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", text.lower())
        if sized and sized[2] in _UNITS:
            text, factor = sized[1], _UNITS[sized[2]]
    try:
        number = float(text) * factor
    except ValueError:
        raise OptionError(field.name, value, "a number") from None
    return int(number) if "whole" in field.metadata and math.isfinite(number) and number == int(number) else number
