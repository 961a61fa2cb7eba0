"""Reading the images of requests; the last one is kept, since an annotator works on one image for a while."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from medclipsam.errors import ImageError
from medclipsam.imaging import read_image

if TYPE_CHECKING:
    from medclipsam.imaging import MedicalImage

# What tells whether a file, or any file of a folder, is another than it was: name, time of change and size.
Signature = tuple[tuple[str, int, int], ...]


class ImageReader:
    """Reads image files and series folders, and keeps the last image in memory; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[tuple[str, str | None, Signature], MedicalImage] | None = None

    def read(self, path: Path, modality: str | None = None) -> MedicalImage:
        """Return the image of a file or series folder, see `medclipsam.imaging.read_image`.

        Raises
        ------
        ImageError
            If it cannot be read; the sentence names the file, and not where the server keeps it.
        """
        try:
            key = (str(path), modality, signature(path))
            with self._lock:
                if self._last is not None and self._last[0] == key:
                    return self._last[1]
            image = read_image(path, modality=modality)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), path.name)) from None
        with self._lock:
            self._last = (key, image)
        return image


def series_as_volume(folder: Path, image: str) -> Path:
    """Write a series as ITK reads it, on the grid that masks have too, to a temporary file that the caller removes.

    Raises
    ------
    ImageError
        If ITK cannot read the series.
    """
    import SimpleITK

    handle, name = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    path = Path(name)
    try:
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        SimpleITK.WriteImage(SimpleITK.ReadImage(files), name)
    except RuntimeError:
        path.unlink(missing_ok=True)
        raise ImageError(f"Image {image!r} is a series that cannot be made one volume; read its DICOM files.") from None
    return path


def is_upload(path: Path) -> bool:
    """Return whether a path is one that the infer route makes for a file sent along."""
    folder = Path(tempfile.gettempdir()).resolve()
    return path.parent == folder and path.name.startswith(tempfile.gettempprefix())


def signature(path: Path) -> Signature:
    """Return what changes with the content of a file or series folder.

    Raises
    ------
    ImageError
        If it cannot be looked at.
    """
    try:
        if not path.is_dir():
            return (_entry(path.name, path.stat()),)
        with os.scandir(path) as files:
            return tuple(sorted(_entry(file.name, file.stat()) for file in files if file.is_file()))
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _entry(name: str, state: os.stat_result) -> tuple[str, int, int]:
    return name, state.st_mtime_ns, state.st_size
