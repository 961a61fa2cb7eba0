"""Labels in files, and what is known of them in one more: written so that none is ever half there."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from medclipsam.base.errors import InputError
from medclipsam.base.files import atomic_write
from medclipsam.base.formats import STUDY_LABEL_SUFFIXES, suffix_of
from medclipsam.imaging.dicom_frames import VOLUME_FILE
from medclipsam.server.base.errors import BusyError, UnknownError
from medclipsam.server.studies.datastore import FINAL, ORIGINAL, Datastore, FileRecord, ImageRecord, StudiesRecord
from medclipsam.server.studies.folder_lock import FolderLock
from medclipsam.server.studies.kept_info import merged_label_info
from medclipsam.server.studies.label_versions import LabelVersion, LabelVersions
from medclipsam.studies.final import SAVED_BY, waits_for_consensus
from medclipsam.studies.find import LABELS

logger = logging.getLogger(__name__)
# it writes a line each time that a lock is taken or released
logging.getLogger("filelock").setLevel(logging.ERROR)

CONFIG = "datastore_v2.json"
# How names begin that files have until they are complete; all such are written under the lock.
_PART = ".medclipsam-part-"
# Seconds to wait for the lock before what a killed process has left is removed.
_PATIENCE = 1.0


class LabelFiles(Datastore):
    """What the datastores share: `labels/<tag>/<image id><extension>` and `datastore_v2.json` as MONAI Label has them.

    Parameters
    ----------
    folder : Path
        Where they are kept; the folders of labels are made in it.
    private : bool
        Whether labels, and what is known of them, are kept from all accounts but the server's own.
    """

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        self._private = private
        self._config = folder / CONFIG
        self._folder_lock = FolderLock(folder / ".lock")
        self._versions = LabelVersions(folder / LABELS, self._make_folder)
        self._datastore = StudiesRecord(name="new-dataset", description="New Dataset", images_dir=".")
        self._root = folder
        self._access = threading.RLock()
        self._stamp: tuple[int, int, int] | None = None
        for tag in (FINAL, ORIGINAL):
            self._label_folder(tag)
        if private and self._config.is_file() and self._config.stat().st_mode & 0o077:
            self._config.chmod(self._mode)

    def name(self) -> str:
        """Return the datastore's name."""
        return self._datastore.name

    def get_image(self, image_id: str, params: Any = None) -> BinaryIO | None:
        """Return an image as one file; None where there is none."""
        return content_of(self.get_image_uri(image_id))

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> BinaryIO | None:
        """Return a label's file; None where there is none."""
        return content_of(self.get_label_uri(label_id, label_tag))

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label's file; empty where there is none."""
        label = self._datastore.label(label_id, label_tag)
        return os.path.realpath(self._label_path(label_id, label_tag, label.ext)) if label else ""

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label; empty where there is none."""
        return self.kept_label_info(label_id, label_tag)

    def kept_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label without asking another server; empty where nothing is."""
        label = self._datastore.label(label_id, label_tag)
        return label.info if label else {}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the image's id for each tag that it has a label of."""
        record = self._datastore.objects.get(image_id)
        return dict.fromkeys(record.labels, image_id) if record else {}

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return a ZIP archive, which the caller removes, of finished images and their labels.

        Parameters
        ----------
        limit_cases : int or None
            Images at the most; None or 0 for all of them.

        Returns
        -------
        str
            Its path. It holds `image/<file>`, or `image/<folder>/<file>` for slices, `label/<file>` and
            `metadata.json`.
        """
        pairs = self.datalist()[: limit_cases or None]
        handle, name = tempfile.mkstemp(suffix=".zip")
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for pair in pairs:
                    image = Path(pair["image"])
                    if image.is_dir():
                        for part in sorted(image.iterdir()):
                            if part.name.startswith(".") and part.name != VOLUME_FILE:
                                continue
                            archive.write(part, f"image/{image.name}/{part.name}")
                    else:
                        archive.write(image, f"image/{image.name}")
                    archive.write(pair["label"], f"label/{Path(pair['label']).name}")
                archive.writestr("metadata.json", self._datastore.model_dump_json())
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return name

    def not_ready(self) -> str | None:
        """Return why labels cannot be saved at the moment; None where they can."""
        return "the studies folder is locked by another program" if self._folder_lock.is_foreign() else None

    def _remove_parts(self) -> None:
        """Remove files that a process was killed in the middle of; nothing where another process writes just now."""
        labels = self._root / self._datastore.labels_dir
        with suppress(OSError, BusyError), FolderLock(self._root / ".lock", _PATIENCE).held():
            for left in (*self._root.glob(f"{_PART}*"), *labels.glob(f"*/{_PART}*"), *self._versions.parts()):
                left.unlink(missing_ok=True)

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
        with self._changing(label_id):
            label = self._datastore.label(label_id, label_tag)
            if label is None:
                raise UnknownError(f"Image {label_id!r} has no label of the tag {label_tag!r}.")
            label.info = merged_label_info(label.info, info)

    def _configuration_changed(self) -> None:
        """Called after `datastore_v2.json` was read because another process had written it."""

    @property
    def _mode(self) -> int:
        """Rights of files that are kept in the studies, whatever the umask is."""
        return 0o600 if self._private else self._root.stat().st_mode & 0o666

    def _label_folder(self, tag: str) -> Path:
        """Return the folder of a tag's labels, made where it is not there."""
        folder = self._root / self._datastore.labels_dir / tag
        for each in (folder.parent, folder):
            self._make_folder(each)
        return folder

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of labels where it is not there, with the rights of the studies or private."""
        made = not folder.is_dir()
        if made:
            folder.mkdir(0o700, exist_ok=True)
        # a folder that others could read before hides the labels in it too
        if made or (self._private and folder.stat().st_mode & 0o077):
            folder.chmod(0o700 if self._private else self._root.stat().st_mode & 0o777)

    def _put_label(
        self,
        entry: ImageRecord,
        image_id: str,
        tag: str,
        suffix: str,
        write: Callable[[Path], object],
        info: Mapping[str, Any],
        files: FilesBefore,
    ) -> None:
        """Put a label in the place of the one that an image has under a tag, which is kept if it was a person's.

        `write` is called with a name that ends in `suffix`. Call it inside `_changing`.
        """
        path = self._label_folder(tag) / f"{image_id}{suffix}"

        files.keep(path)
        with atomic_write(path, mode=self._mode, prefix=_PART, suffix=suffix) as temporary:
            write(temporary)
            self._keep_versions(entry, image_id, tag, temporary, info, files)
        for other in self._files_of(entry, image_id, tag):
            if other != path:
                files.keep(other)
                other.unlink(missing_ok=True)
        entry.labels[tag] = FileRecord(info={**info, "ts": int(time.time()), "name": path.name}, ext=suffix)

    def _take_label(self, image_id: str, tag: str, files: FilesBefore) -> None:
        """Remove a label, which is kept as an earlier version if it was a person's. Call it inside `_changing`."""
        entry = self._datastore.objects.get(image_id)
        if entry is not None and tag in entry.labels:
            self._keep_versions(entry, image_id, tag, None, {}, files)
            path = self._label_path(image_id, tag, entry.labels.pop(tag).ext)
            files.keep(path)
            path.unlink(missing_ok=True)

    def _files_of(self, entry: ImageRecord, image_id: str, tag: str) -> list[Path]:
        """Return the files of a label: one, or several where some were put there by hand."""
        suffixes = [*STUDY_LABEL_SUFFIXES, *([entry.labels[tag].ext] if tag in entry.labels else [])]
        paths = [self._label_path(image_id, tag, suffix) for suffix in dict.fromkeys(suffixes)]
        return [path for path in paths if path.is_file()]

    def _keep_versions(
        self,
        entry: ImageRecord,
        image_id: str,
        tag: str,
        by: Path | None,
        info: Mapping[str, Any],
        files: FilesBefore,
    ) -> None:
        known = entry.labels.get(tag)
        kept = dict(known.info) if known is not None else {}
        instance = kept.get("SOPInstanceUID")
        if (tag != FINAL and SAVED_BY not in kept) or (instance and instance == info.get("SOPInstanceUID")):
            return
        for path in self._files_of(entry, image_id, tag):
            suffix = label_suffix(path.name)
            about = kept if known and suffix == known.ext else {}
            for made in self._versions.keep(image_id, tag, path, suffix, about, by, info.get(SAVED_BY)):
                files.made(made)

    def label_versions(self, image_id: str, tag: str) -> list[LabelVersion]:
        """Return the earlier versions of an image's label that are kept, the earliest first."""
        return self._versions.of(image_id, tag)

    def label_version(self, image_id: str, tag: str, number: int) -> LabelVersion:
        """Return an earlier version of an image's label.

        Raises
        ------
        UnknownError
            If it is not kept.
        """
        return self._versions.get(image_id, tag, number)

    def final_labels(self, image_id: str) -> list[tuple[Path, dict[str, Any]]]:
        """Return file and info of each final label that is kept of an image, the earliest first, the present one last.

        None where the image has no final label now.
        """
        path = self.get_label_uri(image_id, FINAL)
        if not path:
            return []
        before = [(version.path, version.info) for version in self.label_versions(image_id, FINAL)]
        return [*before, (Path(path), self.get_label_info(image_id, FINAL))]

    def waits_for_consensus(self, image_id: str) -> bool:
        """Return whether several people have labelled an image, and no consensus was made since."""
        info = self.get_label_info(image_id, FINAL)
        return bool(info) and waits_for_consensus(self._root / self._datastore.labels_dir, image_id, info)

    def _label_path(self, image_id: str, tag: str, suffix: str) -> Path:
        return self._root / self._datastore.labels_dir / tag / f"{image_id}{suffix}"

    @contextmanager
    def _changing(self, image_id: str | None = None) -> Iterator[FilesBefore]:
        """Change what is known while no other thread or process does, and write it.

        Parameters
        ----------
        image_id : str, optional
            The image whose entry changes. Where the block or the writing fails, its entry becomes what it was before.

        Yields
        ------
        FilesBefore
            Files that `keep` was called with become what they were before, too.

        Raises
        ------
        BusyError
            If another program holds the folder's lock.
        """
        # first the lock: who only reads does not wait for another process
        with self._folder_lock.held(), self._access, FilesBefore() as files:
            self._read_config()
            objects = self._datastore.objects
            before = copy.deepcopy(objects.get(image_id)) if image_id is not None else None
            try:
                yield files
                self._write_config()
            except BaseException:
                objects = self._datastore.objects
                if before is not None and image_id is not None:
                    objects[image_id] = before
                elif image_id is not None:
                    objects.pop(image_id, None)
                raise

    def _read_config(self, strict: bool = False) -> None:
        """Read `datastore_v2.json` if it is another than the one that was read or written last."""
        path = self._config
        try:
            state = path.stat()
            stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
            if stamp == self._stamp:
                return
            model = StudiesRecord.model_validate_json(path.read_text())
        except FileNotFoundError:
            return
        except ValueError as error:
            if strict:
                raise InputError(f"{path} cannot be read; correct it, or move it away to begin a new one.") from error
            logger.error("%s cannot be read; what was known before stands.", path.name)
            return
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
        content = self._datastore.model_dump(exclude={"objects"})
        # of the other images nothing is known but what the folder says itself
        content["objects"] = {
            image_id: entry.model_dump()
            for image_id, entry in self._datastore.objects.items()
            if entry.labels or entry.image.info.keys() - {"ts", "name", "file"}
        }
        with atomic_write(self._config, mode=self._mode, prefix=_PART) as temporary:
            temporary.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
        state = self._config.stat()
        self._stamp = (state.st_ino, state.st_mtime_ns, state.st_size)


