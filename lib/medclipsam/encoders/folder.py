"""Writing of CLIP folders that load without the network: open_clip's layout, and the demo's."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medclipsam.encoders.encoder import Encoder
from medclipsam.encoders.load import DEFAULT_KEYS, text_folder
from medclipsam.weights.registry import OPEN_CLIP_CHECKPOINTS, OPEN_CLIP_CONFIG

_WEIGHTS, _DEFAULTS = OPEN_CLIP_CHECKPOINTS[0], "medclipsam.json"
# What a tokenizer and a text tower's configuration consist of.
_TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
)


def write_open_clip(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    like: Path,
    defaults: Mapping[str, Any] | None = None,
    *,
    final: Path | None = None,
) -> None:
    """Write an open_clip model folder.

    Parameters
    ----------
    folder : pathlib.Path
        An empty folder.
    state : mapping of str to torch.Tensor
        The model's state.
    like : pathlib.Path
        A folder of the same architecture: its configuration and tokenizer are taken over.
    defaults : mapping, optional
        The weights' own defaults, `medclipsam.json`.
    final : pathlib.Path, optional
        Where the folder will lie; `folder` by default. open_clip looks there for the text tower's configuration.
    """
    from safetensors.torch import save_file

    # Tied tensors would be refused: each gets memory of its own.
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in state.items()}, folder / _WEIGHTS)
    for name in _TEXT_FILES:
        if (like / name).is_file():
            shutil.copyfile(like / name, folder / name)
    config = json.loads((like / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    text = config["model_cfg"].get("text_cfg", {})
    if "hf_model_name" in text:
        shutil.copyfile(text_folder(like, str(text["hf_model_name"])) / "config.json", folder / "config.json")
        # As published it names a repository on the hub, which needs the network at every start.
        text["hf_model_name"] = text["hf_tokenizer_name"] = str((final or folder).absolute())
        text["hf_model_pretrained"] = False
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if defaults:
        (folder / _DEFAULTS).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")


def write_demo(
    folder: Path, encoder: Encoder, like: Path, defaults: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write a CLIP in the demo's format, `clip.safetensors` in float32 and `clip.json`.

    Parameters
    ----------
    folder : pathlib.Path
        An empty folder.
    encoder : Encoder
        The model.
    like : pathlib.Path
        Description of a model of the same architecture.
    defaults : mapping
        The weights' own defaults, in place of those of `like`.
    provenance : mapping
        What made it; the weights' sha256 is added, which they are held to.
    """
    from safetensors.torch import save

    content = save({key: value.detach().cpu().contiguous() for key, value in encoder.model.state_dict().items()})
    described = json.loads(like.read_text(encoding="utf-8"))
    kept = {key: value for key, value in described.items() if key not in DEFAULT_KEYS}
    made = {**provenance, "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "clip.safetensors").write_bytes(content)
    (folder / "clip.json").write_text(
        json.dumps({**kept, **defaults, "provenance": made}, indent=1) + "\n", encoding="utf-8"
    )
