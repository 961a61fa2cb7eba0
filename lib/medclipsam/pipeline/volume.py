"""Masks of a whole volume from few planes: a structure is followed from a key plane to both of its ends.

On the way from plane to plane three things say which pixels belong to the structure:

    e(x) = log p_in(I(x)) / p_out(I(x)) + d(x) / r + w logit(s(x)),        mask = {x: e(x) > 0, d(x) > -r}

p_in and p_out are the distributions of grey values inside and around the mask of the key plane, d is the signed
distance to the outline of the neighbour's mask (positive inside), r how far an outline may move on the way (as far as
the planes are apart), and s is SAM's probability for the box round what the first two terms hold. Its weight w is 0
where SAM scores its own mask low or where the mask is of something else. SAM is asked on planes some millimetres apart.

A structure has ended where nothing is left, where it stands out from its surroundings no more, or where its presence
score and SAM's score are both low.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from scipy import ndimage

from medclipsam.base.metrics import dice
from medclipsam.imaging import MedicalImage, Window
from medclipsam.imaging.components import VolumeComponents
from medclipsam.measurements.diameters import largest_diameter_mm
from medclipsam.prompting import VisualPrompt, boxes_of, largest_components
from medclipsam.sam import MaskResult

# Least distance of the planes on which presence and SAM are asked: organs change little within it, and hardly any
# finding that matters is smaller than the other.
ORGAN_STEP_MM, FINDING_STEP_MM = 7.5, 3.0
# Share of the plane's longer side that an outline may move by from plane to plane where distances are not known.
_REACH_SHARE = 0.02
_LEAST_REACH = 2.0
_LEVELS = 32
# Logarithms of ratios are cut off here: no single pixel is sure.
_CERTAIN = 4.0
# The structure has ended where its contrast, the difference of the means inside and around, is below this share of that
# on the key plane: of the grey values, and of the log ratios. A key plane of less contrast does not tell.
_LEAST_CONTRAST, _TELLING_GREY, _TELLING_RATIO = 0.35, 10.0, 0.4
# Width of the surroundings that the contrast is measured against, in pixels.
_RIM = 4
# SAM's mask counts from the first of these on, and fully from the second.
_AGREEMENT, _SCORE = (0.75, 0.9), (0.7, 0.85)
# Share of SAM's score on the key plane below which the structure has ended, if its presence is below the threshold or
# its contrast below the other share.
_LEAST_SCORE, _WEAK_CONTRAST = 0.85, 0.7
# A mask that shrinks to less than the first share, of which SAM's own mask is another (Dice below the second) and whose
# score is below the third share of that on the key plane, is a rim of what lay there before.
_RIM_SHARE, _RIM_AGREEMENT, _RIM_SCORE = 0.6, 0.9, 0.9
# A mask that grows by more than this factor from one plane to the next has leaked into something else.
_MOST_GROWTH = 3.0
# A component of fewer pixels than this share of the largest gets no box of its own.
_SPECK = 0.05

# Key planes that are looked at before the best of them is chosen; structures that are followed; planes drawn in all.
_CHOICE, _MOST_TRACKS, _MOST_DRAWN = 4, 8, 16
# A further structure needs this share of the first one's quality.
_LEAST_QUALITY = 0.7
# One beside it on the same plane needs this share.
_BESIDE = 0.9
# A finding takes no more of the body's section than this share.
_MOST_OF_SECTION = 0.25
# A finding that takes more of the section, reaches the volume's first or last plane, or is larger than it can be, has
# this share of its quality.
_DOUBTED = 0.35
# A finding that reaches farther across the planes than so many times its largest diameter is a vessel, sinus or fold.
_MOST_LENGTH = 2.0
# Two masks of one plane are of the same structure from this Dice on.
_SAME = 0.5
# Components beyond those that a target has are kept from this share of the largest on.
_LEAST_COMPONENT = 0.1

_VOLUME_ENDS = "the volume ends"

Ask = Callable[[int, VisualPrompt], MaskResult]


@dataclass(frozen=True)
class Seed:
    """A plane that a structure is followed from.

    Attributes
    ----------
    plane : int
        Index, from 0.
    mask : numpy.ndarray
        bool [H, W], not empty.
    score : float
        SAM's score of the mask; 1 for a mask that a person drew.
    """

    plane: int
    mask: np.ndarray
    score: float = 1.0


@dataclass
class Track:
    """How far a structure was followed from one key plane.

    Attributes
    ----------
    plane : int
        The key plane.
    first, last : int
        Lowest and highest plane that hold the structure, as far as it was followed.
    below, above : str
        Why it was followed no farther, towards lower and towards higher planes.
    presence, sam_score : float or None
        Of the key plane.
    kept : bool
        Whether it is part of the result; False where another key plane's structure is clearly the better one.
    """

    plane: int
    first: int
    last: int
    below: str = ""
    above: str = ""
    presence: float | None = None
    sam_score: float | None = None
    kept: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the track, JSON-able."""
        return vars(self).copy()


