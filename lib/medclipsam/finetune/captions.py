"""Captions: the part of a report that describes the image, cut at a sentence's end to what a text encoder reads."""

from __future__ import annotations

import re
from collections.abc import Callable

# A full stop ends a sentence where space and something that begins one follow: "1.5 cm" and "e.g. a cyst" go on.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[\"'])")
_HEADING = re.compile(r"(?:^|(?<=\s))([A-Z][A-Z /&-]{2,40}):\s")
_TOLD = ("FINDING", "IMPRESSION", "CONCLUSION", "OPINION")


def tidy(text: str) -> str:
    """Return a text with each run of white space as one space, and none at the ends."""
    return " ".join(text.split())


def report_text(report: str) -> str:
    """Return what a radiology report says of the image: findings and impression where it has such headings, else all.

    Headings are words in capitals that a colon ends: a report begins with who asked for it and why, and that would be
    all that fits into a text encoder.
    """
    text = tidy(report)
    parts = _HEADING.split(text)
    told = [
        body.strip()
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
        if heading.strip().startswith(_TOLD) and body.strip()
    ]
    return " ".join(told) or text


def cut_caption(text: str, count_tokens: Callable[[str], int | None], context: int) -> str:
    """Return the leading sentences of a caption that fit into a context.

    Parameters
    ----------
    text : str
        The caption.
    count_tokens : callable
        Text -> number of its tokens, special tokens included; None where that is not known (nothing is cut then).
    context : int
        Greatest number of tokens.

    Returns
    -------
    str
        As many whole sentences as fit; of a first sentence that is too long by itself, as many words as fit.
    """

    def fits(part: str) -> bool:
        used = count_tokens(part)
        return used is None or used <= context

    text = tidy(text)
    if fits(text):
        return text
    sentences = _SENTENCE_END.split(text)
    pieces = sentences if fits(sentences[0]) else sentences[0].split(" ")
    # Tokens of a longer text are never fewer: the greatest number that fits can be searched by halves.
    low, high = 1, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(" ".join(pieces[:middle])):
            low = middle
        else:
            high = middle - 1
    return " ".join(pieces[:low])
