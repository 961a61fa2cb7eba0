"""Studies on a DICOMweb server: series read as the DICOM they are, final labels kept there as DICOM SEG."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from pydicom import dcmread
from pydicom.dataset import Dataset

from medclipsam.base.errors import InputError, MedClipSamError, UpstreamContentError, UpstreamError
from medclipsam.base.formats import SEG_SUFFIX
from medclipsam.base.locks import process_start
from medclipsam.dicomweb.client import UID, Pacs
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.dicom import read_elements, read_frame_volumes, read_header, source_headers, stored_pixels
from medclipsam.imaging.dicom_frames import read_choice, write_choice
from medclipsam.imaging.dicom_geometry import is_slice
from medclipsam.imaging.dicom_seg import (
    Reference,
    SegmentInfo,
    check_same_segments,
    is_by_model,
    is_ours,
    read_seg_label_map,
    referenced_frames,
    superseded_instances,
    write_segmentation,
)
from medclipsam.imaging.dicom_series import Slice, kind_of, volumes_of
from medclipsam.imaging.label_map import LabelMap, check_same_masks
from medclipsam.imaging.write import replace_file
from medclipsam.measurements import Measurements, measure
from medclipsam.measurements.report import write_report
from medclipsam.server.base.errors import BusyError, ConflictError, UnknownError
from medclipsam.server.studies.datastore import FINAL, FileRecord, ImageRecord
from medclipsam.server.studies.images import ImageReader, Signature, series_as_volume, signature
from medclipsam.server.studies.kept_info import merged_image_info
from medclipsam.server.studies.label_files import LabelFiles, content_of
from medclipsam.server.studies.labels import LabelReader, ReceivedLabel
from medclipsam.server.studies.stores import SentLabel, SentLabels
from medclipsam.server.studies.waiting import WAITING_SECONDS, WAITING_THREADS, Places, Turn

logger = logging.getLogger(__name__)


# Seconds for which one answer of the server holds, and for a training, which asks for each image by itself.
FRESH_SECONDS = 1.0
LONG_FRESH_SECONDS = 60.0
# A series that was asked for within so many seconds may be in use, and one of a data list for a day.
IN_USE_SECONDS = 120.0
LISTED_SECONDS = 24 * 3600.0
# A small file that a process was killed in the middle of is nobody's after so many seconds.
_LEFT_SECONDS = 3600.0
_PARTIAL = ".partial"
# An image that the server did not send is not offered for so many seconds, where the error may pass.
_PASSED_OVER_SECONDS = 600.0
# Folders of links to the files of one volume of a series that holds several.
_PARTS = ".parts"
# Which series hold several volumes; kept so that they are listed as such after a restart.
_VOLUMES = ".volumes.json"
# Segmentations that were sent and that the server does not list yet.
_SENT = ".sent.json"
# The segmentations that were sent and that the server has not returned yet.
_SENT_COPIES = ".sent"

_FIELDS = ("StudyDescription", "SeriesDescription", "NumberOfSeriesRelatedInstances", "BodyPartExamined", "PatientID")
# Modalities whose series may be a heap of single pictures and loops.
_PICTURES = frozenset({"CR", "DX", "MG", "US"})
# Told of an image; the patient's name is not.
_INFO = (
    *("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "StudyDate", "StudyTime", "Modality", "BodyPartExamined"),
    *("StudyDescription", "SeriesDescription", "RetrieveURL"),
)
# Conditions on images that hold for their segmentations too.
_STUDY_LEVEL = frozenset(
    {
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"),
        *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
        *("ReferringPhysicianName", "ModalitiesInStudy"),
    }
)


@dataclass(frozen=True)
class LabelText:
    """What a DICOM SEG says beside its pixels."""

    segments: list[SegmentInfo]
    series_description: str = ""
    content_description: str = ""
    creator: str = ""


# Says what a label's segments are: the image's id, file, label map and what came with it.
Describe = Callable[[str, Path, LabelMap, Mapping[str, Any]], LabelText]
# Gives a segment that was read its label.
LabelOf = Callable[[SegmentInfo, set[int]], int]


@dataclass(frozen=True)
class _Listed:
    """An image on the server: a series, one of several pictures of a series, or one of several volumes of it."""

    header: Dataset
    study: str
    series: str
    count: int
    instance: str | None = None
    volume: str | None = None

    @property
    def stored(self) -> str:
        """The UID of what is fetched for it."""
        return self.instance or self.series


@dataclass(frozen=True)
class _Part:
    """One of several volumes of a series.

    `members` are the instances of its slices, or the frames of a multi-frame instance, see `_frame`. `choice` is the
    key of the volume in a multi-frame file that holds several.
    """

    key: str
    files: tuple[Path, ...]
    members: frozenset[str]
    choice: str = ""


@dataclass(frozen=True)
class _Held:
    """What a folder of a fetched series holds: its instances, and its volumes where there are several."""

    signature: Signature
    instances: frozenset[str]
    volumes: tuple[_Part, ...]

    def is_all(self, instances: frozenset[str], count: int) -> bool:
        """Whether these are the instances that the server lists, by their number where it lists none."""
        return self.instances == instances if instances else len(self.signature) >= count


@dataclass(frozen=True)
class _Failure:
    """Why an image was not sent: how many instances it had then, the sentence, and until when that counts."""

    count: int
    sentence: str
    until: float


@dataclass(frozen=True)
class StoredLabel:
    """A segmentation on the server: of an image, or, before that is known, of a series and what it was drawn on.

    `drawn_on` are the instances that it names, `frames` the frames of multi-frame instances, see `_frame`.
    """

    image: str
    drawn_on: frozenset[str]
    study: str
    reference: Reference
    when: str
    ours: bool
    supersedes: frozenset[str]
    by_model: bool = False
    frames: frozenset[str] = frozenset()

    def is_on(self, members: frozenset[str]) -> bool:
        """Whether it was drawn on a volume, given the volume's instances or frames."""
        return any(drawn and drawn <= members for drawn in (self.drawn_on, self.frames))

    @property
    def order(self) -> tuple[str, int, str]:
        """What grows from one to the next."""
        return self.when, self.reference.number, self.reference.instance


class ChangedLabelError(UpstreamError):
    """The DICOMweb server returns another label than was stored on it."""


