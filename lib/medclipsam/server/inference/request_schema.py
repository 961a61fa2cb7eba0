"""The params of requests: JSON of clients, MONAI Label's own keys and their types, and the values that tasks share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from medclipsam.base.errors import InputError, OptionError, UnknownOptionError
from medclipsam.base.formats import MASK_SUFFIXES, SEG_SUFFIX
from medclipsam.base.options import ZeroShotOptions
from medclipsam.imaging.write import MASK_DTYPES
from medclipsam.server.base.names import checked_name, checked_tag
from medclipsam.targets import joined_text

# Modalities that a request may name for an image whose file does not say.
MODALITIES = ("US", "MR", "CT", "CR", "DX", "MG")
EXTENSIONS = (*MASK_SUFFIXES, SEG_SUFFIX)
BATCH_IMAGES = ("all", "labeled", "unlabeled")
DTYPES = MASK_DTYPES
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_GPUS = re.compile(r"all|[0-9]{1,3}(,[0-9]{1,3})*")
_LONGEST_TEXT = 1000


def check_names(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `UnknownOptionError` for the first key that is none of the known ones."""
    names = set(known)
    for key, value in given.items():
        if key not in names:
            raise UnknownOptionError(key, value, names, also=MONAI_LABEL_KEYS)


def option_table(defaults: ZeroShotOptions) -> dict[str, Any]:
    """Return the options as the flat table that clients draw their forms from.

    A list is a drop-down whose first entry is the default, a boolean a check box, all else a text field; "auto" stands
    for None.
    """
    return ZeroShotOptions.form(**defaults.to_dict())


def option_keys() -> tuple[str, ...]:
    """Return the names of the pipeline's options."""
    return tuple(ZeroShotOptions.options())


