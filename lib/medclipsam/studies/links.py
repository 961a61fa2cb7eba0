"""Folders that hold the files of one image and nothing else, for images whose files are among others."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from medclipsam.imaging.dicom_frames import write_choice
from medclipsam.studies.scan import Found


class LinkedFolders:
    """Makes such folders of links, and removes them when the process ends; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[tuple[str, tuple[Path, ...]], Path] = {}

    def known_path_of(self, found: Found) -> Path | None:
        """Return what `path_of` returns; None where it has to make a folder first."""
        if found.alone:
            return found.path
        with self._lock:
            return self._folders.get((found.image_id, found.files))

    def path_of(self, found: Found) -> Path:
        """Return what `read_image` reads an image from: its file, its folder, or a folder of links to its files."""
        if found.alone:
            return found.path
        with self._lock:
            key = (found.image_id, found.files)
            folder = self._folders.get(key)
            if folder is None or not folder.is_dir():
                place = Path(tempfile.mkdtemp(prefix="series-"))
                atexit.register(shutil.rmtree, place, ignore_errors=True)
                folder = self._folders[key] = place / found.image_id
                folder.mkdir()
                link_files(found.files, folder, found.volume)
            return folder


def link_files(files: Sequence[Path], folder: Path, volume: str = "") -> None:
    """Put links to files into a folder.

    Parameters
    ----------
    files : sequence of Path
    folder : Path
        Must be there.
    volume : str
        Key of the volume of the only file that the folder stands for, where the file holds several.
    """
    for number, file in enumerate(files):
        _link(file, folder / f"{number:05d}_{file.name}")
    if volume:
        write_choice(folder, volume, like=files[0])


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except (OSError, NotImplementedError):  # Windows allows links to some users only
        shutil.copyfile(file, link)