class DicomWebStudies(LabelFiles):
    """Series of a DICOMweb server as images, and their labels.

    An image's id is its SeriesInstanceUID, and so is that of its labels. A series of radiographs or ultrasound may hold
    several pictures: then each of them is an image, whose id is its SOPInstanceUID. Images are fetched as they are
    stored, when they are asked for, into a folder of bounded size. A final label is a DICOM SEG on the server; other
    labels are files here.

    Parameters
    ----------
    pacs : Pacs
        The server.
    cache : Path
        Folder of fetched series and labels; made if needed.
    images : ImageReader
        Reads the images that labels are laid on.
    describe : callable
        Says what a final label's segments are.
    label_of : callable
        Gives the segments of a segmentation that is read their labels.
    labels : LabelReader, optional
        Reads the labels that are to be saved; by default any label map of an image.
    in_use : float
        Seconds for which an image that was asked for stays at least.
    fresh : float
        Seconds for which one answer of the server holds.

    Notes
    -----
    Of the segmentations of a series that this package has written, the last one that no other takes the place of
    counts; where there is none, the last one of another program, if the options say so.
    """

    is_remote = True

    def __init__(
        self,
        pacs: Pacs,
        cache: Path,
        *,
        images: ImageReader,
        describe: Describe,
        label_of: LabelOf,
        labels: LabelReader | None = None,
        in_use: float = IN_USE_SECONDS,
        fresh: float = FRESH_SECONDS,
    ) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        super().__init__(cache)
        self.pacs = pacs
        self._images = images
        self._describe = describe
        self._label_of = label_of
        self._labels_read = labels or LabelReader(images)
        self._in_use = in_use
        self._fresh = fresh
        self._places = Places(WAITING_THREADS, "the DICOMweb server")
        self._listing = Turn("the DICOMweb server's list")
        self._listed: tuple[float, dict[str, _Listed]] | None = None
        self._pictures: dict[tuple[str, int], list[str]] = {}
        self._labelled: tuple[float, dict[str, StoredLabel]] | None = None
        # what the segmentations of a series refer to never changes, so that each is looked at once
        self._segmentations: dict[tuple[str, int], list[StoredLabel]] = {}
        self._fetching: dict[str, Turn] = defaultdict(partial(Turn, "an image that is being fetched"))
        # the instances of series as the server has listed them last, and when that was
        self._instances_of: dict[str, tuple[float, frozenset[str]]] = {}
        self._held: dict[Path, _Held] = {}
        # how many instances the server listed of what was fetched, and what it did not send
        self._counts: dict[str, int] = {}
        self._failures: dict[str, _Failure] = {}
        self._noted: dict[str, Signature] = {}
        # series that hold several volumes: the instances or frames of each by the volume's id
        self._volumes: dict[str, dict[str, frozenset[str]]] = _read_volumes(cache / _VOLUMES)
        self._sent = SentLabels(cache / _SENT, cache / _SENT_COPIES)
        self._read_config(strict=True)
        self._remove_left_behind()

    def name(self) -> str:
        """Return the server's address."""
        return self.pacs.url

    def refresh(self) -> None:
        """Forget what the server has answered."""
        with self._listing:
            self._listed = self._labelled = None

    def list_images(self) -> list[str]:
        """Return the UIDs of the series.

        Raises
        ------
        UpstreamError
            If the server does not list them.
        """
        return list(self._series())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the UIDs of the series that have a label of a tag, by default `final`."""
        return self._split(label_tag)[0]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the UIDs of the series that have no label of a tag, by default `final`."""
        return self._split(label_tag)[1]

    def get_image_uri(self, image_id: str) -> str:
        """Return the folder that holds the series, fetched at the first call.

        Raises
        ------
        UnknownError
            If the server has no such series.
        UpstreamError
            If the series cannot be fetched.
        """
        return str(self._fetched(image_id, self._in_use))

    def unreadable_files(self) -> dict[str, str]:
        """Return nothing: the server's list is made without looking into files."""
        return {}

    def unfetched_images(self) -> dict[str, str]:
        """Return the images that the server did not send when they were requested last, and why.

        They count as such until the server lists another number of instances, and after an error that may pass for some
        minutes.
        """
        now, listed = time.monotonic(), self._series()
        failed = {
            image: failure
            for image, failure in self._failures.items()
            if image in listed and failure.count == listed[image].count and now < failure.until
        }
        self._failures = failed
        return {image: failure.sentence for image, failure in failed.items()}

    def image_at(self, path: Path) -> str | None:
        """Return the id of the image that `get_image_uri` returned a path for.

        None where there is none now, or where the server lists another number of instances by now.
        """
        listed = self._series().get(path.name)
        if listed is None or self._counts.get(listed.stored, listed.count) != listed.count:
            return None
        parts = self._root.resolve() / _PARTS / listed.series / path.name
        return path.name if path in (self._folder(path.name), parts) else None

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """Return the series as one file: the DICOM file of a series of one, else a NIfTI volume."""
        folder = Path(self.get_image_uri(image_id))
        files = _dicom_files(folder)
        if len(files) == 1 and read_choice(folder) is None:
            return content_of(files[0])
        volume = series_as_volume(self._images.read(folder))
        try:
            return content_of(volume)
        finally:
            volume.unlink()

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what the server says of a series, and what was kept with it here; empty where there is none."""
        listed = self._series().get(image_id)
        return {**self._told(image_id, listed), "path": str(self._folder(image_id))} if listed else {}

    def _told(self, image_id: str, listed: _Listed) -> dict[str, Any]:
        header = listed.header
        told = {name: text for name in _INFO if (text := _text(header, name))}
        if listed.instance:
            told["SOPInstanceUID"] = listed.instance
        if listed.volume:
            told["volume"] = listed.volume
        entry = self._datastore.objects.get(image_id)
        return {**(entry.image.info if entry else {}), **told}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the image's id for each tag that it has a label of."""
        return dict.fromkeys(self._tags(image_id, self._labels()), image_id)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return a label's file, a final one as the server has it now; empty where there is none.

        Raises
        ------
        UpstreamError
            If it cannot be fetched.
        InputError
            If a segmentation of ours does not lie on the image; another program's is none then.
        """
        tag = _tag(label_tag)
        self._look_again()
        if tag != FINAL:
            return super().get_label_uri(label_id, tag)
        stored = self._labels().get(label_id)
        if stored is None:
            return ""
        with self._places.one(), self._fetching[label_id]:
            known = self._datastore.label(label_id, FINAL)
            path = self._label_path(label_id, FINAL, known.ext) if known else None
            named = known.info.get("SOPInstanceUID") if known else None
            if path is None or named != stored.reference.instance or not path.is_file():
                try:
                    self._fetch_label(stored)
                except ChangedLabelError as error:
                    logger.error("%s", error)
                    return self.get_label_uri(label_id, tag)
                except InputError:
                    if stored.ours:
                        raise
                    # a training goes on without it
                    logger.warning("A segmentation of another program cannot be laid on its image")
                    return ""
            return super().get_label_uri(label_id, FINAL)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label: `label_info` and `label_names` name what its voxels are."""
        if not self.get_label_uri(label_id, label_tag):
            return {}
        label = self._datastore.label(label_id, _tag(label_tag))
        return dict(label.info) if label else {}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return image folder and label file of each finished series, all fetched, and kept here for a day.

        Of several people's labels only a consensus counts.
        """
        pairs = []
        for image in self.get_labeled_images():
            if self.waits_for_consensus(image):
                continue
            folder = self._fetched(image, LISTED_SECONDS)
            pairs.append({"image": str(folder), "label": self.get_label_uri(image, FINAL)})
        if full_path:
            return pairs
        return [{key: os.path.relpath(path, self._root) for key, path in pair.items()} for pair in pairs]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Raise `InputError`: images are sent to the server itself."""
        raise InputError(f"The studies lie on a DICOMweb server; send image {image_id!r} there.")

    def remove_image(self, image_id: str) -> None:
        """Raise `InputError`: images are removed from the server itself."""
        raise InputError(f"The studies lie on a DICOMweb server; remove image {image_id!r} there.")

    def status(self) -> dict[str, Any]:
        """Return how many images there are, how many are finished, and how many labels each tag has."""
        # asked for once: what is asked for anew for each image takes long where the server is slow
        images, labels = self.list_images(), self._labels()
        tags = Counter(tag for image in images for tag in self._tags(image, labels))
        return {"total": len(images), "completed": tags.get(FINAL, 0), "label_tags": dict(tags)}

    def json(self) -> dict[str, Any]:
        """Return images and labels with what is known of them."""
        content = self._datastore.model_dump(exclude={"objects"})
        series, stored = self._series(), self._labels()
        objects = {}
        for image, listed in series.items():
            entry = self._datastore.objects.get(image)
            known = entry.labels if entry else {}
            labels = {
                tag: (known[tag].model_dump() if tag in known else {"ext": ".nii.gz", "info": {}})
                for tag in self._tags(image, stored)
            }
            objects[image] = {"image": {"ext": "", "info": self._told(image, listed)}, "labels": labels}
        return {**content, "objects": objects}

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label; one tagged `final` becomes a DICOM SEG on the server, in place of the one before.

        Returns
        -------
        str
            The label's id, which is the image's.

        Raises
        ------
        UnknownError
            If there is no such image.
        InputError
            If the label must not be saved.
        ChangedLabelError
            If the server, when the label is read back, returns another one; the label before it still counts.
        UpstreamError
            If the server does not take it; then nothing is saved. Or if it is stored, but cannot be read back: then a
            copy is kept here, with which it is compared when it is read for the first time.
        """
        folder = Path(self.get_image_uri(image_id))
        received = self._labels_read.read(folder, Path(label_filename), dict(label_info or {}))
        return self.keep_label(image_id, _tag(label_tag), received)

    def keep_label(self, image_id: str, tag: str, received: ReceivedLabel) -> str:
        """Save a label that was read, as `save_label` does."""
        with self._places.one(), self._fetching[image_id]:
            if tag == FINAL:
                self._store_label(image_id, received)
            else:
                self._keep_label(image_id, tag, received.suffix, received.write, received.info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label that is a file here; one that is not there is none.

        Raises
        ------
        InputError
            If it is a final one: those belong to the server.
        """
        tag = _tag(label_tag)
        if tag == FINAL:
            raise InputError("A final label is a DICOM SEG on the DICOMweb server; remove it there.")
        with self._changing(label_id) as files:
            self._take_label(label_id, tag, files)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image here; when a strategy has proposed it last is kept in memory only.

        Raises
        ------
        UnknownError
            If there is no such image.
        """
        if image_id not in self._series():
            raise self._unknown(image_id)
        if set(info) <= {"strategy"}:
            with self._access:
                self._entry(image_id).image.info.update(info)
            return
        with self._changing(image_id):
            image = self._entry(image_id).image
            image.info = merged_image_info(image.info, info)

    def rendered(self, image_id: str) -> bytes:
        """Return a picture of an image that the server draws of one of its instances.

        Raises
        ------
        UnknownError
            If the server has no such image, or draws no pictures.
        UpstreamError
            If it does not answer.
        """
        listed = self._series().get(image_id)
        if listed is None:
            raise self._unknown(image_id)
        instances = sorted(self._instances_now(listed))
        if not instances:
            raise UnknownError(f"Image {image_id!r} has no instance to draw.")
        # of an instance and without any parameter: not all servers draw a series, or to size
        where = f"studies/{listed.study}/series/{listed.series}/instances/{instances[len(instances) // 2]}/rendered"
        with self._places.one():
            answer = self.pacs.send("GET", self.pacs.address("wado", where), headers={"Accept": "image/jpeg"})
            with answer:
                content = self.pacs.body(answer)
        if not answer.ok:
            raise UnknownError(f"The DICOMweb server draws no picture of image {image_id!r}.")
        return content

    def images_of(self, study: str, series: str, instance: str | None) -> list[str]:
        """Return the ids of the images that an instance belongs to, or of those of the series where none is named.

        Whether a series holds several volumes is known once it was fetched, which is done for it.

        Raises
        ------
        UnknownError
            If the server has no such series.
        """

        def listed() -> list[str]:
            found = [name for name, each in self._series().items() if (each.study, each.series) == (study, series)]
            if not found:
                raise UnknownError(f"Series {series!r} of study {study!r} is not among those of {self.name()}.")
            return found

        try:
            images = listed()
        except UnknownError:
            # a study may have come since the server was last asked
            with self._listing:
                self._listed = None
            images = listed()
        if instance in images:
            return [instance] if instance else images
        if images == [series]:
            with suppress(UnknownError):
                self.get_image_uri(series)
            images = listed()
        members = self._volumes.get(series, {})
        holding = [
            image
            for image in images
            if instance is not None and any(each.partition("#")[0] == instance for each in members.get(image, ()))
        ]
        return holding or images

    def forget_series(self, seconds: float) -> int:
        """Remove the fetched series that have not been asked for so long, and return how many; labels are kept."""
        oldest = time.time() - seconds
        return sum(self._remove(folder) for folder, used in self._fetched_folders() if used < oldest)

    def _series(self) -> dict[str, _Listed]:
        """Return the images by their ids, as the server lists them now."""
        self._look_again()
        with self._places.one(), self._listing:
            if self._listed is None or time.monotonic() - self._listed[0] > self._fresh:
                found: dict[str, _Listed] = {}
                pictures: dict[tuple[str, int], list[str]] = {}
                problem: UpstreamError | None = None
                # several modalities in one search are no part of the standard
                for modality in self.pacs.options.modalities:
                    conditions = {**dict(self.pacs.options.filters), "Modality": modality}
                    for header in self.pacs.search("series", conditions, _FIELDS):
                        try:
                            series = _uid(header, "SeriesInstanceUID", self.pacs)
                            study = _uid(header, "StudyInstanceUID", self.pacs)
                        except UpstreamError as error:
                            problem = error
                            continue
                        listed = _Listed(header, study, series, _count(header))
                        if modality not in _PICTURES or listed.count < 2:
                            volumes = self._volumes.get(series) or {series: frozenset()}
                            for image in volumes:
                                found[image] = listed if image == series else replace(listed, volume=image)
                            continue
                        key = (series, listed.count)
                        pictures[key] = self._pictures.get(key) or self._instances(listed)
                        for instance in pictures[key]:
                            found[instance] = replace(listed, count=1, instance=instance)
                if problem is not None:
                    if not found:
                        raise problem
                    # one odd series hides no other
                    logger.info("%s It is not listed.", problem)
                self._pictures = pictures
                self._listed = (time.monotonic(), found)
            return self._listed[1]

    def _look_again(self) -> None:
        """See what another process, such as a batch, has saved here."""
        with self._access:
            self._read_config()

    def _instances(self, listed: _Listed) -> list[str]:
        where = f"studies/{listed.study}/series/{listed.series}/instances"
        return [_uid(header, "SOPInstanceUID", self.pacs) for header in self.pacs.search(where, {})]

    def _instances_now(self, listed: _Listed, fresh: float | None = None) -> frozenset[str]:
        """Return the instances of what is fetched for an image, from an answer that is at most so many seconds old."""
        if listed.instance:
            return frozenset({listed.instance})
        known = self._instances_of.get(listed.series)
        if known is None or time.monotonic() - known[0] > (self._fresh if fresh is None else fresh):
            now = time.monotonic()
            known = (now, self.pacs.instances(listed.study, listed.series))
            fresh_ones = {key: each for key, each in self._instances_of.items() if now - each[0] <= self._fresh}
            self._instances_of = {**fresh_ones, listed.series: known}
        return known[1]

    def _labels(self) -> dict[str, StoredLabel]:
        """Return the segmentation that counts of each image that has one."""
        with self._places.one(), self._listing:
            self._series()
            if self._labelled is None or time.monotonic() - self._labelled[0] > self._fresh:
                conditions = {name: value for name, value in self.pacs.options.filters if name in _STUDY_LEVEL}
                stored: list[StoredLabel] = []
                looked: dict[tuple[str, int], list[StoredLabel]] = {}
                fields = ("NumberOfSeriesRelatedInstances",)
                for header in self.pacs.search("series", {**conditions, "Modality": "SEG"}, fields):
                    try:
                        series = _uid(header, "SeriesInstanceUID", self.pacs)
                        study = _uid(header, "StudyInstanceUID", self.pacs)
                    except UpstreamError as error:
                        logger.info("%s It is not used.", error)
                        continue
                    key = (series, _count(header))
                    # a server that does not say how many instances there are is asked each time
                    known = self._segmentations.get(key) if key[1] else None
                    looked[key] = known if known is not None else self._look_at(study, series)
                    stored += looked[key]
                stored += self._not_listed_yet({label.reference.instance for label in stored})
                wrong = {sent.reference.instance for sent in self._sent.all() if sent.wrong}
                stored = [label for label in stored if label.reference.instance not in wrong]
                self._segmentations = looked
                self._labelled = (time.monotonic(), self._that_count(stored))
            return self._labelled[1]

    def _look_at(self, study: str, series: str) -> list[StoredLabel]:
        """Return the segmentations of a series, from their metadata; what refers to no one series is none."""
        found = []
        for data in self.pacs.metadata(study, series):
            try:
                label = _stored_label(data, study, series)
            except Exception as error:  # values of other programs fail in more ways than are foreseen
                logger.info("A segmentation whose metadata cannot be read is not used (%s)", type(error).__name__)
                continue
            if label is not None:
                found.append(label)
        return found

    def _that_count(self, stored: list[StoredLabel]) -> dict[str, StoredLabel]:
        # a mask that a model of ours has made and nobody has saved is no final label, nor in the place of one
        stored = [label for label in stored if not (label.ours and label.by_model)]
        replaced = {instance for label in stored if label.ours for instance in label.supersedes}
        counting: dict[str, StoredLabel] = {}
        pictures = {instance for instances in self._pictures.values() for instance in instances}
        for each in stored:
            one = next(iter(each.drawn_on)) if len(each.drawn_on) == 1 else None
            label = replace(each, image=one) if one in pictures else each
            for image, members in self._volumes.get(each.image, {}).items():
                if each.is_on(members):
                    label = replace(each, image=image)
            if label.reference.instance in replaced or not (label.ours or self.pacs.options.foreign_labels):
                continue
            other = counting.get(label.image)
            if other is None or (label.ours, label.order) > (other.ours, other.order):
                counting[label.image] = label
        return counting

    def _split(self, label_tag: str | None) -> tuple[list[str], list[str]]:
        """Return the images that have a label of a tag, and those that have none."""
        tag = _tag(label_tag or FINAL)
        labels = self._labels() if tag == FINAL else {}
        images = self.list_images()
        have = {image for image in images if image in labels or (tag != FINAL and self._datastore.label(image, tag))}
        return [image for image in images if image in have], [image for image in images if image not in have]

    def _tags(self, image_id: str, labels: Mapping[str, StoredLabel]) -> list[str]:
        """Return the tags that an image has labels of, given those that are on the server."""
        entry = self._datastore.objects.get(image_id)
        here = sorted(tag for tag in (entry.labels if entry else {}) if tag != FINAL)
        return [*here, *([FINAL] if image_id in labels else [])]

    def _fetched(self, image_id: str, seconds: float) -> Path:
        """Return the folder of an image, which stays for so many seconds.

        What was fetched before is compared with the instances that the server lists now, and fetched again where they
        differ: a series may have been on its way when it was fetched.
        """
        listed = self._series().get(image_id) or self._series_of(image_id)
        if listed is None:
            raise self._unknown(image_id)
        folder = self._folder(listed.stored)
        with self._places.one(), self._fetching[listed.stored]:
            now = self._instances_now(listed)
            if folder.is_dir() and not self._held_in(folder).is_all(now, listed.count):
                self._remove(folder)
            if not self._keep_until(folder, seconds):
                self._note_failure(image_id, listed, lambda: self._fetch(listed, listed.stored, folder))
                self._keep_until(folder, seconds)
                self._bound_cache(folder)
            return folder if listed.instance else self._volume_folder(listed, image_id, folder)

    def _note_failure(self, image_id: str, listed: _Listed, fetch: Callable[[], object]) -> None:
        """Fetch an image, and note where the server does not send it."""
        try:
            fetch()
        except UpstreamError as error:
            if not isinstance(error.__cause__, OSError):
                lasting = error.permanent or isinstance(error, UpstreamContentError)
                until = float("inf") if lasting else time.monotonic() + _PASSED_OVER_SECONDS
                self._failures[image_id] = _Failure(listed.count, str(error), until)
            raise
        self._failures.pop(image_id, None)
        self._counts[listed.stored] = listed.count

    def _series_of(self, image_id: str) -> _Listed | None:
        """Return the series that an id names a volume of, which is not known before the series is fetched."""
        series, dash, _ = image_id.partition("-")
        listed = self._series().get(series) if dash else None
        return None if listed is None else replace(listed, volume=image_id)

    def _held_in(self, folder: Path) -> _Held:
        self._held[folder] = held = _held_in(folder, self._held.get(folder))
        return held

    def _volume_folder(self, listed: _Listed, image_id: str, folder: Path) -> Path:
        """Return the folder of an image from that of its series: the same, or links where there are several volumes."""
        volumes = {f"{listed.series}-{each.key}": each for each in self._held_in(folder).volumes}
        self._note_volumes(listed.series, folder, volumes)
        if not volumes and image_id == listed.series:
            return folder
        if image_id not in volumes:
            raise self._unknown(image_id)
        part = self._root.resolve() / _PARTS / listed.series / image_id
        part.mkdir(parents=True, exist_ok=True)
        for file in volumes[image_id].files:
            with suppress(FileExistsError):
                (part / file.name).symlink_to(file)
        choice = volumes[image_id].choice
        if choice and read_choice(part) != choice:
            write_choice(part, choice, like=volumes[image_id].files[0])
        return part

    def _note_volumes(self, series: str, folder: Path, volumes: Mapping[str, _Part]) -> None:
        """Take in which volumes a series holds, and list them from now on."""
        held = self._held_in(folder).signature
        if self._noted.get(series) == held:
            return
        self._noted[series] = held
        found = {image: each.members for image, each in volumes.items()}
        if found == self._volumes.get(series, {}):
            return
        with self._listing:
            self._volumes = {key: value for key, value in self._volumes.items() if key != series}
            if found:
                self._volumes[series] = found
            told = {key: {image: sorted(uids) for image, uids in each.items()} for key, each in self._volumes.items()}
            replace_file(self._root / _VOLUMES, ".json", lambda path: path.write_text(json.dumps(told)))
            self.refresh()

    def _unknown(self, image_id: str) -> UnknownError:
        several = next((len(names) for (series, _), names in self._pictures.items() if series == image_id), 0)
        if several:
            return UnknownError(
                f"Series {image_id} holds {several} pictures; ask for one of them by its SOPInstanceUID."
            )
        volumes = self._volumes.get(image_id.partition("-")[0])
        if volumes:
            return UnknownError(f"Series {image_id} holds several volumes; ask for one of them: {', '.join(volumes)}.")
        return UnknownError(f"Image {image_id!r} is not among the series of {self.name()}.")

    def _folder(self, image_id: str) -> Path:
        return self._root.resolve() / image_id

    def _fetch(self, listed: _Listed, image_id: str, folder: Path) -> None:
        # under another name until it is whole, since a folder that exists is taken as fetched
        partial = folder.with_name(f".{image_id}.{os.getpid()}{_PARTIAL}")
        try:
            self._retrieve(listed, partial)
            try:
                os.replace(partial, folder)
            except OSError:
                # another process was faster
                if not folder.is_dir():
                    raise
        except OSError as error:
            raise UpstreamError(f"Series {image_id} cannot be kept here: {error.strerror or error}.") from error
        except UnknownError:
            self.refresh()
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _retrieve(self, listed: _Listed, partial: Path) -> None:
        """Retrieve what the server lists, once more where instances came or went meanwhile."""
        expected = self._instances_now(listed)
        try:
            self.pacs.retrieve(listed.study, listed.series, partial, listed.instance, listed.count, expected)
        except UpstreamError:
            now = self._instances_now(listed, fresh=0)
            if now == expected:
                raise
            self.pacs.retrieve(listed.study, listed.series, partial, listed.instance, 0, now)

    @staticmethod
    def _keep_until(folder: Path, seconds: float) -> bool:
        """Let a folder stay for so many seconds, by its time of change; whether it is there."""
        until = time.time() + seconds
        try:
            if folder.stat().st_mtime < until:
                os.utime(folder, (until, until))
        except FileNotFoundError:
            return False
        return True

    def _fetched_folders(self) -> list[tuple[Path, float]]:
        """Return the folders of fetched series and until when they stay."""
        found = []
        for folder in self._root.resolve().iterdir():
            # another thread or process may remove it at the same moment
            with suppress(FileNotFoundError):
                if UID.fullmatch(folder.name) and folder.is_dir():
                    found.append((folder, folder.stat().st_mtime))
        return found

    def _bound_cache(self, newest: Path) -> None:
        """Remove the series that were asked for longest ago, until the others fit."""
        sizes = {folder: _bytes(folder) for folder, _ in self._fetched_folders()}
        total, allowed = sum(sizes.values()), self.pacs.options.cache_mb * 2**20
        for folder, until in sorted(self._fetched_folders(), key=lambda entry: entry[1]):
            if total <= allowed or until > time.time():
                break
            if folder != newest and self._remove(folder):
                total -= sizes.get(folder, 0)
        if total > allowed:
            logger.warning("Fetched series in use take more than pacs_cache_mb allows")

    def _remove(self, folder: Path) -> bool:
        with self._fetching[folder.name]:
            # at once under another name, so that a folder is never found with some of its files
            going = folder.with_name(f".{folder.name}.{os.getpid()}{_PARTIAL}")
            try:
                os.replace(folder, going)
            except OSError:
                return False
            shutil.rmtree(going, ignore_errors=True)
            shutil.rmtree(folder.parent / _PARTS / folder.name, ignore_errors=True)
            self._held.pop(folder, None)
            return True

    def _remove_left_behind(self) -> None:
        """Remove what processes that have ended were fetching or writing."""
        self._remove_parts()
        for folder in self._root.resolve().rglob(f".*{_PARTIAL}"):
            pid = folder.name.removesuffix(_PARTIAL).rpartition(".")[2]
            if pid.isascii() and pid.isdigit() and process_start(int(pid)) is None:
                shutil.rmtree(folder, ignore_errors=True)
        oldest = time.time() - _LEFT_SECONDS
        for file in (*self._root.glob(f"{_SENT}.*"), *self._root.glob(f".{_VOLUMES}.*")):
            with suppress(FileNotFoundError):
                if file.name != f"{_SENT}.lock" and file.stat().st_mtime < oldest:
                    file.unlink()

    def _entry(self, image_id: str) -> ImageRecord:
        # with an empty extension the folder itself is the image's file
        return self._datastore.objects.setdefault(image_id, ImageRecord(image=FileRecord(ext="")))

    def _keep_label(
        self,
        image_id: str,
        tag: str,
        suffix: str,
        write: Callable[[Path], object],
        info: Mapping[str, Any],
    ) -> None:
        with self._changing(image_id) as files:
            self._put_label(self._entry(image_id), image_id, tag, suffix, write, info, files)

    def _store_label(self, image_id: str, received: ReceivedLabel) -> None:
        label, image, info = received.label, received.label.image, received.info
        text = self._describe(image_id, received.image, label, info)
        corrections: list[str] = []
        with self._storing(), _temporary(".dcm") as path:
            self.refresh()
            self._check_complete(image_id)
            before = self._labels().get(image_id)
            earlier = [before.reference] if before is not None and before.ours else []
            # those that were sent before and may appear later, and those that the server has changed
            waiting = [sent.reference for sent in self._sent.all() if sent.image == image_id]
            earlier += [reference for reference in waiting if reference not in earlier]
            made = write_segmentation(
                label.drawn,
                image,
                text.segments,
                path,
                kind=self.pacs.options.seg_type,
                series_description=text.series_description,
                content_description=text.content_description,
                creator=text.creator,
                supersedes=earlier,
                noted=corrections.append,
            )
            sent = self._send(image_id, path, earlier)
            self.refresh()
        stored = self._read_back(sent, image)
        if corrections:
            logger.warning("A segmentation was written from headers with invalid values: %s", " ".join(corrections))
            info = {**info, "corrections": corrections}
        if self.pacs.options.reports:
            info = {**info, "report": self._store_report(made, label, text)}
        named = LabelMap(stored.values, image, _names((s.label, s) for s in text.segments), beneath=stored.beneath)
        told = _about(str(made.SOPInstanceUID), str(made.SeriesInstanceUID), text.segments)
        self._keep_final(image_id, named, {**info, **told})

    def _store_report(self, made: Dataset, label: LabelMap, text: LabelText) -> dict[str, str]:
        """Store a label's measurements, and return the report's UIDs, or why there is none: the label is saved."""
        try:
            measured = _measured(label, [segment.label for segment in text.segments])
            return self._send_report(measured, made, label.image, text.creator)
        except MedClipSamError as error:
            logger.warning("The measurements of a label were not stored: %s", error)
            return {"error": str(error)}

    def store_report(self, image_id: str) -> dict[str, str]:
        """Store the measurements of an image's final label as a structured report, and return the report's UIDs.

        One that this server has stored for the label already is not stored again.

        Raises
        ------
        UnknownError
            If there is no final label.
        UpstreamError
            If the server refuses the report.
        InputError
            If no report can be made of the label.
        """
        stored = self._labels().get(image_id) if self.get_label_uri(image_id, FINAL) else None
        if stored is None:
            raise UnknownError(f"Image {image_id!r} has no final label to measure.")
        known = self.get_label_info(image_id, FINAL)
        if known.get("SOPInstanceUID") == stored.reference.instance and "SOPInstanceUID" in known.get("report", {}):
            return dict(known["report"])
        image = self._images.read(Path(self.get_image_uri(image_id)))
        reference = stored.reference
        folder = self._root / f".{image_id}.report.{os.getpid()}{_PARTIAL}"
        try:
            self.pacs.retrieve(
                stored.study, reference.series, folder, reference.instance, 1, frozenset({reference.instance})
            )
            made = dcmread(folder / "0.dcm", stop_before_pixels=True)
            labels, segments = self._read_segmentation(folder / "0.dcm", image)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        measured = _measured(labels, [label for label, _ in segments])
        report = self._send_report(measured, made, image, str(made.get("ContentCreatorName") or ""))
        self.update_label_info(image_id, FINAL, {"report": report})
        return report

    def _send_report(
        self, measured: Sequence[Measurements], made: Dataset, image: MedicalImage, creator: str
    ) -> dict[str, str]:
        """Store a report of measurements, and return its UIDs."""
        with _temporary(".dcm") as path:
            report = write_report(measured, made, image, path, creator=creator)
            names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            study, series, instance = (str(report[name].value) for name in names)
            self.pacs.store(path.read_bytes(), study, series, instance)
        return {"SeriesInstanceUID": series, "SOPInstanceUID": instance}

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Let one thread of all processes store at a time."""
        lock = FileLock(str(self._root / ".storing"), timeout=WAITING_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise BusyError("Another label is being stored, which takes long; save this one again later.", 5) from None
        try:
            yield
        finally:
            lock.release()

    def _check_complete(self, image_id: str) -> None:
        """Raise `ConflictError` if the server has other instances of a series by now than were fetched."""
        listed = self._series().get(image_id)
        if listed is None:
            raise self._unknown(image_id)
        now = self._instances_now(listed, fresh=0)
        held = self._held_in(self._folder(listed.stored))
        if not held.is_all(now, listed.count):
            raise ConflictError(
                f"Series {listed.series} has {max(len(now), listed.count)} instances on the DICOMweb server now; the "
                f"label was drawn on {len(held.instances)} of them. Load the image again, then save a label."
            )

    def _send(self, image_id: str, path: Path, earlier: Sequence[Reference]) -> StoredLabel:
        """Store a segmentation on the server, and return it."""
        header = dcmread(path, stop_before_pixels=True)
        study, series, instance = (
            str(header[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
        reference = Reference(series, instance, int(header.InstanceNumber), str(header.SOPClassUID))
        superseded = tuple(each.instance for each in earlier)
        sent = SentLabel(image_id, study, reference, _content_time(header), superseded)
        self._sent.add(sent, path)
        try:
            self.pacs.store(path.read_bytes(), study, series, instance)
        except UpstreamError as error:
            if error.permanent:
                self._sent.refused(instance)
            raise
        self._sent.confirm(instance)
        return _as_stored(sent)

    def _read_back(self, stored: StoredLabel, image: MedicalImage) -> LabelMap:
        """Return the label map of a segmentation that was just stored, as the server returns it."""
        for tried in range(self.pacs.options.retries + 1):
            # a server may know of an instance later than it says so
            time.sleep(0.5 * 2 ** (tried - 1) if tried else 0)
            try:
                return self._read_stored(stored, image)[0]
            except ChangedLabelError:
                raise
            except UnknownError as error:
                problem = UpstreamError(str(error))
            except UpstreamError as error:
                problem = error
                break
        raise problem.adding(
            "The label is stored on the DICOMweb server, but could not be read back to be checked. A copy is kept on "
            "this server, and compared with the label when it is read for the first time; save the label again to be "
            "sure."
        )

    def _read_stored(self, stored: StoredLabel, image: MedicalImage) -> tuple[LabelMap, list[tuple[int, SegmentInfo]]]:
        """Return label map and segments of a segmentation as the server has it.

        One of which a copy is kept here is compared with the copy.

        Raises
        ------
        ChangedLabelError
            If they differ; the segmentation is not a label from now on.
        """
        instance = stored.reference.instance
        copy = self._sent.unread(instance)
        meant = self._read_segmentation(copy, image) if copy is not None else None
        folder = self._root / f".{stored.image}.label.{os.getpid()}{_PARTIAL}"
        try:
            self.pacs.retrieve(stored.study, stored.reference.series, folder, instance, 1, frozenset({instance}))
            label, segments = self._read_segmentation(folder / "0.dcm", image)
            if meant is not None:
                check_same_masks(label, meant[0], "The DICOM SEG")
                check_same_segments(segments, meant[1], "The DICOM SEG")
        except (InputError, UpstreamContentError) as error:
            if meant is None or isinstance(error, UnknownError):
                raise
            self._sent.reject(_as_sent(stored))
            self.refresh()
            raise ChangedLabelError(
                f"The DICOMweb server {self.pacs.url} stored something else than the label that was sent. {error} It "
                "is not used as a label; the label before it, where there is one, still counts."
            ).as_permanent() from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._sent.returned(instance, stored.supersedes)
        return label, segments

    def _read_segmentation(self, path: Path, image: MedicalImage) -> tuple[LabelMap, list[tuple[int, SegmentInfo]]]:
        taken: set[int] = set()

        def label_of(segment: SegmentInfo) -> int:
            label = self._label_of(segment, taken)
            taken.add(label)
            return label

        return read_seg_label_map(path, image, label_of)

    def _not_listed_yet(self, listed: Collection[str]) -> list[StoredLabel]:
        """Return the segmentations that are stored, were read back, and that the server does not list yet."""
        self._sent.forget(listed)
        return [
            _as_stored(sent)
            for sent in self._sent.all()
            if sent.confirmed and not sent.wrong and self._sent.unread(sent.reference.instance) is None
        ]

    def _fetch_label(self, stored: StoredLabel) -> None:
        """Keep a label here as the server has it."""
        image = self._images.read(Path(self.get_image_uri(stored.image)))
        planes = {str(header.SOPInstanceUID) for header in source_headers(image.source)}
        if stored.ours and stored.drawn_on and stored.drawn_on < planes:
            raise InputError(
                f"The label of {stored.image} was drawn on {len(stored.drawn_on)} of the {len(planes)} slices that the "
                "series has now; correct it and save it again."
            )
        label, segments = self._read_stored(stored, image)
        told = _about(
            stored.reference.instance, stored.reference.series, [segment for number, segment in segments if number]
        )
        self._keep_final(stored.image, replace(label, asked={}), told)

    def _keep_final(self, image_id: str, label: LabelMap, info: Mapping[str, Any]) -> None:
        told = {**info, **label.to_monailabel()}
        suffix = SEG_SUFFIX if label.overlaps else ".nii.gz"
        self._keep_label(image_id, FINAL, suffix, label.writer(f"label{suffix}"), told)


def _as_stored(sent: SentLabel) -> StoredLabel:
    """Return a segmentation that was sent as one that is on the server."""
    return StoredLabel(sent.image, frozenset(), sent.study, sent.reference, sent.when, True, frozenset(sent.supersedes))


def _as_sent(stored: StoredLabel) -> SentLabel:
    return SentLabel(stored.image, stored.study, stored.reference, stored.when, tuple(stored.supersedes), True)


def _measured(label: LabelMap, values: Iterable[int | None]) -> list[Measurements]:
    """Return what the segments of a label measure; one without a value says that there is nothing."""
    empty = np.zeros(label.values.shape, bool)
    return [measure(label.mask_of(value) if value else empty, label.image) for value in values]


def _names(segments: Iterable[tuple[int | None, SegmentInfo]]) -> dict[str, int]:
    return {segment.name: label for label, segment in segments if label}


def _about(instance: str, series: str, segments: Sequence[SegmentInfo]) -> dict[str, Any]:
    """Return what is kept with a final label beside its names: who drew each segment, and where it is stored."""
    return {
        "algorithms": {segment.name: segment.algorithm for segment in segments if segment.label != 0},
        "SOPInstanceUID": instance,
        "SeriesInstanceUID": series,
    }


def _content_time(data: Dataset) -> str:
    return f"{data.get('ContentDate') or ''}{data.get('ContentTime') or ''}"


def _tag(tag: Any) -> str:
    return str(getattr(tag, "value", tag))


def _count(header: Dataset) -> int:
    try:
        return max(int(header.get("NumberOfSeriesRelatedInstances") or 0), 0)
    except (TypeError, ValueError):
        return 0


def _stored_label(data: Dataset, study: str, series: str) -> StoredLabel | None:
    """Return a segmentation from its metadata; None for one that refers to no one series."""
    series_items = data.get("ReferencedSeriesSequence") or []
    referred = {str(item.get("SeriesInstanceUID", "")) for item in series_items}
    drawn_on = frozenset(
        str(item.get("ReferencedSOPInstanceUID", ""))
        for each in series_items
        for item in each.get("ReferencedInstanceSequence") or []
    )
    instance = str(data.get("SOPInstanceUID", ""))
    if len(referred) != 1 or not UID.fullmatch(instance):
        return None
    number = int(data.get("InstanceNumber") or 1)
    references = [
        item
        for frame in data.get("PerFrameFunctionalGroupsSequence") or []
        for derivation in frame.get("DerivationImageSequence") or []
        for item in derivation.get("SourceImageSequence") or []
    ]
    frames = frozenset(
        _frame(str(item.get("ReferencedSOPInstanceUID", "")), n) for item in references for n in referenced_frames(item)
    )
    return StoredLabel(
        image=referred.pop(),
        drawn_on=drawn_on,
        study=study,
        reference=Reference(series, instance, number, str(data.get("SOPClassUID", ""))),
        when=_content_time(data),
        ours=is_ours(data),
        supersedes=frozenset(superseded_instances(data)),
        by_model=is_by_model(data),
        frames=frames,
    )


def _frame(instance: str, number: int) -> str:
    """Return what stands for a frame, counted from 1, of a multi-frame instance."""
    return f"{instance}#{number}"


def _text(header: Dataset, keyword: str) -> str:
    """Return a value as text that can be answered and kept; empty where there is none, or one that is no text."""
    try:
        value = header.get(keyword)
        return "" if value is None else str(value).encode("utf-8", "replace").decode()
    except Exception:  # values of other programs fail in more ways than are foreseen
        return ""


def _uid(header: Dataset, keyword: str, pacs: Pacs) -> str:
    """Return a UID of a server's answer; it names files here, so that nothing else is taken."""
    value = _text(header, keyword)
    if not UID.fullmatch(value) or len(value) > 64:
        raise UpstreamError(f"The DICOMweb server {pacs.url} lists a series without a {keyword}.").as_permanent()
    return value


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


def _held_in(folder: Path, known: _Held | None) -> _Held:
    """Return what a folder of a fetched series holds; what is known already where none of its files has changed."""
    now = signature(folder)
    if known is not None and known.signature == now:
        return known
    instances: set[str] = set()
    slices: list[Slice] = []
    several_frames: list[tuple[Path, Dataset]] = []
    for file in _dicom_files(folder):
        header = read_header(file)
        if header is None:  # not an image, but an instance of the series
            header = read_elements(file, ["SOPInstanceUID"])
        elif is_slice(header):
            with suppress(Exception):  # who reads the series says what is wrong with it
                slices.append(Slice.from_header(file, header))
        elif kind_of(header) == "slice":
            several_frames.append((file, header))
        instances.add(str(header.get("SOPInstanceUID", "")))
    parts = _parts_of_slices(slices) if slices else _parts_of_frames(several_frames)
    return _Held(now, frozenset(instances), tuple(parts) if len(parts) > 1 else ())


def _parts_of_slices(slices: Sequence[Slice]) -> list[_Part]:
    instances = {each.path: each.instance for each in slices}
    return [
        _Part(volume.key, volume.all_files, frozenset(instances[file] for file in volume.files))
        for volume in volumes_of(slices, stored_pixels)
    ]


def _parts_of_frames(files: Sequence[tuple[Path, Dataset]]) -> list[_Part]:
    """Return the volumes of multi-frame files: each file is one, or the volumes that its frames form are."""
    numbers = [str(header.get("InstanceNumber") or "") for _, header in files]
    if "" in numbers or len(set(numbers)) < len(numbers):
        numbers = [str(number) for number in range(1, len(files) + 1)]
    parts = []
    for (file, header), number in zip(files, numbers, strict=True):
        instance, name = str(header.get("SOPInstanceUID", "")), f"instance{number}"
        volumes = read_frame_volumes(file)
        for volume in volumes:
            members = frozenset(_frame(instance, frame + 1) for frame in volume.frames)
            key = volume.key if len(files) == 1 else f"{name}-{volume.key}"
            parts.append(_Part(key, (file,), members, volume.key))
        if not volumes:
            parts.append(_Part(name, (file,), frozenset({instance})))
    return parts


def _read_volumes(file: Path) -> dict[str, dict[str, frozenset[str]]]:
    try:
        told = json.loads(file.read_text())
        return {series: {image: frozenset(uids) for image, uids in each.items()} for series, each in told.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError):
        logger.warning("%s cannot be read; volumes of series are looked for again", file.name)
        return {}


def _bytes(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:  # removed by another thread or process at the same moment
        return 0


@contextmanager
def _temporary(suffix: str) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(suffix=suffix)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
