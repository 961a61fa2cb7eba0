"""Converted networks against torch, what is kept of them, and which engine is chosen."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from medclipsam.base import engine
from medclipsam.base.engine import VARIABLE, Choice, choices, chosen_engine, compile_forward, has_bfloat16
from medclipsam.base.errors import OptionError


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


EXAMPLE = (torch.zeros(1, 3, 16, 16),)
X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def converted(module: nn.Module, identity: str = "weights", asked: str = "openvino") -> engine._Converted:
    run = compile_forward(module, EXAMPLE, identity, name="small", engine=asked)
    assert isinstance(run, engine._Converted)
    return run


def test_a_converted_network_gives_torchs_output_and_is_kept(small: nn.Module, cache: Path) -> None:
    for _ in range(2):
        torch.testing.assert_close(converted(small)(X), small(X), rtol=0, atol=1e-4)
    (kept,) = cache.iterdir()
    made = (kept / "graph.xml").stat().st_mtime_ns
    converted(small)
    assert (kept / "graph.xml").stat().st_mtime_ns == made, "the kept graph is used"
    assert kept.stat().st_mode & 0o077 == 0, "nobody else may write graphs that are run here"
    (choice,) = choices()
    assert (choice.name, choice.engine, choice.difference < 1e-4) == ("small", "openvino", True)

    other = frozen(Small())
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(converted(other, "other weights")(X), other(X), rtol=0, atol=1e-4)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "choice.json"])
def test_a_damaged_graph_is_made_again(small: nn.Module, cache: Path, file: str) -> None:
    converted(small)
    (kept,) = cache.iterdir()
    (kept / file).write_bytes((kept / file).read_bytes()[:20])
    torch.testing.assert_close(converted(small)(X), small(X), rtol=0, atol=1e-4)
    assert list(cache.iterdir()) == [kept]
    assert len((kept / file).read_bytes()) > 20


def test_batches_run_row_by_row_and_other_shapes_go_through_torch(small: nn.Module) -> None:
    run = converted(small)
    batch = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(run(batch), small(batch), rtol=0, atol=1e-4)
    wider = torch.randn(2, 3, 32, 16)
    torch.testing.assert_close(run(wider), small(wider))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.testing.assert_close(run(X), small(X), rtol=0, atol=1e-4)
        assert run.threads == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_without_a_folder_that_can_be_written_it_is_converted_all_the_same(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    torch.testing.assert_close(converted(small)(X), small(X), rtol=0, atol=1e-4)
    assert choices() == []


def test_what_cannot_be_converted_stays_with_torch_unless_the_engine_was_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_WORTH", 0.0)
    module = frozen(Unconvertible())
    assert compile_forward(module, EXAMPLE, "weights", name="odd") is module
    with pytest.raises(Exception):  # noqa: B017, PT011 - the exporter's own
        compile_forward(module, EXAMPLE, "weights", name="odd", engine="openvino")
    assert not cache.exists() or not list(cache.iterdir())


def test_a_graph_with_other_outputs_is_not_used(small: nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_WORTH", 0.0)
    monkeypatch.setitem(engine._TOLERANCE, "f32", 0.0)
    assert compile_forward(small, EXAMPLE, "weights", name="small") is small
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(("seconds", "engine_of_choice"), [((1.0, 0.5), "openvino"), ((1.0, 1.5), "torch")])
def test_auto_takes_the_faster_engine_and_remembers_it(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], engine_of_choice: str
) -> None:
    measured = iter(seconds)
    monkeypatch.setattr(engine, "_seconds", lambda *given: next(measured))
    run = compile_forward(small, EXAMPLE, "weights", name="small")
    (choice,) = choices()
    assert choice == Choice("small", engine_of_choice, *seconds, difference=choice.difference)
    assert (run is small) == (engine_of_choice == "torch")
    # a second measurement would find no more times
    assert (compile_forward(small, EXAMPLE, "weights", name="small") is small) == (run is small)


def test_a_network_that_torch_runs_at_once_is_not_converted(small: nn.Module, cache: Path) -> None:
    assert compile_forward(small, EXAMPLE, "weights", name="small") is small
    assert not cache.exists()


def test_choices_of_other_versions_are_not_told(small: nn.Module, cache: Path) -> None:
    converted(small)
    (kept,) = cache.iterdir()
    content = json.loads((kept / "choice.json").read_text())
    (kept / "choice.json").write_text(json.dumps({**content, "versions": ["1", "1"]}))
    assert choices() == []


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_is_near_and_kept_apart(small: nn.Module, cache: Path) -> None:
    exact, near = converted(small)(X), converted(small, asked="openvino-bf16")(X)
    difference = float((near - exact).abs().max() / exact.abs().max())
    assert 1e-6 < difference < 0.05
    assert len(list(cache.iterdir())) == 2


def test_threads_may_run_on_every_core() -> None:
    """OpenVINO pins its threads to the first cores while it runs: two processes of one thread each would share one."""
    net = frozen(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)))
    images = torch.randn(1, 3, 128, 128)
    run = compile_forward(net, (images,), "weights", name="wide", engine="openvino")
    seen, ended = set(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError):
                    seen.add(frozenset(os.sched_getaffinity(int(thread))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        run(images)
    ended.set()
    watcher.join()
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_openvino_sends_nothing() -> None:
    """Its package reports imports and conversions to its makers unless the telemetry is missing."""
    program = (
        "import sys\n"
        "tried = []\n"
        "def hook(event, given):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname'): tried.append(given)\n"
        "sys.addaudithook(hook)\n"
        "import torch\n"
        "from medclipsam.base.engine import compile_forward\n"
        "net = torch.nn.Conv2d(1, 1, 3).eval().requires_grad_(False)\n"
        "compile_forward(net, (torch.zeros(1, 1, 8, 8),), 'x', name='x', engine='openvino')\n"
        "import time; time.sleep(0.5)\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(len(tried), telemetry_utils.tm.__name__)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["0", "openvino.tools.ovc.telemetry_stub"]


def test_the_engine_is_chosen_by_device_package_and_setting(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_engine() == "openvino"
    assert chosen_engine(torch.device("cuda:1")) == "torch"
    assert chosen_engine(engine="torch") == "torch"
    monkeypatch.setenv(VARIABLE, "torch")
    assert chosen_engine() == "torch"
    assert compile_forward(small, EXAMPLE, "weights", name="small") is small
    monkeypatch.setenv(VARIABLE, "")
    assert chosen_engine() == "openvino"
    monkeypatch.setattr(engine, "_version", lambda package: None)
    assert chosen_engine() == "torch"
    with pytest.raises(OptionError, match="medclipsam\\[engine\\]"):
        chosen_engine(engine="openvino")


@pytest.mark.parametrize(("device", "asked"), [("cpu", "tensorrt"), ("cuda", "openvino"), ("mps", "openvino-bf16")])
def test_an_engine_that_cannot_be_had_is_refused(device: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError) as caught:
        chosen_engine(device, asked)
    assert caught.value.value == asked
    monkeypatch.setenv(VARIABLE, asked)
    with pytest.raises(OptionError) as caught:
        chosen_engine(device)
    assert caught.value.key == VARIABLE
