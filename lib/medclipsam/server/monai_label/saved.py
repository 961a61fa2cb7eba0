"""Final labels as a viewer loads and saves them: segments that may overlap, and who saved before."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.imaging.frames import ImageFrames
from medclipsam.imaging.label_map import ValueNames, read_kept_label
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.errors import ConflictError
from medclipsam.server.inference.drawn import label_map_of, read_segments
from medclipsam.server.learning.readers import iso_time, version_of
from medclipsam.server.learning.rounds import reader_of
from medclipsam.server.monai_label.app import MedClipSamApp, made_by
from medclipsam.server.studies.datastore import FINAL, ORIGINAL
from medclipsam.studies.final import REPLACES, SAVED_BY, is_consensus
from medclipsam.training.names import DEFAULT_NAME

# Key of what is kept with a label: how a viewer shows its segments, by their names.
SHOWN = "shown"
# What that is, and the longest text of it.
_SHOWN_AS, _LONGEST = ("colour", "source", "edited"), 40


class SaveConflictError(ConflictError):
    """Somebody else has saved a label since the one that was changed was loaded.

    Attributes
    ----------
    theirs : dict or None
        The label that is there now; None where it was removed.
    """

    def __init__(self, theirs: dict[str, Any] | None) -> None:
        who = "removed" if theirs is None else f"saved by {theirs['by'] or 'somebody else'} at {theirs['at']}"
        super().__init__(f"The label was {who} meanwhile. Compare, then save yours as a new version or take theirs.")
        self.theirs = theirs


class SavedSegments:
    """Final labels in segments; safe to use from several threads.

    Parameters
    ----------
    app : MedClipSamApp
        Saves the labels.
    """

    def __init__(self, app: MedClipSamApp) -> None:
        self._app = app
        self._saving: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def get(self, image: str, caller: Caller, frames: ImageFrames | None = None) -> dict[str, Any] | None:
        """Return the final label that somebody is shown of an image, see `Readers.shown_to`.

        Returns
        -------
        dict or None
            `segments`, `by`, `at`, `version`, `review`, and `consensus` (whether it is one); None where there is none.
        """
        shown = self._app.readers.shown_to(image, reader_of(caller))
        if shown is None:
            return None
        path, info = shown
        version = version_of(path, info)
        segments = self._segments(path, info, frames or self._app.viewed.frames(image))
        return {
            "segments": segments,
            "by": str(info.get(SAVED_BY) or ""),
            "at": iso_time(info.get("ts")),
            "version": version,
            "review": info.get("review"),
            "consensus": is_consensus(info),
        }

    def proposed(self, image: str, caller: Caller) -> dict[str, Any] | None:
        """Return the mask of a model that waits for whoever opens an image, and note that it was shown.

        Returns
        -------
        dict or None
            `segments`, `by` (a network with its version, "zero-shot", or "pre-annotation") and `at`; None where there
            is none, or somebody has saved a label.
        """
        store = self._app.datastore()
        tags = {str(tag) for tag in store.get_labels_by_image_id(image)}
        tag = next((tag for tag in (DEFAULT_NAME, ORIGINAL) if tag in tags), None)
        if tag is None or FINAL in tags:
            return None
        path, info = Path(store.get_label_uri(image, tag)), store.get_label_info(image, tag)
        frames = self._app.viewed.frames(image)
        label = read_kept_label(path, frames.image, info)
        params = info.get("params") or {}
        # a file that a cohort or another program has put there says nothing
        source = made_by(params) if params else "pre-annotation"
        self._app.rounds.record_offer(image, reader_of(caller), source, label.values)
        kind = "network" if "network" in params else "text"
        return {
            "segments": [{**each, "source": kind, "edited": False} for each in self._segments(path, info, frames)],
            "by": source,
            "at": iso_time(info.get("ts")),
        }

    def put(self, image: str, given: Any, base: str | None, caller: Caller, *, as_new: bool) -> dict[str, Any]:
        """Save segments as the final label of an image, and return it as it is read back.

        Parameters
        ----------
        image : str
        given : object
            The segments as a viewer sent them, see `read_segments`.
        base : str or None
            Version of the label that was changed; None where there was none.
        caller : Caller
            Who saves it.
        as_new : bool
            Whether it takes the place of any label, as a reading of its own; the one that was there stays as an
            earlier version, and counts beside it where another has saved it.

        Returns
        -------
        dict
            As `get`, and `overlap_voxels`: voxels that lie in several segments. Clients that read one label for each
            voxel see the smallest of them there.

        Raises
        ------
        SaveConflictError
            If there is another label than `base` by now.
        InputError
            If it cannot be saved.
        """
        frames = self._app.viewed.frames(image)
        segments = read_segments(given, frames)
        label = label_map_of(segments, frames.image, self._app.label_table)
        info: dict[str, Any] = {"user": caller.user, SHOWN: {each["name"]: _shown(each) for each in given}}
        if caller.client:
            info["client_id"] = caller.client
        with self._saving[image]:
            theirs = self.get(image, caller, frames)
            if not as_new and (theirs["version"] if theirs else None) != base:
                raise SaveConflictError(theirs)
            if theirs and not as_new and not theirs["consensus"]:
                # who changes the label of another that they were shown has corrected it, and is no second reader
                info[REPLACES] = [theirs["by"]]
            self._app.keep_label_map(image, label, info, caller)
            saved = self.get(image, caller, frames)
            assert saved is not None
            return {**saved, "overlap_voxels": label.overlap_voxels}

    def _segments(self, path: Path, info: Mapping[str, Any], frames: ImageFrames) -> list[dict[str, Any]]:
        label = read_kept_label(path, frames.image, info)
        names = label.names_by_value
        known = {value: name for name, value in self._app.label_table.items()}
        named = {value: names.get(value) or known.get(value) or f"label {value}" for value in label.present}
        # what was asked for and is not there is part of the label too
        asked = ValueNames.from_monailabel({"label_names": info.get("label_names")}).by_value()
        told = {**asked, **named}
        kept = info.get(SHOWN)
        entries = kept.items() if isinstance(kept, Mapping) else ()
        shown = {name: _shown(each) for name, each in entries if isinstance(each, Mapping)}
        # in the order that they were saved in
        order = [*(value for value in names if value in told), *sorted(told.keys() - names.keys())]
        rank = {name: number for number, name in enumerate(shown)}
        order.sort(key=lambda value: rank.get(told[value], len(rank)))
        return [
            {"name": told[value], **shown.get(told[value], {}), "planes": frames.encode(label.mask_of(value))}
            for value in order
        ]


def _shown(segment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a viewer says of a segment beside its voxels, as far as it may be kept."""
    said = {key: segment[key] for key in _SHOWN_AS if key in segment}
    return {
        key: value
        for key, value in said.items()
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= _LONGEST)
    }
