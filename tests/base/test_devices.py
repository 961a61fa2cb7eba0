"""What a machine says of its GPUs and memory, from recorded answers: no GPU is needed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medclipsam.base import devices
from medclipsam.base.devices import (
    Gpu,
    Machine,
    cpu_warning,
    gpu_problem,
    main_memory,
    may_have_gpu,
    minimum_driver,
    pci_gpus,
    read_smi,
)

GIB = 2**30
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 * GIB, 79 * GIB)
GOOD = Machine(
    torch_cuda="13.0",
    torch_archs=ARCHS,
    gpus=(H100,),
    driver="580.95.05",
    driver_gpus=(H100.name,),
    pci_gpus=1,
)
BARE = Machine(torch_cuda="13.0")
TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)"


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (replace(GOOD, torch_cuda=None, gpus=()), ["built without CUDA", "install"]),
        (replace(GOOD, gpus=(), driver="535.104.05", torch_error=TOO_OLD), ["535.104.05", "CUDA 13.0", "580 or newer"]),
        (replace(GOOD, gpus=(), driver="525.60.11", torch_cuda="12.4"), ["525.60.11", "525.60.13 or newer"]),
        (replace(GOOD, gpus=(), driver=None, driver_gpus=()), ["driver does not answer", "install"]),
        (
            replace(
                GOOD,
                gpus=(),
                driver=None,
                nvidia_smi_error="Failed to initialize NVML: Driver/library version mismatch",
            ),
            ["restart the machine"],
        ),
        (replace(GOOD, gpus=(), visible=""), ["CUDA_VISIBLE_DEVICES=''", "unset"]),
        (replace(GOOD, gpus=(), visible="-1"), ["CUDA_VISIBLE_DEVICES='-1'"]),
        (replace(GOOD, gpus=(), torch_error="no CUDA-capable device"), ["no CUDA-capable device", "container"]),
        (replace(GOOD, gpus=(Gpu("Tesla K80", (3, 7), GIB, GIB),)), ["Tesla K80", "3.7", "sm_75"]),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_with_what_to_do(machine: Machine, words: list[str]) -> None:
    problem = gpu_problem(machine)
    assert problem is not None
    for word in words:
        assert word in problem
    assert problem.endswith(".")
    assert "\n" not in problem
    if not machine.gpus:
        assert cpu_warning(machine, None) == f"The CPU is used. {problem}"


def test_no_word_where_all_is_well_or_there_is_no_gpu() -> None:
    for machine in (GOOD, BARE, Machine(torch_cuda=None)):
        assert gpu_problem(machine) is None
        assert cpu_warning(machine, None) is None


def test_a_driver_of_the_same_major_version_is_new_enough() -> None:
    # CUDA 12.9 runs on the first driver of CUDA 12: what stops torch is something else
    problem = gpu_problem(replace(GOOD, gpus=(), torch_cuda="12.9", driver="525.60.13"))
    assert problem is not None
    assert "too old" not in problem


def test_a_device_that_was_named_is_what_was_meant() -> None:
    broken = replace(GOOD, gpus=(), visible="")
    assert cpu_warning(broken, "cpu") is None
    assert cpu_warning(GOOD, None) is None


@pytest.mark.parametrize(
    ("capability", "usable"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 1), True),
        ((5, 2), False),
    ],
)
def test_code_runs_within_its_generation_and_ptx_on_later_ones(capability: tuple[int, int], usable: bool) -> None:
    machine = replace(GOOD, gpus=(Gpu("A", capability, GIB, GIB),))
    assert (gpu_problem(machine) is None) is usable


def test_ptx_is_compiled_for_a_generation_that_came_later() -> None:
    machine = replace(GOOD, gpus=(Gpu("A", (13, 0), GIB, GIB),))
    assert gpu_problem(machine) is None
    assert gpu_problem(replace(machine, torch_archs=("sm_90", "sm_120"))) is not None


@pytest.mark.parametrize(
    ("cuda", "driver"), [("11.8", "450.80.02"), ("12.6", "525.60.13"), ("13.0", "580"), ("14.1", "580")]
)
def test_the_driver_goes_by_the_major_version(cuda: str, driver: str) -> None:
    assert minimum_driver(cuda) == driver


def test_nvidia_smi_is_read_by_its_table() -> None:
    table = "NVIDIA H100 80GB HBM3, 580.95.05, 81559, 81079\nNVIDIA H100 80GB HBM3, 580.95.05, 81559, 81079\n"
    assert read_smi(table, "") == ("580.95.05", ("NVIDIA H100 80GB HBM3",) * 2, "")


@pytest.mark.parametrize(
    "said",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
        "NVIDIA driver is installed and running.\n\n",
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n",
        "No devices were found\n",
    ],
)
def test_what_nvidia_smi_says_where_it_fails_is_kept(said: str) -> None:
    driver, names, says = read_smi("", said)
    assert (driver, names) == (None, ())
    assert says == said.splitlines()[0].rstrip(".")


def test_a_machine_without_nvidia_smi_says_nothing() -> None:
    assert read_smi("", "") == (None, (), "")


def test_nvidias_display_controllers_are_counted_and_nothing_else(tmp_path: Path) -> None:
    devices = {"a": ("0x10de", "0x030000"), "b": ("0x10de", "0x030200"), "c": ("0x10de", "0x040300")}
    devices |= {"d": ("0x8086", "0x030000")}
    for name, (vendor, kind) in devices.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    (tmp_path / "e").mkdir()
    assert pci_gpus(tmp_path) == 2
    assert pci_gpus(tmp_path / "nowhere") == 0


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    8000000 kB\n")
    return file


def test_memory_is_what_the_kernel_says_is_available(meminfo: Path, tmp_path: Path) -> None:
    assert main_memory(meminfo, tmp_path / "no-cgroup") == (8_192_000_000, 16_384_000_000)
    assert main_memory(tmp_path / "nothing", tmp_path) == (0, 0)


def test_a_containers_limit_counts_without_its_file_cache(meminfo: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 500000000\n")
    assert main_memory(meminfo, tmp_path) == (1_500_000_000, 4_000_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory(meminfo, tmp_path) == (8_192_000_000, 16_384_000_000)


def test_this_machine_can_be_looked_at() -> None:
    machine = Machine.look()
    assert machine.torch_cuda == torch.version.cuda
    assert bool(machine.gpus) == torch.cuda.is_available()
    assert 0 < machine.memory <= machine.memory_total


@pytest.mark.parametrize("trace", ["dev/nvidiactl", "dev/nvidia0", "proc/driver/nvidia", "dev/dxg", "dev/kfd", None])
def test_traces_of_a_driver_are_seen(tmp_path: Path, trace: str | None) -> None:
    if trace is not None:
        (tmp_path / trace).mkdir(parents=True)
    assert may_have_gpu(tmp_path, "linux") == (trace is not None)
    # other systems leave none
    assert may_have_gpu(tmp_path, "win32")


@pytest.mark.parametrize(
    ("smi", "on_bus", "trace", "asked"),
    [
        (("", ""), 0, False, False),
        (("NVIDIA H100 80GB HBM3, 580.95.05, 81559, 81000", ""), 0, False, True),
        (("", "Failed to initialize NVML"), 0, False, True),
        (("", ""), 1, False, True),
        (("", ""), 0, True, True),
    ],
)
def test_torch_is_asked_only_where_there_may_be_a_gpu(
    monkeypatch: pytest.MonkeyPatch, smi: tuple[str, str], on_bus: int, trace: bool, asked: bool
) -> None:
    monkeypatch.setattr(devices, "_ask_torch", lambda: (ARCHS, (H100,), ""))
    monkeypatch.setattr(devices, "_run_smi", lambda: smi)
    monkeypatch.setattr(devices, "pci_gpus", lambda folder: on_bus)
    monkeypatch.setattr(devices, "may_have_gpu", lambda: trace)
    assert Machine.look().gpus == (H100,)  # it is loaded here
    monkeypatch.delitem(sys.modules, "torch")
    machine = Machine.look()
    assert machine.gpus == ((H100,) if asked else ())
    assert machine.torch_cuda == torch.version.cuda
    assert "torch" not in sys.modules
