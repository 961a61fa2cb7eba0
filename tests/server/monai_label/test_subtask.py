"""How MONAI Label's sub-processes get their requests, and when they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from medclipsam.server.monai_label import subtask

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="servers run on Linux")


def test_a_request_is_not_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_request.py").write_text(
        "import sys\nprint(open('/proc/self/cmdline').read().replace(chr(0), ' '), sys.stdin.read(), sep='\\n')\n"
    )
    monkeypatch.setattr(subtask, "NAME", "echo_request")
    request = json.dumps({"text": "secret prompt"})
    process = subtask.start(
        ["python", "-m", "monailabel.interfaces.utils.app", "-m", "batch_infer", "-r", request],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout is not None
    with process, process.stdout as answer:
        command, received = answer.read().splitlines()
    assert command.split()[-2:] == [str(os.getpid()), "batch_infer"]
    assert "secret" not in command
    assert received == request


def test_a_process_that_ends_at_once_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtask, "NAME", "not_there_at_all")
    request = json.dumps({"text": "x" * 2**20})
    process = subtask.start(["-m", "train", "-r", request], stderr=subprocess.DEVNULL, universal_newlines=True)
    assert process.wait(60) != 0


@pytest.mark.parametrize("ended_before", [False, True])
def test_a_batch_ends_with_its_server(ended_before: bool) -> None:
    child = (
        "import sys, time; from medclipsam.server.monai_label.subtask import _end_with; "
        f"time.sleep({1 if ended_before else 0}); _end_with(int(sys.argv[1])); print('on', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdout=subprocess.PIPE); "
        f"print(child.pid, flush=True); {'' if ended_before else 'child.stdout.readline(); '}"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        batch = psutil.Process(int(server.stdout.readline()))
        assert server.stdout.readline() == "ready\n"
        server.kill()
    try:
        batch.wait(30)
    except psutil.TimeoutExpired:
        batch.kill()
        raise
