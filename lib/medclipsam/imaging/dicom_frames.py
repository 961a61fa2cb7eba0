"""Which volumes the frames of one multi-frame DICOM file form.

An enhanced file may hold several temporal positions, echoes or b-values in one set of frames. The functional groups of
each frame are brought into the form of a classic slice's header, so that the same rules decide as in `dicom_series`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.base.files import atomic_write
from medclipsam.imaging.dicom_geometry import functional_groups
from medclipsam.imaging.dicom_series import SAME_POSITION, SLICE_TAGS, Slice, volumes_of

# Elements that `volumes_of_frames` reads.
FRAME_TAGS: tuple[str | int, ...] = (
    *SLICE_TAGS,
    *("NumberOfFrames", "DimensionIndexSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Beside the only DICOM file of a folder: which of the file's volumes the folder stands for.
VOLUME_FILE = ".volume"

# Elements of functional groups, the better first, and the classic element that says the same.
_CLASSIC = (
    ("EffectiveEchoTime", "EchoTime"),
    ("InversionTimes", "InversionTime"),
    ("TemporalPositionIndex", "TemporalPositionIdentifier"),
    ("FrameAcquisitionNumber", "AcquisitionNumber"),
    ("FrameType", "ImageType"),
    ("NominalCardiacTriggerDelayTime", "TriggerTime"),
    ("TemporalPositionTimeOffset", "TriggerTime"),
    ("FrameAcquisitionDateTime", "AcquisitionDateTime"),
    ("FrameReferenceDateTime", "AcquisitionDateTime"),
)
# Dimensions that number places: Image Position (Patient), Stack ID, In-Stack Position Number and its position in space.
_PLACES = frozenset({0x00200032, 0x00209056, 0x00209057, 0x00209113})
# How deep the elements of a frame are nested in its functional groups.
_DEPTH = 2


@dataclass(frozen=True)
class FrameVolume:
    """One volume of a multi-frame file.

    Attributes
    ----------
    key : str
        What tells it from the other volumes of the file, such as "b1000" or "time2"; empty for the only one.
    frames : tuple of int
        Its frames, counted from 0, by ascending position along the normal.
    notes : tuple of str
        Sentences that name what is not used.
    """

    key: str
    frames: tuple[int, ...]
    notes: tuple[str, ...] = ()


def volumes_of_frames(data: Dataset) -> list[FrameVolume]:
    """Return the volumes that the frames of a file form, where they are not simply one volume.

    Parameters
    ----------
    data : pydicom.Dataset
        The file's header, with `FRAME_TAGS`.

    Returns
    -------
    list of FrameVolume
        Several, or one that leaves frames out. Empty where all frames are used together: those of one volume, of a time
        stack at one position, and those without a place in the patient.

    Raises
    ------
    ValueError
        If a position or orientation is not finite.
    """
    frames = int(data.get("NumberOfFrames") or 1)
    groups = functional_groups(data, frames) if frames > 1 else []
    headers = [_classic(data, group) for group in groups]
    if not all("ImagePositionPatient" in each and "ImageOrientationPatient" in each for each in headers):
        return []
    slices = [Slice.from_header(Path(f"frame {number}"), each) for number, each in enumerate(headers, start=1)]
    numbers = {each.path: number for number, each in enumerate(slices)}
    along = [_along(each) for each in slices]
    if not slices or (
        np.ptp(along) < SAME_POSITION and np.ptp([each.orientation for each in slices], axis=0).max() < 1e-3
    ):
        return []
    volumes = volumes_of(slices, lambda frame: frame)
    if len(volumes) == 1 and len(volumes[0].files) == len(slices):
        return []
    return [
        FrameVolume(
            each.key,
            tuple(sorted((numbers[frame] for frame in each.files), key=lambda number: (along[number], number))),
            each.notes,
        )
        for each in volumes
    ]


def write_choice(folder: Path, volume: str, like: Path) -> None:
    """Let a folder with one multi-frame file stand for one of the file's volumes.

    Parameters
    ----------
    folder : Path
        Must be there.
    volume : str
        The volume's key.
    like : Path
        The file, whose time of change is taken over: what is made of the folder is as old as what is made of the file.
    """
    state = like.stat()
    with atomic_write(folder / VOLUME_FILE) as temporary:
        temporary.write_text(volume, encoding="utf-8")
        os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))


def read_choice(folder: Path) -> str | None:
    """Return the key of the volume that a folder stands for; None where it stands for all that is in it."""
    try:
        return (folder / VOLUME_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _classic(data: Dataset, group: Dataset) -> Dataset:
    """Return a frame's functional groups in the form of a classic slice's header."""
    header = Dataset()
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "SOPClassUID", "ImageType"):
        if keyword in data:
            header[keyword] = data[keyword]
    _flatten(group, header, _DEPTH)
    for keyword, classic in reversed(_CLASSIC):
        if header.get(keyword) not in (None, ""):
            setattr(header, classic, header[keyword].value)
    pointers = [item.get("DimensionIndexPointer") for item in data.get("DimensionIndexSequence") or []]
    values = _several(header.get("DimensionIndexValues"))
    if len(values) == len(pointers):
        others = [value for value, pointer in zip(values, pointers, strict=True) if pointer not in _PLACES]
        header.DimensionIndexValues = others or None
    else:
        header.pop("DimensionIndexValues", None)
    return header


def _flatten(group: Dataset, header: Dataset, depth: int) -> None:
    """Take the elements of a functional group's sequences, of the first item of each, into a header."""
    for element in group:
        if element.VR != "SQ":
            header[element.tag] = element
        elif element.value and depth:
            _flatten(element.value[0], header, depth - 1)


def _several(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _along(one: Slice) -> float:
    """Return the position of a slice along its normal, in millimetres."""
    return float(np.cross(one.orientation[:3], one.orientation[3:]) @ np.asarray(one.position))
