"""One training in several processes: one a GPU, or on CPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medclipsam.base.distributed import process_group
from medclipsam.base.errors import CancelledError, MedClipSamError, TrainingError
from medclipsam.training.examples import Example
from medclipsam.training.options import TrainingOptions
from medclipsam.training.plan import Plan
from medclipsam.training.trainer import Progress, train

# Seconds between two looks at the processes.
_LOOK = 0.1


def train_in(
    processes: int,
    examples: Sequence[Example],
    plan: Plan,
    options: TrainingOptions,
    folder: Path,
    *,
    validation: Sequence[Example] = (),
    progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = True,
) -> None:
    """Train as `medclipsam.training.trainer.train` does, in so many processes.

    Parameters
    ----------
    processes : int
        1 trains in this process; more speak to each other by NCCL on GPUs and by Gloo on CPUs.
    examples, plan, options, folder, validation, progress, should_stop, resume
        See `train`.

    Raises
    ------
    MedClipSamError
        As `train`; the first process's error where several fail.
    """
    if processes == 1:
        train(
            examples,
            plan,
            options,
            folder,
            validation=validation,
            progress=progress,
            should_stop=should_stop,
            resume=resume,
        )
        return
    import torch.multiprocessing as multiprocessing

    context = multiprocessing.get_context("spawn")
    messages, stop = context.SimpleQueue(), context.Event()
    work = (list(examples), plan, options, folder, list(validation), resume)
    with tempfile.TemporaryDirectory(prefix="rendezvous-") as place:
        run = multiprocessing.start_processes(
            _work, (processes, f"file://{place}/store", work, messages, stop), nprocs=processes, join=False
        )
        assert run is not None
        failed: BaseException | None = None
        try:
            while True:
                try:
                    ended = run.join(timeout=_LOOK)
                except Exception as error:  # a process ended without saying why, or was killed
                    failed = error
                    ended = True
                failure = _hand_on(messages, progress)
                if failure is not None:
                    raise failure
                if ended:
                    break
                if should_stop is not None and should_stop():
                    stop.set()
        finally:
            for process in run.processes:
                if process.is_alive():
                    process.kill()
                process.join()
    if failed is not None:
        raise TrainingError(f"A training process ended unexpectedly: {str(failed).strip().splitlines()[-1]}.")


def _hand_on(messages: Any, progress: Callable[[Progress], None] | None) -> MedClipSamError | None:
    """Hand on the messages of the processes; return the error that one of them ended with."""
    while not messages.empty():
        kind, content = messages.get()
        if kind == "error":
            error: MedClipSamError = content
            return error
        if progress is not None:
            progress(content)
    return None


def _work(rank: int, processes: int, rendezvous: str, work: tuple[Any, ...], messages: Any, stop: Any) -> None:
    """Be one of the processes."""
    examples, plan, options, folder, validation, resume = work
    with process_group(options.device, rank, init_method=rendezvous, rank=rank, world_size=processes):
        try:
            train(
                examples,
                plan,
                options,
                folder,
                validation=validation,
                progress=(lambda each: messages.put(("progress", each))) if rank == 0 else None,
                should_stop=stop.is_set,
                resume=resume,
            )
        except MedClipSamError as error:
            stopped = isinstance(error, CancelledError)
            messages.put(("error", (CancelledError if stopped else TrainingError)(str(error))))
