"""Training examples, and how an image becomes what the network sees: the same code for training and inference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage, Window, read_image
from medclipsam.imaging.label_map import LabelMap, ValueNames, read_label_map
from medclipsam.training.layers import close_up

if TYPE_CHECKING:
    from medclipsam.training.plan import Plan

# In a label of a patch: outside the image, no part of the loss.
IGNORE = 255
# Statistics of a volume look at no more pixels than this, taken evenly.
_MAX_SAMPLES = 1 << 21
# How many times longer than the training images an image may be before its spacing is taken for a mistake.
_LARGEST = 16


@dataclass(frozen=True)
class Example:
    """An image with its label.

    Parameters
    ----------
    name : str
        Unique name, the image's id.
    image : pathlib.Path
        File or series folder that `read_image` reads.
    mask : pathlib.Path
        Label map in the image's own geometry that `read_example_label` reads. An empty one says that no class is there.
    kind : {"final", "original"}
        Corrected by a person, or a pseudo-label.
    modality : str, optional
        DICOM modality, where the file does not say it.
    values : mapping of int to int, optional
        Value in the file -> the network's class index; 0 leaves a structure out. None takes the values as they are.
    weight : float
        How often the example is drawn, relative to the others.
    """

    name: str
    image: Path
    mask: Path
    kind: Literal["final", "original"]
    modality: str | None = None
    values: Mapping[int, int] | None = None
    weight: float = 1.0

    def read(self) -> MedicalImage:
        """Read the image.

        Raises
        ------
        ImageError
            If it cannot be read.
        """
        return read_image(self.image, modality=self.modality)

    def labels(self, image: MedicalImage, n_classes: int) -> np.ndarray:
        """Return the class of each pixel, uint8 [n_planes, H, W], display orientation.

        Where classes overlap, that on top in the label's file: the smaller one. See `layers` for all of them.

        Raises
        ------
        InputError
            See `layers`.
        """
        on_top: np.ndarray = self.layers(image, n_classes)[0]
        return on_top

    def layers(self, image: MedicalImage, n_classes: int) -> np.ndarray:
        """Return the classes of the label, uint8 [n_layers, n_planes, H, W], display orientation.

        Several layers only where classes overlap: the first has what is on top of each pixel, the further ones what
        that covers. `medclipsam.training.layers.class_mask` returns a class whole.

        Raises
        ------
        InputError
            If the label does not fit the image, or holds a value that is no class; the sentence names both.
        """
        try:
            label = read_example_label(self.mask, image)
        except InputError as error:
            raise InputError(f"The label of {self.name} cannot be used: {error}") from error
        table = np.full(256, IGNORE, dtype=np.uint8)
        mapping = {index: index for index in range(n_classes + 1)} if self.values is None else {0: 0, **self.values}
        for value, index in mapping.items():
            if not 0 <= index <= n_classes:
                raise InputError(
                    f"The label of {self.name} maps the value {value} to the class {index}; allowed: 0 to {n_classes}."
                )
            table[value] = index
        strange = sorted(value for value in label.present if table[value] == IGNORE)
        if strange:
            raise InputError(
                f"The label of {self.name} holds the value {strange[0]}, which is none of the network's classes "
                f"({', '.join(str(value) for value in sorted(mapping))})."
            )
        if not label.overlaps:
            return table[label.values][None]
        return close_up(np.stack([table[layer] for layer in label.layers]))

    def identity(self) -> str:
        """Return what identifies the example: changed files of the same name are other examples."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in (self.image, self.mask)]
        values = None if self.values is None else sorted(self.values.items())
        return json.dumps([self.name, self.kind, self.modality, values, self.weight, stats])


def read_example_label(path: Path, image: MedicalImage) -> LabelMap:
    """Read the label map of an example, whose segments may overlap; its values are those of the file.

    Where a file names its own segments (`.seg.nrrd`) and gives several of them one value, in layers of their own, all
    but the first get a free one.

    Raises
    ------
    ImageError, InputError
        See `medclipsam.imaging.label_map.read_label_map`.
    """
    return read_label_map(path, image, ValueNames(), {})[0]


def check_examples(examples: Sequence[Example]) -> None:
    """Refuse lists of examples that contradict themselves.

    Raises
    ------
    InputError
        If there is none, two share a name or an image (also one `final` and one `original`), a weight is below 0, or no
        weight is above it.
    """
    if not examples:
        raise InputError("There is nothing to train on: no image has a label.")
    names: dict[str, Example] = {}
    images: dict[Path, Example] = {}
    for example in examples:
        before = names.get(example.name) or images.get(example.image)
        if before is not None:
            raise InputError(
                f"The image {example.name} comes twice, with a {before.kind} and a {example.kind} label; one of them "
                "is allowed, the final one before the original one."
            )
        names[example.name] = images[example.image] = example
        if not (example.weight >= 0 and np.isfinite(example.weight)):
            raise InputError(f"The weight of {example.name} cannot be {example.weight}; allowed: 0 or more.")
    if not any(example.weight > 0 for example in examples):
        raise InputError("There is nothing to train on: the weight of every image is 0.")


def identity_of(examples: Sequence[Example]) -> str:
    """Return a SHA-256 of a list of examples."""
    return hashlib.sha256("\n".join(example.identity() for example in examples).encode()).hexdigest()


