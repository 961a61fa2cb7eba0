"""What an answer's masks rest on, to look at: maps of saliency or uncertainty and pictures under addresses that expire.

A map is kept as the pipeline makes it, in a file of its own; the files that are asked for are made at their first
request, so that an answer does not wait for what nobody looks at.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import MedicalImage, Window, write_evidence, write_map
from medclipsam.pipeline.zero_shot import ZeroShotResult
from medclipsam.server.base.errors import UnknownError
from medclipsam.server.studies.images import ImageReader, Signature, signature

MAX_BYTES = 2 * 2**30
MAX_SECONDS = 3600.0
SALIENCY, UNCERTAINTY, OVERLAY = "saliency.nii.gz", "uncertainty.nii.gz", "overlay.png"
_MAPS = "maps.bin"
_GONE = "There is no such evidence, or it has expired; ask for the mask again."

logger = logging.getLogger(__name__)


@dataclass
class _Kept:
    """One map of one answer, and the mask that belongs to it."""

    folder: Path
    source: Path
    modality: str | None
    image: Signature
    name: str
    planes: list[int]
    mask: bytes
    shape: tuple[int, int, int]
    until: float
    kind: str = SALIENCY
    # what a picture shows as its brightest
    brightest: float = 1.0
    window: tuple[float, float] | None = None
    prompts: dict[int, dict[str, Any]] = field(default_factory=dict)
    making: threading.Lock = field(default_factory=threading.Lock)

    def map(self, plane: int | None = None) -> np.ndarray:
        """Return the map of one plane, or of all with zeros where there is none."""
        dtype, (_, height, width) = _dtype(self.shape), self.shape
        if plane is None:
            return np.fromfile(self.folder / _MAPS, dtype).reshape(self.shape)
        start = plane * height * width * dtype.itemsize
        return np.fromfile(self.folder / _MAPS, dtype, height * width, offset=start).reshape(height, width)

    def masks(self) -> np.ndarray:
        """Return the target's mask, bool [N, H, W]."""
        bits = np.frombuffer(zlib.decompress(self.mask), np.uint8)
        return np.unpackbits(bits, count=math.prod(self.shape)).reshape(self.shape).astype(bool)

    @property
    def what(self) -> str:
        """What the map is: "saliency" or "uncertainty"."""
        return self.kind.split(".")[0]

    @property
    def nbytes(self) -> int:
        # blocks and not lengths: planes without a map take no space
        return sum(file.stat().st_blocks * 512 for file in self.folder.iterdir())


