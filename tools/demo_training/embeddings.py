"""The queue's planes as SAM embeddings on disk: computed once, in any number of processes, resumed where they ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from tools.demo_training.augment import augment
from tools.demo_training.sources import STRUCTURES, Job, Plane, draw

# A plane's embedding is kept on this grid, and so is the share of each token that a structure covers.
SIDE = 32
CHANNELS = 256
# Share of planes that are left as they are.
_UNTOUCHED = {"phantom": 0.35, "volume": 0.5}


@dataclass(frozen=True)
class Row:
    """What is known of one embedded plane beside its arrays."""

    job: dict[str, Any]
    known: list[int]
    states: list[int]
    modality: str

    @property
    def key(self) -> tuple[str, str, bool]:
        """Kind, modality and whether a real image shows its target: what the sampler weighs by."""
        image = self.job["image"]
        present = image is None or (image["present"] and not self.job["healthy"])
        return self.job["kind"], self.modality, bool(present)


def make_plane(data: Path, job: Job, number: int, seed: int) -> Plane:
    """Draw and augment the plane of job `number` of a queue."""
    rng = np.random.default_rng([seed, number])
    plane = draw(data, job, rng)
    if not job.validation:
        untouched = _UNTOUCHED.get(job.kind, 0.2)
        plane.image, plane.masks = augment(plane.image, plane.masks, plane.modality, rng, untouched)
    return plane


def coverage(masks: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Return the share of each token that each mask covers, uint8 [K, SIDE, SIDE] (255 is all of it).

    Parameters
    ----------
    masks : numpy.ndarray
        bool [K, H, W].
    shape : tuple of int
        (rows, columns) of the plane at the top left of the encoder's square input.
    size : int
        Side of that input.
    """
    rows, columns = shape
    shares = F.interpolate(torch.from_numpy(masks[None].astype(np.float32)), (rows, columns), mode="bilinear")
    shares = F.pad(shares, (0, size - columns, 0, size - rows))
    return (F.avg_pool2d(shares, size // SIDE)[0] * 255).round().to(torch.uint8).numpy()


def embed_queue(
    folder: Path,
    data: Path,
    jobs: Sequence[Job],
    embed: Callable[[np.ndarray], tuple[torch.Tensor, tuple[int, int]]],
    size: int,
    *,
    part: int = 0,
    parts: int = 1,
    seed: int = 7,
    seconds: float | None = None,
) -> int:
    """Embed every `parts`-th job from job `part` on; what an earlier call has done is kept.

    Parameters
    ----------
    folder : pathlib.Path
        Where embeddings (float16 [n, 256, 32, 32]), coverage and descriptions are written.
    data : pathlib.Path
        The real images.
    jobs : sequence of Job
        The queue.
    embed : callable
        uint8 [H, W, 3] -> the image embedding, float [1, 256, h, w], and the plane's (rows, columns) in the input.
    size : int
        Side of the encoder's input.
    part, parts : int
        Which share of the queue this process does.
    seed : int
        Of drawing and augmentation.
    seconds : float, optional
        Stop after so long; training then uses what is there.

    Returns
    -------
    int
        How many planes of this part are embedded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(part, len(jobs), parts)
    described = folder / f"rows{part}.jsonl"
    done = len(described.read_text(encoding="utf-8").splitlines()) if described.is_file() else 0
    embeddings = _open(folder / f"embeddings{part}.npy", np.float16, (len(numbers), CHANNELS, SIDE, SIDE))
    covered = _open(folder / f"coverage{part}.npy", np.uint8, (len(numbers), len(STRUCTURES), SIDE, SIDE))
    end = None if seconds is None else time.monotonic() + seconds
    with described.open("a", encoding="utf-8") as lines, tqdm(total=len(numbers), initial=done, unit="plane") as bar:
        for row in range(done, len(numbers)):
            if end is not None and time.monotonic() > end:
                break
            job = jobs[numbers[row]]
            plane = make_plane(data, job, numbers[row], seed)
            features, shape = embed(np.repeat(plane.image[..., None], 3, axis=2))
            embeddings[row] = F.avg_pool2d(features, features.shape[-1] // SIDE)[0].numpy()
            covered[row] = coverage(plane.masks, shape, size)
            embeddings.flush()
            covered.flush()
            line = Row(asdict(job), plane.known.astype(int).tolist(), plane.states.tolist(), plane.modality)
            lines.write(json.dumps(asdict(line)) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            bar.update()
            done = row + 1
    return done


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    mode: Any = "r+" if path.is_file() else "w+"
    return np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape)


class Embedded:
    """The planes that are embedded so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._embeddings: dict[int, np.ndarray] = {}
        self._coverage: dict[int, np.ndarray] = {}
        self.training: list[tuple[int, int, Row]] = []
        self.validation: list[tuple[int, int, Row]] = []
        self.refresh()

    def refresh(self) -> None:
        """Look again for what other processes have embedded."""
        self.training, self.validation = [], []
        for described in sorted(self._folder.glob("rows*.jsonl")):
            part = int(described.stem.removeprefix("rows"))
            if part not in self._embeddings:
                self._embeddings[part] = np.load(self._folder / f"embeddings{part}.npy", mmap_mode="r")
                self._coverage[part] = np.load(self._folder / f"coverage{part}.npy", mmap_mode="r")
            # The last line may be in the middle of being written.
            for index, line in enumerate(described.read_text(encoding="utf-8").split("\n")[:-1]):
                row = Row(**json.loads(line))
                (self.validation if row.job["validation"] else self.training).append((part, index, row))

    def take(self, rows: Sequence[tuple[int, int, Row]]) -> Batch:
        """Return the arrays of some planes."""
        stacked = np.stack([self._embeddings[part][index] for part, index, _ in rows])
        shares = np.stack([self._coverage[part][index] for part, index, _ in rows])
        return Batch(
            torch.from_numpy(stacked).float(),
            torch.from_numpy(shares).float() / 255,
            torch.tensor([row.known for *_, row in rows], dtype=torch.bool),
            torch.tensor([row.states for *_, row in rows]),
            [row.modality for *_, row in rows],
        )


@dataclass(frozen=True)
class Batch:
    """B planes: embeddings [B, 256, 32, 32], coverage [B, K, 32, 32] in [0, 1], known [B, K], states [B, S]."""

    embeddings: torch.Tensor
    coverage: torch.Tensor
    known: torch.Tensor
    states: torch.Tensor
    modalities: list[str]
