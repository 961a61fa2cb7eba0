"""Where weights come from: a registry of published ones, the user's own folders, and the demo's in the package.

Nothing is fetched without being asked for. Every file is checked by its sha256 before it is used; the hash of a file
that has not changed (size and time of change) is remembered, so that large files are not read again at each start.
"""

from medclipsam.weights.download import fetch
from medclipsam.weights.hashes import cached_sha256
from medclipsam.weights.listing import WeightsRow, available, format_table
from medclipsam.weights.memory import memory_need
from medclipsam.weights.own import add, relocate_text_config
from medclipsam.weights.registry import (
    DEFAULT_SAM,
    PAIR_VARIABLE,
    PAIRS,
    REGISTRY,
    Carrier,
    MemoryNeed,
    PublishedWeights,
    WeightFile,
    default_pair,
    weights_home,
)
from medclipsam.weights.resolution import ResolvedWeights, is_available, resolve, resolve_clip, resolve_pair
from medclipsam.weights.verification import CheckedFile, verify

__all__ = [
    "DEFAULT_SAM",
    "PAIRS",
    "PAIR_VARIABLE",
    "REGISTRY",
    "Carrier",
    "CheckedFile",
    "MemoryNeed",
    "PublishedWeights",
    "ResolvedWeights",
    "WeightFile",
    "WeightsRow",
    "add",
    "available",
    "cached_sha256",
    "default_pair",
    "fetch",
    "format_table",
    "is_available",
    "memory_need",
    "relocate_text_config",
    "resolve",
    "resolve_clip",
    "resolve_pair",
    "verify",
    "weights_home",
]
