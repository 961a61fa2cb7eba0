"""Bounds on what is read from files that others made; docs/security.md lists them.

A damaged or hostile file must not make a reader allocate, unpack or wait without end.
"""

from __future__ import annotations

import importlib
import mmap
from typing import Any

# Voxels of an image, 1024 planes of 1024 x 1024; of one plane, as many as Pillow takes; and bytes of all voxels.
MAX_VOXELS = 2**30
MAX_PLANE = 178_956_970
MAX_BYTES = 2**32
# Axes that an NRRD header may name: three of space, one of layers and one of colours.
MAX_AXES = 5
# Bytes of a header that is parsed in this process; longer ones are parsed in another process. An NRRD header is
# refused above it.
MAX_HEADER = 2**20
# Bytes of one line of an NRRD header.
MAX_LINE = 2**16
# Bytes between the header of a NIfTI file and its voxels: its extensions.
MAX_EXTENSIONS = 2**24
# Bytes that a deflated data set or a gzip stream may hold beside the voxels that its header states.
MAX_EXTRA = 2**25
# Bytes of a compressed file that is unpacked in this process.
SMALL_FILE = 2**24
# Seconds that another process may take to read an image, or a header that is too long for this one.
READ_SECONDS = 300.0
HEADER_SECONDS = 20.0
# Memory of a reader: so many times the bytes of the stated voxels, and so many bytes beside them.
MEMORY_FACTOR = 4
MEMORY_EXTRA = 160 * 2**20

try:
    resource: Any = importlib.import_module("resource")
except ImportError:  # a system without limits of processes
    resource = None

# Address space of the process when the current call began; None where memory is not limited.
_begun: int | None = None
_allowed = 0


def limit_memory() -> None:
    """Limit the memory of this process to what it has now and `MEMORY_EXTRA`, until `allow_voxels` or the next call."""
    global _begun, _allowed
    try:
        with open("/proc/self/statm", encoding="ascii") as state:
            _begun = int(state.read().split()[0]) * mmap.PAGESIZE
    except OSError:  # not Linux, where the limit would have no effect
        return
    _allowed = 0
    _apply()


def lift_memory() -> None:
    """Take the limit back."""
    global _begun
    _begun = None
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def limit_seconds(seconds: float) -> None:
    """Let this process take so many seconds of the processor from now on."""
    if resource is not None:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 2, resource.RLIM_INFINITY))


def leave_no_core() -> None:
    """Write no image of the memory where this process crashes."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow_voxels(n_bytes: int) -> None:
    """Let a process with limited memory use what an image whose voxels take `n_bytes` may need."""
    global _allowed
    if _begun is not None and n_bytes > _allowed:
        _allowed = n_bytes
        _apply()


def _apply() -> None:
    assert _begun is not None
    limit = _begun + MEMORY_EXTRA + MEMORY_FACTOR * _allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
