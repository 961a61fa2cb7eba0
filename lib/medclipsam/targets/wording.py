"""How texts are compared: spelling, plurals, abbreviations, word order, typing errors, and negation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import cache

from rapidfuzz.distance import OSA
from spellchecker import SpellChecker

_ARTICLES = frozenset({"a", "an", "the"})
# One spelling for words that are written in several ways, so that a targets file need not list each.
_SPELLINGS = {
    "tumor": "tumour",
    "tumors": "tumours",
    "edema": "oedema",
    "xray": "x ray",
    "xrays": "x rays",
}
_WORD = re.compile(r"[^\W_]+")

# Words that radiologists shorten.
_ABBREVIATIONS = {
    "l": "left",
    "lt": "left",
    "lft": "left",
    "r": "right",
    "rt": "right",
    "rgt": "right",
    "bilat": "both",
    "bilateral": "both",
    "bilaterally": "both",
    "ca": "cancer",
    "mets": "metastasis",
    "pulm": "pulmonary",
    "tu": "tumour",
    "vert": "vertebra",
    "verts": "vertebra",
    "vent": "ventricle",
    "vents": "ventricle",
}
# Short words that say how the others belong together, which their order says as well.
_LINKS = frozenset({"of", "in", "on", "at", "and"})
# British and American spelling, reduced to one that need not be either.
_VARIANTS = ((re.compile(r"ae|oe"), "e"), (re.compile(r"our$"), "or"), (re.compile(r"tre$"), "ter"))
_COLOURS = {"grey": "gray"}
_PLURALS = (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ases", "asis"), ("oses", "osis"), ("ae", "a"))

# Abbreviations of structures, as the text that a text encoder can read.
STRUCTURES = {
    "lul": "left upper lobe of the lung",
    "lll": "left lower lobe of the lung",
    "rul": "right upper lobe of the lung",
    "rml": "right middle lobe of the lung",
    "rll": "right lower lobe of the lung",
}

# Parts of the lungs that are known under no name of their own, as people write them out.
_LOBES = (
    *STRUCTURES.values(),
    *(f"{lobe} lobe of the lung" for lobe in ("upper", "middle", "lower")),
    *(f"both {lobe} lobes of the lungs" for lobe in ("upper", "lower")),
    "lingula of the left lung",
)

# A dictionary word that is rarer than this is taken for a typing error where the words beside it fit.
_RARE = 100

# What begins like a negation and is none: a number, and how an image was made.
_NO_NEGATION = re.compile(
    r"not\s+otherwise\s+specified|not\s+only|\bno\.?\s*\d+"
    r"|\b(?:without|w/o|no|not)\s+(?:(?:iv|intravenous|oral|the|any|use|of)\s+)*(?:contrast|gadolinium)\w*"
    r"|\bwithout\s+(?:fat[\s-]*)?(?:saturation|suppression|enhancement)\b"
)
_NEGATION = re.compile(
    r"\b(?:no|not|without|w/o|neither|nor|never|none|nothing|nil|zero|cannot|unable|absent|absence|missing|lacks?|lacking"
    r"|devoid|(?:free|clear)\s+(?:of|from)|rul(?:e|es|ed|ing)\s+out|r/o|exclud(?:e|es|ed|ing)|exclusion|except|excepting"
    r"|neg(?:ative|\.)?\s+for|den(?:y|ies|ied)|invisible|undetectable|undetected|unseen|nonexistent"
    r"|non[\s-]?(?:visib|visual|seen|present|existent|detect|identif|apparent)\w*"
    r"|(?:instead|in\s+place)\s+of|(?:rather|other)\s+than|(?:any|every)thing\s+but|minus|sans)(?![\w/])"
    r"|n['’]t\b"
)
# A negation where the other word names a target.
_NEGATED_NAME = re.compile(r"\bnon[\s-]?(\w+)|\b(\w+)[\s-]free\b(?!\s+(?:fluid|air|gas))")
_BOTH_SIDES = re.compile(r"\bb/l\b", re.IGNORECASE)


def normalise(text: str) -> str:
    """Reduce a text to what tells it from others: lower case, no punctuation, no articles, one spelling.

    >>> normalise("A malignant Breast-Tumor.")
    'malignant breast tumour'
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", ""))
    # A last "a" is no article but a name, as in "hepatitis A".
    kept = [word for place, word in enumerate(words) if word not in _ARTICLES or place == len(words) - 1]
    return " ".join(_SPELLINGS.get(word, word) for word in kept)


