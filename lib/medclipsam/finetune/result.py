"""The result of a fine-tuning: a folder that open_clip's `local-dir:` and the registry of weights load as it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medclipsam.base.errors import InputError
from medclipsam.encoders import Encoder
from medclipsam.encoders.folder import write_demo, write_open_clip
from medclipsam.weights import ResolvedWeights

CARD = "finetuned.json"


def write_result(
    folder: Path,
    encoder: Encoder,
    base: ResolvedWeights,
    defaults: Mapping[str, Any],
    card: Mapping[str, Any],
) -> Path:
    """Write a fine-tuned CLIP, whole or not at all.

    Parameters
    ----------
    folder : pathlib.Path
        The result's folder; a result that lies there is replaced.
    encoder : Encoder
        The model, low-rank updates merged.
    base : ResolvedWeights
        What it was fine-tuned from: its configuration and tokenizer are taken over.
    defaults : mapping
        Defaults of the new weights that differ from the base's (thresholds), see `Encoder`.
    card : mapping
        What made it: JSON-able; written as `finetuned.json`, and as `README.md` for people.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    InputError
        If `folder` holds something else.
    """
    if folder.exists() and not (folder / CARD).is_file():
        raise InputError(f"{folder} is there already and holds no fine-tuned weights; name another folder.")
    part = folder.with_name(f".{folder.name}.part{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    kept = ("saliency", "saliency_targets", "least_agreement", "patch_rivals")
    recommended: dict[str, Any] = {key: encoder.defaults[key] for key in kept if key in encoder.defaults}
    told: dict[str, Any] = {**recommended, **defaults}
    try:
        if base.arch in ("demo", "embedding"):
            write_demo(part, encoder, base.path.with_suffix(".json"), told, dict(card))
        else:
            write_open_clip(part, encoder.model.state_dict(), base.path, told, final=folder)
        (part / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (part / "README.md").write_text(_model_card(base, card), encoding="utf-8")
        old = folder.with_name(f".{folder.name}.old{os.getpid()}")
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _model_card(base: ResolvedWeights, card: Mapping[str, Any]) -> str:
    options = card["options"]
    before, after = card["retrieval"]["before"], card["retrieval"]["after"]
    rows = [
        f"| {name} | {100 * before['rates'][name]:.1f} | {100 * after['rates'][name]:.1f} |" for name in after["rates"]
    ]
    licence = base.metadata.get("licence") or "that of the weights it was fine-tuned from"
    settings = [f"- {key}: {value}" for key, value in options.items() if value is not None]
    lines = [
        f"# {base.name}, fine-tuned with {options['loss']}",
        "",
        "A CLIP for text-driven segmentation of medical images. For research use only; not a medical device.",
        "",
        f"- fine-tuned from: {base.name}, sha256 {base.sha256}",
        f"- licence: {licence}",
        f"- pairs: {card['pairs']['training']} for training, {card['pairs']['validation']} held out, "
        f"{card['pairs']['bad']} left out",
        f"- data, sha256: {card['pairs']['digest']}",
        f"- best epoch: {card['best_epoch']} of {options['epochs']}",
        f"- presence threshold, calibrated on the held-out pairs: {card['presence_threshold']}",
        f"- made by: medclipsam {card['version']}",
        "",
        "## Retrieval on the held-out pairs",
        "",
        f"Galleries of {after['gallery']}. The held-out pairs also chose the best epoch, so that the figures after "
        "fine-tuning are a little too good.",
        "",
        "| | before, % | after, % |",
        "|---|---|---|",
        *rows,
        "",
        "## Settings",
        "",
        *settings,
    ]
    return "\n".join(lines) + "\n"
