"""The benchmarks that no other test touches run to their end with small sizes."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_the_gpu_benchmark_times_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    load("gpu").main(["--small", "--device", "cpu"])
    told = capsys.readouterr().out
    ratios = re.findall(r"^(\w+).* ms +([\d.]+) x$", told, re.MULTILINE)
    assert {part for part, _ in ratios} == {"tiny", "vision", "text", "m2ib", "training", "volume"}
    assert all(float(ratio) > 0 for _, ratio in ratios)


def test_the_laptop_benchmark_holds_each_step_against_eager_torch(capsys: pytest.CaptureFixture[str]) -> None:
    load("laptop").main(["demo", "--images", "1", "--size", "64"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[-4] for row in rows] == ["auto", "torch", "ratio"]
    chosen, eager, ratios = ([float(value) for value in row[-3:]] for row in rows)
    for a, b, ratio in zip(chosen, eager, ratios, strict=True):
        assert ratio == pytest.approx(a / b, rel=0.2, abs=0.05)