class FilesBefore:
    """Files as they were before a change: where the block raises, they are put back."""

    def __init__(self) -> None:
        self._kept: list[tuple[Path, Path | None]] = []

    def keep(self, path: Path) -> None:
        """Keep a file that is about to be written, replaced or removed; one that is not there is removed again."""
        kept = None
        if path.is_file():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PART)
            os.close(handle)
            kept = Path(name)
            try:
                kept.unlink()
                os.link(path, kept)
            except OSError:  # the share has no hard links
                try:
                    shutil.copy2(path, kept)
                except BaseException:
                    kept.unlink(missing_ok=True)
                    raise
        self._kept.append((path, kept))

    def made(self, path: Path) -> None:
        """Have a file removed again that was not there before."""
        self._kept.append((path, None))

    def __enter__(self) -> FilesBefore:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for path, kept in reversed(self._kept):
            if kind is not None and kept is None:
                path.unlink(missing_ok=True)
            elif kind is not None and kept is not None:
                os.replace(kept, path)
            if kept is not None:
                # still there where it is a link to the very file that it would replace
                kept.unlink(missing_ok=True)


def copy_file(source: Path, target: Path, mode: int) -> None:
    """Copy a file so that it appears under its name only when complete, with the rights `mode`."""
    with atomic_write(target, mode=mode, prefix=_PART, suffix=label_suffix(target.name)) as temporary:
        shutil.copyfile(source, temporary)


def content_of(path: str | Path) -> BinaryIO | None:
    """Return a file's content; None for an empty path."""
    return io.BytesIO(Path(path).read_bytes()) if str(path) else None


def label_suffix(name: str) -> str:
    """Return the end of a label's name that tells its format, as it is written; empty where it tells none."""
    return name[len(name) - len(suffix_of(name, STUDY_LABEL_SUFFIXES)) :]
