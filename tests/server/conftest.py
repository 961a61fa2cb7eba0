"""A stand-in for the pipeline, so that the server's own work is tested in milliseconds."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.base.options import ZeroShotOptions
from medclipsam.pipeline.zero_shot import ZeroShot, ZeroShotResult
from medclipsam.sam import MaskResult
from medclipsam.server.api.access import Access
from medclipsam.server.api.asgi import create_app
from medclipsam.targets import TargetSet, assign_labels, parse_prompt
from medclipsam.training.collect import read_studies
from medclipsam.training.run import train_network
from medclipsam.training.settings import Request
from medclipsam.training.split import Split
from medclipsam.training.store import NetworkStore


class Gate:
    """Holds requests for "slow" things until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def pass_through(self, progress: Any, cancelled: Any) -> None:
        self.entered.release()
        while not self.open.wait(0.01):
            if progress is not None:
                progress(0.5, "masks, plane 2 of 3")
            if cancelled is not None and cancelled():
                raise CancelledError("The request was cancelled.")


class BrightSam:
    """Answers every prompt with what is bright."""

    mask_prompts = False
    network = None

    def embed(self, plane: np.ndarray) -> np.ndarray:
        return plane[..., 0] > 128

    def decode(self, embedding: np.ndarray, *prompts: Any, **more: Any) -> MaskResult:
        return MaskResult(embedding, 0.9, embedding.astype(np.float32))


class BrightEye:
    """Embeds a plane by its mean and its highest brightness."""

    identity = "1" * 64

    def preprocess(self, plane: np.ndarray) -> tuple[torch.Tensor, None]:
        return torch.tensor([1 + plane.mean(), 1 + plane.max()], dtype=torch.float32), None

    def encode_images(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(inputs, dim=-1)


class BrightPixels:
    """Finds every target where the image is bright; refuses what the real pipeline refuses."""

    def __init__(self, targets: TargetSet, gate: Gate) -> None:
        self.targets = targets
        self.gate = gate
        self.forgotten = 0
        self.asked: list[tuple[str, ZeroShotOptions]] = []
        self.sam = BrightSam()
        self.encoder = BrightEye()
        self.weights = {"sam": {"name": "bright", "sha256": "0" * 64}}

    def forget_images(self) -> None:
        self.forgotten += 1

    def presence(self, image: Any, text: str, options: ZeroShotOptions, **more: Any) -> dict[str, tuple[float, float]]:
        brightest = float(image.plane(0).max()) / 255
        return {target.name: (brightest, 0.5) for target in parse_prompt(text, image.modality, self.targets)}

    def segment(
        self, image: Any, text: str, options: ZeroShotOptions, progress: Any = None, cancelled: Any = None, **more: Any
    ) -> ZeroShotResult:
        self.asked.append((text, options))
        if text == "explode":
            raise InputError("The text 'explode' is refused.")
        if text == "huge":
            raise MemoryError("Unable to allocate 3 TiB")
        if text == "a bug":
            raise ZeroDivisionError("John^Doe")
        if text.startswith("slow"):
            self.gate.pass_through(progress, cancelled)
        names = assign_labels(parse_prompt(text, image.modality, self.targets))
        for index in range(image.n_planes):
            if more.get("keep_partial") is not None:
                for name in names:
                    more["keep_partial"](name, index, image.plane(index)[..., 0] > 128)
        planes = np.stack([image.plane(index)[..., 0] for index in range(image.n_planes)])
        # every target is where it is bright; the first lies on top of the others
        labels, *beneath = (np.where(planes > 128, value, 0).astype(np.uint8) for value in names.values())
        return ZeroShotResult(
            labels=labels,
            beneath=np.array(beneath, np.uint8).reshape(-1, *labels.shape),
            label_names=names,
            targets=[],
            text=text,
            options=options.to_dict(),
            weights={"score": float("nan"), "size": np.int64(3)},
            image=image.describe(),
            seconds={"total": 0.0},
        )


class Loaded(list[BrightPixels]):
    """The pipelines that were loaded, and with what."""

    arguments: list[dict[str, Any]]
    gate: Gate


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Replace `ZeroShot.load`; returns the pipelines that were loaded since."""
    pipelines = Loaded()
    pipelines.arguments = []
    pipelines.gate = Gate()

    def load(weights: str = "demo", *, device: Any = "cpu", targets: TargetSet | None = None) -> BrightPixels:
        pipelines.arguments.append({"weights": weights, "device": device})
        pipelines.append(BrightPixels(targets or TargetSet.load(), pipelines.gate))
        return pipelines[-1]

    monkeypatch.setattr(ZeroShot, "load", load)
    return pipelines


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep workspaces that no test names out of the user's own folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [40, 60] with a bright box in rows 10..19 and columns 30..49."""
    pixels = np.full((40, 60), 20, dtype=np.uint8)
    pixels[10:20, 30:50] = 220
    return pixels


@pytest.fixture
def studies(tmp_path: Path, picture: np.ndarray, write_radiograph: Callable[[np.ndarray, Path], None]) -> Path:
    """A folder with a PNG, a NIfTI volume, a DICOM radiograph and a file that holds no numbers."""
    import SimpleITK
    from PIL import Image

    folder = tmp_path / "studies"
    folder.mkdir()
    Image.fromarray(picture).save(folder / "chest.png")
    volume = SimpleITK.GetImageFromArray(np.stack([picture, picture[::-1], picture]))
    volume.SetSpacing((0.7, 0.8, 2.5))
    volume.SetOrigin((-10.0, 20.0, 5.0))
    SimpleITK.WriteImage(volume, folder / "stack.nii.gz")
    write_radiograph(picture, folder / "film.dcm")
    nothing = SimpleITK.GetImageFromArray(np.full((2, 4, 4), np.nan, np.float32))
    SimpleITK.WriteImage(nothing, folder / "broken.nii.gz")
    return folder


@pytest.fixture
def live() -> Iterator[Callable[..., str]]:
    """Serve an application over a socket of this machine, as `medclipsam serve` does; returns its URL."""
    import uvicorn

    from medclipsam.server.api.protocol import BoundedProtocol

    running: list[tuple[Any, threading.Thread]] = []

    def run(app: Any, protocol: Any = BoundedProtocol, lifespan: Any = "on") -> str:
        settings: dict[str, Any] = {"http": protocol, "ws": "none", "log_config": None, "lifespan": lifespan}
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **settings))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        return f"http://{host}:{port}"

    yield run
    for server, thread in running:
        server.force_exit = server.should_exit = True
        thread.join(30)


