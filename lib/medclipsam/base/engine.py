"""Networks that only run forward, through an inference engine where that is faster: ONNX Runtime on CPUs.

The environment variable `MEDCLIPSAM_ENGINE` chooses. "auto", the default, takes ONNX Runtime on a CPU where its
packages are installed and the network gains from it; "torch" never; "onnx" for every network that can be converted.
GPUs, and whatever needs gradients, stay with torch.

A network is converted once: the graph is kept in the user's cache folder under a name made from the weights' identity
and the versions of the libraries, so that other weights or libraries never meet it. Without a folder that can be
written the conversion is repeated in each process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.base.errors import OptionError
from medclipsam.base.files import PRIVATE, write_bytes

if TYPE_CHECKING:
    import torch

VARIABLE = "MEDCLIPSAM_ENGINE"
ENGINES = ("auto", "torch", "onnx")
# The extra "engine": the last two only convert.
PACKAGES = ("onnxruntime", "onnx", "onnxscript")

# Part of the names of kept graphs: to be raised when the way of converting changes.
_FORMAT = 1
# The greatest difference from torch's output, as a share of its greatest value, that a new graph may have.
_TOLERANCE = 1e-4
# A graph of more cannot be stored as one file.
_MAX_BYTES = 1 << 30

_log = logging.getLogger(__name__)


def chosen_engine(device: str | torch.device = "cpu", engine: str | None = None) -> str:
    """Return the engine for a network that gains from one, "torch" or "onnx".

    Parameters
    ----------
    device : str or torch.device
        Where the network is.
    engine : {"auto", "torch", "onnx"}, optional
        What was asked for; by default what `MEDCLIPSAM_ENGINE` says, else "auto".

    Raises
    ------
    OptionError
        If the engine is unknown, or "onnx" was asked for and is not installed or the network is not on the CPU.
    """
    asked = engine or os.environ.get(VARIABLE) or "auto"
    name = "engine" if engine else VARIABLE
    if asked not in ENGINES:
        raise OptionError(name, asked, "one of " + ", ".join(ENGINES))
    missing, on_cpu = missing_packages(), str(device).startswith("cpu")
    if asked == "onnx" and not on_cpu:
        raise OptionError(name, asked, f"auto or torch, since the device is {device}")
    if asked == "onnx" and missing:
        allowed = f"auto or torch, since {', '.join(missing)} are not installed; install medclipsam[engine]"
        raise OptionError(name, asked, allowed)
    return "torch" if asked == "torch" or missing or not on_cpu else "onnx"


def missing_packages() -> list[str]:
    """Return the packages of the extra "engine" that are not installed."""
    return [package for package in PACKAGES if _version(package) is None]


def compile_forward(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    identity: str,
    *,
    device: str | torch.device = "cpu",
    engine: str | None = None,
    gains: bool = True,
) -> Callable[..., torch.Tensor]:
    """Return a function with the outputs of a frozen module, by the engine that is chosen.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode, with frozen float32 weights, from tensors to one tensor, and without control flow that depends on
        their values.
    example_inputs : tuple of Tensor
        Inputs of the shapes that it will be given. Inputs of other shapes go through `module` itself.
    identity : str
        What tells the module and its weights from all others: the weights' sha256 and the module's name.
    device : str or torch.device
        Where the module is.
    engine : {"auto", "torch", "onnx"}, optional
        See `chosen_engine`.
    gains : bool
        Whether the engine is faster for this module; without that "auto" leaves it to torch.

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
    asked = engine or os.environ.get(VARIABLE) or "auto"
    too_large = sum(parameter.nbytes for parameter in module.parameters()) > _MAX_BYTES
    if chosen_engine(device, engine) == "torch" or too_large or (asked == "auto" and not gains):
        return module
    try:
        return _OnnxForward(module, example_inputs, identity)
    except Exception:  # exporter and engine raise errors of every kind
        if asked != "auto":
            raise
        _log.warning("A network cannot be converted for ONNX Runtime; torch is used.", exc_info=True)
        return module


class _OnnxForward:
    """A converted module; safe to use from several threads."""

    def __init__(self, module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], identity: str) -> None:
        self.module = module
        self.shapes = [tuple(example.shape) for example in example_inputs]
        self.names = [f"input_{number}" for number in range(len(example_inputs))]
        self._lock = threading.Lock()
        file = _graph_file(identity, self.shapes)
        if file.is_file():
            try:
                self._open(file.read_bytes())
                return
            except Exception:  # a damaged file is replaced
                _log.warning("The kept graph %s cannot be used; it is made again.", file, exc_info=True)
        graph = _export(module, example_inputs, self.names)
        self._open(graph)
        self._check(example_inputs)
        with contextlib.suppress(OSError):  # keeping it only saves time
            _write(file, graph)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        import torch

        if [tuple(given.shape) for given in inputs] != self.shapes:
            return self.module(*inputs)
        with self._lock:
            if torch.get_num_threads() != self.threads:
                self._open(self.graph)
            session = self.session
        feed = {name: given.contiguous().numpy() for name, given in zip(self.names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    def _open(self, graph: bytes) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        self.threads = torch.get_num_threads()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Threads that wait leave the processor to others, and memory is given back after each run.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self.session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.graph = graph

    def _check(self, example_inputs: tuple[torch.Tensor, ...]) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        inputs = [torch.rand(example.shape, generator=generator) for example in example_inputs]
        with torch.inference_mode():
            expected = self.module(*inputs)
        difference = float((self(*inputs) - expected).abs().max())
        if not difference <= _TOLERANCE * float(expected.abs().max()):
            raise RuntimeError(f"the converted network's output differs by {difference:.1e} from torch's")


def _export(module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], names: list[str]) -> bytes:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, example_inputs, dynamo=True, input_names=names, output_names=["output"], verbose=False
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def _graph_file(identity: str, shapes: list[tuple[int, ...]]) -> Path:
    versions = [_version(package) for package in ("torch", *PACKAGES)]
    key = repr((_FORMAT, identity, shapes, versions))
    cache = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification has a relative XDG_CACHE_HOME ignored.
    base = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "medclipsam" / "engine" / f"{hashlib.sha256(key.encode()).hexdigest()}.onnx"


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(file, content, mode=PRIVATE)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
