"""Segmentations that were sent to the DICOMweb server and that it does not list yet.

A server may answer a store late, not at all, or before its searches know of it. A segmentation is noted here before it
is sent, so that one that appears later, after a restart too, is known by its UID. Its file is kept here until the
server has returned the same, and those that it returns changed are noted for good.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from medclipsam.base.files import PRIVATE, write_json
from medclipsam.imaging.dicom_seg import Reference
from medclipsam.imaging.write import replace_file

logger = logging.getLogger(__name__)

# Seconds after which a server that does not list a segmentation never will.
KEPT_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class SentLabel:
    """A segmentation that was sent.

    Parameters
    ----------
    image : str
        Id of the image that it was drawn on.
    study : str
        Its StudyInstanceUID.
    reference : Reference
        Its series, instance and number.
    when : str
        Content date and time, as DICOM writes them.
    supersedes : tuple of str
        SOP Instance UIDs of the segmentations that it takes the place of.
    confirmed : bool
        Whether the server has said, or shown, that it is stored.
    since : float
        Time at which it was sent, in seconds since the epoch.
    wrong : bool
        Whether the server has returned something else than was sent; such a segmentation is never a label.
    """

    image: str
    study: str
    reference: Reference
    when: str
    supersedes: tuple[str, ...] = ()
    confirmed: bool = False
    since: float = dataclasses.field(default_factory=time.time)
    wrong: bool = False


class SentLabels:
    """The segmentations that were sent, in a file that several processes may use.

    Parameters
    ----------
    path : Path
        The file; made with the first entry.
    copies : Path
        Folder of the files that were sent and have not been read back yet; made with the first one.
    """

    def __init__(self, path: Path, copies: Path) -> None:
        self._path = path
        self._copies = copies
        self._lock = FileLock(f"{path}.lock")

    def all(self) -> list[SentLabel]:
        """Return those that are not forgotten, in the order in which they were sent."""
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            sent = [_from_json(entry) for entry in entries]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError):
            # kept for whoever looks into it: the next entry would overwrite it
            with contextlib.suppress(OSError):
                os.replace(self._path, self._path.with_suffix(".damaged"))
            logger.error("%s is damaged; which segmentations were sent is not known.", self._path.name)
            return []
        oldest = time.time() - KEPT_SECONDS
        return [each for each in sent if each.since > oldest or each.wrong]

    def add(self, label: SentLabel, file: Path) -> None:
        """Note a segmentation that is about to be sent, and keep a copy of its file."""
        self._copies.mkdir(mode=0o700, exist_ok=True)
        copy = self._copy(label.reference.instance)
        replace_file(copy, ".dcm", lambda path: shutil.copyfile(file, path))
        try:
            with self._lock:
                self._write([*self.all(), label])
        except BaseException:
            copy.unlink(missing_ok=True)
            raise

    def unread(self, instance: str) -> Path | None:
        """Return the copy of a segmentation that the server has not returned yet; None where there is none."""
        copy = self._copy(instance)
        return copy if copy.is_file() else None

    def returned(self, instance: str, supersedes: Iterable[str] = ()) -> None:
        """Note that the server has returned a segmentation as it was sent; those before it need no longer be read."""
        for each in (instance, *supersedes):
            self._copy(each).unlink(missing_ok=True)

    def reject(self, label: SentLabel) -> None:
        """Note for good that the server has stored something else than was sent."""
        self._copy(label.reference.instance).unlink(missing_ok=True)
        with self._lock:
            others = [each for each in self.all() if each.reference.instance != label.reference.instance]
            self._write([*others, dataclasses.replace(label, wrong=True)])

    def confirm(self, instance: str) -> None:
        """Note that a segmentation is stored; those that it takes the place of need no longer be known."""
        with self._lock:
            sent = self.all()
            settled = {name for each in sent if each.reference.instance == instance for name in each.supersedes}
            self._write(
                dataclasses.replace(each, confirmed=each.confirmed or each.reference.instance == instance)
                for each in sent
                if each.wrong or each.reference.instance not in settled
            )

    def forget(self, instances: Collection[str]) -> None:
        """Forget segmentations that the server lists."""
        if not any(each.reference.instance in instances and not each.wrong for each in self.all()):
            return
        with self._lock:
            self._write(each for each in self.all() if each.wrong or each.reference.instance not in instances)

    def refused(self, instance: str) -> None:
        """Forget a segmentation that the server has refused."""
        self._copy(instance).unlink(missing_ok=True)
        self.forget({instance})

    def _copy(self, instance: str) -> Path:
        return self._copies / f"{instance}.dcm"

    def _write(self, sent: Iterable[SentLabel]) -> None:
        write_json(self._path, [dataclasses.asdict(each) for each in sent], mode=PRIVATE)


def _from_json(entry: dict[str, Any]) -> SentLabel:
    return SentLabel(
        **{**entry, "reference": Reference(**entry["reference"]), "supersedes": tuple(entry["supersedes"])}
    )
