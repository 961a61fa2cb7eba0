"""Labels as viewers send them, made the label maps that this server keeps.

A viewer numbers its segments as it likes, and names them beside: 3D Slicer from 1 in the order of its list, in layers
of one file where segments may overlap (`.seg.nrrd`). Here a label's number is one for all images, so that what a known
name calls gets the number of the server's table.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import MedicalImage, has_place, read_mask, whole_labels, write_mask
from medclipsam.imaging.volumes import read_layers, read_texts
from medclipsam.server.studies.labels import label_number

BACKGROUND = "background"
_LARGEST = 255
# 3D Slicer's keys of one segment.
_SEGMENT = re.compile(r"Segment([0-9]+)_(Name|LabelValue|Layer)")


@dataclass(frozen=True)
class _Segment:
    """One segment of a file of 3D Slicer's: what its name is, and which voxels are its own."""

    name: str
    value: int
    layer: int


@contextmanager
def settled(
    label: Path, info: Mapping[str, Any], table: Mapping[str, int], image: Callable[[], MedicalImage]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give the label as it is kept: the file itself where nothing is to be changed, else one that goes with the block.

    Parameters
    ----------
    label : Path
        The file that was sent.
    info : mapping
        What came with it; `label_info` names the numbers: a list of {"name": ..., "idx": ...}.
    table : mapping of str to int
        The server's own labels.
    image : callable
        Reads the image that the label was drawn on; called only where the file is to be changed.

    Yields
    ------
    file : Path
        A label map in which every name of the table has the number of the table. An NRRD file that says nothing of its
        place becomes one on the image's grid.
    info : dict
        `info`, its `label_info` with the numbers of the file.

    Raises
    ------
    InputError
        If segments overlap, or there are more names than numbers.
    """
    segments, n_layers = _segments(label)
    named = _named(segments, info)
    numbers = _numbers(named, table)
    told = dict(info)
    if isinstance(info.get("label_info"), list) or segments:
        told["label_info"] = _told(info, named, numbers)
    same = all(numbers[name] == value for name, value in named.items())
    placed = label.suffix.lower() != ".nrrd" or has_place(label)
    if same and placed and n_layers == 1:
        yield label, told
        return
    handle, name = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    try:
        read = image()
        labels = _flat(label, segments, numbers, read) if n_layers > 1 else read_mask(label, read)
        if n_layers == 1:
            labels = _renumbered(labels, {value: numbers[name] for name, value in named.items()})
        yield write_mask(labels, read, Path(name), read_back=True), told
    finally:
        Path(name).unlink(missing_ok=True)


def _segments(label: Path) -> tuple[list[_Segment], int]:
    """Return the segments that 3D Slicer notes in an NRRD file, and how many layers it has."""
    if label.suffix.lower() != ".nrrd":
        return [], 1
    try:
        texts, n_layers = read_texts(label)
    except ImageError:
        raise ImageError("The label cannot be read as NRRD; it is damaged or not an NRRD file.") from None
    fields: dict[int, dict[str, str]] = {}
    for key, text in texts.items():
        if found := _SEGMENT.fullmatch(key):
            fields.setdefault(int(found[1]), {})[found[2]] = text
    segments = [
        _Segment(each["Name"], label_number(_whole(each.get("LabelValue", "1"))), _whole(each.get("Layer", "0")))
        for _, each in sorted(fields.items())
        if each.get("Name")
    ]
    return segments, n_layers if segments else 1


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"The label's header has {text[:20]!r} where a segment's number or layer stands.") from None


def _named(segments: list[_Segment], info: Mapping[str, Any]) -> dict[str, int]:
    """Return the voxels' number of each name: of the file's own segments, or of the request's `label_info`."""
    if segments:
        return {segment.name: segment.value for segment in segments}
    entries = info.get("label_info")
    named: dict[str, int] = {}
    for place, entry in enumerate(entries if isinstance(entries, list) else (), start=1):
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            named[entry["name"]] = label_number(entry.get("idx", place))
    return named


def _numbers(named: Mapping[str, int], table: Mapping[str, int]) -> dict[str, int]:
    """Return the number that each name is kept under."""
    numbers = {name: 0 if name == BACKGROUND else table[name] for name in named if name in table or name == BACKGROUND}
    taken = {*table.values(), *numbers.values(), 0}
    free = iter(sorted(set(range(1, _LARGEST + 1)) - taken - set(named.values())))
    for name, value in named.items():
        if name not in numbers:
            number = next(free, 0) if value in taken else value
            if not number:
                raise InputError(f"There is no number left for the segment {name!r}; {_LARGEST} are there.")
            numbers[name] = number
            taken.add(number)
    return numbers


def _told(info: Mapping[str, Any], named: Mapping[str, int], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return `label_info` with the numbers that are kept, and whatever else it says of each name."""
    entries = info.get("label_info")
    said = {
        entry["name"]: dict(entry)
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
    }
    return [{**said.get(name, {}), "name": name, "idx": numbers[name]} for name in named if numbers[name]]


def _renumbered(labels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    lookup = np.arange(_LARGEST + 1, dtype=np.uint8)
    for value, number in numbers.items():
        lookup[value] = number
    return lookup[labels]


def _flat(label: Path, segments: list[_Segment], numbers: Mapping[str, int], image: MedicalImage) -> np.ndarray:
    """Return the layers of a file as one label map."""
    import SimpleITK

    layers, grid = read_layers(label)
    values = whole_labels(layers, "The label")
    flat = np.zeros(values.shape[:-1], np.uint8)
    owner: dict[int, str] = {}
    for segment in segments:
        if not 0 <= segment.layer < values.shape[-1]:
            raise InputError(f"The label's segment {segment.name!r} is in layer {segment.layer}, which is not there.")
        inside = values[..., segment.layer] == segment.value
        number = numbers[segment.name]
        overlap = flat[inside]
        if number and (other := int(overlap.max(initial=0))):
            raise InputError(
                f"The segments {owner[other]!r} and {segment.name!r} overlap in {int((overlap != 0).sum())} voxels; "
                "a voxel has one label here. Take one away from the other, as 3D Slicer's Logical operators do."
            )
        flat[inside] = number
        owner[number] = segment.name
    merged = SimpleITK.GetImageFromArray(flat)
    merged.SetSpacing(grid.spacing)
    merged.SetOrigin(grid.origin)
    merged.SetDirection(grid.direction.ravel().tolist())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "label.nrrd")
        SimpleITK.WriteImage(merged, str(path))
        return read_mask(path, image)
