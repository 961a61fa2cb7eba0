"""Which images a studies folder holds, looked at again and again at little cost.

A folder that has not changed since it was last looked at costs one question to the file system, a file that has not
changed is never opened twice.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import re
import stat
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from medclipsam.base.formats import DICOM_SUFFIXES, suffix_of
from medclipsam.imaging.dicom import looks_like_dicom, read_frame_volumes, read_header, stored_pixels
from medclipsam.imaging.dicom_geometry import is_slice
from medclipsam.imaging.dicom_series import SeriesVolume, Slice, kind_of, volumes_of
from medclipsam.imaging.whole import fault_of

logger = logging.getLogger(__name__)

# Seconds for which a file must have stayed as it is before it counts as arrived.
SETTLE_SECONDS = 2.0
# A folder that changed less than this before it was looked at may have changed once more within its time stamp.
_STAMP_SECONDS = 2.0
_LONGEST_ID = 200


@dataclass(frozen=True)
class Found:
    """One image of the studies folder.

    Attributes
    ----------
    image_id : str
        File name without extension, its characters composed (NFC), or the SeriesInstanceUID of a series of slices, with
        what tells its volume from the other ones of the series or file, such as "-acq2"; where several images have that
        id, a longer one.
    path : Path
        Its file, or the folder that holds its first slice.
    files : tuple of Path
        Its files, those that its reader leaves out too.
    suffix : str
        The file's extension; empty for a series and for DICOM without one.
    alone : bool
        Whether the folder of a series holds all of its files and no other DICOM images, so that it can be read as it
        is.
    instance : str
        SOP Instance UID of a DICOM file.
    anchor : Path
        A file of the image by which it is found again when its id comes to stand for several images.
    volume : str
        Key of the volume, where the file is a multi-frame one that holds several; its files are theirs too.
    """

    image_id: str
    path: Path
    files: tuple[Path, ...]
    suffix: str
    alone: bool = True
    instance: str = ""
    anchor: Path = Path()
    volume: str = ""


@dataclass(frozen=True)
class Pin:
    """Which of several images an id stands for because a label was saved for it.

    Attributes
    ----------
    file : str
        A file of the image, as a path from the studies folder on with "/"; empty where it is not known.
    name : str
        The name of the image's file or folder; empty where it is not known.
    """

    file: str = ""
    name: str = ""


@dataclass(frozen=True)
class Listing:
    """What a look has found.

    Attributes
    ----------
    images : dict of str to Found
        What can be asked for, by its id.
    shared : dict of str to list of Path
        Ids that stand for none of several images, with their files or folders: a label was saved under the id, and
        nothing tells for which of them. The images are listed under longer ids.
    faults : dict of str to str
        Files and folders, from the root on, that cannot be read, and why.
    split : dict of str to list of str
        Ids of series and files that hold several volumes, with the ids of these.
    """

    images: dict[str, Found] = field(default_factory=dict)
    shared: dict[str, list[Path]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """What is known of a file as long as size and time stay the same."""

    size: int
    changed: int
    image_id: str = ""
    suffix: str = ""
    series: tuple[str, str] | None = None  # of DICOM files: the series' id and what it is grouped by
    slice: Slice | None = None  # of slices of a volume
    volumes: tuple[str, ...] = ()  # of multi-frame files that hold several: their keys
    instance: str = ""
    kind: str = ""
    is_image: bool = False
    is_dicom: bool = False
    fault: str | None = None  # why it cannot be read


@dataclass
class _Folder:
    changed: int = -1
    looked: float = 0.0
    folders: list[Path] = field(default_factory=list)
    files: dict[str, _File] = field(default_factory=dict)
    # names of files that have not arrived: size, time of change, and since when they are so
    waiting: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    # whether any file has not arrived or may still be repaired in place
    arriving: bool = False
    # names of DICOM files, and since when there are no others
    slices: tuple[str, ...] = ()
    since: float = float("-inf")
    # whether no more slices are expected
    settled: bool = True
    images: dict[str, Found] = field(default_factory=dict)
    # why files, by name, or the folder itself, by ".", cannot be read
    faults: dict[str, str] = field(default_factory=dict)


@dataclass
class _Series:
    """The slices of a series, and what was made of them; the slices are compared by identity."""

    slices: list[Slice]
    volumes: list[SeriesVolume]
    images: list[Found]


class FolderScan:
    """Looks at a folder and its sub-folders; hidden ones, and links to folders, are left out.

    Parameters
    ----------
    root : Path
        The folder.
    patterns : sequence of str, optional
        File names to list, such as "*.nii.gz"; by default all formats that are read, and DICOM by its content.
    skip : collection of Path
        Folders and files that hold no images.
    settle : float
        Seconds for which a file must have stayed as it is before it is listed.
    clock : callable
        The time as files have it.
    only_whole : bool
        Whether files that are damaged or not all there are left out.

    Attributes
    ----------
    pins : mapping of str to Pin
        Ids that labels were saved under; they keep their images.
    """

    def __init__(
        self,
        root: Path,
        patterns: Sequence[str] | None = None,
        skip: Collection[Path] = (),
        settle: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.time,
        only_whole: bool = True,
    ) -> None:
        self.root = root
        self._patterns = patterns
        self._skip = frozenset(map(str, skip))
        self._settle = settle
        self._clock = clock
        self._only_whole = only_whole
        self._known: dict[Path, _Folder] = {}
        self._told: set[tuple[str, ...]] = set()
        self._complete: set[Path] = set()
        self._added: set[Path] = set()
        self._series: dict[str, _Series] = {}
        self.pins: Mapping[str, Pin] = {}
        self._pins: Mapping[str, Pin] = {}
        self._listing: Listing | None = None

    def look(self) -> Listing:
        """Return what is there now; the same object as before where nothing has changed."""
        pins = dict(self.pins)
        seen: set[Path] = set()
        todo = [self.root]
        same = self._listing is not None and pins == self._pins
        while todo:
            path = todo.pop()
            before = self._known.get(path)
            state = (before.files, before.settled, before.faults) if before is not None else None
            folder = self._look_at(path)
            if folder is None:
                same = False
                continue
            same = same and (folder.files, folder.settled, folder.faults) == state
            seen.add(path)
            todo += folder.folders
        same = same and self._known.keys() <= seen
        self._known = {path: folder for path, folder in self._known.items() if path in seen}
        if same and self._listing is not None:
            return self._listing
        self._pins = pins
        faults = self._faults()
        for name, reason in faults.items():
            self._tell_once(
                ("fault", name, reason), f"{name} is not listed: {reason}. It is looked at again when it changes."
            )
        self._listing = replace(self._compose(pins), faults=faults)
        return self._listing

    def arrived(self, path: Path) -> None:
        """Say that a file is complete, which need not wait for that to be seen at the next look."""
        self._complete.add(path)
        self._added.add(path)
        if path.parent in self._known:
            self._known[path.parent].changed = -1

    def _faults(self) -> dict[str, str]:
        """Return what cannot be read, from the root on, and why."""
        found = {
            (path / name).relative_to(self.root): reason
            for path, folder in self._known.items()
            for name, reason in folder.faults.items()
        }
        # names that are not Unicode can be shown, but not sent
        return {str(path).encode("utf-8", "backslashreplace").decode(): found[path] for path in sorted(found)}

    def names(self, paths: Sequence[Path]) -> str:
        """Return paths for people, from the root on: "a.png and b/a.nii.gz"."""
        return " and ".join(
            str(path.relative_to(self.root)) if path != self.root else "the slices in the folder itself"
            for path in paths
        )

    def _look_at(self, path: Path) -> _Folder | None:
        folder = self._known.setdefault(path, _Folder())
        now = self._clock()
        try:
            changed = path.stat().st_mtime_ns
            stale = changed != folder.changed or folder.looked < changed / 1e9 + max(_STAMP_SECONDS, self._settle)
            if stale or folder.arriving:
                self._read(path, folder, now)
                folder.changed, folder.looked = changed, now
        except FileNotFoundError:  # it went away
            self._known.pop(path, None)
            return None
        except OSError as error:
            folder = self._known[path] = _Folder(faults={".": f"it cannot be opened ({error.strerror or error})"})
        return folder

    def _read(self, path: Path, folder: _Folder, now: float) -> None:
        files: dict[str, _File] = {}
        waiting: dict[str, tuple[int, int, float]] = {}
        slices: list[str] = []
        folders = []
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.path in self._skip:
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                        continue
                    if not self._may_be_image(entry.name) or not (entry.is_file() or entry.is_symlink()):
                        continue
                    state = entry.stat()
                    if not stat.S_ISREG(state.st_mode):
                        continue
                except OSError as error:  # a link to nothing, or to itself
                    if suffix_of(entry.name):
                        files[entry.name] = _File(-1, -1, fault=f"it cannot be opened ({error.strerror or error})")
                    continue
                known = folder.files.get(entry.name)
                if known and (known.size, known.changed) == (state.st_size, state.st_mtime_ns):
                    files[entry.name] = known
                else:
                    since = self._since(folder.waiting.get(entry.name), state, now)
                    arrived = self._arrived(Path(entry.path), state, since, now)
                    if arrived is None:
                        waiting[entry.name] = (state.st_size, state.st_mtime_ns, since)
                    else:
                        files[entry.name] = arrived
                if entry.name in waiting:
                    is_slice_here = _may_be_slice(Path(entry.path), state.st_size)
                else:
                    is_slice_here = files[entry.name].slice is not None
                if is_slice_here:
                    slices.append(entry.name)
        if tuple(slices) != folder.slices:
            folder.slices, folder.since = tuple(slices), now
        # more slices may be on their way: nothing else holds those up that are here
        still = max(now - path.stat().st_mtime, now - folder.since)
        folder.settled = still >= self._settle and not any(name in waiting for name in slices)
        folder.faults = {name: file.fault for name, file in files.items() if file.fault is not None}
        folder.folders, folder.waiting = folders, waiting
        folder.arriving = bool(waiting) or bool(folder.faults) or not folder.settled
        if files != folder.files:
            folder.files = files
            folder.images = self._single_images(path, files, folder.images)

    def _may_be_image(self, name: str) -> bool:
        if self._patterns is None:
            return True
        return any(fnmatch.fnmatch(name, pattern) for pattern in self._patterns)

    @staticmethod
    def _since(before: tuple[int, int, float] | None, state: os.stat_result, now: float) -> float:
        same = before is not None and before[:2] == (state.st_size, state.st_mtime_ns)
        return before[2] if same and before is not None else now

    def _arrived(self, path: Path, state: os.stat_result, since: float, now: float) -> _File | None:
        """Return what a file is once it has stayed as it is; None as long as it may still be on its way."""
        # by its own time, or, where another machine's clock has set it, by how long it has been seen so
        still = max(now - state.st_mtime, now - since)
        if still < self._settle and path not in self._complete:
            return None
        self._complete.discard(path)
        size, changed = state.st_size, state.st_mtime_ns
        suffix = suffix_of(path.name)
        is_dicom = suffix in ("", *DICOM_SUFFIXES) and looks_like_dicom(path)
        if not suffix and not is_dicom:
            return _File(size, changed)
        fault = fault_of(path)
        if fault is not None and not is_dicom and (self._only_whole or suffix in DICOM_SUFFIXES):
            return _File(size, changed, fault=fault)
        name = path.name[: len(path.name) - len(suffix)]
        if not name.isprintable() or not name.strip() or len(name.encode()) > _LONGEST_ID or "\\" in name:
            self._tell_once(("name", str(path)), f"{path.name!r} is not listed: its name cannot be an image id.")
            return _File(size, changed)
        told: dict[str, Any] = {}
        if is_dicom:
            header = read_header(path)
            if header is None:
                return _File(size, changed, fault=fault)
            try:
                told = self._of_series(path, header)
            except Exception:
                # whoever reads the file gets a sentence; here it must not hide the others
                logger.info("%s has elements that cannot be read, and is listed by itself", path.name)
        image_id = unicodedata.normalize("NFC", name)
        return _File(
            size, changed, image_id, path.name[len(name) :], is_image=True, is_dicom=is_dicom, fault=fault, **told
        )

    @staticmethod
    def _of_series(path: Path, header: Dataset) -> dict[str, Any]:
        """Return what a DICOM file's header says of its series, as fields of `_File`."""
        uid = str(header.get("SeriesInstanceUID") or "")
        group = f"{header.get('StudyInstanceUID') or ''}/{uid}" if uid else str(path.parent)
        series_id = re.sub(r"[^\w.-]", "_", uid or path.parent.name)[:_LONGEST_ID]
        told: dict[str, Any] = {"series": (series_id, group), "kind": kind_of(header)}
        told["instance"] = str(header.get("SOPInstanceUID") or "")
        if is_slice(header):
            told["slice"] = Slice.from_header(path, header)
        elif int(header.get("NumberOfFrames") or 1) > 1:
            told["volumes"] = tuple(volume.key for volume in read_frame_volumes(path))
        return told

    def _single_images(self, path: Path, files: dict[str, _File], before: dict[str, Found]) -> dict[str, Found]:
        """Return the images of a folder that are one file each, by the file's name; slices are among them."""
        images = {}
        for name, file in files.items():
            if not file.is_image or (file.fault is not None and file.slice is None and self._only_whole):
                continue
            # making paths again is most of the time that many files take
            image = before.get(name)
            if image is None or (image.image_id, image.instance) != (file.image_id, file.instance):
                place = path / name
                image = Found(file.image_id, place, (place,), file.suffix, instance=file.instance, anchor=place)
            images[name] = image
        return images

    def _compose(self, pins: Mapping[str, Pin]) -> Listing:
        """Return the images of all folders under their ids."""
        claims: dict[str, list[Found]] = defaultdict(list)
        series: dict[str, list[tuple[Path, _File]]] = defaultdict(list)
        apart: dict[str, list[Path]] = defaultdict(list)
        spare: dict[Path, Found] = {}
        split: dict[str, list[str]] = {}
        for path, folder in self._known.items():
            for name, image in folder.images.items():
                file = folder.files[name]
                if file.slice is not None and file.series is not None:
                    series[file.series[1]].append((path, file))
                    spare[image.path] = image
                elif file.series is not None and file.kind != "slice":
                    apart[file.series[1]].append(image.path)
                    spare[image.path] = image
                elif file.volumes:
                    volumes = [
                        replace(image, image_id=f"{image.image_id}-{key}", volume=key, alone=False)
                        for key in file.volumes
                    ]
                    split[image.image_id] = [each.image_id for each in volumes]
                    for each in volumes:
                        claims[each.image_id].append(each)
                else:
                    claims[image.image_id].append(image)
        found: dict[str, _Series] = {}
        for group, members in series.items():
            # a damaged slice stays in its series: a volume without it would be another, and who reads it is told of it
            if self._only_whole and all(file.fault is not None for _, file in members):
                continue
            found[group] = self._series_images(group, members, apart.get(group, []), spare, pins)
            for image in found[group].images:
                claims[image.image_id].append(image)
            series_id = members[0][1].series[0]  # type: ignore[index]
            if len(found[group].images) > 1:
                split[series_id] = [image.image_id for image in found[group].images]
        self._series = found
        for group, paths in apart.items():
            # a screenshot or scout without a place in the patient is an image where its series is no volume
            if not any(len(image.files) > 1 for image in (found[group].images if group in found else ())):
                for path in paths:
                    claims[spare[path].image_id].append(spare[path])
        images, shared = self._with_ids(claims, pins)
        for image_id, pin in pins.items():
            if image_id not in images and image_id not in shared:
                own = self._pinned([image for image in spare.values() if image.image_id == image_id], pin)
                if own is not None:
                    images[image_id] = own
        return Listing(images, shared, split={name: ids for name, ids in split.items() if name not in images})

    def _series_images(
        self,
        group: str,
        members: list[tuple[Path, _File]],
        apart: list[Path],
        single: Mapping[Path, Found],
        pins: Mapping[str, Pin],
    ) -> _Series:
        """Return the images of the slices of one series."""
        slices = [file.slice for _, file in members if file.slice is not None]
        before = self._series.get(group)
        if before is not None and list(map(id, before.slices)) == list(map(id, slices)):
            volumes = before.volumes
        else:
            volumes = volumes_of(slices, stored_pixels)
        images = self._images_of(members, volumes, apart, single, pins)
        if not all(each.path in self._added or self._known[each.path.parent].settled for each in slices):
            # more slices may be on their way: what was listed before stays as it was
            there = {each.path for each in slices} | set(apart)
            kept = [image for image in (before.images if before is not None else ()) if there.issuperset(image.files)]
            if {image.files for image in images} != {image.files for image in kept}:
                images = kept
        return _Series(slices, volumes, images)

    def _images_of(
        self,
        members: list[tuple[Path, _File]],
        volumes: list[SeriesVolume],
        apart: list[Path],
        single: Mapping[Path, Found],
        pins: Mapping[str, Pin],
    ) -> list[Found]:
        series_id = members[0][1].series[0]  # type: ignore[index]
        if len(volumes) == 1 and len(volumes[0].files) == 1 and not volumes[0].left_out:
            return [replace(single[volumes[0].files[0]], files=volumes[0].all_files)]
        images = []
        pin = pins.get(series_id, Pin())
        for volume in volumes:
            files = tuple(sorted({*volume.all_files, *apart}))
            image_id = f"{series_id}-{volume.key}" if volume.key else series_id
            if pin.file and self.root / pin.file in volume.files:
                image_id = series_id
            folder = volume.files[0].parent
            dicom = {folder / name for name, file in self._known[folder].files.items() if file.is_dicom}
            alone = set(files) == dicom and len(volumes) == 1
            images.append(Found(image_id, folder, files, "", alone, anchor=volume.files[0]))
        return images

    def _with_ids(
        self, claims: Mapping[str, list[Found]], pins: Mapping[str, Pin]
    ) -> tuple[dict[str, Found], dict[str, list[Path]]]:
        """Give each image an id of its own: the claimed one where only one image claims it, else longer ones."""
        images: dict[str, Found] = {}
        shared: dict[str, list[Path]] = {}
        others: list[tuple[str, list[Found]]] = []
        for image_id, claiming in claims.items():
            distinct = _without_doubles(claiming)
            if len(distinct) == 1:
                images[image_id] = distinct[0]
            else:
                others.append((image_id, distinct))
        for image_id, distinct in others:
            pin = pins.get(image_id)
            own = self._pinned(distinct, pin) if pin is not None else None
            if own is None and pin is None:
                # the path of a file in the studies folder itself is its id
                in_root = [image for image in distinct if image.path.parent == self.root and image.suffix]
                own = in_root[0] if len(in_root) == 1 else None
            if own is not None:
                images[image_id] = own
            elif pin is not None:
                shared[image_id] = sorted(image.path for image in distinct)
                self._tell_once(
                    ("shared", image_id, *map(str, shared[image_id])),
                    f"Image id {image_id!r} has a label, but which of {self.names(shared[image_id])} it belongs to is "
                    "not known; rename all but one.",
                )
            for image in distinct:
                if image is not own:
                    longer = self._longer_id(image, images.keys() | claims.keys())
                    images[longer] = replace(image, image_id=longer)
        return images, shared

    def _pinned(self, images: Sequence[Found], pin: Pin) -> Found | None:
        """Return the image that a label was saved for."""
        if pin.file:
            file = self.root / pin.file
            return next((image for image in images if image.anchor == file or image.files == (file,)), None) or next(
                (image for image in images if file in image.files), None
            )
        named = [image for image in images if image.path.name == pin.name] if pin.name else list(images)
        return named[0] if len(named) == 1 else None

    def _longer_id(self, image: Found, taken: Collection[str]) -> str:
        """Return an id that another image of the same name does not have: the SOP Instance UID, or the path."""
        path = image.path.relative_to(self.root)
        stem = path.name[: len(path.name) - len(image.suffix)] if image.suffix else path.name
        parts = ["_".join((*path.parts[:-1], stem)), "_".join((*path.parts[:-1], path.name.replace(".", "_")))]
        parts = [unicodedata.normalize("NFC", part) for part in parts]
        if image.suffix == "" and len(image.files) > 1:
            parts = [f"{image.image_id}_{'_'.join(path.parts)}"]
        uid = re.sub(r"[^\w.-]", "_", image.instance)
        end = f"-{image.volume}" if image.volume else ""
        for name in (*([uid] if uid else []), *parts):
            if name + end not in taken and len((name + end).encode()) <= _LONGEST_ID:
                return name + end
        return f"{image.image_id[:100]}-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"

    def _tell_once(self, key: tuple[str, ...], sentence: str) -> None:
        if key not in self._told:
            self._told.add(key)
            logger.warning("%s", sentence)


def _may_be_slice(path: Path, size: int) -> bool:
    """Return whether a file that has not arrived may become a slice: one of DICOM, by name or content, or empty."""
    suffix = suffix_of(path.name)
    return suffix in DICOM_SUFFIXES or (not suffix and (size == 0 or looks_like_dicom(path)))


def _without_doubles(images: Sequence[Found]) -> list[Found]:
    """Return images without second copies of a DICOM file: the same instance in another folder."""
    first: dict[str, Found] = {}
    for image in sorted(images, key=lambda image: (len(image.path.parts), image.path)):
        first.setdefault(image.instance or str(image.path) + image.image_id, image)
    return list(first.values())
