"""Fixtures that several packages share, and the isolation of each test from the others."""

import contextvars
import errno
import functools
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medclipsam.encoders import Fit, PlaneInput, fit_plane
from medclipsam.pipeline.zero_shot import ZeroShot
from medclipsam.sam import MaskResult
from medclipsam.targets import TargetSet

# The models are small, and a server or sub-process often works beside the tests: a second thread would wait for the
# first, which costs several times what it saves.
torch.set_num_threads(1)
# The first server that is started keeps its compiled modules, and the others start in a third of the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The phantoms' pair is many times as fast as the default; tests of the default pair name it.
os.environ.setdefault("MEDCLIPSAM_WEIGHTS_NAME", "demo")

WORDS = (
    "a",
    "an",
    "the",
    "lung",
    "lungs",
    "both",
    "left",
    "right",
    "tumour",
    "breast",
    "brain",
    "heart",
    "on",
    "normal",
)


# Files that take longest, the longest first.
LONG = (
    *("test_training", "test_ohif", "test_viewer", "test_finetuning", "test_hostile", "test_pacs", "test_rounds"),
    *("test_quality", "test_default_pair", "test_simulate", "test_kills", "test_runner", "test_run"),
)
# What the drill has done: subject, what is counted, and the figure.
_TABLE = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = []


