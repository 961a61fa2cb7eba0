"""Labels in files, and what is known of them in one more: written so that none is ever half there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag

from medclipsam.errors import InputError
from medclipsam.server.http import UnknownError
from medclipsam.studies.scan import SUFFIXES

logger = logging.getLogger(__name__)

# Raises `InputError` for a label that must not be saved: the image's file or folder, the label's file, and what comes
# with it. Returns what a copy of the file is held against before it takes its place: it raises where they differ.
CheckLabel = Callable[[Path, Path, dict[str, Any]], Callable[[Path], object] | None]

CONFIG = "datastore_v2.json"


class LabelFiles(LocalDatastore):
    """What the datastores share: `labels/<tag>/<image id><extension>` and `datastore_v2.json` as MONAI Label has them.

    The stock constructor lists, watches and writes in its own way; `_begin` takes its place.
    """

    def _begin(self, folder: Path, *, private: bool = False) -> None:
        """Set the stock class's fields for a folder, and make the folders of labels in it.

        `private` keeps labels, and what is known of them, from all accounts but the server's own.
        """
        self._private = private
        self._datastore_path = str(folder)
        self._datastore_config_path = str(folder / CONFIG)
        self._extensions = [f"*{suffix}" for suffix in SUFFIXES]
        self._lock_file = str(folder / ".lock")
        self._datastore = self._empty()
        self._root = folder
        self._access = threading.RLock()
        self._stamp: tuple[int, int, int] | None = None
        logging.getLogger("filelock").setLevel(logging.ERROR)
        for tag in (DefaultLabelTag.FINAL.value, DefaultLabelTag.ORIGINAL.value):
            self._label_folder(tag)
        config = folder / CONFIG
        if private and config.is_file() and config.stat().st_mode & 0o077:
            config.chmod(self._mode)

    def corrections(self, label_id: str, label_tag: str) -> list[str]:
        """Return what was corrected or assumed when a label was saved, a sentence each."""
        label = self._datastore.label(label_id, label_tag)
        return list(label.info.get("corrections", [])) if label else []

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label.

        Raises
        ------
        UnknownError
            If there is no such label.
        """
        with self._changing():
            label = self._datastore.label(label_id, label_tag)
            if label is None:
                raise UnknownError(f"Image {label_id!r} has no label of the tag {label_tag!r}.")
            label.info.update(info)

    def _configuration_changed(self) -> None:
        """Called after `datastore_v2.json` was read because another process had written it."""

    def _empty(self) -> LocalDatastoreModel:
        model = LocalDatastoreModel(name="new-dataset", description="New Dataset", images_dir=".")
        model.base_path = self._datastore_path
        return model

    @property
    def _mode(self) -> int:
        """Rights of files that are kept in the studies, whatever the umask is."""
        return 0o600 if self._private else self._root.stat().st_mode & 0o666

    def _label_folder(self, tag: str) -> Path:
        """Return the folder of a tag's labels, made where it is not there."""
        folder = self._root / self._datastore.labels_dir / tag
        rights = 0o700 if self._private else self._root.stat().st_mode & 0o777
        for each in (folder.parent, folder):
            made = not each.is_dir()
            if made:
                each.mkdir(0o700, exist_ok=True)
            # a folder that others could read before hides the labels in it too
            if made or (self._private and each.stat().st_mode & 0o077):
                each.chmod(rights)
        return folder

    def _label_path(self, image_id: str, tag: str, suffix: str) -> str:
        return os.path.join(self._datastore.label_path(tag), f"{image_id}{suffix}")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change what is known while no other thread or process does, and write it."""
        with self._access, FileLock(self._lock_file):
            self._read_config()
            yield
            self._write_config()

    def _read_config(self, strict: bool = False) -> None:
        """Read `datastore_v2.json` if it is another than the one that was read or written last."""
        path = Path(self._datastore_config_path)
        try:
            state = path.stat()
            stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
            if stamp == self._stamp:
                return
            model = LocalDatastoreModel.model_validate_json(path.read_text())
        except FileNotFoundError:
            return
        except ValueError as error:
            if strict:
                raise InputError(f"{path} cannot be read; mend it, or move it away to begin a new one.") from error
            logger.error("%s cannot be read; what was known before stands.", path.name)
            return
        model.base_path = self._datastore_path
        # ids are written with composed characters, which earlier versions took from the disk as they were
        model.objects = {unicodedata.normalize("NFC", name): entry for name, entry in model.objects.items()}
        for image_id, entry in self._datastore.objects.items():
            # what is in memory only
            model.objects.setdefault(image_id, entry)
            if "strategy" in entry.image.info:
                model.objects[image_id].image.info.setdefault("strategy", entry.image.info["strategy"])
        self._datastore, self._stamp = model, stamp
        self._configuration_changed()

    def _write_config(self) -> None:
        path = Path(self._datastore_config_path)
        content = self._datastore.model_dump(exclude={"base_path", "objects"})
        # of the other images nothing is known but what the folder says itself
        content["objects"] = {
            image_id: entry.model_dump()
            for image_id, entry in self._datastore.objects.items()
            if entry.labels or entry.image.info.keys() - {"ts", "name", "file"}
        }
        handle, name = tempfile.mkstemp(dir=self._root, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=2, default=str)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, self._mode)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
        state = path.stat()
        self._stamp = (state.st_ino, state.st_mtime_ns, state.st_size)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write what is known: the stock `set_name` and `set_description` call it."""
        if not lock:
            self._write_config()
            return
        with self._access, FileLock(self._lock_file):
            self._write_config()


def copy_file(source: Path, target: Path, mode: int, check: Callable[[Path], object] | None = None) -> None:
    """Copy a file so that it appears under its name only when complete.

    Parameters
    ----------
    source, target : Path
    mode : int
        Rights of the copy.
    check : callable, optional
        Called with the copy under its temporary name, which ends as the target's does. Where it raises, the file that
        was there before stays.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=label_suffix(target.name))
    os.close(handle)
    try:
        shutil.copyfile(source, name)
        os.chmod(name, mode)
        if check is not None:
            check(Path(name))
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def label_suffix(name: str) -> str:
    """Return the end of a file's name that tells a format that is read; empty where it tells none."""
    end = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[len(name) - len(end) :]
