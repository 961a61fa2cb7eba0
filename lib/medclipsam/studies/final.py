"""What counts as a final label, wherever labels are counted, trained on, exported or measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Key of what is kept with a label: who saved it. Only the server sets it, with each label that a person saves.
SAVED_BY = "saved_by"


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
