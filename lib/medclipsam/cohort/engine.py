"""Who does the work: processes of this machine here, actors on a cluster in `medclipsam.cohort.ray_engine`."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from medclipsam.cohort.store import Run
from medclipsam.cohort.work import Outcome, Task, Worker, WorkerSettings, failure_sentence

# Bytes of a worker's log that are kept with a study at which it ended.
_LOG_TAIL = 20_000


@dataclass(frozen=True)
class Event:
    """What has happened at a worker.

    Attributes
    ----------
    kind : {"ready", "done", "ended", "broken"}
        It has loaded its models; an attempt has ended; the worker ended unexpectedly; it cannot load its models.
    worker : str
    task : Task or None
        For "done".
    outcome : Outcome or None
        For "done".
    sentence : str
        For "ended" and "broken": why, as far as is known.
    """

    kind: Literal["ready", "done", "ended", "broken"]
    worker: str
    task: Task | None = None
    outcome: Outcome | None = None
    sentence: str = ""


class Engine(Protocol):
    """Workers that are given tasks. A worker that has ended is replaced."""

    def submit(self, worker: str, task: Task) -> None:
        """Give a worker that is ready a task."""

    def wait(self, seconds: float) -> Sequence[Event]:
        """Return what has happened, at the latest after so many seconds."""

    def kill(self, worker: str) -> None:
        """End a worker at once; an event tells that it has ended."""

    def close(self) -> None:
        """End all workers."""


def serve(connection: Connection, folder: Path, name: str, settings: WorkerSettings) -> None:
    """Do the tasks that come through a connection, until it ends; the main function of a worker process."""
    # whoever stops a group of processes, such as a scheduler: the driver decides when its workers end
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    begin_log(folder, name)
    sending = threading.Lock()

    def send(*message: Any) -> None:
        with sending, suppress(BrokenPipeError):
            connection.send(message)

    def do(task: Task) -> None:
        send("done", (task, worker.do(task)))

    try:
        worker = Worker(Run(folder), name, settings)
    except Exception as error:
        send("broken", failure_sentence(error))
        return
    send("ready", None)
    with ThreadPoolExecutor(settings.ahead, "study") as threads:
        while True:
            try:
                task = connection.recv()
            except (EOFError, OSError):  # the driver has ended
                os._exit(1)
            if task is None:
                return
            threads.submit(do, task)


def begin_log(folder: Path, name: str) -> None:
    """Send what this worker process writes to standard error to its log, and the stack of a crash too."""
    file = open(folder / "log" / f"{name}.stderr", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
    sys.stderr.flush()
    os.dup2(file.fileno(), 2)
    faulthandler.enable(file)


def log_tail(folder: Path, name: str) -> str:
    """Return the end of a worker's log."""
    try:
        with open(folder / "log" / f"{name}.stderr", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


@dataclass
class _Process:
    process: Any
    connection: Connection
    is_ready: bool = False


class LocalEngine:
    """Worker processes of this machine.

    Parameters
    ----------
    run : Run
    workers : int
    settings : WorkerSettings
    devices : sequence of str
        Devices that the workers share out; by default that of the settings for all of them.
    name : str
        Beginning of the workers' names.
    """

    def __init__(
        self, run: Run, workers: int, settings: WorkerSettings, devices: Sequence[str] = (), name: str = "local"
    ) -> None:
        self._run = run
        self._settings = settings
        self._devices = list(devices) or [settings.device]
        self._name = name
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[str, _Process] = {}
        self._started = 0
        for _ in range(workers):
            self._start()

    def submit(self, worker: str, task: Task) -> None:
        with suppress(OSError):  # it has ended, which `wait` says
            self._workers[worker].connection.send(task)

    def wait(self, seconds: float) -> list[Event]:
        by_handle = {each.connection: name for name, each in self._workers.items()}
        events = []
        for handle in wait(list(by_handle), seconds):
            name = by_handle[handle]  # type: ignore[index]
            try:
                kind, told = self._workers[name].connection.recv()
            except (EOFError, OSError):
                events.append(self._ended(name))
                continue
            if kind == "done":
                events.append(Event("done", name, *told))
            elif kind == "broken":
                self._remove(name)
                events.append(Event("broken", name, sentence=told))
            else:
                self._workers[name].is_ready = True
                events.append(Event("ready", name))
        return events

    def kill(self, worker: str) -> None:
        self._workers[worker].process.kill()

    def pids(self) -> dict[str, int]:
        """Return the process ids of the workers."""
        return {name: int(each.process.pid) for name, each in self._workers.items()}

    def close(self) -> None:
        for each in self._workers.values():
            with suppress(OSError):
                each.connection.send(None)
        for name in list(self._workers):
            self._remove(name, patience=10.0)

    def _start(self) -> None:
        number, self._started = self._started, self._started + 1
        name = f"{self._name}-{number}"
        device = self._devices[number % len(self._devices)]
        settings = WorkerSettings(**{**vars(self._settings), "device": device})
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve, args=(theirs, self._run.folder, name, settings), name=name, daemon=True
        )
        process.start()
        theirs.close()
        self._workers[name] = _Process(process, ours)

    def _ended(self, name: str) -> Event:
        process, was_ready = self._workers[name].process, self._workers[name].is_ready
        self._remove(name)
        self._start()
        code = process.exitcode
        how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with code {code}"
        return Event("ended" if was_ready else "broken", name, sentence=f"The worker process ended {how}.")

    def _remove(self, name: str, patience: float = 1.0) -> None:
        each = self._workers.pop(name)
        each.process.join(patience)
        if each.process.exitcode is None:
            each.process.kill()
            each.process.join()
        each.connection.close()


def own_devices(device: str) -> list[str]:
    """Return the devices that workers share out: all GPUs for "cuda", else the device alone."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
