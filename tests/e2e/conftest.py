"""Servers as real processes, and a small folder of phantom studies for them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import requests

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from medclipsam.demo.dicom import DicomPhantom
    from medclipsam.demo.pacs import Orthanc

ROOT = Path(__file__).parents[2]
START_SECONDS = 180
# Without a GPU a viewer draws with SwiftShader.
FLAGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass
class Server:
    """A server process and what is known about it."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    studies: Path
    masks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def infer(self, model: str, image: str, *, output: str = "all", **params: Any) -> requests.Response:
        where = f"{self.url}/infer/{model}"
        return requests.post(
            where, params={"image": image, "output": output}, data={"params": json.dumps(params)}, timeout=300
        )

    def stop(self) -> int:
        """Ask the server to end, and see to it that it and all its children do; returns its exit code."""
        try:
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Phantoms:
    """A folder of studies and the true masks: image id -> structure -> bool [n_planes, H, W] in file order."""

    folder: Path
    masks: dict[str, dict[str, np.ndarray]]


@dataclass
class Tumours:
    """Thirty small ultrasound pictures, each with a breast tumour, of which a server validates with `held`.

    Attributes
    ----------
    truths : dict of str to numpy.ndarray
        The true mask of each image, bool [64, 64].
    training : dict
        Options of a training of seconds.
    """

    truths: dict[str, np.ndarray] = field(default_factory=dict)
    training: dict[str, Any] = field(
        default_factory=lambda: {
            "device": "cpu",
            "epochs": 6,
            "cycles": 2,
            "base_filters": 4,
            "max_filters": 16,
            "max_patch": 48,
            "max_side": 64,
            "batch_size": 4,
        }
    )

    def __post_init__(self) -> None:
        from medclipsam.training.split import Split

        self.split = Split(seed=4, share=0.4)
        self.names = [f"b{number:02d}" for number in range(30)]
        self.held = [name for name in self.names if self.split.holds(f"image:{name}")]

    def draw(self, studies: Path) -> None:
        """Put the pictures in the place of what lies there."""
        from PIL import Image

        from medclipsam.demo.phantoms import make_phantom

        for file in studies.iterdir():
            if file.is_file():
                file.unlink()
        for number, name in enumerate(self.names):
            phantom = make_phantom("US", 900 + number, size=64, pathology=True)
            self.truths[name] = phantom.masks["breast tumour"]
            Image.fromarray(phantom.image).save(studies / f"{name}.png")

    def serve(self, studies: Path, port: int, *more: str) -> list[str]:
        """Return the command that serves them."""
        split = ["--validation-share", str(self.split.share), "--validation-seed", str(self.split.seed)]
        options = ["--studies", str(studies), "--port", str(port), "--targets", "breast tumour", *split, *more]
        return [sys.executable, "-m", "medclipsam", "serve", *options]


@pytest.fixture
def tumours() -> Tumours:
    return Tumours()


@pytest.fixture(scope="session")
def phantoms(
    tmp_path_factory: pytest.TempPathFactory, write_radiograph: Callable[[np.ndarray, Path], None]
) -> Phantoms:
    import SimpleITK
    from PIL import Image
    from pydicom.data import get_testdata_file

    from medclipsam.demo.phantoms import make_phantom, make_volume

    folder = tmp_path_factory.mktemp("phantoms")
    film, breast = make_phantom("XR", 7, size=192), make_phantom("US", 7, size=192, pathology=True)
    Image.fromarray(film.image).save(folder / "film.png")
    Image.fromarray(breast.image).save(folder / "breast.jpg", quality=95)
    write_radiograph(film.image, folder / "radiograph.dcm")
    hounsfield, cuts = make_volume("CT", 3, 6, size=128, raw=True)
    volume = SimpleITK.GetImageFromArray(hounsfield)
    volume.SetSpacing((2.5, 2.5, 30.0))
    volume.SetOrigin((-160.0, -140.0, -90.0))
    SimpleITK.WriteImage(volume, folder / "chest_ct.nii.gz")
    small = get_testdata_file("CT_small.dcm", download=False)
    assert isinstance(small, str)
    shutil.copy(small, folder / "small.dcm")
    (folder / "preview.jpg").write_bytes(b"")
    flat = {name: mask[None] for name, mask in film.masks.items()}
    return Phantoms(
        folder,
        {
            "film": flat,
            "radiograph": flat,
            "breast": {name: mask[None] for name, mask in breast.masks.items()},
            "chest_ct": cuts,
        },
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, phantoms: Phantoms) -> Iterator[Callable[..., Server]]:
    """Start servers on copies of the phantoms, or once more where one was; all end with the module's tests."""
    servers: list[Server] = []

    def run(command: Callable[[Path, int], Sequence[str]], again: Server | None = None, **environment: str) -> Server:
        place = again.log.parent if again else tmp_path_factory.mktemp("server")
        studies = place / "studies"
        if again is None:
            shutil.copytree(phantoms.folder, studies)
        # again at the same address, where windows of browsers wait for it
        port = int(again.url.rpartition(":")[2]) if again else free_port()
        log = place / "output.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command(studies, port)),
                cwd=place,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "XDG_DATA_HOME": str(place / "data"), "OMP_NUM_THREADS": "1", **environment},
            )
        server = Server(f"http://127.0.0.1:{port}", process, log, studies, phantoms.masks)
        servers.append(server)
        _wait(server)
        return server

    try:
        yield run
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.stop()


