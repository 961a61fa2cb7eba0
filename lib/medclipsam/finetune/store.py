"""The fine-tuned CLIPs of a workspace: which one is used, and the way back.

    finetuned/0001/           weights that beat those before them, as `medclipsam.finetune.result` writes them
    finetuned/current.json    which of them is used; none are the server's own weights
    finetuned/history.jsonl   what happened, a line each

A folder appears under its number only when complete, and nothing in it changes afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.files import PRIVATE, write_json
from medclipsam.base.locks import locked
from medclipsam.weights import relocate_text_config

_CURRENT, _HISTORY = "current.json", "history.jsonl"
_NUMBER = re.compile(r"\d{4,}")


class ClipStore:
    """The fine-tuned CLIPs of a workspace; safe to use from several processes.

    Parameters
    ----------
    folder : Path
        Made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def current(self) -> Path | None:
        """Return the folder of the weights that are used, None for the server's own.

        Raises
        ------
        InputError
            If what says so cannot be read.
        """
        version = self._pointer()
        return None if version is None else self._place(version)

    def versions(self) -> list[int]:
        """Return the numbers of all weights that have been used, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if _NUMBER.fullmatch(path.name))

    def history(self) -> list[dict[str, Any]]:
        """Return what happened, oldest first."""
        try:
            lines = (self.folder / _HISTORY).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the end of a line that was cut off
                found.append(json.loads(line))
        return found

    def work(self) -> Path:
        """Return the folder in which a fine-tuning keeps its state."""
        place = self.folder / ".work"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place

    def publish(self, made: Path, about: Mapping[str, Any]) -> int:
        """Take in weights and use them.

        Parameters
        ----------
        made : Path
            Their folder, on the same disk; it is moved.
        about : mapping
            What the history says of them.

        Returns
        -------
        int
            Their number.
        """
        with self._changing():
            version = max(self.versions(), default=0) + 1
            place = self._place(version)
            relocate_text_config(made, place)
            os.rename(made, place)
            write_json(self.folder / _CURRENT, {"version": version}, mode=PRIVATE)
            self._note("published", version, about)
        return version

    def refuse(self, about: Mapping[str, Any]) -> None:
        """Note that weights were made and not used."""
        with self._changing():
            self._note("refused", None, about)

    def rollback(self, version: int | None = None) -> int | None:
        """Use earlier weights again.

        Parameters
        ----------
        version : int, optional
            0 for the server's own; by default those that were used before the present ones.

        Returns
        -------
        int or None
            Their number, None for the server's own.

        Raises
        ------
        InputError
            If there are none.
        """
        with self._changing():
            current = self._pointer()
            if version is None:
                if current is None:
                    raise InputError("The server's own weights are in use; there are none to go back to.")
                # as with "undo": back along the trainings, and not to and fro between two of them
                version = max((each for each in self.versions() if each < current), default=0)
            if version != 0 and version not in self.versions():
                known = ", ".join(map(str, [0, *self.versions()]))
                raise InputError(f"There are no fine-tuned weights of the number {version}; allowed: {known}.")
            target = version or None
            if target == current:
                raise InputError("Those weights are in use already.")
            write_json(self.folder / _CURRENT, {"version": target}, mode=PRIVATE)
            self._note("rolled back", target, {"from": current})
        return target

    def _place(self, version: int) -> Path:
        return self.folder / f"{version:04d}"

    def _pointer(self) -> int | None:
        file = self.folder / _CURRENT
        try:
            version = json.loads(file.read_text(encoding="utf-8"))["version"]
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{file} does not say which weights are used; remove it to use the server's own."
            ) from None
        return None if version is None else int(version)

    def _note(self, event: str, version: int | None, about: Mapping[str, Any]) -> None:
        line = json.dumps({"time": time.time(), "event": event, "version": version, **about}) + "\n"
        handle = os.open(self.folder / _HISTORY, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / ".lock"):
            yield