class PreparedImage:
    """An image as the network sees it: planes on its resolution and normalised, and maps back to the image's own.

    Parameters
    ----------
    image : MedicalImage
        The image.
    plan : Plan
        Says channels, resolution and normalisation.
    """

    def __init__(self, image: MedicalImage, plan: Plan) -> None:
        if plan.source == "values" and not image.has_units:
            raise InputError(
                f"{image.source.name} holds display values, and the network was trained on Hounsfield units: give it "
                "the DICOM, NIfTI or NRRD file."
            )
        self.image = image
        self.plan = plan
        self.shape = working_shape(image.plane_shape, image.pixel_spacing, plan.spacing, plan.max_side)
        if max(self.shape) > _LARGEST * plan.max_side:
            raise InputError(
                f"{image.source.name} is {max(self.shape)} of the network's pixels long, and its training images are "
                f"{plan.max_side}: the spacing of {image.pixel_spacing} mm that the file says must be wrong."
            )
        self._scale = (0.0, 1.0) if plan.normalisation.scheme == "foreground" else self._statistics()

    @property
    def n_planes(self) -> int:
        """Number of planes."""
        return self.image.n_planes

    def plane(self, index: int) -> torch.Tensor:
        """Return one plane, float32 [channels, h, w]."""
        pixels = torch.from_numpy(self._pixels(index))
        if pixels.shape[1:] != self.shape:
            pixels = F.interpolate(pixels[None], self.shape, mode="bilinear", antialias=True)[0]
        rule = self.plan.normalisation
        if rule.scheme == "foreground":
            return (pixels.clamp(rule.low, rule.high) - rule.mean) / max(rule.sd, 1e-8)
        mean, sd = self._scale
        return (pixels - mean) / max(sd, 1e-8)

    def label(self, labels: np.ndarray) -> torch.Tensor:
        """Return a plane's classes (uint8 [H, W]) on the network's resolution, uint8 [h, w].

        Each class is resampled on its own, so that no class comes to lie between two others.
        """
        given = torch.from_numpy(np.ascontiguousarray(labels))
        if given.shape == self.shape:
            return given
        present = torch.unique(given)
        if len(present) == 1:
            return torch.full(self.shape, int(present[0]), dtype=torch.uint8)
        layers = (given[None] == present[:, None, None]).float()
        shares = F.interpolate(layers[None], self.shape, mode="bilinear", antialias=True)[0]
        return present[shares.argmax(dim=0)]

    def masks(self, masks: np.ndarray) -> torch.Tensor:
        """Return a plane's masks of classes that may overlap (bool [classes, H, W]) on the network's resolution, uint8.

        A pixel is in a class where more than half of it is.
        """
        given = torch.from_numpy(np.ascontiguousarray(masks))
        if tuple(given.shape[1:]) == self.shape:
            return given.to(torch.uint8)
        shares = F.interpolate(given[None].float(), self.shape, mode="bilinear", antialias=True)[0]
        return (shares > 0.5).to(torch.uint8)

    def restore(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (float [..., h, w]) on the image's own pixels, [..., H, W]."""
        if tuple(maps.shape[-2:]) == self.image.plane_shape:
            return maps
        flat = maps.reshape(1, -1, *maps.shape[-2:])
        scaled = F.interpolate(flat, self.image.plane_shape, mode="bilinear", antialias=True)
        return scaled.reshape(*maps.shape[:-2], *self.image.plane_shape)

    def _pixels(self, index: int) -> np.ndarray:
        """Return a plane on its own resolution, not normalised, float32 [channels, H, W]."""
        return plane_pixels(self.image, index, self.plan.channels, self.plan.source, self.plan.window)

    def _statistics(self) -> tuple[float, float]:
        """Return mean and standard deviation of all planes together, of what holds image."""
        image = self.image
        step = max(1, -(-image.n_planes * image.plane_shape[0] * image.plane_shape[1] // _MAX_SAMPLES))
        samples = []
        for index in range(image.n_planes):
            pixels, region = self._pixels(index), image.valid_region(index)
            kept = pixels.reshape(len(pixels), -1) if region is None else pixels[:, region]
            samples.append(kept[:, index % step :: step].ravel())
        values = np.concatenate(samples)
        if not values.size:
            return 0.0, 1.0
        return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


def plane_pixels(
    image: MedicalImage, index: int, channels: int, source: str, window: tuple[float, float] | None
) -> np.ndarray:
    """Return one plane before resampling and normalisation.

    Parameters
    ----------
    image : MedicalImage
    index : int
        0-based plane.
    channels : {1, 3}
        1 makes grey of colour.
    source : {"values", "display"}
        The modality's units, or the 8-bit display plane.
    window : tuple of float, optional
        (centre, width) of the display plane.

    Returns
    -------
    numpy.ndarray
        float32 [channels, H, W]; display values are from 0 to 1, and what lies outside the image region is 0.
    """
    if source == "values":
        return image.values(index)[None]
    plane = image.plane(index, None if window is None else Window(*window)).astype(np.float32) / 255
    region = image.valid_region(index)
    if region is not None:
        plane *= region[..., None]
    pixels = plane.transpose(2, 0, 1)
    # A grey picture has three equal channels, whose mean is each of them.
    return np.ascontiguousarray(pixels if channels == 3 else pixels.mean(axis=0, keepdims=True))


def working_shape(
    shape: tuple[int, int], own: tuple[float, float] | None, spacing: tuple[float, float] | None, max_side: int
) -> tuple[int, int]:
    """Return (h, w) the network works on.

    Parameters
    ----------
    shape : tuple of int
        (H, W) of the image's planes.
    own : tuple of float, optional
        (row, column) millimetres of the image's pixels.
    spacing : tuple of float, optional
        (row, column) millimetres of the network's pixels.
    max_side : int
        Longest side where one of the two spacings is not known.
    """
    if spacing is not None and own is not None:
        scales = own[0] / spacing[0], own[1] / spacing[1]
    else:
        scales = (max_side / max(shape),) * 2
    rows, columns = (max(1, round(size * scale)) for size, scale in zip(shape, scales, strict=True))
    return rows, columns
