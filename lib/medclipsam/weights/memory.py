"""How much memory weights need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.base.errors import WeightsError
from medclipsam.weights.own import DESCRIBED, own_path, recognise
from medclipsam.weights.registry import REGISTRY, MemoryNeed
from medclipsam.weights.resolution import pair_names


def memory_need(name: str) -> MemoryNeed | None:
    """Return what a pair of weights takes: the parameters of both, and the work of the one that takes more.

    Parameters
    ----------
    name : str
        As for `resolve_pair`.

    Returns
    -------
    MemoryNeed or None
        None where nothing is known of one of them, or it is not on this machine.
    """
    try:
        needs = [_memory_of(half) for half in pair_names(name)]
    except WeightsError:
        return None
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return None
    # the two work one after the other
    return MemoryNeed(
        sum(need.parameters for need in known),
        max(need.working for need in known),
        all(need.measured for need in known),
    )


def _memory_of(name: str) -> MemoryNeed | None:
    if name in REGISTRY:
        return REGISTRY[name].memory
    kind, arch, file = recognise(own_path(name))
    return estimated_memory(kind, arch, file)


def estimated_memory(kind: str, arch: str | Mapping[str, Any], file: Path) -> MemoryNeed | None:
    """Return the need of the user's own weights, from the file's size and published weights of the same architecture.

    A model in the demo's format is stored as float16.
    """
    described = arch in DESCRIBED or not isinstance(arch, str)
    named = arch if isinstance(arch, str) else "demo"
    like = next((known for known in REGISTRY.values() if known.kind == kind and known.arch == named), None)
    if like is None or like.memory is None:
        return None
    return MemoryNeed(file.stat().st_size * (2 if described else 1), like.memory.working, measured=False)
