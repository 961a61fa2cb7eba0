"""Sub-processes that MONAI Label runs: what is asked for while one is on its way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from monailabel.utils.async_tasks import utils

from medclipsam.server.conf import AppConf
from medclipsam.server.http import AlreadyRunningError
from medclipsam.server.routes import tasks


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[str]]]:
    """The sub-processes that MONAI Label starts; each is half a second on its way, and then sleeps."""
    begun: list[subprocess.Popen[str]] = []

    def slow(command: list[str], **options: Any) -> subprocess.Popen[str]:
        time.sleep(0.5)
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return begun[-1]

    for name in ("background_tasks", "background_processes", "background_executors"):
        monkeypatch.setattr(utils, name, {})
    monkeypatch.setattr(
        utils, "subprocess", SimpleNamespace(Popen=slow, STDOUT=subprocess.STDOUT, PIPE=subprocess.PIPE)
    )
    monkeypatch.setenv("PYTHONPATH", "")
    yield begun
    for process in begun:
        process.kill()
        process.wait()


@pytest.mark.parametrize("method", ["train", "batch_infer"])
def test_what_is_on_its_way_is_stopped(started: list[subprocess.Popen[str]], method: str) -> None:
    task = utils.run_background_task({}, method)
    assert task["status"] == "SUBMITTED"
    assert tasks._stop(method)["id"] == task["id"]
    assert started[0].wait(10) != 0
    utils.background_executors[method].shutdown(wait=True)
    assert task["status"] == "STOPPED"


def test_a_second_is_refused_while_the_first_is_on_its_way(
    started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "monailabel.utils.async_tasks.task.app_instance",
        lambda: SimpleNamespace(info=dict, bundle_path=lambda model: None),
    )
    utils.run_background_task({}, "train")
    with pytest.raises(AlreadyRunningError, match="Another train runs"):
        tasks._start(SimpleNamespace(app_conf=AppConf.from_strings({})), "train", {})  # type: ignore[arg-type]
    tasks._stop("train")
    utils.background_executors["train"].shutdown(wait=True)
    assert len(started) == 1


def test_nothing_is_waited_for_where_nothing_is_on_its_way(started: list[subprocess.Popen[str]]) -> None:
    before = time.monotonic()
    assert tasks._stop("train") is None
    assert time.monotonic() - before < tasks._START_SECONDS / 2
