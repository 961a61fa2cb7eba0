"""Published weights brought to this machine, when they are asked for."""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

from medclipsam import __version__
from medclipsam.base.errors import WeightsError
from medclipsam.base.files import atomic_write, file_sha256, write_json
from medclipsam.base.progress import ProgressBar
from medclipsam.weights.hashes import MANIFEST, cached_sha256, checked_sha256, expected_hashes, manifest_of, read_json
from medclipsam.weights.listing import megabytes
from medclipsam.weights.registry import HUB, PublishedWeights, WeightFile, published_weights
from medclipsam.weights.resolution import how_to_get, single_names

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def fetch(name: str, progress: bool = True) -> list[Path]:
    """Fetch published weights into `weights_home()`.

    Files that are there already and pass their check are kept; a file is written under a temporary name and only takes
    its own once it is complete and its hash is right.

    Parameters
    ----------
    name : str
        A name of `REGISTRY`, or two joined by "+".
    progress : bool
        Whether to show a progress bar on standard error.

    Returns
    -------
    list of pathlib.Path
        The folders of the weights.

    Raises
    ------
    WeightsError
        If the name is not a published one, the disk has no room, the server does not answer or answers something else,
        or the hash is wrong. Nothing half is left behind.
    """
    return [_fetch_one(published_weights(half), progress) for half in single_names(name)]


def _fetch_one(published: PublishedWeights, progress: bool) -> Path:
    folder = published.folder
    if published.in_package:
        return folder
    expected = expected_hashes(published)
    if published.carrier is not None:
        if published.missing():
            raise WeightsError(how_to_get([published]))
        for file in published.files:
            checked_sha256(folder / file.name, expected.get(file.name))
        return folder
    wanted = [file for file in published.files if not _is_good(folder / file.name, expected.get(file.name))]
    if not wanted:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(folder).free
    except OSError as error:
        raise WeightsError(f"The weights' folder {folder} cannot be made: {error.strerror or error}.") from error
    needed = sum(file.size for file in wanted)
    if needed > room:
        raise WeightsError(
            f"The disk of {folder} has room for {megabytes(room)}; {published.name!r} needs {megabytes(needed)} "
            f"more: free some, or name a folder on another disk with MEDCLIPSAM_WEIGHTS."
        )
    for file in wanted:
        sha256 = _download(published, file, progress)
        manifest = manifest_of(folder)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest[file.name] = {"url": _address(file), "sha256": sha256, "fetched": now}
        try:
            write_json(folder / MANIFEST, manifest)
        except OSError as error:
            raise WeightsError(f"{folder / MANIFEST} cannot be written: {error.strerror or error}.") from error
    return folder


def _download(published: PublishedWeights, file: WeightFile, progress: bool) -> str:
    """Fetch one file, check it and put it into its place; return its hash."""
    # they take a third of a second to import, and only this function needs them
    import pooch
    import requests

    url = _address(file)
    failed = f"{file.name} of {published.name!r} cannot be fetched from {url}: "
    offline = f"; where there is no internet, bring the file and put it into {published.folder}."
    bar = ProgressBar(
        total=file.size, unit="B", unit_scale=True, desc=file.name, show=progress and file.size > 0, leave=True
    )
    get = pooch.HTTPDownloader(
        progressbar=bar, chunk_size=_CHUNK, timeout=_TIMEOUT, headers={"User-Agent": f"medclipsam/{__version__}"}
    )
    try:
        with bar, atomic_write(published.folder / file.name) as partial:
            get(url, str(partial), None)
            sha256 = file_sha256(partial)
            if file.sha256 and sha256 != file.sha256:
                raise WeightsError(f"{failed}what came has sha256 {sha256}, the published file {file.sha256}{offline}")
            if file.name.endswith(".json"):
                # A login page or an error page answers with 200 too.
                read_json(partial, named=f"{file.name} from {url}")
    except requests.HTTPError as error:
        answer = error.response
        raise WeightsError(f"{failed}the server answered {answer.status_code} {answer.reason}{offline}") from error
    except (requests.RequestException, ValueError) as error:
        raise WeightsError(f"{failed}{error}{offline}") from error
    except OSError as error:
        raise WeightsError(f"{failed}{error.strerror or error}.") from error
    return sha256


def _address(file: WeightFile) -> str:
    """Return where a file is fetched from; `HF_ENDPOINT` names another hub, as for huggingface_hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return endpoint + file.url.removeprefix(HUB) if endpoint and file.url.startswith(HUB) else file.url


def _is_good(path: Path, expected: str | None) -> bool:
    return path.is_file() and (expected is None or cached_sha256(path) == expected)
