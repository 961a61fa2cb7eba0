"""Label maps and what their values are called: read once from what an annotator's client sent, then passed on.

A client numbers its segments as it likes, and names them beside: 3D Slicer from 1 in the order of its list, in layers
of one file where segments may overlap (`.seg.nrrd`). A `LabelMap` has one number for each name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.base.formats import MASK_SUFFIXES, SEG_SUFFIX, suffix_of
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.masks import flatten, has_place, mask_of, read_mask, read_segment_masks
from medclipsam.imaging.seg_nrrd import read_segments, write_seg_nrrd
from medclipsam.imaging.write import check_same, mask_writer, replace_file

BACKGROUND = "background"
# What happens to segments that overlap where a voxel has one value: an error, or the smaller of them has it.
Overlaps = Literal["refuse", "smaller-on-top"]
OVERLAPS: tuple[str, ...] = get_args(Overlaps)
_LARGEST = 255
# How far from a whole number a value may be.
_WHOLE_WITHIN = 1e-3


@dataclass(frozen=True)
class ValueNames:
    """What a client says that the values of a label map are called.

    Attributes
    ----------
    listed : tuple of (str, int)
        The list `label_info`, which describes the file: name and value, in the client's order.
    asked : tuple of (str, int)
        The table `label_names`: what a mask was asked for, in the words of the request.
    unusable : tuple of object
        What stands in the place of a value and is none.
    """

    listed: tuple[tuple[str, int], ...] = ()
    asked: tuple[tuple[str, int], ...] = ()
    unusable: tuple[Any, ...] = ()

    @classmethod
    def from_monailabel(cls, info: Mapping[str, Any]) -> ValueNames:
        """Read what MONAI Label's clients send with a label, and its datastore keeps with it.

        Parameters
        ----------
        info : mapping
            `label_info`: a list of {"name": ..., "idx": ...}, as 3D Slicer sends it; an entry without `idx` counts by
            its place, from 1. `label_names`: name to value, as this server answers masks; at the top or in `params`.
            What has another form names nothing, and neither does an entry without a name.
        """
        entries = info.get("label_info")
        listed = [
            (entry.get("name"), entry.get("idx", place))
            for place, entry in enumerate(entries if isinstance(entries, list) else (), start=1)
            if isinstance(entry, Mapping)
        ]
        params = info.get("params")
        tables = [holder.get("label_names") for holder in (info, params) if isinstance(holder, Mapping)]
        asked = [pair for table in tables if isinstance(table, Mapping) for pair in table.items()]
        return cls(
            _usable(listed),
            _usable(asked),
            tuple(value for _, value in (*listed, *asked) if _whole_value(value) is None),
        )

    def check(self) -> None:
        """Raise `InputError` where a value is none."""
        if self.unusable:
            raise _no_value(self.unusable[0])

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """All names with their values, without the background; each may come more than once."""
        return [(name, value) for name, value in (*self.asked, *self.listed) if not _is_background(name)]

    def by_value(self) -> dict[int, str]:
        """Return the name of each value, without the background; of several names the first one in `label_info` counts.

        What `label_names` calls a value counts where `label_info` says nothing of the value and has no such name.
        """
        names: dict[int, str] = {}
        for name, value in self.listed:
            if value and not _is_background(name):
                names.setdefault(value, name)
        taken = set(names.values())
        for name, value in self.asked:
            if value and not _is_background(name) and name not in taken:
                names.setdefault(value, name)
        return names


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map of an image, and what its values are called.

    Parameters
    ----------
    values : ndarray of uint8, shape (n_planes, H, W)
        The label of each voxel in display orientation; 0 is the background.
    image : MedicalImage
        The image that it is drawn on, whose geometry it has.
    names : mapping of str to int
        Name to value, 1 to 255; also of what the map does not hold.
    asked : mapping of str to int
        Those of them that were asked for in so many words: what the map does not hold of them is absent.
    beneath : ndarray of uint8, shape (n_layers, n_planes, H, W), optional
        Where segments overlap, the labels that `values` covers. No layers (the default) where none overlap.

    Raises
    ------
    InputError
        If the values are of another type or shape than the image's, or a name has no value that can be one.

    Notes
    -----
    `values` is what a reader that knows one label for each voxel gets: of segments that overlap, the smaller one is on
    top. A segment whole is `mask`, and `from_masks` makes a label map of whole segments.
    """

    values: np.ndarray
    image: MedicalImage
    names: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    beneath: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.uint8))

    def __post_init__(self) -> None:
        shape = (self.image.n_planes, *self.image.plane_shape)
        if not len(self.beneath):
            object.__setattr__(self, "beneath", np.zeros((0, *shape), np.uint8))
        for what, layer in (("label map", self.values), *(("layer of a label map", each) for each in self.beneath)):
            if layer.dtype != np.uint8 or layer.shape != shape:
                raise InputError(
                    f"A {what} of the type {layer.dtype} and the shape {layer.shape} does not fit the image; allowed: "
                    f"uint8 and {shape}."
                )
        for name, value in {**self.names, **self.asked}.items():
            if not 1 <= value <= _LARGEST:
                raise InputError(f"The value {value} of {name!r} cannot be used; allowed: 1 to {_LARGEST}.")

    @classmethod
    def from_masks(
        cls,
        masks: Mapping[str, np.ndarray],
        image: MedicalImage,
        numbers: Mapping[str, int],
        asked: Mapping[str, int] | None = None,
    ) -> LabelMap:
        """Make a label map of whole segments, which may overlap.

        Parameters
        ----------
        masks : mapping of str to ndarray of bool, shape (n_planes, H, W)
            The segment of each name, in display orientation; empty ones too.
        image : MedicalImage
            The image that they are drawn on.
        numbers : mapping of str to int
            The value of each name, also of those without a mask.
        asked : mapping of str to int, optional
            See the class.

        Returns
        -------
        LabelMap
            Where segments overlap, the smaller one is on top in `values`, of equal ones the later.

        Raises
        ------
        InputError
            If a mask is of another type or shape than the image's, or a name has no value that can be one.
        """
        shape = (image.n_planes, *image.plane_shape)
        for name, mask in masks.items():
            if mask.dtype != np.bool_ or mask.shape != shape:
                raise InputError(
                    f"The mask {name!r} of the type {mask.dtype} and the shape {mask.shape} does not fit the image; "
                    f"allowed: bool and {shape}."
                )
            if name not in numbers:
                raise InputError(f"The mask {name!r} has no value in the label map.")
        values, beneath = flatten(((numbers[name], mask) for name, mask in masks.items()), shape)
        return cls(values, image, dict(numbers), dict(asked or {}), beneath)

    @cached_property
    def present(self) -> frozenset[int]:
        """The values that voxels have, without the background."""
        # plane by plane: an index is eight times as large as a value
        found = np.zeros(_LARGEST + 1, bool)
        for layer in self.layers:
            for plane in layer:
                found[plane.ravel()] = True
        return frozenset(map(int, np.flatnonzero(found))) - {0}

    @property
    def layers(self) -> list[np.ndarray]:
        """`values` and the layers of `beneath`."""
        return [self.values, *self.beneath]

    @property
    def overlaps(self) -> bool:
        """Whether a voxel is in several segments."""
        return bool(len(self.beneath))

    @cached_property
    def overlap_voxels(self) -> int:
        """Number of voxels that are in several segments."""
        return int(np.count_nonzero(self.beneath.any(axis=0)))

    def mask_of(self, value: int) -> np.ndarray:
        """Return where a label is, bool [n_planes, H, W]: on top or beneath another one."""
        return mask_of(value, self.values, self.beneath)

    def mask(self, name: str) -> np.ndarray:
        """Return the whole segment of a name, bool [n_planes, H, W], in display orientation.

        Raises
        ------
        InputError
            If the label map knows no such name.
        """
        value = self.names.get(name, self.asked.get(name))
        if value is None:
            raise InputError(f"The label map has no {name!r}; it has {', '.join(map(repr, self.names)) or 'no names'}.")
        return self.mask_of(value)

    def masks(self) -> dict[str, np.ndarray]:
        """Return the whole segment of each of `names`, see `mask`; empty ones too."""
        return {name: self.mask_of(value) for name, value in self.names.items()}

    def unnamed(self, known: Iterable[int] = ()) -> list[int]:
        """Return the values that voxels have and that neither a name nor `known` accounts for, in order."""
        return sorted(self.present - set(self.names.values()) - set(self.asked.values()) - set(known))

    def renumbered(self, numbers: Mapping[int, int], names: Mapping[str, int], asked: Mapping[str, int]) -> LabelMap:
        """Return it with other values and names.

        Parameters
        ----------
        numbers : mapping of int to int
            The new value of each value; what is not in it is left out. Two values may become one.
        names, asked : mapping of str to int
            Of the new label map.
        """
        if self.overlaps:
            kept = ((numbers[value], self.mask_of(value)) for value in sorted(self.present & numbers.keys()))
            values, beneath = flatten(kept, self.values.shape)
            return LabelMap(values, self.image, names, asked, beneath)
        lookup = np.zeros(_LARGEST + 1, np.uint8)
        lookup[list(numbers)] = list(numbers.values())
        return LabelMap(lookup[self.values], self.image, names, asked)

    def to_monailabel(self) -> dict[str, Any]:
        """Return the names as `ValueNames.from_monailabel` reads them."""
        return {
            "label_info": [{"name": name, "idx": value} for name, value in self.names.items()],
            "label_names": dict(self.names),
        }

    def write(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: str = "uint8",
        compress: bool = True,
        overlaps: Overlaps = "refuse",
    ) -> Path:
        """Write it to a file, which is read again and compared before it appears under its name.

        Parameters
        ----------
        path : str or path-like
            Ends in .seg.nrrd, which keeps names and whole segments, or in an ending of `write_mask`.
        dtype, compress
            See `write_mask`; a .seg.nrrd has uint8.
        overlaps : {"refuse", "smaller-on-top"}
            What happens to segments that overlap in a file with one value for each voxel.

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        InputError
            If it cannot be written in that format, or reads as another; a file that was there before stays.
        """
        path = Path(path)
        write = self.writer(path.name, dtype=dtype, compress=compress, overlaps=overlaps)
        replace_file(path, suffix_of(path.name, (SEG_SUFFIX, *MASK_SUFFIXES)), write)
        return path

    def writer(
        self, name: str, *, dtype: str = "uint8", compress: bool = True, overlaps: Overlaps = "refuse"
    ) -> Callable[[Path], None]:
        """Return what writes it to a file and compares that, for who gives the file its name himself; see `write`."""
        if not is_seg_nrrd(name):
            self.check_flat(f"{name} has one value for each voxel", overlaps)
            return mask_writer(self.values, self.image, name, dtype=dtype, compress=compress, read_back=True)

        def write_and_check(path: Path) -> None:
            names = {**{value: f"label {value}" for value in self.unnamed()}, **self.names_by_value}
            segments = ((each, value, self.mask_of(value)) for value, each in names.items())
            write_seg_nrrd(segments, self.image, path, compress=compress)
            self.check_copy(path, name)

        return write_and_check

    @property
    def drawn(self) -> np.ndarray | dict[int, np.ndarray]:
        """`values`, or where segments overlap the mask of each value, as `write_segmentation` takes both."""
        return {value: self.mask_of(value) for value in sorted(self.present)} if self.overlaps else self.values

    @property
    def names_by_value(self) -> dict[int, str]:
        """The name of each value; of several names the first."""
        found: dict[int, str] = {}
        for name, value in self.names.items():
            found.setdefault(value, name)
        return found

    def check_flat(self, what: str, overlaps: Overlaps = "refuse") -> None:
        """Raise `InputError` if segments overlap where that cannot be kept.

        Parameters
        ----------
        what : str
            Why it cannot, as the beginning of a sentence.
        overlaps : {"refuse", "smaller-on-top"}
            "smaller-on-top" allows it: the smaller of two segments has the voxels of both.
        """
        if overlaps not in OVERLAPS:
            raise InputError(
                f"Segments that overlap cannot be written as {overlaps!r}; allowed: {', '.join(OVERLAPS)}."
            )
        if not self.overlaps or overlaps == "smaller-on-top":
            return
        layer = self.beneath[0]
        covered = int(layer[layer != 0][0])
        names = self.names_by_value
        where = (layer == covered) & (self.values != 0)
        on_top = int(self.values[where][0])
        one, other = (repr(names.get(value, f"label {value}")) for value in (covered, on_top))
        both = int(np.count_nonzero(self.mask_of(covered) & self.mask_of(on_top)))
        raise InputError(
            f"{what}, and {one} and {other} overlap in {both} voxels. Choose a format that keeps segments whole "
            f"({SEG_SUFFIX}, DICOM SEG), or have the smaller one on top (smaller-on-top)."
        )

    def check_copy(self, path: str | os.PathLike[str], what: str = "The label") -> None:
        """Read a file and raise `InputError` where its values, or its whole segments, are not these.

        Parameters
        ----------
        path : str or path-like
            A file that `read_mask` or `read_label_map` reads.
        what : str
            What it is a copy of, for the sentence.
        """
        path = Path(path)
        if not is_seg_nrrd(path):
            check_same(read_mask(path, self.image), self.values, what)
            return
        copy, _ = read_label_map(path, self.image, ValueNames())
        check_same_masks(copy, self, what)


