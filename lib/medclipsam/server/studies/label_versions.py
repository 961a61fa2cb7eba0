"""Labels that others have taken the place of, kept beside the labels, so that a save destroys nobody's work."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclipsam.base.files import atomic_write, write_text
from medclipsam.server.base.errors import UnknownError
from medclipsam.studies.final import LABEL_VERSIONS, REMOVED, SAVED_BY

# Versions of one label that are kept.
MAX_VERSIONS = 20


@dataclass(frozen=True)
class LabelVersion:
    """An earlier version of a label.

    Attributes
    ----------
    number : int
        From 1, in the order in which versions were superseded.
    path : Path
        Its file, as it was.
    info : dict
        What was kept with it.
    """

    number: int
    path: Path
    info: dict[str, Any]

    @property
    def saved_by(self) -> str:
        """Who saved it; "" for a mask of a model or a file from elsewhere."""
        return str(self.info.get(SAVED_BY) or "")


class LabelVersions:
    """Earlier versions of labels: `labels/.versions/<tag>/<image id>/<number><extension>` and `<number>.json`.

    Parameters
    ----------
    labels : Path
        The folder of labels.
    make_folder : callable
        Makes a folder with the rights of those of labels.
    """

    def __init__(self, labels: Path, make_folder: Callable[[Path], None]) -> None:
        self._root = labels / LABEL_VERSIONS
        self._make_folder = make_folder

    def of(self, image_id: str, tag: str) -> list[LabelVersion]:
        """Return the versions of an image's label, the earliest first."""
        found = []
        folder = self._root / tag / image_id
        for file in folder.iterdir() if folder.is_dir() else ():
            number = file.name.partition(".")[0]
            if number.isdigit() and file.suffix != ".json":
                found.append(LabelVersion(int(number), file, _info(folder / f"{number}.json")))
        return sorted(found, key=lambda version: version.number)

    def get(self, image_id: str, tag: str, number: int) -> LabelVersion:
        """Return a version.

        Raises
        ------
        UnknownError
            If it is not kept.
        """
        versions = self.of(image_id, tag)
        for version in versions:
            if version.number == number:
                return version
        kept = ", ".join(str(version.number) for version in versions) or "none"
        raise UnknownError(f"Version {number} of the label {image_id!r} is not here; versions that are kept: {kept}.")

    def keep(
        self,
        image_id: str,
        tag: str,
        file: Path,
        suffix: str,
        info: Mapping[str, Any],
        by: Path | None,
        reader: object = None,
    ) -> list[Path]:
        """Keep a label that is about to be replaced or removed.

        Parameters
        ----------
        image_id, tag : str
        file : Path
            The label.
        suffix : str
            The end of its name that tells its format.
        info : mapping
            What is kept with it.
        by : Path or None
            What takes its place; None where it is removed.
        reader : str, optional
            Who saves what takes its place; the same content by the same person supersedes nothing.

        Returns
        -------
        list of Path
            The files that were made.
        """
        if by is not None and info.get(SAVED_BY) == reader and filecmp.cmp(file, by, shallow=False):
            return []
        if by is None:
            info = {**info, REMOVED: True}
        versions = self.of(image_id, tag)
        number = f"{versions[-1].number + 1 if versions else 1:06d}"
        folder = self._root / tag / image_id
        for each in (self._root, folder.parent, folder):
            self._make_folder(each)
        mode, note = file.stat().st_mode & 0o777, json.dumps(info, default=str)
        made = [folder / f"{number}.json", folder / f"{number}{suffix}"]
        write_text(made[0], note, mode=mode)
        with atomic_write(made[1], mode=mode) as temporary:
            shutil.copyfile(file, temporary)
        self._drop_surplus(self.of(image_id, tag))
        return made

    def parts(self) -> list[Path]:
        """Return the files that are not complete: those of a process that was killed, where none writes now."""
        return list(self._root.glob("*/*/.*"))

    def forget(self, image_id: str) -> None:
        """Remove all versions of the labels of an image."""
        for tag in self._root.iterdir() if self._root.is_dir() else ():
            shutil.rmtree(tag / image_id, ignore_errors=True)

    def _drop_surplus(self, versions: list[LabelVersion]) -> None:
        """Remove the earliest versions of whoever has most, so that nobody pushes out the work of others."""
        while len(versions) > MAX_VERSIONS:
            counts = Counter(version.saved_by for version in versions)
            surplus = next(each for each in versions if counts[each.saved_by] == max(counts.values()))
            versions.remove(surplus)
            for file in (surplus.path, surplus.path.with_name(f"{surplus.path.name.partition('.')[0]}.json")):
                with suppress(FileNotFoundError):
                    file.unlink()


def _info(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        told = json.loads(file.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    return {}
