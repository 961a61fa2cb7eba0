"""What the adapters use of open_clip and timm is there, with the arguments that they give.

Both packages may change it in any release. A failure names the version that is installed.
"""

import inspect
from importlib.metadata import version
from typing import Any

import pytest
import torch

from medclipsam.encoders import open_clip_adapter, timm_adapter
from medclipsam.encoders.towers import split_tower
from medclipsam.weights.registry import OPEN_CLIP_CHECKPOINTS, OPEN_CLIP_CONFIG

OPEN_CLIP = f"open_clip_torch {version('open_clip_torch')}"
TIMM = f"timm {version('timm')}"
TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def own() -> Any:
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "head_width": 8, "pool_type": "avg"}
    return open_clip_adapter.new_clip(8, vision, TEXT)


@pytest.fixture(scope="module")
def wrapped() -> Any:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    import open_clip

    model = open_clip.CustomTextCLIP(embed_dim=8, vision_cfg=vision, text_cfg=TEXT)
    return model.visual


def lacking(thing: Any, names: str) -> list[str]:
    return [name for name in names.split() if not hasattr(thing, name)]


def takes(function: Any, *names: str) -> bool:
    parameters = inspect.signature(function).parameters
    return set(names) <= parameters.keys() or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def required(function: Any) -> list[str]:
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    every = inspect.signature(function).parameters.values()
    return [each.name for each in every if each.default is each.empty and each.kind in plain]


def test_open_clips_transformer_has_the_parts_that_are_used(own: Any) -> None:
    assert open_clip_adapter.is_own_transformer(own.visual), OPEN_CLIP
    assert lacking(own.visual, "transformer grid_size ln_post proj _embeds _pool conv1") == [], OPEN_CLIP
    assert lacking(own.visual.transformer, "resblocks batch_first") == [], OPEN_CLIP
    for name in ("_embeds", "_pool"):
        assert len(required(getattr(own.visual, name))) == 1, f"{name} of {OPEN_CLIP}"
    tokens = own.visual._embeds(torch.zeros(2, 3, 32, 32))
    assert tokens.shape == (2, 5, 16), OPEN_CLIP
    assert [part.shape for part in own.visual._pool(tokens)] == [(2, 16), (2, 4, 16)], OPEN_CLIP


def test_open_clips_models_have_the_methods_that_are_used(own: Any) -> None:
    assert lacking(own, "visual encode_image encode_text logit_scale text_projection") == [], OPEN_CLIP
    names = dict(own.named_parameters())
    assert {name for name in names if name.startswith(open_clip_adapter.PROJECTIONS)} == {
        "visual.proj",
        "text_projection",
    }, OPEN_CLIP


def test_open_clips_functions_take_what_they_are_given() -> None:
    import open_clip
    from open_clip import factory
    from open_clip.transform import PreprocessCfg

    assert takes(open_clip.create_model, "model_name", "pretrained", "pretrained_text", "text_cfg"), OPEN_CLIP
    assert required(open_clip.get_tokenizer) in ([], ["model_name"]), OPEN_CLIP
    assert lacking(PreprocessCfg(), "size mean std") == [], OPEN_CLIP
    assert lacking(open_clip.model, "set_model_preprocess_cfg get_model_preprocess_cfg") == [], OPEN_CLIP
    source = inspect.getsource(factory)
    for name in ("local-dir:", OPEN_CLIP_CONFIG):
        assert name in source, f"{name!r} of {OPEN_CLIP}"
    constants = inspect.getsource(inspect.getmodule(open_clip.create_model)) + inspect.getsource(
        __import__("open_clip.constants", fromlist=["constants"])
    )
    for name in OPEN_CLIP_CHECKPOINTS:
        assert name in constants, f"{name!r} of {OPEN_CLIP}"


def test_open_clips_tokenizer_has_the_parts_that_are_used() -> None:
    tokenizer = open_clip_adapter.byte_pair_tokenizer(context_length=8)
    assert lacking(tokenizer, "encode encoder decoder") == [], OPEN_CLIP
    ids = tokenizer.encode("lung")
    assert [tokenizer.encoder[tokenizer.decoder[each]] for each in ids] == ids, OPEN_CLIP
    count = open_clip_adapter.token_counter(tokenizer)
    assert count is not None
    assert count("lung") == int((tokenizer(["lung"]) != 0).sum()), OPEN_CLIP


def test_timms_transformer_has_the_parts_that_are_used(wrapped: Any) -> None:
    assert open_clip_adapter.wraps_timm(wrapped), OPEN_CLIP
    assert lacking(wrapped, "trunk head") == [], OPEN_CLIP
    trunk = wrapped.trunk
    assert timm_adapter.is_transformer(trunk), TIMM
    names = "blocks num_prefix_tokens patch_embed norm_pre patch_drop _pos_embed norm attn_pool fc_norm head_drop head"
    assert lacking(trunk, names) == [], TIMM
    assert lacking(trunk.patch_embed, "grid_size") == [], TIMM
    assert len(required(trunk.forward_head)) == 1, f"forward_head of {TIMM}"
    assert len(required(trunk._pos_embed)) == 1, f"_pos_embed of {TIMM}"


@pytest.mark.parametrize("which", ["own", "wrapped"])
def test_a_split_tower_computes_what_the_whole_one_does(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    visual = (model.visual if which == "own" else model).eval()
    size = 32 if which == "own" else 224
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tower = split_tower(visual)
    with torch.no_grad():
        halves = tower.suffix(tower.prefix(images, 0), 0)
        torch.testing.assert_close(halves, visual(images), msg=f"{OPEN_CLIP}, {TIMM}")
