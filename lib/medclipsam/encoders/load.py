"""Loading of CLIP encoders: BiomedCLIP and every open_clip ViT, from the hub, a folder or a file, and the demo's."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from medclipsam.base.errors import WeightsError
from medclipsam.base.files import file_sha256
from medclipsam.encoders.encoder import Encoder
from medclipsam.encoders.open_clip_adapter import input_settings, load_model, token_counter
from medclipsam.encoders.sam_clip import Embedder
from medclipsam.weights.registry import OPEN_CLIP_CHECKPOINTS, OPEN_CLIP_CONFIG

# What weights may recommend, see `Encoder`.
DEFAULT_KEYS = (
    "saliency",
    "saliency_targets",
    "least_agreement",
    "presence_threshold",
    "presence_thresholds",
    "free_text_threshold",
    "volume_thresholds",
    "patch_rivals",
    "same_meaning",
)


def load_folder(
    folder: Path,
    *,
    name: str | None = None,
    identity: str | None = None,
    device: str | torch.device = "cpu",
) -> Encoder:
    """Load an open_clip model from a folder, without the network.

    The folder holds `open_clip_config.json`, `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`, and the
    tokenizer's files where the text tower is a Hugging Face one (`tokenizer.json`). The text tower's architecture is
    read from `config.json` in the folder, or from the folder that the open_clip config names.
    `medclipsam.json` may add the weights' own defaults (see `Encoder`).

    Parameters
    ----------
    folder : pathlib.Path
        Where the files lie.
    name, identity : str, optional
        Name of the weights (the folder's by default) and their sha256 (computed when not given).
    device : str or torch.device
        Where to run.

    Raises
    ------
    WeightsError
        If a file is missing, or does not fit the architecture that the folder's config states.
    """
    config_file = folder / OPEN_CLIP_CONFIG
    if not config_file.is_file():
        raise WeightsError(f"{folder} is not an open_clip model folder: {OPEN_CLIP_CONFIG} is missing.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))["model_cfg"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise WeightsError(f"{config_file} is not an open_clip config: {error}.") from error
    checkpoint = _checkpoint(folder)
    overrides: dict[str, Any] = {}
    text = dict(config.get("text_cfg", {}))
    if "hf_model_name" in text:
        # As published it names a hub repository, which needs the network; the folder has its architecture.
        text["hf_model_name"] = str(text_folder(folder, str(text["hf_model_name"])))
        text["hf_model_pretrained"] = False
        overrides["text_cfg"] = text
        if not (folder / "tokenizer.json").is_file():
            raise WeightsError(f"{folder} lacks tokenizer.json, the tokenizer of its text tower.")
    source = f"local-dir:{folder}"
    try:
        model, tokenizer = load_model(source, pretrained_text=False, **overrides)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        raise WeightsError(f"The weights in {folder} cannot be loaded: {_first_line(error)}.") from error
    defaults_file = folder / "medclipsam.json"
    defaults = json.loads(defaults_file.read_text(encoding="utf-8")) if defaults_file.is_file() else {}
    return _wrap(model, tokenizer, name or folder.name, identity or file_sha256(checkpoint), device, defaults)


def load_open_clip(
    model_name: str,
    pretrained: str | Path | None = None,
    *,
    name: str | None = None,
    identity: str | None = None,
    device: str | torch.device = "cpu",
    seed: int | None = None,
) -> Encoder:
    """Load any open_clip ViT by its name, or a hub repository as `hf-hub:owner/repository`.

    Parameters
    ----------
    model_name : str
        A name of `open_clip.list_models()`, or `hf-hub:...` (reads the hub or its local cache).
    pretrained : str or pathlib.Path, optional
        A file of weights or one of open_clip's tags (fetched by open_clip); None leaves the weights random.
    name, identity : str, optional
        Name and identity for results and cache keys; by default the model's name, and the sha256 of the file or of the
        loaded weights.
    device : str or torch.device
        Where to run.
    seed : int, optional
        Seed of random weights.

    Raises
    ------
    WeightsError
        If the model is unknown or the weights do not fit it.
    """
    if seed is not None:
        torch.manual_seed(seed)
    try:
        model, tokenizer = load_model(model_name, pretrained=str(pretrained) if pretrained else None)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise WeightsError(f"The open_clip model {model_name!r} cannot be loaded: {_first_line(error)}.") from error
    if identity is None:
        is_file = pretrained is not None and Path(pretrained).is_file()
        identity = file_sha256(Path(str(pretrained))) if is_file else state_sha256(model)
    return _wrap(model, tokenizer, name or model_name, identity, device, {})


def load_demo(
    weights: Path,
    config: Path,
    *,
    name: str = "demo",
    identity: str | None = None,
    device: str | torch.device = "cpu",
) -> Encoder:
    """Load the embedded small CLIP.

    Parameters
    ----------
    weights : pathlib.Path
        safetensors, fp16; run in float32.
    config : pathlib.Path
        JSON with the architecture, vocabulary, normalisation and defaults.
    name, identity, device
        As in `load_folder`.

    Raises
    ------
    WeightsError
        If a file is missing, damaged or of another architecture.
    """
    from medclipsam.encoders.small_clip import build_small_clip

    return _load_described(weights, config, build_small_clip, name, identity, device)


def load_embedding_clip(
    weights: Path,
    config: Path,
    embedder: Embedder,
    *,
    name: str,
    identity: str | None = None,
    device: str | torch.device = "cpu",
) -> Encoder:
    """Load a CLIP whose vision tower begins with a SAM's image embedding.

    Parameters
    ----------
    weights : pathlib.Path
        safetensors, fp16; run in float32. They hold no weights of the SAM.
    config : pathlib.Path
        JSON with the architecture, vocabulary and defaults, and under "embedding" the SAM that it was trained on.
    embedder : Embedder
        That SAM.
    name, identity, device
        As in `load_folder`.

    Raises
    ------
    WeightsError
        If a file is missing, damaged or of another architecture, or the SAM is another.
    """
    from medclipsam.encoders.small_clip import build_embedding_clip

    encoder = _load_described(weights, config, build_embedding_clip, name, identity, device, embedder)
    wanted = json.loads(config.read_text(encoding="utf-8"))["embedding"]
    if embedder.identity != wanted["sha256"]:
        raise WeightsError(
            f"The CLIP {name!r} works on the image embedding of {wanted['sam']} (sha256 {wanted['sha256']}); given is "
            f"a SAM with sha256 {embedder.identity}."
        )
    return encoder


def _load_described(
    weights: Path,
    config: Path,
    build: Callable[[Mapping[str, Any]], tuple[Any, Any]],
    name: str,
    identity: str | None,
    device: str | torch.device,
    embedder: Embedder | None = None,
) -> Encoder:
    """Load a CLIP of ours: .safetensors in half precision and the .json that describes it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        model, tokenizer = build(settings)
        state = {key: value.float() for key, value in load_file(weights).items()}
        model.load_state_dict(state)
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, RuntimeError) as error:
        raise WeightsError(f"The weights {weights} cannot be loaded: {_first_line(error)}.") from error
    if embedder is not None:
        model.visual.attach(embedder)
    return Encoder(
        model,
        tokenizer,
        image_size=int(settings["image_size"]),
        mean=settings["mean"],
        std=settings["std"],
        identity=identity or file_sha256(weights),
        name=name,
        defaults={key: settings[key] for key in DEFAULT_KEYS if key in settings},
        count_tokens=token_counter(tokenizer),
        device=device,
    )


