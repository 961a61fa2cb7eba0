"""What this machine has to compute on: GPUs, their driver, torch's CUDA, and memory.

Looking and judging are kept apart: `Machine.look` asks the machine, all else are functions of what it found.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The oldest Linux driver of each major version of CUDA; within one, minor versions are compatible (NVIDIA, CUDA
# Compatibility, "Minor version compatibility").
MINIMUM_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580"}

_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits")
_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # PCI class of display controllers
# NVIDIA's driver, that of WSL, and AMD's, whose GPUs torch calls CUDA devices too.
_DRIVER_TRACES = ("proc/driver/nvidia", "dev/nvidiactl", "dev/nvidia0", "dev/nvhost-gpu", "dev/dxg", "dev/kfd")


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it.

    Parameters
    ----------
    name : str
        Name of the product.
    capability : tuple of int
        Compute capability, such as (9, 0).
    total, free : int
        Bytes of its memory.
    """

    name: str
    capability: tuple[int, int]
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """What was found on a machine.

    Parameters
    ----------
    torch_cuda : str or None
        CUDA version that torch is built for; None for a build without CUDA.
    torch_archs : tuple of str
        GPU architectures that torch has code for: "sm_90", "compute_90" ...
    gpus : tuple of Gpu
        What torch can use; empty where it can use none.
    torch_error : str
        Why torch can use none, in its words; empty where it does not say.
    driver : str or None
        Version of the NVIDIA driver.
    driver_gpus : tuple of str
        Names of the GPUs that the driver lists.
    nvidia_smi_error : str
        What nvidia-smi says where it fails; empty where it works or is not there.
    pci_gpus : int
        NVIDIA display controllers on the PCI bus, with or without a driver.
    visible : str or None
        CUDA_VISIBLE_DEVICES.
    memory, memory_total : int
        Bytes of main memory that this process may still take, and all there are; 0 where not known.
    """

    torch_cuda: str | None = None
    torch_archs: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    torch_error: str = ""
    driver: str | None = None
    driver_gpus: tuple[str, ...] = ()
    nvidia_smi_error: str = ""
    pci_gpus: int = 0
    visible: str | None = None
    memory: int = 0
    memory_total: int = 0

    @classmethod
    def look(cls) -> Machine:
        """Ask nvidia-smi, the PCI bus and the kernel, and torch where there may be a GPU or it is loaded already."""
        driver, names, nvidia_smi_error = read_smi(*_run_smi())
        on_bus = pci_gpus(Path("/sys/bus/pci/devices"))
        archs: tuple[str, ...] = ()
        gpus: tuple[Gpu, ...] = ()
        says = ""
        if "torch" in sys.modules or names or nvidia_smi_error or on_bus or may_have_gpu():
            archs, gpus, says = _ask_torch()
        available, total = main_memory()
        return cls(
            torch_cuda=_torch_cuda(),
            torch_archs=archs,
            gpus=gpus,
            torch_error=says,
            driver=driver,
            driver_gpus=names,
            nvidia_smi_error=nvidia_smi_error,
            pci_gpus=on_bus,
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
            memory=available,
            memory_total=total,
        )

    @property
    def has_gpu(self) -> bool:
        """Whether there is an NVIDIA GPU, usable or not."""
        return bool(self.gpus or self.driver_gpus or self.pci_gpus or self.nvidia_smi_error)


def gpu_problem(machine: Machine) -> str | None:
    """Return why a GPU that is there cannot be used and what to do, as a sentence; None where all is well or no GPU is.

    Parameters
    ----------
    machine : Machine
        What was found.
    """
    if not machine.has_gpu:
        return None
    if machine.torch_cuda is None:
        return "An NVIDIA GPU is there, but this torch is built without CUDA: install a CUDA build of torch."
    if machine.gpus:
        return _unsupported(machine.gpus, machine.torch_archs)
    if "mismatch" in machine.nvidia_smi_error.lower():
        return (
            f"The NVIDIA driver was updated under the running system ({machine.nvidia_smi_error}): restart the machine."
        )
    if machine.driver is None:
        said = f" ({machine.nvidia_smi_error})" if machine.nvidia_smi_error else ""
        return f"An NVIDIA GPU is there, but its driver does not answer{said}: install or load the driver."
    if _numbers(machine.driver) < _numbers(needed := minimum_driver(machine.torch_cuda)):
        return (
            f"The NVIDIA driver {machine.driver} is too old for CUDA {machine.torch_cuda}, which this torch is built "
            f"for: update it to {needed} or newer, or install a torch that is built for an older CUDA."
        )
    if machine.visible is not None and machine.visible.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={machine.visible!r} hides every GPU: unset it."
    said = f" ({machine.torch_error})" if machine.torch_error else ""
    return (
        f"The driver {machine.driver} lists {len(machine.driver_gpus)} GPU(s), but torch cannot use them{said}: in a "
        "container, start it with the GPUs; else restart the machine or see the driver's log."
    )