@pytest.fixture(scope="session")
def pacs_phantoms() -> dict[str, DicomPhantom]:
    """Small phantoms as DICOM series, by name: brain-mri-1, chest-ct-1, chest-xray-1, breast-us-1 ..., film."""
    from medclipsam.demo.dicom import DicomPhantom, phantom_series, projection, xray
    from medclipsam.demo.phantoms import make_phantom

    made = phantom_series(2, size=128, n_planes=8)
    made.append(xray("CR", 5, size=192, name="film"))
    # only its headers are those of a mammogram
    picture = make_phantom("XR", 6, size=192)
    masks = {name: mask[None] for name, mask in picture.masks.items()}
    made.append(DicomPhantom("mammogram", [projection("MG", picture.image, 6)], masks))
    return {phantom.name: phantom for phantom in made}


@pytest.fixture(scope="session")
def several_pictures() -> list[DicomPhantom]:
    """Two ultrasound pictures of one size in one series and two radiographs in another, of one study."""
    from pydicom.uid import generate_uid

    from medclipsam.demo.dicom import DicomPhantom, ultrasound, xray

    whole = ultrasound(71, size=256)
    (first,) = whole.files
    pixels = np.frombuffer(first.PixelData, np.uint8)[: first.Rows * first.Columns * 3]
    pixels = pixels.reshape(first.Rows, first.Columns, 3)
    made: list[DicomPhantom] = []
    for number in range(2):
        cut = np.s_[8 * number : 8 * number + 180, 8 * number : 8 * number + 180]
        data = copy.deepcopy(first)
        data.Rows, data.Columns = 180, 180
        data.PixelData = np.ascontiguousarray(pixels[cut]).tobytes()
        data.SOPInstanceUID = generate_uid(entropy_srcs=[str(first.SOPInstanceUID), str(number)])
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        region = data.SequenceOfUltrasoundRegions[0]
        region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 179
        masks = {name: mask[:, cut[0], cut[1]] for name, mask in whole.masks.items()}
        made.append(DicomPhantom(f"picture-{number}", [data], masks))
    made += [xray("DX", 86 + number, size=192) for number in range(2)]
    for place, picture in enumerate(made):
        data = picture.files[0]
        data.StudyInstanceUID, data.PatientID = first.StudyInstanceUID, first.PatientID
        data.SeriesInstanceUID = made[place - place % 2].files[0].SeriesInstanceUID
        data.SeriesNumber, data.InstanceNumber = place // 2 + 1, place % 2 + 1
    return made


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, pacs_phantoms: dict[str, DicomPhantom]) -> Iterator[Orthanc]:
    """A real Orthanc on a free port of 127.0.0.1 with the phantoms and pydicom's own images, one for a test file."""
    from medclipsam.demo.pacs import Orthanc, load

    with Orthanc(tmp_path_factory.mktemp("orthanc")) as pacs:
        load(pacs, pacs_phantoms.values())
        yield pacs


@pytest.fixture(scope="module")
def pacs_server(start: Callable[..., Server], orthanc: Orthanc) -> Server:
    """`medclipsam serve` on the PACS, with its user and password."""

    def command(studies: Path, port: int) -> Sequence[str]:
        options = ["--studies", orthanc.url, "--port", str(port), "--targets", "lungs x-ray,breast tumour"]
        return [sys.executable, "-m", "medclipsam", "serve", *options]

    credentials = {"MONAI_LABEL_DICOMWEB_USERNAME": orthanc.user, "MONAI_LABEL_DICOMWEB_PASSWORD": orthanc.password}
    return start(command, **credentials)


def _wait(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            pytest.fail(f"The server ended with {server.process.returncode}:\n{server.output()}")
        try:
            # a server that asks for a token answers too
            if requests.get(f"{server.url}/info/", timeout=10).status_code in (200, 401):
                return
        except requests.RequestException:
            pass
        time.sleep(0.3)
    pytest.fail(f"The server did not answer within {START_SECONDS} s:\n{server.output()}")


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    """`medclipsam serve` with two targets."""

    def command(studies: Path, port: int) -> Sequence[str]:
        options = ["--studies", str(studies), "--port", str(port), "--targets", "lungs x-ray,breast tumour"]
        return [sys.executable, "-m", "medclipsam", "serve", *options]

    return start(command)


@pytest.fixture(scope="module")
def stock_server(start: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """MONAI Label's own start command on a copy of the app's folder, since it makes folders there."""
    place = tmp_path_factory.mktemp("stock")
    shutil.copytree(ROOT / "apps" / "medclipsam", place / "medclipsam", ignore=shutil.ignore_patterns("__pycache__"))

    def command(studies: Path, port: int) -> Sequence[str]:
        options = ["--app", str(place / "medclipsam"), "--studies", str(studies), "--port", str(port)]
        conf = ["--host", "127.0.0.1", "--conf", "targets", "lungs x-ray"]
        return [sys.executable, "-m", "monailabel.main", "start_server", *options, *conf]

    return start(command, MONAI_LABEL_SESSION_PATH=str(place / "sessions"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("The browser tests need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()