def read_label_map(
    path: str | os.PathLike[str], image: MedicalImage, said: ValueNames, table: Mapping[str, int] | None = None
) -> tuple[LabelMap, bool]:
    """Read a label's file, with the names that it has itself or that were sent with it.

    Parameters
    ----------
    path : str or path-like
        A file that `read_mask` reads, or a segmentation of 3D Slicer's in layers (`.seg.nrrd`). The names of its own
        segments go before those of `label_info`.
    image : MedicalImage
        The image that it was drawn on.
    said : ValueNames
        What was sent with it.
    table : mapping of str to int, optional
        Names with values that are the same for all images: what a known name calls gets the value of the table, and
        what would take such a value gets a free one. Where it is left out, values stay as they are.

    Returns
    -------
    label : LabelMap
        The names are those of the file, or of `label_info`, and those of `label_names` that contradict none of them.
    as_sent : bool
        Whether the file holds the values of the label map, in a place of its own.

    Raises
    ------
    ImageError
        If the file cannot be read.
    InputError
        If it does not fit the image, one value has two names, or there are more names than values.
    """
    path = Path(path)
    said.check()
    segments, n_layers = read_segments(path)
    named = [(segment.name, segment.value) for segment in segments] or list(said.listed)
    numbers = _numbers(named, n_layers, table)
    beneath = np.zeros((0, 0, 0, 0), np.uint8)
    moved: dict[int, int] = {}
    if n_layers > 1:
        masks = ((numbers[each.name], mask) for each, mask in read_segment_masks(path, image))
        values, beneath = flatten(
            ((number, mask) for number, mask in masks if number), (image.n_planes, *image.plane_shape)
        )
    else:
        values = read_mask(path, image)
        moved = _moved(named, numbers)
        if moved:
            lookup = np.arange(_LARGEST + 1, dtype=np.uint8)
            lookup[list(moved)] = list(moved.values())
            values = lookup[values]
    names = {name: numbers[name] for name, _ in named if numbers[name]}
    asked = {name: numbers.get(name, value) for name, value in said.asked if value and not _is_background(name)}
    taken = set(names.values())
    names |= {name: value for name, value in asked.items() if name not in names and value not in taken}
    placed = path.suffix.lower() != ".nrrd" or has_place(path)
    return LabelMap(values, image, names, asked, beneath), placed and n_layers == 1 and not moved