def _wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    identity: str,
    device: str | torch.device,
    defaults: dict[str, Any],
) -> Encoder:
    size, mean, std = input_settings(model)
    return Encoder(
        model,
        tokenizer,
        image_size=size,
        mean=mean,
        std=std,
        identity=identity,
        name=name,
        defaults=defaults,
        count_tokens=token_counter(tokenizer),
        device=device,
    )


def _checkpoint(folder: Path) -> Path:
    for file in OPEN_CLIP_CHECKPOINTS:
        if (folder / file).is_file():
            return folder / file
    raise WeightsError(f"{folder} holds no weights: {' or '.join(OPEN_CLIP_CHECKPOINTS)} is missing.")


def text_folder(folder: Path, named: str) -> Path:
    """Return where the configuration of a model folder's text tower lies, which its open_clip config calls `named`.

    Raises
    ------
    WeightsError
        If there is none.
    """
    for candidate in (folder / named, folder / "text", folder, Path(named)):
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    raise WeightsError(
        f"{folder} lacks config.json of its text tower {named!r}; put the text model's config.json into the folder."
    )


def state_sha256(model: torch.nn.Module) -> str:
    """Return a sha256 over a model's named weights (for models that come from no single file)."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    logging.getLogger(__name__).debug("while loading weights", exc_info=error)
    return lines[0].rstrip(".")
