"""The networks that a workspace has trained: published whole or not at all, with their history.

    networks/split.json                  how validation patients are drawn
    networks/NAME/0001/                  a network: plan.json, ensemble.safetensors, network.json, report, curve
    networks/NAME/current.json           which of them is served
    networks/NAME/history.jsonl          what happened, a line each

A network's folder appears under its number only when complete, and nothing in it changes afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.files import PRIVATE, write_json
from medclipsam.base.locks import locked
from medclipsam.training.compare import Status
from medclipsam.training.names import DEFAULT_NAME, checked_network_name, is_network_name
from medclipsam.training.split import Split

_NUMBER = re.compile(r"\d{4,}")
# What a network cannot be used without.
NETWORK_FILES = ("plan.json", "ensemble.safetensors")
_ABOUT, _CURRENT, _HISTORY, _SPLIT, _WORK = "network.json", "current.json", "history.jsonl", "split.json", ".work"


class UnknownNetworkError(InputError):
    """There is no such network."""


@dataclass(frozen=True)
class Network:
    """One trained network.

    Attributes
    ----------
    folder : Path
        Where it lies.
    name, version : str, int
        What it is called, and its number among those of the name.
    status : {"published", "unvalidated", "refused"}
    reason : str
        The sentence that says why.
    labels : dict of str to int
        Label name to id in the masks that it draws.
    classes : dict of str to int
        Label name to class index in the network.
    modality : str or None
        The kind of image that it was trained on.
    parent : int or None
        The version that was current when it was trained.
    data : dict
        `hash` of images and labels, and how many there were.
    metrics : dict
        What it scored, see `medclipsam.training.compare`.
    options : dict
        What it was trained with.
    identity : str
        SHA-256 of weights and plan.
    created : float
        Unix time.
    """

    folder: Path
    name: str
    version: int
    status: Status
    reason: str
    labels: dict[str, int]
    classes: dict[str, int]
    modality: str | None = None
    parent: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    identity: str = ""
    created: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-able, without where it lies."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


class NetworkStore:
    """The networks of a workspace.

    Parameters
    ----------
    folder : Path
        Made when something is first written.

    Notes
    -----
    Safe to use from several processes: what changes the current network does so under a lock, and
    readers see the state before or after it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def split(self, default: Split | None = None) -> Split:
        """Return how validation patients are drawn, which is kept once it has been asked for.

        Raises
        ------
        InputError
            If `default` is given and differs from what was kept: images that were trained on would be validated with.
        """
        file = self.folder / _SPLIT
        with self._changing(self.folder):
            try:
                kept = Split(**json.loads(file.read_text()))
            except FileNotFoundError:
                kept = default or Split()
                write_json(file, asdict(kept), mode=PRIVATE)
            except (ValueError, TypeError):
                raise InputError(
                    f"{file} cannot be read; without it nobody knows which images are validated with."
                ) from None
        if default is not None and default != kept:
            raise InputError(
                f"The validation images of this workspace were drawn with share {kept.share:g} and seed {kept.seed}. "
                f"Share {default.share:g} and seed {default.seed} would validate with images that were trained on; "
                "name another workspace for them."
            )
        return kept

    def names(self) -> list[str]:
        """Return the names under which there is a network."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if is_network_name(path.name) and path.is_dir())
        return sorted(path.name for path in named if any(_NUMBER.fullmatch(each.name) for each in path.iterdir()))

    def history(self, name: str = DEFAULT_NAME) -> list[Network]:
        """Return all networks of a name, oldest first."""
        place = self.folder / checked_network_name(name)
        if not place.is_dir():
            return []
        numbers = sorted(int(path.name) for path in place.iterdir() if _NUMBER.fullmatch(path.name))
        return [self.get(name, number) for number in numbers]

    def events(self, name: str = DEFAULT_NAME) -> list[dict[str, Any]]:
        """Return what happened to the networks of a name, oldest first."""
        try:
            lines = (self.folder / checked_network_name(name) / _HISTORY).read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the end of a line that was cut off
                found.append(json.loads(line))
        return found

    def get(self, name: str, version: int) -> Network:
        """Return a network.

        Raises
        ------
        UnknownNetworkError
            If there is none of that version.
        """
        place = self._place(name, version)
        try:
            about = json.loads((place / _ABOUT).read_text())
            return Network(folder=place, **about)
        except FileNotFoundError:
            raise UnknownNetworkError(f"There is no version {version} of {name!r}.") from None
        except (ValueError, TypeError):
            raise InputError(f"{place / _ABOUT} is no description of a network.") from None

    def current(self, name: str = DEFAULT_NAME) -> Network | None:
        """Return the network that is served, None until one is published."""
        version = self._pointer(name)
        return None if version is None else self.get(name, version)

    def newest(self, name: str = DEFAULT_NAME, status: Status = "unvalidated") -> Network | None:
        """Return the latest network of a status, None where there is none."""
        return next((each for each in reversed(self.history(name)) if each.status == status), None)

    def work(self, name: str, digest: str) -> Path:
        """Return the folder in which a training keeps its state; what trainings on other data left is removed."""
        place = self.folder / checked_network_name(name) / _WORK / digest[:16]
        for other in place.parent.iterdir() if place.parent.is_dir() else ():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place

    def forget_work(self, name: str) -> None:
        """Remove what trainings have left behind."""
        shutil.rmtree(self.folder / checked_network_name(name) / _WORK, ignore_errors=True)

    def add(self, made: Path, about: Mapping[str, Any], *, expected: int | None = None) -> Network | None:
        """Take in a network, and let it be served where its status is `published`.

        Parameters
        ----------
        made : Path
            Folder with its files, on the same disk; it becomes the network's.
        about : mapping
            The fields of `Network` but `folder` and `version`; `created` is now.
        expected : int or None
            The version that was current when the status was decided; None for none.

        Returns
        -------
        Network or None
            None, and nothing done, where another is current by now.
        """
        name = checked_network_name(str(about["name"]))
        place = self.folder / name
        with self._changing(place):
            if self._pointer(name) != expected:
                return None
            there = [int(path.name) for path in place.iterdir() if _NUMBER.fullmatch(path.name)]
            version = max(there, default=0) + 1
            write_json(made / _ABOUT, {**about, "version": version, "created": time.time()}, mode=PRIVATE)
            _private(made)
            os.rename(made, self._place(name, version))
            _settle(place)
            network = self.get(name, version)
            if network.status == "published":
                self._point(name, version)
            self._note(name, network.status, version, network.reason)
        return network

    def publish(self, name: str, version: int, reason: str) -> Network:
        """Let a network be served, whatever its status was."""
        network = self.get(name, version)
        with self._changing(self.folder / name):
            self._point(name, version)
            self._note(name, "published", version, reason)
        return network

    def rollback(self, name: str = DEFAULT_NAME, version: int | None = None) -> Network:
        """Serve an earlier network again.

        Parameters
        ----------
        name : str
            Name of the networks.
        version : int, optional
            By default the one that was served before the current one.

        Raises
        ------
        InputError
            If there is none, or it was never served.
        """
        checked_network_name(name)
        with self._changing(self.folder / name):
            current = self._pointer(name)
            served = self._served(name)
            if version is None:
                # as with "undo": back along the trainings, and not to and fro between two of them
                earlier = [each for each in served if current is not None and each < current]
                if not earlier:
                    raise InputError(f"There is no network {name!r} to go back to.")
                version = max(earlier)
            network = self.get(name, version)
            if version not in served:
                raise InputError(f"Version {version} of {name!r} is {network.status} and was never served.")
            if version == current:
                raise InputError(f"Version {version} of {name!r} is the one that is served.")
            self._point(name, version)
            self._note(name, "rolled back", version, f"from version {current}")
        return network

    def _served(self, name: str) -> set[int]:
        return {int(event["version"]) for event in self.events(name) if event.get("event") == "published"}

    def _place(self, name: str, version: int) -> Path:
        return self.folder / checked_network_name(name) / f"{int(version):04d}"

    def _pointer(self, name: str) -> int | None:
        file = self.folder / checked_network_name(name) / _CURRENT
        try:
            return int(json.loads(file.read_text())["version"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{file} does not say which network is served; medclipsam train publish does.") from None

    def _point(self, name: str, version: int) -> None:
        write_json(self.folder / name / _CURRENT, {"version": version}, mode=PRIVATE)
        _settle(self.folder / name)

    def _note(self, name: str, event: str, version: int, reason: str) -> None:
        line = json.dumps({"time": time.time(), "event": event, "version": version, "reason": reason}) + "\n"
        handle = os.open(self.folder / name / _HISTORY, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        with open(handle, "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if end and file.read(1) != b"\n":  # a line was cut off
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _changing(self, place: Path) -> Iterator[None]:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(place / ".lock"):
            yield


def _private(folder: Path) -> None:
    """Let only the owner read a network, and see to it that its files are on the disk before they have a name."""
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _settle(folder)


def _settle(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
