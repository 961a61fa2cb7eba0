"""A run: studies are claimed, given to workers, tried again where they fail, and moved into the table.

Several drivers may work on one run, on one or several machines; each may be killed at any moment and started again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from medclipsam.base.errors import CancelledError, MedClipSamError
from medclipsam.base.progress import ProgressBar
from medclipsam.cohort.claims import Claims
from medclipsam.cohort.engine import Engine, Event, log_tail
from medclipsam.cohort.metrics import RunMetrics
from medclipsam.cohort.options import CohortOptions
from medclipsam.cohort.store import BLOCK, Counts, Run
from medclipsam.cohort.table import part_counts
from medclipsam.cohort.work import Outcome, Task, set_aside_row

logger = logging.getLogger(__name__)

# Seconds that the driver waits for workers at once, and between two looks at studies that others have claimed.
_WAIT = 0.5
_LOOK_AGAIN = 3.0
# Seconds without any worker after which the log says so.
_SILENCE = 60.0
# Workers that cannot load their models one after the other before the run gives up.
_MOST_BROKEN = 3


class StoppedError(MedClipSamError):
    """A run stopped since no study can be done now; what is done is kept."""


@dataclass
class _InHand:
    """What a worker has in hand.

    Attributes
    ----------
    tasks : dict
        By study.
    since : float
        When the worker was last heard of.
    """

    tasks: dict[tuple[int, int], Task] = field(default_factory=dict)
    since: float = 0.0

    @property
    def is_alone(self) -> bool:
        return any(task.alone for task in self.tasks.values())


class Driver:
    """Drives workers through the studies of a run.

    Parameters
    ----------
    run : Run
    engine : Engine
    claims : Claims
    options : CohortOptions
    shard : (int, int), optional
        Part and number of parts, as in 3 of 40: only studies of that part.
    metrics : RunMetrics, optional
    show : bool
        Whether to show progress.
    stopped : callable
        Asked now and then; True ends the run after the studies that are in hand.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        claims: Claims,
        options: CohortOptions,
        *,
        shard: tuple[int, int] | None = None,
        metrics: RunMetrics | None = None,
        show: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._run = run
        self._engine = engine
        self._claims = claims
        self._options = options
        self._shard = shard
        self._metrics = metrics
        self._show = show
        self._stopped = stopped
        self._workers: dict[str, _InHand] = {}
        self._again: deque[Task] = deque()
        self._broken = 0
        self._heard = time.monotonic()
        self._stop = ""
        self._waiting_blocks: set[int] = set()
        self._left: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def run(self) -> Counts:
        """Work until every study of this part has a result, and return how far the run is then.

        Raises
        ------
        StoppedError
            If no study can be done now: the disk is full, the DICOMweb server away, the weights cannot be loaded.
        CancelledError
            If the caller asked to stop.
        """
        total, initial = self._extent()
        log = self._run.folder / "log" / f"{self._claims.owner}.log"
        with (
            open(log, "a", encoding="utf-8", buffering=1) as self._log,
            ProgressBar(total=total, initial=initial, unit="study", show=self._show, smoothing=0.05) as self._bar,
        ):
            tasks = self._tasks()
            more = True
            while True:
                cancelled = self._stopped()
                if not (cancelled or self._stop):
                    more = self._fill(tasks, more)
                busy = sum(len(each.tasks) for each in self._workers.values())
                if self._metrics is not None:
                    self._metrics.in_hand(busy, len(self._workers))
                if not busy and (cancelled or self._stop or (not more and not self._again)):
                    break
                for event in self._engine.wait(_WAIT):
                    self._take(event)
                self._end_hanging()
                self._tell_of_waiting()
        self._release()
        if self._stop:
            raise StoppedError(self._stop)
        if self._stopped():
            raise CancelledError("The run was stopped; started again it goes on where it was.")
        return self._run.counts()

    # -- which study is next --------------------------------------------------------------------------------------

    def _extent(self) -> tuple[int, int]:
        """Return how many studies are of this part, and how many of them have a result."""
        if self._shard is None:
            before = self._run.counts()
            return before.studies, before.done
        listed, total, done = self._run.listed(), 0, 0
        for block in range(int(listed["blocks"])):
            finished = self._run.is_finished(block)
            size = part_counts(self._run.part(block))["studies"] if finished else len(self._run.studies(block))
            own = [place for place in range(size) if self._is_own(block, place)]
            there = own if finished else self._run.state(block).done.intersection(own)
            total, done = total + len(own), done + len(there)
        return total, done

    def _is_own(self, block: int, place: int) -> bool:
        """Whether a study is of this part."""
        return self._shard is None or (block * BLOCK + place) % self._shard[1] == self._shard[0] - 1

    def _tasks(self) -> Iterator[Task | None]:
        """Yield studies that nobody works on, claimed; None where the rest is in the hands of others."""
        for block in range(int(self._run.listed()["blocks"])):
            if not self._run.is_finished(block):
                yield from self._tasks_of(block)
                self._close_block(block)
        while self._waiting_blocks:
            seen = time.monotonic()
            for block in sorted(self._waiting_blocks):
                yield from self._tasks_of(block)
                self._close_block(block)
            while self._waiting_blocks and time.monotonic() - seen < _LOOK_AGAIN:
                yield None

    def _tasks_of(self, block: int) -> Iterator[Task]:
        self._sizes.setdefault(block, 0)
        if self._run.is_finished(block):
            return
        self._run.work(block)
        state = self._run.state(block)
        studies = self._run.studies(block)
        self._sizes[block] = len(studies)
        for place, study in enumerate(studies):
            if place in state.done or not self._is_own(block, place):
                continue
            claim = state.claims.get(place, 0)
            if claim and self._claims.is_alive(self._run.claim_file(block, place, claim)):
                self._waiting_blocks.add(block)
                continue
            failures = sorted(state.failures.get(place, ()))
            crashed = bool(failures) and self._run.failure(block, place, failures[-1])["crashed"]
            task = Task(block, place, study, claim + 1, len(failures) + 1, alone=crashed)
            if not self._claim(task):
                self._waiting_blocks.add(block)
            elif len(failures) >= self._options.attempts:
                self._set_aside(task, failures[-1])
                self._run.claim_file(block, place, task.claim).unlink(missing_ok=True)
                self._count(Outcome("failed"))
            else:
                self._left[block] = self._left.get(block, 0) + 1
                yield task

    def _claim(self, task: Task) -> bool:
        file = self._run.claim_file(task.block, task.place, task.claim)
        if not self._claims.take(file):
            return False
        if self._run.is_done(task.block, task.place):  # its claim was removed between the look and this one
            file.unlink(missing_ok=True)
            return False
        return True

    def _close_block(self, block: int) -> None:
        """Move a block into the table if nothing of it is left; else look again later."""
        if not self._left.get(block):
            is_over = self._run.is_finished(block) or self._run.finish(block, self._sizes[block])
            if is_over or (self._shard is not None and self._is_shard_done(block)):
                self._waiting_blocks.discard(block)
                self._left.pop(block, None)
                self._sizes.pop(block, None)
                return
        self._waiting_blocks.add(block)

    def _is_shard_done(self, block: int) -> bool:
        """Whether the studies of this part in a block have results; those of others are not waited for."""
        done = self._run.state(block).done
        own = (place for place in range(self._sizes[block]) if self._is_own(block, place))
        return self._run.is_finished(block) or all(place in done for place in own)

    # -- giving out -----------------------------------------------------------------------------------------------

    def _fill(self, tasks: Iterator[Task | None], more: bool) -> bool:
        """Give tasks to workers with room; returns whether there may be more tasks."""
        while True:
            for waiting in list(self._again):
                worker = self._worker_for(waiting)
                if worker is not None:
                    self._again.remove(waiting)
                    self._give(worker, waiting)
            if not more:
                return False
            # a study is claimed only when somebody can begin with it
            if self._worker_for(None) is None:
                return True
            try:
                following = next(tasks)
            except StopIteration:
                return False
            if following is None:
                return True
            task = following
            if task.alone:
                self._again.append(task)
                continue
            worker = self._worker_for(task)
            assert worker is not None
            self._give(worker, task)

    def _worker_for(self, task: Task | None) -> str | None:
        """Return the worker with the least in hand that may take a task; None where none may now."""
        room = {
            name: len(each.tasks)
            for name, each in self._workers.items()
            if not each.is_alone and len(each.tasks) < self._options.ahead
        }
        if task is not None and task.avoid and len(self._workers) > 1:
            others = {name: count for name, count in room.items() if name not in task.avoid}
            if others or self._workers.keys() - task.avoid:
                room = others
        if task is not None and task.alone:
            room = {name: count for name, count in room.items() if not count}
        elif self._again and any(each.alone for each in self._again):
            # one worker is let run empty for the studies that are done alone
            spare = min(self._workers, default=None)
            if len(self._workers) > 1 or any(each.tasks for each in self._workers.values()):
                room.pop(spare, None)  # type: ignore[arg-type]
        return min(room, key=lambda name: (room[name], name), default=None)

    def _give(self, worker: str, task: Task) -> None:
        each = self._workers[worker]
        if not each.tasks:
            each.since = time.monotonic()
        each.tasks[task.key] = task
        self._engine.submit(worker, task)

    # -- taking back ----------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if event.kind == "ready":
            self._broken = 0
            self._workers[event.worker] = _InHand(since=time.monotonic())
        elif event.kind == "broken":
            self._broken += 1
            logger.error("Worker %s cannot start: %s", event.worker, event.sentence)
            if self._broken >= _MOST_BROKEN or not self._workers:
                self._stop = event.sentence
        elif event.kind == "ended":
            self._take_ended(event)
        elif event.task is not None and event.outcome is not None:
            each = self._workers.get(event.worker)
            if each is not None:
                each.tasks.pop(event.task.key, None)
                each.since = time.monotonic()
            self._take_outcome(event.worker, event.task, event.outcome)

    def _take_ended(self, event: Event) -> None:
        each = self._workers.pop(event.worker, _InHand())
        log = f"{event.sentence}\n\n{log_tail(self._run.folder, event.worker)}"
        logger.warning("Worker %s ended with %d studies in hand: %s", event.worker, len(each.tasks), event.sentence)
        if self._metrics is not None:
            self._metrics.worker_ended()
        for task in each.tasks.values():
            if task.alone or len(each.tasks) == 1:
                self._failed(event.worker, task, Outcome("failed", event.sentence, log), crashed=True)
            else:
                # which of them is to blame is found out by doing each alone
                self._again.append(replace(task, alone=True, avoid=task.avoid))

    def _take_outcome(self, worker: str, task: Task, outcome: Outcome) -> None:
        if outcome.status == "stop":
            self._stop = f"{outcome.sentence} The run stopped; what is done is kept, and started again it goes on."
            self._line(task, worker, outcome)
            self._done_with(task)
        elif outcome.status == "failed":
            self._failed(worker, task, outcome, crashed=False)
        else:
            self._line(task, worker, outcome)
            self._done_with(task)
            self._count(outcome)

    def _failed(self, worker: str, task: Task, outcome: Outcome, *, crashed: bool) -> None:
        self._line(task, worker, outcome)
        self._run.add_failure(task.block, task.place, task.claim, outcome.sentence, outcome.log, crashed=crashed)
        if self._metrics is not None:
            self._metrics.failed()
        if task.attempt >= self._options.attempts:
            self._set_aside(task, task.claim)
            self._done_with(task)
            self._count(Outcome("failed"))
            return
        following = replace(
            task, claim=task.claim + 1, attempt=task.attempt + 1, alone=crashed, avoid=task.avoid | {worker}
        )
        if self._claim(following):
            self._again.append(following)
        else:
            self._done_with(task)

    def _set_aside(self, task: Task, number: int) -> None:
        sentence = self._run.failure(task.block, task.place, number)["error"]
        log = self._run.failure_log(task.block, task.place, number)
        failures = len(self._run.state(task.block).failures.get(task.place, ()))
        row = set_aside_row(task, failures, sentence, log)
        self._run.add_result(task.block, task.place, {"status": "failed", "rows": [row]})

    def _done_with(self, task: Task) -> None:
        """Let a study go, and move its block into the table where it was the last one."""
        self._run.claim_file(task.block, task.place, task.claim).unlink(missing_ok=True)
        self._left[task.block] = self._left.get(task.block, 1) - 1
        if not self._left[task.block] and task.block in self._waiting_blocks:
            self._close_block(task.block)

    def _count(self, outcome: Outcome) -> None:
        self._bar.update()
        if self._metrics is not None:
            self._metrics.done(outcome)

    def _line(self, task: Task, worker: str, outcome: Outcome) -> None:
        """Write the line of a study to the log of this process."""
        seconds = " ".join(f"{name} {value:.3f}" for name, value in outcome.seconds.items())
        told = outcome.sentence or f"{outcome.found} of {outcome.findings} found, {seconds} s"
        self._log.write(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} {outcome.status} {task.study.study} attempt {task.attempt} "
            f"{worker}: {' '.join(told.split())}\n"
        )

    def _end_hanging(self) -> None:
        now = time.monotonic()
        for name, each in self._workers.items():
            if each.tasks and now - each.since > self._options.timeout:
                logger.warning("Worker %s gave no answer for %d seconds and is ended", name, self._options.timeout)
                each.since = now
                self._engine.kill(name)

    def _tell_of_waiting(self) -> None:
        """Log now and then that no worker is ready: a cluster may have no room for one."""
        now = time.monotonic()
        if self._workers:
            self._heard = now
        elif now - self._heard > _SILENCE:
            self._heard = now
            logger.warning("No worker is ready yet; they are waited for")

    def _release(self) -> None:
        """Give back what was claimed and not begun."""
        for task in self._again:
            self._run.claim_file(task.block, task.place, task.claim).unlink(missing_ok=True)
