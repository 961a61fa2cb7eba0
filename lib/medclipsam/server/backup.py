"""A workspace as one archive, checked when it is written and when it is read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medclipsam import __version__
from medclipsam.active import LEDGER_FILE
from medclipsam.base.errors import InputError
from medclipsam.base.locks import take_lock
from medclipsam.server.base.workspace import LOCK_FILE, OWNER_FILE, VIEWER, owner_of
from medclipsam.studies.final import LABEL_VERSIONS
from medclipsam.training.lock import HOLDER_FILE, holder_of
from medclipsam.training.lock import LOCK_FILE as TRAINING_LOCK_FILE

# The last member of an archive: an archive that was cut off has none.
_MANIFEST = "manifest.json"
_FORMAT = 1
# Made again at the next start, or of use to one process alone.
_LEFT_OUT = frozenset({"app", "tmp", "sessions", VIEWER, LOCK_FILE, OWNER_FILE})
_LEFT_OUT_NETWORKS = frozenset({TRAINING_LOCK_FILE, HOLDER_FILE})
_SQLITE = b"SQLite format 3\0"
_POINTER = "current.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WorkspaceInfo:
    """What a workspace holds.

    Attributes
    ----------
    folder : str
    in_use_by : str or None
        The process that serves from it.
    training : str or None
        What is trained in it now.
    bytes : dict of str to int
        Size of each part.
    kept : int
        Bytes that a backup would hold, before compression.
    ledger_format : int or None
        Version of the format of the rounds' file; None where there is none.
    images, labels, rounds : int
        Rows of the rounds' file; labels count all versions.
    networks : dict of str to int
        Versions of each trained network.
    """

    folder: str
    in_use_by: str | None
    training: str | None
    bytes: dict[str, int]
    kept: int
    ledger_format: int | None
    images: int
    labels: int
    rounds: int
    networks: dict[str, int]


def backup(folder: Path, archive: Path) -> dict[str, Any]:
    """Write a workspace to an archive; a server may be using it.

    Parameters
    ----------
    folder : Path
        The workspace.
    archive : Path
        New file, .tar, .tar.gz or .tgz; it appears under its name only when it has been written and read back.

    Returns
    -------
    dict
        The manifest: `format`, `version`, `created`, `files` with `sha256` and `bytes` of each.

    Raises
    ------
    InputError
        If the workspace does not exist or is empty, the archive exists or cannot be written.
    """
    if not folder.is_dir():
        raise InputError(f"There is no workspace {folder}.")
    if not archive.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise InputError(f"The archive cannot be written as {archive.name!r}; allowed: .tar, .tar.gz, .tgz.")
    if archive.exists():
        raise InputError(f"{archive} exists; name another file.")
    if archive.absolute().is_relative_to(folder.absolute()):
        raise InputError(f"{archive} would be in the workspace itself; name a file elsewhere.")
    partial = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb"))
            mode = "w" if archive.suffix == ".tar" else "w:gz"
            manifest = _write(folder, stack.enter_context(tarfile.open(fileobj=file, mode=mode)))  # type: ignore[call-overload]
        if not manifest["files"]:
            raise InputError(f"The workspace {folder} holds nothing to keep.")
        _check(partial)
        os.replace(partial, archive)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The backup {archive} cannot be written: {reason}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def restore(archive: Path, folder: Path, *, replace: bool = False) -> dict[str, Any]:
    """Put the workspace of an archive in place, and read it back.

    Parameters
    ----------
    archive : Path
        Of `backup`.
    folder : Path
        The workspace; it may not exist yet.
    replace : bool
        Whether a workspace that holds something is moved aside, to a folder beside it.

    Returns
    -------
    dict
        The manifest; `moved` is the folder of the workspace before, or None.

    Raises
    ------
    InputError
        If the archive is damaged or of a later version, or the workspace is in use or holds something. The workspace
        is then as it was.
    """
    with contextlib.ExitStack() as stack:
        there, lock = folder.exists(), None
        if there:
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder.")
            lock = take_lock(folder / LOCK_FILE)
            if lock is None:
                raise InputError(f"Workspace {folder} is in use by {owner_of(folder) or 'a server'}; stop it first.")
            stack.callback(lock.release)
            trains = holder_of(folder / "networks")
            if trains is not None:
                raise InputError(f"Process {trains.pid} trains in the workspace {folder}; stop it first.")
        holds = there and any(_files(folder))
        if holds and not replace:
            raise InputError(f"Workspace {folder} holds something; --replace moves it aside.")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.restoring-", dir=folder.parent))
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            manifest = _check(archive, into=place)
            _check_ledger(place / LEDGER_FILE)
            moved = _put(place, folder, keep=holds, release=None if lock is None else lock.release)
        except OSError as error:
            raise InputError(f"The workspace {folder} cannot be restored: {error.strerror or error}.") from error
    return {**manifest, "moved": None if moved is None else str(moved)}


def info(folder: Path) -> WorkspaceInfo:
    """Tell what a workspace holds; nothing is changed.

    Raises
    ------
    InputError
        If there is no such workspace, or its rounds' file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"There is no workspace {folder}.")
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                part = path.relative_to(folder).parts[0]
                sizes[part] = sizes.get(part, 0) + path.stat().st_size
    kept = sum(path.stat().st_size for path in _files(folder))
    version, counts = None, dict.fromkeys(("images", "labels", "rounds"), 0)
    ledger = folder / LEDGER_FILE
    if ledger.is_file():
        try:
            with contextlib.closing(_open(ledger)) as database:
                version = int(database.execute("PRAGMA user_version").fetchone()[0])
                counts = {name: int(database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in counts}
        except sqlite3.Error as error:
            raise InputError(f"{ledger} cannot be read: {error}.") from None
    networks = {
        place.name: sum(each.name.isdigit() for each in place.iterdir())
        for place in sorted((folder / "networks").glob("network*"))
        if place.is_dir()
    }
    trains, user = holder_of(folder / "networks"), None
    with contextlib.suppress(OSError):
        user = owner_of(folder)
    return WorkspaceInfo(
        str(folder), user, trains.what if trains else None, sizes, kept, version, **counts, networks=networks
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a workspace that a backup keeps, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] in _LEFT_OUT or any(part.startswith(".") and part != LABEL_VERSIONS for part in parts):
            continue
        if parts[0] == "networks" and parts[-1] in _LEFT_OUT_NETWORKS:
            continue
        # series can be fetched again, labels cannot
        if parts[0] == "dicomweb" and len(parts) > 3 and parts[2] != "labels":
            continue
        # what SQLite keeps beside a database comes with the database
        if path.name.endswith(("-wal", "-shm", "-journal")) and path.with_name(path.name.rpartition("-")[0]).exists():
            continue
        if path.is_file() and not path.is_symlink():
            yield path


def _write(folder: Path, tar: tarfile.TarFile) -> dict[str, Any]:
    # before the folders that they name: these are complete and do not change
    pointers = {path: path.read_bytes() for path in folder.rglob(_POINTER) if path.is_file()}
    files: dict[str, dict[str, Any]] = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            with _opened(path, pointers) as (source, size, changed):
                files[name] = _add(tar, name, source, size, changed)
        except FileNotFoundError:  # removed since
            continue
    manifest = {"format": _FORMAT, "version": __version__, "created": time.time(), "files": files}
    content = json.dumps(manifest, indent=1).encode()
    _add(tar, _MANIFEST, io.BytesIO(content), len(content), time.time())
    return manifest


@contextlib.contextmanager
def _opened(path: Path, pointers: dict[Path, bytes]) -> Iterator[tuple[IO[bytes], int, float]]:
    if path in pointers:
        yield io.BytesIO(pointers[path]), len(pointers[path]), path.stat().st_mtime
        return
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) != _SQLITE:
            file.seek(0)
            about = os.fstat(file.fileno())
            yield file, about.st_size, about.st_mtime
            return
    # a database that others write to: a copy of the file alone would lack what is still in its log
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / path.name
        with contextlib.closing(_open(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        with copy.open("rb") as file:
            yield file, copy.stat().st_size, path.stat().st_mtime


def _add(tar: tarfile.TarFile, name: str, source: IO[bytes], size: int, changed: float) -> dict[str, Any]:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(changed)
    hashed = _Hashed(source)
    tar.addfile(member, hashed)
    return {"sha256": hashed.digest.hexdigest(), "bytes": size}


class _Hashed:
    """A file that hashes what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.digest.update(content)
        return content


def _check(archive: Path, into: Path | None = None) -> dict[str, Any]:
    """Compare an archive with its manifest, and write its files where it is asked to, and compare these."""
    found: dict[str, dict[str, Any]] = {}
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.is_absolute() or ".." in name.parts or manifest is not None:
                    raise InputError(f"{archive} is not a backup of a workspace: it holds {member.name!r}.")
                content = tar.extractfile(member)
                assert content is not None
                if member.name == _MANIFEST:
                    manifest = json.loads(content.read())
                elif into is None:
                    found[member.name] = _about(content)
                else:
                    place = into / name
                    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    with open(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as file:
                        shutil.copyfileobj(content, file, _CHUNK)
                        file.flush()
                        os.fsync(file.fileno())
                    os.utime(place, (member.mtime, member.mtime))
                    with place.open("rb") as file:
                        found[member.name] = _about(file)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InputError(f"{archive} is damaged or is not a backup of a workspace: {error}.") from None
    except OSError as error:
        if into is not None and error.filename is not None and str(error.filename) != str(archive):
            raise
        raise InputError(f"{archive} cannot be read: {error.strerror or error}.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{archive} is damaged: its list of files is missing.")
    if manifest.get("format") != _FORMAT:
        raise InputError(f"{archive} has the format {manifest.get('format')}; this version reads {_FORMAT}.")
    wrong = sorted(name for name in {*found, *manifest["files"]} if found.get(name) != manifest["files"].get(name))
    if wrong:
        raise InputError(f"{archive} is damaged: {wrong[0]!r} is not what was backed up ({len(wrong)} such files).")
    return manifest


def _about(file: IO[bytes]) -> dict[str, Any]:
    hashed = _Hashed(file)
    size = 0
    while content := hashed.read(_CHUNK):
        size += len(content)
    return {"sha256": hashed.digest.hexdigest(), "bytes": size}


def _check_ledger(ledger: Path) -> None:
    if not ledger.is_file():
        return
    from medclipsam.active.ledger import SCHEMA

    try:
        with contextlib.closing(_open(ledger)) as database:
            state = database.execute("PRAGMA integrity_check").fetchone()[0]
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise InputError(f"The backup's {LEDGER_FILE} cannot be read: {error}.") from None
    if state != "ok":
        raise InputError(f"The backup's {LEDGER_FILE} is damaged: {state}.")
    if version > SCHEMA:
        raise InputError(
            f"The backup's {LEDGER_FILE} has the format {version} of a later version of medclipsam; this one reads up "
            f"to {SCHEMA}."
        )


def _put(place: Path, folder: Path, *, keep: bool, release: Callable[[], None] | None) -> Path | None:
    """Let a restored folder take the workspace's place; return where the one before is, if it is kept."""
    place.chmod(0o700)
    if release is None:
        os.rename(place, folder)
        return None
    moved = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    if os.name == "nt":  # which renames no folder with an open file
        release()
    os.rename(folder, moved)
    try:
        os.rename(place, folder)
    except OSError:
        os.rename(moved, folder)
        raise
    if keep:
        return moved
    shutil.rmtree(moved, ignore_errors=True)
    return None


def _open(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=30)
