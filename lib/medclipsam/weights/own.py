"""The user's own weights: recognised by their files, and copied into the weights' folder under a name."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.base.errors import WeightsError
from medclipsam.base.files import write_json
from medclipsam.weights.hashes import read_json
from medclipsam.weights.registry import (
    OPEN_CLIP_CHECKPOINTS,
    OPEN_CLIP_CONFIG,
    PAIRS,
    REGISTRY,
    expand_user,
    weights_home,
)

_SAM_SUFFIXES = (".pth", ".pt", ".safetensors")
# Files are called lite_medsam and medsam_vit_b: the more special name comes first.
_SAM_ARCHS = (
    *("sam2.1_hiera_tiny", "sam2.1_hiera_small", "sam2.1_hiera_base_plus", "sam2.1_hiera_large", "medsam2"),
    *("lite_medsam", "medsam", "vit_h", "vit_l", "vit_b"),
)
# Architectures of CLIPs that a .json beside their .safetensors describes.
DESCRIBED = ("demo", "embedding")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def own_names() -> list[str]:
    """Return the names of the folders in the weights' folder that are not of published weights."""
    home = weights_home()
    folders = sorted(home.iterdir()) if home.is_dir() else []
    named = [each.name for each in folders if each.is_dir() and not each.name.startswith(".")]
    return [name for name in named if name not in REGISTRY]


def own_path(name: str) -> Path:
    """Return the folder or file of the user's own weights, given by name or path.

    Raises
    ------
    WeightsError
        If there is nothing of that name.
    """
    own = weights_home() / name
    if name not in ("", "..") and Path(name).name == name and own.is_dir():
        return own
    path = expand_user(name)
    if name and path.exists():
        return path.absolute()
    hint = f" {name!r} is a pair, {'+'.join(PAIRS[name])}." if name in PAIRS else ""
    raise WeightsError(
        f"There are no weights {name!r}; known: {', '.join((*REGISTRY, *own_names()))}, "
        f"or the path of a folder or file.{hint}"
    )


def recognise(path: Path) -> tuple[str, str | Mapping[str, Any], Path]:
    """Return kind, architecture and the file with the weights of a folder or file of the user's own."""
    if path.is_file():
        if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
            description = description_of(path)
            return (
                ("clip", clip_arch(description), path) if "vocab" in description else ("sam", description["arch"], path)
            )
        arch = next((arch for arch in _SAM_ARCHS if arch in path.stem.lower()), None)
        if arch is None or path.suffix not in _SAM_SUFFIXES:
            raise WeightsError(
                f"The file {path} is not recognised as weights; a SAM checkpoint ends in {', '.join(_SAM_SUFFIXES)} "
                f"and has one of {', '.join(_SAM_ARCHS)} in its name."
            )
        return "sam", arch, path
    if (path / OPEN_CLIP_CONFIG).is_file():
        for name in OPEN_CLIP_CHECKPOINTS:
            if (path / name).is_file():
                return "clip", "open_clip", path / name
        raise WeightsError(f"The folder {path} has {OPEN_CLIP_CONFIG} but no {' or '.join(OPEN_CLIP_CHECKPOINTS)}.")
    try:
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix in _SAM_SUFFIXES]
    except OSError as error:
        raise WeightsError(f"The folder {path} cannot be read: {error.strerror or error}.") from error
    if len(files) != 1:
        raise WeightsError(
            f"The folder {path} is not recognised as weights; allowed: {OPEN_CLIP_CONFIG} with its weights, or "
            f"exactly one file that ends in {', '.join(_SAM_SUFFIXES)} (it has {len(files)})."
        )
    return recognise(files[0])


def clip_arch(description: Mapping[str, Any]) -> str:
    """Return the architecture of a described CLIP: "embedding" or "demo"."""
    return "embedding" if "embedding" in description else "demo"


def description_of(file: Path) -> dict[str, Any]:
    """Return the description beside a file of weights in the demo's format.

    Raises
    ------
    WeightsError
        If it cannot be read, or states no architecture.
    """
    path = file.with_suffix(".json")
    description = read_json(path)
    if not isinstance(description.get("arch"), dict):
        raise WeightsError(f"The description {path} of {file.name} lacks the key 'arch' with the architecture.")
    return description


def stated_hash(file: Path) -> str | None:
    """Return the hash that the description of a file states, if it does."""
    if not file.with_suffix(".json").is_file():
        return None
    provenance = description_of(file).get("provenance")
    return provenance.get("sha256") if isinstance(provenance, dict) else None


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
    path = expand_user(source)
    if not path.exists():
        raise WeightsError(f"There is no folder or file {source} to add.")
    recognise(path)
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
    file = folder / OPEN_CLIP_CONFIG
    if not file.is_file() or not (folder / "config.json").is_file():
        return
    config = read_json(file)
    text = config.get("model_cfg", {}).get("text_cfg", {})
    if Path(str(text.get("hf_model_name", ""))).is_absolute():
        text["hf_model_name"] = text["hf_tokenizer_name"] = str(final)
        write_json(file, config)
