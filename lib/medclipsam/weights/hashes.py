"""Files of weights checked by their sha256, which is remembered while a file does not change."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from medclipsam.base.errors import WeightsError
from medclipsam.base.files import file_sha256, write_json
from medclipsam.weights.registry import PublishedWeights, in_package, weights_home

MANIFEST = "fetched.json"
_HASHES = ".sha256.json"


def expected_hashes(published: PublishedWeights) -> dict[str, str]:
    """Return the published hashes, and the recorded ones of files that have none."""
    recorded = {name: record["sha256"] for name, record in manifest_of(published.folder).items()}
    return recorded | {file.name: file.sha256 for file in published.files if file.sha256}


def manifest_of(folder: Path) -> dict[str, dict[str, str]]:
    """Return the record of the files that were fetched into a folder: address, sha256 and time of each.

    Raises
    ------
    WeightsError
        If the record is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    manifest = read_json(path)
    if not all(isinstance(record, dict) and isinstance(record.get("sha256"), str) for record in manifest.values()):
        raise WeightsError(f"The record {path} of fetched files is damaged; delete it and fetch the weights again.")
    return manifest


def checked_sha256(path: Path, expected: str | None, *, fresh: bool = False) -> str:
    """Return a file's sha256, as `cached_sha256` does.

    Raises
    ------
    WeightsError
        If the file cannot be read, or another sha256 is expected.
    """
    found = cached_sha256(path, fresh=fresh)
    if expected is not None and found != expected:
        raise WeightsError(
            f"The file {path} has sha256 {found}, but {expected} is expected: it is damaged or another file; delete it "
            f"and fetch or bring it again."
        )
    return found


def cached_sha256(path: Path, *, fresh: bool = False) -> str:
    """Return a file's sha256 as hexadecimal text.

    Hashes are remembered in `weights_home()` and taken from there while size and time of change stay the same.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    fresh : bool
        Whether to compute the hash whatever is remembered.

    Raises
    ------
    WeightsError
        If the file cannot be read.
    """
    try:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        store = weights_home() / _HASHES
        key = str(path.absolute())
        remembered: dict[str, Any] = {}
        # What is remembered only saves time: a store that is missing, damaged or not writable costs nothing more.
        with contextlib.suppress(WeightsError):
            remembered = read_json(store)
        entry = remembered.get(key)
        if (
            not fresh
            and isinstance(entry, dict)
            and entry.get("stamp") == stamp
            and isinstance(entry.get("sha256"), str)
        ):
            return entry["sha256"]
        sha256 = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"The weights file {path} cannot be read: {error.strerror or error}.") from error
    if not in_package(path):
        with contextlib.suppress(OSError):
            store.parent.mkdir(parents=True, exist_ok=True)
            write_json(store, remembered | {key: {"stamp": stamp, "sha256": sha256}})
    return sha256


def read_json(path: Path, *, named: str | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    named : str, optional
        What errors call it; by default its path.

    Raises
    ------
    WeightsError
        If it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{named or path} cannot be read: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{named or path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{named or path} must hold a JSON object.")
    return content
