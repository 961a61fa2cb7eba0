"""Writing of demo weights: safetensors in fp16 and a JSON file beside it, each whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_weights(folder: Path, name: str, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Write `<name>.safetensors` (floating-point tensors as fp16) and `<name>.json` into a folder.

    Parameters
    ----------
    folder : pathlib.Path
        Made if needed.
    name : str
        "clip" or "sam".
    state : mapping of str to torch.Tensor
        The model's state.
    config : mapping
        JSON-able architecture, defaults and provenance.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    half = {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in state.items()
    }
    _replace(folder / f"{name}.safetensors", save(half))
    _replace(folder / f"{name}.json", (json.dumps(config, indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