def read_kept_label(path: str | os.PathLike[str], image: MedicalImage, info: Mapping[str, Any]) -> LabelMap:
    """Read a label that was saved before, with the names that were kept with it or that its file has itself.

    Parameters
    ----------
    path : str or path-like
        A file that `read_mask` reads; segments that overlap (.seg.nrrd) are read whole.
    image : MedicalImage
        The image that it was drawn on.
    info : mapping
        What is kept with it, see `ValueNames.from_monailabel`; what makes no sense of it names nothing.

    Raises
    ------
    ImageError
        If the file cannot be read.
    InputError
        If it does not fit the image.
    """
    kept = ValueNames.from_monailabel(info).by_value()
    if not is_seg_nrrd(path):
        return LabelMap(read_mask(path, image), image, {name: value for value, name in kept.items()})
    label, _ = read_label_map(path, image, ValueNames())
    names = {name: value for value, name in {**label.names_by_value, **kept}.items()}
    return replace(label, names=names)


def read_segment_names(path: str | os.PathLike[str], table: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the names of a file's own segments, with the values that `read_label_map` gives them.

    Parameters
    ----------
    path : str or path-like
        A file of 3D Slicer's (`.seg.nrrd`); other files name no segments.
    table : mapping of str to int, optional
        As for `read_label_map`.

    Raises
    ------
    ImageError
        If the file cannot be read.
    InputError
        If a segment has no value that can be one.
    """
    segments, n_layers = read_segments(Path(path))
    numbers = _numbers([(segment.name, segment.value) for segment in segments], n_layers, table)
    return {name: value for name, value in numbers.items() if value}


def _numbers(named: list[tuple[str, int]], n_layers: int, table: Mapping[str, int] | None) -> dict[str, int]:
    return number_names(_apart(named) if n_layers > 1 and table is None else named, table)


def label_numbers(names: Iterable[str], table: Mapping[str, int]) -> dict[str, int]:
    """Return a value for each name: that of the table, else a free one.

    Parameters
    ----------
    names : iterable of str
        Without the background.
    table : mapping of str to int
        Names with values that are the same for all images.

    Raises
    ------
    InputError
        If there are more names than values.
    """
    return number_names([(name, place) for place, name in enumerate(dict.fromkeys(names), start=1)], table)


def _usable(pairs: Iterable[tuple[Any, Any]]) -> tuple[tuple[str, int], ...]:
    whole = ((name, _whole_value(value)) for name, value in pairs if isinstance(name, str) and name.strip())
    return tuple((name, value) for name, value in whole if value is not None)


def _whole_value(value: Any) -> int | None:
    """Return a value, a whole number from 0 to 255; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -0.5 < value < _LARGEST + 0.5:
        return None
    return round(value) if abs(value - round(value)) <= _WHOLE_WITHIN else None


def _no_value(value: Any) -> InputError:
    return InputError(f"The label number {value!r} cannot be used; whole numbers from 0 to {_LARGEST} are allowed.")


def _is_background(name: str) -> bool:
    return " ".join(name.split()).casefold() == BACKGROUND


def is_seg_nrrd(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name says that it holds segments by names, in layers where they overlap (`.seg.nrrd`)."""
    return os.fspath(path).lower().endswith(SEG_SUFFIX)


def check_same_masks(found: LabelMap, meant: LabelMap, what: str) -> None:
    """Raise `InputError` if a label map that was read back has not the voxels that were written for each value.

    Parameters
    ----------
    found, meant : LabelMap
    what : str
        The file, for the sentence.
    """
    if not meant.overlaps and not found.overlaps:
        check_same(found.values, meant.values, what)
        return
    for value in sorted(found.present | meant.present):
        check_same(found.mask_of(value), meant.mask_of(value), what)


def is_same_label(one: LabelMap, other: LabelMap) -> bool:
    """Whether two label maps of an image have the same voxels under the same names; numbers may differ."""
    if one.names.keys() != other.names.keys() or one.overlaps != other.overlaps:
        return False
    if one.overlaps:
        return all(np.array_equal(one.mask(name), other.mask(name)) for name in one.names)
    lookup = np.arange(_LARGEST + 1)
    for name, value in one.names.items():
        lookup[value] = other.names[name]
    return np.array_equal(lookup[one.values], other.values)


def number_names(named: Iterable[tuple[str, int]], table: Mapping[str, int] | None) -> dict[str, int]:
    """Return the value that each name is kept under; several segments of one name are one."""
    named = list(named)
    if table is None:
        first: dict[str, int] = {}
        for name, value in named:
            first.setdefault(name, 0 if _is_background(name) else value)
        return first
    numbers = {
        name: 0 if _is_background(name) else table[name] for name, _ in named if name in table or _is_background(name)
    }
    taken = {*table.values(), *numbers.values(), 0}
    free = iter(sorted(set(range(1, _LARGEST + 1)) - taken - {value for _, value in named}))
    for name, value in named:
        if name not in numbers:
            number = next(free, 0) if value in taken else value
            if not number:
                raise InputError(f"There is no number left for the segment {name!r}; {_LARGEST} are there.")
            numbers[name] = number
            taken.add(number)
    return numbers


def _apart(named: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return names with values of their own: in several layers one value may stand for several of them."""
    owner: dict[int, str] = {}
    found = []
    for name, value in named:
        free = value
        if not _is_background(name) and owner.setdefault(value, name) != name:
            free = next((n for n in range(1, _LARGEST + 1) if n not in owner), 0)
            if not free:
                raise InputError(f"There is no number left for the segment {name!r}; {_LARGEST} are there.")
            owner[free] = name
        found.append((name, free))
    return found


def _moved(named: Iterable[tuple[str, int]], numbers: Mapping[str, int]) -> dict[int, int]:
    """Return the values that are kept under others."""
    owner: dict[int, str] = {}
    for name, value in named:
        if owner.setdefault(value, name) != name:
            raise InputError(f"The value {value} of the label is called both {owner[value]!r} and {name!r}.")
    return {value: numbers[name] for value, name in owner.items() if numbers[name] != value}