@pytest.fixture(scope="session")
def drill_size() -> Callable[[str, int], int]:
    """Return how many cases of a kind there are: the variable DRILL_<KIND>, or a default."""

    def size(kind: str, default: int) -> int:
        return int(os.environ.get(f"DRILL_{kind.upper()}", default))

    return size


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Callable[[str, str, object], None]:
    """Return the function that adds a row to the table: what was done, what is counted, and the figure."""

    def add(subject: str, what: str, figure: object) -> None:
        pytestconfig.stash[_TABLE].append((subject, what, str(figure)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_TABLE]
    if rows:
        terminalreporter.section("drill")
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for subject, what, figure in sorted(rows):
            terminalreporter.write_line(f"{subject:<{widths[0]}}  {what:<{widths[1]}}  {figure:>{widths[2]}}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process works on it alone at the end; skip what needs a CUDA device."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (item.path.parent.name != "e2e", places.get(item.path.stem, len(LONG))))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Run each test in a copy of the context, so that no context variable that it sets reaches the next."""
    if isinstance(item, pytest.Function):
        test = item.obj

        @functools.wraps(test)
        def apart(**fixtures: Any) -> Any:
            return contextvars.copy_context().run(test, **fixtures)

        item.obj = apart
    return (yield)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Begin each test with the same random numbers, and put back what it leaves changed in the process."""
    torch.manual_seed(0)
    random.seed(0)
    environment, folder, path = dict(os.environ), os.getcwd(), list(sys.path)
    os.umask(umask := os.umask(0o077))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    loggers = [logging.getLogger(name) for name in (None, "medclipsam", "monailabel", "uvicorn")]
    logged = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = path
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for logger, (level, propagate, kept) in zip(loggers, logged, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = kept
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def biomedclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in BiomedCLIP's layout and of its size (ViT-B/16 trunk, BERT-base text tower), random weights."""
    return _write_biomedclip(tmp_path_factory.mktemp("biomedclip"), "vit_base_patch16_224", {})


@pytest.fixture(scope="session")
def tiny_biomedclip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a ViT-Ti/16 trunk and a BERT of two narrow layers, for what takes long at BiomedCLIP's size."""
    narrow = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return _write_biomedclip(tmp_path_factory.mktemp("tiny_biomedclip"), "vit_tiny_patch16_224", narrow)


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair in the demo's format: a much smaller CLIP with random weights, and the demo SAM."""
    import shutil

    from safetensors.torch import save_file

    import medclipsam
    from medclipsam.encoders.small_clip import build_small_clip

    folder = tmp_path_factory.mktemp("pair")
    shipped = Path(medclipsam.__file__).parent / "demo" / "weights"
    for name in ("sam.json", "sam.safetensors"):
        shutil.copyfile(shipped / name, folder / name)
    config = json.loads((shipped / "clip.json").read_text())
    small = {"width": 32, "heads": 2, "embed_dim": 32, "stem_channels": 8, "text_width": 32, "text_heads": 2}
    config = {**config, "arch": {**config["arch"], **small}, "image_size": 48, "provenance": {}}
    torch.manual_seed(0)
    model, _ = build_small_clip(config)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "clip.safetensors")
    (folder / "clip.json").write_text(json.dumps(config))
    return folder


def _write_biomedclip(folder: Path, trunk: str, bert: dict[str, int]) -> Path:
    import open_clip
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    BertConfig(vocab_size=30522, **bert).save_pretrained(folder)
    published = {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {
                "timm_model_name": trunk,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 256,
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(published))
    architecture = json.loads(json.dumps(published["model_cfg"]))
    architecture["text_cfg"]["hf_model_name"] = str(folder)
    architecture["text_cfg"]["hf_model_pretrained"] = False
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**architecture)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


class BrightTower:
    """Tokens are patch brightness, the class token their maximum; features turn from (0, 1) to (1, 0) with it."""

    n_blocks, n_prefix_tokens, grid = 4, 1, (16, 16)

    def prefix(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        patches = F.avg_pool2d(x.mean(dim=1, keepdim=True), 4).flatten(1)
        return torch.cat([patches.amax(dim=1, keepdim=True), patches], dim=1)[..., None]

    def suffix(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        return self._feature(tokens[:, 0])

    def patch_features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        return self._feature(tokens[:, 1:])

    def _feature(self, brightness: torch.Tensor) -> torch.Tensor:
        b = brightness.clamp(0, 1)
        return torch.cat([b, (1 - b.square()).sqrt()], dim=-1)


class BrightEncoder:
    """What `ZeroShot` needs of an encoder."""

    name, identity, logit_scale, defaults = "bright", "0" * 64, 20.0, {}  # type: ignore[var-annotated]
    tower = BrightTower()

    def __init__(self) -> None:
        self.planes_seen = 0

    def preprocess(self, plane: np.ndarray, fit: str) -> tuple[torch.Tensor, Fit]:
        return fit_plane(plane, 64, fit)

    def prefix_tokens(self, planes: Sequence[PlaneInput], layer: int) -> torch.Tensor:
        self.planes_seen = max(self.planes_seen, len(planes))
        return self.tower.prefix(torch.stack([plane.tensor for plane in planes]), layer)

    def features(self, tokens: torch.Tensor, layer: int) -> torch.Tensor:
        return self.tower.suffix(tokens, layer)

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.tensor([1.0, 0.0] if "bright" in t else [0.5, 0.75**0.5]) for t in texts])

    def text_prototype(self, captions: Sequence[str]) -> torch.Tensor:
        return F.normalize(self.encode_texts(captions).mean(dim=0), dim=0)


class BoxSam:
    """SAM that takes what is bright in the box, and of a mask only what lies in it."""

    def __init__(self) -> None:
        self.boxes: list[Any] = []
        self.mask_prompts = True
        self.network = None
        self.scores: list[float] = []
        self.blind: set[int] = set()

    def embed(self, plane: np.ndarray) -> np.ndarray:
        return plane

    def decode(
        self,
        embedding: np.ndarray,
        boxes: Any = None,
        points: Any = None,
        labels: Any = None,
        *,
        mask: np.ndarray | None = None,
        voting: str = "single",
    ) -> MaskResult:
        given, mask = mask, np.zeros(embedding.shape[:2], bool)
        self.boxes.append(boxes)
        for x0, y0, x1, y1 in np.asarray(boxes, int):
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        if len(self.boxes) in self.blind:
            mask[:] = False
        if given is not None:
            mask &= given
        score = self.scores.pop(0) if self.scores else 0.9
        return MaskResult(mask & (embedding[..., 0] > 100), score, mask.astype(np.float32))


@pytest.fixture
def pipeline() -> ZeroShot:
    """A pipeline that can be reckoned by hand: text "bright ..." is where the plane is bright."""
    return ZeroShot(BrightEncoder(), BoxSam(), TargetSet.load(), batch_planes=3)  # type: ignore[arg-type]


def _write_radiograph(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W] as a DX DICOM file with a pixel spacing."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    grey = np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 0], dtype=np.uint8)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[path.name, "series"])
    data.StudyInstanceUID = generate_uid(entropy_srcs=[path.name, "study"])
    data.Modality = "DX"
    data.PatientID = data.PatientName = "PHANTOM"
    data.PatientOrientation = ["L", "F"]
    data.PixelSpacing = data.ImagerPixelSpacing = [1.5, 1.5]
    data.PixelSpacingCalibrationType = "GEOMETRY"
    data.PhotometricInterpretation = "MONOCHROME2"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.Rows, data.Columns = grey.shape
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.WindowCenter, data.WindowWidth = 128, 256
    data.PixelData = grey.tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="session")