def minimum_driver(cuda: str) -> str:
    """Return the oldest driver for a CUDA version, "13.0": that of its major version, or of the newest one known."""
    major = int(cuda.split(".")[0])
    return MINIMUM_DRIVER.get(major, MINIMUM_DRIVER[max(MINIMUM_DRIVER)])


def cpu_warning(machine: Machine, device: str | None) -> str | None:
    """Return a sentence where the CPU would be used although a GPU was meant, else None.

    Parameters
    ----------
    machine : Machine
        What was found.
    device : str or None
        What was asked for; None takes the GPU where there is one, and "cpu" means it.
    """
    if device is not None or machine.gpus:
        return None
    problem = gpu_problem(machine)
    return f"The CPU is used. {problem}" if problem else None


def read_smi(table: str, error: str) -> tuple[str | None, tuple[str, ...], str]:
    """Read nvidia-smi's answer.

    Parameters
    ----------
    table : str
        Lines "name, driver version, total MiB, free MiB".
    error : str
        What it said where it failed.

    Returns
    -------
    driver : str or None
    names : tuple of str
    says : str
        Its first line where it holds no table.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.count(",") == 3]
    if rows:
        return rows[0][1], tuple(row[0] for row in rows), ""
    lines = [line.strip() for line in (error or table).splitlines() if line.strip()]
    return None, (), lines[0].rstrip(".") if lines else ""


def pci_gpus(devices: Path) -> int:
    """Count NVIDIA's display controllers among the PCI devices of a /sys folder."""
    count = 0
    for device in devices.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        count += vendor == _NVIDIA and kind.startswith(_DISPLAY)
    return count


def may_have_gpu(root: Path = Path("/"), system: str = sys.platform) -> bool:
    """Whether a GPU's driver has left a trace: its devices, in a container or under WSL too. True where not known."""
    if system != "linux":
        return True
    return any((root / name).exists() for name in _DRIVER_TRACES)


def main_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Return the bytes of main memory that are available, and all there are; (0, 0) where the system does not tell.

    A container's own limit (cgroup v2) counts where it is smaller than what the machine has.
    """
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available, total = (int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return 0, 0
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        # the page cache of files is given back when memory is short
        used -= int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no such limit, or "max"
        return available, total
    return max(0, min(available, limit - used)), min(total, limit)


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch is built for, which its file of versions tells in no time."""
    if "torch" not in sys.modules:
        found = importlib.util.find_spec("torch")
        for folder in found.submodule_search_locations or () if found else ():
            with contextlib.suppress(Exception):
                cuda = runpy.run_path(os.path.join(folder, "version.py"))["cuda"]
                return None if cuda is None else str(cuda)
    import torch

    version: str | None = torch.version.cuda
    return version


def _ask_torch() -> tuple[tuple[str, ...], tuple[Gpu, ...], str]:
    import warnings

    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            return (), (), " ".join(str(said[-1].message).split()).rstrip(".") if said else ""
        try:
            gpus = []
            for index in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(index)
                name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
                gpus.append(Gpu(name, capability, total, free))
        except RuntimeError as error:
            return (), (), str(error).splitlines()[0].rstrip(".")
    return tuple(torch.cuda.get_arch_list()), tuple(gpus), ""


def _run_smi() -> tuple[str, str]:
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return "", ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"nvidia-smi does not answer: {type(error).__name__}"
    # it writes some of its errors to standard output
    return (done.stdout, "") if done.returncode == 0 else ("", done.stderr or done.stdout)


def _unsupported(gpus: Sequence[Gpu], archs: Sequence[str]) -> str | None:
    """Return a sentence about GPUs that torch has no code for: neither for their generation nor to be compiled."""
    numbers = [(kind, int(digits)) for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(archs))]
    for gpu in gpus:
        own = 10 * gpu.capability[0] + gpu.capability[1]
        fits = any(
            (number // 10 == own // 10 and number <= own) if kind == "sm" else number <= own for kind, number in numbers
        )
        if numbers and not fits:
            return (
                f"{gpu.name} has compute capability {own // 10}.{own % 10}, which this torch has no code for "
                f"({', '.join(archs)}): install a torch that is built for it, or use --device cpu."
            )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
