"""Write `lite_clip` as the package carries it: half precision, and the description that loads it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medclipsam import __version__
from medclipsam.encoders import Encoder
from medclipsam.encoders.sam_clip import EmbeddingVision
from medclipsam.encoders.small_clip import build_embedding_clip
from medclipsam.weights import resolve
from tools.demo_training.calibrate_lite import calibrate
from tools.demo_training.embeddings import Embedded
from tools.demo_training.files import write_weights
from tools.demo_training.lite_clip import Recipe, vision_config

# Chosen on the validation planes. A beta that suits one size of structure leaves nothing of another: where no size is
# known, the cosine of patch and text is the safer map.
SALIENCY: dict[str, Any] = {
    "method": "patch_text",
    "beta": 1.0,
    "variance": 1.0,
    "layer": 0,
    "smooth": 1,
    "clip_percentile": 99.0,
}
SALIENCY_TARGETS: dict[str, dict[str, Any]] = {
    "lungs x-ray": {"method": "m2ib_token", "beta": 35.0},
}
# On CT LiteMedSAM takes liver or heart for lungs now and then; chosen on two CTs, pasted lungs and phantoms.
LEAST_AGREEMENT = {"lungs CT": 0.85}
# Presence that the best plane of a volume needs, chosen on phantom volumes with and without the finding.
VOLUME_THRESHOLDS = {"brain tumour": 0.7, "lung nodule": 0.9}
# In volumes, masks whose patches are more similar to another structure are dropped; chosen on phantom volumes.
PATCH_RIVALS = ["brain tumour", "lung nodule"]
_TEXT_KEYS = ("embed_dim", "text_width", "text_layers", "text_heads", "context_length")
WHAT = (
    "blocks on LiteMedSAM's frozen image embedding, trained with masks on the train parts of BUSI (breast ultrasound), "
    "Cheng's T1 contrast MRI (brain tumours) and Shenzhen (chest X-ray), on two CT volumes without lung masks (lungs "
    "by threshold) and on procedural phantoms; text tower of the phantoms' CLIP"
)


def write(
    folder: Path, vision: EmbeddingVision, text: Encoder, data: Embedded, recipe: Recipe, sam_sha256: str
) -> dict[str, Any]:
    """Calibrate and write `lite_clip.safetensors` and `lite_clip.json`; returns what the latter holds.

    Parameters
    ----------
    folder : pathlib.Path
        Where to write.
    vision : EmbeddingVision
        The trained blocks.
    text : Encoder
        The CLIP whose text tower is taken over, `demo_clip`.
    data : Embedded
        The planes; those held out calibrate the thresholds.
    recipe : Recipe
        What made the blocks.
    sam_sha256 : str
        Of the SAM whose embedding they work on.
    """
    base = json.loads(resolve("demo_clip").path.with_suffix(".json").read_text(encoding="utf-8"))
    config: dict[str, Any] = {
        "arch": {**{key: base["arch"][key] for key in _TEXT_KEYS}, "vision": vision_config(recipe)},
        "embedding": {"sam": "lite_medsam", "sha256": sam_sha256},
        "vocab": base["vocab"],
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "image_size": 256,
        "same_meaning": base["same_meaning"],
        "saliency": SALIENCY,
        "saliency_targets": SALIENCY_TARGETS,
        "least_agreement": LEAST_AGREEMENT,
        "volume_thresholds": VOLUME_THRESHOLDS,
        "patch_rivals": PATCH_RIVALS,
    }
    model, _ = build_embedding_clip(config)
    state = {key: value for key, value in text.model.state_dict().items() if not key.startswith("visual.")}
    state |= {f"visual.{key}": value for key, value in vision.state_dict().items()}
    model.load_state_dict(state)
    # What is calibrated is what is written: half precision.
    shipped = EmbeddingVision({**config["arch"]["vision"], "embed_dim": config["arch"]["embed_dim"]}).eval()
    shipped.load_state_dict({key: value.half().float() for key, value in vision.state_dict().items()})
    with torch.no_grad():
        config |= calibrate(shipped, text, data, data.validation, scale=recipe.logit_scale)
    kinds = Counter(f"{row.job['kind']} {row.modality}" for *_, row in data.training)
    config["provenance"] = {
        "what": WHAT,
        "version": __version__,
        "recipe": {key: value for key, value in asdict(recipe).items() if key != "shares"},
        "training_planes": dict(kinds),
        "validation_planes": len(data.validation),
    }
    return write_weights(folder, "lite_clip", model.state_dict(), config)
