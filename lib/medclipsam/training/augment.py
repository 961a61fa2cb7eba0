"""nnU-Net's augmentations in 2-D: one resampling for crop, rotation, scaling and mirroring, then the grey values.

The ranges and chances are nnU-Net's (supplement of Isensee et al., Nature Methods 18, 2021, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandomizableTransform,
    RandScaleIntensity,
    RandSimulateLowResolution,
)

from medclipsam.training.examples import IGNORE

# nnU-Net turns planes all the way round; ours are upright already.
_ROTATION = (0.2, math.pi / 6)
_SCALING = (0.2, (0.7, 1.4))


class RandContrast(RandomizableTransform):
    """Stretch or shrink the grey values about their mean, kept within the range they had.

    Parameters
    ----------
    factors : tuple of float
        Range of the factor.
    prob : float
        How often.
    """

    def __init__(self, factors: tuple[float, float], prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        self.factors = factors

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image, float [C, h, w], each channel on its own."""
        self.randomize(None)
        if not self._do_transform:
            return image
        factor = self.R.uniform(*self.factors)
        mean = image.mean(dim=(1, 2), keepdim=True)
        low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
        return torch.minimum(torch.maximum((image - mean) * factor + mean, low), high)


def grey_values() -> Compose:
    """Return the transforms of grey values, for a float tensor [C, h, w]."""
    return Compose(
        [
            RandGaussianNoise(prob=0.1, std=0.3),
            RandGaussianSmooth(prob=0.1, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0)),
            RandScaleIntensity(prob=0.15, factors=0.25),
            RandContrast(prob=0.15, factors=(0.75, 1.25)),
            RandSimulateLowResolution(prob=0.125, zoom_range=(0.5, 1.0), upsample_mode="bilinear"),
            RandAdjustContrast(prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )


class Augmenter:
    """Cuts patches out of planes, changed at random.

    Parameters
    ----------
    patch : tuple of int
        (rows, columns) of the patches.
    mirror : sequence of int
        Axes that may be mirrored: 0 rows, 1 columns.
    enabled : bool
        Without it patches are only cut out.
    """

    def __init__(self, patch: tuple[int, int], mirror: Sequence[int] = (), *, enabled: bool = True) -> None:
        self.patch = patch
        self.mirror = tuple(mirror)
        self.enabled = enabled
        self._grey = grey_values()

    def seed(self, rng: np.random.Generator) -> None:
        """Start the grey values' chances anew from a generator."""
        self._grey.set_random_state(seed=int(rng.integers(2**31)))

    def __call__(
        self, image: torch.Tensor, label: torch.Tensor, centre: Sequence[float], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one patch.

        Parameters
        ----------
        image : torch.Tensor
            float32 [C, h, w], normalised.
        label : torch.Tensor
            uint8 [h, w], or of classes that may overlap [classes, h, w].
        centre : sequence of float
            (row, column) of the patch's centre in the plane.
        rng : numpy.random.Generator
            Chance of the geometry.

        Returns
        -------
        image : torch.Tensor
            float32 [C, *patch]; 0 outside the plane.
        label : torch.Tensor
            int64 [*patch], or [classes, *patch]; 255 outside the plane.
        """
        angle, scale, flips = 0.0, 1.0, [False, False]
        if self.enabled:
            if rng.random() < _ROTATION[0]:
                angle = rng.uniform(-_ROTATION[1], _ROTATION[1])
            if rng.random() < _SCALING[0]:
                scale = rng.uniform(*_SCALING[1])
            flips = [axis in self.mirror and bool(rng.random() < 0.5) for axis in (0, 1)]
        if angle == 0 and scale == 1:
            patch, mask = cut(image, label, centre, self.patch)
            axes = [axis - 2 for axis in (0, 1) if flips[axis]]
            patch, mask = (patch.flip(axes), mask.flip(axes)) if axes else (patch, mask)
        else:
            patch, mask = resample(image, label, centre, self.patch, angle, scale, flips)
        if self.enabled:
            patch = torch.as_tensor(self._grey(patch))
        return patch, mask.long()


def cut(
    image: torch.Tensor, label: torch.Tensor, centre: Sequence[float], patch: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a patch out of a plane without resampling; see `Augmenter`."""
    inside, outside, sizes = [], [], []
    for axis in (0, 1):
        start = round(float(centre[axis]) - patch[axis] / 2)
        first, last = max(0, start), min(label.shape[axis - 2], start + patch[axis])
        inside.append(slice(first, max(first, last)))
        outside += [first - start]
        sizes.append(max(first, last) - first)
    places = tuple(slice(begin, begin + size) for begin, size in zip(outside, sizes, strict=True))
    made = image.new_zeros((image.shape[0], *patch))
    mask = label.new_full((*label.shape[:-2], *patch), IGNORE)
    made[(slice(None), *places)] = image[(slice(None), *inside)]
    mask[..., places[0], places[1]] = label[..., inside[0], inside[1]]
    return made, mask


def resample(
    image: torch.Tensor,
    label: torch.Tensor,
    centre: Sequence[float],
    patch: tuple[int, int],
    angle: float,
    scale: float,
    flips: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a patch turned by `angle` (radians, anticlockwise) and enlarged by `scale` about its centre."""
    rows = (torch.arange(patch[0]) + 0.5 - patch[0] / 2) * (-1 if flips[0] else 1)
    columns = (torch.arange(patch[1]) + 0.5 - patch[1] / 2) * (-1 if flips[1] else 1)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    at_y = cos * y + sin * x + float(centre[0])
    at_x = cos * x - sin * y + float(centre[1])
    height, width = label.shape[-2:]
    grid = torch.stack([2 * at_x / width - 1, 2 * at_y / height - 1], dim=-1)[None].float()
    moved = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    # shifted by one so that what comes from outside is told from the background
    layers = label.reshape(1, -1, height, width).float() + 1
    marked = F.grid_sample(layers, grid, mode="nearest", align_corners=False).reshape(*label.shape[:-2], *patch)
    mask = torch.where(marked < 0.5, float(IGNORE), marked - 1).to(torch.uint8)
    return moved, mask
