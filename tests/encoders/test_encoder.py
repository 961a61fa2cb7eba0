import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError, OptionError, WeightsError
from medclipsam.encoders import Encoder, PlaneInput, load_folder, load_open_clip


@pytest.fixture(scope="module")
def vit() -> Encoder:
    return load_open_clip("ViT-B-32", seed=1)


@pytest.fixture(scope="module")
def biomedclip(biomedclip_folder: Path) -> Encoder:
    return load_folder(biomedclip_folder)


@pytest.mark.parametrize("which", ["vit", "biomedclip"])
@pytest.mark.parametrize("layer", [0, 7, 11])
def test_suffix_of_prefix_is_the_whole_tower(which: str, layer: int, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(which)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    tokens = encoder.tower.prefix(images, layer)
    assert tokens.shape[1] == 1 + encoder.tower.grid[0] * encoder.tower.grid[1]
    with torch.no_grad():
        whole = encoder.model.encode_image(images)
    torch.testing.assert_close(encoder.tower.suffix(tokens, layer), whole)


def test_patch_features_of_average_pooling_average_to_the_image_feature() -> None:
    """With average pooling and no bias in the projection, the mean projected patch is the image feature."""
    import open_clip

    from medclipsam.encoders.towers import split_tower

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "pool_type": "avg"},
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    tower = split_tower(model.visual)
    tokens = tower.prefix(torch.randn(2, 3, 32, 32), 1)
    torch.testing.assert_close(tower.patch_features(tokens, 1).mean(dim=1), tower.suffix(tokens, 1))


@pytest.mark.parametrize("which", ["vit", "biomedclip"])
def test_nothing_asks_for_a_gradient(which: str, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(which)
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training


def test_biomedclip_folder_loads_without_the_network(biomedclip: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text tower and tokenizer come from the folder, though its config names a hub repository."""
    assert sum(parameter.numel() for parameter in biomedclip.model.parameters()) > 190e6
    assert biomedclip.image_size == 224
    features = biomedclip.encode_texts(["left lung", "right lung"])
    assert features.shape == (2, 512)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    direct = F.normalize(biomedclip.model.encode_text(biomedclip.tokenizer(["left lung"])), dim=-1)
    torch.testing.assert_close(features[:1], direct)


def test_each_text_is_encoded_once(vit: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = vit.model.encode_text
    monkeypatch.setattr(vit.model, "encode_text", lambda tokens: (seen.append(len(tokens)), original(tokens))[1])
    first = vit.encode_texts(["one text", "another text", "one text"])
    second = vit.encode_texts(["another text", "one text"])
    assert seen == [2]
    assert torch.equal(first[1], second[0])
    assert torch.equal(first[0], first[2])


def test_a_prototype_is_the_normalised_mean(vit: Encoder) -> None:
    both = vit.encode_texts(["one text", "another text"])
    torch.testing.assert_close(vit.text_prototype(["one text", "another text"]), F.normalize(both.sum(0), dim=0))


def test_prefix_tokens_are_remembered_per_plane(vit: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    original = vit.tower.prefix
    monkeypatch.setattr(vit.tower, "prefix", lambda x, layer: (runs.append(len(x)), original(x, layer))[1])
    plane = np.zeros((224, 224, 3), np.uint8)
    fit = vit.preprocess(plane)[1]
    planes = [PlaneInput(plane, torch.full((3, 224, 224), value / 10.0), fit, bytes([value])) for value in range(3)]
    together = vit.prefix_tokens(planes, 5)
    again = vit.prefix_tokens(planes[::-1], 5)
    assert runs == [3]
    assert torch.equal(together, again.flip(0))
    vit.prefix_tokens(planes[:1], 6)
    assert runs == [3, 1]


def test_a_text_beyond_the_context_is_refused(vit: Encoder, biomedclip: Encoder) -> None:
    with pytest.raises(InputError, match="reads at most 77"):
        vit.encode_texts(["tumour " * 100])
    with pytest.raises(InputError, match="reads at most 256"):
        biomedclip.encode_texts(["tumour " * 300])


def test_an_empty_text_is_refused(vit: Encoder) -> None:
    with pytest.raises(InputError, match="empty"):
        vit.encode_texts(["lungs", "  "])


def test_a_layer_beyond_the_tower_is_refused(vit: Encoder) -> None:
    with pytest.raises(OptionError, match="0 to 11"):
        vit.tower.prefix(torch.zeros(1, 3, 224, 224), 12)


def test_a_convolutional_tower_is_refused() -> None:
    with pytest.raises(WeightsError, match="vision transformer"):
        load_open_clip("RN50")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(WeightsError, match="no-such-model"):
        load_open_clip("no-such-model")


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("open_clip_config.json", "open_clip_config.json"),
        ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.bin"),
        ("tokenizer.json", "tokenizer.json"),
        ("config.json", "config.json"),
    ],
)
def test_a_folder_that_lacks_a_file_names_it(biomedclip_folder: Path, tmp_path: Path, missing: str, named: str) -> None:
    for file in biomedclip_folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(WeightsError, match=named):
        load_folder(tmp_path)


def test_weights_of_another_architecture_are_refused(biomedclip_folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(biomedclip_folder / name, tmp_path)
    config = json.loads((biomedclip_folder / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 256
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_pytorch_model.bin").symlink_to(biomedclip_folder / "open_clip_pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_folder(tmp_path)


@pytest.mark.parametrize("which", ["vit", "biomedclip"])
def test_a_tower_by_an_engine_gives_torchs_features(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoder: Encoder = request.getfixturevalue(which)
    plane = np.zeros((224, 224, 3), np.uint8)
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(5))
    planes = [PlaneInput(plane, x, encoder.preprocess(plane)[1], bytes([row])) for row, x in enumerate(inputs)]

    def at(layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        encoder.forget_planes()
        tokens = encoder.prefix_tokens(planes, layer)
        return tokens, encoder.features(tokens, layer)

    expected, other_layer = at(9), at(10)[0]
    try:
        encoder.use_engine("openvino")
        features = at(9)[1]
        assert not torch.equal(features, expected[1]), "another engine rounds in another way"
        torch.testing.assert_close(features, expected[1], rtol=0, atol=1e-4)
        # a second layer would take memory for the weights once more
        assert torch.equal(at(10)[0], other_layer)
    finally:
        encoder.use_engine("torch").forget_planes()
