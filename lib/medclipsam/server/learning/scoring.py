"""Scoring methods as MONAI Label's clients see them, and the scorings that run.

MONAI Label scores in a sub-process with models of its own. Here a scoring is a row of steps among the other work on the
server's models, so that it needs no memory, makes nobody wait for longer than a step, and shares all that it finds with
what the rounds score by themselves.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

from medclipsam.base.errors import CancelledError, MedClipSamError
from medclipsam.server.base.errors import AlreadyRunningError, BusyError, UnknownError
from medclipsam.server.base.task import Task
from medclipsam.server.inference.work import Job, WorkQueue
from medclipsam.server.learning.rounds import Rounds
from medclipsam.server.learning.scorer import Method
from medclipsam.server.studies.datastore import Datastore

logger = logging.getLogger(__name__)

# Seconds after which a scoring that has to wait asks again.
_AGAIN = 1.0
# Seconds between two looks whether a scoring in the midst of a step was stopped.
_LOOK = 0.2

DESCRIPTIONS: Mapping[Method, str] = {
    "embedding": "CLIP's embedding of each image, which coverage and combined go by",
    "presence": "Whether a target is there at all, which all strategies go by",
    "uncertainty": "How sure the published network is, which uncertainty, combined and foreground go by",
    "disagreement": "Where the published network and the zero-shot mask differ, which disagreement goes by",
}


class RoundScoring(Task):
    """One scoring method; scores only what has no score yet.

    Parameters
    ----------
    name : str
        One of `DESCRIPTIONS`.
    rounds : Rounds
    """

    def __init__(self, name: Method, rounds: Rounds) -> None:
        super().__init__(DESCRIPTIONS[name])
        self._name = name
        self._rounds = rounds

    def check(self) -> None:
        """Raise `ConflictError` where there is nothing yet to score by."""
        self._rounds.scorer.check(self._name)

    def count(self, job: Job | None = None) -> int:
        """Take in which images there are, and return how many have to be looked at."""
        self._rounds.look()
        return len(self._rounds.scorer.waiting(self._name))

    def step(self, job: Job | None = None) -> int:
        """Look at a few images and return at how many; 0 where none is left."""
        return self._rounds.score(self._name, job)

    def result(self, done: int) -> dict[str, int]:
        """Return what came of it, JSON-able."""
        return {"images": done, "left_out": self._rounds.scorer.left_out(self._name)}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, int]:
        """Score all that has no score, without a break, as MONAI Label's own start command asks for it."""
        self.check()
        self.count()
        done = 0
        while step := self.step():
            done += step
        return self.result(done)


