"""Measurements as a CSV file: a line for each target of each image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.imaging.write import replace_file
from medclipsam.measurements.measure import Measurements

COLUMNS = (
    *("image", "target", "label", "n_voxels", "n_components", "n_planes", "area_mm2", "volume_mm3"),
    *("long_axis_mm", "short_axis_mm", "axes_plane", "mean", "sd", "minimum", "maximum", "unit"),
    *("first_plane", "last_plane", "centre_i", "centre_j", "centre_k", "centre_x_mm", "centre_y_mm", "centre_z_mm"),
)


def row(image: str, target: str, label: int, measured: Measurements) -> dict[str, Any]:
    """Return the entries of a line by the names of their columns; what is not known is left out.

    Parameters
    ----------
    image, target : str
        Names.
    label : int
        The target's value in the label map.
    measured : Measurements
        What its mask measures.
    """
    values, long = measured.values, measured.long_axis
    entries = {
        **{"image": image, "target": target, "label": label, "n_voxels": measured.n_voxels},
        **{"n_components": measured.n_components, "n_planes": measured.n_planes},
        **{"area_mm2": measured.area_mm2, "volume_mm3": measured.volume_mm3},
        **{"long_axis_mm": measured.long_axis_mm, "short_axis_mm": measured.short_axis_mm},
        "axes_plane": None if long is None else long.plane,
        **({} if values is None else vars(values)),
        **dict(zip(("first_plane", "last_plane"), measured.planes or (), strict=False)),
        **dict(zip(("centre_i", "centre_j", "centre_k"), measured.centre or (), strict=False)),
        **dict(zip(("centre_x_mm", "centre_y_mm", "centre_z_mm"), measured.centre_lps or (), strict=False)),
    }
    return {name: entry for name, entry in entries.items() if entry is not None}


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    """Return lines, as `row` makes them, as the text of a CSV file with its header."""
    return _text([dict(zip(COLUMNS, COLUMNS, strict=True)), *lines])


class MeasurementTable:
    """A CSV file of measurements that grows image by image.

    Parameters
    ----------
    path : Path
        Ends in .csv. The file is made, or one that is there is replaced, when the first image is added.
    keep : bool
        Whether the lines of a file that is there are kept, but for those of images that are added again.

    Attributes
    ----------
    images : set of str
        The images that have lines.

    Raises
    ------
    InputError
        If the name has another ending, the folder is missing, or lines are to be kept and the file is no such table.
    """

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        if path.suffix.lower() != ".csv":
            raise InputError(f"Measurements cannot be written as {path.name!r}; allowed: .csv.")
        if not path.parent.is_dir():
            raise InputError(f"The folder {path.parent} of {path.name!r} does not exist.")
        self.path = path
        self._kept = _read(path) if keep and path.exists() else []
        self._begun = False
        self.images = {line["image"] for line in self._kept}

    def add(self, image: str, measured: Iterable[tuple[str, int, Measurements]]) -> None:
        """Add an image's lines.

        Parameters
        ----------
        image : str
            Its name.
        measured : iterable of (str, int, Measurements)
            Name, label and measurements of each target.

        Raises
        ------
        InputError
            If the file cannot be written.
        StorageError
            If the disk is full.
        """
        lines = [row(image, name, label, found) for name, label, found in measured]
        if self._begun and image not in self.images:
            try:
                with self.path.open("a", encoding="utf-8", newline="") as file:
                    file.write(_text(lines))
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        else:
            before = _read(self.path) if self._begun else self._kept
            lines = [*(line for line in before if line["image"] != image), *lines]
            content = as_csv(lines)
            replace_file(self.path, ".csv", lambda temporary: temporary.write_text(content, encoding="utf-8"))
            self._begun = True
        self.images.add(image)


def _text(lines: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) == COLUMNS:
                # the last line may have been cut off
                return [line for line in reader if None not in line.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table of measurements: {error}.") from error
    raise InputError(f"{path} is not a table of measurements; move it away, or name another file.")
