import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medclipsam.base.locks import process_start
from medclipsam.training.lock import TrainingLock, TrainingRunsError, holder_of, training_state

HOLD = """
import sys, time
from pathlib import Path
from medclipsam.training.lock import TrainingLock
with TrainingLock(Path(sys.argv[1]), "network_a") as lock:
    lock.tell({"epoch": 3})
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_never_train_and_who_does_is_told(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(TrainingRunsError, match=rf"Process {other.pid} trains network_a"):
        TrainingLock(tmp_path, "network_b")
    holder = holder_of(tmp_path)
    assert holder is not None
    assert (holder.pid, holder.what) == (other.pid, "network_a")
    assert holder.started == process_start(other.pid)
    assert training_state(tmp_path) == {"epoch": 3}


def test_a_killed_training_leaves_no_lock(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder_of(tmp_path) is None
    assert training_state(tmp_path) == {"epoch": 3, "state": "interrupted"}
    with TrainingLock(tmp_path, "network_b"):
        holder = holder_of(tmp_path)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert holder_of(tmp_path) is None


def test_a_process_of_the_same_number_is_another(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    file = tmp_path / "training.holder.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "started": "another boot:1"}))
    assert holder_of(tmp_path) is None


def test_looking_does_not_keep_a_training_from_starting(tmp_path: Path) -> None:
    with TrainingLock(tmp_path, "first"):
        pass
    stop = time.monotonic() + 1.0
    looker = multiprocessing.get_context("fork").Process(target=_look, args=(tmp_path, stop))
    looker.start()
    while time.monotonic() < stop:
        with TrainingLock(tmp_path, "next"):
            pass
    looker.join()


def _look(folder: Path, stop: float) -> None:
    while time.monotonic() < stop:
        holder_of(folder)


def test_ended_processes_have_no_process_start() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    end = time.monotonic() + 20
    while process_start(process.pid) is not None and time.monotonic() < end:
        time.sleep(0.02)
    assert process_start(process.pid) is None  # a zombie that nobody has waited for
    process.wait()
    own = process_start(os.getpid())
    assert own is not None
    assert own == process_start(os.getpid())


def test_what_is_told_of_a_training_is_private(tmp_path: Path) -> None:
    with TrainingLock(tmp_path, "network_a") as lock:
        lock.tell({"state": "running"})
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        assert len(files) >= 2
        assert all(path.stat().st_mode & 0o077 == 0 for path in files)
