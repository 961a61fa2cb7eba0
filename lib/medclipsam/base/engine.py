"""Networks that only run forward, by the engine that is fastest for them on this machine: OpenVINO or torch.

The environment variable `MEDCLIPSAM_ENGINE` chooses. "auto", the default, times a network with both on a CPU where
OpenVINO is installed, when the network is first used, and keeps the answer; "torch" never converts; "openvino" runs
every network that can be converted; "openvino-bf16" runs them in bfloat16, where the processor has instructions for
it, which halves the time of large transformers and changes their outputs by about 1 %. GPUs, and whatever needs
gradients, stay with torch.

A network is converted once: the graph and the times are kept in the user's cache folder under a name made from the
weights' identity, the versions of the libraries and the processor, so that nothing else ever meets them. Without a
folder that can be written the conversion is repeated in each process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import OptionError

if TYPE_CHECKING:
    import torch

VARIABLE = "MEDCLIPSAM_ENGINE"
ENGINES = ("auto", "torch", "openvino", "openvino-bf16")
# The extra "engine".
PACKAGE = "openvino"

# Part of the names of kept graphs: to be raised when the way of converting changes.
_FORMAT = 2
# The greatest difference from torch's output, as a share of its greatest value, that a converted network may have.
_TOLERANCE = {"f32": 1e-4, "bf16": 0.1}
# A network that torch runs in fewer seconds is not worth a conversion.
_WORTH = 0.05
# Larger networks are not converted: their weights are in memory twice afterwards.
_MAX_BYTES = 1 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Which engine runs a network on this machine, and why.

    Attributes
    ----------
    name : str
        The network, as its caller names it.
    engine : {"torch", "openvino", "openvino-bf16"}
        The choice.
    torch_seconds, openvino_seconds : float
        The time of one run each, when the choice was made.
    difference : float
        The greatest difference of the outputs, as a share of torch's greatest value.
    """

    name: str
    engine: str
    torch_seconds: float
    openvino_seconds: float
    difference: float


def chosen_engine(device: str | torch.device = "cpu", engine: str | None = None) -> str:
    """Return the engine that networks on a device may be run by: "torch", "openvino" or "openvino-bf16".

    Parameters
    ----------
    device : str or torch.device
        Where the network is.
    engine : {"auto", "torch", "openvino", "openvino-bf16"}, optional
        What was requested; by default the value of `MEDCLIPSAM_ENGINE`, else "auto".

    Raises
    ------
    OptionError
        If the engine is unknown, or OpenVINO was requested and is not installed, the network is not on the CPU, or the
        processor has no bfloat16.
    """
    name = "engine" if engine else VARIABLE
    asked = _asked(engine)
    if asked not in ENGINES:
        raise OptionError(name, asked, "one of " + ", ".join(ENGINES))
    installed, on_cpu = _version(PACKAGE) is not None, str(device).startswith("cpu")
    if asked.startswith("openvino"):
        if not on_cpu:
            raise OptionError(name, asked, f"auto or torch, since the device is {device}")
        if not installed:
            raise OptionError(name, asked, "auto or torch, since openvino is not installed: install medclipsam[engine]")
        if asked == "openvino-bf16" and not has_bfloat16():
            raise OptionError(name, asked, "auto, torch or openvino, since this processor has no bfloat16")
        return asked
    return "openvino" if asked == "auto" and installed and on_cpu else "torch"


def has_bfloat16() -> bool:
    """Return whether OpenVINO is installed and the processor has instructions for bfloat16."""
    return _version(PACKAGE) is not None and "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def choices() -> list[Choice]:
    """Return what was chosen on this machine so far for networks of the installed versions, by name."""
    found = []
    for file in sorted(_cache().glob("*/choice.json")) if _cache().is_dir() else []:
        with contextlib.suppress(OSError, ValueError, TypeError):
            content = json.loads(file.read_text())
            if content.pop("versions") == _versions():
                found.append(Choice(**content))
    return sorted(found, key=lambda choice: choice.name)


def compile_forward(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    identity: str | None,
    *,
    name: str,
    device: str | torch.device = "cpu",
    engine: str | None = None,
) -> Callable[..., torch.Tensor]:
    """Return a function with the outputs of a frozen module, by the engine that is chosen.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode, with frozen float32 weights, from tensors [1, ...] to one tensor [1, ...], and without control
        flow that depends on their values.
    example_inputs : tuple of Tensor
        Inputs of a batch of one, of the shapes that it will be given. Batches are run one after the other; inputs of
        other shapes go through `module` itself.
    identity : str or None
        What tells the module and its weights from all others: the weights' sha256 and the module's name. Without it
        nothing is kept for other processes, which suits weights that are soon replaced.
    name : str
        The module's name for people.
    device : str or torch.device
        Where the module is.
    engine : {"auto", "torch", "openvino", "openvino-bf16"}, optional
        See `chosen_engine`.

    Returns
    -------
    callable
        Tensors to a tensor without gradients; `module` itself where torch is chosen. With "auto" also where the
        conversion fails, which is logged. It takes torch's number of threads.

    Raises
    ------
    OptionError
        As `chosen_engine`.
    """
    chosen = chosen_engine(device, engine)
    if chosen == "torch" or sum(parameter.nbytes for parameter in module.parameters()) > _MAX_BYTES:
        return module
    automatic = _asked(engine) == "auto"
    kept = None if identity is None else _folder(identity, chosen, example_inputs)
    try:
        if kept is not None and (found := _read(kept)) is not None:
            choice, graph = found
            return module if automatic and choice.engine == "torch" else _Converted(module, example_inputs, graph)
        torch_seconds = _seconds(module, example_inputs)
        if automatic and torch_seconds < _WORTH:
            return module
        return _convert(module, example_inputs, chosen, name, kept, torch_seconds, automatic)
    except Exception:  # converter and engine raise errors of every kind
        if not automatic:
            raise
        _log.warning("The network %s cannot be converted for OpenVINO; torch is used.", name, exc_info=True)
        return module


