"""Typed options of the zero-shot pipeline, made once at the edge from strings or JSON and passed on unchanged.

Every field is checked when the object is made; `ZeroShotOptions.from_mapping` also refuses unknown keys and takes the
strings that forms and command lines send ("0.3", "true", "2-9").
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medclipsam.base.errors import OptionError, UnknownOptionError

SALIENCY_METHODS = ("m2ib", "m2ib_token", "patch_text")
PRESETS = ("auto", "published", "paper", "demo")
FITS = ("letterbox", "squash", "crop")
POSTPROCESS = ("kmeans", "threshold", "crf")
# What SAM can be given; "auto" is no kind of its own but the target's choice.
PROMPT_KINDS = ("boxes", "points", "both", "mask")
VISUAL_PROMPTS = ("auto", *PROMPT_KINDS)
VOTINGS = ("single", "mrm", "staple", "average")

CHOICES: dict[str, tuple[str, ...]] = {
    "saliency": ("auto", *SALIENCY_METHODS),
    "preset": PRESETS,
    "fit": FITS,
    "postprocess": POSTPROCESS,
    "visual_prompt": VISUAL_PROMPTS,
    "voting": VOTINGS,
}

# key: (least, greatest, both inclusive); None for the value means "taken from the target, preset or weights"
RANGES: dict[str, tuple[float, float]] = {
    "beta": (0.0, 100.0),
    "variance": (1e-6, 100.0),
    "layer": (0, 63),
    "steps": (1, 1000),
    "samples": (1, 1000),
    "seed": (0, 2**31 - 1),
    "contrast": (0.0, 10.0),
    "presence_threshold": (0.0, 1.0),
    "threshold": (0.0, 1.0),
    "num_components": (1, 100),
    "min_size": (0, 10**9),
    "num_points": (1, 1000),
    "negative_points": (0, 1000),
}


@dataclass(frozen=True)
class ZeroShotOptions:
    """Options of one zero-shot request.

    Parameters
    ----------
    saliency : {"auto", "m2ib", "m2ib_token", "patch_text"}
        Saliency method. "auto" takes what the weights name for the target, else "m2ib".
    preset : {"auto", "published", "paper", "demo"}
        Where beta, variance and layer come from when they are None. "auto" takes what the weights name as theirs,
        else "published" (variance 1, as the published scripts act); "paper" takes the printed variance.
    beta, variance, layer : float, float, int or None
        M2IB's trade-off, noise variance (sigma squared) and 0-based vision block; None takes the preset's.
    steps, samples : int or None
        Adam steps and noise samples of M2IB; None takes what the weights name as theirs, else the published 10 and 10.
    seed : int
        Seed of the noise and of drawn points.
    contrast : float or None
        Weight of the mean similarity to negative captions that the fitting term subtracts; 0 is plain M2IB.
    fit : {"letterbox", "squash", "crop"}
        How a plane becomes the encoder's square input.
    presence : bool
        Whether to ask first if the target is in the plane at all.
    presence_threshold : float or None
        In [0, 1]; None takes the one calibrated for the weights.
    postprocess : {"kmeans", "threshold", "crf"}
        How the saliency map becomes the coarse mask.
    threshold : float
        Saliency threshold of `postprocess="threshold"`.
    num_components : int or None
        How many largest components are kept; None takes the target's (1 for free text).
    min_size : int
        Components smaller than this many pixels are dropped.
    visual_prompt : {"auto", "boxes", "points", "both", "mask"}
        What SAM is given; "auto" takes the target's (boxes for free text), "mask" is the boxes and the coarse mask
        itself.
    box_per_component : bool or None
        One box for each component instead of one round all; None takes the target's.
    num_points, negative_points : int
        Points drawn inside and outside the coarse mask when points are used.
    voting : {"single", "mrm", "staple", "average"}
        How SAM's candidate masks become one; "single" asks SAM for one mask.
    planes : str
        Planes to look at, 0-based and inclusive: "all", "7", "3-9", "0-4,8".
    """

    saliency: str = "auto"
    preset: str = "auto"
    beta: float | None = None
    variance: float | None = None
    layer: int | None = None
    steps: int | None = None
    samples: int | None = None
    seed: int = 0
    contrast: float | None = None
    fit: str = "letterbox"
    presence: bool = True
    presence_threshold: float | None = None
    postprocess: str = "kmeans"
    threshold: float = 0.3
    num_components: int | None = None
    min_size: int = 0
    visual_prompt: str = "auto"
    box_per_component: bool | None = None
    num_points: int = 5
    negative_points: int = 0
    voting: str = "single"
    planes: str = "all"

    def __post_init__(self) -> None:
        for key, choices in CHOICES.items():
            value = getattr(self, key)
            if value not in choices:
                raise OptionError(key, value, "one of " + ", ".join(choices))
        for key, (low, high) in RANGES.items():
            value = getattr(self, key)
            if value is None and _optional(key):
                continue
            kind = int if key in _INTEGERS else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                what = "a whole number" if key in _INTEGERS else "a number"
                raise OptionError(key, value, f"{what} from {low:g} to {high:g}")
        for key in _BOOLEANS:
            value = getattr(self, key)
            if not isinstance(value, bool) and not (value is None and _optional(key)):
                raise OptionError(key, value, "true or false")
        if not isinstance(self.planes, str) or not _PLANES.fullmatch(_without_spaces(self.planes)):
            raise OptionError("planes", self.planes, '"all" or 0-based ranges such as "7", "3-9" or "0-4,8"')

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ZeroShotOptions:
        """Make options from strings or JSON values.

        A list stands for a drop-down that nobody touched and means its first entry; an empty string, "auto" (where
        None is allowed) or None means the default.

        Raises
        ------
        OptionError
            If a key is unknown, or a value is of the wrong type or out of range.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {}
        for key, given in values.items():
            if key not in defaults:
                raise UnknownOptionError(key, given, defaults)
            value = given[0] if isinstance(given, (list, tuple)) and given else given
            if value is None or value == "" or (value == "auto" and defaults[key] is None):
                continue
            chosen[key] = _parse(key, value)
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a JSON-able dictionary."""
        return dataclasses.asdict(self)


_INTEGERS = frozenset(
    {"layer", "steps", "samples", "seed", "num_components", "min_size", "num_points", "negative_points"}
)
_BOOLEANS = ("presence", "box_per_component")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# More digits than any image has planes are refused before they are made a number.
_PLANES = re.compile(r"all|[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*")


def _without_spaces(text: str) -> str:
    return "".join(text.split()).lower()


def _optional(key: str) -> bool:
    return ZeroShotOptions.__dataclass_fields__[key].default is None


def _parse(key: str, value: Any) -> Any:
    if key in _BOOLEANS:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word not in _WORDS:
            raise OptionError(key, value, "true or false")
        return _WORDS[word]
    if key in RANGES:
        if isinstance(value, bool):
            raise OptionError(key, value, "a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise OptionError(key, value, "a number") from None
        if not math.isfinite(number):
            raise OptionError(key, value, "a finite number")
        if key in _INTEGERS:
            if number != int(number):
                raise OptionError(key, value, "a whole number")
            return int(number)
        return number
    if key == "planes":
        return _without_spaces(value) if isinstance(value, str) else str(value)[:100]
    return value.strip() if isinstance(value, str) else value


def parse_planes(text: str, n_planes: int) -> list[int]:
    """Read a plane range.

    Parameters
    ----------
    text : str
        "all" or 0-based inclusive ranges: "7", "3-9", "0-4,8".
    n_planes : int
        Number of planes of the image.

    Returns
    -------
    list of int
        Sorted plane indices without repetition.

    Raises
    ------
    OptionError
        If a range is reversed or leaves the image.
    """
    wanted = _without_spaces(text)
    if wanted == "all":
        return list(range(n_planes))
    chosen: set[int] = set()
    for part in wanted.split(","):
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first)
        if start > stop or stop >= n_planes:
            raise OptionError("planes", text, f"planes 0 to {n_planes - 1} of this image, the smaller first")
        chosen.update(range(start, stop + 1))
    return sorted(chosen)
