"""What a viewer must know of an image: its id here, and which DICOM frames show its planes."""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.imaging.frames import ImageFrames
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.studies.catalogue import Catalogue, small_picture
from medclipsam.server.studies.datastore import Datastore
from medclipsam.server.studies.dicomweb import DicomWebStudies
from medclipsam.server.studies.images import ImageReader, Signature, signature

# Small pictures of a DICOMweb server's images that are kept in memory.
_MOST_PICTURES = 1000
# Images whose frames are remembered; the images themselves are not.
_MOST = 64


class ViewedImages:
    """Finds the images of the studies by their DICOM names, and their frames; safe to use from several threads.

    Parameters
    ----------
    store : Datastore
        The studies.
    images : ImageReader
        Reads their images.
    path_of : callable
        Returns the file or folder of an image by its id; raises `UnknownError` where there is none.
    catalogue : Catalogue or None
        The studies as DICOM where they are in a folder; None where they are on a DICOMweb server.
    """

    def __init__(
        self, store: Datastore, images: ImageReader, path_of: Callable[[str], Path], catalogue: Catalogue | None
    ) -> None:
        self.catalogue = catalogue
        self._store = store
        self._images = images
        self._path_of = path_of
        self._lock = threading.Lock()
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._known: OrderedDict[tuple[str, Signature], tuple[str, str, tuple[tuple[str, int], ...]]] = OrderedDict()

    def warm_up(self) -> None:
        """Look at the headers of the studies folder beside the requests, so that the first list need not."""
        if self.catalogue is not None:
            threading.Thread(target=self.catalogue.entries, name="look at headers", daemon=True).start()

    def frames(self, image_id: str) -> ImageFrames:
        """Return which frames show the planes of an image, which is read for it.

        Raises
        ------
        UnknownError
            If there is no such image.
        ImageError
            If it cannot be read.
        """
        path = self._path_of(image_id)
        image = self._images.read(path)
        made = self.catalogue.frames(image_id, image) if self.catalogue is not None else None
        if made is not None:
            return made
        # the headers of many slices take their time
        key = (image_id, signature(path))
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return ImageFrames(*known, image)
        found = ImageFrames.of_dicom(image)
        with self._lock:
            self._known[key] = (found.study, found.series, found.frames)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        return found

    def thumbnail(self, image_id: str) -> bytes:
        """Return a small JPEG picture of an image.

        Raises
        ------
        UnknownError
            If there is none: a DICOMweb server is asked to draw one, which not all of them do.
        ImageError
            If the image cannot be read.
        UpstreamError
            If the DICOMweb server does not answer.
        """
        if self.catalogue is not None:
            return self.catalogue.thumbnail([self.catalogue.entry(image_id)])
        if not isinstance(self._store, DicomWebStudies):
            raise UnknownError("The studies have no pictures.")
        with self._lock:
            known = self._pictures.get(image_id)
        if known is None:
            drawn = self._store.rendered(image_id)
            try:
                picture = Image.open(io.BytesIO(drawn), formats=("JPEG", "PNG")).convert("RGB")
            except (OSError, Image.DecompressionBombError) as error:
                raise UnknownError(f"The DICOMweb server drew no picture of image {image_id!r}.") from error
            known = small_picture(picture)
            with self._lock:
                self._pictures[image_id] = known
                while len(self._pictures) > _MOST_PICTURES:
                    self._pictures.popitem(last=False)
        return known

    def describe(self, image_id: str) -> dict[str, Any]:
        """Return what is told of an image in lists, without reading it: `name`, `modality`, `planes`, `date`, UIDs.

        `name` is in words for people: of DICOM the patient's id and what study and series are called. `planes` and
        `modality` are None where they are not known yet.

        Raises
        ------
        UnknownError
            If there is no such image.
        """
        study, series = self.names(image_id)
        told: dict[str, Any] = {"study": study, "series": series, "planes": None}
        if self.catalogue is None:
            info = self._store.get_image_info(image_id)
            words = [info.get("PatientID"), info.get("StudyDescription"), info.get("SeriesDescription")]
            return {**told, "name": _name(words, image_id), "modality": info.get("Modality"), **_date(info)}
        entry = self.catalogue.entry(image_id)
        header = entry.header
        if entry.made:
            known = self.catalogue.told(entry) or {}
            modality = known.get("modality")
            return {
                **told,
                "name": image_id,
                "modality": None if modality == "OT" else modality,
                "planes": known.get("planes"),
                "date": None,
                "fault": known.get("fault"),
            }
        words = [header.get(key) for key in ("PatientID", "StudyDescription", "SeriesDescription")]
        many = len(entry.found.files) if len(entry.found.files) > 1 else None
        shown = {"name": _name(words, image_id), "modality": str(header.get("Modality") or "") or None}
        return {**told, **shown, "planes": many, **_date({"StudyDate": header.get("StudyDate")})}

    def names(self, image_id: str) -> tuple[str, str]:
        """Return the UIDs of study and series of an image, without reading it.

        Raises
        ------
        UnknownError
            If there is no such image.
        """
        if self.catalogue is not None:
            entry = self.catalogue.entry(image_id)
            return entry.study, entry.series
        info = self._store.get_image_info(image_id)
        if not info.get("StudyInstanceUID") or not info.get("SeriesInstanceUID"):
            raise UnknownError(f"Image {image_id!r} is not among the studies.")
        return str(info["StudyInstanceUID"]), str(info["SeriesInstanceUID"])

    def image_of(self, study: str, series: str, instance: str | None = None, frame: int | None = None) -> str:
        """Return the id of the image that a series, an instance or a frame belongs to.

        Raises
        ------
        UnknownError
            If it is not there.
        InputError
            If it holds several images, and neither instance nor frame tells which is meant.
        """
        if self.catalogue is not None:
            found = self.catalogue.images_of(study, series, instance)
        elif isinstance(self._store, DicomWebStudies):
            found = self._store.images_of(study, series, instance)
        else:
            raise UnknownError("The studies have no DICOM names.")
        if len(found) > 1 and frame is not None:
            found = [each for each in found if (instance, frame) in self.frames(each).planes] or found
        if len(found) > 1:
            what = f"Series {series}" if instance is None else f"Instance {instance}"
            raise InputError(
                f"{what} holds several images; name an instance, or a frame, of one of them: {', '.join(found)}."
            )
        return found[0]


def _name(words: Sequence[object], image_id: str) -> str:
    """Return what an image is called, of the words that are known of it, each once."""
    said = list(dict.fromkeys(text for word in words if (text := " ".join(str(word or "").split()))))
    # a file of a flat folder is known by its name
    if not re.fullmatch(r"[0-9.]+(-.*)?", image_id):
        return image_id
    return " \N{MIDDLE DOT} ".join(said) or image_id


def _date(info: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the date of a study as people write it, from the year on; None where it is not known."""
    found = re.fullmatch(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})", str(info.get("StudyDate") or ""))
    return {"date": "-".join(found.groups()) if found else None}
