"""One labelled image of a label set: what every format writes, and what every reader gives back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.dicom_seg import TISSUE, SegmentInfo
from medclipsam.imaging.label_map import LabelMap
from medclipsam.targets import TargetSet

# Where a set says what it was made of.
PROVENANCE = "provenance.json"
# Whether a person drew a label, to DICOM's word for it.
_ALGORITHMS = {True: "SEMIAUTOMATIC", False: "MANUAL"}


@dataclass(frozen=True)
class Case:
    """One labelled image that is to be written.

    Attributes
    ----------
    name : str
        Names its files; unique in the set, without separators.
    label : LabelMap
        Its values are those of `classes`.
    classes : dict of str to int
        Name to value of the structures that were labelled in this image, whether it shows them or not.
    test : bool
        Whether its patient is kept for tests.
    fold : int
        The fold of its patient, from 0; of no meaning in a test case.
    provenance : dict
        What is known of image and label, JSON-able; nothing about the patient but a hash.
    """

    name: str
    label: LabelMap
    classes: dict[str, int]
    test: bool
    fold: int
    provenance: dict[str, Any]

    @property
    def image(self) -> MedicalImage:
        """The image that it was drawn on."""
        return self.label.image

    def segments(self) -> list[SegmentInfo]:
        """Return the descriptions of the structures, in the order of their values."""
        known = {target.name: target.code for target in TargetSet.load()}
        algorithm = _ALGORITHMS["model" in self.provenance]
        return [
            SegmentInfo(name, value, known.get(name) or TISSUE, algorithm)
            for name, value in sorted(self.classes.items(), key=lambda each: each[1])
        ]


@dataclass(frozen=True)
class Incoming:
    """One labelled image of a set that is read.

    Attributes
    ----------
    name : str
        What the set calls it.
    image_id : str
        The id of the image that it was labelled on, where the set says it; else its name.
    read : callable
        Given the image of the studies that it belongs to, returns the label map with the names of its values, those
        that are not there too. Raises `InputError` where it does not lie on the image.
    image : Path or None
        The image's file or series folder in the set; None where it brings none that can be taken over.
    provenance : mapping
        What the set says of it.
    """

    name: str
    image_id: str
    read: Callable[[MedicalImage], LabelMap]
    image: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def case_name(image_id: str, taken: Collection[str]) -> str:
    """Return a name for the files of an image: its id, in letters, digits, hyphens and single points."""
    plain = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9.]+", "-", image_id)).strip("-.")[:80] or "image"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain}-{number}"
    return name


def patient_hash(key: str) -> str:
    """Return what stands for a patient in a set: the same for all images of one, and no way back."""
    return hashlib.sha256(f"label set\n{key}".encode()).hexdigest()[:12]


def inside(root: Path, name: str) -> Path:
    """Return a file that a set names, below its folder.

    Raises
    ------
    InputError
        If it is not there, or lies elsewhere.
    """
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise InputError(f"The label set names {name!r}, which lies outside its folder.")
    if not path.exists():
        raise InputError(f"The label set names {name!r}, which is not in {root}.")
    return path
