"""Which volumes the DICOM slices of one series form.

A series may hold more than one volume: phases, echoes, b-values, magnitude and phase images. It may also hold what is
not part of a volume: scouts, screenshots, second copies of a slice. Everything here is decided by headers; pixels are
looked at only where two slices differ in nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from medclipsam.imaging.dicom_geometry import cosines, pair
from medclipsam.imaging.orientation import PLANE_NAMES

# Elements that `Slice.from_header` reads; the numbers are the private b-values of Siemens, GE and Philips.
SLICE_TAGS: tuple[str | int, ...] = (
    *(
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "InstanceNumber",
        "ImageType",
        "SamplesPerPixel",
    ),
    *("Rows", "Columns", "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient"),
    *("DiffusionBValue", "DiffusionGradientOrientation", "EchoTime", "EchoNumbers", "InversionTime"),
    *("TemporalPositionIdentifier", "AcquisitionNumber", "NominalPercentageOfCardiacPhase", "ConvolutionKernel"),
    *("TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime"),
    *(0x0019100C, 0x00431039, 0x20011003),
)
# Elements of which each value may stand for one volume, the most telling first, with the word for them in ids.
_CLASSES = (
    ("b", "DiffusionBValue"),
    ("te", "EchoTime"),
    ("echo", "EchoNumbers"),
    ("ti", "InversionTime"),
    ("", "ImageType"),
    ("time", "TemporalPositionIdentifier"),
    ("acq", "AcquisitionNumber"),
    ("phase", "NominalPercentageOfCardiacPhase"),
    ("", "ConvolutionKernel"),
    ("direction", "DiffusionGradientOrientation"),
    ("dim", "DimensionIndexValues"),
)
# Elements that tell when a slice was taken, by which the slices of a position can be put in order.
_TIMES = ("TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
_PRIVATE_B_VALUES = (0x0019100C, 0x00431039, 0x20011003)

_CAPTURES = frozenset(
    {
        uid.SecondaryCaptureImageStorage,
        uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
_SCOUT_WORDS = frozenset({"LOCALIZER", "SCOUT"})
_CAPTURE_WORDS = frozenset({"SCREEN SAVE", "SCREENSHOT", "SCREEN_SAVE"})

# Slices closer than this, in millimetres along the normal, are at one position.
SAME_POSITION = 0.01
# A group of other slices that is at most as large as this, or as this share of the volume, is no volume of its own.
_FEW, _FEW_SHARE = 3, 0.1
# More groups than this are not volumes but slices that turn, or a damaged series.
_MOST_GROUPS = 6
_MOST_NAMES = 5


@dataclass(frozen=True, slots=True)
class Slice:
    """What is known of one slice from its header; see `from_header`.

    `path` identifies it: its file, or any name that no other slice of the series has.
    """

    path: Path
    instance: str
    sop_class: str
    kind: str  # "slice", "scout" or "capture"
    size: tuple[int, int, int]  # rows, columns, samples a pixel
    spacing: tuple[float, float] | None
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    classes: tuple[str, ...]
    times: tuple[str, ...]

    @classmethod
    def from_header(cls, path: Path, header: Dataset) -> Slice:
        """Make one of a file and its header, which `is_slice` accepts.

        Raises
        ------
        ValueError
            If the position or orientation is not finite.
        """
        values = {keyword: _text(header.get(keyword)) for _, keyword in _CLASSES}
        values["DiffusionBValue"] = values["DiffusionBValue"] or _private_b_value(header)
        position = tuple(float(value) for value in header.ImagePositionPatient)
        orientation = tuple(float(value) for value in np.concatenate(cosines(header)))
        if not np.isfinite((*position, *orientation)).all():
            raise ValueError(f"{path.name} has no usable position in the patient")
        return cls(
            path=path,
            instance=str(header.get("SOPInstanceUID") or ""),
            sop_class=str(header.get("SOPClassUID") or ""),
            kind=kind_of(header),
            size=(int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel") or 1)),
            spacing=pair(header, "PixelSpacing"),
            orientation=orientation,
            position=position,
            classes=tuple(values[keyword] for _, keyword in _CLASSES),
            times=tuple(_text(header.get(keyword)) for keyword in _TIMES),
        )


@dataclass(frozen=True)
class SeriesVolume:
    """One volume of a series.

    Attributes
    ----------
    key : str
        What tells it from the other volumes of the series, such as "b1000" or "acq2"; empty for the only one.
    files : tuple of Path
        Its slices, each once.
    copies : tuple of (Path, Path)
        Files that hold one of the slices once more, with the file that is used.
    left_out : tuple of Path
        Scouts, screenshots and single slices of another kind that are in the series, but not part of a volume.
    notes : tuple of str
        Sentences that name what is not used.
    """

    key: str
    files: tuple[Path, ...]
    copies: tuple[tuple[Path, Path], ...] = ()
    left_out: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all_files(self) -> tuple[Path, ...]:
        """All files that belong to it, used or not."""
        return tuple(sorted({*self.files, *(copy for copy, _ in self.copies), *self.left_out}))


def kind_of(header: Dataset) -> str:
    """Return "scout", "capture" (a screenshot) or "slice" for the header of a DICOM image."""
    words = {part.strip().upper() for part in _text(header.get("ImageType")).split("\\")}
    if str(header.get("SOPClassUID") or "") in _CAPTURES or words & _CAPTURE_WORDS:
        return "capture"
    return "scout" if words & _SCOUT_WORDS else "slice"


def volumes_of(slices: Sequence[Slice], pixels: Callable[[Path], Hashable]) -> list[SeriesVolume]:
    """Return the volumes that the slices of one series form, in an order that does not depend on that of the files.

    Parameters
    ----------
    slices : sequence of Slice
        Slices of one series, at least one.
    pixels : callable
        Returns what is equal for two files only if their pixels are; called for slices that differ in nothing else.

    Returns
    -------
    list of SeriesVolume
        At least one. Slices that share a position for no reason that the headers tell stay in one volume; so do gaps:
        who reads the volume refuses it.
    """
    ordered = sorted(slices, key=lambda each: (each.path.name, str(each.path)))
    kept, copies = _without_copies(ordered, pixels)
    used = [each for each in kept if each.kind == "slice"] or [each for each in kept if each.kind == "scout"] or kept
    groups = _by_geometry(used)
    main = max(groups, key=len)
    others = [group for group in groups if group is not main]
    few = [
        group for group in others if 2 * len(main) > len(used) and len(group) <= max(_FEW, int(_FEW_SHARE * len(main)))
    ]
    odd = sorted(each.path for group in few for each in group)
    left_out = sorted({each.path for each in kept} - {each.path for each in used}) + odd
    groups = [group for group in groups if group not in few]
    if len(groups) > _MOST_GROUPS:
        groups = [used]
    notes = _notes(kept, used, odd, [copy for copy, _ in copies])
    found: list[tuple[str, list[Slice]]] = []
    for name, group in zip(_geometry_names(groups), groups, strict=True):
        for phase, members in _by_phase(group):
            found.append(("-".join(part for part in (name, phase) if part), members))
    return [
        SeriesVolume(
            key if len(found) > 1 else "",
            tuple(each.path for each in members),
            tuple((copy, kept_file) for copy, kept_file in copies if kept_file in {each.path for each in members}),
            tuple(left_out),
            notes,
        )
        for key, members in zip(_unique([key or "volume" for key, _ in found]), [m for _, m in found], strict=True)
    ]


def _without_copies(
    slices: Sequence[Slice], pixels: Callable[[Path], Hashable]
) -> tuple[list[Slice], list[tuple[Path, Path]]]:
    """Return each slice once, and the files that hold one again: the same instance, or the same but for its UID."""
    places: dict[Hashable, list[Slice]] = defaultdict(list)
    for each in slices:
        place = (each.size, each.orientation, each.position, each.spacing, each.classes, each.times, each.kind)
        places[place].append(each)
    kept: list[Slice] = []
    copies: list[tuple[Path, Path]] = []
    for members in places.values():
        single = _first_of(members, lambda each: each.instance or each.path, copies)
        kept += single if len(single) == 1 else _first_of(single, lambda each: pixels(each.path), copies)
    return kept, sorted(copies)


def _first_of(
    members: Sequence[Slice], same: Callable[[Slice], Hashable], copies: list[tuple[Path, Path]]
) -> list[Slice]:
    """Return the first slice of each value of `same`, and add the others to `copies`."""
    first: dict[Hashable, Slice] = {}
    for each in members:
        kept = first.setdefault(same(each), each)
        if kept is not each:
            copies.append((each.path, kept.path))
    return list(first.values())


def _by_geometry(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Group slices that can be stacked: one size, orientation and pixel spacing."""
    groups: list[list[Slice]] = []
    for each in slices:
        for group in groups:
            if _stackable(group[0], each):
                group.append(each)
                break
        else:
            groups.append([each])
    return sorted(groups, key=lambda group: (-len(group), group[0].orientation, group[0].size, str(group[0].spacing)))


