"""Options: the base class of all option sets, and the options of the zero-shot pipeline.

An option set is a pydantic model. Its fields are the one source of what is allowed, of the command line's flags, of the
forms that clients draw, of the tables in the documentation and of the JSON schema in the server's OpenAPI document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from medclipsam.base.errors import MissingOptionError, OptionError, UnknownOptionError, shown

Kind = Literal["number", "whole", "switch", "choice", "text", "path", "list", "object", "other"]

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_KINDS: dict[Any, Kind] = {
    bool: "switch",
    int: "whole",
    float: "number",
    str: "text",
    Path: "path",
    tuple: "list",
    dict: "object",
}
_NUMBERS = {"whole": "a whole number", "number": "a number"}


def option(
    default: Any,
    about: str,
    low: float | None = None,
    high: float | None = None,
    *,
    unit: str = "",
    allowed: str = "",
    pattern: str | None = None,
    shown: str = "",
    group: str = "",
    setting: str | None = "",
) -> Any:
    """Return the field of an option.

    Parameters
    ----------
    default : object
        Its value where none is given, or a function that returns it; None means that something else decides, and is
        written "auto". `...` is for an option that must be given.
    about : str
        What it is, in one line that begins with a noun or an imperative.
    low, high : float, optional
        Least and greatest value of a number, both allowed.
    unit : str
        Unit of a number; "bytes" also takes texts such as "4 GB".
    allowed : str
        What is allowed where type and range do not say it, as the end of a sentence.
    pattern : str, optional
        Regular expression that a text must match.
    shown : str
        How the default is written, where not as the value itself.
    group : str
        Heading under which `serve --help` lists a setting.
    setting : str or None
        Name as a setting of the server where it is not the field's; None for an option that is no setting.
    """
    more = {"unit": unit, "allowed": allowed, "shown": shown, "group": group, "setting": setting}
    return Field(
        **{"default_factory" if callable(default) else "default": default},
        description=about,
        ge=low,
        le=high,
        pattern=pattern,
        json_schema_extra={f"x-{key}": value for key, value in more.items() if value != ""},
    )


@dataclass(frozen=True)
class Option:
    """One option of a set, as forms, flags and tables show it.

    Parameters
    ----------
    name : str
        Its name.
    about : str
        What it is, in one line.
    kind : {"number", "whole", "switch", "choice", "text", "path", "list", "object", "other"}
        What its value is.
    default : object
        Value where none is given.
    choices : tuple of str
        Words that a choice allows.
    low, high : float or None
        Range of a number.
    more : mapping
        What `option` was told beside.
    """

    name: str
    about: str
    kind: Kind
    default: Any
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    more: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> Option:
        """Read the description of a field."""
        kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
        optional = NoneType in get_args(field.annotation)
        inner = kinds[0] if optional and len(kinds) == 1 else field.annotation
        choices = get_args(inner) if get_origin(inner) is Literal else ()
        low, high = (
            next((getattr(each, bound) for each in field.metadata if hasattr(each, bound)), None)
            for bound in ("ge", "le")
        )
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        return cls(
            name,
            field.description or "",
            "choice" if choices else _KINDS.get(get_origin(inner) or inner, "other"),
            field.get_default(call_default_factory=True, validated_data={}),
            choices,
            low,
            high,
            {key.removeprefix("x-"): value for key, value in extra.items()},
        )

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """What is allowed, in the few words of a table: "0 to 100 mm"; empty where only `allowed` says it."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is not None:
            unit = f" {self.more['unit']}" if "unit" in self.more else ""
            return _digits(self.low) + ("" if self.high is None else f" to {_digits(self.high)}") + unit
        return "true, false" if self.kind == "switch" else ""

    @property
    def allowed(self) -> str:
        """What is allowed, as the end of a sentence."""
        if "allowed" in self.more:
            return str(self.more["allowed"])
        if self.choices:
            return f"one of {self.range}"
        if self.kind in _NUMBERS:
            return f"{_NUMBERS[self.kind]} from {self.range}" if self.range else _NUMBERS[self.kind]
        return {"switch": "true or false", "path": "a path"}.get(self.kind, "a text")

    @property
    def shown_default(self) -> str:
        """The default, as people write it."""
        if "shown" in self.more:
            return str(self.more["shown"])
        if self.default is None:
            return "auto"
        if self.kind == "list":
            return ",".join(map(str, self.default)) or "none"
        if isinstance(self.default, float):
            return _digits(self.default)
        return str(self.default).lower() if self.kind == "switch" else str(self.default)

    @property
    def help(self) -> str:
        """The help text of the option's flag."""
        allowed = f"{self.range}, " if self.low is not None else ""
        about, end = (self.about[:-1], "; ") if self.about.endswith(")") else (self.about, " (")
        return f"{about}{end}{allowed}default: {self.shown_default})".replace("%", "%%")

    @property
    def metavar(self) -> str | None:
        """What stands for the value in the help of the flag; None for a choice, whose words argparse shows."""
        if self.choices:
            return None
        return {"switch": "true|false", "object": "JSON"}.get(self.kind, "VALUE")

    @property
    def setting(self) -> str | None:
        """The name as a setting of the server, without the prefix of the set; None if it is no setting."""
        return self.more.get("setting", self.name)

    def form(self, default: Any) -> Any:
        """Return a default as the table of a client's form holds it, see `Options.form`."""
        first = "auto" if default is None else default
        return [first, *(each for each in self.choices if each != first)] if self.choices else first

    def parse(self, value: Any) -> Any:
        """Return a text or JSON value as the option's kind; what it cannot be is left to the check of the field."""
        if isinstance(value, str):
            value = value.strip()
        if self.kind == "switch":
            known = WORDS.get(value.lower()) if isinstance(value, str) else None
            number = bool(value) if isinstance(value, int) and value in (0, 1) else value
            return number if known is None else known
        if self.kind == "path" and isinstance(value, str):
            return Path(value).expanduser()
        return self._parse_number(value) if self.kind in _NUMBERS else value

    def _parse_number(self, value: Any) -> Any:
        number, factor = value, 1
        if isinstance(value, str):
            sized = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", value.lower()) if self.more.get("unit") == "bytes" else None
            text = value
            if sized and sized[2] in _UNITS:
                text, factor = sized[1], _UNITS[sized[2]]
            try:
                number = float(text) * factor
            except ValueError:
                return value
        whole = self.kind == "whole" and isinstance(number, float) and math.isfinite(number) and number.is_integer()
        return int(number) if whole else number


