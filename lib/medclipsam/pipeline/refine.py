"""Click refinement: corrects a mask by points or a box, on SAM's cached embedding.

SAM returns a whole mask for each prompt, and its answer to one click may differ from the current mask anywhere. Here a
click changes the current mask only where it says that the mask is wrong: by the part of the difference between SAM's
answer and the mask that contains the click. A click that agrees with the mask changes nothing, so that a client may
send all of its clicks again with each new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.imaging import MedicalImage, Window
from medclipsam.imaging.masks import flatten, mask_of
from medclipsam.pipeline.correction import carry_on
from medclipsam.pipeline.volume import Track
from medclipsam.prompting import boxes_of
from medclipsam.sam import SamModel

# Lines of the difference that are not wider than twice this, in pixels, do not join two regions of it: the outlines of
# two masks of one structure differ by such lines all around.
_THIN = 2
# Where SAM's answer does not follow a click: the farthest that the click may change the mask by itself, as a share of
# the plane's diagonal, and the grey levels (of 256) that still count as alike.
_REACH = 0.06
_ALIKE = 20.0


@dataclass(frozen=True)
class Clicks:
    """What was marked for one label, in display indices.

    Attributes
    ----------
    foreground, background : numpy.ndarray
        int [n, 3], (plane, row, column): in the structure, and outside of it.
    box : numpy.ndarray or None
        int [2, 3]: the least and the greatest (plane, row, column) of a box, inclusive.
    """

    foreground: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    background: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    box: np.ndarray | None = None

    @classmethod
    def from_ijk(cls, image: MedicalImage, foreground: Any = (), background: Any = (), box: Any = None) -> Clicks:
        """Make clicks from voxel indices of the file.

        Parameters
        ----------
        image : MedicalImage
            The image that was clicked on.
        foreground, background : array_like
            [n, 3] of (i, j, k), or [n, 2] of (i, j) for an image of one plane, see `MedicalImage.display_index`.
        box : array_like, optional
            Two opposite corners in one list: [i0, j0, k0, i1, j1, k1], or [i0, j0, i1, j1]; both belong to the box.

        Raises
        ------
        InputError
            If indices are not usable or lie outside the image.
        """
        corners = None
        if box is not None and len(box):
            half, odd = divmod(len(box), 2)
            if odd or half not in (2, 3):
                raise InputError(
                    f"The box {str(box)[:80]} cannot be used; allowed: [i0, j0, k0, i1, j1, k1], two opposite corners."
                )
            both = image.display_index([list(box[:half]), list(box[half:])])
            corners = np.stack([both.min(axis=0), both.max(axis=0)])
        return cls(_display(image, foreground), _display(image, background), corners)

    @property
    def is_marked(self) -> bool:
        """Whether there is a click or a box."""
        return bool(len(self.foreground) or len(self.background) or self.box is not None)


@dataclass(frozen=True)
class RefinedPlane:
    """What was done on one plane for one label.

    Attributes
    ----------
    plane, label : int
        0-based display plane, and the label.
    clicks : int
        Clicks on it, those of other labels (background of this one) included.
    followed : dict
        How the mask came to follow the clicks, with counts: "agreed" already, by SAM's answer ("sam"), by what lies
        round the click and looks "alike", or by a "disc".
    sam_score : float or None
        SAM's own estimate for its answer; None where SAM was not asked.
    changed : int
        Pixels that are other than before.
    """

    plane: int
    label: int
    clicks: int
    followed: dict[str, int]
    sam_score: float | None
    changed: int


@dataclass(frozen=True)
class RefineResult:
    """A corrected label map.

    Attributes
    ----------
    labels : numpy.ndarray
        uint8 [N, H, W] in display orientation.
    planes : list of RefinedPlane
        One for each plane and label that was worked on.
    seconds : dict
        Seconds of "sam_embed", "sam_decode", "propagate" and in "total".
    tracks : dict of int to list of Track
        By label: how far each correction was carried on, and why it ended there.
    beneath : numpy.ndarray
        uint8 [L, N, H, W]: what `labels` covers where labels overlap; no layers where none do.
    """

    labels: np.ndarray
    planes: list[RefinedPlane]
    seconds: dict[str, float]
    tracks: dict[int, list[Track]] = field(default_factory=dict)
    beneath: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.uint8), repr=False)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.labels.shape))
        filled = np.count_nonzero(self.labels)
        return f"<RefineResult: {len(self.planes)} planes worked on, {filled} voxels; labels {size}>"


def refine(
    image: MedicalImage,
    sam: SamModel,
    label_map: np.ndarray | None,
    clicks: Mapping[int, Clicks],
    *,
    windows: Mapping[int, Window | None] | None = None,
    propagate: bool = False,
    drawn: Mapping[int, Collection[int]] | None = None,
    beneath: np.ndarray | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> RefineResult:
    """Correct a label map by clicks, plane by plane.

    Afterwards every foreground click is inside its label and every background click outside of it. Planes without
    clicks stay as they are unless corrections are propagated, and so do parts of the mask that are not connected to a
    click that disagrees with it. Another label loses voxels only to a click inside it. Within a box the label becomes
    SAM's answer to the box.

    Parameters
    ----------
    image : MedicalImage
        The image.
    sam : SamModel
        The model, such as the `sam` of a `ZeroShot`; embeddings that it has cached are used.
    label_map : numpy.ndarray or None
        uint8 [N, H, W]: the label map to correct, in display orientation; None for an empty one.
    clicks : mapping of int to Clicks
        What was marked for each label, 1 to 255. Foreground of one label is background of all others.
    windows : mapping of int to Window, optional
        Grey window that a label is looked at through, as for its text, so that the cached embedding is used.
    propagate : bool
        Whether corrections are carried on to the other planes of a volume, see `medclipsam.pipeline.correction`. The
        same label map, clicks and drawn planes give the same result: to undo a correction, give the first label map
        again with the former clicks.
    drawn : mapping of int to collection of int, optional
        For each label, planes whose mask in `label_map` a person has drawn, by display index. They are carried on too,
        and never changed by what is carried on from other planes.
    beneath : numpy.ndarray, optional
        uint8 [L, N, H, W]: what `label_map` covers where labels overlap, see `LabelMap`. Each label is then corrected
        as a whole, and a label that overlapped it before loses no voxel to it.
    progress : callable, optional
        Called with a fraction in [0, 1] and what is being done.
    cancelled : callable, optional
        Called before each plane; True stops the work.

    Returns
    -------
    RefineResult
        The corrected label map and what was done on each plane.

    Raises
    ------
    InputError
        If nothing was marked, a label or plane is out of range, the label map does not fit the image, or one voxel was
        marked as inside and outside.
    CancelledError
        If the caller asked to stop.

    Examples
    --------
    >>> from medclipsam import Clicks, MedicalImage, ZeroShot, refine
    >>> from medclipsam.demo.phantoms import make_phantom
    >>> image = MedicalImage.from_array(make_phantom("US", 1, pathology=True).image, modality="US")
    >>> model = ZeroShot.load()
    >>> result = model.segment(image, "breast tumour")

    A click at column 20 and row 200 says that the tumour reaches there:

    >>> clicks = {1: Clicks.from_ijk(image, foreground=[(20, 200)])}
    >>> refined = refine(image, model.sam, result.labels, clicks)
    >>> int(refined.labels[0, 200, 20])
    1
    """
    if label_map is not None and beneath is not None and len(beneath):
        return _refine_whole(image, sam, label_map, beneath, clicks, windows, propagate, drawn, progress, cancelled)
    start = time.perf_counter()
    shape = (image.n_planes, *image.plane_shape)
    labels = np.zeros(shape, dtype=np.uint8) if label_map is None else np.array(label_map, dtype=np.uint8)
    if labels.shape != shape:
        raise InputError(f"A label map of shape {labels.shape} does not fit {image.source.name}; allowed is {shape}.")
    own = _checked_planes(drawn or {}, image, labels) if propagate else {}
    if not own and not any(each.is_marked for each in clicks.values()):
        raise _nothing_marked()
    work = _by_plane(clicks)
    seconds = {"sam_embed": 0.0, "sam_decode": 0.0}
    done = []
    before = labels.copy() if propagate else labels
    share = 0.2 if propagate and image.is_volume else 1.0
    for number, (plane, label, marks) in enumerate(work):
        if cancelled is not None and cancelled():
            raise CancelledError("The request was cancelled.")
        if progress is not None:
            progress(share * number / len(work), f"clicks, plane {plane + 1} of {image.n_planes}")
        window = (windows or {}).get(label)
        done.append(_mend(image, sam, labels[plane], plane, label, marks, window, seconds))
    tracks: dict[int, list[Track]] = {}
    if propagate and image.is_volume:
        begun = time.perf_counter()
        todo = sorted({*own, *(plane.label for plane in done)})
        worked: set[int] = set()

        def on_plane(plane: int) -> None:
            if cancelled is not None and cancelled():
                raise CancelledError("The request was cancelled.")
            worked.add(plane)
            if progress is not None:
                fraction = (len(tracks) + min(1.0, len(worked) / image.n_planes)) / len(todo)
                progress(share + (1 - share) * fraction, f"correction, plane {plane + 1} of {image.n_planes}")

        for label in todo:
            clicked = [each.plane for each in done if each.label == label]
            window = (windows or {}).get(label)
            tracks[label] = carry_on(
                image, sam, labels, before, label, clicked, own.get(label, ()), window=window, on_plane=on_plane
            )
            worked.clear()
        seconds["propagate"] = time.perf_counter() - begun
    seconds = {stage: round(value, 4) for stage, value in seconds.items()}
    return RefineResult(labels, done, {**seconds, "total": round(time.perf_counter() - start, 4)}, tracks)


def _nothing_marked() -> InputError:
    return InputError("Nothing was marked; give foreground or background points [i, j, k], or a box.")


def _refine_whole(
    image: MedicalImage,
    sam: SamModel,
    label_map: np.ndarray,
    beneath: np.ndarray,
    clicks: Mapping[int, Clicks],
    windows: Mapping[int, Window | None] | None,
    propagate: bool,
    drawn: Mapping[int, Collection[int]] | None,
    progress: Callable[[float, str], None] | None,
    cancelled: Callable[[], bool] | None,
) -> RefineResult:
    """Correct labels that overlap: each by itself, on top of the others."""
    start = time.perf_counter()
    present = sorted({int(label) for layer in (label_map, *beneath) for label in np.unique(layer)} - {0})
    masks = {label: mask_of(label, label_map, beneath) for label in present}
    planes: list[RefinedPlane] = []
    seconds: dict[str, float] = {}
    tracks: dict[int, list[Track]] = {}
    marked = [label for label, own in clicks.items() if own.is_marked]
    todo = list(dict.fromkeys([*marked, *((drawn or {}) if propagate else ())]))
    if not todo:
        raise _nothing_marked()
    for number, label in enumerate(todo):
        flat, _ = flatten(masks.items(), label_map.shape)
        before = masks.get(label, np.zeros(label_map.shape, bool))
        flat[before] = label
        part = refine(
            image,
            sam,
            flat,
            {label: _with_others(clicks, label)},
            windows=windows,
            propagate=propagate,
            drawn={label: drawn[label]} if drawn and label in drawn else None,
            progress=None if progress is None else partial(_advance, progress, number, len(todo)),
            cancelled=cancelled,
        )
        for other, mask in masks.items():
            if other != label and not (mask & before).any():
                masks[other] = mask & ~((flat == other) & (part.labels == label))
        masks[label] = part.labels == label
        planes += part.planes
        tracks |= part.tracks
        for stage, value in part.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 4)
    labels, covered = flatten(masks.items(), label_map.shape)
    seconds["total"] = round(time.perf_counter() - start, 4)
    return RefineResult(labels, planes, seconds, tracks, covered)


def _with_others(clicks: Mapping[int, Clicks], label: int) -> Clicks:
    """Return what was marked for a label, with the clicks of the other labels on its planes as background."""
    own = clicks.get(label, Clicks())
    planes = {int(plane) for plane in np.concatenate([own.foreground, own.background])[:, 0]}
    if own.box is not None:
        planes.update(range(own.box[0, 0], own.box[1, 0] + 1))
    others = [other.foreground for at, other in clicks.items() if at != label]
    outside = np.concatenate([own.background, *others])
    kept = np.isin(outside[:, 0], sorted(planes))
    return replace(own, background=outside[kept])


def _advance(progress: Callable[[float, str], None], number: int, count: int, fraction: float, message: str) -> None:
    progress((number + fraction) / count, message)


def _checked_planes(
    drawn: Mapping[int, Collection[int]], image: MedicalImage, labels: np.ndarray
) -> dict[int, list[int]]:
    checked = {}
    for label, planes in drawn.items():
        if not 1 <= label <= 255:
            raise InputError(f"Label {label} cannot be refined; allowed are 1 to 255.")
        for plane in planes:
            if not 0 <= plane < image.n_planes:
                raise InputError(f"Plane {plane} was not drawn; allowed are planes 0 to {image.n_planes - 1}.")
        held = sorted({int(plane) for plane in planes})
        if held and not any((labels[plane] == label).any() for plane in held):
            raise InputError(f"Label {label} has no voxel on the planes {held} that are said to be drawn.")
        if held:
            checked[label] = held
    return checked


@dataclass(frozen=True)
class _Marks:
    """Clicks on one plane: int [n, 2] of (row, column), bool [n], and a box (rows, columns) or None."""

    points: np.ndarray
    inside: np.ndarray
    box: tuple[slice, slice] | None


def _by_plane(clicks: Mapping[int, Clicks]) -> list[tuple[int, int, _Marks]]:
    work = []
    for label, own in clicks.items():
        if not 1 <= label <= 255:
            raise InputError(f"Label {label} cannot be refined; allowed are 1 to 255.")
        outside = [own.background, *(other.foreground for at, other in clicks.items() if at != label)]
        points = np.concatenate([own.foreground, *outside])
        inside = np.arange(len(points)) < len(own.foreground)
        both = {tuple(point) for point in points[inside]} & {tuple(point) for point in points[~inside]}
        if both:
            raise InputError(f"The voxel at plane, row, column {min(both)} was marked both inside and outside.")
        # clicks of other labels alone are no reason to touch a plane
        planes = {int(plane) for plane in np.concatenate([own.foreground, own.background])[:, 0]}
        if own.box is not None:
            planes.update(range(own.box[0, 0], own.box[1, 0] + 1))
        for plane in sorted(planes):
            here = points[:, 0] == plane
            box = None
            if own.box is not None and own.box[0, 0] <= plane <= own.box[1, 0]:
                (_, top, left), (_, bottom, right) = own.box
                box = (slice(top, bottom + 1), slice(left, right + 1))
            work.append((plane, label, _Marks(points[here, 1:], inside[here], box)))
    return work


def _mend(
    image: MedicalImage,
    sam: SamModel,
    labels: np.ndarray,
    plane: int,
    label: int,
    marks: _Marks,
    window: Window | None,
    seconds: dict[str, float],
) -> RefinedPlane:
    """Change one plane of the label map, uint8 [H, W], in place."""
    before = labels.copy()
    followed: dict[str, int] = {}
    score = None
    if marks.box is not None or _disagreeing(labels == label, marks):
        pixels = image.model_plane(plane, window)
        start = time.perf_counter()
        embedding = sam.embed(pixels)
        embedded = time.perf_counter()
        mask = labels == label
        answer = sam.decode(
            embedding,
            _prompt_box(mask, marks),
            marks.points[:, ::-1] if len(marks.points) else None,
            marks.inside.astype(int) if len(marks.points) else None,
            mask=mask if sam.mask_prompts and mask.any() else None,
        )
        seconds["sam_embed"] += embedded - start
        seconds["sam_decode"] += time.perf_counter() - embedded
        region = image.valid_region(plane)
        found = answer.mask if region is None else answer.mask & region
        score = float(answer.score)
        if marks.box is not None:
            _replace_in_box(labels, label, found, marks.box)
        followed = _follow(labels, label, found, pixels, marks)
    agreed = len(marks.points) - sum(followed.values())
    if agreed:
        followed["agreed"] = agreed
    changed = int(np.count_nonzero(before != labels))
    return RefinedPlane(plane, label, len(marks.points), followed, score, changed)


def _disagreeing(mask: np.ndarray, marks: _Marks) -> list[int]:
    """Return the clicks that the mask does not follow."""
    held = mask[marks.points[:, 0], marks.points[:, 1]]
    return [int(n) for n in np.flatnonzero(held != marks.inside)]


def _prompt_box(mask: np.ndarray, marks: _Marks) -> np.ndarray | None:
    """Return the box for SAM: the annotator's, else the one round the mask and the foreground clicks."""
    if marks.box is not None:
        rows, columns = marks.box
        return np.array([[columns.start, rows.start, columns.stop - 1, rows.stop - 1]], dtype=np.float32)
    if not mask.any():
        return None
    inside = mask.copy()
    own = marks.points[marks.inside]
    inside[own[:, 0], own[:, 1]] = True
    return boxes_of(inside)


