"""What a label must be to be saved: a label map that lies on its image and holds known labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_mask
from medclipsam.imaging.write import check_same
from medclipsam.server.studies.images import ImageReader


class LabelCheck:
    """Checks labels before they are saved.

    Parameters
    ----------
    images : ImageReader
        Reads the images that labels are held against.
    table : collection of int
        Labels of the server's own table.
    """

    def __init__(self, images: ImageReader, table: Collection[int]) -> None:
        self._images = images
        self._table = frozenset(table)

    def __call__(self, image: Path, label: Path, info: Mapping[str, Any]) -> Callable[[Path], None]:
        """Look at the label that is to be saved for an image.

        Parameters
        ----------
        image : Path
            The image's file or series folder.
        label : Path
            The label's file.
        info : mapping
            What came with it; may name further labels, see `named_labels`.

        Returns
        -------
        callable
            Given a copy of the file, raises `InputError` if it does not read as the same label map.

        Raises
        ------
        InputError
            If the label is no label map, does not lie on the image, or holds a label that neither the table nor `info`
            names. An empty label map is a label.
        """
        try:
            picture = self._images.read(image)
            labels = read_mask(label, picture)
        except InputError as error:
            # what a file sent along was called here says nothing to who sent it
            raise InputError(str(error).replace(f" {label.name}", "").replace(label.name, "The label")) from None
        unknown = sorted({int(value) for value in np.unique(labels)} - {0} - self._table - named_labels(info))
        if unknown:
            raise InputError(
                f"The label holds {', '.join(map(str, unknown))}, of which neither this server's labels nor the "
                'request\'s label_info knows; name them there, as in [{"name": "cyst", "idx": 7}].'
            )
        return lambda copy: check_same(read_mask(copy, picture), labels, "The label")


def named_labels(info: Mapping[str, Any]) -> frozenset[int]:
    """Return the labels that a request names.

    Parameters
    ----------
    info : mapping
        `label_info`: a list of {"name": ..., "idx": ...}, as 3D Slicer sends it; one without `idx` counts by its place,
        from 1. `label_names`: name to label, as this server answers masks; at the top or in `params`.
    """
    asked, listed = named_entries(info)
    return frozenset([*asked.values(), *listed.values()])


def named_entries(info: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Return name to label as a request gives them, see `named_labels`: of `label_names`, and of `label_info`.

    An entry without a name has its number for one.
    """
    asked: dict[str, int] = {}
    listed: dict[str, int] = {}
    entries = info.get("label_info")
    for place, entry in enumerate(entries if isinstance(entries, list) else (), start=1):
        if isinstance(entry, Mapping):
            label = label_number(entry.get("idx", place))
            listed[str(entry.get("name") or f"label {label}")] = label
    params = info.get("params")
    for holder in (info, params if isinstance(params, Mapping) else {}):
        names = holder.get("label_names")
        if isinstance(names, Mapping):
            asked.update({str(name): label_number(label) for name, label in names.items()})
    return asked, listed


def label_number(value: Any) -> int:
    """Return a label's number, a whole one from 0 to 255.

    Raises
    ------
    InputError
        If it is none.
    """
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and -0.5 < value < 255.5
    if not usable or abs(value - round(value)) > 1e-3:
        raise InputError(f"The label number {value!r} cannot be used; whole numbers from 0 to 255 are allowed.")
    return round(value)
