"""Searches of DICOMweb (DICOM PS3.18, 8.3.4 and 10.6) over data sets in memory."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from medclipsam.base.errors import InputError, OptionError

# Results of an answer where the query asks for no limit, and the most that it may ask for.
MAX_RESULTS = 5000
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_RANGES = frozenset({"DA", "TM", "DT"})


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Parameters
    ----------
    conditions : tuple of (BaseTag, str)
        What must match: an element and its value, list of UIDs, range, or text with the wildcards * and ?.
    offset, limit : int
        Which of the results are answered.
    fuzzy : bool
        Whether words of names may match.
    """

    conditions: tuple[tuple[BaseTag, str], ...] = ()
    offset: int = 0
    limit: int = MAX_RESULTS
    fuzzy: bool = False

    @classmethod
    def from_params(cls, params: Iterable[tuple[str, str]]) -> Query:
        """Read the parameters of an address.

        Raises
        ------
        InputError
            If one is neither an attribute nor one of limit, offset, fuzzymatching and includefield, or its value is not
            usable.
        """
        conditions: list[tuple[BaseTag, str]] = []
        offset, limit, fuzzy = 0, MAX_RESULTS, False
        for name, value in params:
            if name in ("limit", "offset"):
                if not _NUMBER.fullmatch(value):
                    raise OptionError(name, value[:40], "a whole number")
                offset, limit = (int(value), limit) if name == "offset" else (offset, min(int(value), MAX_RESULTS))
            elif name == "fuzzymatching":
                if value.lower() not in ("true", "false"):
                    raise OptionError(name, value[:40], "true or false")
                fuzzy = value.lower() == "true"
            elif name == "includefield":
                # more is answered than is asked for
                for field in value.split(","):
                    if field != "all":
                        _tags(field)
            else:
                tags = _tags(name)
                if len(tags) == 1 and value not in ("", "*"):
                    conditions.append((tags[0], value))
        return cls(tuple(conditions), offset, limit, fuzzy)

    def select(self, found: Iterable[Dataset]) -> list[Dataset]:
        """Return the data sets that match, from `offset` on, at most `limit` of them; no more are looked at."""
        matching = (data for data in found if all(self._matches(data, tag, value) for tag, value in self.conditions))
        return list(itertools.islice(matching, self.offset, self.offset + self.limit))

    def _matches(self, data: Dataset, tag: BaseTag, wanted: str) -> bool:
        element = data.get(tag)
        if element is None or element.value in (None, ""):
            return False
        values = element.value if isinstance(element.value, (list, MultiValue)) else [element.value]
        kind = dictionary_VR(tag)
        texts = [str(value) for value in values]
        if kind == "UI":
            return bool(set(re.split(r"[,\\]", wanted)) & set(texts))
        if kind in _RANGES:
            return any(_in_range(text, wanted) for text in texts)
        if kind == "PN":
            return any(self._is_name(text, wanted) for text in texts)
        if kind in ("IS", "DS", "US", "UL"):
            return wanted.strip() in (text.strip() for text in texts)
        return any(_like(text, wanted) for text in texts)

    def _is_name(self, text: str, wanted: str) -> bool:
        name, words = text.casefold(), wanted.casefold()
        plain = " ".join(re.split(r"[\^= ]+", name)).strip()
        if _like(name, words) or _like(plain, words):
            return True
        return self.fuzzy and all(word in plain for word in re.split(r"[\^*? ]+", words) if word)


def _tags(name: str) -> list[BaseTag]:
    """Return the tag of an attribute by its keyword or its eight digits; those of a path of them."""
    found = []
    for part in name.split("."):
        tag = tag_for_keyword(part) if not _HEX.fullmatch(part) else int(part, 16)
        if tag is None or not keyword_for_tag(tag):
            raise InputError(
                f"The parameter {name[:60]!r} of the search is not known; allowed: attributes of DICOM by keyword or "
                "tag, such as PatientID or 00100020, and limit, offset, fuzzymatching, includefield."
            )
        found.append(Tag(tag))
    return found


def _like(text: str, wanted: str) -> bool:
    """Return whether a text matches one with the wildcards * and ?; brackets are no wildcards here."""
    return fnmatch.fnmatchcase(text.strip(), wanted.strip().replace("[", "[[]"))


def _in_range(text: str, wanted: str) -> bool:
    first, dash, last = wanted.partition("-")
    value = text.replace("-", "").replace(":", "")
    if not dash:
        return value.startswith(first)
    return (not first or value[: len(first)] >= first) and (not last or value[: len(last)] <= last)
