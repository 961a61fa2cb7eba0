"""The OHIF viewer that `/viewer/` serves: a built one from npm's registry, brought to this machine on request."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medclipsam import __version__
from medclipsam.base.errors import InputError
from medclipsam.base.files import file_sha256
from medclipsam.base.progress import ProgressBar

VERSION = "3.13.2"
URL = f"https://registry.npmjs.org/@ohif/app/-/app-{VERSION}.tgz"
# npm states sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA== for it.
SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
_BYTES = 49_906_651
# Names another folder than the user's data folder.
VARIABLE = "MEDCLIPSAM_VIEWER"
_TIMEOUT = 60  # seconds without a byte
_DIST = "package/dist"
# Two thirds of the package: the ONNX runtime of tools that this project's mode does not offer, and source maps.
_LEFT_OUT_FOLDER, _LEFT_OUT_SUFFIX = "ort", ".map"
# The package is built to be served at "/". Its page says in PUBLIC_URL where it is; a worker's own address says so too.
_ROOT = b'__webpack_require__.p = "/";'
_SERVED_ROOT = b'__webpack_require__.p = self.PUBLIC_URL || new URL(".", self.location.href).href;'


def viewer_home() -> Path:
    """Return the folder that holds viewers: `MEDCLIPSAM_VIEWER`, else one in the user's data folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named)).absolute()
    data = os.environ.get("XDG_DATA_HOME")
    # the XDG specification has a relative XDG_DATA_HOME ignored
    base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "medclipsam" / "viewer"


def installed_viewer() -> Path | None:
    """Return the folder of the viewer's files, or None where it has not been installed."""
    folder = viewer_home() / f"ohif-{VERSION}"
    return folder if (folder / "index.html").is_file() else None


def install_viewer(file: Path | None = None, *, progress: bool = True) -> Path:
    """Bring the viewer into `viewer_home()`; one that is there is kept.

    Parameters
    ----------
    file : Path, optional
        The package as `npm pack @ohif/app@VERSION` writes it; fetched from npm's registry by default.
    progress : bool
        Whether to show a progress bar on standard error.

    Returns
    -------
    Path
        Folder of the viewer's files.

    Raises
    ------
    InputError
        If the package cannot be fetched or read, its SHA-256 is not the pinned one, or the folder cannot be written.
        Nothing half-written is left behind.
    """
    found = installed_viewer()
    if found is not None:
        return found
    home = viewer_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".incoming-") as place:
            package = Path(place, "package.tgz")
            if file is None:
                _download(package, progress)
            else:
                package = file
            _check(package)
            unpacked = Path(place, "dist")
            _unpack(package, unpacked)
            _set_root(unpacked)
            target = home / f"ohif-{VERSION}"
            # what is there has no index.html: a folder that somebody emptied
            shutil.rmtree(target, ignore_errors=True)
            os.replace(unpacked, target)
    except OSError as error:
        raise InputError(f"The viewer's folder {home} cannot be written: {error.strerror or error}.") from error
    return target


def _download(package: Path, progress: bool) -> None:
    # they take a third of a second to import, and only this function needs them
    import pooch
    import requests

    bar = ProgressBar(total=_BYTES, unit="B", unit_scale=True, desc=f"OHIF {VERSION}", show=progress, leave=True)
    get = pooch.HTTPDownloader(
        progressbar=bar, chunk_size=1 << 20, timeout=_TIMEOUT, headers={"User-Agent": f"medclipsam/{__version__}"}
    )
    try:
        with bar:
            get(URL, str(package), None)
    except (requests.RequestException, ValueError) as error:
        raise InputError(
            f"The viewer cannot be fetched from {URL}: {error}. Where there is no internet, run "
            f"`npm pack @ohif/app@{VERSION}` elsewhere and give the file with `medclipsam viewer install --file`."
        ) from error


def _check(package: Path) -> None:
    if not package.is_file():
        raise InputError(f"The viewer's package {package} is not a file.")
    sha256 = file_sha256(package)
    if sha256 != SHA256:
        raise InputError(f"The viewer's package {package.name} has SHA-256 {sha256}; allowed: {SHA256} ({URL}).")


def _unpack(package: Path, folder: Path) -> None:
    folder.mkdir()
    try:
        with tarfile.open(package) as archive:
            archive.extractall(folder, members=_wanted(archive), filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"The viewer's package {package.name} cannot be unpacked: {error}.") from error


def _set_root(folder: Path) -> None:
    """Make scripts and styles load their parts from where the viewer is served."""
    for file in folder.iterdir():
        if file.suffix not in (".js", ".css"):
            continue
        content = file.read_bytes()
        changed = content.replace(_ROOT, _SERVED_ROOT) if file.suffix == ".js" else content.replace(b"url(/", b"url(./")
        if changed != content:
            file.write_bytes(changed)


def _wanted(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of the package's folder dist, with names relative to it."""
    for member in archive:
        path = PurePosixPath(member.name)
        if not (member.isfile() and path.is_relative_to(_DIST)):
            continue
        inner = path.relative_to(_DIST)
        if inner.parts[0] != _LEFT_OUT_FOLDER and inner.suffix != _LEFT_OUT_SUFFIX:
            yield member.replace(name=str(inner), deep=False)
