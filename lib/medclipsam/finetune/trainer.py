"""Fine-tuning of a CLIP on pairs of image and caption, in one process or several, that goes on after a kill.

A folder of a run holds `last.pt` (where it stands) and `best.pt` (the weights with the best validation retrieval so
far), each written whole. Everything random is seeded by the step, so that a run that was killed and goes on ends with
the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from medclipsam import __version__
from medclipsam.base.checkpoint import Checkpoint, save_state
from medclipsam.base.distributed import rank, wait_for_all, world_size
from medclipsam.base.errors import CancelledError, InputError, OptionError, TrainingError
from medclipsam.base.progress import ProgressBar
from medclipsam.finetune.data import PreparedPairs
from medclipsam.finetune.losses import ContrastiveLoss, gather
from medclipsam.finetune.model import TunableClip
from medclipsam.finetune.options import FinetuneOptions
from medclipsam.finetune.retrieval import Retrieval, retrieval
from medclipsam.training.tracking import tracker

logger = logging.getLogger(__name__)

_LAST, _BEST = "last.pt", "best.pt"
# Pairs that validation puts through the model at once.
_VALIDATION_BATCH = 64

# Share that is done, and what is being done.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Trained:
    """What a training came to; the model holds the best weights.

    Attributes
    ----------
    before, best : Retrieval
        Validation retrieval of the start, and of the best epoch.
    best_epoch : int
        1-based; 0 where no epoch was better than the start.
    history : list of dict
        For each epoch its mean loss and its retrieval.
    seconds : float
        Of this call: less than the whole where the run went on from an earlier one.
    """

    before: Retrieval
    best: Retrieval
    best_epoch: int
    history: list[dict[str, Any]]
    seconds: float


def run_identity(tuned: TunableClip, train: PreparedPairs, validation: PreparedPairs, options: FinetuneOptions) -> str:
    """Return a hash of everything that the result depends on."""
    content = {
        "version": __version__,
        "weights": tuned.encoder.identity,
        "data": [train.digest, validation.digest],
        "options": options.identity(),
        "processes": world_size(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def learning_rate(step: int, steps: int, options: FinetuneOptions) -> float:
    """Return the rate of a 0-based step: a rise along a line, then a fall along a cosine that ends at 0."""
    rise = round(options.warmup * steps)
    if step < rise:
        return options.learning_rate * (step + 1) / rise
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def features_of(tuned: TunableClip, pairs: PreparedPairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the unit features of all pairs, float32 [N, E] each, on the CPU."""
    tuned.eval()
    order = [range(at, min(at + _VALIDATION_BATCH, len(pairs))) for at in range(0, len(pairs), _VALIDATION_BATCH)]
    with torch.no_grad():
        made = [tuned.encode(inputs, tokens) for inputs, tokens, _ in pairs.batches(order)]
    images, texts = (
        torch.nn.functional.normalize(torch.cat(way).float(), dim=-1).cpu() for way in zip(*made, strict=True)
    )
    return images, texts


