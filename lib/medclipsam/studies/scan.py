"""Which images a studies folder holds, looked at again and again at little cost.

A folder that has not changed since it was last looked at costs one question to the file system, a file that has not
changed is never opened twice.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import stat
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medclipsam.imaging.dicom import looks_like_dicom, read_header
from medclipsam.imaging.dicom_geometry import is_slice
from medclipsam.imaging.whole import fault_of

logger = logging.getLogger(__name__)

# Longest first: ".nii.gz" ends as ".gz" would.
SUFFIXES = (".nii.gz", ".nrrd", ".nii", ".dicom", ".dcm", ".jpeg", ".tiff", ".jpg", ".png", ".tif", ".bmp")
_DICOM_SUFFIXES = (".dicom", ".dcm")
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
        File name without extension, its characters composed (NFC), or the SeriesInstanceUID of a series of slices.
    path : Path
        Its file, or the folder of its slices.
    files : tuple of Path
        Its files.
    suffix : str
        The file's extension; empty for a series and for DICOM without one.
    alone : bool
        Whether the folder of a series holds no other DICOM images, so that it can be read as it is.
    """

    image_id: str
    path: Path
    files: tuple[Path, ...]
    suffix: str
    alone: bool = True


@dataclass(frozen=True)
class Listing:
    """What a look has found.

    Attributes
    ----------
    images : dict of str to Found
        What can be asked for, by its id.
    shared : dict of str to list of Path
        Ids that several images claim, which none of them gets, with their files or folders.
    faults : dict of str to str
        Files and folders, from the root on, that cannot be read, and why.
    """

    images: dict[str, Found] = field(default_factory=dict)
    shared: dict[str, list[Path]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """What is known of a file as long as size and time stay the same."""

    size: int
    changed: int
    image_id: str = ""
    suffix: str = ""
    series: str | None = None  # of slices of a volume
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
    images: list[Found] = field(default_factory=list)
    # why files, by name, or the folder itself, by ".", cannot be read
    faults: dict[str, str] = field(default_factory=dict)


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
    """

    def __init__(
        self,
        root: Path,
        patterns: Sequence[str] | None = None,
        skip: Collection[Path] = (),
        settle: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self._patterns = patterns
        self._skip = frozenset(map(str, skip))
        self._settle = settle
        self._clock = clock
        self._known: dict[Path, _Folder] = {}
        self._told: set[tuple[str, ...]] = set()
        self._complete: set[Path] = set()
        self._listing: Listing | None = None

    def look(self) -> Listing:
        """Return what is there now; the same object as before where nothing has changed."""
        claims: dict[str, list[Found]] = defaultdict(list)
        seen: set[Path] = set()
        todo = [self.root]
        same = self._listing is not None
        while todo:
            path = todo.pop()
            known = self._known.get(path, _Folder())
            before, faults_before = known.images, known.faults
            folder = self._look_at(path)
            if folder is None:
                same = False
                continue
            same = same and folder.images is before and folder.faults == faults_before
            seen.add(path)
            todo += folder.folders
        same = same and self._known.keys() <= seen
        self._known = {path: folder for path, folder in self._known.items() if path in seen}
        if same and self._listing is not None:
            return self._listing
        for folder in self._known.values():
            for image in folder.images:
                claims[image.image_id].append(image)
        shared = {name: sorted(found.path for found in images) for name, images in claims.items() if len(images) > 1}
        for name, paths in shared.items():
            self._tell_once(
                ("shared", name, *map(str, paths)),
                f"Image id {name!r} is shared by {self.names(paths)}, and none of them is served; rename all but one.",
            )
        faults = self._faults()
        for name, reason in faults.items():
            self._tell_once(
                ("fault", name, reason), f"{name} is not listed: {reason}. It is looked at again when it changes."
            )
        images = {name: found[0] for name, found in claims.items() if len(found) == 1}
        self._listing = Listing(images, shared, faults)
        return self._listing

    def arrived(self, path: Path) -> None:
        """Say that a file is complete, which need not wait for that to be seen at the next look."""
        self._complete.add(path)
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
                    if _suffix(entry.name):
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
                    is_slice_here = files[entry.name].series is not None
                if is_slice_here:
                    slices.append(entry.name)
        if tuple(slices) != folder.slices:
            folder.slices, folder.since = tuple(slices), now
        # more slices may be on their way: nothing else holds those up that are here
        still = max(now - path.stat().st_mtime, now - folder.since)
        settled = still >= self._settle and not any(name in waiting for name in slices)
        folder.faults = {name: file.fault for name, file in files.items() if file.fault is not None}
        folder.folders, folder.files, folder.waiting = folders, files, waiting
        folder.arriving = bool(waiting) or bool(folder.faults) or not settled
        images = self._images(path, files, folder.images, settled)
        if images != folder.images:
            folder.images = images

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
        suffix = _suffix(path.name)
        is_dicom = suffix in ("", *_DICOM_SUFFIXES) and looks_like_dicom(path)
        if not suffix and not is_dicom:
            return _File(size, changed)
        fault = fault_of(path)
        if fault is not None and not is_dicom:
            return _File(size, changed, fault=fault)
        name = path.name[: len(path.name) - len(suffix)]
        if not name.isprintable() or not name.strip() or len(name.encode()) > _LONGEST_ID or "\\" in name:
            self._tell_once(("name", str(path)), f"{path.name!r} is not listed: its name cannot be an image id.")
            return _File(size, changed)
        series = None
        if is_dicom:
            header = read_header(path)
            if header is None:
                return _File(size, changed, fault=fault)
            if is_slice(header):
                series = re.sub(r"[^\w.-]", "_", str(header.get("SeriesInstanceUID") or path.parent.name))[:_LONGEST_ID]
        image_id = unicodedata.normalize("NFC", name)
        return _File(size, changed, image_id, path.name[len(name) :], series, True, is_dicom, fault)

    def _images(self, path: Path, files: dict[str, _File], before: list[Found], settled: bool) -> list[Found]:
        """Group the files of one folder into images."""
        images, series = [], defaultdict(list)
        # making paths anew is most of the time that many files take
        known = {(image.image_id, image.suffix): image for image in before if len(image.files) == 1}
        for name, file in files.items():
            if file.series is not None:
                series[file.series].append(path / name)
            elif file.is_image and file.fault is None:
                image = known.get((file.image_id, file.suffix))
                if image is None or image.path.name != name:
                    image = Found(file.image_id, path / name, (path / name,), file.suffix)
                images.append(image)
        dicom = sum(file.is_image and file.is_dicom for file in files.values())
        earlier = {image.files: image for image in before}
        for uid, slices in series.items():
            if all(files[each.name].fault is not None for each in slices):
                continue
            # a damaged slice stays in its series: a volume without it would be another, and who reads it is told of it
            if len(slices) > 1:
                image = Found(uid, path, tuple(slices), "", len(slices) == dicom)
            else:
                only = files[slices[0].name]
                image = Found(only.image_id, slices[0], tuple(slices), only.suffix)
            # more slices may be on their way
            if settled or image.files in earlier:
                images.append(image)
            else:
                images += [old for old in before if set(old.files) <= set(slices)]
        return images

    def _tell_once(self, key: tuple[str, ...], sentence: str) -> None:
        if key not in self._told:
            self._told.add(key)
            logger.warning("%s", sentence)


def _suffix(name: str) -> str:
    """Return the end of a file's name that tells a format that is listed; empty where it tells none."""
    return next((end for end in SUFFIXES if name.lower().endswith(end)), "")


def _may_be_slice(path: Path, size: int) -> bool:
    """Return whether a file that has not arrived may become a slice: one of DICOM, by name or content, or empty."""
    suffix = _suffix(path.name)
    return suffix in _DICOM_SUFFIXES or (not suffix and (size == 0 or looks_like_dicom(path)))