def write_radiograph() -> Callable[[np.ndarray, Path], None]:
    """Return the function that writes uint8 [H, W] as a DX DICOM file with a pixel spacing of 1.5 mm."""
    return _write_radiograph


def _write_series(pixels: np.ndarray, folder: Path, *, uid: str = "series", start: int = 0) -> Path:
    """Write uint8 [k, H, W] as the CT slices of one series, in names that do not follow their order in space."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(pixels):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid, str(k)])
        data.SeriesInstanceUID = generate_uid(entropy_srcs=[uid])
        data.StudyInstanceUID = generate_uid(entropy_srcs=[uid, "study"])
        data.FrameOfReferenceUID = generate_uid(entropy_srcs=[uid, "frame"])
        data.Modality = "CT"
        data.PatientID = data.PatientName = "PHANTOM"
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = [-10.0, 20.0, 5.0 * k]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [0.8, 0.7]
        data.SliceThickness = 5.0
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PhotometricInterpretation = "MONOCHROME2"
        data.SamplesPerPixel, data.PixelRepresentation = 1, 0
        data.Rows, data.Columns = plane.shape
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit = 7
        data.PixelData = np.ascontiguousarray(plane, dtype=np.uint8).tobytes()
        data.save_as(folder / f"slice{(7 * k + 3) % len(pixels) + start}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="session")
def write_series() -> Callable[..., Path]:
    """Return the function that writes uint8 [k, H, W] as a folder of CT slices 5 mm apart."""
    return _write_series


def _write_phases(pixels: np.ndarray, path: Path, *, told_by: str = "time", uid: str = "phases") -> Path:
    """Write an enhanced MR whose frames are several volumes, position by position.

    Parameters
    ----------
    pixels : ndarray of uint16, shape (phases, positions, rows, columns)
        The first position of each phase is the one at the foot, 2.5 mm below the next.
    path : Path
        The file.
    told_by : {"time", "b", "echo", "dimension"}
        What differs between the phases.
    uid : str
        What the file's UIDs are made of.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

    def item(**elements: Any) -> Dataset:
        made = Dataset()
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        return made

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = EnhancedMRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[uid, "instance"])
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(data, keyword, generate_uid(entropy_srcs=[uid, keyword]))
    data.PatientID, data.PatientName, data.Modality, data.InstanceNumber = uid, "Phantom^Phases", "MR", 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    phases, positions, data.Rows, data.Columns = pixels.shape
    data.NumberOfFrames, data.SamplesPerPixel, data.PhotometricInterpretation = phases * positions, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    pointers = (0x00209057, 0x00189087 if told_by == "dimension" else 0x00209128)
    data.DimensionIndexSequence = [item(DimensionIndexPointer=pointer) for pointer in pointers]
    data.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.7], SliceThickness=2.5)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])],
            PixelValueTransformationSequence=[item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")],
        )
    ]
    frames = []
    for position in range(positions):
        for phase in range(phases):
            content = item(
                StackID="1", InStackPositionNumber=position + 1, DimensionIndexValues=[position + 1, phase + 1]
            )
            if told_by == "time":
                content.TemporalPositionIndex = phase + 1
            # along the normal of the orientation
            place = [-10.0, 20.0 + 2.5 * position * 0.6, 5.0 + 2.5 * position * 0.8]
            frame = item(FrameContentSequence=[content], PlanePositionSequence=[item(ImagePositionPatient=place)])
            if told_by == "b":
                frame.MRDiffusionSequence = [item(DiffusionBValue=500.0 * phase)]
            if told_by == "echo":
                frame.MREchoSequence = [item(EffectiveEchoTime=5.0 * (phase + 1))]
            frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = np.ascontiguousarray(pixels.swapaxes(0, 1)).astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="session")
def write_phases() -> Callable[..., Path]:
    """Return the function that writes an enhanced MR file of several volumes."""
    return _write_phases