def _replace_in_box(labels: np.ndarray, label: int, found: np.ndarray, box: tuple[slice, slice]) -> None:
    part, answer = labels[box], found[box]
    free = (part == 0) | (part == label)
    part[free] = np.where(answer[free], label, 0)


def _follow(labels: np.ndarray, label: int, found: np.ndarray, pixels: np.ndarray, marks: _Marks) -> dict[str, int]:
    """Make the mask follow each click that it does not follow, and count by which means."""
    counts: dict[str, int] = {}
    for number in _disagreeing(labels == label, marks):
        row, column = (int(value) for value in marks.points[number])
        means = "sam"
        # unless the region of an earlier click has taken this one along
        if (labels[row, column] == label) != marks.inside[number]:
            means, region = _change(labels, label, found, pixels, marks, number)
            labels[region] = label if marks.inside[number] else 0
        counts[means] = counts.get(means, 0) + 1
    return counts


def _change(
    labels: np.ndarray, label: int, found: np.ndarray, pixels: np.ndarray, marks: _Marks, number: int
) -> tuple[str, np.ndarray]:
    """Return the region that one click adds or takes away, and by which means it was found."""
    click = (int(marks.points[number, 0]), int(marks.points[number, 1]))
    inside = bool(marks.inside[number])
    mask = labels == label
    # a foreground click may take what is free, and of another label only what it lies in
    open_to = (labels == 0) | (labels == labels[click]) if inside else mask
    opposite = marks.points[marks.inside != inside]
    reach = _reach(mask, inside, click, opposite)
    answer = found if inside else ~found
    for means, candidates in (("sam", open_to & answer), ("alike", open_to & _alike(pixels, click, 1.5 * reach))):
        region = _region(candidates, click)
        if region is not None and not region[opposite[:, 0], opposite[:, 1]].any():
            return means, region
    return "disc", open_to & _disc(mask.shape, click, reach)


