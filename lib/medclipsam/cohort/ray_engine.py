"""Workers as actors of Ray: one a GPU or group of cores, on this machine or on all nodes of a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from medclipsam.base.errors import InputError, MedClipSamError
from medclipsam.cohort.engine import Event, begin_log
from medclipsam.cohort.store import Run
from medclipsam.cohort.work import Outcome, Task, Worker, WorkerSettings

# Nothing large goes through Ray's object store: studies and masks are on the shared disk.
OBJECT_STORE = 100 * 2**20
# Seconds between two looks whether nodes have come.
_LOOK_SECONDS = 10.0


class _Actor:
    """A worker in a process of Ray's."""

    def __init__(self, folder: str, name: str, settings: WorkerSettings) -> None:
        begin_log(Path(folder), name)
        self._worker = Worker(Run(Path(folder)), name, settings)

    def ready(self) -> int:
        return os.getpid()

    def do(self, task: Task) -> Outcome:
        return self._worker.do(task)


def connect(address: str | None = None, *, cpus: int | None = None) -> None:
    """Connect to a cluster, or start Ray on this machine with few processes.

    Parameters
    ----------
    address : str, optional
        Of a cluster: "auto", "HOST:6379". By default Ray starts here and ends with this process.
    cpus : int, optional
        Cores that Ray may use where it starts here.

    Raises
    ------
    InputError
        If there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": "medclipsam"}
    if address is None:
        given |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "num_cpus": cpus, "address": "local"}
    else:
        given["address"] = address
    try:
        ray.init(**given)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        raise InputError(f"There is no Ray cluster at {address!r}: {error}.") from error


def resources() -> dict[str, float]:
    """Return the resources of the cluster: `CPU`, `GPU` and others."""
    return dict(ray.cluster_resources())


def room(needed: Mapping[str, float]) -> int:
    """Return how many workers with such needs the nodes have room for that are there now."""
    kinds = {"num_cpus": "CPU", "num_gpus": "GPU"}
    return sum(
        min(int(node["Resources"].get(kinds[kind], 0) / need) for kind, need in needed.items() if need)
        for node in ray.nodes()
        if node["Alive"]
    )


class RayEngine:
    """Actors on the nodes of Ray, which is connected.

    Parameters
    ----------
    run : Run
        Its folder must be on a disk that all nodes share under one path.
    settings : WorkerSettings
    workers : int
        How many at the most; 0 for as many as the cluster has resources for, also as nodes come.
    needed : mapping
        Resources of each worker: `num_cpus`, `num_gpus`.
    may_grow : bool
        Whether nodes may come: then as many workers as are asked for are waited for, which makes an autoscaler start
        nodes.
    name : str
        Beginning of the workers' names.

    Raises
    ------
    InputError
        If no node has room for a worker, and none may come.
    """

    def __init__(
        self,
        run: Run,
        settings: WorkerSettings,
        *,
        workers: int,
        needed: Mapping[str, float],
        may_grow: bool = False,
        name: str = "ray",
    ) -> None:
        self._run = run
        self._settings = settings
        self._most = workers
        self._needed = dict(needed)
        self._name = name
        self._may_grow = may_grow and workers > 0
        if not room(needed) and not self._may_grow:
            wanted = ", ".join(f"{name} {need:g}" for name, need in needed.items())
            raise InputError(
                f"No node of Ray has room for a worker ({wanted}); choose less with --cpus-per-worker or "
                "--gpus-per-worker, or name --workers where nodes are started on demand."
            )
        self._actors: dict[str, Any] = {}
        self._refs: dict[Any, tuple[str, Task | None]] = {}
        self._started = 0
        self._looked = 0.0
        self._class = ray.remote(_Actor).options(max_concurrency=settings.ahead, max_restarts=0, **self._needed)
        self._grow()

    def submit(self, worker: str, task: Task) -> None:
        self._refs[self._actors[worker].do.remote(task)] = (worker, task)

    def wait(self, seconds: float) -> list[Event]:
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._grow()
        if not self._refs:
            time.sleep(min(seconds, 0.2))
            return []
        ready, _ = ray.wait(list(self._refs), num_returns=1, timeout=seconds)
        if ready:
            more, _ = ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
            ready = more
        events = []
        for ref in ready:
            if ref not in self._refs:  # its worker has ended
                continue
            worker, task = self._refs.pop(ref)
            event = self._event(ref, worker, task)
            if event is not None:
                events.append(event)
        return events

    def kill(self, worker: str) -> None:
        ray.kill(self._actors[worker])

    def pids(self) -> dict[str, int]:
        """Return the process ids of the workers that are ready."""
        return {name: int(ray.get(actor.ready.remote())) for name, actor in self._actors.items()}

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        self._refs.clear()

    def _event(self, ref: Any, worker: str, task: Task | None) -> Event | None:
        try:
            made = ray.get(ref)
        except RayActorError as error:
            if worker not in self._actors:
                return None
            self._remove(worker)
            cause = error.__cause__ if isinstance(error.__cause__, MedClipSamError) else None
            if task is None and (cause is not None or "creation task" in str(error)):
                return Event("broken", worker, sentence=str(cause or _last_line(str(error))))
            self._grow()
            return Event("ended", worker, sentence=f"The worker ended: {_last_line(str(error)).partition('. ')[0]}.")
        except RayError as error:
            return Event("done", worker, task, Outcome("failed", _last_line(str(error)), str(error)))
        return Event("ready", worker) if task is None else Event("done", worker, task, made)

    def _remove(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            # one that is out of reach may come back, and would keep its core or GPU
            with suppress(RayError, ValueError):
                ray.kill(actor)
        self._refs = {ref: each for ref, each in self._refs.items() if each[0] != worker}

    def _grow(self) -> None:
        """Start workers until there are as many as are wanted, or as the nodes that are there have room for."""
        self._looked = time.monotonic()
        fit = room(self._needed)
        wanted = self._most if self._may_grow else min(fit, self._most or fit)
        while len(self._actors) < wanted:
            name = f"{self._name}-{self._started}"
            self._started += 1
            actor: Any = self._class.remote(str(self._run.folder), name, self._settings)
            self._actors[name] = actor
            self._refs[actor.ready.remote()] = (name, None)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
