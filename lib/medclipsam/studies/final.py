"""What counts as a final label, wherever labels are counted, trained on, exported or measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Keys of what is kept with a label; only the server sets them, with each label that a person saves.
# Who saved it.
SAVED_BY = "saved_by"
# The readers whose labels it corrects, and whose labels no longer count.
REPLACES = "replaces"
# How it was made of several readers' labels, and of which.
CONSENSUS = "consensus"
# With an earlier version: it was removed, and not replaced.
REMOVED = "removed"
# What a reviewer said of it.
REVIEW = "review"
# A reader whom nobody has told apart from others.
ANONYMOUS = "anonymous"
# Folder of earlier versions, in the folder of labels.
LABEL_VERSIONS = ".versions"


def is_by_person(info: Mapping[str, Any]) -> bool:
    """Return whether a label that is kept under the tag `final` counts as one.

    A final label is one that a person has saved, or has put into the folder of final labels. A mask that a model has
    made is none, even if it has the tag: what is kept with it names the model, and nobody who saved it.

    Parameters
    ----------
    info : mapping
        What is kept with the label; empty for a file that was put there by other means than the server.

    Examples
    --------
    >>> is_by_person({"saved_by": "ada", "model": "network"}), is_by_person({}), is_by_person({"model": "network"})
    (True, True, False)
    """
    return bool(info.get(SAVED_BY)) or "model" not in info


def readings_among(kept: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return which of the final labels that are kept of an image are readings: the last label of each reader.

    A label that was rejected, that somebody has corrected, or that was removed is none, and neither is a consensus or
    the label of an unknown person.

    Parameters
    ----------
    kept : sequence of mapping
        What is kept with each final label of the image, the earliest first.

    Returns
    -------
    dict of str to int
        Reader to the place in `kept`, in the order of saving.

    Examples
    --------
    >>> readings_among([{"saved_by": "ada"}, {"saved_by": "bob"}, {"saved_by": "ada"}])
    {'bob': 1, 'ada': 2}
    """
    found: dict[str, int] = {}
    for place, info in enumerate(kept):
        reader = info.get(SAVED_BY)
        if info.get(REMOVED):
            found.clear()
        elif CONSENSUS not in info and isinstance(reader, str) and reader not in ("", ANONYMOUS):
            for other in (reader, *(info.get(REPLACES) or ())):
                found.pop(other, None)
            if not is_rejected(info):
                found[reader] = place
    return found


def is_rejected(info: Mapping[str, Any]) -> bool:
    """Return whether a reviewer has rejected a label."""
    review = info.get(REVIEW)
    return isinstance(review, Mapping) and review.get("verdict") == "rejected"


def is_consensus(info: Mapping[str, Any]) -> bool:
    """Return whether a label is a consensus that stands."""
    return CONSENSUS in info and not is_rejected(info)


def waits_for_consensus(labels: Path, image_id: str, info: Mapping[str, Any]) -> bool:
    """Return whether several people have labelled an image, and no consensus was made of their labels since.

    Nothing is trained on, exported or measured against such a label.

    Parameters
    ----------
    labels : Path
        The folder of labels.
    image_id : str
    info : mapping
        What is kept with the image's final label.
    """
    if is_consensus(info):
        return False
    return len(readings_among([*(about for _, about in superseded(labels, image_id)), info])) > 1


def superseded(labels: Path, image_id: str) -> list[tuple[int, dict[str, Any]]]:
    """Return number and info of each final label of an image that another has taken the place of, in order."""
    folder = labels / LABEL_VERSIONS / "final" / image_id
    files = [file for file in folder.glob("*.json") if file.stem.isdigit()] if folder.is_dir() else []
    found = []
    for file in sorted(files, key=lambda file: int(file.stem)):
        with suppress(OSError, ValueError):
            told = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(told, dict):
                found.append((int(file.stem), told))
    return found
