"""Studies on a DICOMweb server, read as the DICOM they are."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.datastore import DefaultLabelTag
from requests import RequestException
from retrying import RetryError

from medclipsam.errors import InputError
from medclipsam.server.http import UnknownError, UpstreamError
from medclipsam.server.label_files import CheckLabel

SEARCH_FILTER = {"Modality": "CT,MR,CR,DX,MG,US"}


class DicomWebStudies(DICOMWebDatastore):
    """MONAI Label's DICOMweb datastore whose images are folders of DICOM files.

    The stock one turns each series into NIfTI first, which loses the modality and the windows, and fails on radiographs
    and on ultrasound.

    Parameters
    ----------
    check_label : callable, optional
        Raises `InputError` for a label that must not be saved; given the image's folder, the label's file and what
        comes with it.
    """

    def __init__(self, *args: Any, check_label: CheckLabel | None = None, **more: Any) -> None:
        self._check_label = check_label
        # requests run in threads: MONAI Label's cached listings are not made for that, and a series is fetched once
        self._listing = threading.RLock()
        self._fetching: dict[str, threading.Lock] = defaultdict(threading.Lock)
        super().__init__(*args, **more)

    def list_images(self) -> list[str]:
        """Return the UIDs of the series."""
        with self._listing:
            return list(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the UIDs of the series that a SEG series refers to."""
        with self._listing:
            return list(super().get_labeled_images(label_tag, labels))

    def get_image_uri(self, image_id: str) -> str:
        """Return the folder that holds the series, fetched at the first call.

        Raises
        ------
        UnknownError
            If the server lists no such series.
        UpstreamError
            If the series cannot be fetched.
        """
        try:
            known = image_id in self.list_images()
        except (RequestException, RetryError) as error:
            raise UpstreamError(f"The DICOMweb server {self.name()} did not list its series: {error}.") from error
        if not known:
            raise UnknownError(f"Image {image_id!r} is not among the series of {self.name()}.")

        folder = Path(self._datastore.image_path(), image_id).resolve()
        with self._fetching[image_id]:
            if not folder.is_dir():
                self._fetch(image_id, folder)
        # the time of the latest use, by which folders that nobody asks for are found
        os.utime(folder)
        if image_id not in self._datastore.objects:
            # with an empty extension the folder itself is the image's file
            image = DataModel(info=self._dicom_info(image_id), ext="")
            self._datastore.objects[image_id] = ImageLabelModel(image=image)
            self._update_datastore_file()
        return str(folder)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label; one tagged `final` also becomes a DICOM SEG series on the server.

        Raises
        ------
        InputError
            If the label must not be saved, or the tool that writes DICOM SEG is not installed.
        """
        if self._check_label is not None:
            self._check_label(Path(self.get_image_uri(image_id)), Path(label_filename), label_info or {})
        if label_tag == DefaultLabelTag.FINAL and shutil.which("itkimage2segimage") is None:
            raise InputError(
                "A final label becomes DICOM SEG, for which the program itkimage2segimage is needed; "
                "install it with: pip install dcmqi."
            )
        return super().save_label(image_id, label_filename, label_tag, label_info, label_id)

    def forget_series(self, seconds: float) -> int:
        """Remove the fetched series that have not been asked for so long, and return how many; labels are kept."""
        removed = 0
        oldest = time.time() - seconds
        for image_id in list(self._datastore.objects):
            folder = Path(self._datastore.image_path(), image_id).resolve()
            with self._fetching[image_id]:
                if folder.is_dir() and folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
        return removed

    def _fetch(self, image_id: str, folder: Path) -> None:
        from monailabel.datastore.utils.dicom import dicom_web_download_series

        # under another name until it is whole, since a folder that exists is taken as fetched
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            dicom_web_download_series(None, image_id, str(partial), self._client, self._fetch_by_frame)
        except (RequestException, RetryError, IndexError, KeyError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UpstreamError(f"Series {image_id} could not be fetched from {self.name()}: {error}.") from error
        os.replace(partial, folder)
