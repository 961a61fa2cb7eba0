"""Names that come with a request: none of them may lead out of the folder that it is looked up in."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.formats import suffix_of
from medclipsam.studies.final import ANONYMOUS

# The label's tag names a folder of the datastore.
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_LONGEST_NAME = 200
# Characters of the name of a reader.
LONGEST_READER = 100
_SEPARATORS = ("/", "\\", "\0")
# Files that may be sent to the server, by the ends of their names; DICOM needs none.


def checked_name(value: object, what: str) -> str:
    """Return an id or file name that names one entry of one folder, with composed characters (NFC).

    Parameters
    ----------
    value : object
        As the request gives it.
    what : str
        What it names, as the beginning of a sentence: "Image", "Label".

    Raises
    ------
    InputError
        If it is no text, is empty or too long, begins with a dot, or holds a separator or a control character.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{what} {value!r} is no {what.lower()} id; give the id of one of the studies.")
    value = unicodedata.normalize("NFC", value)
    if len(value.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        raise InputError(f"{what} id {value[:40]!r}... is too long; allowed: {_LONGEST_NAME} bytes.")
    if value.startswith(".") or any(part in value for part in _SEPARATORS) or not value.isprintable():
        raise InputError(
            f"{what} {value!r} cannot be named so; allowed: a name without separators or control characters that does "
            f"not begin with a dot."
        )
    return value


def checked_person(value: object) -> str:
    """Return the name of a reader.

    Raises
    ------
    OptionError
        If it is no text, is empty, too long or the one of unknown people, or holds a control character.
    """
    name = unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else ""
    if not name or len(name) > LONGEST_READER or not name.isprintable() or name == ANONYMOUS:
        allowed = f"names of at most {LONGEST_READER} characters, other than {ANONYMOUS}"
        raise OptionError("readers", str(value)[:40], allowed)
    return name


def checked_tag(value: object, default: str) -> str:
    """Return a label's tag.

    Raises
    ------
    OptionError
        If it is no tag.
    """
    if value is None or value == "":
        return default
    if not isinstance(value, str) or not _TAG.fullmatch(value):
        raise OptionError("label_tag", value, "at most 64 letters, digits, - and _, such as original")
    return value


def checked_request_id(value: str | None) -> str | None:
    """Return the id that a client gives its request.

    Raises
    ------
    OptionError
        If it is no such id.
    """
    if value is not None and not _REQUEST_ID.fullmatch(value):
        raise OptionError("request_id", value, "at most 100 letters, digits and _ . : -")
    return value


def file_suffix(name: str | None) -> str:
    """Return the end of a sent file's name that tells its format; empty where it tells none that is known.

    Nothing else of the name is used: what a client calls its file decides no path.
    """
    return suffix_of(name or "")


def id_from_file(name: str | None) -> str:
    """Return the image id that a sent file's name proposes: the name without folders and without its format.

    Raises
    ------
    InputError
        If it proposes none.
    """
    plain = re.split(r"[/\\]", name or "")[-1]
    suffix = file_suffix(plain)
    stem = plain[: -len(suffix)] if suffix else plain
    return checked_name(stem or Path(plain).stem, "Image")
