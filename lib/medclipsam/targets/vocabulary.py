"""Suggestions while someone types the name of a target."""

from __future__ import annotations

from dataclasses import dataclass

from rapidfuzz import fuzz

from medclipsam.targets.target import Target, TargetSet
from medclipsam.targets.wording import normalise, words_of

# Similarity in per cent from which a name is suggested that does not begin with what was typed.
_SIMILAR = 70.0
# Of what fits by similarity alone.
_LAST_RANK = 3


@dataclass(frozen=True)
class Suggestion:
    """A known target that someone may be about to type.

    Parameters
    ----------
    target : Target
        The target.
    text : str
        Its name or the synonym that fits best what was typed.
    """

    target: Target
    text: str


def suggest(query: str, target_set: TargetSet, modality: str | None = None, limit: int = 10) -> list[Suggestion]:
    """Return the known targets that fit what was typed so far, best first.

    Names and synonyms that begin with the query come first, then those of which a later word begins with it, those that
    mean the same in other words ("Lt lung"), and similar ones. Each target comes once, with the text that fits best.

    Parameters
    ----------
    query : str
        What was typed; an empty one fits every target.
    target_set : TargetSet
        The known targets.
    modality : str or None
        DICOM modality whose targets are suggested; None for all.
    limit : int
        How many are returned at most.
    """
    typed = normalise(query)
    ranked = []
    for place, target in enumerate(target_set):
        if not target.in_modality(modality):
            continue
        texts = (target.name, *target.synonyms)
        best = min((*_rank(typed, query, text), order, text) for order, text in enumerate(texts))
        if best[0] <= _LAST_RANK:
            ranked.append((best[:3], place, Suggestion(target, best[-1])))
    return [suggestion for *_, suggestion in sorted(ranked, key=lambda entry: entry[:2])[:limit]]


def _rank(typed: str, query: str, text: str) -> tuple[int, float]:
    """Return how well a text fits, smaller is better; above `_LAST_RANK` it does not."""
    name = normalise(text)
    if name.startswith(typed):
        return 0, len(name) - len(typed) if typed else 0
    if any(f" {name}".startswith(f" {typed}", at) for at in range(len(name))):
        return 1, len(name)
    words = words_of(query)
    if words and words <= words_of(text):
        return 2, len(name)
    similarity = max(fuzz.ratio(typed, name), fuzz.ratio(typed, name[: len(typed)]))
    return (_LAST_RANK, -similarity) if similarity >= _SIMILAR else (_LAST_RANK + 1, 0)
