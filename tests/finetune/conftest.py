"""Small CLIPs and pairs of synthetic pictures with captions."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from medclipsam.encoders import Encoder, load_folder
from medclipsam.finetune.data import Listing, Pair

PLACES = ("left", "right")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "white": (240, 240, 240)}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain open_clip ViT of two narrow blocks with random weights, as a `local-dir:` folder."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**{key: dict(value) if isinstance(value, dict) else value for key, value in config.items()})
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(
        {key: value.clone().contiguous() for key, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture
def encoder(clip_folder: Path) -> Encoder:
    return load_folder(clip_folder)


def square(colour: str, place: str, shade: int = 0) -> np.ndarray:
    """A coloured square on the left or right of a dark picture."""
    picture = np.full((32, 40, 3), 20 + shade, np.uint8)
    start = 4 if place == "left" else 24
    picture[8:24, start : start + 12] = COLOURS[colour]
    return picture


@pytest.fixture(scope="session")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """48 pictures of squares; a caption says colour, place and a number that the shade gives."""
    folder = tmp_path_factory.mktemp("squares")
    pairs = []
    for number in range(48):
        colour, place = list(COLOURS)[number % 4], PLACES[number // 4 % 2]
        file = folder / f"{number:02d}.png"
        Image.fromarray(square(colour, place, shade=4 * (number // 8))).save(file)
        pairs.append(Pair(file.name, file, f"a {colour} square on the {place}, picture {number // 8}"))
    return Listing(pairs)