def flag(request: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Read one of MONAI Label's switches, which clients send as booleans or words.

    Raises
    ------
    OptionError
        If the value is neither.
    """
    value = _first(request.get(key))
    if value is None or value == "":
        return default
    word = _WORDS.get(str(value).strip().lower())
    if word is None:
        raise OptionError(key, value, "true or false")
    return word


def checked_text(given: Any) -> str:
    """Return the text that a request asks for; a list of texts asks for all of them.

    Raises
    ------
    OptionError
        If there is none.
    """
    try:
        text = joined_text(given).strip()
    except InputError:
        text = ""
    if not text:
        allowed = 'what to segment, such as "left lung", "left lung; heart" or a list of such texts'
        raise OptionError("text", given, allowed)
    return text


def checked_modality(given: Any, more: Collection[str] = ()) -> str | None:
    """Return the DICOM modality that a request names, in capitals; None for "auto", an empty text or none.

    Parameters
    ----------
    given : object
        As the request gives it.
    more : collection of str
        Modalities that are allowed beside `MODALITIES`.

    Raises
    ------
    OptionError
        If it is not allowed.
    """
    allowed = (*MODALITIES, *sorted(set(more) - set(MODALITIES)))
    value = _first(given)
    if value is None or value in ("", "auto"):
        return None
    if not isinstance(value, str) or value.strip().upper() not in allowed:
        raise OptionError("modality", value, "auto or one of " + ", ".join(allowed))
    return value.strip().upper()


def checked_choice(key: str, given: Any, allowed: Sequence[str]) -> str:
    """Return one of the allowed values; the first one for an empty value or none.

    A list stands for a drop-down that nobody touched and means its first entry.

    Raises
    ------
    OptionError
        If it is another.
    """
    value = _first(given)
    if value is None or value == "":
        return allowed[0]
    if value not in allowed:
        raise OptionError(key, value, "one of " + ", ".join(allowed))
    return str(value)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _switch(key: str, value: Any) -> None:
    flag({key: value}, key, default=False)


def _one_of(*allowed: str) -> Callable[[str, Any], None]:
    def check(key: str, value: Any) -> None:
        checked_choice(key, value, allowed)

    return check


def _log_level(key: str, value: Any) -> None:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if value and str(_first(value)).upper() not in levels:
        raise OptionError(key, value, "one of " + ", ".join(levels))


def _number(least: float, greatest: float, *, whole: bool) -> Callable[[str, Any], None]:
    def check(key: str, value: Any) -> None:
        given = _first(value)
        try:
            number = least if given is None or given == "" else float(given)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(given, bool) or not least <= number <= greatest or (whole and number != int(number)):
            raise OptionError(key, value, f"a {'whole ' if whole else ''}number from {least:g} to {greatest:g}")

    return check


def _short_text(key: str, value: Any) -> None:
    given = _first(value)
    if given is not None and (not isinstance(given, str) or len(given) > _LONGEST_TEXT):
        raise OptionError(key, str(value)[:40], f"a text of at most {_LONGEST_TEXT} characters")


def _label_name(key: str, value: Any) -> None:
    _short_text(key, value)
    if isinstance(value, str) and ("/" in value or "\\" in value):
        raise OptionError(key, value, "the name of a label; a label's file is sent along")


def _gpus(key: str, value: Any) -> None:
    if value and (not isinstance(value, str) or not _GPUS.fullmatch(value)):
        raise OptionError(key, value, 'all, or numbers such as "0" or "0,1"')


def _names(key: str, value: Any) -> None:
    if value is None or (isinstance(value, str) and key == "images" and value in BATCH_IMAGES):
        return
    if not isinstance(value, list):
        words = ", ".join(BATCH_IMAGES) + " or " if key == "images" else ""
        raise OptionError(key, str(value)[:40], f"{words}a list of {'image ids' if key == 'images' else 'names'}")
    for name in value:
        checked_name(name, "Image" if key == "images" else "Label")


def _tag(key: str, value: Any) -> None:
    checked_tag(_first(value), "")


def _record(key: str, value: Any) -> None:
    entries = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(entry, Mapping) for entry in entries):
        raise OptionError(key, str(value)[:40], "an object, or a list of objects")


# Keys that MONAI Label, its clients and its batch task add to a request and that are no option of the pipeline: named
# one by one and each with its type, so that a misspelt option is an error and not silently one of them.
MONAI_LABEL_KEYS: dict[str, Callable[[str, Any], None]] = {
    # the answer
    "result_extension": _one_of(*EXTENSIONS),
    "result_dtype": _one_of(*DTYPES),
    "result_compress": _switch,
    "result_write_to_file": _switch,
    "restore_label_idx": _switch,
    # what is saved
    "save_label": _switch,
    "label_tag": _tag,
    "label_info": _record,
    # who asks, and how it should be run
    "client_id": _short_text,
    "device": _short_text,
    "logging": _log_level,
    "timeout": _number(0, 7 * 24 * 3600, whole=False),
    # batch inference
    "images": _names,
    "labels": _names,
    "multi_gpu": _switch,
    "gpus": _gpus,
    "max_workers": _number(0, 64, whole=True),
    "max_batch_size": _number(0, 10**9, whole=True),
    # what clients add beside
    "label": _label_name,
    "output": _short_text,
    "description": _short_text,
}


def check_monai_label_keys(request: Mapping[str, Any]) -> None:
    """Check the values of MONAI Label's own keys.

    Raises
    ------
    OptionError
        If one is of the wrong type or not allowed.
    """
    for key, value in request.items():
        if key in MONAI_LABEL_KEYS:
            MONAI_LABEL_KEYS[key](key, value)


def without_address(params: Mapping[str, Any], **address: Any) -> dict[str, Any]:
    """Return the params of a client's request without what the address of the request says.

    Parameters
    ----------
    params : mapping
        As the client sent them.
    **address : object
        What the address says; to repeat it is no error.

    Raises
    ------
    OptionError
        If the params say something else.
    """
    for key, value in address.items():
        if key in params and params[key] != value:
            raise OptionError(key, params[key], "nothing here, since it comes with the address of the request")
    return {key: value for key, value in params.items() if key not in address}


def parse_params(text: str | None, what: str = "params") -> dict[str, Any]:
    """Read the JSON object of a form field.

    Raises
    ------
    InputError
        If it is no JSON, or JSON but no object.
    """
    if text is None or not text.strip():
        return {}
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "curl cuts a -F value at ';', use --form-string"
        raise InputError(f"The {what} of the request are no JSON ({error}; {hint}).") from None
    if not isinstance(params, dict):
        raise InputError(
            f"The {what} of the request are a JSON {_KINDS.get(type(params), 'value')}; allowed: an object."
        )
    return checked_object(params, what)


def checked_object(params: Mapping[str, Any] | None, what: str = "params") -> dict[str, Any]:
    """Return a JSON object that can be copied, logged and answered.

    Raises
    ------
    InputError
        If it is nested deeply, or holds a number that is not finite or a text that is no Unicode (half of a surrogate
        pair).
    """
    pending: list[tuple[Any, int]] = [(dict(params or {}), 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _DEEPEST:
            raise InputError(f"The {what} of the request are nested deeper than {_DEEPEST} levels.")
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InputError(f"The {what} of the request hold a text that is no Unicode: {value[:40]!r}.") from None
        elif isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"The {what} of the request hold the number {value}; allowed: finite numbers.")
        elif isinstance(value, Mapping):
            pending += [(key, depth) for key in value] + [(entry, depth + 1) for entry in value.values()]
        elif isinstance(value, list):
            pending += [(entry, depth + 1) for entry in value]
    return dict(params or {})


_DEEPEST = 20
_KINDS = {list: "list", str: "text", int: "number", float: "number", bool: "boolean", type(None): "null"}
