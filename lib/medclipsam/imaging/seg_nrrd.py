"""Segmentations as 3D Slicer keeps them (`.seg.nrrd`): an NRRD file whose layers hold segments that overlap.

Each segment has a name, a value and the layer in which its voxels have the value, in keys of the header. Segments that
share no voxel share a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging.colour import COLOURS
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.itk import check_nrrd, to_itk
from medclipsam.imaging.volumes import nrrd_fields, read_texts

# 3D Slicer's keys of one segment.
_SEGMENT = re.compile(r"Segment([0-9]+)_(Name|LabelValue|Layer)")
# What it notes of all of them together; "master" is what versions before 5.2 call the source.
_SEGMENTATION = {
    "Segmentation_MasterRepresentation": "Binary labelmap",
    "Segmentation_SourceRepresentation": "Binary labelmap",
    "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
    "Segmentation_ReferenceImageExtentOffset": "0 0 0",
}


@dataclass(frozen=True)
class Segment:
    """One segment of a file: what its name is, and which voxels are its own."""

    name: str
    value: int
    layer: int


def has_layers(path: Path) -> bool:
    """Return whether an NRRD file says that its voxels are in layers along an axis before those of space."""
    fields = nrrd_fields(path)
    return fields.get("dimension") == "4" and any(name.startswith("segment") for name in fields)


def read_segments(path: Path) -> tuple[list[Segment], int]:
    """Return the segments that an NRRD file notes, none for other files, and how many layers it has.

    Raises
    ------
    ImageError
        If it is damaged, or not an NRRD file.
    InputError
        If a value or layer is no whole number that can be one.
    """
    if path.suffix.lower() != ".nrrd":
        return [], 1
    try:
        texts, n_layers = read_texts(path)
    except ImageError:
        raise ImageError("The label cannot be read as NRRD; it is damaged or not an NRRD file.") from None
    fields: dict[int, dict[str, str]] = {}
    for key, text in texts.items():
        if found := _SEGMENT.fullmatch(key):
            fields.setdefault(int(found[1]), {})[found[2]] = text
    segments = [
        Segment(each["Name"], _number(each.get("LabelValue", "1")), _number(each.get("Layer", "0")))
        for _, each in sorted(fields.items())
        if each.get("Name")
    ]
    return segments, n_layers if segments else 1


def write_seg_nrrd(
    segments: Iterable[tuple[str, int, np.ndarray]], image: MedicalImage, path: Path, *, compress: bool = True
) -> None:
    """Write segments, which may overlap, as 3D Slicer does.

    Parameters
    ----------
    segments : iterable of (str, int, ndarray of bool)
        Name, value (1 to 255) and mask, shape (n_planes, H, W) in display orientation, of each; empty ones too.
    image : MedicalImage
        The image that they are drawn on.
    path : Path
        The file.
    compress : bool
        Whether the voxels are compressed.

    Raises
    ------
    InputError
        If the image's axes are not at right angles, or a package is missing.
    """
    check_nrrd(image, path.name, "segments that overlap cannot be saved on it")
    import SimpleITK as sitk

    shape = (image.n_planes, *image.plane_shape)
    layers: list[np.ndarray] = []
    placed: list[Segment] = []
    for name, value, mask in segments:
        number = next((n for n, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if number == len(layers):
            layers.append(np.zeros(shape, np.uint8))
        layers[number][mask] = value
        placed.append(Segment(name.strip() or f"label {value}", value, number))
    # a picture is a volume of one slice
    native = [image.to_native(layer) for layer in layers or [np.zeros(shape, np.uint8)]]
    voxels = np.stack([layer.reshape((-1, *layer.shape[-2:])) for layer in native], axis=-1)
    vector = len(native) > 1
    result = to_itk(voxels if vector else voxels[..., 0], image.grid.in_space(), vector=vector)
    for key, text in _SEGMENTATION.items():
        result.SetMetaData(key, text)
    for number, segment in enumerate(placed):
        for key, text in _keys(segment, _extent(voxels[..., segment.layer] == segment.value)).items():
            result.SetMetaData(f"Segment{number}_{key}", text)
    sitk.WriteImage(result, str(path), useCompression=compress)
    if vector:
        # ITK calls the axis of the layers a vector
        header, end, content = path.read_bytes().partition(b"\n\n")
        path.write_bytes(header.replace(b"\nkinds: vector ", b"\nkinds: list ", 1) + end + content)


def _extent(mask: np.ndarray) -> list[int]:
    """Return the first and last index along i, j and k at which a mask [k, j, i] has a voxel."""
    found = []
    for others in ((0, 1), (0, 2), (1, 2)):
        held = np.flatnonzero(mask.any(axis=others))
        found += [int(held[0]), int(held[-1])] if held.size else [0, -1]
    return found


def _keys(segment: Segment, extent: list[int]) -> dict[str, str]:
    """Return 3D Slicer's keys of a segment."""
    colour = COLOURS[(segment.value - 1) % len(COLOURS)]
    return {
        "ID": f"Segment_{segment.value}",
        "Name": segment.name,
        "LabelValue": str(segment.value),
        "Layer": str(segment.layer),
        "Color": " ".join(f"{part / 255:.6g}" for part in colour),
        "ColorAutoGenerated": "1",
        "NameAutoGenerated": "0",
        "Extent": " ".join(map(str, extent)),
        "Tags": "|",
    }


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise InputError(f"The label's header has {text[:20]!r} where a segment's number or layer stands.") from None
    if not 0 <= value <= 255:
        raise InputError(f"The label number {text!r} cannot be used; whole numbers from 0 to 255 are allowed.")
    return value