def _stackable(one: Slice, other: Slice) -> bool:
    if one.size != other.size or (one.spacing is None) != (other.spacing is None):
        return False
    if one.spacing and other.spacing and not np.allclose(one.spacing, other.spacing, rtol=1e-3):
        return False
    return bool(np.allclose(one.orientation, other.orientation, atol=1e-3))


def _geometry_names(groups: Sequence[Sequence[Slice]]) -> list[str]:
    """Return what tells groups of other geometry apart: plane, size, spacing; empty for the only one."""
    if len(groups) == 1:
        return [""]
    described = [
        (
            _plane(group[0].orientation),
            f"{group[0].size[1]}x{group[0].size[0]}",
            "x".join(f"{value:g}" for value in group[0].spacing or ()) + "mm",
            "colour" if group[0].size[2] > 1 else "grey",
        )
        for group in groups
    ]
    differing = [n for n in range(4) if len({each[n] for each in described}) > 1]
    return ["-".join(each[n] for n in differing) for each in described]


def _plane(orientation: Sequence[float]) -> str:
    normal = np.cross(orientation[:3], orientation[3:])
    return PLANE_NAMES[int(np.argmax(np.abs(normal)))]


def _by_phase(slices: Sequence[Slice]) -> list[tuple[str, list[Slice]]]:
    """Split slices of one geometry so that each position comes once, by what the headers say; or leave them."""
    positions = _positions(slices)
    places: dict[int, list[Slice]] = defaultdict(list)
    for each, position in zip(slices, positions, strict=True):
        places[position].append(each)
    repeats = max(map(len, places.values()))
    if repeats == 1:
        return [("", list(slices))]
    at = dict(zip((each.path for each in slices), positions, strict=True))
    varying = [n for n in range(len(_CLASSES)) if len({each.classes[n] for each in slices}) > 1]
    for count in (1, 2, 3):
        for chosen in itertools.combinations(varying, count):
            classes: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
            for each in slices:
                classes[tuple(each.classes[n] for n in chosen)].append(each)
            if _are_volumes(classes.values(), at, repeats):
                return _named(classes, chosen)
    return _by_time(slices, places, repeats)


