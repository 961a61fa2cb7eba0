"""Studies in a folder: MONAI Label's datastore with series as images, in sub-folders too, and safe writes."""

from __future__ import annotations

import copy
import os
import shutil
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.formats import suffix_of
from medclipsam.server.base.errors import ConflictError, UnknownError
from medclipsam.server.studies.datastore import FINAL, FileRecord, ImageRecord
from medclipsam.server.studies.images import unknown_image
from medclipsam.server.studies.kept_info import merged_image_info
from medclipsam.server.studies.label_files import CONFIG, LabelFiles, copy_file, label_suffix
from medclipsam.server.studies.labels import LabelReader, ReceivedLabel
from medclipsam.studies import scan
from medclipsam.studies.final import is_by_person
from medclipsam.studies.find import pin_of
from medclipsam.studies.links import LinkedFolders
from medclipsam.studies.scan import FolderScan, Found, Listing

# Seconds between two looks at the folder.
_LOOK_SECONDS = 1.0
# A look that takes more of the processor is nothing that a request waits for.
_LONG_LOOK_SECONDS = 0.05


class FolderStudies(LabelFiles):
    """Images of a folder and its sub-folders, and their labels.

    An image is a file, or the slices of one DICOM series in one folder, whatever else lies there. Labels are kept as
    MONAI Label keeps them: `labels/<tag>/<image id><extension>`, and what is known of them in `datastore_v2.json`.

    Parameters
    ----------
    folder : Path
        The studies.
    patterns : sequence of str, optional
        File names to list; by default every format that is read.
    labels : LabelReader, optional
        Reads the labels that are to be saved; where it is left out, files are kept as they are.
    auto_reload : bool
        Whether the folder is looked at again at each use; else only by `refresh`.
    settle : float, optional
        See `FolderScan`.
    private : bool
        Whether labels, and what is known of them, are for the account of the server alone; else whoever may read the
        folder of the studies may read them.

    Notes
    -----
    The list of images is never written: it is the folder's own. `datastore_v2.json` is written when a label or the
    information on an image changes, under a temporary name first, and after reading what another process has written.
    It keeps the entries of labelled images that are not there at the moment.
    """

    def __init__(
        self,
        folder: Path,
        patterns: Sequence[str] | None = None,
        *,
        labels: LabelReader | None = None,
        auto_reload: bool = True,
        settle: float | None = None,
        private: bool = False,
    ) -> None:
        super().__init__(folder, private=private)
        self._auto_reload = auto_reload
        self._labels = labels
        self._labels_stamp: dict[str, int] = {}
        self._looked = float("-inf")
        self._looking = threading.Lock()
        self._look_cost = 0.0
        self._listing = Listing()
        self._links = LinkedFolders()
        skip = {folder / self._datastore.labels_dir, folder / CONFIG}
        self._scan = FolderScan(folder, patterns, skip, scan.SETTLE_SECONDS if settle is None else settle)
        self._read_config(strict=True)
        self._remove_parts()
        self.refresh()

    def refresh(self) -> None:
        """Look at the folder and the labels."""
        with self._access:
            pins = {name: pin_of(entry.image.info) for name, entry in self._datastore.objects.items() if entry.labels}
        with self._looking:
            # of this thread: other work on the machine makes no folder large
            begun = time.thread_time()
            self._scan.pins = pins
            listing = self._scan.look()
            self._look_cost = time.thread_time() - begun
        with self._access:
            before, self._listing = self._listing, listing
            self._looked = time.monotonic()
            self._read_config()
            if listing is not before:
                if not listing.images.keys() <= self._datastore.objects.keys():
                    self._labels_stamp.clear()  # labels of images that are new here
                for image_id, found in listing.images.items():
                    if before.images.get(image_id) is not found:
                        self._entry(image_id, found)
            self._look_at_labels()

    def list_images(self) -> list[str]:
        """Return the ids of all images that can be asked for."""
        return list(self._current().images)

    def listing(self) -> Listing:
        """Return what the folder holds; the same object as before where nothing has changed."""
        return self._current()

    def unreadable_files(self) -> dict[str, str]:
        """Return the files and folders, from the studies' folder on, that cannot be read or listed, and why."""
        return dict(self._current().faults)

    def unfetched_images(self) -> dict[str, str]:
        """Return nothing: the images are files here."""
        return {}

    def image_at(self, path: Path) -> str | None:
        """Return the id of the image that `get_image_uri` returned a path for; None where there is none now."""
        images = self._current().images
        return next((name for name, found in images.items() if self._links.known_path_of(found) == path), None)

    def get_image_uri(self, image_id: str) -> str:
        """Return an image's file, or a folder with its slices and nothing else; empty where there is none.

        Raises
        ------
        UnknownError
            If several images claim the id or have it as their name, or it is that of a series with several volumes.
        """
        listing = self._current()
        if image_id in listing.shared:
            raise UnknownError(
                f"Image id {image_id!r} is shared by {self._scan.names(listing.shared[image_id])}; rename all but one."
            )
        found = listing.images.get(image_id)
        if found is None and image_id in listing.split:
            raise UnknownError(
                f"Series {image_id!r} holds several volumes; ask for one of them: {', '.join(listing.split[image_id])}."
            )
        alike = [
            name
            for name, image in listing.images.items()
            if found is None and image.suffix and image.path.name.removesuffix(image.suffix) == image_id
        ]
        if alike:
            raise UnknownError(
                f"Several images are called {image_id!r}; ask for one of them: {', '.join(sorted(alike))}."
            )
        return "" if found is None else str(self._links.path_of(found))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image, with its `path`; empty where there is none."""
        found = self._current().images.get(image_id)
        if found is None:
            return {}
        return {**copy.deepcopy(self._entry(image_id, found).image.info), "path": self.get_image_uri(image_id)}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return a label's file, also one that another process has just saved; empty where there is none."""
        self._current()
        return super().get_label_uri(label_id, label_tag)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label; empty where there is none."""
        self._current()
        return super().get_label_info(label_id, label_tag)

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the image's id for each tag that it has a label of."""
        self._current()
        return super().get_labels_by_image_id(image_id)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images that have a label of a tag, by default `final`; see `is_by_person`."""
        return [image for image in self.list_images() if self._has(image, label_tag)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images that have no label of a tag, by default `final`."""
        return [image for image in self.list_images() if not self._has(image, label_tag)]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return image and label of each finished image, as paths; of several people only a consensus."""
        pairs = [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)}
            for image in self.get_labeled_images()
            if not self.waits_for_consensus(image)
        ]
        if full_path:
            return pairs
        return [{key: os.path.relpath(path, self._root) for key, path in pair.items()} for pair in pairs]

    def status(self) -> dict[str, Any]:
        """Return how many images there are, how many are finished, and how many labels each tag has."""
        with self._access:
            images = self.list_images()
            tags = Counter(
                tag for image in images for tag in self._datastore.objects[image].labels if self._has(image, tag)
            )
            return {"total": len(images), "completed": len(self.get_labeled_images()), "label_tags": dict(tags)}

    def json(self) -> dict[str, Any]:
        """Return images and labels with what is known of them."""
        with self._access:
            here = self._current().images
            content = self._datastore.model_dump()
        return {**content, "objects": {image: content["objects"][image] for image in here}}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy a file into the studies, as an image of its own.

        Returns
        -------
        str
            The id that the image is listed under.

        Raises
        ------
        ConflictError
            If the id is that of another image or file, or the file belongs to an image that is among the studies.
        InputError
            If the file would not be listed under the id.
        """
        name = os.path.basename(image_filename)
        suffix = name[len(name) - len(suffix_of(name)) :] or ".dcm"
        image_id = image_id or name[: len(name) - len(suffix)]
        path = self._root / f"{image_id}{suffix}"
        if path.parent != self._root or image_id.startswith("."):
            raise InputError(f"Image {image_id!r} cannot be named so; allowed: a name without separators.")
        with self._changing(image_id) as files:
            self.refresh()
            listing = self._listing
            taken = listing.shared.get(image_id) or (
                [listing.images[image_id].path] if image_id in listing.images else [path] if path.exists() else []
            )
            if taken or image_id in listing.split:
                raise ConflictError(
                    f"Image id {image_id!r} is that of {self._scan.names(taken) or 'a series'} already; name another."
                )
            files.keep(path)
            copy_file(Path(image_filename), path, self._root.stat().st_mode & 0o666)
            self._scan.arrived(path)
            self.refresh()
            found = self._listing.images.get(image_id)
            with_it = [
                image for name, image in self._listing.images.items() if name != image_id and path in image.files
            ]
            if found is None or found.files != (path,) or with_it:
                path.unlink(missing_ok=True)
                self.refresh()
                if with_it:
                    slices = {file for image in with_it for file in image.files}
                    others = [name for name, image in listing.images.items() if slices.intersection(image.files)]
                    raise ConflictError(
                        f"The file is a slice of a series of which others are among the studies ({', '.join(others)}); "
                        "copy the whole series into the studies folder, or send it as one NIfTI file."
                    )
                raise InputError(f"The file cannot be listed as image {image_id!r}: its format or name is not served.")
            info = {**(image_info or {}), "ts": int(time.time()), "name": path.name, "file": path.name}
            self._datastore.objects[image_id] = ImageRecord(image=FileRecord(info=info, ext=suffix))
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image's files and its labels.

        Raises
        ------
        UnknownError
            If there is no such image, or several.
        ConflictError
            If other images are in its file too.
        """
        self.get_image_uri(image_id)
        listed = self._current().images
        found = listed.get(image_id)
        if found is None:
            raise unknown_image(image_id, listed.__contains__)
        with_it = {name: image for name, image in listed.items() if name != image_id and image.files == found.files}
        if with_it:
            raise ConflictError(
                f"Image {image_id!r} is in one file with {', '.join(sorted(with_it))}; remove the file itself from the "
                "studies folder."
            )
        shared = {file for name, image in listed.items() if name != image_id for file in image.files}
        with self._changing(image_id) as files:
            entry = self._datastore.objects.pop(image_id, None)
            for tag in entry.labels if entry else ():
                label = self._label_path(image_id, tag, entry.labels[tag].ext if entry else "")
                files.keep(label)
                label.unlink(missing_ok=True)
            self._versions.forget(image_id)
            for file in set(found.files) - shared:
                file.unlink(missing_ok=True)
            for folder in {file.parent for file in found.files} - {self._root} if found.path.is_dir() else ():
                with suppress(OSError):  # something else is left in it
                    folder.rmdir()
        self.refresh()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label, in place of the one that the tag had; a person's is kept, see `label_versions`.

        Returns
        -------
        str
            The label's id, which is the image's.

        Raises
        ------
        UnknownError
            If there is no such image.
        InputError
            If the label must not be saved, or its copy, read back, is another; the label before it stays.
        """
        file, info = Path(label_filename), dict(label_info or {})
        tag = str(getattr(label_tag, "value", label_tag))
        uri = self.get_image_uri(image_id)
        if not uri:
            raise unknown_image(image_id, self._current().images.__contains__)
        if self._labels is None:
            return self._save(image_id, tag, label_suffix(file.name), partial(shutil.copyfile, file), info)
        return self.keep_label(image_id, tag, self._labels.read(Path(uri), file, info))

    def keep_label(self, image_id: str, tag: str, received: ReceivedLabel) -> str:
        """Save a label that was read, as `save_label` does."""
        return self._save(image_id, tag, received.suffix, received.write, received.info)

    def _save(
        self, image_id: str, tag: str, suffix: str, write: Callable[[Path], object], info: Mapping[str, Any]
    ) -> str:
        with self._changing(image_id) as files:
            found = self._listing.images.get(image_id)
            if found is None:
                raise UnknownError(f"Image {image_id!r} is not among the studies any more.")
            entry = self._entry(image_id, found)
            entry.image.info["file"] = found.anchor.relative_to(self._root).as_posix()
            self._put_label(entry, image_id, tag, suffix, write, info, files)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label, of which a person's is kept, see `label_versions`; one that is not there is none."""
        self._current()
        with self._changing(label_id) as files:
            self._take_label(label_id, str(getattr(label_tag, "value", label_tag)), files)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image.

        When a strategy has proposed an image last (the key `strategy` alone) is kept in memory and written with the
        next change: it is of no use after a restart, and would cost a whole write for each image that is looked at.

        Raises
        ------
        UnknownError
            If there is no such image.
        """
        found = self._current().images.get(image_id)
        if found is None:
            raise unknown_image(image_id, self._current().images.__contains__)
        if set(info) <= {"strategy"}:
            with self._access:
                self._entry(image_id, found).image.info.update(info)
            return
        with self._changing(image_id):
            image = self._entry(image_id, found).image
            image.info = merged_image_info(image.info, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label.

        Raises
        ------
        UnknownError
            If there is no such label.
        """
        self._current()
        super().update_label_info(label_id, label_tag, info)

    def _configuration_changed(self) -> None:
        self._labels_stamp.clear()

    def _current(self) -> Listing:
        """Return the listing, after another look where the last one is a while ago.

        A folder that takes long to look at is looked at beside the requests, which meanwhile see what was there before.
        """
        with self._access:
            if self._auto_reload and time.monotonic() - self._looked >= _LOOK_SECONDS:
                if self._look_cost < _LONG_LOOK_SECONDS:
                    self.refresh()
                elif not self._looking.locked():
                    self._looked = time.monotonic()
                    threading.Thread(target=self.refresh, name="look at the studies", daemon=True).start()
            return self._listing

    def _has(self, image_id: str, tag: str | None) -> bool:
        entry = self._datastore.objects.get(image_id)
        tag = str(getattr(tag, "value", tag) or FINAL)
        label = entry.labels.get(tag) if entry is not None else None
        return label is not None and (tag != FINAL or is_by_person(label.info))

    def _entry(self, image_id: str, found: Found) -> ImageRecord:
        """Return what is known of an image, made now where nothing was."""
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            entry = ImageRecord(image=FileRecord(info={"ts": int(time.time()), "name": found.path.name}))
            self._datastore.objects[image_id] = entry
        entry.image.ext = found.suffix
        return entry

    def _look_at_labels(self) -> None:
        """Take in labels that were put into their folders by hand, and let go of those that were removed."""
        folder = self._root / self._datastore.labels_dir
        for place in folder.iterdir() if folder.is_dir() else ():
            if not place.is_dir() or place.name.startswith("."):
                continue
            changed = place.stat().st_mtime_ns
            if self._labels_stamp.get(place.name) == changed:
                continue
            there = {
                _composed(place, name): label_suffix(name)
                for name in os.listdir(place)
                if label_suffix(name) and name[0] != "."
            }
            for image_id, entry in self._datastore.objects.items():
                label = entry.labels.get(place.name)
                if label is not None and f"{image_id}{label.ext}" not in there:
                    del entry.labels[place.name]
            for name, suffix in there.items():
                known = self._datastore.objects.get(name[: len(name) - len(suffix)])
                if known is not None and place.name not in known.labels:
                    info = {"ts": int(time.time()), "name": name}
                    known.labels[place.name] = FileRecord(info=info, ext=suffix)
            self._labels_stamp[place.name] = changed


def _composed(folder: Path, name: str) -> str:
    """Return a label's name as ids are written (NFC), and give its file that name."""
    wanted = unicodedata.normalize("NFC", name)
    if wanted != name and not (folder / wanted).exists():
        with suppress(OSError):  # the share is read-only
            (folder / name).rename(folder / wanted)
    return wanted
