"""Reading the images of requests; the last one is kept, since an annotator works on one image for a while."""

from __future__ import annotations

import contextvars
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medclipsam.base.errors import ImageError
from medclipsam.imaging import read_image
from medclipsam.imaging.itk import to_itk
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.base.names import file_suffix

if TYPE_CHECKING:
    from medclipsam.imaging import MedicalImage
    from medclipsam.server.studies.datastore import Datastore

# What tells whether a file, or any file of a folder, is another than it was: name, time of change and size.
Signature = tuple[tuple[str, int, int], ...]

# Which of the kept images a read may take the place of.
_place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="foreground")


class ImageReader:
    """Reads image files and series folders, and keeps the last image in memory; safe to use from several threads.

    Background work reads inside `in_background`: it then has a place of its own in memory, so that it does not push
    out the image that an annotator works on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[tuple[str, str | None, Signature], MedicalImage]] = {}
        # what could be read and what could not, and as what
        self._read: dict[Path, Signature] = {}
        self._failed: dict[Path, tuple[Signature, str]] = {}

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Keep what this thread reads inside the block apart, and only until the block ends."""
        token = _place.set("background")
        try:
            yield
        finally:
            _place.reset(token)
            with self._lock:
                self._kept.pop("background", None)

    def read(self, path: Path, modality: str | None = None, *, temporary: bool = False) -> MedicalImage:
        """Return the image of a file or series folder, see `medclipsam.imaging.read_image`.

        Parameters
        ----------
        path : Path
            The file or folder.
        modality : str, optional
            DICOM modality, where the file does not say it.
        temporary : bool
            Whether the file is none of the studies and soon gone: whether it could be read is not noted.

        Raises
        ------
        ImageError
            If it cannot be read; the sentence names the file, and not where the server keeps it.
        """
        seen: Signature = ()
        try:
            seen = signature(path)
            key = (str(path), modality, seen)
            with self._lock:
                found = next((image for kept, image in self._kept.values() if kept == key), None)
            if found is not None:
                return found
            image = read_image(path, modality=modality)
        except ImageError as error:
            sentence = str(error).replace(str(path), path.name)
            if not temporary:
                with self._lock:
                    self._failed[path] = (seen, sentence)
            raise ImageError(sentence) from None
        with self._lock:
            self._failed.pop(path, None)
            if not temporary:
                self._read[path] = seen
            self._kept[_place.get()] = (key, image)
        return image

    def check(self, path: Path) -> None:
        """Raise `ImageError` if an image cannot be read; one that was read before and has not changed is not again."""
        with self._lock:
            known = self._read.get(path)
        if known is None or _changed(path, known):
            self.read(path)

    def failures(self) -> dict[Path, str]:
        """Return what could not be read and has not changed since: files and folders, and why."""
        with self._lock:
            failed = dict(self._failed)
        changed = [path for path, (found, _) in failed.items() if _changed(path, found)]
        with self._lock:
            for path in changed:
                self._failed.pop(path, None)
        return {path: sentence for path, (_, sentence) in failed.items() if path not in changed}


def unreadable_images(datastore: Datastore, images: ImageReader) -> dict[str, str]:
    """Return the images of a datastore that could not be fetched or read and have not changed since, and why."""
    failed = datastore.unfetched_images()
    for path, sentence in images.failures().items():
        image = datastore.image_at(path)
        if image is not None:
            failed[image] = sentence
    return dict(sorted(failed.items()))


def series_as_volume(image: MedicalImage) -> Path:
    """Write the volume that masks of a series are made on, to a temporary NIfTI file that the caller removes.

    Parameters
    ----------
    image : MedicalImage
        The series; its values are written in the modality's units.
    """
    import SimpleITK

    handle, name = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    try:
        values = image.stored_values()
        SimpleITK.WriteImage(to_itk(values, image.grid, vector=values.ndim == 4), name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def unknown_image(image: str, known: Callable[[str], bool]) -> UnknownError:
    """Return the error for an image id that is not among the studies; it says where only the extension is wrong.

    Parameters
    ----------
    image : str
        The id that was given.
    known : callable
        Returns whether an id is among the studies.
    """
    suffix = file_suffix(image)
    plain = image[: -len(suffix)] if suffix else image
    hint = f" An id has no extension; did you mean {plain!r}?" if plain not in ("", image) and known(plain) else ""
    return UnknownError(f"Image {image!r} is not among the studies.{hint}")


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


def _changed(path: Path, before: Signature) -> bool:
    try:
        return signature(path) != before
    except ImageError:
        # it went away: it may come back as it was
        return False


def _entry(name: str, state: os.stat_result) -> tuple[str, int, int]:
    return name, state.st_mtime_ns, state.st_size