class EvidenceStore:
    """Evidence of recent answers, in files that only this user can read.

    Parameters
    ----------
    images : ImageReader
        Reads the images that pictures are drawn on.
    max_bytes : int
        Bound of all files together; the oldest answers go first.
    max_seconds : float
        How long an answer's evidence is kept.
    clock : callable
        Seconds that only grow.

    Notes
    -----
    Closed at first: nothing is kept where no route hands it out, as under MONAI Label's own start command and in its
    sub-processes. Maps of a single plane are kept as float32, those of a volume as float16 (a step of at most 0.0005).
    """

    def __init__(
        self,
        images: ImageReader,
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_seconds = max_seconds
        self._images = images
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._folder: Path | None = None
        self._address = ""

    def open(self, address: str = "") -> None:
        """Keep what answers rest on from now on, in a new folder of the temporary one.

        Parameters
        ----------
        address : str
            What goes before the routes' own path.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="evidence-"))
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        self._address = address

    def begin(self, image: MedicalImage) -> Draft | None:
        """Return where the maps of one request on an image go, None while the store is closed."""
        if self._folder is None:
            return None
        return Draft(self._folder, (image.n_planes, *image.plane_shape))

    def keep(
        self,
        draft: Draft,
        image: MedicalImage,
        result: ZeroShotResult,
        source: Path,
        modality: str | None = None,
        *,
        temporary: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Keep a draft with the result that its maps led to.

        Parameters
        ----------
        draft : Draft
            Of `begin`; it is used up.
        image : MedicalImage
            The image.
        result : ZeroShotResult
            The answer.
        source, modality
            What `image` was read from and with.
        temporary : bool
            Whether `source` goes when the request has been answered: then all is made now.

        Returns
        -------
        dict
            For each target that has a map: the addresses `saliency` and `overlay`, and `expires_in`, seconds.
        """
        draft.close()
        addresses: dict[str, dict[str, Any]] = {}
        for target in result.targets:
            if target.name in draft.folders and draft.planes[target.name]:
                mask = result.mask(target.name)
                kept = self._kept_of(draft, target.name, mask, source, modality)
                kept.window = target.window
                kept.prompts = {each.plane: each.prompt for each in target.planes}
                addresses[target.name] = self._add(kept, image, at_once=temporary)
        self._prune()
        return addresses

    def keep_uncertainty(
        self,
        image: MedicalImage,
        values: np.ndarray,
        mask: np.ndarray,
        name: str,
        source: Path,
        modality: str | None = None,
        *,
        brightest: float = 1.0,
        temporary: bool = False,
    ) -> dict[str, Any] | None:
        """Keep an uncertainty map.

        Parameters
        ----------
        image : MedicalImage
            The image.
        values : numpy.ndarray
            The map, float [N, H, W] in display orientation.
        mask : numpy.ndarray
            What was found, bool [N, H, W].
        name : str
            What it was looked for.
        source, modality
            What `image` was read from and with.
        brightest : float
            The value that a picture shows as its brightest.
        temporary : bool
            Whether `source` goes when the request has been answered: then all is made now.

        Returns
        -------
        dict or None
            The addresses `uncertainty` and `overlay`, and `expires_in`, seconds; None while the store is closed, or
            where the disk is full.
        """
        draft = self.begin(image)
        if draft is None:
            return None
        for plane, each in enumerate(values):
            draft.add(name, plane, each)
        draft.close()
        if not draft.planes.get(name):
            return None
        kept = self._kept_of(draft, name, mask, source, modality)
        kept.kind, kept.brightest = UNCERTAINTY, brightest
        addresses = self._add(kept, image, at_once=temporary)
        self._prune()
        return addresses

    def _kept_of(self, draft: Draft, name: str, mask: np.ndarray, source: Path, modality: str | None) -> _Kept:
        return _Kept(
            folder=draft.folders[name],
            source=source,
            modality=modality,
            image=signature(source),
            name=name,
            planes=draft.planes[name],
            mask=zlib.compress(np.packbits(mask).tobytes(), 1),
            shape=draft.shape,
            until=self._clock() + self.max_seconds,
        )

    def _add(self, kept: _Kept, image: MedicalImage, *, at_once: bool) -> dict[str, Any]:
        """Give evidence its addresses."""
        if at_once:
            for name in (kept.kind, OVERLAY):
                _make(kept, name, image, None)
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._kept[token] = kept
        return {
            kept.what: f"{self._address}/evidence/{token}/{kept.kind}",
            "overlay": f"{self._address}/evidence/{token}/{OVERLAY}",
            "expires_in": int(self.max_seconds),
        }

    def file(self, token: str, name: str, plane: int | None = None) -> Path:
        """Return the file of an address, made now if nobody has asked for it before.

        Parameters
        ----------
        token : str
            The secret part of the address.
        name : {"saliency.nii.gz", "uncertainty.nii.gz", "overlay.png"}
            Which file.
        plane : int, optional
            Plane of the picture; by default the one with most of the mask.

        Raises
        ------
        UnknownError
            If there is no such evidence, or it has expired, or its image is no longer what it was.
        InputError
            If the plane has no map.
        """
        self._prune()
        with self._lock:
            kept = self._kept.get(token)
        if kept is None or name not in (kept.kind, OVERLAY):
            raise UnknownError(_GONE)
        if plane is not None and plane not in kept.planes:
            raise InputError(f"Plane {plane} has no {kept.what} map of {kept.name!r}; allowed: {_ranges(kept.planes)}.")
        with kept.making:
            path = kept.folder / _file_name(name, plane)
            if not path.exists():
                try:
                    if signature(kept.source) != kept.image:
                        raise ImageError("The image has changed.")
                    image = self._images.read(kept.source, kept.modality)
                except ImageError:
                    raise UnknownError(
                        "The image of this evidence is gone or has changed; ask for the mask again."
                    ) from None
                try:
                    _make(kept, name, image, plane)
                except FileNotFoundError:  # it has expired in this moment
                    raise UnknownError(_GONE) from None
            return path

    def planes(self, token: str) -> list[int]:
        """Return the planes that have a map; empty where there is none any more."""
        with self._lock:
            kept = self._kept.get(token)
        return sorted(kept.planes) if kept is not None else []

    def plane(self, token: str, what: str, plane: int) -> tuple[Path, np.ndarray]:
        """Return the file or folder of the image that a map was made on, and the map of one plane.

        Parameters
        ----------
        token : str
            The secret part of the address.
        what : {"saliency", "uncertainty"}
            Which map.
        plane : int
            0-based.

        Returns
        -------
        source : Path
        values : numpy.ndarray
            float [H, W] from 0 to 1, in display orientation.

        Raises
        ------
        UnknownError
            If there is no such map, or it has expired, or the plane has none.
        """
        self._prune()
        with self._lock:
            kept = self._kept.get(token)
        if kept is None or what != kept.what:
            raise UnknownError(_GONE)
        if plane not in kept.planes:
            raise UnknownError(
                f"Plane {plane} has no {kept.what} map of {kept.name!r}; allowed: {_ranges(kept.planes)}."
            )
        try:
            return kept.source, np.clip(kept.map(plane).astype(np.float32) / kept.brightest, 0, 1)
        except FileNotFoundError:  # it has expired in this moment
            raise UnknownError(_GONE) from None

    def read(self, token: str, name: str, plane: int | None = None) -> bytes:
        """Return the content of `file`; parameters and errors are the same."""
        try:
            return self.file(token, name, plane).read_bytes()
        except FileNotFoundError:  # it has expired in this moment
            raise UnknownError(_GONE) from None

    def _prune(self) -> None:
        """Drop what has expired, and the oldest until the rest fits."""
        now = self._clock()
        with self._lock:
            sizes = {token: kept.nbytes for token, kept in self._kept.items()}
            total = sum(sizes.values())
            for token in list(self._kept):
                if self._kept[token].until <= now or total > self._max_bytes:
                    total -= sizes[token]
                    shutil.rmtree(self._kept.pop(token).folder, ignore_errors=True)


class Draft:
    """Maps of one request while it is worked on: a file for each target, which takes space for the planes it holds.

    Parameters
    ----------
    folder : Path
        Where the files go.
    shape : tuple of int
        (planes, H, W) of the image.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.folders: dict[str, Path] = {}
        self.planes: dict[str, list[int]] = {}
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}

    def add(self, name: str, plane: int, saliency: np.ndarray) -> None:
        """Take one map, float [H, W], of a target; the `keep_map` of `ZeroShot.segment`.

        A full disk costs the evidence and not the answer.
        """
        dtype, (planes, height, width) = _dtype(self.shape), self.shape
        try:
            if name not in self.folders:
                self.folders[name] = Path(tempfile.mkdtemp(dir=self._folder))
                self.planes[name] = []
                descriptor = os.open(self.folders[name] / _MAPS, os.O_CREAT | os.O_WRONLY, 0o600)
                self._files[name] = os.fdopen(descriptor, "wb")
                self._files[name].truncate(planes * height * width * dtype.itemsize)
            if name in self._files:
                self._files[name].seek(plane * height * width * dtype.itemsize)
                self._files[name].write(np.ascontiguousarray(saliency, dtype).tobytes())
                self._files[name].flush()
                self.planes[name].append(plane)
        except OSError as error:
            logger.warning("Evidence is not kept: %s", error.strerror or error)
            self.discard()

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()

    def discard(self) -> None:
        """Remove the maps; what is added from now on is dropped."""
        self.close()
        for name, folder in self.folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            self.planes[name] = []


def _make(kept: _Kept, name: str, image: MedicalImage, plane: int | None) -> None:
    """Make one of the files of a target's evidence."""
    path = kept.folder / _file_name(name, plane)
    if name == kept.kind:
        write_map(kept.map(), image, path)
    else:
        masks = kept.masks()
        if plane is None:
            plane = max(kept.planes, key=lambda each: int(masks[each].sum()))
        write_evidence(
            masks[plane],
            kept.map(plane) / kept.brightest,
            image,
            kept.name,
            path,
            plane=plane,
            prompt=kept.prompts.get(plane),
            window=Window(*kept.window) if kept.window else None,
            what="saliency and prompt" if kept.kind == SALIENCY else kept.what,
        )
    path.chmod(0o600)


def _file_name(name: str, plane: int | None) -> str:
    return name if plane is None else f"plane{plane}-{name}"


def _dtype(shape: tuple[int, int, int]) -> np.dtype[Any]:
    return np.dtype(np.float16 if shape[0] > 1 else np.float32)


def _ranges(planes: list[int]) -> str:
    """Return sorted numbers as people write them: "2-5, 8"."""
    parts: list[list[int]] = []
    for plane in sorted(planes):
        if parts and plane == parts[-1][-1] + 1:
            parts[-1].append(plane)
        else:
            parts.append([plane])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
