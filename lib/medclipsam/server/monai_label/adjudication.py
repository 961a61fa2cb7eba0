"""Consensus of the readers of an image, as a reviewer makes it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from medclipsam.base.errors import InputError, OptionError
from medclipsam.exchange.consensus import METHODS, consensus
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.audit import Caller
from medclipsam.server.inference.drawn import label_map_of, read_segments
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.studies.final import CONSENSUS

# By computation, the label of one of the readers, or one that the reviewer has drawn.
READER, DRAWN = "reader", "drawn"
ALL_METHODS = (*METHODS, READER, DRAWN)


class Adjudication:
    """Makes the consensus of images; safe to use from several threads.

    Parameters
    ----------
    app : MedClipSamApp
        Saves it.
    """

    def __init__(self, app: MedClipSamApp) -> None:
        self._app = app
        self._saving: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def labels(self, image: str, caller: Caller) -> dict[str, Any]:
        """Return what `Readers.state` tells, without distances, and the `segments` of each reader.

        Raises
        ------
        UnknownError
            If there are not two readers.
        ForbiddenError
            If the caller is one of the readers.
        """
        readers = self._app.readers
        readers.check_adjudicator(image, reader_of(caller))
        told, frames = readers.state(image, distances=False), self._app.viewed.frames(image)
        maps = readers.label_maps(image)
        for each in told["readers"]:
            label = maps[each["reader"]]
            each["segments"] = [
                {"name": name, "planes": frames.encode(label.mask(name))} for name in sorted(label.names)
            ]
        return told

    def settle(self, image: str, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Save the consensus of the readers of an image as its final label.

        Parameters
        ----------
        image : str
        given : mapping
            `method`: "staple", "majority", "reader" (with the name as `reader`) or "drawn" (with `segments`, see
            `read_segments`); `seen`: the version of each reader's label that was looked at, by the reader.
        caller : Caller
            The reviewer.

        Returns
        -------
        dict
            As `Readers.state`.

        Raises
        ------
        UnknownError, ForbiddenError
            As of `labels`.
        ConflictError
            If a reader has saved since.
        InputError
            If the method, or what it takes, is not allowed.
        """
        readers, reviewer = self._app.readers, reader_of(caller)
        method, seen = given.get("method"), given.get("seen")
        if method not in ALL_METHODS:
            raise OptionError("method", method, ", ".join(ALL_METHODS))
        if seen is not None and not (isinstance(seen, dict) and all(isinstance(each, str) for each in seen.values())):
            raise OptionError("seen", str(seen)[:60], "an object of readers and versions")
        for key, needed in ((READER, READER), ("segments", DRAWN)):
            if (key in given) != (method == needed):
                raise InputError(f"The method {method!r} {'needs' if method == needed else 'does not take'} {key!r}.")
        with self._saving[image]:
            readings = readers.check_adjudicator(image, reviewer)
            readers.check_seen(image, seen)
            label = self._label(image, str(method), given)
            about: dict[str, Any] = {
                "method": method,
                "readings": {name: reading.version for name, reading in readings.items()},
            }
            if method == READER:
                about["reader"] = given[READER]
            info = {"user": caller.user, CONSENSUS: about}
            self._app.keep_label_map(image, label, info, caller)
        return readers.state(image, distances=False)

    def _label(self, image: str, method: str, given: Mapping[str, Any]) -> LabelMap:
        if method == DRAWN:
            frames = self._app.viewed.frames(image)
            return label_map_of(read_segments(given["segments"], frames), frames.image, self._app.label_table)
        maps = self._app.readers.label_maps(image)
        if method == READER:
            chosen = given[READER]
            if not isinstance(chosen, str) or chosen not in maps:
                raise OptionError(READER, str(chosen)[:60], ", ".join(maps))
            return maps[chosen]
        return consensus(maps, "majority" if method == "majority" else "staple").label
