"""Checkpoint files in the formats that SAM and MedSAM are published in, and files that are not what they should be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention

from medclipsam.base.errors import WeightsError
from medclipsam.sam import SamModel, build_sam, load_sam
from medclipsam.sam.segment_anything_adapter import FusedAttention


@pytest.fixture
def checkpoint(reference_sam: Sam, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file({key: value.half() for key, value in reference_sam.state_dict().items()}, path)
    return path


def test_a_vit_b_checkpoint_as_published_loads_frozen(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = sam_model_registry["vit_b"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(value.shape, generator=generator) for key, value in state.items()}
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(state, path)

    model = load_sam(path, "vit_b", identity="abc")

    assert model.image_size == 1024
    assert model.preprocessing == "sam"
    loaded = model.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not model.network.training
    np.testing.assert_allclose(model.network.pixel_mean.flatten(), [123.675, 116.28, 103.53], rtol=1e-6)

    medsam = load_sam(path, "medsam", identity="abc")
    assert (medsam.preprocessing, medsam.image_size) == ("medsam", 1024)

    with pytest.raises(WeightsError, match=r"is no vit_l: tensors .* missing .* of another shape .* looks like vit_b"):
        load_sam(path, "vit_l", identity="abc")


def test_half_precision_safetensors_run_in_single_precision(
    checkpoint: Path, reference_sam: Sam, tiny_arch: dict[str, Any]
) -> None:
    model = load_sam(checkpoint, tiny_arch, identity="abc")
    for name, parameter in model.network.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, reference_sam.get_parameter(name), rtol=1e-3, atol=1e-3)
    assert model.decode(model.embed(np.zeros((32, 32, 3), np.uint8)), [[0, 0, 9, 9]]).mask.shape == (32, 32)


def test_resolved_weights_make_a_model(checkpoint: Path, tiny_arch: dict[str, Any]) -> None:
    resolved: Any = SimpleNamespace(name="mine", kind="sam", path=checkpoint, sha256="f00d", arch=tiny_arch)
    assert SamModel.from_weights(resolved).identity == "f00d"
    resolved.kind = "clip"
    with pytest.raises(WeightsError, match="'mine' are of kind 'clip'"):
        SamModel.from_weights(resolved)


def test_a_training_checkpoint_with_its_weights_under_model_loads(
    reference_sam: Sam, tiny_arch: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "medsam_model_best.pth"
    torch.save({"model": reference_sam.state_dict(), "optimizer": {"lr": 0.1}, "epoch": 3}, path)
    model = load_sam(path, tiny_arch, identity="abc")
    torch.testing.assert_close(model.network.mask_decoder.iou_token.weight, reference_sam.mask_decoder.iou_token.weight)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth: there is no such file"):
        load_sam(tmp_path / "nowhere.pth", "vit_b", identity="abc")


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02garbage", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}: the file is damaged or no checkpoint"):
        load_sam(path, "vit_b", identity="abc")


def test_a_truncated_checkpoint_is_named(checkpoint: Path, tiny_arch: dict[str, Any]) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"tiny\.safetensors: the file is damaged"):
        load_sam(checkpoint, tiny_arch, identity="abc")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    marker = tmp_path / "ran"
    torch.save({"x": Trap(marker)}, path)
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        load_sam(path, "vit_b", identity="abc")
    assert not marker.exists()


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {"weight": "none"}}])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"other\.pth: the file holds no state dictionary"):
        load_sam(path, "vit_b", identity="abc")


def test_missing_and_unexpected_tensors_are_counted(
    reference_sam: Sam, tiny_arch: dict[str, Any], tmp_path: Path
) -> None:
    state = reference_sam.state_dict()
    del state["mask_decoder.iou_token.weight"], state["image_encoder.pos_embed"]
    state["extra"] = torch.zeros(1)
    path = tmp_path / "odd.safetensors"
    save_file(state, path)
    with pytest.raises(
        WeightsError, match=r"2 missing \(first: image_encoder.pos_embed\), 1 unexpected \(first: extra\)"
    ):
        load_sam(path, tiny_arch, identity="abc")


def test_unknown_architectures_are_refused(tiny_arch: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="'vit_x'; allowed: vit_h, vit_l, vit_b, medsam"):
        build_sam("vit_x")
    without = {key: value for key, value in tiny_arch.items() if key != "depth"}
    with pytest.raises(WeightsError, match=r"lacks the keys \['depth'\] and has the unknown keys \['layers'\]"):
        build_sam({**without, "layers": 3})
    with pytest.raises(WeightsError, match="cannot be built"):
        build_sam({**tiny_arch, "decoder_num_heads": 5})


def test_an_unknown_preprocessing_is_refused(reference_sam: Sam) -> None:
    with pytest.raises(WeightsError, match="'resize'; allowed: sam, medsam"):
        SamModel(reference_sam, identity="abc", preprocessing="resize")


@pytest.mark.parametrize("grid", [(5, 5), (8, 8)])
def test_fused_attention_gives_the_numbers_of_the_package(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = Attention(48, num_heads=4, use_rel_pos=True, input_size=grid)
    torch.nn.init.normal_(attention.rel_pos_h)
    torch.nn.init.normal_(attention.rel_pos_w)
    tokens = torch.randn(3, *grid, 48)
    torch.testing.assert_close(FusedAttention(attention)(tokens), attention(tokens), rtol=1e-5, atol=1e-5)


def test_the_whole_encoder_with_fused_attention_gives_the_numbers_of_the_package(
    model: SamModel, reference_sam: Sam
) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        model.network.image_encoder(pixels), reference_sam.image_encoder(pixels), rtol=1e-5, atol=1e-5
    )
