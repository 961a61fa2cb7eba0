"""The fine-tuned CLIPs of a workspace, in its folder `finetuned` (see `medclipsam.base.versions`).

A version holds weights that are better than those before them, as `medclipsam.finetune.result` writes them. Where no
version is current, the server's own weights are in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.base.versions import VersionStore
from medclipsam.weights import relocate_text_config


class ClipStore(VersionStore):
    """The fine-tuned CLIPs of a workspace.

    Parameters
    ----------
    folder : Path
        Created when something is first written. Several processes may use it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, remedy="remove it to use the server's own weights")

    def current(self) -> Path | None:
        """Return the folder of the weights in use, None for the server's own.

        Raises
        ------
        InputError
            If `current.json` is damaged.
        """
        version = self.current_version()
        return None if version is None else self.folder_of(version)

    def publish(self, made: Path, about: Mapping[str, Any]) -> int:
        """Store weights and use them.

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
        with self.changing():
            version = self.add(made, lambda _, place: relocate_text_config(made, place))
            self.set_current(version, "published", about)
        return version

    def refuse(self, about: Mapping[str, Any]) -> None:
        """Record that weights were made and not used."""
        with self.changing():
            self.record("refused", None, about)

    def rollback(self, version: int | None = None) -> int | None:
        """Use earlier weights again.

        Parameters
        ----------
        version : int, optional
            0 for the server's own; by default those that were used before the current ones.

        Returns
        -------
        int or None
            Their number, None for the server's own.

        Raises
        ------
        InputError
            If there are none.
        """
        with self.changing():
            current, known = self.current_version(), [0, *self.versions()]
            if version is None:
                version = self.previous(known)
                if version is None:
                    raise InputError("The server's own weights are in use; there are none to go back to.")
            if version not in known:
                allowed = ", ".join(map(str, known))
                raise InputError(f"There are no fine-tuned weights of the number {version}; allowed: {allowed}.")
            target = version or None
            if target == current:
                raise InputError("Those weights are in use already.")
            self.set_current(target, "rolled back", {"from": current})
        return target
