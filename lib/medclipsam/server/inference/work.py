"""Model work, one request at a time behind a bounded queue, so that a server under load says so at once.

The models share one device and one cache, so that two requests side by side would be no faster than one after the
other, and could fail for want of memory where either alone would not.
"""

from __future__ import annotations

import contextvars
import logging
import statistics
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.imaging.isolation import stop_asked
from medclipsam.server.base.errors import BusyError, ConflictError, UnknownError

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]

# Ended jobs that can still be asked for.
_KEPT = 200
# Seconds of a job where none has been measured yet.
_FIRST_GUESS = 10.0


class Job:
    """One piece of model work: its state, progress and result.

    Attributes
    ----------
    id : str
        Names the job for whoever asks for its progress.
    what : str
        The model that is run.
    owner : str
        Who asked.
    state : {"waiting", "running", "done", "failed", "cancelled"}
    fraction, message : float, str
        How much is done, in [0, 1], and what is being done.
    max_seconds : float
        Longest that it may take.
    future : concurrent.futures.Future
        The result, or the error that ended the job.
    keep_partial : callable or None
        Takes what is made on the way: a target's name, a plane, and its mask (bool [H, W], display orientation).
    """

    def __init__(self, work: Callable[[Job], Any], job_id: str, what: str, owner: str, max_seconds: float) -> None:
        self.id = job_id
        self.what = what
        self.owner = owner
        self.state: State = "waiting"
        self.fraction = 0.0
        self.message = ""
        self.future: Future[Any] = Future()
        self._work = work
        self.keep_partial: Callable[[str, int, np.ndarray], None] | None = None
        self._context = contextvars.copy_context()
        self._cancelled = threading.Event()
        self.max_seconds = max_seconds
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._ended: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of work so far, or in all."""
        if self._started is None:
            return 0.0
        return (self._ended or time.monotonic()) - self._started

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return (self._started or self._ended or time.monotonic()) - self._submitted

    def progress(self, fraction: float, message: str) -> None:
        """Note how far the work is; the hook that the pipeline calls."""
        self.fraction, self.message = fraction, message

    def stopped(self) -> bool:
        """Return whether the work must stop; the hook that the pipeline asks between its steps.

        Raises
        ------
        InputError
            If the work takes longer than the server allows.
        """
        if self.seconds > self.max_seconds:
            raise InputError(
                f"The request was stopped after {self.seconds:.0f} s, {self.fraction:.0%} done; the server's limit "
                f"max_seconds is {self.max_seconds:g}: name fewer planes with the option planes, or fewer targets."
            )
        return self._cancelled.is_set()

    def describe(self) -> dict[str, Any]:
        """Return what a client may know, JSON-able."""
        left = None
        if self.state == "running" and self.fraction > 0.2:
            left = round(self.seconds * (1 - self.fraction) / self.fraction, 1)
        return {
            "id": self.id,
            "model": self.what,
            "state": self.state,
            "fraction": 1.0 if self.state == "done" else round(self.fraction, 4),
            "message": self.message,
            "waited": round(self.waited, 2),
            "seconds": round(self.seconds, 2),
            "seconds_left": left,
        }

    def run(self) -> None:
        """Do the work in the caller's thread; the future holds what comes of it."""
        self.future.set_running_or_notify_cancel()
        self._started = time.monotonic()
        self.state = "running"
        try:
            result = self._context.run(self._in_context)
        except CancelledError as error:
            self.end("cancelled", error)
        except BaseException as error:
            self.end("failed", error)
        else:
            self._ended = time.monotonic()
            self.state = "done"
            self.future.set_result(result)

    def cancel(self) -> None:
        """Ask the work to stop."""
        self._cancelled.set()

    def end(self, state: State, error: BaseException) -> None:
        """End without a result."""
        self._ended = time.monotonic()
        self.state = state
        self.future.set_exception(error)

    def _in_context(self) -> Any:
        # files are read in another process, which ends with the job
        stop_asked.set(self.stopped)
        if self.stopped():
            raise CancelledError("The request was cancelled.")
        return self._work(self)