def _positions(slices: Sequence[Slice]) -> list[int]:
    """Return for each slice the number of its position along the normal."""
    orientation = np.asarray(slices[0].orientation)
    along = np.array([each.position for each in slices]) @ np.cross(orientation[:3], orientation[3:])
    order = np.argsort(along, kind="stable")
    numbers = np.zeros(len(slices), dtype=int)
    numbers[order[1:]] = np.cumsum(np.diff(along[order]) > SAME_POSITION)
    return [int(number) for number in numbers]


def _are_volumes(classes: Iterable[Sequence[Slice]], at: dict[Path, int], repeats: int) -> bool:
    """Whether each class holds each position once, and is one of the volumes rather than a slice by itself."""
    groups = list(classes)
    if any(len({at[each.path] for each in group}) < len(group) for group in groups):
        return False
    return len(groups) == repeats or (len(groups) <= 2 * repeats and min(map(len, groups)) > 1)


def _named(classes: dict[tuple[str, ...], list[Slice]], chosen: tuple[int, ...]) -> list[tuple[str, list[Slice]]]:
    parts: list[list[str]] = [[] for _ in classes]
    for place, n in enumerate(chosen):
        word, keyword = _CLASSES[n]
        values = [key[place] for key in classes]
        if keyword in ("ImageType", "ConvolutionKernel"):
            told = _differing_words(values)
        elif keyword == "DiffusionGradientOrientation":
            ranks = {value: number for number, value in enumerate(sorted(set(values)))}
            told = [f"{word}{ranks[value]}" for value in values]
        else:
            told = [f"{word}{value or 'none'}" for value in values]
        for each, text in zip(parts, told, strict=True):
            each.append(text)
    names = ["-".join(each) for each in parts]
    return sorted(zip(names, classes.values(), strict=True), key=lambda entry: _natural(entry[0]))


