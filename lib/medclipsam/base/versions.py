"""Numbered versions in a folder: one of them is current, and every change is recorded.

0001/             a version; it appears under its number only when complete, and is not changed afterwards
current.json      the number of the version in use
history.jsonl     one line for each change
.work/            what is being made
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.files import PRIVATE, write_json
from medclipsam.base.locks import locked

_CURRENT, _HISTORY, _WORK, _LOCK = "current.json", "history.jsonl", ".work", ".lock"
_NUMBER = re.compile(r"\d{4,}")


class VersionStore:
    """Numbered versions in a folder.

    Parameters
    ----------
    folder : Path
        The folder; created when something is first written. Only its owner may read what is in it.
    remedy : str
        What to do where `current.json` is damaged: the end of a sentence.

    Notes
    -----
    Several processes may use one folder: whatever changes the current version does so within `changing`, and readers
    see the state before or after it.
    """

    def __init__(self, folder: Path, *, remedy: str) -> None:
        self.folder = folder
        self._remedy = remedy

    def versions(self) -> list[int]:
        """Return the numbers of all versions, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if _NUMBER.fullmatch(path.name))

    def folder_of(self, version: int) -> Path:
        """Return the folder of a version, whether or not it exists."""
        return self.folder / f"{version:04d}"

    def current_version(self) -> int | None:
        """Return the number of the version in use; None where none is.

        Raises
        ------
        InputError
            If `current.json` is damaged.
        """
        file = self.folder / _CURRENT
        try:
            version = json.loads(file.read_text(encoding="utf-8"))["version"]
            return None if version is None else int(version)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{file} does not name the current version; {self._remedy}.") from None

    def events(self) -> list[dict[str, Any]]:
        """Return the recorded changes, oldest first, each with `time` (Unix), `event` and `version`."""
        try:
            lines = (self.folder / _HISTORY).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the end of a line that was cut off
                found.append(json.loads(line))
        return found

    def work_folder(self) -> Path:
        """Return the folder, on the same disk, for what is being made; it is created."""
        place = self.folder / _WORK
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other processes from changing anything while the block runs."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / _LOCK):
            yield

    def add(self, made: Path, complete: Callable[[int, Path], object]) -> int:
        """Move a folder into the store under the next number; call it within `changing`.

        Parameters
        ----------
        made : Path
            The folder, on the same disk.
        complete : callable
            Called with the number and the folder that it becomes, before it is moved.

        Returns
        -------
        int
            The number.
        """
        version = max(self.versions(), default=0) + 1
        place = self.folder_of(version)
        complete(version, place)
        _make_private(made)
        os.rename(made, place)
        _flush_folder(self.folder)
        return version

    def set_current(self, version: int | None, event: str, about: Mapping[str, Any]) -> None:
        """Change which version is current, and record it; call it within `changing`.

        Parameters
        ----------
        version : int or None
            The number; None for none.
        event : str
            What the record calls the change.
        about : mapping
            What it adds to the record.
        """
        write_json(self.folder / _CURRENT, {"version": version}, mode=PRIVATE)
        _flush_folder(self.folder)
        self.record(event, version, about)

    def record(self, event: str, version: int | None, about: Mapping[str, Any]) -> None:
        """Add a line to the history; call it within `changing`."""
        line = json.dumps({"time": time.time(), "event": event, "version": version, **about}) + "\n"
        handle = os.open(self.folder / _HISTORY, os.O_CREAT | os.O_RDWR | os.O_APPEND, PRIVATE)
        with open(handle, "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if end and file.read(1) != b"\n":  # a line was cut off
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def previous(self, versions: Iterable[int]) -> int | None:
        """Return the highest of some versions below the current one; None where there is none.

        Going back twice goes further back, as with "undo", and not forth again.
        """
        current = self.current_version()
        return None if current is None else max((each for each in versions if each < current), default=None)


def _make_private(folder: Path) -> None:
    """Let only the owner read a folder, and write its files to the disk before it gets its name."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else PRIVATE)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
