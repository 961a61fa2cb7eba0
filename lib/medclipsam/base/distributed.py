"""One training in several processes, one a GPU or on CPUs: which one this is, and what they do together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from medclipsam.base.errors import TrainingError


def world_size() -> int:
    """Return the number of processes; 1 outside of a process group."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _grouped() else 0


def wait_for_all() -> None:
    """Wait until all processes have come here."""
    if _grouped():
        dist.barrier()


def from_first(value: float, device: torch.device) -> float:
    """Return the first process's value in all of them; `device` is where this process trains."""
    if not _grouped():
        return value
    shared = torch.tensor([value], device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def first_does(work: Callable[[], bool], device: torch.device) -> bool:
    """Let the first process do something, and return its answer in all of them.

    Raises
    ------
    TrainingError
        In the other processes, where it failed in the first one, which raises its own error.
    """
    failed: BaseException | None = None
    answer = 0.0
    if rank() == 0:
        try:
            answer = float(work())
        except BaseException as error:
            failed, answer = error, -1.0
    answer = from_first(answer, device)
    if failed is not None:
        raise failed
    if answer < 0:
        raise TrainingError("The training ended because its first process failed.")
    return answer > 0


@contextmanager
def process_group(device: str, local_rank: int, **how: Any) -> Iterator[str]:
    """Belong to a process group, which speaks NCCL on GPUs and Gloo on CPUs.

    Parameters
    ----------
    device : str
        "cuda" or "cpu".
    local_rank : int
        Number of this process among those of this machine; decides its GPU.
    **how
        Of `torch.distributed.init_process_group`; by default the environment of torchrun says it.

    Yields
    ------
    str
        The device of this process.
    """
    gpu = device.startswith("cuda")
    if gpu:
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", **how)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def torchrun_group(device: str) -> Iterator[str]:
    """Belong to the process group of torchrun, if it has started this process; yields this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    with process_group(device, int(os.environ.get("LOCAL_RANK", "0"))) as own:
        yield own


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
