"""The embedded small CLIP: tokenizer, stem and architecture."""

import json
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

import medclipsam
from medclipsam.encoders.open_clip_adapter import OpenClipTower
from medclipsam.encoders.small_clip import (
    PAD,
    UNKNOWN,
    CompactTokenizer,
    ConvStem,
    build_small_clip,
    collect_vocabulary,
    vocabulary_rows,
)

SHIPPED = Path(medclipsam.__file__).parent / "demo" / "weights"
ARCH = {
    "embed_dim": 24,
    "patch_size": 12,
    "width": 16,
    "layers": 3,
    "heads": 2,
    "stem_channels": 4,
    "text_width": 16,
    "text_layers": 1,
    "text_heads": 2,
    "context_length": 8,
}


@pytest.fixture
def config():
    return {"arch": ARCH, "vocab": collect_vocabulary(["the left lung on a chest x-ray"]), "image_size": 48}


def test_rows_are_open_clips_tokens_renumbered_in_order():
    text = "left lung on a chest x-ray"
    vocabulary = collect_vocabulary([text])
    base = SimpleTokenizer()
    rows = CompactTokenizer(vocabulary, 16).encode(text)
    back = [base.encoder[vocabulary[row - 2]] for row in rows]
    assert back == base.encode(text)


def test_vocabulary_has_every_token_of_whole_texts_once():
    texts = ["normal layers of skin, fat and muscle", "Cooper's ligaments", "X-Ray (PA)"]
    base = SimpleTokenizer()
    vocabulary = collect_vocabulary(texts)
    assert len(vocabulary) == len(set(vocabulary))
    assert {base.encoder[word] for word in vocabulary} == {token for text in texts for token in base.encode(text)}


def test_unknown_words_share_one_row_and_padding_is_zero():
    tokenizer = CompactTokenizer(collect_vocabulary(["lung"]), 8)
    lung, giraffe = tokenizer(["lung", "giraffe"])
    assert lung[1] == 2
    assert giraffe[1] == UNKNOWN
    assert lung.tolist()[3:] == [PAD] * 5


def test_end_of_text_has_the_highest_row_and_a_long_text_keeps_it():
    vocabulary = collect_vocabulary(["lung heart"])
    tokenizer = CompactTokenizer(vocabulary, 6)
    rows = tokenizer(["lung", "heart " * 20])
    end = vocabulary_rows(vocabulary) - 1
    assert rows.shape == (2, 6)
    assert rows.max(dim=1).values.tolist() == [end, end]
    assert rows.argmax(dim=1).tolist() == [2, 5]


def test_one_string_is_a_batch_of_one():
    assert CompactTokenizer(["lung</w>"], 5)("lung").shape == (1, 5)


def test_case_does_not_matter(config):
    tokenizer = build_small_clip(config)[1]
    assert torch.equal(tokenizer(["LEFT Lung"]), tokenizer(["left lung"]))


@pytest.mark.parametrize(("patch", "size"), [(8, 64), (12, 96), (16, 64)])
def test_stem_keeps_the_patch_grid(patch, size):
    stem = ConvStem(width=16, channels=4, patch=patch).eval()
    assert stem(torch.zeros(2, 3, size, size)).shape == (2, 16, size // patch, size // patch)


def test_halves_of_the_tower_make_the_whole(config):
    torch.manual_seed(0)
    model, _ = build_small_clip(config)
    model.eval()
    tower = OpenClipTower(model.visual)
    images = torch.rand(2, 3, 48, 48)
    whole = model.encode_image(images)
    for layer in range(ARCH["layers"]):
        assert torch.allclose(tower.suffix(tower.prefix(images, layer), layer), whole, atol=1e-6)


def test_image_feature_is_the_mean_of_its_patches(config):
    torch.manual_seed(0)
    model, _ = build_small_clip(config)
    model.eval()
    tower = OpenClipTower(model.visual)
    images = torch.rand(1, 3, 48, 48)
    patches = tower.patch_features(tower.prefix(images, 0), 0)
    assert torch.allclose(patches.mean(dim=1), model.encode_image(images), atol=1e-6)


def test_texts_of_one_meaning_written_alike_have_one_feature(config):
    model, tokenizer = build_small_clip(config)
    with torch.no_grad():
        first, second, other = model.eval().encode_text(tokenizer(["left lung", "Left  lung", "chest"]))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_missing_entry_is_a_key_error(config):
    del config["vocab"]
    with pytest.raises(KeyError, match="vocab"):
        build_small_clip(config)


def test_shipped_config_fits_the_shipped_weights():
    from safetensors.torch import load_file

    settings = json.loads((SHIPPED / "clip.json").read_text())
    model, _ = build_small_clip(settings)
    state = load_file(SHIPPED / "clip.safetensors")
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert (SHIPPED / "clip.safetensors").stat().st_size < 9e6
    assert settings["saliency"].keys() == {"beta", "variance", "layer", "smooth", "clip_percentile", "contrast"}