def loose_key(text: str) -> str:
    """Reduce a text further: abbreviations in full, singular, one of British and American spelling, no order of words.

    >>> loose_key("Lungs, Lt.") == loose_key("the left lung")
    True
    """
    full = [_ABBREVIATIONS.get(word, word) for word in normalise(_BOTH_SIDES.sub("both", text)).split()]
    return " ".join(sorted(_plain(word) for word in full if word not in _LINKS))


def words_of(text: str) -> set[str]:
    """Return the words of a text as `loose_key` reduces them."""
    return set(loose_key(text).split())


def structure_meant(text: str) -> str | None:
    """Return the part of a known structure that a text means, by an abbreviation or in full; None where it means none.

    >>> structure_meant("LLL") == structure_meant("lower lobe of the left lung") == structure_meant("Lt lower lobe")
    True
    """
    return STRUCTURES.get(normalise(text)) or _lobes().get(loose_key(text))


@cache
def _lobes() -> dict[str, str]:
    short = {loose_key(re.sub(r" of the (left )?lungs?$", "", lobe)): lobe for lobe in _LOBES}
    return short | {loose_key(lobe): lobe for lobe in _LOBES}


def negation(text: str, names: Collection[str]) -> str | None:
    """Return the words by which a text says that something is not there; None where it does not.

    Parameters
    ----------
    text : str
        What the user wrote for one target.
    names : collection of str
        Words of the names of targets, see `words_of`: "tumour-free" is a negation, "non-small" is none.
    """
    lower = _NO_NEGATION.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    found = _NEGATION.search(lower)
    if found is not None:
        return found[0]
    for named in _NEGATED_NAME.finditer(lower):
        words = words_of(named[1] or named[2])
        if words and words <= set(names):
            return named[0]
    return None


def typing_errors(text: str, meant: str, *, dictionary: bool = True) -> int | None:
    """Return how many typing errors turn one text into another; None where they are two texts rather than one.

    A typing error is a letter that is missing, too many or another, or two neighbours that are swapped; one is allowed
    in a word of four to six letters, two in one of up to eleven, else three.

    Parameters
    ----------
    text, meant : str
        As `normalise` returns them.
    dictionary : bool
        Whether a word of the English dictionary is never a typing error, unless its letters are swapped or it is a rare
        word among others that fit.
    """
    given, wanted = text.split(), meant.split()
    if len(given) != len(wanted):  # a space is missing or too many
        given, wanted = [text], [meant]
    errors = 0
    for word, other in zip(given, wanted, strict=True):
        letters = max(len(word), len(other))
        allowed = 0 if letters < 4 else 1 if letters < 7 else 2 if letters < 12 else 3
        distance = OSA.distance(word, other, score_cutoff=allowed)
        if distance > allowed:
            return None
        errors += distance
    if dictionary and errors:
        known = set(meant.split())
        common = 1 if len(text.split()) == 1 else _RARE
        for word in set(text.split()) - known:
            if not any(sorted(word) == sorted(other) for other in known) and _frequency(word) >= common:
                return None
    return errors


@cache
def _dictionary() -> SpellChecker:
    return SpellChecker(distance=1)


def _frequency(word: str) -> int:
    """Return how often a word occurs in English texts; 0 for one that is no word of the dictionary."""
    return int(_dictionary()[word])


def _plain(word: str) -> str:
    word = _singular(_COLOURS.get(word, word))
    for pattern, common in _VARIANTS:
        word = pattern.sub(common, word)
    return word


def _singular(word: str) -> str:
    """Return the singular of an English or Latin plural; of another word always the same, which need not be a word."""
    if len(word) < 4:
        return word
    for ending, singular in _PLURALS:
        if word.endswith(ending):
            return word[: -len(ending)] + singular
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
