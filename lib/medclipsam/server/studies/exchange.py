"""A studies folder as the place that label sets are imported into."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.label_map import LabelMap, read_kept_label
from medclipsam.server.studies.datastore import FINAL
from medclipsam.server.studies.folder import FolderStudies
from medclipsam.server.studies.labels import ReceivedLabel
from medclipsam.studies.final import is_by_person, readings_among


def read_reading(
    file: Path, info: Mapping[str, Any], image: MedicalImage, table: Mapping[str, int] | None = None
) -> LabelMap:
    """Return a final label with the names that are kept with it.

    Parameters
    ----------
    file : Path
    info : mapping
        What is kept with it.
    image : MedicalImage
    table : mapping of str to int, optional
        Names of values that the label holds and that are kept without one; by default "label 7".
    """
    label = read_kept_label(file, image, info)
    known = {value: name for name, value in (table or {}).items() if name not in label.names}
    more = {known.get(value, f"label {value}"): value for value in label.unnamed()}
    return replace(label, names={**label.names, **more})


class FolderLabelStore:
    """The labels of a studies folder; a `medclipsam.exchange.LabelStore`.

    Parameters
    ----------
    folder : Path
        The studies. A server may use them at the same time.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"Studies {folder} is not a folder.")
        self._root = folder
        self._store = FolderStudies(folder, settle=0)

    def images(self) -> Mapping[str, Path]:
        """Return the file or series folder of each image by its id."""
        return {name: Path(self._store.get_image_uri(name)) for name in self._store.list_images()}

    def label(self, image_id: str, image: MedicalImage) -> tuple[LabelMap, dict[str, Any]] | None:
        """Return an image's final label and what is kept with it; None where there is none of a person.

        Of several readers' labels without a consensus it is that of the last one, see `waits_for_consensus`.
        """
        path, info = self._store.get_label_uri(image_id, FINAL), self._store.get_label_info(image_id, FINAL)
        if not path or not is_by_person(info):
            return None
        return read_kept_label(path, image, info), info

    def readings(self, image_id: str, image: MedicalImage) -> dict[str, LabelMap]:
        """Return the last final label of each reader of an image, by the reader; a consensus is none's.

        Raises
        ------
        InputError
            If a label cannot be read any more.
        """
        kept = self._store.final_labels(image_id)
        return {
            reader: read_reading(*kept[place], image)
            for reader, place in readings_among([info for _, info in kept]).items()
        }

    def count_readers(self, image_id: str) -> int:
        """Return of how many people a final label of an image counts."""
        return len(readings_among([info for _, info in self._store.final_labels(image_id)]))

    def waits_for_consensus(self, image_id: str) -> bool:
        """Return whether several people have labelled an image, and no consensus was made since."""
        return self._store.waits_for_consensus(image_id)

    def save(self, image_id: str, label: LabelMap, info: Mapping[str, Any]) -> None:
        """Save a final label in place of the one before, read back and compared."""
        path = Path(self._store.get_image_uri(image_id))
        self._store.keep_label(image_id, FINAL, ReceivedLabel(path, label, {**info, **label.to_monailabel()}))

    def remove(self, image_id: str) -> None:
        """Remove an image's final label."""
        self._store.remove_label(image_id, FINAL)

    def add_image(self, image_id: str, path: Path) -> str:
        """Copy an image into the studies: a file, or the folder of a series; return its id there."""
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if len(files) == 1:
            return self._store.add_image(image_id, str(files[0]), {})
        folder = self._root / image_id
        before = set(self._store.list_images())
        try:
            shutil.copytree(path, folder)
        except OSError as error:
            raise InputError(f"The image {image_id} cannot be copied to {folder}: {error}.") from error
        self._store.refresh()
        added = set(self._store.list_images()) - before
        if len(added) != 1:
            shutil.rmtree(folder)
            self._store.refresh()
            raise InputError(f"The files of {image_id} are {len(added)} images when they are copied; allowed: one.")
        return added.pop()

    def remove_image(self, image_id: str) -> None:
        """Remove an image that `add_image` has added."""
        self._store.remove_image(image_id)