MakeApp = Callable[..., Any]


@pytest.fixture
def make_app(tmp_path: Path, studies: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> MakeApp:
    from monailabel.config import settings

    from medclipsam.server.monai_label.app import MedClipSamApp

    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    monkeypatch.setattr("medclipsam.studies.scan.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))

    def make(**conf: str) -> Any:
        app = MedClipSamApp(str(tmp_path / "app"), str(studies), conf)
        app.server_mode(True)
        return app

    return make


@pytest.fixture
def app(make_app: MakeApp) -> Any:
    return make_app(targets="lungs x-ray, breast tumour")


@pytest.fixture
def infer(app: Any) -> Iterator[Callable[..., tuple[np.ndarray, dict[str, Any]]]]:
    import SimpleITK

    files = []

    def run(image: str = "chest", model: str = "text_prompt", **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
        answer = app.infer({"model": model, "image": image, **params})
        files.append(Path(answer["file"]))
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(answer["file"])), answer["params"]

    yield run
    for file in files:
        file.unlink()


SPLIT = Split(seed=4, share=0.35)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_discs: Callable[[Path], Any], tiny: dict[str, Any]) -> Path:
    """A folder with `studies`, and `networks` that hold one published and one unvalidated network."""
    place = tmp_path_factory.mktemp("trained")
    discs = make_discs(place / "studies")
    for number in range(32):
        discs.add(f"i{number:02d}", number, "final")
    discs.add("new", 500, None)
    store = NetworkStore(place / "networks")
    request = Request.from_mapping(tiny)
    first = train_network(lambda: read_studies(discs.folder), TargetSet.load(), store, request, split=SPLIT)
    assert first.status == "published"
    made = store.work("network", "copy") / "made"
    shutil.copytree(first.folder, made)
    about = {**first.to_dict(), "status": "unvalidated", "reason": "Too few images."}
    del about["version"], about["created"]
    assert store.add(made, about, expected=1) is not None
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "place"))


@pytest.fixture
def serve(place: Path, studies: Path, make_app: Callable[..., Any]) -> Iterator[Callable[..., TestClient]]:
    """Serve the copy, or only its studies without `networks`."""
    clients = []

    def run(**conf: str) -> TestClient:
        shutil.rmtree(studies)
        shutil.copytree(place / "studies", studies)
        label_app = make_app(networks=str(place / "networks"), **conf)
        client = TestClient(create_app(label_app, Access(), local=True), base_url="http://127.0.0.1")
        clients.append(client.__enter__())
        return clients[-1]

    yield run
    for client in clients:
        client.__exit__(None, None, None)
