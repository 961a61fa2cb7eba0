"""Archives that clients send, unpacked inside one folder or not at all."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from medclipsam.base.errors import InputError, TooLargeError
from medclipsam.imaging import isolation

_CHUNK = 1024 * 1024
# Bytes that a tar archive may give one long name or header, which tarfile reads in one piece.
_MAX_NAME = 2 * _CHUNK
# The first bytes of compressed tar archives.
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int = 20_000) -> int:
    """Unpack the regular files of a zip or tar archive, in another process.

    Parameters
    ----------
    archive : Path
        A zip file, or a tar file (plain, gzip, bzip2 or xz).
    folder : Path
        An empty folder.
    max_bytes : int
        Most bytes of all files together, as they are counted while they are written.
    max_files : int
        Most files.

    Returns
    -------
    int
        Number of files.

    Raises
    ------
    InputError
        If it is no archive, is damaged, or has an entry that is no plain file or would lie outside the folder.
    TooLargeError
        If it holds too much.
    """
    count: int = isolation.call(_unpack, archive, folder, max_bytes, max_files)
    return count


def _unpack(archive: Path, folder: Path, max_bytes: int, max_files: int) -> int:
    written = count = 0
    try:
        for name, source in _entries(archive):
            path = folder.joinpath(*_parts(name))
            count += 1
            if count > max_files:
                raise TooLargeError(f"The archive holds more than {max_files} files.")
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, open(path, "xb") as copy:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise TooLargeError(f"The archive unpacks to more than {max_bytes / 2**20:g} MiB.")
                    copy.write(chunk)
    except (InputError, MemoryError):
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"The archive cannot be unpacked: {reason}.") from None
    except Exception as error:
        # archives break in more ways than their readers have errors for
        raise InputError(f"The archive is damaged or encrypted ({type(error).__name__}).") from None
    if not count:
        raise InputError("The archive holds no file.")
    return count


def _entries(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the files of an archive one after the other."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if entry.is_dir():
                    continue
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    raise InputError(f"The archive's entry {entry.filename!r} is no plain file.")
                yield entry.filename, packed.open(entry)
        return
    with archive.open("rb") as file:
        opener = _OPENERS.get(file.read(2))
    with (opener or open)(archive, "rb") as stream, _tar(stream) as rolled:
        for member in rolled:
            if member.isdir():
                continue
            source = rolled.extractfile(member) if member.isreg() else None
            if source is None:
                raise InputError(f"The archive's entry {member.name!r} is no plain file.")
            yield member.name, source


def _tar(stream: Any) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=cast(Any, _Pieces(stream)), mode="r:")
    except (tarfile.ReadError, EOFError, OSError, lzma.LZMAError, zlib.error):
        raise InputError("The file is no zip or tar archive.") from None


class _Pieces:
    """A file of which no large piece can be read at once: long names and headers say how long they are."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_NAME:
            raise InputError(f"The archive has a name or header of {size} bytes; at most {_MAX_NAME} are allowed.")
        return bytes(self._file.read(size))


def _parts(name: str) -> tuple[str, ...]:
    """Return the path of an entry below the folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    bad = not parts or any(part in ("..", "/") or ":" in part or "\0" in part for part in parts)
    if bad or len(os.fsencode(name)) > 1000:
        raise InputError(f"The archive's entry {name[:80]!r} lies outside the archive's folder.")
    return parts
