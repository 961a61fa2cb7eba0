"""A studies folder as the place that label sets are imported into."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage, read_mask
from medclipsam.imaging.label_map import LabelMap, ValueNames
from medclipsam.server.studies.datastore import FINAL
from medclipsam.server.studies.folder import FolderStudies
from medclipsam.server.studies.labels import ReceivedLabel
from medclipsam.studies.final import is_by_person


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
        """Return an image's final label and what is kept with it; None where there is none of a person."""
        path, info = self._store.get_label_uri(image_id, FINAL), self._store.get_label_info(image_id, FINAL)
        if not path or not is_by_person(info):
            return None
        names = {name: value for value, name in ValueNames.from_monailabel(info).by_value().items()}
        return LabelMap(read_mask(path, image), image, names), info

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
