"""The plan: everything about a network that follows from its data, by nnU-Net's rules.

The plan is a readable JSON that stands beside the weights. It is made once, before the training, and the same plan
makes the network's inputs at inference.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation", Nature
Methods 18, 2021, and its supplement.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from medclipsam.base.errors import InputError, OptionError, TrainingError
from medclipsam.base.files import write_text
from medclipsam.base.progress import ProgressBar
from medclipsam.imaging import MedicalImage
from medclipsam.training.examples import Example, check_examples, plane_pixels, working_shape
from medclipsam.training.layers import class_mask
from medclipsam.training.options import TrainingOptions

VERSION = 2
PLAN_FILE = "plan.json"
# Feature maps are not made smaller than this, nor patches than twice that many pixels after two halvings.
_LEAST_MAP = 4
_LEAST_SIDE = 4 * _LEAST_MAP
# A batch covers no more of the training data than this share, but holds two patches at least.
_LARGEST_SHARE = 0.05
_LEAST_BATCH = 2
# A part of a mask is too small to be meant below this percentile of the sizes in training, times this.
_SMALL = (5, 0.5)
# Foreground intensities kept of each image.
_SAMPLES = 10_000
_SIDED = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Normalisation:
    """How intensities are normalised.

    Attributes
    ----------
    scheme : {"z-score", "foreground"}
        "z-score": mean 0 and standard deviation 1 of each image or volume. "foreground": clipped to [low, high] and
        shifted and scaled by mean and sd, which are those of the foreground of all training images (CT).
    low, high, mean, sd : float
        Of "foreground": the percentiles 0.5 and 99.5, mean and standard deviation.
    """

    scheme: str
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What a network is and what it is given.

    Attributes
    ----------
    version : int
        Of this format.
    classes : dict of str to int
        Label name -> class index, from 1; 0 is the background.
    modality : str or None
        Modality of all training images; None where they differ or do not say.
    channels : {1, 3}
        Grey or RGB.
    source : {"display", "values"}
        Display planes (8 bits), or values in the modality's units (CT: Hounsfield units).
    window : tuple of float or None
        (centre, width) of the display planes of a CT.
    normalisation : Normalisation
    spacing : tuple of float or None
        (row, column) millimetres of the network's pixels; None where the images' spacing is not known.
    max_side : int
        Longest side of the network's planes where there is no spacing.
    patch_size : tuple of int
        (rows, columns).
    kernels, strides : tuple of (int, int)
        Of each level, from the finest.
    filters : tuple of int
        Of each level.
    batch_size : int
    heads : int
        Levels below the finest that are supervised.
    mirror_axes : tuple of int
        Axes of a plane that may be mirrored: 0 rows, 1 columns.
    multilabel : bool
        Whether classes may overlap: each is a channel with a sigmoid. Else background and classes share a softmax.
    memory : dict
        `budget` in bytes, and what the training is `estimated` to take.
    fingerprint : dict
        What was found in the training images. Of each class among others `share_of_image` and `share_of_plane`: its
        mean share of the pixels of the images, and planes, that hold it; and `small_part`, the share of a plane below
        which a connected part of a mask is hardly meant.
    """

    classes: dict[str, int]
    modality: str | None
    channels: int
    source: str
    window: tuple[float, float] | None
    normalisation: Normalisation
    spacing: tuple[float, float] | None
    max_side: int
    patch_size: tuple[int, int]
    kernels: tuple[tuple[int, int], ...]
    strides: tuple[tuple[int, int], ...]
    filters: tuple[int, ...]
    batch_size: int
    heads: int
    mirror_axes: tuple[int, ...]
    multilabel: bool = False
    memory: dict[str, int] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def n_classes(self) -> int:
        """Number of classes without the background."""
        return max(self.classes.values())

    @property
    def n_outputs(self) -> int:
        """Number of the network's output channels: the classes, and the background where they do not overlap."""
        return self.n_classes if self.multilabel else self.n_classes + 1

    def names(self) -> dict[int, str]:
        """Return class index -> label name."""
        return {index: name for name, index in self.classes.items()}

    def to_json(self) -> str:
        """Return the plan as readable JSON: one line for each entry, lists in their line."""
        return _readable(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan.

        Raises
        ------
        TrainingError
            If it is none, or of another version.
        """
        try:
            read = json.loads(text)
            if read["version"] != VERSION:
                raise TrainingError(
                    f"The plan is of version {read['version']}; this release reads {VERSION}: train the network again."
                )
            read["normalisation"] = Normalisation(**read["normalisation"])
            for key in ("window", "spacing", "patch_size", "filters", "mirror_axes"):
                read[key] = None if read[key] is None else tuple(read[key])
            for key in ("kernels", "strides"):
                read[key] = tuple(tuple(part) for part in read[key])
            return cls(**read)
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"This is no plan of a network: {error!r}.") from error

    def write(self, folder: Path) -> None:
        """Write the plan into a folder, whole or not at all."""
        write_text(folder / PLAN_FILE, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read the plan of a folder.

        Raises
        ------
        TrainingError
            If there is none, or it is damaged.
        """
        try:
            text = (folder / PLAN_FILE).read_text(encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{folder} holds no network: {PLAN_FILE} cannot be read.") from error
        return cls.from_json(text)


def make_plan(
    examples: Sequence[Example], classes: Mapping[str, int], options: TrainingOptions, *, show: bool = False
) -> Plan:
    """Make the plan of a network from its training examples; every image and label is read once.

    Parameters
    ----------
    examples : sequence of Example
        The training examples.
    classes : mapping of str to int
        Label name -> class index: 1, 2, ... without a gap.
    options : TrainingOptions
        Their bounds on size and memory.
    show : bool
        Whether to show progress.

    Raises
    ------
    InputError
        If an image or label cannot be used, or examples or classes contradict themselves.
    OptionError
        If an option does not fit: mirroring left and right, a memory in which no network fits.
    """
    check_examples(examples)
    if sorted(classes.values()) != list(range(1, len(classes) + 1)) or not classes or len(classes) > 200:
        raise InputError(f"The classes {dict(classes)} cannot be used; allowed: 1, 2, ... without a gap, at most 200.")
    options = options.resolved()
    found = _Fingerprint(len(classes))
    for example in ProgressBar(examples, desc="reading", unit="image", show=show):
        image = example.read()
        layers = example.layers(image, len(classes))
        found.add(image, layers[:1] if options.multilabel == "never" else layers)
    return _decide(found, dict(classes), options)


def mirror_axes(classes: Sequence[str], choice: str) -> tuple[int, ...]:
    """Return the axes that may be mirrored: never columns where a class is the left or right one of a pair.

    Raises
    ------
    OptionError
        If left and right are asked to be mirrored all the same.
    """
    sided = [name for name in classes if _SIDED.search(name.replace("_", " ").replace("-", " "))]
    if choice == "auto":
        return () if sided else (1,)
    if choice in ("horizontal", "both") and sided:
        raise OptionError("mirror", choice, f'"auto" or "none", since {sided[0]!r} is on one side of the body')
    return {"none": (), "horizontal": (1,), "both": (0, 1)}[choice]


def topology(
    shape: Sequence[int], spacing: Sequence[float] = (1.0, 1.0)
) -> tuple[tuple[int, int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Return patch, strides and kernels of a network for patches of about this shape.

    An axis is halved while its map stays at 4 pixels or more and its pixels are less than twice as large as the
    other's; until then its kernel is 1. The patch is rounded up to what the strides divide.

    Parameters
    ----------
    shape : sequence of int
        (rows, columns).
    spacing : sequence of float
        Millimetres of a pixel, in any common unit.

    Returns
    -------
    patch : tuple of int
    strides, kernels : list of (int, int)
        Of each level; at least three levels.
    """
    size = [max(float(side), float(_LEAST_SIDE)) for side in shape]
    step = list(map(float, spacing))
    strides: list[tuple[int, int]] = [(1, 1)]
    kernels: list[tuple[int, int]] = []
    while True:
        fine = [step[axis] / min(step) < 2 for axis in (0, 1)]
        if not kernels:
            kernels.append((3 if fine[0] else 1, 3 if fine[1] else 1))
        halved = [fine[axis] and size[axis] >= 2 * _LEAST_MAP for axis in (0, 1)]
        if not any(halved) and len(strides) < 3:
            # three levels at the least, which DynUNet is made of
            halved = [size[axis] >= 2 * _LEAST_MAP for axis in (0, 1)]
        if not any(halved):
            break
        factors = (2 if halved[0] else 1, 2 if halved[1] else 1)
        size = [size[axis] / factors[axis] for axis in (0, 1)]
        step = [step[axis] * factors[axis] for axis in (0, 1)]
        strides.append(factors)
        fine = [step[axis] / min(step) < 2 for axis in (0, 1)]
        kernels.append((3 if fine[0] else 1, 3 if fine[1] else 1))
    whole = np.prod(strides, axis=0)
    patch = [int(-(-max(side, _LEAST_SIDE) // whole[axis]) * whole[axis]) for axis, side in enumerate(shape)]
    return (patch[0], patch[1]), strides, kernels


def training_bytes(
    patch: Sequence[int],
    batch: int,
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
    filters: Sequence[int],
    channels: int,
    classes: int,
    *,
    half: bool = False,
) -> int:
    """Estimate the bytes that one training step takes.

    Counted are what the backward pass keeps (each convolution's and each normalisation's output), weights with their
    gradient and momentum, and the maps of the loss.

    Parameters
    ----------
    patch, strides, kernels, filters
        See `Plan`.
    batch : int
    channels, classes : int
        Of the input and (without the background) of the output.
    half : bool
        Whether activations are kept in 16 bits (mixed precision).
    """
    values, weights = 0.0, 0
    pixels = float(np.prod(patch))
    inputs = channels
    last = len(filters) - 1
    for level, width in enumerate(filters):
        pixels /= float(np.prod(strides[level]))
        kernel = int(np.prod(kernels[level]))
        weights += kernel * (inputs * width + width * width)
        values += 4 * width * pixels
        if level < last:  # the way up: the transposed convolution's output, its join with the skip, two convolutions
            values += (1 + 2 + 4) * width * pixels
            weights += kernel * 3 * width * width + filters[level + 1] * width * int(np.prod(strides[level + 1]))
            values += 6 * (classes + 1) * pixels
        inputs = width
    values += float(np.prod(patch)) * (channels + 2 * (classes + 1))
    return int(batch * values * (2 if half else 4) * 1.25) + 4 * 4 * weights


def _readable(value: Any, depth: int = 0) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = "  " * (depth + 1)
    entries = [f"{inner}{json.dumps(key)}: {_readable(part, depth + 1)}" for key, part in value.items()]
    return "{\n" + ",\n".join(entries) + "\n" + "  " * depth + "}"


def _decide(found: _Fingerprint, classes: dict[str, int], options: TrainingOptions) -> Plan:
    assert options.max_side is not None
    source, window, normalisation = found.intensities(options)
    spacing, max_side = found.resolution(options)
    shape = found.working_shape(spacing, max_side)
    step = spacing or (1.0, 1.0)
    assert options.max_patch is not None
    sides = [min(side, options.max_patch) for side in shape]
    channels = 3 if found.colour else 1
    half = options.amp and str(options.device).startswith("cuda")
    assert options.base_filters is not None
    assert options.max_filters is not None
    assert options.memory is not None
    while True:
        patch, strides, kernels = topology(sides, step)
        filters = [min(options.base_filters * 2**level, options.max_filters) for level in range(len(strides))]
        least = options.batch_size or _LEAST_BATCH

        estimate = partial(
            training_bytes,
            patch,
            strides=strides,
            kernels=kernels,
            filters=filters,
            channels=channels,
            classes=len(classes),
            half=half,
        )
        if estimate(least) <= options.memory:
            break
        if max(patch) <= _LEAST_SIDE:
            raise OptionError(
                "memory",
                options.memory,
                f"at least {estimate(least)} bytes, which the smallest network of these filters takes",
            )
        # The axis that covers most of its image is made smaller first.
        axis = int(np.argmax([patch[axis] / shape[axis] if patch[axis] > _LEAST_SIDE else -1.0 for axis in (0, 1)]))
        whole = int(np.prod(strides, axis=0)[axis])
        sides = list(patch)
        sides[axis] = max(_LEAST_SIDE, patch[axis] - whole)
    batch = options.batch_size
    if batch is None:
        assert options.max_batch is not None
        each = estimate(2) - estimate(1)
        fits = int((options.memory - (estimate(1) - each)) // max(each, 1))
        share = int(_LARGEST_SHARE * found.planes * np.prod(shape) / np.prod(patch))
        batch = max(_LEAST_BATCH, min(fits, max(share, _LEAST_BATCH), options.max_batch))
    heads = max(0, len(strides) - 3) if options.deep_supervision else 0
    return Plan(
        classes=classes,
        modality=found.modality,
        channels=channels,
        source=source,
        window=window,
        normalisation=normalisation,
        spacing=spacing,
        max_side=max_side,
        patch_size=patch,
        kernels=tuple(kernels),
        strides=tuple(strides),
        filters=tuple(filters),
        batch_size=batch,
        heads=heads,
        mirror_axes=mirror_axes(list(classes), options.mirror),
        multilabel=options.multilabel == "always" or found.overlaps,
        memory={"budget": options.memory, "estimated": estimate(batch)},
        fingerprint=found.to_dict({index: name for name, index in classes.items()}, shape),
    )


class _Fingerprint:
    """What is gathered of the training images, one at a time."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self.shapes: list[tuple[int, int]] = []
        self.spacings: list[tuple[float, float] | None] = []
        self.modalities: set[str | None] = set()
        self.plane_counts: list[int] = []
        self.colour = False
        self.units = True
        self.overlaps = False
        self.total = 0
        self.pixels = np.zeros(n_classes + 1, dtype=np.int64)
        self.with_class = np.zeros(n_classes + 1, dtype=np.int64)
        self.planes_with_class = np.zeros(n_classes + 1, dtype=np.int64)
        # sums, over the images and the planes that hold a class, of its share of their pixels
        self.image_shares = np.zeros(n_classes + 1)
        self.plane_shares = np.zeros(n_classes + 1)
        # of each class, the largest part's share of each plane that holds it
        self.main_parts: list[list[float]] = [[] for _ in range(n_classes + 1)]
        self._samples: list[np.ndarray] = []

    @property
    def planes(self) -> int:
        """Planes of all images."""
        return sum(self.plane_counts)

    @property
    def modality(self) -> str | None:
        """The one modality of all images."""
        return next(iter(self.modalities)) if len(self.modalities) == 1 else None

    def add(self, image: MedicalImage, layers: np.ndarray) -> None:
        """Look at an image and its classes, uint8 [n_layers, n_planes, H, W] as `Example.layers` returns them."""
        labels = layers[0]
        self.overlaps |= len(layers) > 1
        self.shapes.append(image.plane_shape)
        self.spacings.append(image.pixel_spacing)
        self.modalities.add(image.modality)
        self.plane_counts.append(image.n_planes)
        self.units &= image.has_units
        if not self.colour and image.is_colour:
            middle = image.plane(image.n_planes // 2)
            self.colour = bool((middle != middle[..., :1]).any())
        by_plane = np.stack([np.bincount(plane.ravel(), minlength=self.n_classes + 1) for plane in labels])
        self.total += labels.size
        for beneath in layers[1:]:
            # what it does not cover is no background
            by_plane[:, 1:] += [np.bincount(plane.ravel(), minlength=self.n_classes + 1)[1:] for plane in beneath]
        counts = by_plane.sum(axis=0)
        self.pixels += counts
        self.with_class += counts > 0
        self.planes_with_class += (by_plane > 0).sum(axis=0)
        self.image_shares += counts / labels.size
        self.plane_shares += (by_plane / labels[0].size).sum(axis=0)
        for index, held in enumerate(by_plane):
            for value in np.flatnonzero(held[1:]) + 1:
                parts, _ = ndimage.label(class_mask(layers[:, index], value))
                self.main_parts[value].append(float(np.bincount(parts.ravel())[1:].max() / parts.size))
        if image.modality == "CT" and image.has_units:
            inside = np.flatnonzero(labels.any(axis=(1, 2)))
            values = [plane_pixels(image, index, 1, "values", None)[0][labels[index] > 0] for index in inside]
            if values:
                joined = np.concatenate(values)
                self._samples.append(joined[:: max(1, len(joined) // _SAMPLES)])

    def intensities(self, options: TrainingOptions) -> tuple[str, tuple[float, float] | None, Normalisation]:
        """Return source, window and normalisation: Hounsfield units of a CT, else display planes."""
        window = options.ct_window()
        if window is not None and self.modality != "CT":
            raise OptionError("window", options.window, "none, since the training images are no CT")
        if self.modality != "CT" or not self.units or window is not None or not self._samples:
            return "display", window, Normalisation("z-score")
        values = np.concatenate(self._samples).astype(np.float64)
        low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
        mean, sd = float(values.mean()), float(values.std())
        return "values", None, Normalisation("foreground", low, high, mean, max(sd, 1e-3))

    def _small_part(self, index: int) -> float:
        parts = self.main_parts[index]
        return float(_SMALL[1] * np.percentile(parts, _SMALL[0])) if parts else 0.0

    def resolution(self, options: TrainingOptions) -> tuple[tuple[float, float] | None, int]:
        """Return the network's spacing (None where not all images have one) and longest side."""
        assert options.max_side is not None
        known = [spacing for spacing in self.spacings if spacing is not None]
        if len(known) < len(self.spacings):
            if options.spacing is not None:
                raise OptionError("spacing", options.spacing, "none, since not all images say their spacing")
            return None, min(options.max_side, max(1, round(float(np.median([max(shape) for shape in self.shapes])))))
        rows, columns = (float(value) for value in np.median(np.asarray(known), axis=0))
        if options.spacing is not None:
            rows = columns = options.spacing
        sides = [
            max(shape[0] * spacing[0] / rows, shape[1] * spacing[1] / columns)
            for shape, spacing in zip(self.shapes, known, strict=True)
        ]
        longest = float(np.median(sides))
        scale = max(1.0, longest / options.max_side)
        return (rows * scale, columns * scale), max(1, round(longest / scale))

    def working_shape(self, spacing: tuple[float, float] | None, max_side: int) -> tuple[int, int]:
        """Return the median (rows, columns) of the planes the network works on."""
        shapes = [
            working_shape(shape, own, spacing, max_side) for shape, own in zip(self.shapes, self.spacings, strict=True)
        ]
        rows, columns = (max(1, round(float(value))) for value in np.median(np.asarray(shapes), axis=0))
        return rows, columns

    def to_dict(self, names: Mapping[int, str], shape: tuple[int, int]) -> dict[str, Any]:
        """Return what is worth reading, JSON-able."""
        return {
            "images": len(self.shapes),
            "planes": self.planes,
            "modalities": sorted(str(name) for name in self.modalities),
            "smallest_plane": [int(value) for value in np.min(self.shapes, axis=0)],
            "median_plane": [float(value) for value in np.median(self.shapes, axis=0)],
            "largest_plane": [int(value) for value in np.max(self.shapes, axis=0)],
            "working_plane": list(shape),
            "spacing_known": all(spacing is not None for spacing in self.spacings),
            "classes": {
                name: {
                    "images_with": int(self.with_class[index]),
                    "share_of_pixels": float(self.pixels[index] / max(1, self.total)),
                    "share_of_image": float(self.image_shares[index] / max(1, self.with_class[index])),
                    "share_of_plane": float(self.plane_shares[index] / max(1, self.planes_with_class[index])),
                    "small_part": self._small_part(index),
                }
                for index, name in [(0, "background"), *sorted(names.items())]
            },
        }
