"""Files that appear under their names only when they are complete, and the hash of a file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Rights of a file for its owner alone.
PRIVATE = 0o600

_umask = threading.Lock()


@contextmanager
def atomic_write(path: Path, *, mode: int | None = None, prefix: str = "", suffix: str = "") -> Iterator[Path]:
    """Write a file under a temporary name in its folder, and give it its own name when the block ends.

    Whoever opens `path` finds what was there before or all of the new content, after a crash of the machine too.

    Parameters
    ----------
    path : Path
        The file; one that is there is replaced.
    mode : int, optional
        Rights of the file; by default those of any new file.
    prefix, suffix : str
        Beginning and end of the temporary name, for cleaners and writers that go by them.

    Yields
    ------
    Path
        The temporary file, empty. Where the block raises, it is removed, and `path` stays as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix or f".{path.name}.", suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(_new_file_mode() if mode is None else mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, content: bytes, *, mode: int | None = None) -> bool:
    """Write a file that must not exist yet, complete or not at all.

    Of several processes that write one file, also on several machines with a shared disk, one succeeds.

    Parameters
    ----------
    path : Path
        The file.
    content : bytes
        What is written.
    mode : int, optional
        Rights of the file; by default those of any new file.

    Returns
    -------
    bool
        False where the file exists already; it stays as it is.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, _new_file_mode() if mode is None else mode)
        os.link(name, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(name)
    return True


def write_bytes(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write bytes to a file, as `atomic_write` does."""
    with atomic_write(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str, *, mode: int | None = None) -> None:
    """Write text as UTF-8 to a file, as `atomic_write` does."""
    write_bytes(path, content.encode(), mode=mode)


def write_json(path: Path, content: Any, *, mode: int | None = None) -> None:
    """Write an object as JSON to a file, as `atomic_write` does."""
    write_text(path, json.dumps(content, indent=2) + "\n", mode=mode)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_file_mode() -> int:
    # the mask can be read only by setting it, which concerns all threads
    with _umask:
        mask = os.umask(0)
        os.umask(mask)
    return 0o666 & ~mask
