"""Conversion of published fine-tuned weights: both ways, against a forward pass of the transformers layout's own."""

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from medclipsam.base.errors import InputError, WeightsError
from medclipsam.encoders import load_folder
from medclipsam.encoders.transformers_layout import convert, from_transformers, to_transformers


def attention(x, state, start, heads=12):
    def project(name):
        part = F.linear(x, state[f"{start}.self_attn.{name}.weight"], state[f"{start}.self_attn.{name}.bias"])
        return part.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = (project(name) for name in ("q_proj", "k_proj", "v_proj"))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(mixed, state[f"{start}.self_attn.out_proj.weight"], state[f"{start}.self_attn.out_proj.bias"])


def norm(x, state, name, epsilon):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)


def feed_forward(x, state, start):
    hidden = F.gelu(F.linear(x, state[f"{start}.mlp.fc1.weight"], state[f"{start}.mlp.fc1.bias"]))
    return F.linear(hidden, state[f"{start}.mlp.fc2.weight"], state[f"{start}.mlp.fc2.bias"])


def image_features(state, pixels, epsilon=1e-6):
    """The published layout's vision tower: pre-norm blocks, class token, linear projection."""
    patches = F.conv2d(
        pixels,
        state["vision_model.embeddings.patch_embedding.weight"],
        state["vision_model.embeddings.patch_embedding.bias"],
        stride=16,
    )
    cls = state["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + state["vision_model.embeddings.position_embedding.weight"]
    for layer in range(12):
        start = f"vision_model.encoder.layers.{layer}"
        x = x + attention(norm(x, state, f"{start}.layer_norm1", epsilon), state, start)
        x = x + feed_forward(norm(x, state, f"{start}.layer_norm2", epsilon), state, start)
    pooled = norm(x[:, 0], state, "vision_model.post_layernorm", epsilon)
    return F.normalize(F.linear(pooled, state["visual_projection.weight"]), dim=-1)


def text_features(state, tokens):
    """Its text tower: a post-norm BERT, class token, two linear layers; no padding in these tokens."""
    x = state["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + state["text_model.embeddings.token_type_embedding.weight"][0]
    x = x + state["text_model.embeddings.position_embedding.weight"][: tokens.shape[1]]
    x = norm(x, state, "text_model.embeddings.layer_norm", 1e-12)
    for layer in range(12):
        start = f"text_model.encoder.layers.{layer}"
        x = norm(x + attention(x, state, start), state, f"{start}.layer_norm1", 1e-12)
        x = norm(x + feed_forward(x, state, start), state, f"{start}.layer_norm2", 1e-12)
    hidden = F.gelu(F.linear(x[:, 0], state["text_projection.fc1.weight"]))
    return F.normalize(F.linear(hidden, state["text_projection.fc2.weight"]), dim=-1)


def publish(weights: Path, folder: Path):
    """Write a folder as the fine-tuned weights come, one file in the layout of transformers; return its tensors."""
    folder.mkdir()
    state = to_transformers(torch.load(weights / "open_clip_pytorch_model.bin", weights_only=True))
    # older versions wrote this buffer, which newer ones have no place for
    torch.save({**state, "text_model.embeddings.position_ids": torch.arange(512)[None]}, folder / "pytorch_model.bin")
    return state


@pytest.fixture(scope="module")
def original(tiny_biomedclip_folder: Path):
    return torch.load(tiny_biomedclip_folder / "open_clip_pytorch_model.bin", weights_only=True)


def test_both_ways_give_every_tensor_back(original):
    back = from_transformers(to_transformers(original))
    assert back.keys() == {key for key in original if not key.endswith("position_ids")}
    assert all(torch.equal(back[key], original[key]) for key in back)


def test_converted_weights_have_the_features_of_the_published_layout(biomedclip_folder, tmp_path, monkeypatch):
    state = publish(biomedclip_folder, tmp_path / "published")
    made = convert(tmp_path / "published", biomedclip_folder, tmp_path / "tuned")
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 224, 224)
    # as it is, with open_clip alone and offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{made}")
    tokens = open_clip.get_tokenizer(f"local-dir:{made}")(["a lung on the left"])
    with torch.no_grad():
        images = model.eval().encode_image(pixels, normalize=True)
        texts = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(images, image_features(state, pixels), atol=1e-5, rtol=0)
    # the published code's own epsilon
    torch.testing.assert_close(images, image_features(state, pixels, 1e-12), atol=1e-4, rtol=0)
    tokens = tokens[:, : int((tokens != 0).sum())]
    torch.testing.assert_close(texts, text_features(state, tokens), atol=1e-5, rtol=0)


def test_a_converted_folder_loads_as_an_encoder(original, tiny_biomedclip_folder, tmp_path):
    publish(tiny_biomedclip_folder, tmp_path / "published")
    made = convert(tmp_path / "published" / "pytorch_model.bin", tiny_biomedclip_folder, tmp_path / "tuned")
    one, other = load_folder(made), load_folder(tiny_biomedclip_folder)
    torch.testing.assert_close(one.encode_texts(["both lungs"]), other.encode_texts(["both lungs"]), atol=0, rtol=0)


def test_checkpoints_of_a_training_with_open_clip_are_taken_too(original, tiny_biomedclip_folder, tmp_path):
    file = tmp_path / "epoch_32.pt"
    torch.save({"epoch": 32, "state_dict": {f"module.{key}": value for key, value in original.items()}}, file)
    made = convert(file, tiny_biomedclip_folder, tmp_path / "tuned")
    assert json.loads((made / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 512


def test_refuses_what_is_no_biomedclip_and_leaves_nothing_behind(tiny_biomedclip_folder, tmp_path):
    state = publish(tiny_biomedclip_folder, tmp_path / "published")
    for number, (content, message) in enumerate(
        [
            ({**state, "text_model.extra.weight": torch.zeros(1)}, "no place in BiomedCLIP"),
            ({k: v for k, v in state.items() if "layers.3.self_attn.q_proj.weight" not in k or "text" in k}, "lacks"),
            ({k: v for k, v in state.items() if k != "visual_projection.weight"}, "cannot be loaded"),
            ([1, 2], "no model's tensors"),
        ]
    ):
        file = tmp_path / f"{number}.bin"
        torch.save(content, file)
        with pytest.raises(WeightsError, match=message):
            convert(file, tiny_biomedclip_folder, tmp_path / "tuned")
    file.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match=r"3\.bin"):
        convert(file, tiny_biomedclip_folder, tmp_path / "tuned")
    with pytest.raises(InputError, match="no checkpoint"):
        convert(tmp_path / "nowhere", tiny_biomedclip_folder, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    (tmp_path / "tuned").mkdir()
    with pytest.raises(InputError, match="there already"):
        convert(tmp_path / "published", tiny_biomedclip_folder, tmp_path / "tuned")
