"""A structure followed through a volume by SAM 2's memory of the planes before, on every plane."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch

from medclipsam.pipeline.volume import Follower, Seed, grown_too_much
from medclipsam.prompting import largest_components
from medclipsam.sam import SamModel
from medclipsam.sam.sam2_adapter import Memory, Sam2

# The structure has ended where SAM 2 holds it for less likely than this.
_LEAST_LIKELY = 0.5


class MemoryFollower(Follower):
    """Follows one structure by SAM 2's memory (Ravi et al., arXiv 2408.00714).

    Parameters
    ----------
    sam : SamModel
        Of SAM 2.
    *given, **named
        As `Follower`; the distance of the planes on which SAM is asked has no effect, since it is asked on all.
    """

    def __init__(self, sam: SamModel, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._sam = sam

    def follow(
        self, seed: Seed, direction: int, *, stop: Callable[[int, np.ndarray], str] = lambda plane, mask: ""
    ) -> Generator[tuple[int, np.ndarray] | str, np.ndarray | None, None]:
        """Yield (plane, mask) from a key plane's neighbour on, and at last why the structure was followed no farther.

        See `Follower.follow`.
        """
        network = self._sam.network
        assert isinstance(network, Sam2)
        memory = Memory(network, self.image.n_planes, direction)
        memory.begin(seed.plane, self._features(seed.plane), torch.from_numpy(seed.mask).to(self._sam.device))
        plane, before = seed.plane + direction, seed.mask
        while True:
            reason = self.outside(plane) or stop(plane, before)
            if reason:
                yield reason
                return
            logits, likely = memory.step(plane, self._features(plane), self.image.plane_shape)
            region = self.image.valid_region(plane)
            found = (logits > 0).cpu().numpy()
            mask = largest_components(found if region is None else found & region, self.num_components)
            if likely < _LEAST_LIKELY:
                reason = f"SAM 2 sees it no more (probability {likely:.2f})"
            elif not mask.any():
                reason = "nothing is left of it"
            else:
                reason = grown_too_much(mask, before)
            if reason:
                yield reason
                return
            other = yield plane, mask
            plane, before = plane + direction, mask if other is None else other

    def _features(self, plane: int) -> torch.Tensor:
        return self._sam.embed(self.image.model_plane(plane, self.window)).features.to(self._sam.device)