class WorkQueue:
    """A worker thread and the jobs that wait for it.

    Parameters
    ----------
    length : int
        Jobs that may wait beside the one that runs.
    max_seconds : float
        Seconds after which a running job is stopped.
    """

    def __init__(self, length: int, max_seconds: float) -> None:
        self.length = length
        self.max_seconds = max_seconds
        self.running: Job | None = None
        self._waiting: deque[Job] = deque()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lately: deque[float] = deque(maxlen=20)
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._serve, name="model-work", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    def submit(
        self,
        work: Callable[[Job], Any],
        *,
        what: str,
        owner: str = "",
        job_id: str | None = None,
        max_seconds: float | None = None,
        keep_partial: Callable[[str, int, np.ndarray], None] | None = None,
    ) -> Job:
        """Queue a piece of work.

        Parameters
        ----------
        work : callable
            Is called with its job in the worker's thread, in a copy of the caller's context.
        what, owner : str
            See `Job`.
        job_id : str, optional
            A new one by default.
        max_seconds : float, optional
            The queue's by default.
        keep_partial : callable, optional
            See `Job`.

        Raises
        ------
        BusyError
            If the queue is full.
        ConflictError
            If a job of that id waits or runs, or one of another owner has ended; the server itself owns what it
            submits for nobody.
        """
        limit = self.max_seconds if max_seconds is None else max_seconds
        job = Job(work, job_id or uuid.uuid4().hex, what, owner, limit)
        job.keep_partial = keep_partial
        with self._changed:
            if self._closed:
                raise BusyError("The server is shutting down.", 30)
            if len(self._waiting) >= self.length and (self.running or self._waiting):
                raise BusyError(
                    f"The server works on a request and {len(self._waiting)} more wait, which is as many as it lets; "
                    f"ask again in about {self.expected_wait():.0f} s.",
                    self.expected_wait(),
                )
            known = self._jobs.get(job.id)
            if known is not None and known.state in ("waiting", "running"):
                raise ConflictError(f"A request {job.id!r} is {known.state} already; name another request_id.")
            if known is not None and owner and known.owner != owner:
                raise ConflictError(f"A request {job.id!r} was made before; name another request_id.")
            self._jobs[job.id] = job
            self._jobs.move_to_end(job.id)
            self._forget()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises
        ------
        UnknownError
            If there is none of that id, or it ended long ago.
        """
        with self._changed:
            job = self._jobs.get(job_id)
        if job is None:
            raise UnknownError(f"Request {job_id!r} is not known here; it ended long ago or was never made.")
        return job

    def jobs(self) -> list[Job]:
        """Return the jobs that run or wait, in the order of their turns."""
        with self._changed:
            return [*([self.running] if self.running else []), *self._waiting]

    def place(self, job: Job) -> int:
        """Return how many jobs go before this one."""
        order = self.jobs()
        return order.index(job) if job in order else 0

    def cancel(self, job: Job) -> None:
        """End a job that waits at once, and one that runs at its next step; one that has ended stays as it is."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.end("cancelled", CancelledError("The request was cancelled."))
                return
        job.cancel()

    def expected_wait(self) -> float:
        """Return about how many seconds pass until a queue of this length has moved up by one."""
        usual = statistics.median(self._lately) if self._lately else _FIRST_GUESS
        running = self.running
        return max(1.0, usual - running.seconds) if running else usual

    def close(self) -> None:
        """Take no more jobs and cancel all that are there."""
        with self._changed:
            self._closed = True
        for job in self.jobs():
            self.cancel(job)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                job = self.running = self._waiting.popleft()
            job.run()
            with self._changed:
                self.running = None
                if job.state == "done":
                    self._lately.append(job.seconds)
            # the frames of a failed job hold its arrays, and the local name would hold it until the next job comes
            del job

    def _forget(self) -> None:
        ended = [key for key, job in self._jobs.items() if job.state not in ("waiting", "running")]
        for key in ended[: max(0, len(ended) - _KEPT)]:
            del self._jobs[key]