class ScoringJobs:
    """The scorings of a server, one at a time.

    Parameters
    ----------
    queue : WorkQueue
        Of the models.
    paused : callable
        Whether scoring has to wait: a training needs the machine.
    """

    def __init__(self, queue: WorkQueue, paused: Callable[[], bool]) -> None:
        self._queue = queue
        self._paused = paused
        self._lock = threading.Lock()
        self._tasks: list[dict[str, Any]] = []
        self._stops: dict[str, threading.Event] = {}
        self._closed = False
        self._thread = futures.ThreadPoolExecutor(1, "scoring")

    def start(self, method: RoundScoring, request: dict[str, Any], *, enqueue: bool = False) -> dict[str, Any]:
        """Begin in the background, and return the task as `status` tells it.

        Parameters
        ----------
        method : RoundScoring
        request : dict
            Told with the task.
        enqueue : bool
            Whether it may wait for the scoring that runs.

        Raises
        ------
        ConflictError
            If there is nothing yet to score by.
        AlreadyRunningError
            If one runs.
        """
        method.check()
        task: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "status": "SUBMITTED",
            "request": request,
            "start_ts": _now(),
            "details": [],
        }
        with self._lock:
            if self._running() and not enqueue:
                raise AlreadyRunningError("Another scoring runs; ask for its state, or stop it first.", 30)
            if self._closed:
                raise BusyError("The server is shutting down.", 30)
            self._tasks.append(task)
            self._stops[task["id"]] = threading.Event()
            self._thread.submit(self._run, task, method)
            return dict(task)

    def wait(self, method: RoundScoring) -> dict[str, int]:
        """Score in the caller's thread, and return what came of it.

        Raises
        ------
        MedClipSamError
            If it cannot be done.
        """
        method.check()
        return self._score(method, {"details": []}, threading.Event())

    def status(self, *, every: bool = False, running: bool = False) -> Any:
        """Return the latest task, all tasks, or the one that runs.

        Raises
        ------
        UnknownError
            If there is none.
        """
        with self._lock:
            found = self._running() if running else self._tasks
            if not found:
                raise UnknownError(f"No scoring {'runs' if running else 'has been started'}.")
            return [dict(task) for task in found] if every and not running else dict(found[0 if running else -1])

    def stop(self) -> dict[str, Any] | None:
        """Stop the scoring that runs, and return it; what it has scored stays. None where none runs."""
        with self._lock:
            running = self._running()
            if not running:
                return None
            task = running[0]
            self._end(task, "STOPPED")
            return dict(task)

    def close(self) -> None:
        """Stop all, and wait for the step that is done."""
        with self._lock:
            self._closed = True
            for task in self._running():
                self._end(task, "STOPPED")
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _running(self) -> list[dict[str, Any]]:
        return [task for task in self._tasks if task["status"] in ("SUBMITTED", "RUNNING")]

    def _end(self, task: dict[str, Any], status: str) -> None:
        task["status"], task["end_ts"] = status, _now()
        self._stops[task["id"]].set()

    def _run(self, task: dict[str, Any], method: RoundScoring) -> None:
        stop = self._stops[task["id"]]
        with self._lock:
            if stop.is_set():
                return
            task["status"] = "RUNNING"
        try:
            result = self._score(method, task, stop)
        except CancelledError:
            with self._lock:
                if not stop.is_set():
                    self._end(task, "STOPPED")
            return
        except Exception as error:
            if not isinstance(error, MedClipSamError):
                logger.exception("A scoring failed")
            told = str(error) if isinstance(error, MedClipSamError) else "Internal error; see the server's log."
            with self._lock:
                task["details"] = [told]
                self._end(task, "ERROR")
            return
        with self._lock:
            task["result"] = result
            if not stop.is_set():
                self._end(task, "DONE")

    def _score(self, method: RoundScoring, task: dict[str, Any], stop: threading.Event) -> dict[str, int]:
        """Do one step after the other; notes in the task how far it is."""
        total, done = self._in_turn(method.count, task, stop), 0
        while not stop.is_set():
            # what has arrived since is looked at too
            total = max(total, done)
            task["details"] = [f"{done} of {total} images"]
            task["progress"] = {"done": done, "total": total, "fraction": done / total if total else 1.0}
            step = self._in_turn(method.step, task, stop)
            if not step:
                return method.result(done)
            done += step
        raise CancelledError("The scoring was stopped.")

    def _in_turn(self, work: Callable[[Job], int], task: dict[str, Any], stop: threading.Event) -> int:
        """Do a piece of work when its turn comes, after the requests that came before it."""
        while True:
            try:
                if not self._paused():
                    job = self._queue.submit(work, what="scoring")
                    return int(_outcome(job, self._queue, stop))
                task["details"] = ["It waits for the training that runs."]
            except BusyError as error:
                task["details"] = [str(error)]
            if stop.wait(_AGAIN) or self._closed:
                raise CancelledError("The scoring was stopped.")


def _outcome(job: Job, queue: WorkQueue, stop: threading.Event) -> Any:
    """Return what a job comes to, and cancel it where the scoring is stopped meanwhile."""
    while not futures.wait([job.future], timeout=_LOOK).done:
        if stop.is_set():
            queue.cancel(job)
    return job.future.result()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
