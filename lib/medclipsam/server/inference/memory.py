"""Whether a sub-process (a training, a batch) fits beside the server's models, and what is done where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medclipsam.base.devices import main_memory
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.errors import ConflictError
from medclipsam.weights import MemoryNeed, memory_need

if TYPE_CHECKING:
    from medclipsam.server.inference.pipeline import SharedPipeline

# Measured: resident memory of the interpreter and the libraries of a server before any weights are loaded.
LIBRARIES = 1200 << 20
# What CUDA itself takes of a GPU for each process; between 300 and 600 MiB on most.
CUDA_CONTEXT = 512 << 20


@dataclass(frozen=True)
class Free:
    """Bytes that are free.

    Parameters
    ----------
    main : int
        Main memory; 0 where the system does not tell.
    gpu : int or None
        Memory of the GPU; None where the models are on the CPU.
    """

    main: int
    gpu: int | None = None


def free_memory(device: str | None) -> Free:
    """Look what is free for models on `device`, which is None for the GPU where there is one."""
    import torch

    main, _ = main_memory()
    if device == "cpu" or not torch.cuda.is_available():
        return Free(main)
    return Free(main, torch.cuda.mem_get_info(device or "cuda")[0])


def shortage(what: str, need: MemoryNeed, free: Free, *, new_process: bool = True) -> str | None:
    """Return the figures, as the beginning of a sentence, where weights of this need do not fit, else None.

    Parameters
    ----------
    what : str
        Who needs it, as the sentence begins: "A batch".
    need : MemoryNeed
        Of the weights.
    free : Free
        What is free.
    new_process : bool
        Whether a process is started for them, with libraries and a CUDA context of its own.
    """
    gpu = need.total + (CUDA_CONTEXT if new_process else 0)
    if free.gpu is not None and gpu > free.gpu:
        return _sentence(what, gpu, "GPU memory", free.gpu)
    # weights go through main memory on their way to a GPU
    main = (LIBRARIES if new_process else 0) + (need.total if free.gpu is None else need.parameters)
    if free.main and main > free.main:
        return _sentence(what, main, "main memory", free.main)
    return None


def ensure_memory(
    what: str,
    conf: AppConf,
    pipeline: SharedPipeline,
    *,
    need: MemoryNeed | None = None,
    look: Callable[[str | None], Free] = free_memory,
) -> None:
    """See to it that a sub-process fits, before it is started.

    Parameters
    ----------
    what : str
        The process, as the beginning of a sentence: "A batch".
    conf : AppConf
        Names weights and device; `release_models` lets the server drop its models for the process. They are loaded
        again by the next request.
    pipeline : SharedPipeline
        The server's models.
    need : MemoryNeed, optional
        What the process loads; the server's own weights by default. Where nothing is known of them it is let through.
    look : callable
        Returns what is free.

    Raises
    ------
    ConflictError
        If it does not fit; the sentence has the figures.
    """
    need = need or memory_need(conf.weights)
    if need is None:
        return
    reason = shortage(what, need, look(conf.device))
    if reason is None:
        return
    if pipeline.is_loaded and conf.release_models:
        pipeline.release()
        reason = shortage(what, need, look(conf.device))
    if reason is not None:
        hint = (
            "; the server's own models are part of what is in use (--release-models gives their memory to it)"
            if pipeline.is_loaded
            else ""
        )
        raise ConflictError(f"{reason}{hint}.")


def _sentence(what: str, need: int, kind: str, free: int) -> str:
    return f"{what} would need {need / 1e9:.1f} GB of {kind}, and {free / 1e9:.1f} GB are free"
