"""Sub-processes that MONAI Label runs: what is asked for while one is on its way."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from monailabel.utils.async_tasks import utils

from medclipsam.server.api.routes import tasks
from medclipsam.server.api.users import ROLES, User, role_name
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.errors import AlreadyRunningError


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


def test_users_see_no_folders_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {
        "status": "DONE",
        "request": {"model": "network", "out": "/srv/studies/networks"},
        "details": deque(["FileNotFoundError: '/srv/data of/x.py' (at /opt/app/lib/a.py:3)", "see http://host/a/b"]),
        "progress": {"loss": 1.5, "error": "No room in /var/lib/x/."},
    }
    told = str(tasks._for_user(User("ann", ("monailabel-annotator",)), state))
    assert not any(folder in told for folder in ("/srv", "/opt", "/lib", "/var"))
    assert all(kept in told for kept in ("a.py:3", "http://host/a/b", "1.5", "DONE", "network"))
    assert tasks._for_user(User("root", tuple(map(role_name, ROLES))), state) == state


def test_nothing_is_waited_for_where_nothing_is_on_its_way(
    started: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.time, "sleep", lambda seconds: pytest.fail("waited"))
    assert tasks._stop("train") is None