@dataclass(frozen=True)
class _Appearance:
    """What a structure looks like on its key plane.

    Attributes
    ----------
    evidence : numpy.ndarray
        float [levels], log ratio of the distributions of grey values inside and around.
    contrasts : tuple of float
        Mean of the grey values and of the log ratios inside, less that of the rim around.
    score : float
        SAM's score.
    """

    evidence: np.ndarray
    contrasts: tuple[float, float]
    score: float

    @classmethod
    def of(cls, mask: np.ndarray, grey: np.ndarray, reach: int, score: float) -> _Appearance:
        around = ndimage.binary_dilation(mask, iterations=2 * reach + 1) & ~mask
        inside, outside = (_distribution(grey[each]) for each in (mask, around))
        ratio = np.clip(np.log(inside + 1e-3) - np.log(outside + 1e-3), -_CERTAIN, _CERTAIN)
        return cls(ratio, (_contrast(mask, grey), _contrast(mask, ratio[_levels(grey)])), score)

    def contrast_left(self, mask: np.ndarray, grey: np.ndarray) -> float | None:
        """Return the contrast of a mask as a share of that on the key plane; None where that does not tell."""
        seen = _contrast(mask, grey), _contrast(mask, self.evidence[_levels(grey)])
        shares = [
            now / then
            for now, then, telling in zip(seen, self.contrasts, (_TELLING_GREY, _TELLING_RATIO), strict=True)
            if abs(then) >= telling
        ]
        return min(shares, default=None)


@dataclass(frozen=True)
class _Step:
    """The mask of the next plane, SAM's score, and Dice of SAM's own mask and this one, where SAM was asked."""

    mask: np.ndarray
    score: float | None = None
    agreement: float | None = None


class Subject(Protocol):
    """One target of a request, as `propagate` sees it.

    Attributes
    ----------
    mask : numpy.ndarray
        bool [N, H, W], what has been found.
    is_finding : bool
        Whether it is known as a finding, of which there may be several, and which is smaller than the body.
    num_components : int
        Number of components that the target has.
    exact : bool
        Whether no more than these may be kept.
    most_voxels : float
        More are not plausible for the target.
    """

    mask: np.ndarray
    is_finding: bool
    num_components: int
    exact: bool
    most_voxels: float

    def draw(self, plane: int) -> list[tuple[Seed, float]]:
        """Find the target on a plane by its text: masks that share no pixel, with their quality, the best first."""

    def take(self, plane: int, mask: np.ndarray) -> None:
        """Take a plane's mask into the result."""

    def grey(self, plane: int) -> np.ndarray:
        """Return a plane as the models see it, float [H, W]."""

    def advance(self, planes: int) -> None:
        """Note how many planes are done."""


