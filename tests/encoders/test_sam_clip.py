import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from medclipsam.base.errors import OptionError, WeightsError
from medclipsam.encoders import Encoder, PlaneInput, load_embedding_clip
from medclipsam.encoders.sam_clip import EmbeddingVision
from medclipsam.encoders.small_clip import build_embedding_clip
from medclipsam.saliency import SaliencyRequest, SaliencySettings, saliency_maps

SIZE, CHANNELS = 64, 6


@dataclass
class _Embedding:
    features: torch.Tensor


def prepare(plane: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """Longest side to SIZE by nearest pixels, padded at right and bottom."""
    scale = SIZE / max(plane.shape[:2])
    rows, columns = (max(1, round(side * scale)) for side in plane.shape[:2])
    pixels = torch.from_numpy(plane).permute(2, 0, 1)[None].float() / 255
    resized = F.interpolate(pixels, (rows, columns))[0]
    return F.pad(resized, (0, SIZE - columns, 0, SIZE - rows)), (rows, columns)


class FakeSam:
    """An embedder: a convolution with stride 4, and a count of its runs."""

    identity = "5" * 64
    image_size = SIZE

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.image_encoder = nn.Conv2d(3, CHANNELS, 4, 4).requires_grad_(False)
        self.prepare = prepare
        self.embedded = 0

    def embed(self, plane: np.ndarray) -> _Embedding:
        self.embedded += 1
        return _Embedding(self.image_encoder(self.prepare(plane)[0][None]))


VISION = {
    "channels": CHANNELS,
    "side": 8,
    "widths": [8, 12, 16],
    "depths": [1, 2, 2, 1, 1],
    "structures": ["lung", "heart"],
    "globals": ["modality XR", "normal"],
    "global_shares": [0.5, 0.7],
    "rest_share": 0.8,
}
CONFIG = {
    "arch": {
        "embed_dim": 16,
        "text_width": 16,
        "text_layers": 1,
        "text_heads": 2,
        "context_length": 12,
        "vision": VISION,
    },
    "vocab": ["lung</w>", "heart</w>", "the</w>"],
    "mean": [0.0] * 3,
    "std": [1.0] * 3,
    "image_size": SIZE,
    "embedding": {"sam": "lite_medsam", "sha256": FakeSam.identity},
    "saliency": {"beta": 0.5, "variance": 1.0, "layer": 0, "schedule": [1, 0, 2, 2]},
}


@pytest.fixture
def vision() -> EmbeddingVision:
    torch.manual_seed(0)
    made = EmbeddingVision({**VISION, "embed_dim": 16})
    made.directions.copy_(torch.linalg.qr(torch.randn(16, 16))[0][:5])
    made.sizes.copy_(torch.tensor([20.0, 3.0]))
    made.attach(FakeSam())
    return made.eval().requires_grad_(False)


@pytest.fixture
def files(tmp_path: Path, vision: EmbeddingVision) -> tuple[Path, Path]:
    torch.manual_seed(1)
    model, _ = build_embedding_clip(CONFIG)
    model.visual.load_state_dict(vision.state_dict())
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "c.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    return tmp_path / "c.safetensors", tmp_path / "c.json"


def encoder(files: tuple[Path, Path], sam: FakeSam | None = None) -> Encoder:
    return load_embedding_clip(*files, sam or FakeSam(), name="lite")


def test_the_feature_is_the_sum_of_directions_by_amount(vision: EmbeddingVision) -> None:
    torch.manual_seed(2)
    local, whole = torch.randn(1, 2, 8, 8), torch.randn(1, 2)
    expected = np.zeros(16)
    for k in range(2):
        amount = sum((1 / (1 + math.exp(-float(logit)))) ** 2 for logit in local[0, k].flatten())
        share = math.log(1 + amount) / math.log(1 + float(vision.sizes[k]))
        expected += share * vision.directions[k].numpy()
    for g, part in enumerate((0.5, 0.7)):
        expected += part / (1 + math.exp(-float(whole[0, g]))) * vision.directions[2 + g].numpy()
    expected += 0.8 * vision.directions[4].numpy()
    np.testing.assert_allclose(vision.feature(local, whole)[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_token_of_a_structure_raises_its_amount(vision: EmbeddingVision) -> None:
    local = torch.full((1, 2, 8, 8), -8.0)
    before = vision.feature(local, torch.zeros(1, 2)) @ vision.directions[0]
    for place in ((0, 0), (7, 3), (4, 4)):
        local[0, 0][place] = 8.0
        after = vision.feature(local, torch.zeros(1, 2)) @ vision.directions[0]
        assert float(after) > float(before)
        before = after


def test_tokens_are_averaged_and_standardised(vision: EmbeddingVision) -> None:
    vision.mean.copy_(torch.arange(6.0))
    vision.deviation.fill_(2.0)
    embedding = torch.randn(1, 6, 16, 16)
    token = vision.tokens(embedding)[0, 8 * 3 + 5]
    expected = (embedding[0, :, 6:8, 10:12].mean(dim=(1, 2)) - torch.arange(6.0)) / 2
    torch.testing.assert_close(token, expected)


def test_suffix_after_prefix_is_the_whole_tower(files: tuple[Path, Path]) -> None:
    made = encoder(files)
    inputs = torch.rand(2, 3, SIZE, SIZE)
    tokens = made.tower.prefix(inputs, 0)
    assert tokens.shape == (2, 64, CHANNELS)
    torch.testing.assert_close(made.tower.suffix(tokens, 0), made.model.visual(inputs))
    with pytest.raises(OptionError):
        made.tower.suffix(tokens, 1)


def test_a_plane_is_embedded_by_the_sam_once(files: tuple[Path, Path]) -> None:
    sam = FakeSam()
    made = encoder(files, sam)
    plane = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    tensor, fit = made.preprocess(plane)
    asked = PlaneInput(plane, tensor, fit, b"a")
    first = made.prefix_tokens([asked], 0)
    again = made.prefix_tokens([asked], 0)
    assert sam.embedded == 1
    assert torch.equal(first, again)
    torch.testing.assert_close(first, made.tower.prefix(tensor[None], 0))


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (128, 128), (10, 64)])
def test_maps_come_back_to_where_the_plane_is_in_the_input(files: tuple[Path, Path], shape: tuple[int, int]) -> None:
    made = encoder(files)
    _, fit = made.preprocess(np.zeros((*shape, 3), np.uint8))
    assert fit.plane_shape == shape
    assert fit.target == (0, round(shape[0] * SIZE / max(shape)), 0, round(shape[1] * SIZE / max(shape)))
    marked = torch.zeros(SIZE, SIZE)
    marked[:, fit.target[3] :] = 1
    marked[fit.target[1] :] = 1
    assert float(fit.back(marked).max()) == 0


def test_another_fit_is_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(OptionError):
        encoder(files).preprocess(np.zeros((8, 8, 3), np.uint8), "crop")


def test_another_sam_is_refused(files: tuple[Path, Path]) -> None:
    other = FakeSam()
    other.identity = "6" * 64
    with pytest.raises(WeightsError):
        encoder(files, other)


def test_m2ib_lights_the_part_that_carries_the_structure(files: tuple[Path, Path]) -> None:
    """A tower that sees a structure where the first channel is high, and nothing else."""
    made = encoder(files)
    visual = made.model.visual
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.zero_()
        visual.local[0].weight.fill_(1.0)
        visual.stem[0].weight[0, 0] = 1.0
        # Against this constant the first channel keeps its size through the normalisation.
        visual.stem[0].bias[1] = 3.0
        visual.stem[1].weight.fill_(1.0)
        visual.local[1].weight[0, 0] = 4.0
        visual.local[1].bias.fill_(-4.0)
    tokens = torch.randn(1, 64, CHANNELS) * 0.1
    tokens[0, 27:29, 0] = 6.0
    plane = np.zeros((SIZE, SIZE, 3), np.uint8)
    _, fit = made.preprocess(plane)
    settings = SaliencySettings(layer=0)
    asked = [SaliencyRequest(0, visual.directions[0], beta=0.1)]
    (saliency,) = saliency_maps(made, tokens, [fit], [b"x"], asked, settings)
    inside = saliency[24:32, 24:40].mean()
    assert float(inside) > 3 * float(saliency.mean())
