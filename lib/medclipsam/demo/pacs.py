"""A PACS to try the server on: Orthanc on this machine alone, with phantoms and pydicom's own files in it.

`python -m medclipsam.demo.pacs FOLDER [--port PORT] [--n N] [-- options of medclipsam serve]`
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType, TracebackType

import psutil
import requests
from pydicom.data import get_testdata_file

from medclipsam.base.errors import InputError
from medclipsam.demo.dicom import DicomPhantom, phantom_series

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PACKAGES = "apt-get install orthanc orthanc-dicomweb gcc libc6-dev"
# Images inside the installed pydicom, in several transfer syntaxes, published with it for its documentation and tests.
PYDICOM_FILES = (
    "CT_small.dcm",
    "MR_small.dcm",
    "examples_jpeg2k.dcm",
    "examples_rgb_color.dcm",
    "examples_palette.dcm",
    "examples_ybr_color.dcm",
    "693_J2KI.dcm",
)
_START_SECONDS = 60.0


class Orthanc:
    """An Orthanc process that listens at 127.0.0.1 only, asks for a password, and keeps what it holds in a folder.

    Parameters
    ----------
    folder : Path
        Where it keeps its configuration and files; made if needed.
    port : int
        0 takes a free one.

    Attributes
    ----------
    url : str
        Root of its DICOMweb service.
    user, password : str
        Whom it lets in.

    Raises
    ------
    InputError
        If a program that it needs is not installed, the port is taken, or it does not start.

    Notes
    -----
    Debian's Orthanc 1.10 knows no address to listen at and takes all of the machine's. It is started with a small
    library before it that puts 127.0.0.1 in their place, and ended at once should it listen anywhere else.
    """

    user = "medclipsam"

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder.absolute()
        self.password = secrets.token_urlsafe(18)
        self._program = _programs()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._library = _loopback_library(self.folder)
        self.port = port or _free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the process, again where it was stopped, and wait until it answers."""
        _check_port(self.port)
        configuration = self.folder / "orthanc.json"
        configuration.touch(0o600)
        configuration.write_text(json.dumps(self._configuration(), indent=2))
        environment = {**os.environ, "LD_PRELOAD": str(self._library)}
        with (self.folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, str(configuration)], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        try:
            self._wait(self._process)
            self._check_listening(self._process)
        except BaseException:
            self.stop()
            raise

    def session(self) -> requests.Session:
        """Return a session with its user and password."""
        session = requests.Session()
        session.trust_env = False
        session.auth = (self.user, self.password)
        return session

    def store(self, contents: Iterable[bytes]) -> None:
        """Store DICOM files; one that is there is left as it is.

        Raises
        ------
        InputError
            If one is refused.
        """
        with self.session() as session:
            for content in contents:
                answer = session.post(f"{self.root}/instances", data=content, timeout=60)
                if not answer.ok:
                    raise InputError(f"Orthanc refused a DICOM file ({answer.status_code} {answer.reason}).")

    def stop(self) -> None:
        """End the process; what it holds stays in its folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configuration(self) -> dict[str, object]:
        return {
            "Name": "medclipsam",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(DICOMWEB_PLUGIN)],
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {self.user: self.password},
            "WebDavEnabled": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        }

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + _START_SECONDS
        with self.session() as session:
            while time.monotonic() < end:
                if process.poll() is not None:
                    break
                try:
                    if session.get(f"{self.url}/studies", params={"limit": "1"}, timeout=5).ok:
                        return
                except requests.RequestException:
                    pass
                time.sleep(0.1)
        raise InputError(f"Orthanc did not start; {self.folder / 'orthanc.log'} says why.")

    def _check_listening(self, process: subprocess.Popen[bytes]) -> None:
        listening = [each for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"]
        elsewhere = [each.laddr.ip for each in listening if each.laddr.ip != "127.0.0.1"]
        if elsewhere or not listening:
            raise InputError(
                f"Orthanc listens at {', '.join(elsewhere) or 'no address'}, not at 127.0.0.1; it was ended."
            )


def load(pacs: Orthanc, phantoms: Iterable[DicomPhantom]) -> None:
    """Store phantoms and pydicom's own images."""
    for phantom in phantoms:
        pacs.store(phantom.contents())
    found = (get_testdata_file(name, download=False) for name in PYDICOM_FILES)
    pacs.store(Path(str(path)).read_bytes() for path in found if path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: Orthanc, loaded, and the server on it, until told to stop; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m medclipsam.demo.pacs",
        description="A PACS with the server on it.",
        epilog="Options after -- are those of `medclipsam serve`.",
    )
    parser.add_argument("folder", type=Path, help="where Orthanc and the server keep their files")
    parser.add_argument("--n", type=int, default=2, help="phantoms of each kind (default 2)")
    parser.add_argument("--port", type=int, default=8000, help="of the server (default 8000)")
    parser.add_argument("--pacs-port", type=int, default=8042, help="of Orthanc (default 8042)")
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if "--" in given else len(given)
    chosen = parser.parse_args(given[:end])
    signal.signal(signal.SIGTERM, _leave)
    try:
        with Orthanc(chosen.folder / "orthanc", chosen.pacs_port) as pacs:
            sys.stdout.write("== Drawing phantoms and storing them in Orthanc\n")
            sys.stdout.flush()
            load(pacs, phantom_series(chosen.n))
            user = f"user {pacs.user}, password in {pacs.folder / 'orthanc.json'}"
            sys.stdout.write(f"== Orthanc is at {pacs.root} ({user}), for this machine only\n")
            sys.stdout.flush()
            return _serve(pacs, chosen.folder / "workspace", chosen.port, given[end + 1 :])
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 0


def _serve(pacs: Orthanc, workspace: Path, port: int, options: list[str]) -> int:
    command = [sys.executable, "-m", "medclipsam", "serve", "--studies", pacs.url, "--workspace", str(workspace)]
    credentials = {"MONAI_LABEL_DICOMWEB_USERNAME": pacs.user, "MONAI_LABEL_DICOMWEB_PASSWORD": pacs.password}
    server = subprocess.Popen([*command, "--port", str(port), *options], env={**os.environ, **credentials})
    try:
        return server.wait()
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait(30)


def _programs() -> str:
    """Return Orthanc's path.

    Raises
    ------
    InputError
        If a program is missing, with what brings it.
    """
    # Debian puts it where only root's PATH leads
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None or not DICOMWEB_PLUGIN.is_file() or shutil.which("cc") is None:
        raise InputError(f"The demo PACS needs Orthanc, its DICOMweb plugin and a C compiler: {PACKAGES}")
    return program


def _loopback_library(folder: Path) -> Path:
    source, library = Path(__file__).with_name("loopback.c"), folder / "loopback.so"
    made = subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise InputError(f"{source.name} cannot be compiled; the C compiler needs its headers: {PACKAGES}")
    return library


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"Port {port} cannot be used for Orthanc: {error.strerror}.") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
