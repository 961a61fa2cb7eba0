"""The audit file: a line of JSON for each mask that is given out and each label that is saved or removed."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Characters of a client's name that are noted.
_LONGEST = 100


@dataclass(frozen=True)
class Caller:
    """Who asked, and by which route.

    Parameters
    ----------
    user : str
        Name of the user as authentication tells it.
    client : str
        `client_id` of the request, which the client chooses itself.
    route : str
        "POST /infer/text_prompt".
    reviews : bool
        Whether the user has logged in as a reviewer.
    """

    user: str = ""
    client: str = ""
    route: str = ""
    reviews: bool = False


class AuditFile:
    """A file that only grows, readable by its owner alone; None as path keeps no notes.

    Each line is one write to a file opened for appending, so that the server and its sub-processes can share it.

    Parameters
    ----------
    path : str or None
        The file; made at the first line.
    with_text : bool
        Whether lines hold the text that was asked for.
    """

    def __init__(self, path: str | None, *, with_text: bool = False) -> None:
        self._path = Path(path) if path else None
        self._with_text = with_text

    def mask(self, caller: Caller, image: str, model: str, params: Mapping[str, Any]) -> None:
        """Note that a mask was made.

        Parameters
        ----------
        caller : Caller
            Who asked.
        image : str
            The image's id; "(sent along)" or a session where it is not of the studies.
        model : str
            Name of the model.
        params : mapping
            The answer's parameters.
        """
        targets = params.get("targets") or []
        fields: dict[str, Any] = {"pixels": {str(target["label"]): target["area_pixels"] for target in targets}}
        if self._with_text and "text" in params:
            fields["text"] = params["text"]
        self._note(caller, "mask", image=image, model=model, weights=_hashes(params.get("weights")), **fields)

    def label(
        self, caller: Caller, event: str, image: str, tag: str, model: str | None = None, weights: Any = None
    ) -> None:
        """Note that a label was saved or removed: `event` is "label saved", "label removed" or "image removed"."""
        self._note(caller, event, image=image, tag=tag, model=model, weights=_hashes(weights))

    def stored(self, caller: Caller, instances: Mapping[str, str], status: int | None) -> None:
        """Note that instances were passed on to the DICOMweb server.

        Parameters
        ----------
        caller : Caller
            Who asked.
        instances : mapping of str to str
            SOP Instance UID to "stored", "not stored" or "unknown".
        status : int or None
            The answer's status; None where there was none.
        """
        self._note(caller, "instances passed on", instances=dict(instances), status=status)

    def network(self, caller: Caller, event: str, name: str, version: int) -> None:
        """Note that another network is served."""
        self._note(caller, event, model=name, version=version)

    def _note(self, caller: Caller, event: str, **fields: Any) -> None:
        if self._path is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {
            "time": now,
            "event": event,
            "user": caller.user,
            "client": caller.client[:_LONGEST],
            "route": caller.route,
        }
        line |= {key: value for key, value in fields.items() if value is not None}
        text = json.dumps(line, ensure_ascii=False, default=str) + "\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, text.encode("utf-8", "replace"))
        finally:
            os.close(handle)


def _hashes(weights: Any) -> dict[str, str] | None:
    if not isinstance(weights, Mapping):
        return None
    return {
        kind: str(entry["sha256"])
        for kind, entry in weights.items()
        if isinstance(entry, Mapping) and "sha256" in entry
    }