class Follower:
    """Follows one structure through the planes of an image.

    Parameters
    ----------
    image : MedicalImage
        The image.
    window : Window or None
        Grey window that the structure is looked at through.
    planes : sequence of int
        The planes that may be worked on, ascending.
    ask : callable
        Plane and prompt -> SAM's answer.
    step_mm : float
        SAM is asked on planes at least so far apart; on all where distances are not known.
    num_components : int
        Most connected components of the structure on one plane.
    box_per_component : bool
        Whether each component gets a box of its own.
    mask_prompts : bool
        Whether SAM is given the expected mask beside the boxes.
    presence : callable, optional
        Plane -> presence score, None where it was not asked there.
    threshold : float, optional
        What presence is held against.
    """

    def __init__(
        self,
        image: MedicalImage,
        window: Window | None,
        planes: Sequence[int],
        ask: Ask,
        *,
        step_mm: float,
        num_components: int = 1,
        box_per_component: bool = False,
        mask_prompts: bool = False,
        presence: Callable[[int], float | None] = lambda plane: None,
        threshold: float | None = None,
    ) -> None:
        self.image = image
        self.window = window
        self.planes = frozenset(planes)
        self.ask = ask
        self.step = step_in_planes(image, step_mm)
        self.num_components = num_components
        self.box_per_component = box_per_component
        self.mask_prompts = mask_prompts
        self.presence = presence
        self.threshold = threshold
        # row and column distances in units of the smaller one, and the reach in the same unit
        spacing = image.pixel_spacing
        self._unit = min(spacing) if spacing else 1.0
        self._sampling = tuple(each / self._unit for each in spacing) if spacing else (1.0, 1.0)
        moved = image.plane_spacing / self._unit if image.plane_spacing and spacing else 0.0
        if not moved:
            moved = _REACH_SHARE * max(image.plane_shape)
        self.reach = max(_LEAST_REACH, moved)
        # the plane that was rendered last
        self._last: tuple[int, np.ndarray] | None = None

    def appearance(self, seed: Seed) -> _Appearance:
        """Return what the structure looks like on a key plane."""
        return _Appearance.of(seed.mask, self._grey(seed.plane), round(self.reach), seed.score)

    def follow(
        self, seed: Seed, direction: int, *, stop: Callable[[int, np.ndarray], str] = lambda plane, mask: ""
    ) -> Generator[tuple[int, np.ndarray] | str, np.ndarray | None, None]:
        """Yield (plane, mask) from a key plane's neighbour on, and at last why the structure was followed no farther.

        A mask that is sent takes the place of the one that was yielded, for the way from there. A plane that may hold
        only a rim of what lay on the plane before is held back until the next plane shows that the structure goes on.

        Parameters
        ----------
        seed : Seed
            Where to begin.
        direction : {-1, 1}
            Towards lower or higher planes.
        stop : callable, optional
            Asked with a plane and the mask of the plane before it; a text other than "" ends the way there.
        """
        looks = self.appearance(seed)
        plane, mask = seed.plane + direction, seed.mask
        # planes since SAM was asked last
        since = 0
        # planes that hold a rim: not the structure's where it ends there
        rims: list[tuple[int, np.ndarray]] = []
        while True:
            reason = self.outside(plane) or stop(plane, mask)
            if reason:
                yield reason
                return
            since += 1
            step = self._next(plane, mask, looks, with_sam=since >= self.step)
            if step.score is not None:
                since = 0
            reason = self._ended(plane, mask, step, looks)
            if since and (reason or _is_small_beside(step.mask, mask)):
                # SAM has the last word
                step = self._next(plane, mask, looks, with_sam=True)
                since = 0
                reason = self._ended(plane, mask, step, looks)
            if reason:
                yield reason
                return
            rims.append((plane, step.mask))
            other = None
            if not _is_rim(step, mask, looks):
                for each in rims:
                    other = yield each
                rims.clear()
            plane, mask = plane + direction, step.mask if other is None else other

    def outside(self, plane: int) -> str:
        """Return why a plane may not be worked on; empty where it may."""
        if plane in self.planes:
            return ""
        return "the planes that were asked for end" if 0 <= plane < self.image.n_planes else _VOLUME_ENDS

    def _grey(self, plane: int) -> np.ndarray:
        if self._last is None or self._last[0] != plane:
            self._last = plane, self.image.model_plane(plane, self.window).mean(axis=2, dtype=np.float32)
        return self._last[1]

    def _next(self, plane: int, before: np.ndarray, looks: _Appearance, *, with_sam: bool) -> _Step:
        """Find the mask of a plane by that of its neighbour."""
        grey = self._grey(plane)
        place = _around(before, int(2 * self.reach) + _RIM + 2)
        evidence, near = self._evidence(before[place], grey[place], looks)
        expected = self._parts((evidence > 0) & near, before[place])
        if not with_sam or not expected.any():
            return _Step(_in_plane(expected, place, before.shape))
        whole = _in_plane(expected, place, before.shape)
        boxed = _without_specks(whole)
        prompt = VisualPrompt(boxes=boxes_of(boxed, self.box_per_component), mask=whole if self.mask_prompts else None)
        answer = self.ask(plane, prompt)
        weight = _ramp(dice(answer.mask, whole), _AGREEMENT) * _ramp(float(answer.score), _SCORE)
        if weight:
            probability = np.clip(answer.probability[place], 1e-3, 1 - 1e-3)
            # what SAM was not to look at, such as text beside an ultrasound sector, is never inside
            probability = np.where(answer.mask[place] | (probability < 0.5), probability, 1e-3)
            said = np.clip(np.log(probability / (1 - probability)), -_CERTAIN, _CERTAIN)
            expected = self._parts((evidence + weight * said > 0) & near, before[place])
            whole = _in_plane(expected, place, before.shape)
        return _Step(whole, float(answer.score), dice(answer.mask, whole))

    def _evidence(self, before: np.ndarray, grey: np.ndarray, looks: _Appearance) -> tuple[np.ndarray, np.ndarray]:
        """Return what grey values and the neighbour's mask say, and what an outline can reach."""
        inside, outside = (ndimage.distance_transform_edt(each, self._sampling) for each in (before, ~before))
        distance = inside - outside
        seen = looks.evidence[_levels(grey)]
        prior = np.clip(distance / self.reach, -_CERTAIN, _CERTAIN)
        return ndimage.gaussian_filter(seen, 0.7) + prior, distance > -self.reach - 0.5

    def _parts(self, mask: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Keep the largest components of those that go on from the neighbour's mask, without threads and pinholes."""
        opened = ndimage.binary_opening(mask)
        whole = ndimage.binary_fill_holes(opened if opened.any() else mask)
        labels, _ = ndimage.label(whole, np.ones((3, 3)))
        held = np.unique(labels[before & whole])
        return largest_components(np.isin(labels, held[held > 0]), self.num_components)

    def _ended(self, plane: int, before: np.ndarray, step: _Step, looks: _Appearance) -> str:
        """Return why the structure has ended before a plane; empty where it goes on."""
        mask, score = step.mask, step.score
        if not mask.any():
            return "nothing is left of it"
        if leak := grown_too_much(mask, before):
            return leak
        left = looks.contrast_left(mask, self._grey(plane))
        if left is not None and left < _LEAST_CONTRAST:
            return f"it stands out no more (contrast {left:.2f} of the key plane's)"
        if score is None or score >= _LEAST_SCORE * looks.score:
            return ""
        presence = self.presence(plane)
        if presence is not None and self.threshold is not None and presence < self.threshold:
            return f"its presence and SAM's score are low ({presence:.2f}, {score:.2f})"
        if left is None or left < _WEAK_CONTRAST:
            return f"its contrast and SAM's score are low ({'unknown' if left is None else f'{left:.2f}'}, {score:.2f})"
        return ""


def _is_rim(step: _Step, before: np.ndarray, looks: _Appearance) -> bool:
    if step.score is None or step.agreement is None or not _is_small_beside(step.mask, before):
        return False
    return step.score < _RIM_SCORE * looks.score and step.agreement < _RIM_AGREEMENT


def _is_small_beside(mask: np.ndarray, before: np.ndarray) -> bool:
    return int(mask.sum()) < _RIM_SHARE * int(before.sum())


def grown_too_much(mask: np.ndarray, before: np.ndarray) -> str:
    """Return why a mask cannot be that of the structure of the plane before; empty where it can."""
    area, area_before = int(mask.sum()), int(before.sum())
    return f"it would grow {area / area_before:.1f} times" if area > _MOST_GROWTH * max(area_before, 16) else ""


def propagate(
    subject: Subject, follower: Follower, planes: Sequence[int], scores: np.ndarray, threshold: float
) -> list[Track]:
    """Find a target in a volume: from the best key planes to the ends of what they show.

    Parameters
    ----------
    subject : Subject
        The target; its mask holds the result.
    follower : Follower
        Follows it.
    planes : sequence of int
        The planes whose presence is known, ascending.
    scores : numpy.ndarray
        float [N], the presence score of each.
    threshold : float
        Least score of a key plane.

    Returns
    -------
    list of Track
        One for each key plane that was used, in the order of their use.
    """
    positions = np.asarray(planes)
    taken = np.zeros(len(planes), dtype=bool)
    drawn: dict[int, list[tuple[Seed, float]]] = {}
    followed: list[_Followed] = []
    least = 0.0
    while len(followed) < _MOST_TRACKS:
        choice = key_planes(planes, scores, threshold, taken=taken, most=_CHOICE)
        for plane in choice:
            if plane not in drawn and len(drawn) < _MOST_DRAWN:
                drawn[plane] = [(seed, _doubt(subject, seed) * quality) for seed, quality in subject.draw(plane)]
        # on a plane that something was followed from already, what lies beside it and is as good
        bars = {**dict.fromkeys(choice, least), **{made.track.plane: _BESIDE * made.quality for made in followed}}
        candidates = [
            each
            for plane, bar in bars.items()
            for each in drawn.get(plane, ())
            if each[1] >= max(bar, least) and not _is_covered(each[0], followed)
        ]
        if candidates:
            seed, quality = max(candidates, key=lambda each: _rank(subject, *each))
        elif choice:
            taken[np.isin(positions, choice)] = True
            continue
        else:
            break
        made = _follow_both_ways(subject, follower, seed, followed)
        made.doubted = subject.is_finding and made.is_doubtful(subject)
        made.too_long = made.is_too_long(subject, follower.image)
        made.quality = quality * (_DOUBTED if made.doubted or made.too_long else 1.0)
        made.track.presence = float(scores[positions == seed.plane][0])
        followed.append(made)
        least = max(least, _LEAST_QUALITY * made.quality)
        # What is doubted may have run through others. One plane more on either side, where the smoothed score may be
        # that of the neighbour.
        ends = (seed.plane, seed.plane + 1) if made.doubted else (made.track.first, made.track.last + 1)
        low, high = np.searchsorted(positions, ends)
        taken[max(0, int(low) - 1) : int(high) + 1] = True
    # as in `planes`, what is seen on one plane alone counts only where nothing is seen on more
    least_planes = min(2, max((len(made.parts) for made in followed), default=0))
    for made in followed:
        good = made.quality >= least and not made.is_too_large(subject) and not made.too_long
        made.track.kept = good and len(made.parts) >= least_planes
    _compose(subject, followed)
    if followed:
        _keep_components(subject)
    return [made.track for made in followed]


@dataclass
class _Followed:
    """A track with its masks, each cut to its box."""

    track: Track
    shape: tuple[int, ...]
    quality: float = 0.0
    doubted: bool = False
    too_long: bool = False
    parts: dict[int, tuple[tuple[slice, slice], np.ndarray]] = field(default_factory=dict)

    def add(self, plane: int, mask: np.ndarray) -> None:
        place = _around(mask, 0)
        self.parts[plane] = place, mask[place].copy()
        self.track.first, self.track.last = min(self.track.first, plane), max(self.track.last, plane)

    def mask(self, plane: int) -> np.ndarray:
        whole = np.zeros(self.shape, dtype=bool)
        if plane in self.parts:
            place, part = self.parts[plane]
            whole[place] = part
        return whole

    def is_doubtful(self, subject: Subject) -> bool:
        """Return whether a finding is cut off by the volume's end, or larger than it can be."""
        return _VOLUME_ENDS in (self.track.below, self.track.above) or self.is_too_large(subject)

    def is_too_large(self, subject: Subject) -> bool:
        """Return whether a finding is larger than it can be."""
        return subject.is_finding and sum(int(part.sum()) for _, part in self.parts.values()) > subject.most_voxels

    def is_too_long(self, subject: Subject, image: MedicalImage) -> bool:
        """Return whether a finding is much longer across the planes than it is wide on any of them."""
        between, spacing = image.plane_spacing, image.pixel_spacing
        if not subject.is_finding or not between or not spacing:
            return False
        widest = max(largest_diameter_mm(part[None], spacing) or 0.0 for _, part in self.parts.values())
        return (len(self.parts) - 1) * between > _MOST_LENGTH * widest


def _compose(subject: Subject, followed: Sequence[_Followed]) -> None:
    """Take back what was followed and is not kept."""
    dropped = {plane for made in followed if not made.track.kept for plane in made.parts}
    for plane in sorted(dropped):
        kept = [made.mask(plane) for made in followed if made.track.kept]
        subject.take(plane, np.logical_or.reduce([*kept, np.zeros_like(subject.mask[plane])]))


def _rank(subject: Subject, seed: Seed, quality: float) -> float:
    """Return how good a key plane is to begin on: an organ is best followed from where it is large."""
    return quality if subject.is_finding else quality**2 * float(np.sqrt(seed.mask.sum()))


def _doubt(subject: Subject, seed: Seed) -> float:
    """Return the share of its quality that a mask has: a finding takes little of what a plane shows of the body."""
    if not subject.is_finding:
        return 1.0
    grey = subject.grey(seed.plane)
    body = ndimage.binary_fill_holes(grey > 0.1 * max(float(grey.max()), 1.0))
    return _DOUBTED if int((seed.mask & body).sum()) > _MOST_OF_SECTION * int(body.sum()) else 1.0


def _is_covered(seed: Seed, followed: Sequence[_Followed]) -> bool:
    """Return whether a mask is part of what was followed already, from the same plane or to it."""
    return any(
        bool((made.mask(seed.plane) & seed.mask).any())
        for made in followed
        if made.track.plane == seed.plane or not made.doubted
    )


def _follow_both_ways(subject: Subject, follower: Follower, seed: Seed, followed: Sequence[_Followed]) -> _Followed:
    made = _Followed(Track(seed.plane, seed.plane, seed.plane, sam_score=seed.score), seed.mask.shape)

    def met(plane: int, before: np.ndarray) -> str:
        for other in followed:
            if plane in other.parts and not other.doubted and dice(before, other.mask(plane)) >= _SAME:
                return f"it meets what was followed from plane {other.track.plane}"
        return ""

    def take(plane: int, mask: np.ndarray) -> None:
        made.add(plane, mask)
        subject.take(plane, mask | subject.mask[plane])
        subject.advance(1)

    take(seed.plane, seed.mask)
    for direction in (-1, 1):
        for step in follower.follow(seed, direction, stop=met):
            reason = step if isinstance(step, str) else ""
            if not isinstance(step, str):
                take(*step)
                if made.is_too_large(subject):
                    reason = "no finding of the kind is so large"
            if reason:
                setattr(made.track, "below" if direction < 0 else "above", reason)
                break
    return made


def _keep_components(subject: Subject) -> None:
    """Drop components of the volume that are not the target's, by its number of components."""
    labels = VolumeComponents(subject.mask)
    order = np.argsort(-labels.sizes, kind="stable")
    kept = set(order[: subject.num_components].tolist())
    if not subject.exact:
        # what was followed from a key plane of its own is another finding, or the rest of an organ that is cut in two
        least = 0 if subject.is_finding else _LEAST_COMPONENT * labels.sizes[order[0]]
        kept |= {int(index) for index in order if labels.sizes[index] >= least}
    if len(kept) == len(labels.sizes):
        return
    for plane, mask in labels.only(kept):
        subject.take(plane, mask)


def step_in_planes(image: MedicalImage, step_mm: float) -> int:
    """Return how many planes lie in a distance, at least 1; 1 where the distance of planes is not known."""
    return max(1, int(step_mm / image.plane_spacing)) if image.plane_spacing else 1


def coarse_to_fine(planes: Sequence[int], first: int) -> list[int]:
    """Order planes so that each beginning of the list is spread over all of them: at first about `first` planes."""
    stride = 1 << max(0, (len(planes) // max(1, first)).bit_length() - 1)
    ordered = list(planes[stride // 2 :: stride])
    while stride > 1:
        # the middles between those that are there; the first planes of all come last
        stride //= 2
        seen = set(ordered)
        ordered += [plane for plane in planes[stride // 2 :: stride] if plane not in seen]
    return ordered


def key_planes(
    planes: Sequence[int], scores: np.ndarray, threshold: float, *, taken: np.ndarray, most: int
) -> list[int]:
    """Choose planes to begin on: peaks of the presence score, apart from each other and from what is covered already.

    Parameters
    ----------
    planes : sequence of int
        The planes whose presence is known, ascending.
    scores : numpy.ndarray
        float [N], the (smoothed) score of each.
    threshold : float
        Least score.
    taken : numpy.ndarray
        bool [N], those that no key plane can be on.
    most : int
        How many to choose at most.

    Returns
    -------
    list of int
        The best first. In a run of planes above the threshold, the highest; of a plateau its middle, then the middles
        of what is left on either side.
    """
    open_to = (scores >= threshold) & ~taken
    runs, n_runs = ndimage.label(open_to)
    chosen: list[tuple[float, int, int]] = []
    for run in range(1, n_runs + 1):
        chosen += _peaks(np.flatnonzero(runs == run), scores, most)
    chosen.sort(key=lambda each: (-each[0], -each[1]))
    return [planes[place] for _, _, place in chosen[:most]]


def _peaks(run: np.ndarray, scores: np.ndarray, most: int) -> list[tuple[float, int, int]]:
    """Return (score, extent of the plateau, place) of a run's peaks."""
    found: list[tuple[float, int, int]] = []
    parts = [run]
    while parts and len(found) < most:
        part = max(parts, key=len)
        parts = [each for each in parts if each is not part]
        best = float(scores[part].max())
        # scores of 0.99 and 1.00 are the same answer
        plateau = part[scores[part] >= best - 0.02]
        place = int(plateau[len(plateau) // 2])
        found.append((round(best, 2), len(part), place))
        # the parts on either side are looked at where they are long enough to have a middle of their own
        for side in (part[part < place], part[part > place]):
            if len(side) >= max(3, len(run) // 4):
                parts.append(side)
    return found


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the box round a mask with a margin."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )


def _in_plane(part: np.ndarray, place: tuple[slice, slice], shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, dtype=bool)
    whole[place] = part
    return whole


def _without_specks(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return np.isin(labels, 1 + np.flatnonzero(sizes >= _SPECK * sizes.max(initial=0)))


def _levels(grey: np.ndarray) -> np.ndarray:
    return np.minimum(grey.astype(np.int64) * _LEVELS // 256, _LEVELS - 1)


def _distribution(values: np.ndarray) -> np.ndarray:
    """Return the smoothed distribution of grey values over the levels."""
    counts = np.bincount(_levels(values), minlength=_LEVELS).astype(np.float64)
    smooth = ndimage.gaussian_filter1d(counts, 1.0, mode="nearest") + 1e-9
    return smooth / smooth.sum()


def _contrast(mask: np.ndarray, values: np.ndarray) -> float:
    """Return the mean value inside, less that of a rim one pixel away; 0 where there is no rim."""
    place = _around(mask, _RIM + 2)
    mask, values = mask[place], values[place]
    near = ndimage.binary_dilation(mask)
    rim = ndimage.binary_dilation(near, iterations=_RIM) & ~near
    return float(values[mask].mean() - values[rim].mean()) if rim.any() else 0.0


def _ramp(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))