class Options(BaseModel):
    """Base of all option sets: frozen, and checked when it is made.

    A value of the wrong type is refused, a text in place of a number too; `from_mapping` takes the texts that forms and
    command lines send.

    Raises
    ------
    OptionError
        If a name is unknown, or a value is of the wrong type or not allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Goes before the names in errors: the settings of a server have one for each set.
    prefix: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise option_error(error, type(self)) from None

    @classmethod
    @cache
    def options(cls) -> Mapping[str, Option]:
        """Return the description of each option by its name."""
        return {name: Option.of(name, field) for name, field in cls.model_fields.items()}

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
        known = cls.options()
        chosen: dict[str, Any] = {}
        for key, given in values.items():
            if key not in known:
                raise UnknownOptionError(cls.prefix + key, given, [cls.prefix + name for name in known])
            first = isinstance(given, (list, tuple)) and given and known[key].kind != "list"
            value = known[key].parse(given[0] if first else given)
            if value is None or value == "" or (value == "auto" and known[key].default is None):
                continue
            chosen[key] = value
        return cls(**chosen)

    @classmethod
    def settings(cls, prefix: str | None = None) -> dict[str, str]:
        """Return the name of each option as a setting of the server, to its name here.

        Parameters
        ----------
        prefix : str, optional
            What goes before the names; by default the set's own prefix.
        """
        before = cls.prefix if prefix is None else prefix
        return {before + each.setting: name for name, each in cls.options().items() if each.setting is not None}

    @classmethod
    def from_settings(cls, given: Mapping[str, str]) -> Self:
        """Make options of a server's settings, of which those of other sets are passed over.

        Raises
        ------
        OptionError
            If a value is not allowed.
        """
        return cls.from_mapping({field: given[name] for name, field in cls.settings().items() if name in given})

    @classmethod
    def form(cls, **defaults: Any) -> dict[str, Any]:
        """Return the options as the flat table that clients draw their forms from.

        A list is a drop-down whose first entry is the default, a boolean a check box, all else a text field; "auto"
        stands for None.

        Parameters
        ----------
        **defaults : object
            Values that take the place of the options' defaults.
        """
        return {name: each.form(defaults.get(name, each.default)) for name, each in cls.options().items()}

    def replace(self, **changes: Any) -> Self:
        """Return the options with some changed, checked as when they are made."""
        return type(self)(**{**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a JSON-able dictionary."""
        return self.model_dump()


def option_error(error: ValidationError, options: type[Options]) -> OptionError:
    """Return what pydantic found as an error that names the option, the value given and what is allowed.

    A validator says what is allowed by the text of its `ValueError`; all else follows from the option's description.
    """
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    path = [part for part in first["loc"] if isinstance(part, str) and part != "[key]"]
    if first["type"] in ("extra_forbidden", "missing") and len(path) > 1:
        path.pop()  # what is wrong is the object that has the key, or lacks it
    known = options.options()
    if first["type"] == "extra_forbidden" and path[0] not in known:
        return UnknownOptionError(options.prefix + path[0], first["input"], [options.prefix + name for name in known])
    described = known[path[0]]
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return MissingOptionError(options.prefix + path[0], described.allowed)
    key = options.prefix + ".".join([described.setting or path[0], *path[1:]])
    allowed = str(first["ctx"]["error"]) if first["type"] == "value_error" else _described(options, path).allowed
    return OptionError(key, first["input"], allowed)


def _described(model: type[BaseModel], path: Sequence[str]) -> Option:
    """Return the innermost option on the way to what is wrong, through models in models."""
    found, inner = None, [model]
    for part in path:
        fields = inner[0].model_fields if inner else {}
        if part in fields:
            found = Option.of(part, fields[part])
            inner = [each for each in _types(fields[part].annotation) if issubclass(each, BaseModel)]
    assert found is not None
    return found


