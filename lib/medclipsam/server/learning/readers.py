"""Labels of several people on one image: who is shown which, how well they agree, and what became of them.

The labels lie with the studies: the present final label and the versions before it. Nobody who reads an image that
several people read sees the labels of others before there is a consensus.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medclipsam.base.files import file_sha256
from medclipsam.exchange.consensus import agreement, least_agreement
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.base.errors import ConflictError, ForbiddenError, UnknownError
from medclipsam.server.learning.rounds import Rounds
from medclipsam.server.studies.datastore import FINAL, Datastore
from medclipsam.server.studies.exchange import read_reading
from medclipsam.server.studies.images import ImageReader
from medclipsam.studies.final import ANONYMOUS, CONSENSUS, SAVED_BY, is_consensus, readings_among


@dataclass(frozen=True)
class Reading:
    """The label of one reader of an image.

    Attributes
    ----------
    reader : str
    file : Path
    info : dict
        What is kept with it.
    """

    reader: str
    file: Path
    info: dict[str, Any]

    @property
    def version(self) -> str:
        """What tells it from all other labels of the image."""
        return version_of(self.file, self.info)

    @property
    def saved(self) -> str | None:
        """When it was saved, ISO 8601; None where that is not known."""
        return iso_time(self.info.get("ts"))


class Readers:
    """The readers of images.

    Parameters
    ----------
    rounds : Rounds
        Knows who is to read which image.
    datastore : callable
        Returns the studies.
    images : ImageReader
    table : mapping of str to int
        The server's own labels.
    """

    def __init__(
        self, rounds: Rounds, datastore: Callable[[], Datastore], images: ImageReader, table: Mapping[str, int]
    ) -> None:
        self._rounds = rounds
        self._table = table
        self._datastore = datastore
        self._images = images

    def readings(self, image: str) -> dict[str, Reading]:
        """Return the last label of each reader of an image, by the reader."""
        kept = self._datastore().final_labels(image)
        return {
            reader: Reading(reader, *kept[place])
            for reader, place in readings_among([info for _, info in kept]).items()
        }

    def label_maps(self, image: str) -> dict[str, LabelMap]:
        """Return the label map of each reader of an image."""
        read = self._images.read(Path(self._datastore().get_image_uri(image)))
        return {
            reader: read_reading(reading.file, reading.info, read, self._table)
            for reader, reading in self.readings(image).items()
        }

    def is_blind(self, image: str) -> bool:
        """Return whether whoever opens an image is shown no label but their own.

        It is where several people read it, by assignment, by the share of second reads, or since they have done so, and
        there is no consensus yet.
        """
        store = self._datastore()
        if is_consensus(store.get_label_info(image, FINAL)):
            return False
        return self._rounds.is_read_by_several(image) or len(self.readings(image)) > 1

    def shown_to(self, image: str, reader: str, *, sees_all: bool = False) -> tuple[Path, dict[str, Any]] | None:
        """Return file and info of the final label that somebody is shown; None where there is none for them.

        Parameters
        ----------
        image, reader : str
            The image, and who opens it; a person who cannot be told from others is shown the final label.
        sees_all : bool
            Whether it is the final label whoever has read the image.
        """
        kept = self._datastore().final_labels(image)
        if not kept:
            return None
        if sees_all or reader == ANONYMOUS or not self.is_blind(image):
            return kept[-1]
        own = self.readings(image).get(reader)
        return None if own is None else (own.file, own.info)

    def check_adjudicator(self, image: str, reviewer: str) -> dict[str, Reading]:
        """Return the readings of an image that somebody may adjudicate.

        Raises
        ------
        UnknownError
            If there are not two readers.
        ForbiddenError
            If the reviewer is one of the readers.
        """
        readings = self.readings(image)
        if len(readings) < 2:
            raise UnknownError(f"Image {image!r} has labels of {len(readings)} readers; a consensus takes two.")
        if reviewer in readings:
            raise ForbiddenError(f"{reviewer} has read image {image!r}, and cannot adjudicate it too.")
        return readings

    def may_adjudicate(self, image: str, reviewer: str) -> bool:
        """Return whether an image waits for a consensus, and somebody is none of its readers."""
        return self._datastore().waits_for_consensus(image) and reviewer not in self.readings(image)

    def state(self, image: str, *, distances: bool = True) -> dict[str, Any]:
        """Return who has read an image, how well they agree, and whether there is a consensus; JSON-able.

        Parameters
        ----------
        image : str
        distances : bool
            Whether to measure the Hausdorff distances.
        """
        readings = self.readings(image)
        info = self._datastore().get_label_info(image, FINAL)
        settled = is_consensus(info)
        assigned = self._rounds.ledger.assignments(image=image) if self._rounds.is_used else []
        found = agreement(self.label_maps(image), distances=distances) if len(readings) > 1 else {}
        return {
            "image": image,
            "waiting": len(readings) > 1 and not settled,
            "readers": [
                {"reader": each.reader, "saved": each.saved, "version": each.version} for each in readings.values()
            ],
            "pending": [each.reader for each in assigned if each.reader not in readings],
            "dice": least_agreement(found),
            "structures": {name: asdict(structure) for name, structure in found.items()},
            "consensus": _told(info) if settled else None,
        }

    def check_seen(self, image: str, seen: Mapping[str, str] | None) -> None:
        """Raise `ConflictError` where the readings of an image are others than those that were seen, by version."""
        now = {reader: reading.version for reader, reading in self.readings(image).items()}
        if seen is not None and dict(seen) != now:
            raise ConflictError(f"A reader of image {image!r} has saved meanwhile; look at the labels again.")


def version_of(file: Path, info: Mapping[str, Any]) -> str:
    """Return what tells a label from all other labels of its image."""
    return str(info.get("SOPInstanceUID") or file_sha256(file)[:32])


def iso_time(seconds: Any) -> str | None:
    """Return a time as ISO 8601 in UTC; None where it is none."""
    if not isinstance(seconds, (int, float)):
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _told(info: Mapping[str, Any]) -> dict[str, Any]:
    made = info.get(CONSENSUS)
    return {"by": info.get(SAVED_BY), "saved": iso_time(info.get("ts")), **(made if isinstance(made, dict) else {})}
