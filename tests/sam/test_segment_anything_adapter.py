"""What is used of segment_anything is there, with the arguments that it is given; a failure names the version."""

import inspect
from importlib.metadata import version
from typing import Any

import pytest

from medclipsam.sam import segment_anything_adapter as adapter
from medclipsam.sam.build import build_sam

PACKAGE = f"segment_anything {version('segment_anything')}"
SMALL = {
    "image_size": 64,
    "patch_size": 16,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "window_size": 0,
    "global_attn_indexes": [0],
    "prompt_dim": 16,
    "mask_in_chans": 4,
    "decoder_depth": 1,
    "decoder_mlp_dim": 16,
    "decoder_num_heads": 2,
    "iou_head_depth": 1,
    "iou_head_hidden_dim": 16,
    "pixel_mean": [0.0] * 3,
    "pixel_std": [1.0] * 3,
}


@pytest.fixture(scope="module")
def sam() -> Any:
    return build_sam(SMALL)


def lacking(thing: Any, names: str) -> list[str]:
    return [name for name in names.split() if not hasattr(thing, name)]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            adapter.ImageEncoderViT,
            "img_size patch_size embed_dim depth num_heads mlp_ratio out_chans norm_layer use_rel_pos window_size "
            "global_attn_indexes",
        ),
        (adapter.PromptEncoder, "embed_dim image_embedding_size input_image_size mask_in_chans"),
        (adapter.PromptEncoder.forward, "points boxes masks"),
        (adapter.TwoWayTransformer, "depth embedding_dim mlp_dim num_heads"),
        (adapter.MaskDecoder, "transformer_dim transformer iou_head_depth iou_head_hidden_dim"),
        (
            adapter.MaskDecoder.forward,
            "image_embeddings image_pe sparse_prompt_embeddings dense_prompt_embeddings multimask_output",
        ),
        (adapter.Sam, "image_encoder prompt_encoder mask_decoder pixel_mean pixel_std"),
        (adapter.Sam.postprocess_masks, "masks input_size original_size"),
        (adapter.get_rel_pos, "q_size k_size rel_pos"),
    ],
)
def test_functions_take_what_they_are_given(function: Any, names: str) -> None:
    known = inspect.signature(function).parameters
    assert [name for name in names.split() if name not in known] == [], f"{function.__qualname__} of {PACKAGE}"


def test_the_networks_have_the_parts_that_are_used(sam: Any) -> None:
    assert lacking(sam, "image_encoder prompt_encoder mask_decoder pixel_mean pixel_std") == [], PACKAGE
    assert lacking(sam.image_encoder, "blocks img_size") == [], PACKAGE
    assert lacking(sam.prompt_encoder, "mask_input_size get_dense_pe") == [], PACKAGE
    attention = sam.image_encoder.blocks[0].attn
    assert isinstance(attention, adapter.Attention), PACKAGE
    assert lacking(attention, "num_heads scale qkv proj rel_pos_h rel_pos_w use_rel_pos") == [], PACKAGE


def test_the_published_architectures_are_known() -> None:
    assert {"vit_h", "vit_l", "vit_b"} <= adapter.sam_model_registry.keys(), PACKAGE