def _types(annotation: Any) -> list[type]:
    arguments = get_args(annotation)
    if arguments:
        return [each for argument in arguments for each in _types(argument)]
    return [annotation] if isinstance(annotation, type) else []


def entry_problem(error: OptionError) -> str:
    """Return what is wrong with an entry of a file, as the end of a sentence that names file and entry."""
    if isinstance(error, UnknownOptionError):
        return f"the key {error.key!r} is unknown; allowed: {error.allowed}."
    if isinstance(error, MissingOptionError):
        return f"the key {error.key!r} is missing."
    value = list(error.value) if isinstance(error.value, tuple) else error.value
    return f"{error.key} cannot be {shown(value)}; allowed: {error.allowed}."


def _digits(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


SaliencyMethod = Literal["m2ib", "m2ib_token", "nib", "patch_text"]
Fit = Literal["letterbox", "squash", "crop"]
Postprocess = Literal["kmeans", "threshold", "crf"]
# What SAM can be given; "auto" is the target's choice.
PromptKind = Literal["boxes", "points", "both", "mask"]
Preset = Literal["published", "paper", "demo"]
Voting = Literal["single", "mrm", "staple", "average"]
Volume = Literal["propagate", "planes"]

SALIENCY_METHODS: tuple[str, ...] = get_args(SaliencyMethod)
FITS: tuple[str, ...] = get_args(Fit)
POSTPROCESS: tuple[str, ...] = get_args(Postprocess)
PRESETS: tuple[str, ...] = get_args(Preset)
PROMPT_KINDS: tuple[str, ...] = get_args(PromptKind)
VOTINGS: tuple[str, ...] = get_args(Voting)

# More digits than any image has planes are refused before they are made a number.
_PLANES = r"^(all|[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*)$"


class ZeroShotOptions(Options):
    """Options of one zero-shot request. None stands for "auto"."""

    saliency: Literal["auto", SaliencyMethod] = option(
        "auto", "Method that makes the saliency map (auto: that of the weights for the target, else m2ib)"
    )
    preset: Literal["auto", Preset] = option(
        "auto", "Source of beta, variance and layer where they are auto (auto: that of the weights, else published)"
    )
    beta: float | None = option(None, "Weight of compression against fit in M2IB (auto: the preset's)", 0, 100)
    variance: float | None = option(None, "Variance of the noise in M2IB (auto: the preset's)", 1e-6, 100)
    layer: int | None = option(None, "Vision block of M2IB's bottleneck, counted from 0 (auto: the preset's)", 0, 63)
    steps: int | None = option(
        None, "Optimisation steps of M2IB, points of NIB (auto: 10; M2IB runs the network at 3 of them)", 1, 1000
    )
    samples: int | None = option(
        None,
        "Independent noise samples in each step of M2IB (auto: 5 in all, antithetic; 10 once steps are given)",
        1,
        1000,
    )
    seed: int = option(0, "Seed of the noise and of drawn points", 0, 2**31 - 1)
    contrast: float | None = option(
        None, "Weight of the subtracted similarity to captions of other targets; 0 is plain M2IB", 0, 10
    )
    fit: Fit = option("letterbox", "Way in which a plane becomes the encoder's square input")
    presence: bool = option(True, "Check first that the target is in the image")
    presence_threshold: float | None = option(
        None, "Presence score below which the mask is empty (auto: calibrated for the weights)", 0, 1
    )
    postprocess: Postprocess = option("kmeans", "Method that makes the coarse mask from the saliency map")
    threshold: float = option(0.3, "Saliency threshold where postprocess is threshold", 0, 1)
    num_components: int | None = option(
        None, "Number of largest components that are kept (auto: the target's, 1 for free text)", 1, 100
    )
    min_size: int = option(0, "Smallest component that is kept", 0, 10**9, unit="pixels")
    visual_prompt: Literal["auto", PromptKind] = option(
        "auto", "Prompt that SAM is given; mask is boxes and coarse mask (auto: the target's, boxes for free text)"
    )
    box_per_component: bool | None = option(
        None, "Give each component its own box instead of one around all (auto: the target's choice)"
    )
    num_points: int = option(5, "Number of points drawn inside the coarse mask", 1, 1000)
    negative_points: int = option(0, "Number of points drawn outside the coarse mask", 0, 1000)
    voting: Voting = option("single", "Way in which SAM's candidates become one mask; single asks SAM for one")
    volume: Volume = option(
        "propagate", "Way through a volume: follow the target from key planes, or draw each plane by itself"
    )
    planes: str = option(
        "all",
        "Planes of a volume to segment, counted from 0, both ends included",
        pattern=_PLANES,
        allowed='"all" or 0-based ranges such as "7", "3-9" or "0-4,8"',
    )

    @field_validator("planes", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
            return str(value)
        return _without_spaces(value) if isinstance(value, str) else value


def _without_spaces(text: str) -> str:
    return "".join(text.split()).lower()


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
