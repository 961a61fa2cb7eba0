"""Kills of workers, nodes and drivers, two drivers, and a PACS that goes away: nothing is lost or doubled.

The method is a stand-in for the models, and the scenarios are those of benchmarks/cohort.py with few studies.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_cohort", ROOT / "benchmarks" / "cohort.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def complete(result: dict[str, int]) -> bool:
    """Whether every study has its result, once."""
    return result["set aside"] == 0 and len({result[name] for name in ("studies", "done", "rows", "images")}) == 1


@pytest.mark.timeout(900)
def test_kills_and_two_drivers_lose_and_double_nothing(benchmark: ModuleType) -> None:
    pytest.importorskip("ray")
    results = benchmark.kills(24)
    assert results.keys() == {"worker", "node", "driver", "two drivers"}
    for name, result in results.items():
        assert complete(result), name
    assert results["two drivers"]["done again"] == 0


@pytest.mark.timeout(600)
def test_memory_of_the_driver_does_not_grow_with_the_studies(benchmark: ModuleType) -> None:
    pytest.importorskip("ray")
    few, many = benchmark.nodes([40, 400])
    assert many < 1.1 * few


@pytest.mark.timeout(600)
def test_a_pacs_that_goes_away_is_waited_for(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # restored afterwards, since the benchmark sets them
    for name in ("MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD"):
        monkeypatch.setenv(name, "")
    result = benchmark.pacs_away(5)
    assert result["done"] == result["studies"] > 40
    assert result["set aside"] == 0
    assert result["rows"] == result["images"] == result["segmentations"] >= result["studies"]
