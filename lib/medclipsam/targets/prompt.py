"""From the text of a request to targets, and from targets to labels.

`"left lung; heart"` asks for two targets; `"breast tumour | a hypoechoic mass"` for one, described by two captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from medclipsam.errors import InputError, TargetError
from medclipsam.targets.target import MAX_LABEL, Target, TargetSet, normalise

# Longest text for one target, in characters; no text encoder here reads more than 256 tokens.
MAX_TEXT = 1000

# Labels of free text, named so that a client can show them before any text is known.
FINDING_LABELS: dict[str, int] = {f"finding {number}": MAX_LABEL + number for number in range(1, 9)}


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
    """

    name: str
    captions: tuple[str, ...]
    target: Target | None = None


def parse_prompt(text: str, modality: str | None, target_set: TargetSet) -> list[TextTarget]:
    """Split the text of a request into targets.

    Targets are separated by ";" or a new line, several captions of one target by "|". A single caption that means a
    known target takes that target's captions; of several captions each is taken as written, and the known target that
    they mean, if any, adds its label and settings. Targets named twice are merged.

    Parameters
    ----------
    text : str
        What the user wrote.
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
    InputError
        If the text is empty, or what it says for one target holds no word or is longer than `MAX_TEXT` characters.
    TargetError
        If the captions of one target mean different known targets.
    """
    if not isinstance(text, str):
        raise InputError(f"The text to look for cannot be {text!r}; allowed: a text such as 'both lungs'.")
    merged: dict[str, TextTarget] = {}
    for piece in re.split(r"[;\n]", text):
        if len(piece) > MAX_TEXT:
            raise InputError(
                f"The text {piece.strip()[:40]!r}... has {len(piece)} characters; allowed: {MAX_TEXT} for one target."
            )
        captions = tuple(dict.fromkeys(filter(None, (" ".join(part.split()) for part in piece.split("|")))))
        if not captions:
            continue
        found = _one_target(captions, modality, target_set)
        key = normalise(found.name)
        if key in merged:
            captions = tuple(dict.fromkeys(merged[key].captions + found.captions))
            merged[key] = replace(merged[key], captions=captions)
        else:
            merged[key] = found
    if not merged:
        raise InputError("The text to look for is empty; write what to find, for example 'both lungs'.")
    return list(merged.values())


def _one_target(captions: tuple[str, ...], modality: str | None, target_set: TargetSet) -> TextTarget:
    for caption in captions:
        if not normalise(caption):
            raise InputError(f"The text {caption!r} holds no word; write what to find, for example 'both lungs'.")
    known = {target.name: target for caption in captions if (target := target_set.match(caption, modality))}
    if len(known) > 1:
        raise TargetError(
            f"The text {' | '.join(captions)!r} describes one target but means {' and '.join(known)}; "
            f"separate targets by ';'."
        )
    if not known:
        return TextTarget(" | ".join(captions), captions)
    target = next(iter(known.values()))
    return TextTarget(target.name, target.captions if len(captions) == 1 else captions, target)


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
