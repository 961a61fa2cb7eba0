"""The masks that clients were given last, for a click that mends one without sending it."""

from __future__ import annotations

import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medclipsam.active.ledger import ANONYMOUS
from medclipsam.base.errors import ImageError
from medclipsam.imaging.masks import mask_of
from medclipsam.server.base.audit import Caller
from medclipsam.server.studies.images import Signature, signature

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 8 * 3600.0


class LastMask(NamedTuple):
    """A label map that a client was given: `values` and `beneath` as of a `LabelMap`, and the names of its labels."""

    values: np.ndarray
    names: dict[str, int]
    beneath: np.ndarray

    def mask_of(self, label: int) -> np.ndarray:
        """Return where a label is, bool [n_planes, H, W]."""
        return mask_of(label, self.values, self.beneath)


@dataclass(frozen=True)
class _Kept:
    content: bytes
    shape: tuple[int, ...]
    names: dict[str, int]
    image: Signature
    until: float
    made: dict[str, Any]


def client_of(caller: Caller) -> str:
    """Return who a request comes from: the client that it names, of the user who has logged in; "" for nobody."""
    # a client chooses its name itself, which may be that of another user's
    if caller.user in ("", ANONYMOUS):
        return caller.client
    return f"{len(caller.user)}:{caller.user}:{caller.client}"


class LastMasks:
    """The last label map that each client was given for each image, packed in memory.

    Parameters
    ----------
    max_bytes : int
        Bound of all packed masks together; the ones not used for longest go first.
    max_seconds : float
        How long a mask is kept after it was given.
    clock : callable
        Seconds that only grow.

    Notes
    -----
    A client is who a request says it is (`client_id`), among those of the user who has logged in; the routes name a
    browser by its cookie. Clients of a user that say nothing count as one: on the same image each of them corrects the
    mask that was given last to any of them.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def keep(
        self,
        client: str,
        path: Path,
        labels: np.ndarray,
        names: Mapping[str, int],
        made: Mapping[str, Any] | None = None,
        beneath: np.ndarray | None = None,
    ) -> None:
        """Keep a label map (uint8 [N, H, W] in display orientation) that `client` was given for the image at `path`.

        `made` says what made it: the model, the text, the weights. `beneath` is what it covers, see `LabelMap`.
        """
        layers = labels[None] if beneath is None else np.concatenate([labels[None], beneath])
        try:
            image = signature(path)
        except ImageError:  # the image is gone: nobody will click on it
            return
        content = zlib.compress(np.ascontiguousarray(layers, dtype=np.uint8).tobytes(), 1)
        kept = _Kept(content, layers.shape, dict(names), image, self._clock() + self._max_seconds, dict(made or {}))
        with self._lock:
            self._kept.pop((client, str(path)), None)
            self._kept[client, str(path)] = kept
            while self._kept and sum(len(each.content) for each in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)

    def find(self, client: str, path: Path) -> LastMask | None:
        """Return the label map and its names, None where there is none or the image has changed since."""
        with self._lock:
            kept = self._kept.get((client, str(path)))
            if kept is None or self._clock() > kept.until or kept.image != signature(path):
                self._kept.pop((client, str(path)), None)
                return None
            self._kept.move_to_end((client, str(path)))
        layers = np.frombuffer(zlib.decompress(kept.content), np.uint8).reshape(kept.shape).copy()
        return LastMask(layers[0], dict(kept.names), layers[1:])

    def made(self, client: str, path: Path) -> dict[str, Any]:
        """Return what made the mask that `find` returns; empty where there is none."""
        with self._lock:
            kept = self._kept.get((client, str(path)))
            return dict(kept.made) if kept is not None else {}