def _reach(mask: np.ndarray, inside: bool, click: tuple[int, int], opposite: np.ndarray) -> float:
    """Return how far a click may change the mask by itself, in pixels.

    As far as the mask's outline (who clicks into a hole or a bulge, clicks into its middle), and never half way to a
    click of the other kind.
    """
    limit = _REACH * float(np.linalg.norm(mask.shape))
    other = mask if inside else ~mask
    if other.any():
        rows, columns = np.nonzero(other)
        limit = min(limit, float(np.hypot(rows - click[0], columns - click[1]).min()))
    limit = max(limit, 2.0)
    if len(opposite):
        limit = min(limit, 0.49 * float(np.linalg.norm(opposite - np.array(click), axis=1).min()))
    return limit


def _alike(pixels: np.ndarray, click: tuple[int, int], radius: float) -> np.ndarray:
    """Return what lies within `radius` of a click and is about as bright as the click's surroundings."""
    grey = ndimage.gaussian_filter(pixels.mean(axis=2), 1)
    row, column = click
    level = grey[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].mean()
    return (np.abs(grey - level) < _ALIKE) & _disc(grey.shape, click, radius)


def _disc(shape: Sequence[int], centre: tuple[int, int], radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def _region(difference: np.ndarray, click: tuple[int, int]) -> np.ndarray | None:
    """Return the part of a difference that holds the click, cut off where it is thin; None where there is none."""
    if not difference[click]:
        return None
    parts, _ = ndimage.label(ndimage.binary_opening(difference, iterations=_THIN))
    if parts[click]:
        return ndimage.binary_dilation(parts == parts[click], iterations=_THIN + 1, mask=difference)
    parts, _ = ndimage.label(difference)
    return parts == parts[click]


def _display(image: MedicalImage, points: Any) -> np.ndarray:
    if points is None or len(points) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    return np.unique(image.display_index(points), axis=0)