def _damaged(content: bytes, chance: random.Random) -> bytes:
    """Flip bits, overwrite bytes and numbers of the header, cut off, cut out or blank a piece.

    Headers lie in the first few hundred bytes, and most of what can go wrong is in them.
    """
    data = bytearray(content)
    size = len(data)
    kind = chance.choice(("flip", "flip", "header", "header", "cut", "blank", "gap", "number"))
    if kind == "flip":
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == "header":
        for _ in range(chance.choice((1, 1, 2, 4))):
            data[chance.randrange(min(size, 700))] = chance.randrange(256)
    elif kind == "cut":
        del data[chance.randrange(size) :]
    elif kind == "blank":
        start = chance.randrange(size)
        data[start : start + 64] = bytes(min(64, size - start))
    elif kind == "gap":
        start, end = sorted((chance.randrange(size), chance.randrange(size)))
        del data[start:end]
    else:
        start = chance.randrange(min(size, 700))
        data[start : start + 4] = chance.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\1\0", b"\0\0\0\x10"))
    return bytes(data)


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes, random.Random], bytes]:
    """Return the function that damages the bytes of a file in one of many ways."""
    return _damaged


DISC_SIDE = 48
DISC = 1  # the label of "breast tumour"

# A training of seconds on one core, and enough for discs.
TINY_TRAINING: dict[str, Any] = {
    "epochs": 6,
    "cycles": 2,
    "keep": 2,
    "iterations": 12,
    "base_filters": 4,
    "max_filters": 16,
    "max_patch": 32,
    "max_side": 48,
    "batch_size": 4,
    "device": "cpu",
}


def draw_disc(seed: int, *, absent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture, uint8 [48, 48], and its mask, uint8 [48, 48] of 0 and `DISC`."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:DISC_SIDE, :DISC_SIDE]
    row, column = rng.uniform(14, DISC_SIDE - 14, 2)
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= rng.uniform(6, 11) ** 2
    if absent:
        inside = np.zeros_like(inside)
    picture = np.clip(rng.normal(70, 15, (DISC_SIDE, DISC_SIDE)) + 110 * inside, 0, 255)
    return picture.astype(np.uint8), inside.astype(np.uint8) * DISC


def evidence(name: str = "breast tumour", **more: Any) -> dict[str, Any]:
    """Return what the server saves with a pseudo-label."""
    target = {"name": name, "label": DISC, "found": True, "presence_score": 0.9, "presence_threshold": 0.5}
    target.update({"sam_score": 0.95, **more})
    return {"model": "text_prompt", "params": {"label_names": {name: DISC}, "targets": [target]}}


class Discs:
    """A studies folder of bright discs on noise, which a tiny network learns in seconds, as the server keeps it."""

    draw = staticmethod(draw_disc)
    evidence = staticmethod(evidence)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, seed: int, kind: str | None, *, info: dict[str, Any] | None = None, **how: Any) -> None:
        """Write an image and, for a kind "final" or "original", its label."""
        picture, mask = draw_disc(seed, **how)
        Image.fromarray(picture).save(self.folder / f"{name}.png")
        if kind is not None:
            self.label(name, mask, kind, info)

    def label(self, name: str, mask: np.ndarray, kind: str, info: dict[str, Any] | None = None) -> Path:
        """Write a label and what is saved with it."""
        place = self.folder / "labels" / kind
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place / f"{name}.png")
        file = self.folder / "datastore_v2.json"
        content = (
            json.loads(file.read_text()) if file.is_file() else {"name": "discs", "description": "", "objects": {}}
        )
        entry = content["objects"].setdefault(name, {"image": {"info": {}}, "labels": {}})
        entry["labels"][kind] = {"ext": ".png", "info": info or {}}
        file.write_text(json.dumps(content))
        return place / f"{name}.png"


@pytest.fixture(scope="session")
def make_discs() -> Callable[[Path], Discs]:
    """Return the function that begins a studies folder of discs."""
    return Discs


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Return options of a training that takes seconds."""
    return dict(TINY_TRAINING)


@pytest.fixture
def hide_patients(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files, without their ends, whose header cannot be read for the patient; a test adds to them."""
    from medclipsam.imaging import dicom

    hidden: set[str] = set()
    origin = dicom._origin

    def read(file: Path) -> Any:
        if file.name.partition(".")[0] in hidden:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return origin(file)

    monkeypatch.setattr(dicom, "_origin", read)
    return hidden
