"""From the text of a request to targets, and from targets to labels.

`"left lung; heart"` asks for two targets; `"breast tumour | a hypoechoic mass"` for one, described by two captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from medclipsam.base.errors import InputError, NegationError, SeparatorError, TargetError
from medclipsam.targets.target import MAX_LABEL, Target, TargetSet
from medclipsam.targets.wording import negation, normalise, structure_meant, words_of

# Longest text for one target, in characters; no text encoder here reads more than 256 tokens.
MAX_TEXT = 1000

# Labels of free text, named so that a client can show them before any text is known.
FINDING_LABELS: dict[str, int] = {f"finding {number}": MAX_LABEL + number for number in range(1, 9)}

_ENDS = re.compile(r"[;\uFF1B\r\n\u2028\u2029]")
_BULLET = re.compile(r"\s*(?:[-*\u2022]|\d{1,2}[.)])\s+")
# What people write between two targets; it also stands in the name of one, as in "left and right lung".
_SEPARATOR = re.compile(r"\s*(?:[,\u3001\uFF0C&+/]|\b(?:and|plus|as well as|together with)\b)\s*", re.IGNORECASE)
_MAX_PARTS = 40
_LONGEST_RUN = 4
_REQUEST = re.compile(
    r"\s*(?:please\s+)?(?:find|segment|show(?:\s+me)?|locate|outline|delineate|mark|highlight|where\s+(?:is|are))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TextTarget:
    """One target of a request.

    Parameters
    ----------
    name : str
        Name of the known target, or the free text itself.
    captions : tuple of str
        What the text encoder is given: a known target's captions, or the texts the user wrote.
    target : Target or None
        The known target; None for free text.
    note : str
        A sentence that says how the text was read, where it is not a name, synonym or caption; empty otherwise.
    """

    name: str
    captions: tuple[str, ...]
    target: Target | None = None
    note: str = ""


def joined_text(text: object) -> str:
    """Return the text of a request that may give one text for each target in a list.

    Parameters
    ----------
    text : str or list of str
        What the user wrote.

    Raises
    ------
    InputError
        If it is neither, or an entry of the list is empty.
    """
    if isinstance(text, str):
        return text
    if isinstance(text, (list, tuple)) and text and all(isinstance(part, str) and part.strip() for part in text):
        return "; ".join(text)
    raise InputError(
        f"The text to look for cannot be {text!r}; allowed: a text such as 'both lungs', or a list of such texts."
    )


def parse_prompt(text: str | list[str], modality: str | None, target_set: TargetSet) -> list[TextTarget]:
    """Split the text of a request into targets.

    Targets are separated by ";" or a new line, several captions of one target by "|". A single caption that means a
    known target takes that target's captions; texts with "|" are taken as written, and the known target that they mean,
    if any, adds its label and settings. Where ",", "and", "&", "+" or "/" separate known targets, each is a target;
    "left and right lung" is one, since it is the name of one. Typing errors in names of known targets are corrected.
    Targets named twice are merged.

    Parameters
    ----------
    text : str or list of str
        What the user wrote; a list has one text for each target.
    modality : str or None
        DICOM modality of the image; None where it is not known.
    target_set : TargetSet
        The known targets.

    Returns
    -------
    list of TextTarget
        At least one, in the order of the text.

    Raises
    ------
    NegationError
        If the text says that something is not there.
    SeparatorError
        If known targets and other texts are separated by anything but ";" or a new line.
    InputError
        If the text is empty, or what it says for one target holds no word or is longer than `MAX_TEXT` characters.
    TargetError
        If the captions of one target mean different known targets.
    """
    merged: dict[str, TextTarget] = {}
    for found in _targets(text, modality, target_set):
        key = normalise(found.name)
        if key in merged:
            captions = tuple(dict.fromkeys(merged[key].captions + found.captions))
            notes = dict.fromkeys(filter(None, (merged[key].note, found.note)))
            merged[key] = replace(merged[key], captions=captions, note=" ".join(notes))
        else:
            merged[key] = found
    if not merged:
        raise InputError("The text to look for is empty; write what to find, for example 'both lungs'.")
    return list(merged.values())


def check_text(text: str | list[str], target_set: TargetSet) -> None:
    """Raise what `parse_prompt` raises for a text whatever the modality of the image is.

    Raises
    ------
    InputError
        See `parse_prompt`.
    """
    # which targets captions mean depends on the modality
    with suppress(TargetError):
        parse_prompt(text, None, target_set)


def _targets(text: str | list[str], modality: str | None, target_set: TargetSet) -> Iterator[TextTarget]:
    for piece in _ENDS.split(joined_text(text)):
        if len(piece) > MAX_TEXT:
            raise InputError(
                f"The text {piece.strip()[:40]!r}... has {len(piece)} characters; allowed: {MAX_TEXT} for one target."
            )
        captions = tuple(dict.fromkeys(filter(None, (" ".join(part.split()) for part in piece.split("|")))))
        for caption in captions:
            if not normalise(caption):
                raise InputError(f"The text {caption!r} holds no word; write what to find, for example 'both lungs'.")
        if captions and "|" in piece:
            yield _as_written(captions, modality, target_set)
        elif captions:
            yield from _read(captions[0], modality, target_set)


def _as_written(captions: tuple[str, ...], modality: str | None, target_set: TargetSet) -> TextTarget:
    known = {target.name: target for caption in captions if (target := target_set.match(caption, modality))}
    if len(known) > 1:
        raise TargetError(
            f"The text {' | '.join(captions)!r} describes one target but means {' and '.join(known)}; "
            f"separate targets by ';'."
        )
    target = next(iter(known.values()), None)
    return TextTarget(target.name if target else " | ".join(captions), captions, target)


def _read(text: str, modality: str | None, target_set: TargetSet) -> Iterator[TextTarget]:
    """Yield what a text without ";" and "|" asks for."""
    text = _BULLET.sub("", text, count=1)
    plain = _REQUEST.sub("", text, count=1).strip()
    for wording in (text, plain):
        if target_set.mentions(wording) or target_set.is_absence_caption(wording):
            yield _one(wording, modality, target_set, text)
            return
    denied = negation(text, target_set.words)
    if denied is not None:
        raise NegationError(
            f"The text {text!r} says by {denied!r} that something is not there, which the models cannot read; name "
            f"what to look for: where it is not in the image, the mask is empty and the sentence says so. "
            f"(A text that ends in '|' is taken as written.)"
        )
    parts = _parts(plain, target_set)
    for part in parts:
        yield _one(part, modality, target_set, part)
    if not parts:
        meant = plain if target_set.corrected(plain, modality) else text
        yield _one(meant, modality, target_set, text)


def _parts(text: str, target_set: TargetSet) -> list[str]:
    """Return the known targets that a text lists; none where it is no list.

    Raises
    ------
    SeparatorError
        If some parts of a list are known targets, and others are not.
    """
    cuts = list(_SEPARATOR.finditer(text))
    if not cuts or len(cuts) > _MAX_PARTS:
        return []
    starts = [0, *(cut.end() for cut in cuts)]
    ends = [*(cut.start() for cut in cuts), len(text)]
    parts: list[str] = []
    known = unknown = 0
    place = 0
    while place < len(starts):
        if starts[place] >= ends[place]:  # two separators, as in ", and"
            place += 1
            continue
        # the longest run of parts that is a known target: "left and right lung"
        stop = min(place + _LONGEST_RUN, len(ends))
        last = next(
            (last for last in reversed(range(place, stop)) if target_set.mentions(text[starts[place] : ends[last]])),
            place if target_set.corrected(text[starts[place] : ends[place]]) else None,
        )
        known, unknown = known + (last is not None), unknown + (last is None)
        last = place if last is None else last
        parts.append(text[starts[place] : ends[last]])
        place = last + 1
    if known and unknown:
        raise SeparatorError(
            f"The text {text!r} names known targets beside others; separate targets by ';', as in "
            f"{'; '.join(parts)!r}. (A text that ends in '|' is taken as one target, as written.)"
        )
    return parts if known else []


def _one(meant: str, modality: str | None, target_set: TargetSet, written: str) -> TextTarget:
    """Return the target of a text that asks for one.

    Parameters
    ----------
    meant : str
        The text without typing errors.
    written : str
        As the user wrote it.
    """
    if not target_set.mentions(meant):
        meant = target_set.corrected(meant, modality) or meant
    target = target_set.match(meant, modality)
    exact = target_set.is_exact(meant) and normalise(meant) == normalise(written)
    if target is not None:
        return TextTarget(
            target.name, target.captions, target, "" if exact else f"Read {written!r} as {target.name!r}."
        )
    structure = structure_meant(written)
    if structure is not None:
        words = words_of(structure)
        near = [
            other.name
            for other in target_set
            if other.in_modality(modality) and any(words_of(name) <= words for name in (other.name, *other.synonyms))
        ]
        read = (
            f"Read {written!r} as {structure!r}, which" if normalise(written) != normalise(structure) else repr(written)
        )
        note = f"{read} is not a known target"
        return TextTarget(written, (structure,), None, f"{note}; known: {', '.join(near)}." if near else f"{note}.")
    if normalise(meant) != normalise(written):
        return TextTarget(meant, (meant,), None, f"Read {written!r} as {meant!r}.")
    similar = None if target_set.mentions(meant) else target_set.corrected(meant, modality, dictionary=False)
    note = f"{written!r} is searched for as free text; did you mean the known target {similar!r}?" if similar else ""
    return TextTarget(meant, (meant,), None, note)


def assign_labels(text_targets: Iterable[TextTarget]) -> dict[str, int]:
    """Give each target of a request its label: a known target its own, free text the next one of `FINDING_LABELS`.

    Returns
    -------
    dict
        Name to label, in the order of the request.

    Raises
    ------
    TargetError
        If there are more free texts than labels for them.
    """
    targets = list(text_targets)
    free = [target.name for target in targets if target.target is None]
    if len(free) > len(FINDING_LABELS):
        raise TargetError(
            f"The request names {len(free)} targets that are not among the known ones; "
            f"allowed: {len(FINDING_LABELS)} in one request."
        )
    findings = dict(zip(free, FINDING_LABELS.values(), strict=False))
    return {target.name: target.target.label if target.target else findings[target.name] for target in targets}


def label_table(target_set: TargetSet) -> dict[str, int]:
    """Return the fixed table of labels: name to label of the known targets, then of the findings."""
    return {target.name: target.label for target in target_set} | FINDING_LABELS


def negatives(target: Target | None, target_set: TargetSet, modality: str | None = None) -> list[Target]:
    """Return the known targets that a target is not: other structures of the modality that share no pixels with it.

    Parameters
    ----------
    target : Target or None
        The known target; None for free text, which every known target may differ from.
    target_set : TargetSet
        The known targets.
    modality : str or None
        DICOM modality of the image; None takes the targets of all modalities.
    """
    return [
        other
        for other in target_set
        if other.in_modality(modality) and (target is None or not target.overlaps_with(other))
    ]
