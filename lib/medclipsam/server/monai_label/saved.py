"""Final labels as a viewer loads and saves them: segments that may overlap, and who saved before."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.base.files import PRIVATE, file_sha256, write_bytes
from medclipsam.imaging import read_mask
from medclipsam.imaging.frames import ImageFrames
from medclipsam.imaging.label_map import ValueNames
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.errors import ConflictError
from medclipsam.server.inference.drawn import flatten, read_segments
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.studies.datastore import FINAL
from medclipsam.studies.final import SAVED_BY

logger = logging.getLogger(__name__)


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

    A label map has one label for each voxel; what overlaps is kept beside it, in a file of the workspace.

    Parameters
    ----------
    app : MedClipSamApp
        Saves the labels.
    folder : Path
        Where the segments are kept.
    """

    def __init__(self, app: MedClipSamApp, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._saving: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def get(self, image: str, frames: ImageFrames | None = None) -> dict[str, Any] | None:
        """Return the final label of an image: `segments`, `by`, `at` and `version`; None where there is none."""
        store = self._app.datastore()
        path = store.get_label_uri(image, FINAL)
        if not path:
            return None
        info = store.get_label_info(image, FINAL)
        version = str(info.get("SOPInstanceUID") or file_sha256(Path(path))[:32])
        kept = self._kept(image, version)
        if kept is None:
            frames = frames or self._app.viewed.frames(image)
            kept = self._segments(Path(path), info, frames)
        at = info.get("ts")
        return {
            "segments": kept,
            "by": str(info.get(SAVED_BY) or ""),
            "at": _iso(at) if isinstance(at, (int, float)) else None,
            "version": version,
            "review": info.get("review"),
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
            Whether it takes the place of any label; the one that was there stays as an earlier version.

        Returns
        -------
        dict
            As `get`, and `overlap_voxels`: voxels that lie in several segments, which the label map gives to the
            smallest of them.

        Raises
        ------
        SaveConflictError
            If there is another label than `base` by now.
        InputError
            If it cannot be saved.
        """
        frames = self._app.viewed.frames(image)
        segments = read_segments(given, frames)
        label, overlap = flatten(segments, frames, self._app.label_table)
        info: dict[str, Any] = {"user": caller.user}
        if caller.client:
            info["client_id"] = caller.client
        with self._saving[image]:
            theirs = self.get(image, frames)
            if not as_new and (theirs["version"] if theirs else None) != base:
                raise SaveConflictError(theirs)
            self._app.keep_label_map(image, label, info, caller)
            saved = self.get(image, frames)
            assert saved is not None
            self._keep(image, saved["version"], given)
            return {**saved, "segments": given, "overlap_voxels": overlap}

    def _segments(self, path: Path, info: Mapping[str, Any], frames: ImageFrames) -> list[dict[str, Any]]:
        values = read_mask(path, frames.image)
        names = ValueNames.from_monailabel(info).by_value()
        known = {value: name for name, value in self._app.label_table.items()}
        present = {int(value) for value in np.unique(values) if value}
        named = {value: names.get(value) or known.get(value) or f"label {value}" for value in present}
        # what was asked for and is not there is part of the label too
        asked = ValueNames.from_monailabel({"label_names": info.get("label_names")}).by_value()
        return [
            {"name": name, "planes": frames.encode(values == value)}
            for value, name in sorted({**asked, **named}.items())
        ]

    def _path(self, image: str) -> Path:
        return self._folder / f"{hashlib.sha256(image.encode()).hexdigest()[:32]}.json"

    def _kept(self, image: str, version: str) -> list[dict[str, Any]] | None:
        try:
            kept = json.loads(self._path(image).read_bytes())
            found: list[dict[str, Any]] | None = kept["segments"] if kept["version"] == version else None
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, image: str, version: str, segments: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._folder.mkdir(0o700, parents=True, exist_ok=True)
            content = json.dumps({"version": version, "segments": list(segments)}, separators=(",", ":"))
            write_bytes(self._path(image), content.encode(), mode=PRIVATE)
        except OSError as error:  # the label itself is saved
            logger.warning("What overlaps in a saved label is not kept: %s", error.strerror or error)


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
