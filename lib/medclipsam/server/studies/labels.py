"""Labels as they arrive: read once, given the numbers of the server's own labels, and checked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.formats import SEG_SUFFIX, STUDY_LABEL_SUFFIXES, suffix_of
from medclipsam.imaging.label_map import LabelMap, ValueNames, is_seg_nrrd, read_label_map
from medclipsam.server.studies.images import ImageReader


@dataclass(frozen=True)
class ReceivedLabel:
    """A label that may be saved.

    Parameters
    ----------
    image : Path
        File or series folder of the image.
    label : LabelMap
        Its values and their names.
    info : dict
        What is kept with it; names the values as the label map does.
    file : Path or None
        A file that holds the label map as it is, or as one value for each voxel; None where one has to be written.
    """

    image: Path
    label: LabelMap
    info: dict[str, Any]
    file: Path | None = None

    @property
    def suffix(self) -> str:
        """The end of its file's name."""
        if self._as_sent is not None:
            return suffix_of(self._as_sent.name, STUDY_LABEL_SUFFIXES)
        return SEG_SUFFIX if self.label.overlaps else ".nii.gz"

    @property
    def _as_sent(self) -> Path | None:
        """The file, where it holds all of the label map."""
        whole = self.file is not None and (is_seg_nrrd(self.file) or not self.label.overlaps)
        return self.file if whole else None

    def write(self, path: Path) -> None:
        """Write it to a file that ends in `suffix`, read that again, and compare.

        Raises
        ------
        InputError
            If it reads as another label map.
        """
        if self._as_sent is None:
            self.label.writer(path.name)(path)
        else:
            shutil.copyfile(self._as_sent, path)
            self.label.check_copy(path)


class LabelReader:
    """Reads labels before they are saved.

    Parameters
    ----------
    images : ImageReader
        Reads the images that labels are held against.
    table : mapping of str to int, optional
        The server's own labels. Where it is left out, values stay as they are, and none is unknown.
    """

    def __init__(self, images: ImageReader, table: Mapping[str, int] | None = None) -> None:
        self._images = images
        self._table = table

    def read(self, image: Path, file: Path, info: Mapping[str, Any]) -> ReceivedLabel:
        """Read a label that is to be saved for an image.

        Parameters
        ----------
        image : Path
            The image's file or series folder.
        file : Path
            The label's file.
        info : mapping
            What came with it; names its values, see `ValueNames`.

        Raises
        ------
        InputError
            If the label is no label map, does not lie on the image, or holds a value that neither the table nor `info`
            names. An empty label map is a label.
        """
        try:
            picture = self._images.read(image)
            label, as_sent = read_label_map(file, picture, ValueNames.from_monailabel(info), self._table)
        except InputError as error:
            # what a file sent along was called here says nothing to who sent it
            raise InputError(str(error).replace(f" {file.name}", "").replace(file.name, "The label")) from None
        return self.check(ReceivedLabel(image, label, _renamed(info, label), file if as_sent else None))

    def check(self, received: ReceivedLabel) -> ReceivedLabel:
        """Return a label, having raised `InputError` where nothing names one of its values."""
        unknown = [] if self._table is None else received.label.unnamed(self._table.values())
        if unknown:
            raise InputError(
                f"The label holds {', '.join(map(str, unknown))}, of which neither this server's labels nor the "
                'request\'s label_info knows; name them there, as in [{"name": "cyst", "idx": 7}].'
            )
        return received


def _renamed(info: Mapping[str, Any], label: LabelMap) -> dict[str, Any]:
    """Return what came with a label, with the values that the label map has, and whatever else it says of each name."""
    told, entries, table = dict(info), info.get("label_info"), info.get("label_names")
    listed = entries if isinstance(entries, list) else []
    said = {
        entry["name"]: entry for entry in listed if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)
    }
    # names of the file's own segments are in no list yet
    if isinstance(entries, list) or label.names.keys() - label.asked.keys():
        told["label_info"] = [{**said.get(name, {}), "name": name, "idx": value} for name, value in label.names.items()]
    if isinstance(table, Mapping):
        told["label_names"] = {name: label.asked.get(name, value) for name, value in table.items()}
    return told
