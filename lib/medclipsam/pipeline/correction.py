"""What was corrected on some planes of a volume, carried on to the others.

A correction is carried from plane to plane by following the corrected structure (`medclipsam.pipeline.volume`). A plane
takes over what was followed only round what was corrected on the plane before it; all else stays. The way ends where
that changes nothing more, where the structure ends, and half way to the next plane that was corrected or drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from scipy import ndimage

from medclipsam.imaging import MedicalImage, Window
from medclipsam.pipeline.volume import FINDING_STEP_MM, Follower, Seed, Track
from medclipsam.prompting import VisualPrompt
from medclipsam.sam import MaskResult, SamModel

# A plane whose mask differs by no more than this share needs no correction.
_ALIKE = 0.02


def carry_on(
    image: MedicalImage,
    sam: SamModel,
    labels: np.ndarray,
    before: np.ndarray,
    label: int,
    planes: Collection[int],
    drawn: Collection[int],
    *,
    window: Window | None = None,
    on_plane: Callable[[int], None] = lambda plane: None,
) -> list[Track]:
    """Carry the corrections of one label to the other planes of a volume.

    Parameters
    ----------
    image : MedicalImage
        The image.
    sam : SamModel
        The model.
    labels : numpy.ndarray
        uint8 [N, H, W], the corrected label map; changed in place.
    before : numpy.ndarray
        uint8 [N, H, W], the label map before the correction.
    label : int
        The label.
    planes : collection of int
        Planes that were corrected by clicks or a box.
    drawn : collection of int
        Planes that a person has drawn; never changed.
    window : Window, optional
        Grey window that the label is looked at through.
    on_plane : callable, optional
        Called with each plane before it is worked on; may raise to stop.

    Returns
    -------
    list of Track
        For each plane that something was carried on from: how far, and why it ended there.
    """

    def ask(plane: int, prompt: VisualPrompt) -> MaskResult:
        on_plane(plane)
        return sam.decode(sam.embed(image.model_plane(plane, window)), prompt.boxes, mask=prompt.mask)

    fixed = sorted({*planes, *drawn})
    tracks = []
    for plane in fixed:
        now, then = labels[plane] == label, before[plane] == label
        changed = np.ones(now.shape, dtype=bool) if plane in drawn else now ^ then
        if not changed.any():
            continue
        # where nothing is left to follow, what was taken away is followed and taken away
        takes_away = not now.any()
        seed = Seed(plane, then & ~now if takes_away else now)
        if not seed.mask.any():
            continue
        count = max(1, int(ndimage.label(seed.mask, np.ones((3, 3)))[1]))
        follower = Follower(
            image,
            window,
            range(image.n_planes),
            ask,
            step_mm=FINDING_STEP_MM,
            num_components=count,
            box_per_component=True,
            mask_prompts=sam.mask_prompts,
        )
        track = Track(plane, plane, plane)
        for direction in (-1, 1):
            reason = _carry(follower, seed, direction, fixed, labels, label, changed, takes_away, track)
            setattr(track, "below" if direction < 0 else "above", reason)
        tracks.append(track)
    return tracks


def _carry(
    follower: Follower,
    seed: Seed,
    direction: int,
    fixed: list[int],
    labels: np.ndarray,
    label: int,
    changed: np.ndarray,
    takes_away: bool,
    track: Track,
) -> str:
    """Carry a correction on in one direction, and return why it ended."""
    others = [plane for plane in fixed if (plane - seed.plane) * direction > 0]
    limit = None if not others else (min(others) if direction > 0 else max(others))

    def stop(plane: int, mask: np.ndarray) -> str:
        if limit is None:
            return ""
        if abs(plane - seed.plane) > abs(limit - seed.plane) // 2 or plane == limit:
            return f"plane {limit} was corrected or drawn too"
        return ""

    reach = int(np.ceil(follower.reach))
    # what a person took away comes back on no plane on which it would be taken for the structure again
    removed = np.zeros_like(changed) if changed.all() else changed & ~seed.mask
    way = follower.follow(seed, direction, stop=stop)
    step: Any = next(way)
    while not isinstance(step, str):
        plane, found = step
        mask = labels[plane] == label
        near = changed if changed.all() else ndimage.binary_dilation(changed, iterations=reach)
        wanted = mask & ~found if takes_away else np.where(near, found & ~removed, mask)
        wanted &= (labels[plane] == 0) | mask  # what is another label's stays so
        changed, removed = wanted ^ mask, removed & mask
        if np.count_nonzero(changed) <= _ALIKE * np.count_nonzero(found):
            way.close()
            return "the mask was right there already"
        labels[plane][changed] = np.where(wanted[changed], label, 0)
        track.first, track.last = min(track.first, plane), max(track.last, plane)
        step = way.send(found if takes_away else wanted) if found.any() and wanted.any() else "nothing is left of it"
    return step
