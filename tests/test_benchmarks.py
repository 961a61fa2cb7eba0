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


def test_the_steps_are_timed_beside_eager_torch_and_the_published_way(capsys: pytest.CaptureFixture[str]) -> None:
    load("steps").main(["--small", "--images", "1", "--size", "64"])
    told = capsys.readouterr().out
    rows = {
        name.strip(): values.split()
        for name, values in re.findall(r"^  ([a-zA-Z' ]+?) {2,}([\d. ]+)$", told, re.MULTILINE)
    }
    expected = {"saliency map", "SAM's image encoder", "presence of a plane", "first prompt", "second text", "click"}
    assert set(rows) == {*expected, "a window"}
    # published, eager, ours and their ratios; no published way of a click, of presence and of our network
    published, eager, ours, *ratios = map(float, rows["saliency map"])
    assert ratios == pytest.approx([published / ours, eager / ours], rel=0.2)
    assert {len(values) for values in rows.values()} == {3, 5}


def test_growth_is_told_beside_the_growth_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    load("growth").main(["--planes", "4", "5", "--targets", "1", "2", "--images", "--clients", "--size", "64"])
    rows = re.findall(r"^  (\d) +([\d.]+)(?: +([\d.]+) +([\d.]+))?$", capsys.readouterr().out, re.MULTILINE)
    assert [row[0] for row in rows] == ["4", "5", "1", "2"]
    assert [row[3] for row in rows] == ["", "1.2", "", "2.0"]


def test_both_ways_through_a_volume_are_measured_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = load("volume")
    model = benchmark.ZeroShot.load("demo")
    image, masks = benchmark.phantom("CT", 1, 6, 64)
    lungs = benchmark.Volume("phantom", image, "lungs", masks["lungs"])
    nothing = benchmark.Volume("nothing", image, "lungs", masks["lungs"] & False)
    benchmark.compare(model, iter([lungs, nothing]))
    told = capsys.readouterr().out
    for mode in ("planes", "propagate"):
        found = re.search(rf"^{mode} +Dice ([\d.]+) .* beyond ([\d.]+) %", told, re.MULTILINE)
        assert found is not None
        assert 0 <= float(found[1]) <= 1
        assert 0 <= float(found[2]) <= 100
    assert re.search(r"^dice: difference [+-][\d.]+ \([+-][\d.]+ to [+-][\d.]+\)$", told, re.MULTILINE)
    stack, _ = benchmark.make_volume("CT", 1, 6, size=64, raw=True)
    benchmark.write(stack, "CT", tmp_path / "phantom.nii")
    benchmark.memory(model, tmp_path / "phantom.nii")
    peak, volume, beyond = map(int, re.findall(r"(\d+) MiB", capsys.readouterr().out))
    assert peak == pytest.approx(volume + beyond, abs=1)


def test_segmentations_of_each_kind_are_measured_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    load("segmentations").main(["--planes", "6", "--size", "64"])
    rows = re.findall(r"^  ([A-Z]+) +([\d.]+) +([\d.]+) +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert [kind for kind, *_ in rows] == ["BINARY", "LABELMAP"]
