"""Converted networks against torch, what is kept of them, and which engine is chosen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from medclipsam.base import engine
from medclipsam.base.engine import PACKAGES, VARIABLE, chosen_engine, compile_forward, missing_packages
from medclipsam.base.errors import OptionError

needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason="the extra 'engine' is not installed")


class Small(nn.Module):
    """A convolution, an attention and a normalisation, as image encoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.convolution(x).flatten(2).transpose(1, 2))[:, None]
        return nn.functional.scaled_dot_product_attention(x, x, x)[:, 0]


class Unconvertible(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2 if x.sum() > 0 else 1)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return frozen(Small())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of kept graphs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "medclipsam" / "engine"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Return a list that grows by one with each conversion."""
    made: list[object] = []
    export = engine._export

    def counted(*given: object) -> bytes:
        made.append(given)
        return export(*given)

    monkeypatch.setattr(engine, "_export", counted)
    return made


EXAMPLE = (torch.zeros(1, 3, 16, 16),)


@needs_onnx
def test_a_converted_network_gives_torchs_output_and_is_kept(
    small: nn.Module, cache: Path, exports: list[object]
) -> None:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for number in range(2):
        run = compile_forward(small, EXAMPLE, "weights", engine="onnx")
        assert run is not small
        torch.testing.assert_close(run(x), small(x), rtol=0, atol=1e-4)
        assert len(exports) == 1, f"the kept graph is used at load {number + 1}"
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o022 == 0, "nobody else may write graphs that are run here"

    other = frozen(Small())
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other_run = compile_forward(other, EXAMPLE, "other weights", engine="onnx")
    torch.testing.assert_close(other_run(x), other(x), rtol=0, atol=1e-4)
    assert (len(exports), len(list(cache.iterdir()))) == (2, 2)

    # a damaged file is replaced, another shape goes through torch, and threads follow torch's
    kept.write_bytes(kept.read_bytes()[:100])
    run = compile_forward(small, EXAMPLE, "weights", engine="onnx")
    torch.testing.assert_close(run(x), small(x), rtol=0, atol=1e-4)
    assert len(exports) == 3
    batch = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(run(batch), small(batch))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.testing.assert_close(run(x), small(x), rtol=0, atol=1e-4)
        assert run.session.get_session_options().intra_op_num_threads == threads + 1
    finally:
        torch.set_num_threads(threads)


@needs_onnx
def test_without_a_folder_that_can_be_written_it_is_converted_all_the_same(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: list[object]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    run = compile_forward(small, EXAMPLE, "weights", engine="onnx")
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(run(x), small(x), rtol=0, atol=1e-4)
    assert len(exports) == 1


@needs_onnx
def test_what_cannot_be_converted_stays_with_torch_unless_the_engine_was_asked_for(cache: Path) -> None:
    module = frozen(Unconvertible())
    assert compile_forward(module, EXAMPLE, "weights") is module
    with pytest.raises(Exception):  # noqa: B017, PT011 - the exporter's own
        compile_forward(module, EXAMPLE, "weights", engine="onnx")
    assert not cache.exists() or not list(cache.iterdir())


@needs_onnx
def test_a_graph_with_other_outputs_is_not_used(small: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = engine._export
    monkeypatch.setattr(engine, "_export", lambda module, *given: export(frozen(Small()), *given))
    assert compile_forward(small, EXAMPLE, "weights") is small
    assert not cache.exists() or not list(cache.iterdir())


def test_the_engine_is_chosen_by_device_packages_and_setting(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_version", lambda package: "1.0")
    assert chosen_engine() == "onnx"
    assert chosen_engine(torch.device("cuda:1")) == "torch"
    assert chosen_engine(engine="torch") == "torch"
    monkeypatch.setenv(VARIABLE, "torch")
    assert chosen_engine() == "torch"
    assert compile_forward(small, EXAMPLE, "weights") is small
    monkeypatch.setenv(VARIABLE, "")
    assert chosen_engine() == "onnx"
    assert compile_forward(small, EXAMPLE, "weights", gains=False) is small
    for package in PACKAGES:
        monkeypatch.setattr(engine, "_version", lambda asked, missing=package: None if asked == missing else "1.0")
        assert chosen_engine() == "torch"
        with pytest.raises(OptionError, match=package):
            chosen_engine(engine="onnx")


@pytest.mark.parametrize(("device", "asked"), [("cpu", "tensorrt"), ("cuda", "onnx"), ("mps", "onnx")])
def test_an_engine_that_cannot_be_had_is_refused(device: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_version", lambda package: "1.0")
    with pytest.raises(OptionError) as caught:
        chosen_engine(device, asked)
    assert caught.value.value == asked
    monkeypatch.setenv(VARIABLE, asked)
    with pytest.raises(OptionError) as caught:
        chosen_engine(device)
    assert caught.value.key == VARIABLE
