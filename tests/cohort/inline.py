"""An engine without processes."""

from __future__ import annotations

from medclipsam.cohort.engine import Event
from medclipsam.cohort.store import Run
from medclipsam.cohort.work import Task, Worker, WorkerSettings


class Inline:
    """Workers that do their tasks when they are waited for."""

    def __init__(self, run: Run, workers: int = 1) -> None:
        self._workers = {f"w{number}": Worker(run, f"w{number}", WorkerSettings()) for number in range(workers)}
        self._events = [Event("ready", name) for name in self._workers]
        self._tasks: list[tuple[str, Task]] = []
        self.most_in_hand = 0

    def submit(self, worker: str, task: Task) -> None:
        self._tasks.append((worker, task))
        self.most_in_hand = max(self.most_in_hand, len(self._tasks))

    def wait(self, seconds: float) -> list[Event]:
        events, self._events = self._events, []
        if self._tasks:
            worker, task = self._tasks.pop(0)
            events.append(Event("done", worker, task, self._workers[worker].do(task)))
        return events

    def kill(self, worker: str) -> None:
        raise AssertionError("nothing hangs here")

    def close(self) -> None:
        pass
