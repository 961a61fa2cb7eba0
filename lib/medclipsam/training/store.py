"""The networks that a workspace has trained, with their history.

networks/split.json                  how validation patients are drawn
networks/NAME/                       versions of one network, see `medclipsam.base.versions`
networks/NAME/0001/                  one of them: plan.json, ensemble.safetensors, network.json, report, curve
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError, OptionError
from medclipsam.base.files import PRIVATE, write_json
from medclipsam.base.locks import locked
from medclipsam.base.versions import VersionStore
from medclipsam.training.compare import Status
from medclipsam.training.names import DEFAULT_NAME, checked_network_name, is_network_name
from medclipsam.training.split import Split

# What a network cannot be used without.
NETWORK_FILES = ("plan.json", "ensemble.safetensors")
_ABOUT, _SPLIT = "network.json", "split.json"


class UnknownNetworkError(InputError):
    """There is no such network."""


@dataclass(frozen=True)
class Network:
    """One trained network.

    Attributes
    ----------
    folder : Path
        Its folder.
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
        """Return it JSON-able, without its folder."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


class NetworkStore:
    """The networks of a workspace.

    Parameters
    ----------
    folder : Path
        Created when something is first written. Several processes may use it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def split(self, default: Split | None = None) -> Split:
        """Return how validation patients are drawn, which is stored the first time.

        Raises
        ------
        InputError
            If `default` is given and differs from what was kept: images that were trained on would be validated with.
        """
        file = self.folder / _SPLIT
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / ".lock"):
            try:
                kept = Split(**json.loads(file.read_text()))
            except FileNotFoundError:
                kept = default or Split()
                write_json(file, kept.to_dict(), mode=PRIVATE)
            except (ValueError, TypeError, OptionError):
                raise InputError(f"{file} cannot be read; it states which images are used for validation.") from None
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
        named = (path.name for path in self.folder.iterdir() if is_network_name(path.name) and path.is_dir())
        return sorted(name for name in named if self._versions(name).versions())

    def history(self, name: str = DEFAULT_NAME) -> list[Network]:
        """Return all networks of a name, oldest first."""
        return [self.get(name, version) for version in self._versions(name).versions()]

    def events(self, name: str = DEFAULT_NAME) -> list[dict[str, Any]]:
        """Return the recorded changes of a name's networks, oldest first."""
        return self._versions(name).events()

    def get(self, name: str, version: int) -> Network:
        """Return a network.

        Raises
        ------
        UnknownNetworkError
            If there is none of that version.
        """
        place = self._versions(name).folder_of(int(version))
        try:
            about = json.loads((place / _ABOUT).read_text())
            return Network(folder=place, **about)
        except FileNotFoundError:
            raise UnknownNetworkError(f"There is no version {version} of {name!r}.") from None
        except (ValueError, TypeError):
            raise InputError(f"{place / _ABOUT} does not describe a network.") from None

    def current(self, name: str = DEFAULT_NAME) -> Network | None:
        """Return the network that is served, None until one is published."""
        version = self._versions(name).current_version()
        return None if version is None else self.get(name, version)

    def newest(self, name: str = DEFAULT_NAME, status: Status = "unvalidated") -> Network | None:
        """Return the latest network of a status, None where there is none."""
        return next((each for each in reversed(self.history(name)) if each.status == status), None)

    def work(self, name: str, digest: str) -> Path:
        """Return the folder in which a training keeps its state; what trainings on other data left is removed."""
        place = self._versions(name).work_folder() / digest[:16]
        for other in place.parent.iterdir():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        place.mkdir(exist_ok=True, mode=0o700)
        return place

    def forget_work(self, name: str) -> None:
        """Remove what trainings have left behind."""
        shutil.rmtree(self._versions(name).work_folder(), ignore_errors=True)

    def add(self, made: Path, about: Mapping[str, Any], *, expected: int | None = None) -> Network | None:
        """Store a network, and let it be served where its status is `published`.

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
        versions = self._versions(name)

        def describe(version: int, _: Path) -> None:
            write_json(made / _ABOUT, {**about, "version": version, "created": time.time()}, mode=PRIVATE)

        with versions.changing():
            if versions.current_version() != expected:
                return None
            version = versions.add(made, describe)
            network = self.get(name, version)
            reason = {"reason": network.reason}
            if network.status == "published":
                versions.set_current(version, network.status, reason)
            else:
                versions.record(network.status, version, reason)
        return network

    def publish(self, name: str, version: int, reason: str) -> Network:
        """Let a network be served, whatever its status was."""
        network = self.get(name, version)
        versions = self._versions(name)
        with versions.changing():
            versions.set_current(version, "published", {"reason": reason})
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
        versions = self._versions(name)
        with versions.changing():
            current = versions.current_version()
            served = {int(event["version"]) for event in versions.events() if event.get("event") == "published"}
            if version is None:
                version = versions.previous(served)
                if version is None:
                    raise InputError(f"There is no network {name!r} to go back to.")
            network = self.get(name, version)
            if version not in served:
                raise InputError(f"Version {version} of {name!r} is {network.status} and was never served.")
            if version == current:
                raise InputError(f"Version {version} of {name!r} is the one that is served.")
            versions.set_current(version, "rolled back", {"reason": f"from version {current}"})
        return network

    def _versions(self, name: str) -> VersionStore:
        place = self.folder / checked_network_name(name)
        return VersionStore(place, remedy="choose one with `medclipsam train publish`")
