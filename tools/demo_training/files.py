"""Writing of demo weights: safetensors in fp16 and a JSON file beside it, each whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_weights(
    folder: Path, name: str, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, Any]:
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
        JSON-able architecture, defaults and provenance; the provenance gets the weights' sha256, which they are held to
        when they are loaded.

    Returns
    -------
    dict
        The configuration as it was written.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    half = {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in state.items()
    }
    content = save(half)
    provenance = {**config.get("provenance", {}), "sha256": hashlib.sha256(content).hexdigest()}
    written = {**config, "provenance": provenance}
    _replace(folder / f"{name}.safetensors", content)
    _replace(folder / f"{name}.json", (json.dumps(written, indent=1) + "\n").encode())
    return written


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
