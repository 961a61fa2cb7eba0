"""The labelled images of a studies folder, without a server: what the command line trains on."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

from medclipsam.errors import ImageError, InputError
from medclipsam.imaging import find_images, read_origin
from medclipsam.imaging.dicom import looks_like_dicom, read_header
from medclipsam.training.selection import KINDS, Candidate, Label
from medclipsam.training.split import patient_key

logger = logging.getLogger(__name__)

_DATASTORE, _LABELS = "datastore_v2.json", "labels"
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".jpg", ".jpeg")


def read_studies(folder: Path) -> list[Candidate]:
    """Return the images of a studies folder that have a label, as the server keeps both.

    Parameters
    ----------
    folder : Path
        Images in it and its sub-folders; labels in `labels/<tag>/<image id><extension>`, and in `datastore_v2.json`
        what was saved with them.

    Raises
    ------
    InputError
        If it is no folder, or the datastore's file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"Studies {folder} is no folder.")
    labels: dict[str, dict[str, Path]] = defaultdict(dict)
    for kind in KINDS:
        place = folder / _LABELS / kind
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.is_file() and not file.name.startswith("."):
                labels[_stem(file.name)][kind] = file
    if not labels:
        return []
    infos = _infos(folder / _DATASTORE)
    found: dict[str, Path] = {}
    shared: set[str] = set()
    for path in find_images(folder):
        if path.is_relative_to(folder / _LABELS):
            continue
        name = _image_id(path)
        if name in found:
            shared.add(name)
        found[name] = path
    candidates = []
    for name, kinds in labels.items():
        if name in shared:
            raise InputError(f"Several images of {folder} have the id {name!r}; rename all but one.")
        if name not in found:
            continue  # the image is away at the moment; its label is kept
        try:
            patient, study, modality = read_origin(found[name])
        except ImageError as error:
            logger.warning("%s It is left out of the training.", error)
            continue
        known = infos.get(name, {})
        candidates.append(
            Candidate(
                image_id=name,
                image=found[name],
                patient=patient_key(name, patient=patient, study=study),
                labels={kind: Label(file, known.get(kind, {})) for kind, file in kinds.items()},
                modality=modality,
            )
        )
    return candidates


def _image_id(path: Path) -> str:
    """Return an image's id: its file's name without the extension, that of a series its SeriesInstanceUID."""
    if not path.is_dir():
        return _stem(path.name)
    first = next((file for file in sorted(path.iterdir()) if file.is_file() and looks_like_dicom(file)), None)
    header = read_header(first) if first is not None else None
    uid = str(header.get("SeriesInstanceUID") or "") if header is not None else ""
    return re.sub(r"[^\w.-]", "_", uid or path.name)


def _stem(name: str) -> str:
    suffix = next((end for end in _SUFFIXES if name.lower().endswith(end)), "")
    return unicodedata.normalize("NFC", name[: len(name) - len(suffix)])


def _infos(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what was saved with the labels: image id -> tag -> information."""
    try:
        objects = json.loads(file.read_text(encoding="utf-8"))["objects"]
        return {
            unicodedata.normalize("NFC", name): {
                tag: dict(label.get("info") or {}) for tag, label in (entry.get("labels") or {}).items()
            }
            for name, entry in objects.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no datastore file of MONAI Label: {error!r}.") from error
