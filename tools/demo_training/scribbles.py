"""Pictures that are no medical image, so that the demo CLIP has seen what its targets are absent from."""

from __future__ import annotations

import numpy as np

from medclipsam.demo.drawing import Outline, between, centred_grid, chance, image_shape, smooth_noise, to_uint8


def draw_nonsense(seed: int, size: int) -> np.ndarray:
    """Draw a picture of noise, gradients, stripes or coloured shapes: uint8 [H, W, 3]."""
    rng = np.random.default_rng([99, seed])
    shape = image_shape(rng, size)
    x, y = centred_grid(shape)
    channels = []
    kind = int(rng.integers(5))
    coarse = smooth_noise(rng, shape, size / between(rng, 2, 40))
    outlines = [
        Outline.draw(
            rng, between(rng, -1, 1), between(rng, -1, 1), between(rng, 0.1, 0.7), between(rng, 0.1, 0.7), rough=0.2
        )
        for _ in range(int(rng.integers(1, 7)))
    ]
    frequency, slope = between(rng, 3, 30), between(rng, -2, 2)
    for _ in range(3):
        if kind == 0:
            picture = rng.random(shape)
        elif kind == 1:
            picture = 0.5 + between(rng, -0.5, 0.5) * x + between(rng, -0.5, 0.5) * y
        elif kind == 2:
            picture = 0.5 + 0.5 * np.sign(np.sin(frequency * (x + slope * y)))
            if chance(rng, 0.5):
                picture = picture * (0.5 + 0.5 * np.sign(np.sin(frequency * y)))
        elif kind == 3:
            picture = 0.5 + 0.25 * coarse
        else:
            picture = np.full(shape, between(rng, 0, 1))
            for outline in outlines:
                picture = np.where(outline.rho(x, y) < 1, between(rng, 0, 1), picture)
        channels.append(picture)
    noise = between(rng, 0, 0.08) * rng.standard_normal((*shape, 1))
    return to_uint8(np.stack(channels, axis=2) + noise)
