"""The images of a studies folder, found by one look."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medclipsam.base.errors import ImageError, InputError
from medclipsam.base.formats import STUDY_LABEL_SUFFIXES, suffix_of
from medclipsam.imaging.dicom import looks_like_dicom, read_frame_volumes
from medclipsam.studies.links import LinkedFolders
from medclipsam.studies.scan import FolderScan, Found, Listing, Pin

LABELS, DATASTORE = "labels", "datastore_v2.json"

_links = LinkedFolders()


@dataclass(frozen=True)
class StudyImage:
    """One image of a folder.

    Attributes
    ----------
    image_id : str
        Its id, the same that a server gives it.
    path : Path
        What `read_image` reads it from: a file, or a folder that holds its files and nothing else.
    location : Path
        Where it is in the folder: its file, or the folder of its slices.
    name : str
        Its path from the folder on, without what other images have too: the file, the folder of the only series in it,
        or that folder and the id; empty where the folder itself is the series. That of one of several volumes in a file
        ends in the volume's key, before the extension.
    suffix : str
        The file's extension (".nii.gz" counts as one); empty for a series.
    """

    image_id: str
    path: Path
    location: Path
    name: str
    suffix: str = ""

    @property
    def stem(self) -> str:
        """The name without the extension."""
        return self.name.removesuffix(self.suffix)


def find_images(folder: str | os.PathLike[str], *, only_whole: bool = False) -> list[StudyImage]:
    """Return the images of a folder and its sub-folders, sorted by where they are.

    A series of DICOM slices is one image, whatever folders its slices are in and whatever else these hold; volumes of
    one series (phases, echoes, b-values) are images of their own. Every other DICOM image (radiographs, multi-frame
    files, single slices), NIfTI, NRRD or picture file is one. DICOM is recognised by content. Hidden files and folders,
    and the labels of a studies folder, are left out.

    Parameters
    ----------
    folder : str or path-like
    only_whole : bool
        Whether files that are damaged or incomplete are left out, as a server does; else who reads them gets the error.

    Raises
    ------
    ImageError
        If it is not a folder.
    InputError
        If the datastore file of the folder cannot be read.
    """
    root = Path(folder)
    images = []
    for found in look_into(root, only_whole=only_whole).images.values():
        name = found.path.relative_to(root)
        if found.path.is_dir() and not found.alone:
            name = name / found.image_id
        if found.volume:
            name = name.with_name(f"{name.name.removesuffix(found.suffix)}-{found.volume}{found.suffix}")
        told = "" if name == Path() else str(name)
        images.append(StudyImage(found.image_id, _links.path_of(found), found.path, told, found.suffix))
    return sorted(images, key=lambda image: (image.location, image.image_id))


def look_into(folder: Path, *, only_whole: bool = False) -> Listing:
    """Return what `find_images` finds, as a look at the folder finds it, with what cannot be read.

    Parameters
    ----------
    folder, only_whole
        As for `find_images`, whose errors it raises.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder.")
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise ImageError(f"{folder} cannot be read: {error.strerror or error}.") from error
    scan = FolderScan(folder, skip={folder / LABELS, folder / DATASTORE}, settle=0, only_whole=only_whole)
    scan.pins = read_pins(folder)
    return scan.look()


def find_volumes(file: Path) -> dict[str, Path]:
    """Return the volumes of a multi-frame DICOM file that holds several; none for any other file.

    Parameters
    ----------
    file : Path

    Returns
    -------
    dict of str to Path
        For each volume its key, and the folder that `read_image` reads it from.
    """
    if not looks_like_dicom(file):
        return {}
    whole = Found(stem(file.name), file, (file.absolute(),), "", alone=False)
    keys = [volume.key for volume in read_frame_volumes(file)]
    return {key: _links.path_of(replace(whole, image_id=f"{whole.image_id}-{key}", volume=key)) for key in keys}


def read_pins(folder: Path) -> dict[str, Pin]:
    """Return the ids that have a label in a studies folder, with what is known of the images they were saved for."""
    ids = set()
    for place in (folder / LABELS).glob("*"):
        if place.is_dir() and not place.name.startswith("."):
            ids |= {stem(file.name) for file in place.iterdir() if not file.name.startswith(".")}
    if not ids:
        return {}
    objects = read_datastore(folder)
    return {image_id: pin_of((objects.get(image_id, {}).get("image") or {}).get("info") or {}) for image_id in ids}


def pin_of(info: dict[str, Any]) -> Pin:
    """Return the pin of what is kept with an image that has a label."""
    return Pin(str(info.get("file") or ""), str(info.get("name") or ""))


def read_datastore(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a folder's `datastore_v2.json` by image id; empty where there is none.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    file = folder / DATASTORE
    try:
        objects = json.loads(file.read_text(encoding="utf-8"))["objects"]
        return {unicodedata.normalize("NFC", name): dict(entry) for name, entry in objects.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a datastore file of MONAI Label: {error!r}.") from error


def stem(name: str) -> str:
    """Return a label's name without the extension of its format: the image's id (in NFC)."""
    return unicodedata.normalize("NFC", name[: len(name) - len(suffix_of(name, STUDY_LABEL_SUFFIXES))])
