"""A studies folder as DICOM studies, series and instances, for viewers.

DICOM files are given as they are. An image of another format, and a DICOM file that viewers could not read, is one
study of one series, whose files are made when they are first asked for and kept in a folder of bounded size.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from pydicom.dataset import Dataset

from medclipsam.base.errors import MedClipSamError
from medclipsam.base.files import PRIVATE, write_bytes, write_json
from medclipsam.base.formats import DICOM_SUFFIXES
from medclipsam.imaging import MedicalImage, Window, read_image
from medclipsam.imaging.dicom_export import DicomNames, write_dicom
from medclipsam.imaging.dicom_parts import can_be_served, read_usable
from medclipsam.imaging.frames import ImageFrames
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.studies.folder import FolderStudies
from medclipsam.server.studies.images import ImageReader
from medclipsam.studies.scan import Found, Listing

logger = logging.getLogger(__name__)

# Bytes of the files that are made of other formats, and of the small pictures; the ones not used for longest go first.
MAX_MADE_BYTES = 4 * 2**30
MAX_PICTURE_BYTES = 64 * 2**20
# Files that were used within so many seconds stay, whatever their size.
_IN_USE_SECONDS = 300.0
# Seconds that a list waits for what is not known of its images yet.
LIST_SECONDS = 2.0
# Series whose instances are remembered.
_MOST_SERIES = 256
THUMBNAIL_PIXELS = 192
# Files that were made otherwise are not used any more.
_VERSION = 1

STUDY_TAGS = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("InstitutionName", "SpecificCharacterSet"),
)
SERIES_TAGS = (
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "Modality"),
    *("BodyPartExamined", "Laterality", "ProtocolName", "PerformedProcedureStepStartDate", "Manufacturer"),
)
_INSTANCE_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "NumberOfFrames", "BitsAllocated"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SamplesPerPixel"),
)
_HEADER_TAGS = (*STUDY_TAGS, *SERIES_TAGS, "SOPClassUID", "SOPInstanceUID", "BitsAllocated")


@dataclass(frozen=True, eq=False)
class Entry:
    """An image of the folder and where DICOM has it.

    Parameters
    ----------
    image : str
        Its id.
    found : Found
        Its files.
    made : bool
        Whether its DICOM files are made of another format.
    header : pydicom.Dataset
        What is said of patient, study and series.
    stamp : str
        Changes with the files.
    """

    image: str
    found: Found
    made: bool
    header: Dataset
    stamp: str

    @cached_property
    def study(self) -> str:
        """Study Instance UID."""
        return str(self.header.StudyInstanceUID)

    @cached_property
    def series(self) -> str:
        """Series Instance UID."""
        return str(self.header.SeriesInstanceUID)


@dataclass(frozen=True)
class Instance:
    """A DICOM file of the folder, or one that was made.

    Parameters
    ----------
    path : Path
        The file.
    header : pydicom.Dataset
        What is said of it.
    """

    path: Path
    header: Dataset

    @property
    def uid(self) -> str:
        """SOP Instance UID."""
        return str(self.header.SOPInstanceUID)

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.header.get("NumberOfFrames") or 1)


class Catalogue:
    """The images of a studies folder by their DICOM names; safe to use from several threads.

    Parameters
    ----------
    store : FolderStudies
        The folder.
    images : ImageReader
        Reads its images.
    studies : str
        What tells this folder from others, see `DicomNames`.
    folder : Path
        Where files are kept that are made; private to the server.
    max_made_bytes : int
        Bound of the DICOM files that are made.
    """

    def __init__(
        self,
        store: FolderStudies,
        images: ImageReader,
        studies: str,
        folder: Path,
        *,
        max_made_bytes: int = MAX_MADE_BYTES,
    ) -> None:
        self._store = store
        self._images = images
        self._studies = studies
        self._folder = folder
        self._max_made_bytes = max_made_bytes
        self._lock = threading.Lock()
        self._listing: Listing | None = None
        self._entries: dict[str, Entry] = {}
        self._by_series: dict[tuple[str, str], list[Entry]] = {}
        self._instances: OrderedDict[tuple[str, str], list[Instance]] = OrderedDict()
        self._making: dict[str, threading.Lock] = defaultdict(threading.Lock)
        # what is known of made entries without making them: by image and stamp
        self._told: dict[str, dict[str, Any]] = self._read_told()
        self._describing: threading.Thread | None = None

    def entries(self) -> list[Entry]:
        """Return the images that can be shown, in the order of the folder's list."""
        return list(self._current().values())

    def entry(self, image: str) -> Entry:
        """Return an image.

        Raises
        ------
        UnknownError
            If there is none of that id.
        """
        found = self._current().get(image)
        if found is None:
            raise UnknownError(f"Image {image!r} is not among the studies, or cannot be shown.")
        return found

    def series(self, study: str, series: str) -> list[Entry]:
        """Return the images of a series.

        Raises
        ------
        UnknownError
            If there is no such series.
        """
        self._current()
        with self._lock:
            found = self._by_series.get((study, series))
        if not found:
            raise UnknownError(f"Series {series!r} of study {study!r} is not among the studies.")
        return list(found)

    def instances(self, entries: Iterable[Entry]) -> list[Instance]:
        """Return the instances of images, each once, by series and in the order of their numbers."""
        found: dict[str, Instance] = {}
        for entry in entries:
            for instance in self._instances_of(entry):
                found.setdefault(instance.uid, instance)
        return list(found.values())

    def instance(self, study: str, series: str, instance: str) -> Instance:
        """Return one instance.

        Raises
        ------
        UnknownError
            If it is not there.
        """
        for each in self.instances(self.series(study, series)):
            if each.uid == instance:
                return each
        raise UnknownError(f"Instance {instance!r} is not among the studies.")

    def frames(self, image: str, read: MedicalImage) -> ImageFrames | None:
        """Return which frames show the planes of an image whose files are made; None for DICOM as it is."""
        return self._names(image).frames(read) if self.entry(image).made else None

    def images_of(self, study: str, series: str, instance: str | None) -> list[str]:
        """Return the ids of the images that an instance belongs to, or of those of the series where none is named.

        Raises
        ------
        UnknownError
            If it is not there.
        """
        entries = self.series(study, series)
        if instance is not None and len(entries) > 1:
            entries = [entry for entry in entries if any(each.uid == instance for each in self._instances_of(entry))]
            if not entries:
                raise UnknownError(f"Instance {instance!r} is not among the studies.")
        return [entry.image for entry in entries]

    def told(self, entry: Entry) -> dict[str, Any] | None:
        """Return modality, instances, planes, rows and columns of an image that is no DICOM; None where not known."""
        return self._told.get(entry.stamp)

    def wait(self, seconds: float = LIST_SECONDS) -> None:
        """Look at the images that are no DICOM, and wait so long at the most until that is done."""
        with self._lock:
            if self._describing is None or not self._describing.is_alive():
                unknown = [entry for entry in self._entries.values() if entry.made and entry.stamp not in self._told]
                if not unknown:
                    return
                self._describing = threading.Thread(
                    target=self._describe_all, args=(unknown,), name="look at images", daemon=True
                )
                self._describing.start()
            describing = self._describing
        describing.join(seconds)

    def thumbnail(self, entries: Sequence[Entry]) -> bytes:
        """Return a small JPEG picture of the first of some images.

        Raises
        ------
        ImageError
            If it cannot be read.
        """
        entry = entries[0]
        path = self._folder / "pictures" / f"{entry.stamp}.jpg"
        try:
            content = path.read_bytes()
            os.utime(path)
            return content
        except OSError:
            pass
        with self._making[entry.stamp], self._images.in_background():
            files = entry.found.files
            # the middle one of a series stands for it, and is read alone
            file = files[len(files) // 2] if len(files) > 1 else Path(self._store.get_image_uri(entry.image))
            return self._make_thumbnail(entry, self._images.read(file))

    def _make_thumbnail(self, entry: Entry, image: MedicalImage) -> bytes:
        content = small_picture(Image.fromarray(image.plane(image.n_planes // 2)))
        folder = self._made_folder("pictures")
        write_bytes(folder / f"{entry.stamp}.jpg", content, mode=PRIVATE)
        _bound(folder, MAX_PICTURE_BYTES)
        return content

    def _names(self, image: str) -> DicomNames:
        return DicomNames(self._studies, image)

    def _current(self) -> dict[str, Entry]:
        listing = self._store.listing()
        with self._lock:
            if listing is not self._listing:
                before = {entry.stamp: entry for entry in self._entries.values()}
                entries = {}
                for image, found in listing.images.items():
                    entry = self._entry(image, found, before)
                    if entry is not None:
                        entries[image] = entry
                by_series: dict[tuple[str, str], list[Entry]] = defaultdict(list)
                for entry in entries.values():
                    by_series[entry.study, entry.series].append(entry)
                self._listing, self._entries, self._by_series = listing, entries, dict(by_series)
            return self._entries

    def _entry(self, image: str, found: Found, before: Mapping[str, Entry]) -> Entry | None:
        try:
            state = found.anchor.stat()
        except OSError:  # it went away, which the next look will see
            return None
        key = f"{_VERSION}/{self._studies}/{image}/{found.files}/{state.st_mtime_ns}/{state.st_size}"
        stamp = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        if stamp in before:
            return before[stamp]
        if found.suffix in ("", *DICOM_SUFFIXES):
            header = read_usable(found.anchor, _HEADER_TAGS)
            if can_be_served(header):
                return Entry(image, found, False, header, stamp)
        return Entry(image, found, True, self._names(image).header(found.path.name), stamp)

    def _instances_of(self, entry: Entry) -> list[Instance]:
        key = (entry.image, entry.stamp)
        # what was made may have been removed since
        files = self._made(entry) if entry.made else list(entry.found.files)
        with self._lock:
            known = self._instances.get(key)
            if known is not None:
                self._instances.move_to_end(key)
                return known
        found = []
        for path in files:
            header = read_usable(path, _INSTANCE_TAGS)
            if can_be_served(header) and str(header.SeriesInstanceUID) == entry.series:
                found.append(Instance(path, header))
        found.sort(key=lambda each: (int(each.header.get("InstanceNumber") or 0), each.path.name))
        with self._lock:
            self._instances[key] = found
            while len(self._instances) > _MOST_SERIES:
                self._instances.popitem(last=False)
        return found

    def _made(self, entry: Entry) -> list[Path]:
        """Return the DICOM files of an image of another format, made now where they are not there."""
        folder = self._folder / "dicom" / entry.stamp
        with self._making[entry.stamp]:
            if not folder.is_dir():
                self._make(entry, folder)
            os.utime(folder)
            return sorted(folder.iterdir())

    def _make(self, entry: Entry, folder: Path) -> None:
        image = self._images.read(Path(self._store.get_image_uri(entry.image)))
        place = self._made_folder("dicom")
        part = Path(tempfile.mkdtemp(prefix=".", dir=place))
        try:
            write_dicom(image, self._names(entry.image), part)
            os.replace(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._tell(entry, image)
        _bound(place, self._max_made_bytes)

    def _made_folder(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(0o700, parents=True, exist_ok=True)
        return folder

    def _describe_all(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.stamp in self._told:
                continue
            try:
                with self._images.in_background():
                    image = self._images.read(Path(self._store.get_image_uri(entry.image)))
                    self._tell(entry, image)
                    self._make_thumbnail(entry, image)
            except MedClipSamError as error:
                self._told[entry.stamp] = {"fault": str(error)}
            except Exception:
                logger.exception("An image could not be looked at")
                self._told[entry.stamp] = {"fault": "it cannot be read"}
        try:
            known = {entry.stamp for entry in self.entries()}
            self._told = {stamp: told for stamp, told in self._told.items() if stamp in known}
            write_json(self._made_folder("") / "images.json", self._told, mode=PRIVATE)
        except OSError as error:  # they are looked at again after a restart
            logger.warning("What is known of images is not kept: %s", error.strerror or error)

    def _tell(self, entry: Entry, image: MedicalImage) -> None:
        frames = self._names(entry.image).frames(image)
        self._told[entry.stamp] = {
            "modality": image.modality or "OT",
            "instances": len({instance for instance, _ in frames.frames}),
            "planes": image.n_planes,
            "rows": image.plane_shape[0],
            "columns": image.plane_shape[1],
        }

    def _read_told(self) -> dict[str, dict[str, Any]]:
        try:
            told = json.loads((self._folder / "images.json").read_text())
            return {stamp: dict(each) for stamp, each in told.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError):
            logger.warning("images.json of the workspace cannot be read; the images are looked at again")
            return {}


def small_picture(picture: Image.Image) -> bytes:
    """Return a picture as a JPEG of at most `THUMBNAIL_PIXELS` columns and rows."""
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return content.getvalue()


def render(
    path: Path, frame: int, *, kind: str, window: Window | None, size: tuple[int, int] | None, quality: int
) -> bytes:
    """Return a frame of a DICOM file as a picture, in the order of its own pixels.

    Parameters
    ----------
    path : Path
        The file.
    frame : int
        From 1.
    kind : {"JPEG", "PNG"}
        Format.
    window : Window or None
        The grey window; the one that the models see by default.
    size : tuple of int or None
        Most columns and rows.
    quality : int
        Of a JPEG, 1 to 100.

    Raises
    ------
    InputError
        If there is no such frame.
    ImageError
        If the file cannot be read.
    """
    image = read_image(path)
    plane = list(image.layout.plane_order).index(frame - 1) if frame <= image.n_planes else frame - 1
    pixels = image.layout.plane_to_stored(image.plane(plane, window))
    picture = Image.fromarray(pixels)
    if size is not None:
        picture.thumbnail(size)
    content = io.BytesIO()
    picture.save(content, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return content.getvalue()


def _bound(folder: Path, most: int) -> None:
    """Remove what was not used for longest until the rest is small enough, or one is left."""
    now, total = time.time(), 0
    entries = []
    for entry in folder.iterdir():
        try:
            state = entry.stat()
            size = sum(file.stat().st_size for file in entry.iterdir()) if entry.is_dir() else state.st_size
        except FileNotFoundError:  # removed by another thread
            continue
        total += size
        entries.append((state.st_mtime, size, entry))
    for used, size, entry in sorted(entries)[:-1]:
        if total <= most or (now - used < _IN_USE_SECONDS and entry.is_dir()):
            continue
        shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        total -= size
