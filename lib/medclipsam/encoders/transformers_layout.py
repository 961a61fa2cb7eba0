"""BiomedCLIP's weights between open_clip's layout and that of transformers, in which fine-tuned ones were published.

The published `pytorch_model.bin` follows transformers' CLIP: a pre-norm vision tower, a BERT as `text_model`, queries,
keys and values apart. Its model code does not load with transformers 5, and is not needed: every tensor has its place
in open_clip's BiomedCLIP. (That code sets the vision tower's layer norms to an epsilon of 1e-12, timm's is 1e-6; the
features differ by about 1e-5.)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from medclipsam.base.errors import InputError, WeightsError
from medclipsam.encoders.folder import write_open_clip

# open_clip -> transformers, each with a weight and mostly a bias.
_MODULES = {
    "visual.head.proj": "visual_projection",
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "text.transformer.embeddings.word_embeddings": "text_model.embeddings.token_embedding",
    "text.transformer.embeddings.position_embeddings": "text_model.embeddings.position_embedding",
    "text.transformer.embeddings.token_type_embeddings": "text_model.embeddings.token_type_embedding",
    "text.transformer.embeddings.LayerNorm": "text_model.embeddings.layer_norm",
    "text.proj.0": "text_projection.fc1",
    "text.proj.2": "text_projection.fc2",
}
_BLOCKS = (
    ("visual.trunk.blocks.", "vision_model.encoder.layers."),
    ("text.transformer.encoder.layer.", "text_model.encoder.layers."),
)
_VISION = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "layer_norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "layer_norm2",
}
_CLS, _POSITIONS = "visual.trunk.cls_token", "visual.trunk.pos_embed"
_HF_CLS, _HF_POSITIONS = "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"
_QKV = ("q_proj", "k_proj", "v_proj")
_KEY = re.compile(r"(.+)\.(weight|bias)")
_LAYER = re.compile(r"(\d+)\.(.+)")
# Where code that trains with open_clip, or in parallel, puts the model.
_WRAPPERS = ("module.", "model.")

State = dict[str, torch.Tensor]


def to_transformers(state: Mapping[str, torch.Tensor]) -> State:
    """Return the state of an open_clip BiomedCLIP in the layout of transformers.

    Raises
    ------
    WeightsError
        If it has a tensor that the layout has no place for.
    """
    result: State = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        if key == _CLS:
            result[_HF_CLS] = value[0, 0]
        elif key == _POSITIONS:
            result[_HF_POSITIONS] = value[0]
        elif key == "logit_scale":
            result[key] = value
        elif found := re.fullmatch(r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key):
            for name, part in zip(_QKV, value.chunk(3), strict=True):
                result[f"vision_model.encoder.layers.{found[1]}.self_attn.{name}.{found[2]}"] = part
        else:
            result[_renamed(key, back=False)] = value
    return result


def from_transformers(state: Mapping[str, torch.Tensor]) -> State:
    """Return the state of a BiomedCLIP in the layout of transformers as open_clip's.

    Raises
    ------
    WeightsError
        If it has a tensor of another layout, or lacks a query, key or value.
    """
    result: State = {}
    parts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        if key == _HF_CLS:
            result[_CLS] = value[None, None]
        elif key == _HF_POSITIONS:
            result[_POSITIONS] = value[None]
        elif key == "logit_scale":
            result[key] = value
        elif found := re.fullmatch(
            r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv]_proj)\.(weight|bias)", key
        ):
            parts.setdefault((found[1], found[3]), {})[found[2]] = value
        else:
            result[_renamed(key, back=True)] = value
    for (layer, kind), three in parts.items():
        if set(three) != set(_QKV):
            raise WeightsError(f"Block {layer} of the vision tower lacks one of {', '.join(_QKV)}.")
        result[f"visual.trunk.blocks.{layer}.attn.qkv.{kind}"] = torch.cat([three[name] for name in _QKV])
    return result


def convert(source: Path, like: Path, folder: Path) -> Path:
    """Make an open_clip folder of a fine-tuned BiomedCLIP's checkpoint.

    Parameters
    ----------
    source : pathlib.Path
        `pytorch_model.bin` or `.safetensors` in the layout of transformers, a folder with one of them, or a checkpoint
        of open_clip's own training code (`.pt`).
    like : pathlib.Path
        BiomedCLIP's folder: its configuration and tokenizer are taken over.
    folder : pathlib.Path
        The new folder; must not be there.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    InputError
        If `folder` is there already or `source` is not.
    WeightsError
        If the checkpoint is damaged, needs a pickle that is not allowed, or does not fit BiomedCLIP.
    """
    from medclipsam.encoders.load import load_folder

    if folder.exists():
        raise InputError(f"{folder} is there already; name another folder.")
    file = _checkpoint(source)
    state = _plain(_read(file))
    if any(key.startswith("text_model.") for key in state):
        state = from_transformers(state)
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(parents=True)
    try:
        write_open_clip(part, state, like, final=folder)
        # Loading compares every tensor's name and shape with the architecture.
        load_folder(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _renamed(key: str, *, back: bool) -> str:
    found = _KEY.fullmatch(key)
    module, kind = (found[1], found[2]) if found else (key, "")
    modules = {new: old for old, new in _MODULES.items()} if back else _MODULES
    if module in modules:
        return f"{modules[module]}.{kind}"
    for (old, new), names in zip(_BLOCKS, (_VISION, _TEXT), strict=True):
        start, goal = (new, old) if back else (old, new)
        inside = _LAYER.fullmatch(module.removeprefix(start)) if module.startswith(start) else None
        if inside:
            known = {there: here for here, there in names.items()} if back else names
            if inside[2] in known:
                return f"{goal}{inside[1]}.{known[inside[2]]}.{kind}"
    raise WeightsError(f"The tensor {key!r} has no place in BiomedCLIP; the weights are of another architecture.")


def _checkpoint(source: Path) -> Path:
    if source.is_dir():
        for name in ("pytorch_model.bin", "model.safetensors"):
            if (source / name).is_file():
                return source / name
    if not source.is_file():
        raise InputError(
            f"{source} is no checkpoint; allowed: a file, or a folder with pytorch_model.bin or model.safetensors."
        )
    return source


def _read(file: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"The checkpoint {file} cannot be read: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:  # torch raises the unpickler's own errors
        raise WeightsError(
            f"The checkpoint {file} holds more than tensors, or is damaged; only tensors are read."
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"The checkpoint {file} holds no model's tensors.")
    return state


def _plain(state: State) -> State:
    for wrapper in _WRAPPERS:
        if state and all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state