def _by_time(slices: Sequence[Slice], places: dict[int, list[Slice]], repeats: int) -> list[tuple[str, list[Slice]]]:
    """Split slices into time points by when they were taken, where each position was taken equally often."""
    if any(len(members) != repeats for members in places.values()):
        return [("", list(slices))]
    for n in range(len(_TIMES)):
        if any(len({each.times[n] for each in members}) < repeats for members in places.values()):
            continue
        ranked = [sorted(members, key=lambda each: _natural(each.times[n])) for members in places.values()]
        return [(f"time{number + 1}", [members[number] for members in ranked]) for number in range(repeats)]
    return [("", list(slices))]


def _notes(
    kept: Sequence[Slice], used: Sequence[Slice], odd: Sequence[Path], copies: Sequence[Path]
) -> tuple[str, ...]:
    apart = {each.path for each in used}
    scouts = [each.path for each in kept if each.path not in apart and each.kind == "scout"]
    captures = [each.path for each in kept if each.path not in apart and each.kind == "capture"]
    told = (
        ("Left out as scouts", scouts),
        ("Left out as screenshots", captures),
        ("Left out because their orientation, size or pixel spacing is another", odd),
        ("Left out as second copies of a slice", copies),
    )
    return tuple(f"{what}: {names_of(paths)}." for what, paths in told if paths)


def names_of(paths: Sequence[Path]) -> str:
    """Return the names of files for people, no more than a few of them."""
    names = sorted(path.name for path in paths)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def pixel_digest(data: Dataset) -> str:
    """Return the SHA-256 of a data set's pixels as they are stored, with what their bytes mean."""
    meta = getattr(data, "file_meta", Dataset())
    digest = hashlib.sha256(str(meta.get("TransferSyntaxUID", "")).encode())
    for name in ("BitsAllocated", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"):
        digest.update(f"\n{data.get(name, '')}".encode())
    for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if name in data:
            digest.update(bytes(data[name].value or b""))
    return digest.hexdigest()


def _differing_words(values: Sequence[str]) -> list[str]:
    """Return of texts such as "ORIGINAL\\PRIMARY\\M" the words that are not in all of them."""
    words = [value.split("\\") for value in values]
    common = set.intersection(*(set(each) for each in words))
    return ["-".join(word for word in each if word and word not in common) or "plain" for each in words]


def _unique(names: Sequence[str]) -> list[str]:
    """Return names that are all different, as parts of ids."""
    clean = ["".join(c if c.isalnum() or c in "-.+" else "_" for c in name)[:60] for name in names]
    seen: dict[str, int] = defaultdict(int)
    unique = []
    for name in clean:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


def _natural(text: str) -> tuple[Any, ...]:
    """Return a key that sorts "b50" before "b1000", and clock times by when they are."""
    digits = "".join(c if c.isdigit() or c == "." else " " for c in text).split()
    numbers = []
    for part in digits:
        try:
            numbers.append(float(part))
        except ValueError:
            numbers.append(0.0)
    return (tuple(numbers), text)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    try:
        return "\\".join(_text(each) for each in value)
    except TypeError:
        return str(value)


def _private_b_value(header: Dataset) -> str:
    for tag in _PRIVATE_B_VALUES:
        if tag not in header:
            continue
        value = header[tag].value
        try:
            number = float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else value)
        except (TypeError, ValueError, IndexError):
            continue
        # GE adds 1e9 to say that the value was computed
        return f"{number % 1e9:g}"
    return ""