def accumulate(
    tuned: TunableClip,
    loss: ContrastiveLoss,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    chunk: int | None,
    seed: Sequence[int],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
) -> float:
    """Add the gradient of a whole batch to the parameters, with no more than a chunk of it in the model at a time.

    The features of all chunks are computed first, without a graph. The loss of the whole batch gives each feature its
    gradient, and a second pass takes these through the model chunk by chunk (GradCache). Where there are several
    processes, each holds its part of the batch; the loss is that of all parts, and the gradients are summed.

    Parameters
    ----------
    tuned : TunableClip
        The model.
    loss : ContrastiveLoss
        The loss; its own parameters get their gradients as well.
    batch : tuple of torch.Tensor
        Inputs [B, 3, S, S], tokens [B, context] and caption numbers [B] of this process.
    chunk : int or None
        Pairs at a time; None takes all, in one pass.
    seed : sequence of int
        Of dropout; a chunk has the same dropout in both passes.
    autocast : callable
        Returns the context that the model runs in.
    scale : callable
        Applied to the loss before its gradient is taken.

    Returns
    -------
    float
        The loss of the whole batch.
    """
    inputs, tokens, captions = batch
    size = len(inputs) if chunk is None else chunk
    parts = [slice(at, at + size) for at in range(0, len(inputs), size)]

    def encode(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(int(np.random.SeedSequence([*seed, number]).generate_state(1)[0]))
        with autocast():
            return tuned.encode(inputs[parts[number]], tokens[parts[number]])

    with torch.set_grad_enabled(len(parts) == 1):
        features = [encode(number) for number in range(len(parts))]
    cut = [_widened(torch.cat(way).detach()).requires_grad_() for way in zip(*features, strict=True)]
    value = loss(gather(cut[0]), gather(cut[1]), gather(captions.to(tuned.device)))
    scale(value).backward()
    for number, part in enumerate(parts):
        # one part: its graph is still there
        made = features[0] if len(parts) == 1 else encode(number)
        # with the projections alone trained, one tower may have nothing that is
        kept = [(one, feature.grad) for one, feature in zip(made, cut, strict=True) if one.requires_grad]
        torch.autograd.backward(
            [one for one, _ in kept], [gradient[part].to(one.dtype) for one, gradient in kept if gradient is not None]
        )
    if world_size() > 1:
        for parameter in tuned.parameters.values():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
    return float(value.detach())


def train(
    tuned: TunableClip,
    pairs: PreparedPairs,
    validation: PreparedPairs,
    folder: Path,
    options: FinetuneOptions,
    *,
    restart: bool | None = False,
    show: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Trained:
    """Fine-tune a model, and leave it with the weights of the best validation retrieval.

    Parameters
    ----------
    tuned : TunableClip
        The model.
    pairs, validation : PreparedPairs
        What it learns from, and what chooses the best epoch; at least two pairs each.
    folder : pathlib.Path
        The run's folder; a run of the same weights, data and options that was left in it goes on.
    options : FinetuneOptions
        How.
    restart : bool or None
        Whether to throw away what the folder holds of any run; None throws away what is not of this one.
    show : bool
        Whether to show a progress bar.
    progress : callable, optional
        Told the share that is done and a sentence, after each step.
    cancelled : callable, optional
        Asked before each step whether to stop; where the run stands is kept.

    Returns
    -------
    Trained

    Raises
    ------
    InputError
        If there are too few pairs.
    TrainingError
        If the folder holds another training, or a damaged one.
    CancelledError
        If it was cancelled.
    """
    return _Run(tuned, pairs, validation, folder, options, restart=restart).go(show, progress, cancelled)


class _Run:
    def __init__(
        self,
        tuned: TunableClip,
        pairs: PreparedPairs,
        validation: PreparedPairs,
        folder: Path,
        options: FinetuneOptions,
        *,
        restart: bool | None,
    ) -> None:
        for name, some in (("training", pairs), ("validation", validation)):
            if len(some) < 2:
                raise InputError(f"Fine-tuning needs at least two pairs for {name}; given {len(some)}.")
        self.tuned, self.pairs, self.validation, self.folder, self.options = tuned, pairs, validation, folder, options
        self.batch = min(options.batch_size, len(pairs) - len(pairs) % world_size())
        if self.batch % world_size() or self.batch < 2 * world_size():
            raise OptionError(
                "batch_size",
                options.batch_size,
                f"a multiple of the {world_size()} processes, two pairs or more for each",
            )
        self.per_epoch = len(pairs) // self.batch
        self.steps = self.per_epoch * options.epochs
        self.loss = ContrastiveLoss(options.loss_options()).to(tuned.device)
        groups = tuned.groups(options.weight_decay)
        if list(self.loss.parameters()):
            groups.append({"params": list(self.loss.parameters()), "weight_decay": 0.0})
        self.optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-6)
        self.autocast, self.scaler = _mixed_precision(tuned.device)
        self.checkpoint = Checkpoint(folder / _LAST, run_identity(tuned, pairs, validation, options))
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.best_epoch, self.best_score = 0, -1.0
        folder.mkdir(parents=True, exist_ok=True)
        if restart and rank() == 0:
            for name in (_LAST, _BEST):
                (folder / name).unlink(missing_ok=True)
        wait_for_all()
        self._resume(others=restart is None)

    def go(self, show: bool, progress: Progress | None, cancelled: Callable[[], bool] | None) -> Trained:
        start = time.monotonic()
        before = self._first_look()
        kind = self.options.tracker if rank() == 0 else "none"
        curves = tracker(kind, self.folder, "finetuning", self.options.to_dict())
        with (
            curves,
            ProgressBar(total=self.steps, initial=self.step, unit="step", show=show, desc="fine-tuning") as bar,
        ):
            while self.step < self.steps:
                for batch in self.pairs.batches(self._order(), self.options.workers):
                    if cancelled is not None and cancelled():
                        self._save()
                        raise CancelledError("The fine-tuning was cancelled; the same call goes on with it.")
                    value = self._learn(batch)
                    self.losses.append(value)
                    self.step += 1
                    bar.update()
                    bar.set_postfix(loss=f"{value:.4f}", best=f"{self.best_score:.3f}", refresh=False)
                    curves.log(self.step, {"loss": value, "learning_rate": self.optimiser.param_groups[0]["lr"]})
                    if self.step % self.per_epoch == 0:
                        curves.log(self.step, self._end_epoch())
                    elif self.step % self.options.checkpoint_steps == 0:
                        self._save()
                    if progress is not None:
                        progress(self.step / self.steps, self._sentence(value))
        best = self._take_best()
        return Trained(before, best, self.best_epoch, self.history, time.monotonic() - start)

    def _order(self) -> list[list[int]]:
        """Return this process's part of the batches that are left of the epoch."""
        epoch, done = divmod(self.step, self.per_epoch)
        shuffled = np.random.default_rng([self.options.seed, epoch]).permutation(len(self.pairs))
        share = self.batch // world_size()
        first = rank() * share
        return [
            shuffled[at * self.batch + first : at * self.batch + first + share].tolist()
            for at in range(done, self.per_epoch)
        ]

    def _learn(self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
        self.tuned.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.options)
        self.optimiser.zero_grad(set_to_none=True)
        value = accumulate(
            self.tuned,
            self.loss,
            batch,
            chunk=self.options.chunk_size,
            seed=(self.options.seed, self.step, rank()),
            autocast=self.autocast,
            scale=self.scaler.scale,
        )
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return value

    def _end_epoch(self) -> dict[str, float]:
        epoch = self.step // self.per_epoch
        found = self._validate()
        mean = float(np.mean(self.losses))
        entry = {"epoch": epoch, "loss": mean, **found.to_dict()}
        self.history.append(entry)
        self.losses = []
        if found.score > self.best_score:
            self.best_score, self.best_epoch = found.score, epoch
            if rank() == 0:
                save_state(self.tuned.state(), self.folder / _BEST)
        self._save()
        logger.info("Epoch %d of %d: loss %.4f, retrieval %.4f", epoch, self.options.epochs, mean, found.score)
        return {"epoch_loss": mean, "retrieval": found.score, **found.rates}

    def _validate(self) -> Retrieval:
        # each process computes the same: validation is small beside an epoch
        return retrieval(*features_of(self.tuned, self.validation), gallery=self.options.gallery)

    def _first_look(self) -> Retrieval:
        """Return the retrieval that the weights start from, which an epoch has to beat."""
        if self.step:
            resumed = self.tuned.state()
            self.tuned.load_state(self.initial)
            before = self._validate()
            self.tuned.load_state(resumed)
            return before
        before = self._validate()
        self.best_score = before.score
        return before

    def _take_best(self) -> Retrieval:
        wait_for_all()
        if self.best_epoch == 0:
            self.tuned.load_state(self.initial)
        else:
            self.tuned.load_state(torch.load(self.folder / _BEST, weights_only=True))
        return self._validate()

    def _save(self) -> None:
        if rank() == 0:
            state = {
                "step": self.step,
                "model": self.tuned.state(),
                "loss": self.loss.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": self.history,
                "losses": self.losses,
                "best": (self.best_epoch, self.best_score),
            }
            self.checkpoint.save(state)

    def _resume(self, *, others: bool) -> None:
        """Go on from the checkpoint in the folder; another training's is ignored if `others`, else an error."""
        self.initial = self.tuned.state()
        try:
            state = self.checkpoint.load()
        except TrainingError:
            if not others:
                raise
            state = None
        if state is None:
            return
        self.tuned.load_state(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.history, self.losses = state["step"], state["history"], state["losses"]
        self.best_epoch, self.best_score = state["best"]
        logger.info("Going on at step %d of %d", self.step, self.steps)

    def _sentence(self, value: float) -> str:
        epoch = (self.step - 1) // self.per_epoch + 1
        return f"epoch {epoch} of {self.options.epochs}, loss {value:.4f}, best retrieval {self.best_score:.3f}"


def _mixed_precision(device: torch.device) -> tuple[Callable[[], AbstractContextManager[Any]], torch.amp.GradScaler]:
    """Return autocast and a gradient scaler: bfloat16 on GPUs that have it, else float16 scaled; nothing on a CPU."""
    if device.type != "cuda":
        return nullcontext, torch.amp.GradScaler(device.type, enabled=False)
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return (
        lambda: torch.autocast("cuda", dtype=half),
        torch.amp.GradScaler("cuda", enabled=half == torch.float16),
    )


def _widened(features: torch.Tensor) -> torch.Tensor:
    return features if features.dtype == torch.float64 else features.float()