def _convert(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    engine: str,
    name: str,
    kept: Path | None,
    torch_seconds: float,
    automatic: bool,
) -> Callable[..., torch.Tensor]:
    import torch

    from medclipsam.base import openvino_adapter

    _log.info("Converting the network %s for OpenVINO.", name)
    precision = "bf16" if engine == "openvino-bf16" else "f32"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = openvino_adapter.convert_model(torch.export.export(module, example_inputs))
    graph.set_rt_info(precision, "precision")
    converted = _Converted(module, example_inputs, graph)
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.rand(example.shape, generator=generator) for example in example_inputs)
    with torch.inference_mode():
        expected = module(*inputs)
    difference = float((converted(*inputs) - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE[precision]:
        raise RuntimeError(f"the converted network's output differs by {difference:.1e} from torch's")
    seconds = _seconds(converted, inputs)
    slower = automatic and seconds >= torch_seconds
    choice = Choice(name, "torch" if slower else engine, torch_seconds, seconds, difference)
    if kept is not None:
        with contextlib.suppress(OSError):  # keeping it only saves time
            _write(kept, choice, None if slower else graph)
    return module if slower else converted


class _Converted:
    """A converted module; safe to use from several threads."""

    def __init__(self, module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], graph: Any) -> None:
        self.module = module
        self.shapes = [tuple(example.shape) for example in example_inputs]
        self.graph = graph
        self._lock = threading.Lock()
        self._compile()

    def _compile(self) -> None:
        import torch

        self.threads = torch.get_num_threads()
        self._model = _core().compile_model(
            self.graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.graph.get_rt_info("precision").astype(str),
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                # pinned, the threads of several processes share the first cores, and the others wait
                "ENABLE_CPU_PINNING": False,
            },
        )

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        if [(1, *given.shape[1:]) for given in inputs] != self.shapes or not len(inputs[0]):
            return self.module(*inputs)
        with self._lock:
            if torch.get_num_threads() != self.threads:
                self._compile()
            request = self._model.create_infer_request()
        arrays = [given.detach().contiguous().numpy() for given in inputs]
        rows = [
            torch.from_numpy(request.infer([array[row : row + 1] for array in arrays], share_inputs=True)[0].copy())
            for row in range(len(arrays[0]))
        ]
        return torch.cat(rows)


def _seconds(run: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> float:
    """Return the time of the faster of two runs after one that warms up."""
    import torch

    times = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            run(*inputs)
            times.append(time.perf_counter() - start)
    return min(times[1:])


def _read(folder: Path) -> tuple[Choice, Any] | None:
    """Return a kept choice and its graph (None where torch was chosen); None where there is none or it is damaged."""
    try:
        content = json.loads((folder / "choice.json").read_text())
        del content["versions"]
        choice = Choice(**content)
        return choice, None if choice.engine == "torch" else _core().read_model(folder / "graph.xml")
    except FileNotFoundError:
        return None
    except Exception:  # a damaged folder is replaced
        _log.warning("The kept graph %s cannot be used; it is made again.", folder, exc_info=True)
        return None


def _write(folder: Path, choice: Choice, graph: Any) -> None:
    """Keep a choice and its graph, whole or not at all."""
    from medclipsam.base import openvino_adapter

    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # made with mode 0700: nobody else may write graphs that are run here
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        if graph is not None:
            openvino_adapter.save_model(graph, made / "graph.xml", compress_to_fp16=False)
        (made / "choice.json").write_text(json.dumps({**asdict(choice), "versions": _versions()}))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _folder(identity: str, engine: str, example_inputs: tuple[torch.Tensor, ...]) -> Path:
    shapes = [tuple(example.shape) for example in example_inputs]
    key = repr((_FORMAT, identity, engine, shapes, _versions(), _processor()))
    return _cache() / hashlib.sha256(key.encode()).hexdigest()


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification has a relative XDG_CACHE_HOME ignored.
    base = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "medclipsam" / "engine"


def _asked(engine: str | None) -> str:
    return engine or os.environ.get(VARIABLE) or "auto"


@lru_cache
def _core() -> Any:
    from medclipsam.base import openvino_adapter

    return openvino_adapter.Core()


@lru_cache
def _processor() -> str:
    """Return the processor's model, on which the times depend."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> list[str | None]:
    return [_version(package) for package in ("torch", PACKAGE)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
