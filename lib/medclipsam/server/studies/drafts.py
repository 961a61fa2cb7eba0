"""Drafts: what annotators have drawn and not saved yet, one for each image and annotator."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from medclipsam.base.errors import StorageError
from medclipsam.base.files import PRIVATE, write_text
from medclipsam.server.base.errors import ConflictError

_LARGEST = 2**31 - 1


class DraftPlane(BaseModel):
    """The mask of a finding on one plane.

    Attributes
    ----------
    plane : int
        Index of the plane.
    runs : list of int
        Start and length of each run of pixels, row by row: ascending, and apart from each other.
    """

    model_config = ConfigDict(extra="forbid")

    plane: Annotated[int, Field(ge=0, le=_LARGEST)]
    runs: list[Annotated[int, Field(ge=0, le=_LARGEST)]]

    @model_validator(mode="after")
    def _ascending(self) -> DraftPlane:
        starts, lengths = self.runs[::2], self.runs[1::2]
        if len(starts) != len(lengths):
            raise ValueError(f"the runs of plane {self.plane} have a start without a length")
        end = -1
        for start, length in zip(starts, lengths, strict=True):
            if length < 1 or start <= end:
                raise ValueError(f"the runs of plane {self.plane} are not ascending and apart at {start}")
            end = start + length
        return self


class DraftEvidence(BaseModel):
    """What a model said of a finding."""

    model_config = ConfigDict(extra="forbid")

    presence: float | None = None
    threshold: float | None = None
    reason: Annotated[str, StringConstraints(max_length=2000)] = ""
    doubt: Annotated[str, StringConstraints(max_length=2000)] = ""
    network: Annotated[str, StringConstraints(max_length=200)] | None = None
    uncertainty: float | None = None


class DraftSegment(BaseModel):
    """A finding."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    colour: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")] | None = None
    source: Literal["text", "network", "clicks", "hand"] = "hand"
    edited: bool = False
    planes: list[DraftPlane]
    evidence: DraftEvidence | None = None


class Draft(BaseModel):
    """The findings of an image as an annotator left them.

    Attributes
    ----------
    segments : list of DraftSegment
        The findings.
    base : str or None
        Version of the saved label that the work began with.
    revision : int or None
        Revision of the draft that this one takes the place of; None for a first one.
    """

    model_config = ConfigDict(extra="ignore")

    segments: Annotated[list[DraftSegment], Field(max_length=1000)]
    base: str | None = None
    revision: int | None = None


class DraftConflictError(ConflictError):
    """The draft was changed since its revision that a change is based on.

    Attributes
    ----------
    draft : dict
        The draft as it is kept.
    """

    def __init__(self, draft: dict[str, Any]) -> None:
        super().__init__(f"The draft was changed in another window at {draft['saved_at']}.")
        self.draft = draft


class DraftStore:
    """Drafts in files of a folder, which is made with the first one.

    Parameters
    ----------
    folder : Path
        Folder of the server's workspace.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def get(self, image: str, reader: str) -> dict[str, Any] | None:
        """Return an annotator's draft of an image, with `revision`, `saved_at` and `by`; None where there is none."""
        try:
            return _read(self._file(image, reader))
        except FileNotFoundError:
            return None

    def newest(self, image: str) -> dict[str, Any] | None:
        """Return the draft of an image that was kept last, whoever's it is; None where there is none."""
        files = self._folder.glob(f"{_digest(image)}-*.json")
        newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
        return None if newest is None else _read(newest)

    def keep(self, image: str, reader: str, draft: Draft) -> dict[str, Any]:
        """Keep a draft, and return it as it was read back.

        Raises
        ------
        DraftConflictError
            If another one is kept than that of the draft's revision.
        StorageError
            If what was read back is not what was written.
        """
        with self._lock:
            before = self.get(image, reader)
            revision = None if before is None else before["revision"]
            if before is not None and draft.revision != revision:
                raise DraftConflictError(before)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            made = draft.model_dump(mode="json") | {"revision": (revision or 0) + 1, "saved_at": now, "by": reader}
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self._file(image, reader)
            write_text(file, json.dumps(made, separators=(",", ":")), mode=PRIVATE)
            kept = self.get(image, reader)
            if kept != made:
                raise StorageError(f"The draft of image {image!r} was not read back as it was written.", full=False)
            return made

    def drop(self, image: str, reader: str) -> None:
        """Remove an annotator's draft of an image, if there is one."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._file(image, reader).unlink()

    def _file(self, image: str, reader: str) -> Path:
        return self._folder / f"{_digest(image)}-{_digest(reader)}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        raise StorageError(f"A draft cannot be read: its file {file.name} is damaged.", full=False) from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
