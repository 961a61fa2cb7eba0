"""Header values that DICOM does not allow: corrected where their meaning is plain."""

from __future__ import annotations

import datetime
import math
import re

from pydicom.charset import decode_bytes, python_encoding
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

# Longest value of each kind, in characters (DICOM PS3.5 6.2); of a person's name it is the longest component group.
_LONGEST = {"AE": 16, "SH": 16, "LO": 64, "PN": 64, "ST": 1024, "LT": 10240}
# Text in which a backslash is a letter like others, and text in which it parts values.
PARAGRAPHS = frozenset({"ST", "LT", "UT", "UR"})
ONE_LINE = frozenset({"AE", "SH", "LO", "PN", "UC"})

_DATE_FORMS = (
    re.compile(r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)"),
    re.compile(r"(?P<y>\d{4})([-./])(?P<m>\d{1,2})\2(?P<d>\d{1,2})"),
    # with dots the day comes first wherever such dates are written
    re.compile(r"(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})"),
    # a date and time where a date is due
    re.compile(r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)(?P<h>\d\d)(\d\d){0,2}(\.\d*)?"),
    re.compile(r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)[T ]\d\d:\d\d.*"),
)
_TIME_FORMS = (
    re.compile(r"(?P<h>\d\d)((?P<m>\d\d)((?P<s>\d\d)(\.(?P<f>\d*))?)?)?"),
    re.compile(r"(?P<h>\d{1,2}):(?P<m>\d\d)(:(?P<s>\d\d)(\.(?P<f>\d*))?)?"),
)
_AGE = re.compile(r"(\d{1,3}) ?([DWMY])")
_CODE_STRING = re.compile(r"[A-Z0-9 _]{1,16}")
_SEXES = {"MALE": "M", "FEMALE": "F", "OTHER": "O"}
_CHARACTER_SET = re.compile(r"ISO[ _-]*(2022)?[ _-]*(?:IR)?[ _-]*(\d{1,3})")
_CHARACTER_SET_NAMES = {"UTF8": "ISO_IR 192", "ISO88591": "ISO_IR 100", "LATIN1": "ISO_IR 100"}


def codecs_of(terms: list[str]) -> list[str] | None:
    """Return the Python codecs of the terms of a Specific Character Set; None where a term is not known."""
    found = []
    for term in terms:
        plain = term.strip().upper()
        if plain not in python_encoding:
            numbered = _CHARACTER_SET.fullmatch(plain)
            if numbered:
                plain = f"ISO 2022 IR {numbered[2]}" if numbered[1] else f"ISO_IR {numbered[2]}"
            plain = _CHARACTER_SET_NAMES.get(re.sub(r"[^A-Z0-9]", "", plain), plain)
        if plain not in python_encoding:
            return None
        found.append(python_encoding[plain])
    return found


def decoded(raw: bytes, vr: str, codecs: list[str] | None) -> str | None:
    """Return the text of an element.

    Parameters
    ----------
    raw : bytes
        As in the file.
    vr : str
        Value representation.
    codecs : list of str, or None
        As `codecs_of` returns them; empty where the file names no character set.

    Returns
    -------
    str or None
        None where the bytes are no text of the character set and their meaning is not plain: text in UTF-8 is, and,
        where no character set is named, text in ISO 8859-1.
    """
    raw = raw.rstrip(b"\0 ")
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    if codecs:
        try:
            text = decode_bytes(raw, codecs, PN_DELIMS | {0x3D} if vr == "PN" else TEXT_VR_DELIMS)
        except (UnicodeError, LookupError):
            text = "\ufffd"
        if "\ufffd" not in text:
            return text
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("iso8859") if codecs == [] else None


def corrected(vr: str, text: str, *, sex: bool = False) -> str | None:
    """Return a single value in the form that DICOM requires.

    Parameters
    ----------
    vr : str
        Value representation.
    text : str
        The value as it is.
    sex : bool
        Whether it is a patient's sex.

    Returns
    -------
    str or None
        The value itself where it is valid, a corrected one where its meaning is plain ("1970-01-01", "12:30:00"),
        None elsewhere.
    """
    plain = text.strip(" \0")
    if not plain:
        return ""
    if vr in PARAGRAPHS | ONE_LINE:
        return _text(vr, text)
    if vr == "CS":
        return _code_string(plain, sex)
    rule = {"DA": _date, "TM": _time, "AS": _age, "DS": _decimal, "IS": _integer}.get(vr)
    return rule(plain) if rule else plain


def _text(vr: str, text: str) -> str:
    kept = "\t\n\f\r" if vr in PARAGRAPHS else ""
    plain = "".join(letter for letter in text if letter.isprintable() or letter in kept).rstrip()
    longest = _LONGEST.get(vr)
    if vr == "PN":
        return "=".join(group[:longest] for group in plain.split("=")[:3])
    return plain[:longest].rstrip()


def _code_string(text: str, sex: bool) -> str | None:
    upper = text.upper()
    if sex:
        upper = _SEXES.get(upper, upper)
        return upper if upper in _SEXES.values() else None
    return upper if _CODE_STRING.fullmatch(upper) else None


def _date(text: str) -> str | None:
    for form in _DATE_FORMS:
        if found := form.fullmatch(text):
            try:
                return datetime.date(int(found["y"]), int(found["m"]), int(found["d"])).strftime("%Y%m%d").zfill(8)
            except ValueError:
                return None
    return None


def _time(text: str) -> str | None:
    for form in _TIME_FORMS:
        if found := form.fullmatch(text):
            hours, minutes, seconds = (int(found[part] or 0) for part in "hms")
            # a leap second, which Python's time does not know
            seconds = 59 if seconds == 60 else seconds
            if hours > 23 or minutes > 59 or seconds > 59:
                return None
            whole = f"{hours:02d}" + (f"{minutes:02d}" if found["m"] else "") + (f"{seconds:02d}" if found["s"] else "")
            return f"{whole}.{found['f'][:6]}" if found["f"] else whole
    return None


def _age(text: str) -> str | None:
    found = _AGE.fullmatch(text.upper())
    return f"{int(found[1]):03d}{found[2]}" if found else None


def _decimal(text: str) -> str | None:
    try:
        number = float(text.replace(",", ".") if text.count(",") == 1 else text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if len(text) <= 16 and re.fullmatch(r"[0-9+\-Ee.]+", text):
        return text
    return next(short for digits in range(10, 0, -1) if len(short := f"{number:.{digits}g}") <= 16)


def _integer(text: str) -> str | None:
    number = _decimal(text)
    if number is None or float(number) != int(float(number)) or not -(2**31) <= float(number) < 2**31:
        return None
    return text if re.fullmatch(r"[+-]?\d{1,11}", text) else str(int(float(number)))
