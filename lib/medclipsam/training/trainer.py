"""Training: from examples and a plan to a folder with a checkpoint ensemble; killed at any time, it goes on.

While it runs the folder holds, beside the plan,

    state.pt            weights, momentum and curve after the last finished epoch
    members/*           the checkpoints kept so far
    planes.*            the prepared planes
    log.jsonl           one line an epoch

and at the end `ensemble.safetensors` and `training.json` in place of the first three.

Under torch.distributed (one process a GPU, or gloo on CPUs) every process calls `train` with the same arguments; the
first one writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medclipsam import __version__
from medclipsam.base.checkpoint import Checkpoint, OtherTrainingError
from medclipsam.base.distributed import first_does, from_first, rank, wait_for_all, world_size
from medclipsam.base.errors import CancelledError, TrainingError
from medclipsam.base.files import write_json, write_text
from medclipsam.training.augment import Augmenter
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble, decided_masks, sliding_logits, write_members
from medclipsam.training.examples import Example, check_examples, identity_of
from medclipsam.training.layers import class_masks
from medclipsam.training.network import FinestLevel, Network, SegmentationLoss
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import Plan
from medclipsam.training.planes import PlaneStore, open_planes
from medclipsam.training.schedule import Schedule

TRAINING_FILE, STATE_FILE, LOG_FILE, MEMBERS = "training.json", "state.pt", "log.jsonl", "members"
# Options that a training may be resumed with another value of.
_FREE = ("device", "memory")
_GPU_WORKERS = 4


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes
    ----------
    stage : {"prepare", "train"}
        "prepare": images are being read; `epoch` and `epochs` then count images.
    epoch, epochs : int
        Finished epochs, and all.
    loss : float or None
        Mean loss of the epoch.
    dice : dict of str to float, or None
        Dice of each class on the validation planes (pooled over pixels), where they were looked at.
    rate : float or None
        Learning rate of the epoch.
    seconds, eta : float or None
        Seconds of training so far and still to come.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float | None = None
    dice: dict[str, float] | None = None
    rate: float | None = None
    seconds: float | None = None
    eta: float | None = None


def train(
    examples: Sequence[Example],
    plan: Plan,
    options: TrainingOptions,
    folder: Path,
    *,
    validation: Sequence[Example] = (),
    progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = True,
    start: Path | None = None,
) -> Path:
    """Train a network.

    Parameters
    ----------
    examples : sequence of Example
        What to train on.
    plan : Plan
        Of `make_plan`.
    options : TrainingOptions
        The same options, examples and seed give the same weights on a CPU.
    folder : pathlib.Path
        Where to write; made if needed.
    validation : sequence of Example
        Images that are looked at during training; nothing is decided by them.
    progress : callable, optional
        Called as images are read and after each epoch.
    should_stop : callable, optional
        Asked between steps; True ends the training, which can be resumed.
    resume : bool
        Go on with what an earlier call left in the folder; else it is thrown away.
    start : pathlib.Path, optional
        Folder of an earlier network of the same architecture, whose last checkpoint the training starts from.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        If an example cannot be used.
    TrainingError
        If memory is short, the loss is no number, the folder holds another training, or the network to start from has
        another architecture.
    CancelledError
        If it was stopped.
    """
    options = options.resolved()
    check_examples(examples)
    first = None if start is None else Ensemble.load(start, device="cpu")
    with memory_errors(options, plan):
        _Work(list(examples), list(validation), plan, options, Path(folder), progress, should_stop, first).run(resume)
    return Path(folder)


class _Work:
    """One training in one process."""

    def __init__(
        self,
        examples: list[Example],
        validation: list[Example],
        plan: Plan,
        options: TrainingOptions,
        folder: Path,
        progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
        start: Ensemble | None,
    ) -> None:
        assert options.epochs is not None
        assert options.iterations is not None
        self.examples, self.validation = examples, validation
        self.plan, self.options, self.folder = plan, options, folder
        self.rank, self.world = rank(), world_size()
        self.progress, self.should_stop = progress, should_stop
        self.start = start
        self.schedule = Schedule.from_options(options)
        self.epochs, self.iterations = options.epochs, options.iterations
        self.device = torch.device(options.device)
        if self.device.type == "cuda" and self.device.index is None and self.world > 1:
            self.device = torch.device("cuda", self.rank % torch.cuda.device_count())
        self.batch = max(1, plan.batch_size // self.world)
        self.half = options.amp and self.device.type == "cuda"
        # on a CPU that multiplies bfloat16 itself a step takes a half to two thirds of the time; its exponent is that
        # of float32, so no loss is scaled
        self.bfloat16 = options.amp and self.device.type == "cpu" and _multiplies_bfloat16()
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0

    def run(self, resume: bool) -> None:
        key = self._key()
        if first_does(lambda: self._claim(key, resume), self.device):
            return
        planes, seen = self._planes(key)
        with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
            torch.manual_seed(self.options.seed)
            network = Network(self.plan)
            if self.start is not None:
                self._start_from(network, self.start)
            elif self.plan.multilabel:
                network.expect(self._shares(_by_index(self.plan)))
            network.to(self.device)
            if self.bfloat16:
                network.to(memory_format=torch.channels_last)
            self._train(network, planes, seen, key)
        if self.rank == 0:
            self._finish(key)
        wait_for_all()

    def _start_from(self, network: Network, start: Ensemble) -> None:
        try:
            network.load_state_dict(start.weights(start.members - 1))
        except RuntimeError as error:
            raise TrainingError(
                f"The training cannot start from the network in {start.folder}, which has another plan: plan with the "
                "same options, classes and kind of images, or start from nothing."
            ) from error

    def _train(self, network: Network, planes: PlaneStore, seen: PlaneStore | None, key: str) -> None:
        options = self.options
        assert options.momentum is not None
        optimiser = torch.optim.SGD(
            network.parameters(),
            lr=self.schedule.rate(0),
            momentum=options.momentum,
            nesterov=options.momentum > 0,
            weight_decay=options.weight_decay,
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.half)
        first = self._load_state(network, optimiser, scaler, key)
        model: nn.Module = network
        if self.world > 1:
            where = [self.device.index] if self.device.type == "cuda" else None
            model = nn.parallel.DistributedDataParallel(network, device_ids=where)
        loss = SegmentationLoss(options.loss, options.q, self._class_weights()).to(self.device)
        for epoch in range(first, self.epochs):
            start = time.perf_counter()
            for group in optimiser.param_groups:
                group["lr"] = self.schedule.rate(epoch)
            mean = self._epoch(epoch, model, loss, optimiser, scaler, planes)
            self.seconds += time.perf_counter() - start
            if self.rank == 0:
                self._end_epoch(epoch, mean, network, optimiser, scaler, seen, key)
            wait_for_all()

    def _epoch(
        self,
        epoch: int,
        model: nn.Module,
        loss: SegmentationLoss,
        optimiser: torch.optim.SGD,
        scaler: torch.amp.GradScaler,
        planes: PlaneStore,
    ) -> float:
        """Train for one epoch and return its mean loss over all processes."""
        model.train()
        total = torch.zeros((), device=self.device)
        kind = torch.bfloat16 if self.bfloat16 else torch.float16
        order = torch.channels_last if self.bfloat16 else torch.preserve_format
        for images, labels in self._batches(epoch, planes):
            self._check_stop(epoch)
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, dtype=kind, enabled=self.half or self.bfloat16):
                levels = model(images.to(self.device, non_blocking=True, memory_format=order))
            value = loss(levels, labels.to(self.device, non_blocking=True))
            scaler.scale(value).backward()
            scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(model.parameters(), self.options.clip)
            scaler.step(optimiser)
            scaler.update()
            total += value.detach()
        mean = total / self.iterations
        if self.world > 1:
            torch.distributed.all_reduce(mean)
            mean /= self.world
        if not torch.isfinite(mean):
            raise TrainingError(
                f"The loss is no longer a number in epoch {epoch + 1}: train with a lower restart_rate than "
                f"{self.options.restart_rate:g} or learning_rate than {self.options.learning_rate:g}."
            )
        return float(mean)

    def _batches(self, epoch: int, planes: PlaneStore) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of an epoch; chance depends on seed, epoch, process and step alone."""
        sampler = Sampler(planes, self.plan, self.options, self.batch)

        def make(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            return sampler.batch(np.random.default_rng([self.options.seed, epoch, self.rank, step]))

        if self.device.type == "cpu":
            yield from (make(step) for step in range(self.iterations))
            return
        with ThreadPoolExecutor(_GPU_WORKERS) as pool:
            waiting: deque[Future[tuple[torch.Tensor, torch.Tensor]]] = deque()
            for step in range(self.iterations):
                waiting.append(pool.submit(make, step))
                if len(waiting) > 2 * _GPU_WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _end_epoch(
        self,
        epoch: int,
        loss: float,
        network: Network,
        optimiser: torch.optim.SGD,
        scaler: torch.amp.GradScaler,
        seen: PlaneStore | None,
        key: str,
    ) -> None:
        """Validate, keep what is to be kept, and report."""
        options = self.options
        dice = None
        if seen is not None and ((epoch + 1) % options.validate_every == 0 or epoch + 1 == self.epochs):
            dice = self._validate(network, seen)
        entry = {
            "epoch": epoch + 1,
            "loss": round(loss, 6),
            "rate": self.schedule.rate(epoch),
            "dice": dice,
            "seconds": round(self.seconds, 3),
        }
        if self.schedule.keeps(epoch):
            (self.folder / MEMBERS).mkdir(exist_ok=True)
            write_members([network.state_dict()], self._member(epoch))
        self.curve.append(entry)
        state = {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
            "curve": json.dumps(self.curve),
        }
        Checkpoint(self.folder / STATE_FILE, key).save(state)
        with open(self.folder / LOG_FILE, "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if self.progress is not None:
            left = (self.epochs - epoch - 1) * self.seconds / (epoch + 1)
            self.progress(
                Progress("train", epoch + 1, self.epochs, loss, dice, entry["rate"], self.seconds, left)  # type: ignore[arg-type]
            )

    @torch.no_grad()
    def _validate(self, network: Network, seen: PlaneStore) -> dict[str, float]:
        """Return the Dice of each class, pooled over the pixels of all planes."""
        network.eval()
        both, total = np.zeros(self.plan.n_classes + 1), np.zeros(self.plan.n_classes + 1)
        chosen = np.unique(np.linspace(0, len(seen) - 1, min(len(seen), self.options.validation_planes)).astype(int))
        for index in chosen:
            image, label = seen[int(index)]
            logits = sliding_logits(FinestLevel(network), image[None].to(self.device), self.plan, half=self.half)
            guess = decided_masks(logits[0].cpu().numpy(), self.plan, above=0.0)
            truth = label.numpy() > 0 if self.plan.multilabel else class_masks(label.numpy()[None], self.plan.n_classes)
            both[1:] += (guess & truth).sum(axis=(1, 2))
            total[1:] += guess.sum(axis=(1, 2)) + truth.sum(axis=(1, 2))
        return {
            name: float(2 * both[index] / total[index]) if total[index] else 1.0
            for name, index in self.plan.classes.items()
        }

    def _planes(self, key: str) -> tuple[PlaneStore, PlaneStore | None]:
        """Prepare the planes (the first process does), and open them."""
        opened: list[PlaneStore | None] = []
        for name, examples in (("planes", self.examples), ("validation", self.validation)):
            if not examples:
                opened.append(None)
                continue
            path = self.folder / f"{name}.bin"
            first_does(partial(self._prepare, examples, path, key), self.device)
            opened.append(PlaneStore(path))
        planes = opened[0]
        assert planes is not None
        return planes, opened[1]

    def _prepare(self, examples: list[Example], path: Path, key: str) -> bool:
        def step(done: int) -> None:
            if self.progress is not None:
                self.progress(Progress("prepare", done, len(examples)))

        open_planes(examples, self.plan, path, key, should_stop=self.should_stop, step=step)
        return True

    def _key(self) -> str:
        """Return what the training depends on."""
        options = {name: value for name, value in self.options.to_dict().items() if name not in _FREE}
        parts = [__version__, self.plan.to_json(), json.dumps(options), str(self.world)]
        parts += [identity_of(self.examples), identity_of(self.validation)]
        parts += [] if self.start is None else [self.start.identity]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _claim(self, key: str, resume: bool) -> bool:
        """Make the folder ready; True where the training is finished already."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            clear(folder)
        finished = (folder / TRAINING_FILE).is_file() and (folder / ENSEMBLE_FILE).is_file()
        if finished:
            if read_training(folder)["key"] != key:
                raise OtherTrainingError(folder)
            _clear_working_files(folder)  # a kill may have come before that
            return True
        Checkpoint(folder / STATE_FILE, key).load()
        self.plan.write(folder)
        return False

    def _load_state(self, network: Network, optimiser: torch.optim.SGD, scaler: torch.amp.GradScaler, key: str) -> int:
        """Load what the last finished epoch left, and return the epoch to go on with."""
        state = Checkpoint(self.folder / STATE_FILE, key).load(self.device)
        if state is None:
            if self.rank == 0:
                (self.folder / LOG_FILE).unlink(missing_ok=True)
            return 0
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        self.curve = json.loads(state["curve"])
        self.seconds = float(self.curve[-1]["seconds"])
        if self.rank == 0:
            # the last line may have been cut off, or be of an epoch that is now done again
            write_text(self.folder / LOG_FILE, "".join(json.dumps(entry) + "\n" for entry in self.curve))
        return len(self.curve)

    def _finish(self, key: str) -> None:
        """Put the checkpoints into one file, and clear away what only the training needs."""
        from safetensors.torch import load_file

        kept = [epoch for epoch in range(self.epochs) if self.schedule.keeps(epoch)]
        write_members([load_file(self._member(epoch)) for epoch in kept], self.folder / ENSEMBLE_FILE)
        record = {
            "key": key,
            "version": __version__,
            "torch": torch.__version__,
            "options": self.options.to_dict(),
            "seed": self.options.seed,
            "start": None if self.start is None else self.start.identity,
            "members": [epoch + 1 for epoch in kept],
            "images": {kind: sum(each.kind == kind for each in self.examples) for kind in ("final", "original")},
            "validation_images": len(self.validation),
            "processes": self.world,
            "seconds": round(self.seconds, 1),
            "curve": self.curve,
        }
        write_json(self.folder / TRAINING_FILE, record)
        _clear_working_files(self.folder)

    def _member(self, epoch: int) -> Path:
        return self.folder / MEMBERS / f"{epoch + 1:06d}.safetensors"

    def _class_weights(self) -> list[float] | None:
        if self.options.class_weights == "none":
            return None
        shares = self._shares([*([] if self.plan.multilabel else ["background"]), *_by_index(self.plan)])
        raw = np.asarray([1 / np.sqrt(max(share, 1e-4)) for share in shares])
        return [float(value) for value in raw / raw.mean()]

    def _shares(self, names: Sequence[str]) -> list[float]:
        """Return the share of the training pixels that each class has."""
        return [float(self.plan.fingerprint["classes"][name]["share_of_pixels"]) for name in names]

    def _check_stop(self, epoch: int) -> None:
        if self.should_stop is None and self.world == 1:
            return
        asked = self.should_stop is not None and self.rank == 0 and self.should_stop()
        if from_first(float(asked), self.device) > 0:
            raise CancelledError(f"The training was stopped in epoch {epoch + 1} of {self.epochs}; it can be resumed.")


class Sampler:
    """Draws batches of patches: images by their weight, and a share of each batch round a class's pixel.

    Parameters
    ----------
    planes : PlaneStore
    plan : Plan
    options : TrainingOptions
        Their share of foreground and their augmentation.
    size : int
        Patches of a batch.
    """

    def __init__(self, planes: PlaneStore, plan: Plan, options: TrainingOptions, size: int) -> None:
        self.planes = planes
        self.plan = plan
        self.options = options
        self.size = size
        drawn = planes.weights > 0
        held = planes.classes & drawn[:, None]
        self.classes = [index for index in range(1, plan.n_classes + 1) if held[:, index].any()]
        self._chances = {0: planes.weights / planes.weights.sum()}
        for index in self.classes:
            weights = planes.weights * held[:, index]
            self._chances[index] = weights / weights.sum()

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images float32 [B, C, *patch] and labels int64 [B, *patch].

        Of classes that may overlap the labels are [B, classes, *patch].
        """
        augment = Augmenter(self.plan.patch_size, self.plan.mirror_axes, enabled=self.options.augment)
        augment.seed(rng)
        forced = round(self.size * self.options.foreground) if self.classes else 0
        made = []
        for place in range(self.size):
            # classes take turns by chance, so that a rare one is seen as often as a common one
            wanted = int(rng.choice(self.classes)) if place >= self.size - forced else 0
            index = int(rng.choice(len(self.planes), p=self._chances[wanted]))
            image, label = self.planes[index]
            made.append(augment(image, label, self._centre(label, wanted, rng), rng))
        return torch.stack([image for image, _ in made]), torch.stack([label for _, label in made])

    def _centre(self, label: torch.Tensor, wanted: int, rng: np.random.Generator) -> list[float]:
        """Return the centre of a patch: within the plane, and with a pixel of the wanted class in it."""
        pixel = None
        if wanted:
            inside = label[wanted - 1] == 1 if self.plan.multilabel else label == wanted
            pixels = np.flatnonzero(inside.numpy().ravel())
            pixel = np.unravel_index(int(rng.choice(pixels)), inside.shape)
        centre = []
        for axis in (0, 1):
            size, patch = label.shape[axis - 2], self.plan.patch_size[axis]
            low, high = min(patch, size) / 2, size - min(patch, size) / 2
            if size <= patch:
                low = high = size / 2
            place = rng.uniform(low, high)
            if pixel is not None:
                place = float(np.clip(float(pixel[axis]) + 0.5, low, high))
            centre.append(place)
        return centre


def read_training(folder: Path) -> dict[str, Any]:
    """Read the record of a finished training.

    Raises
    ------
    TrainingError
        If there is none.
    """
    try:
        return dict(json.loads((folder / TRAINING_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder} holds no finished training: {TRAINING_FILE} cannot be read.") from error


def clear(folder: Path) -> None:
    """Remove what a training left in a folder."""
    _clear_working_files(folder)
    for name in (TRAINING_FILE, ENSEMBLE_FILE, LOG_FILE):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def memory_errors(options: TrainingOptions, plan: Plan) -> Iterator[None]:
    """Turn what torch and Python say when memory is short into a sentence that says what to do.

    Raises
    ------
    TrainingError
        In place of those errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        short = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not short and not any(sign in said for sign in ("can't allocate memory", "out of memory", "not enough mem")):
            raise
        rows, columns = plan.patch_size
        raise TrainingError(
            f"Memory ran out on {options.device} with batches of {plan.batch_size} patches of {rows} x {columns}: "
            f"plan again with less memory than {plan.memory.get('budget', 0) / 1e9:.1f} GB (option memory), or free "
            "some."
        ) from error


def _by_index(plan: Plan) -> list[str]:
    return [name for name, _ in sorted(plan.classes.items(), key=lambda item: item[1])]


def _clear_working_files(folder: Path) -> None:
    shutil.rmtree(folder / MEMBERS, ignore_errors=True)
    for path in [*folder.glob("planes.*"), *folder.glob("validation.*"), *folder.glob(".*.part"), folder / STATE_FILE]:
        path.unlink(missing_ok=True)


def _multiplies_bfloat16() -> bool:
    """Say whether this CPU has instructions for it; without them it is slower than float32."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
