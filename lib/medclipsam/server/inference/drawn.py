"""What a viewer draws on frames, as the labels and voxels that the rest of the server knows; and the way back."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medclipsam.base.errors import InputError, OptionError
from medclipsam.imaging import MedicalImage
from medclipsam.imaging.frames import ImageFrames
from medclipsam.imaging.label_map import LabelMap, label_numbers

# Segments of one request, and characters of a name.
MAX_SEGMENTS = 255
_LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a viewer.

    Parameters
    ----------
    name : str
        What it is called.
    mask : ndarray of bool, shape (n_planes, H, W)
        In display orientation.
    """

    name: str
    mask: np.ndarray


def read_segments(given: Any, frames: ImageFrames) -> list[Segment]:
    """Return the segments that a viewer has sent: a list of `{"name": ..., "planes": [{"plane": ..., "runs": ...}]}`.

    Raises
    ------
    InputError
        If it is not such a list, or two segments have one name.
    """
    if not isinstance(given, list) or len(given) > MAX_SEGMENTS:
        raise InputError(f"The segments {str(given)[:40]} cannot be used; allowed: a list of at most {MAX_SEGMENTS}.")
    segments: dict[str, Segment] = {}
    for entry in given:
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"A segment is called {str(name)[:40]!r}; allowed: a name of at most {_LONGEST_NAME} characters."
            )
        if name in segments:
            raise InputError(f"Two segments are called {name!r}; give each a name of its own.")
        if name.strip().casefold() == "background":
            raise InputError(f"A segment is called {name!r}, which is what lies in none of them; give it another name.")
        segments[name] = Segment(name, frames.decode(entry.get("planes"), f"segment {name!r}"))
    return list(segments.values())


def label_map_of(segments: Sequence[Segment], image: MedicalImage, table: Mapping[str, int]) -> LabelMap:
    """Return segments as a label map, which keeps each of them whole.

    Parameters
    ----------
    segments : sequence of Segment
    image : MedicalImage
    table : mapping of str to int
        Values of known names.

    Returns
    -------
    LabelMap
        Empty segments are named too.
    """
    numbers = label_numbers([segment.name for segment in segments], table)
    return LabelMap.from_masks({segment.name: segment.mask for segment in segments}, image, numbers, numbers)


def drawn_params(
    params: Mapping[str, Any], frames: ImageFrames, table: Mapping[str, int]
) -> tuple[dict[str, Any], LabelMap]:
    """Return the params of a click request with voxels in place of a viewer's clicks, and the mask to begin with.

    Parameters
    ----------
    params : mapping
        With `clicks` (`foreground` and `background`: lists of `{"plane", "x", "y"}`; `boxes`: a list of at most one
        `{"plane", "x0", "y0", "x1", "y1"}`), `segments` and `label`, the segment that is corrected. With
        `propagate` and without clicks, the planes of that segment are carried on.
    frames : ImageFrames
        Of the image.
    table : mapping of str to int
        Values of known names.

    Raises
    ------
    InputError
        If they cannot be used.
    """
    told = {key: value for key, value in params.items() if key not in ("clicks", "segments")}
    name = told.get("label") or told.get("target")
    if not isinstance(name, str) or not name.strip():
        raise OptionError("label", name, "the name of the segment that clicks and boxes are for")
    clicks = params.get("clicks") or {}
    if not isinstance(clicks, Mapping) or not clicks.keys() <= {"foreground", "background", "boxes"}:
        raise OptionError("clicks", str(clicks)[:80], "an object with the lists foreground, background and boxes")
    for key in ("foreground", "background"):
        points = [_numbers(key, each, ("plane", "x", "y")) for each in _list(key, clicks.get(key))]
        if points:
            told[key] = frames.voxels([(int(plane), x, y) for plane, x, y in points])
    boxes = [_numbers("boxes", each, ("plane", "x0", "y0", "x1", "y1")) for each in _list("boxes", clicks.get("boxes"))]
    if len(boxes) > 1:
        raise OptionError("boxes", f"{len(boxes)} boxes", "one box at a time")
    for plane, x0, y0, x1, y1 in boxes:
        first, last = frames.voxels([(int(plane), x0, y0), (int(plane), x1, y1)])
        told["box"] = [*first, *last]
    segments = read_segments(params.get("segments") or [], frames)
    drawn = label_map_of(segments, frames.image, table)
    if name not in drawn.names:
        numbers = label_numbers([*drawn.names, name], table)
        drawn = LabelMap.from_masks(drawn.masks(), frames.image, numbers, numbers)
    if told.get("propagate") and "drawn" not in told and not told.keys() & {"foreground", "background", "box"}:
        # without a correction it is what was drawn that is carried on
        told["drawn"] = [int(plane) for plane in np.flatnonzero(drawn.mask(name).any(axis=(1, 2)))]
    return {**told, "label": name, "use_last_mask": False}, drawn


class PartialMasks:
    """Masks of planes that a model hands out on its way; safe to use from several threads.

    Called with a target's name, a plane and a mask (bool [H, W], display orientation), as `ZeroShot.segment` calls its
    `keep_partial`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._masks: dict[tuple[str, int], tuple[bytes, tuple[int, int]]] = {}
        self._changed: dict[tuple[str, int], None] = {}

    def __call__(self, target: str, plane: int, mask: np.ndarray) -> None:
        """Take a mask."""
        packed = np.packbits(mask).tobytes()
        with self._lock:
            if self._masks.get((target, plane), (None,))[0] != packed:
                self._changed[target, plane] = None
            self._masks[target, plane] = packed, (mask.shape[0], mask.shape[1])

    def take(self) -> list[tuple[str, int, np.ndarray]]:
        """Return the masks that have changed since the last call: target, plane, mask."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return [(*key, _unpacked(*self._masks[key])) for key in changed]


def encode_segments(masks: Mapping[str, np.ndarray], frames: ImageFrames, labels: Mapping[str, int]) -> list[Any]:
    """Return masks (bool [n_planes, H, W], display orientation) as a viewer reads them, by their names."""
    return [{"label": labels[name], "name": name, "planes": frames.encode(mask)} for name, mask in masks.items()]


def _unpacked(packed: bytes, shape: tuple[int, int]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=math.prod(shape))
    return bits.reshape(shape).astype(bool)


def _list(key: str, given: Any) -> Iterable[Any]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise OptionError(key, str(given)[:40], "a list")
    return given


def _numbers(key: str, given: Any, names: Sequence[str]) -> list[float]:
    """Return the numbers of an object by their names."""
    found = [given.get(name) for name in names] if isinstance(given, Mapping) else [None]
    usable = [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
    numbers = [float(value) for value in usable if math.isfinite(value)]
    if len(numbers) < len(found):
        raise OptionError(key, str(given)[:60], f"objects with the numbers {', '.join(names)}")
    if numbers[0] != int(numbers[0]):
        raise OptionError(key, str(given)[:60], "a whole number as plane")
    return numbers
