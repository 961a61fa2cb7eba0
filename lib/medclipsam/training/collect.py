"""The labelled images of a studies folder, without a server: what the command line trains on."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medclipsam.base.errors import ImageError, InputError, MedClipSamError
from medclipsam.imaging import read_origin
from medclipsam.imaging.label_map import ValueNames, read_segment_names
from medclipsam.studies.final import is_by_person, waits_for_consensus
from medclipsam.studies.find import LABELS, find_images, read_datastore, stem
from medclipsam.training.selection import KINDS, Candidate, Label
from medclipsam.training.split import patient_key

logger = logging.getLogger(__name__)


def read_label_map(entries: Sequence[str]) -> dict[int, str]:
    """Return what the values of labels are called.

    Parameters
    ----------
    entries : sequence of str
        Each is "VALUE=NAME", or the path of a YAML or JSON file with an object {value: name} or {name: value}.

    Returns
    -------
    dict of int to str
        Value (1 to 255) to name.

    Raises
    ------
    InputError
        If an entry is neither, a value is not allowed, or one value gets two names or one name two values.
    """
    found: dict[int, str] = {}
    for entry in entries:
        value, equals, name = entry.partition("=")
        pairs = [(value, name)] if equals and not Path(entry).is_file() else _pairs_in(Path(entry))
        for given, text in pairs:
            number, name = _value(entry, given), str(text).strip()
            if not name:
                raise InputError(f"The label map {entry!r} gives the value {number} no name.")
            if found.get(number, name) != name or any(n == name and v != number for v, n in found.items()):
                raise InputError(f"The label map gives one value or name twice: {number}={name} in {entry!r}.")
            found[number] = name
    return found


def _pairs_in(file: Path) -> list[tuple[Any, Any]]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The label map {str(file)!r} is neither VALUE=NAME nor a file.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"The label map {file} cannot be read as YAML or JSON: {error}.") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"The label map {file} must hold an object, such as {{1: left lung, 2: right lung}}.")
    if all(isinstance(value, int) and isinstance(key, str) and not key.isdigit() for key, value in content.items()):
        return [(value, key) for key, value in content.items()]
    return list(content.items())


def _value(entry: str, given: Any) -> int:
    text = str(given).strip()
    if not (text.isascii() and text.isdigit()) or isinstance(given, bool) or not 1 <= int(text) <= 255:
        raise InputError(f"The label map {entry!r} names the value {text!r}; whole numbers from 1 to 255 are allowed.")
    return int(text)


def read_studies(folder: Path, label_map: Mapping[int, str] | None = None) -> list[Candidate]:
    """Return the images of a studies folder that have a label, as the server keeps both.

    Parameters
    ----------
    folder : Path
        Images in it and its sub-folders; labels in `labels/<tag>/<image id><extension>`, and in `datastore_v2.json`
        what was saved with them; a segmentation of 3D Slicer's (`.seg.nrrd`) names its segments itself. A final label
        that a model has made counts as none, see `is_by_person`, and neither do labels of several people of which no
        consensus was made.
    label_map : mapping of int to str, optional
        Names of the values in labels with which no names were saved.

    Raises
    ------
    InputError
        If it is not a folder, or the datastore's file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"Studies {folder} is not a folder.")
    labels: dict[str, dict[str, Path]] = defaultdict(dict)
    for kind in KINDS:
        place = folder / LABELS / kind
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            if file.is_file() and not file.name.startswith("."):
                labels[stem(file.name)][kind] = file
    if not labels:
        return []
    infos = _infos(folder)
    found = {image.image_id: image for image in find_images(folder, only_whole=True)}
    candidates = []
    for name, kinds in labels.items():
        image = found.get(name)
        if image is None:
            continue  # the image is away at the moment; its label is kept
        try:
            patient, study, modality = read_origin(image.path)
        except ImageError as error:
            logger.warning("%s It is left out of the training.", error)
            continue
        known = infos.get(name, {})
        final = known.get("final", {})
        if not is_by_person(final) or waits_for_consensus(folder / LABELS, name, final):
            kinds.pop("final", None)
        if not kinds:
            continue
        described = {kind: _named(known.get(kind, {}), file, label_map) for kind, file in kinds.items()}
        candidates.append(
            Candidate(
                image_id=name,
                image=image.path,
                patient=patient_key(name, patient=patient, study=study),
                labels={kind: Label(file, described[kind]) for kind, file in kinds.items()},
                modality=modality,
            )
        )
    return candidates


def read_label_names(folder: Path) -> dict[str, dict[int, str]]:
    """Return what was saved with the final labels of a studies folder: image id to the names of its values.

    Raises
    ------
    InputError
        If the datastore's file cannot be read.
    """
    return {
        image: ValueNames.from_monailabel(tags["final"]).by_value()
        for image, tags in _infos(folder).items()
        if "final" in tags
    }


def _named(info: dict[str, Any], file: Path, label_map: Mapping[int, str] | None) -> dict[str, Any]:
    if ValueNames.from_monailabel(info).pairs:
        return info
    names: dict[str, int] = {}
    with contextlib.suppress(MedClipSamError):  # a file that cannot be read is left out with its reason later
        names = read_segment_names(file, {})
    names = names or {name: value for value, name in (label_map or {}).items()}
    return {**info, "label_names": names} if names else info


def _infos(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what was saved with the labels: image id -> tag -> information."""
    return {
        name: {tag: dict(label.get("info") or {}) for tag, label in (entry.get("labels") or {}).items()}
        for name, entry in read_datastore(folder).items()
    }
