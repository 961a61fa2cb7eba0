"""The queue for model work: one at a time, in turn, bounded, and none lost."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator

import pytest

from medclipsam.base.errors import CancelledError, InputError
from medclipsam.server.base.errors import BusyError, ConflictError, UnknownError
from medclipsam.server.inference.work import Job, WorkQueue


class Held:
    """Work that has begun and waits to be let go, or to be stopped."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, job: Job) -> str:
        self.begun.set()
        while not self.go.wait(0.005):
            job.progress(0.25, "half of a half")
            if job.stopped():
                raise CancelledError("stopped")
        return "done"


@pytest.fixture
def held() -> Iterator[Held]:
    work = Held()
    yield work
    work.go.set()


def occupy(queue: WorkQueue, held: Held) -> Job:
    job = queue.submit(held, what="first", owner="ann", job_id="first")
    assert held.begun.wait(5)
    return job


def test_jobs_are_done_one_at_a_time_and_in_turn() -> None:
    queue = WorkQueue(length=10, max_seconds=60)
    order: list[int] = []
    inside = threading.Lock()

    def work(number: int) -> int:
        assert inside.acquire(blocking=False)
        time.sleep(0.002)
        order.append(number)
        inside.release()
        return number * number

    jobs = [queue.submit(lambda _, n=n: work(n), what="x") for n in range(8)]
    assert [job.future.result(10) for job in jobs] == [n * n for n in range(8)]
    assert order == list(range(8))
    assert {job.state for job in jobs} == {"done"}


def test_a_full_queue_refuses_and_says_when_to_come_back(held: Held) -> None:
    queue = WorkQueue(length=2, max_seconds=60)
    occupy(queue, held)
    waiting = [queue.submit(lambda _: 1, what="x") for _ in range(2)]
    with pytest.raises(BusyError, match="2 more wait") as error:
        queue.submit(lambda _: 1, what="x")
    assert error.value.retry_after >= 1
    assert queue.waiting == 2
    held.go.set()
    assert [job.future.result(5) for job in waiting] == [1, 1]
    assert queue.submit(lambda _: 2, what="x").future.result(5) == 2


def test_a_queue_of_no_length_takes_one_at_a_time(held: Held) -> None:
    queue = WorkQueue(length=0, max_seconds=60)
    occupy(queue, held)
    with pytest.raises(BusyError):
        queue.submit(lambda _: 1, what="x")


def test_what_is_told_of_a_job(held: Held) -> None:
    queue = WorkQueue(length=5, max_seconds=60)
    first = occupy(queue, held)
    second = queue.submit(lambda _: 1, what="second")
    assert queue.jobs() == [first, second]
    assert (queue.place(first), queue.place(second)) == (0, 1)
    while first.fraction == 0:
        time.sleep(0.005)
    told = queue.get("first").describe()
    assert (told["state"], told["fraction"], told["message"]) == ("running", 0.25, "half of a half")
    assert told["seconds_left"] == pytest.approx(3 * told["seconds"], abs=0.2)
    assert second.describe()["state"] == "waiting"
    held.go.set()
    first.future.result(5)
    second.future.result(5)
    assert first.describe()["fraction"] == 1.0
    with pytest.raises(UnknownError, match="'nobody'"):
        queue.get("nobody")


def test_a_waiting_job_is_cancelled_at_once_and_never_begins(held: Held) -> None:
    queue = WorkQueue(length=5, max_seconds=60)
    occupy(queue, held)
    begun: list[int] = []
    job = queue.submit(lambda _: begun.append(1), what="x")
    queue.cancel(job)
    with pytest.raises(CancelledError):
        job.future.result(0)
    assert job.state == "cancelled"
    held.go.set()
    queue.submit(lambda _: 1, what="x").future.result(5)
    assert begun == []


def test_a_running_job_is_cancelled_at_its_next_step(held: Held) -> None:
    queue = WorkQueue(length=5, max_seconds=60)
    job = occupy(queue, held)
    queue.cancel(job)
    with pytest.raises(CancelledError):
        job.future.result(5)
    assert job.state == "cancelled"
    queue.cancel(job)
    assert job.state == "cancelled"


def test_a_job_that_takes_too_long_is_stopped_with_a_sentence(held: Held) -> None:
    queue = WorkQueue(length=5, max_seconds=0.05)
    job = occupy(queue, held)
    with pytest.raises(InputError, match=r"max_seconds is 0\.05"):
        job.future.result(5)
    other = Held()
    endless = queue.submit(other, what="x", max_seconds=float("inf"))
    assert other.begun.wait(5)
    time.sleep(0.1)
    assert endless.state == "running"
    other.go.set()
    assert endless.future.result(5) == "done"


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(2), MemoryError()])
def test_an_error_ends_its_job_alone(error: BaseException) -> None:
    def fail(job: Job) -> None:
        raise error

    queue = WorkQueue(length=5, max_seconds=60)
    job = queue.submit(fail, what="x")
    with pytest.raises(type(error)):
        job.future.result(5)
    assert job.state == "failed"
    assert queue.submit(lambda _: 1, what="x").future.result(5) == 1


def test_an_id_is_used_by_one_job_at_a_time(held: Held) -> None:
    queue = WorkQueue(length=5, max_seconds=60)
    occupy(queue, held)
    with pytest.raises(ConflictError, match="'first'"):
        queue.submit(lambda _: 1, what="x", job_id="first")
    held.go.set()
    queue.get("first").future.result(5)
    assert queue.submit(lambda _: 1, what="x", job_id="first").future.result(5) == 1


def test_ended_jobs_are_forgotten_in_the_end() -> None:
    queue = WorkQueue(length=5, max_seconds=60)
    for number in range(230):
        queue.submit(lambda _: None, what="x", job_id=str(number)).future.result(5)
    queue.get("229")
    with pytest.raises(UnknownError):
        queue.get("0")


def test_a_closed_queue_cancels_all_and_takes_no_more(held: Held) -> None:
    queue = WorkQueue(length=5, max_seconds=60)
    first = occupy(queue, held)
    second = queue.submit(lambda _: 1, what="x")
    queue.close()
    for job in (first, second):
        with pytest.raises(CancelledError):
            job.future.result(5)
    with pytest.raises(BusyError, match="shutting down"):
        queue.submit(lambda _: 1, what="x")


def test_work_sees_its_callers_context() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    queue = WorkQueue(length=5, max_seconds=60)
    name.set("ann")
    job = queue.submit(lambda _: name.get(), what="x")
    name.set("ben")
    assert job.future.result(5) == "ann"


def test_a_request_that_has_ended_is_taken_over_by_nobody_else() -> None:
    queue = WorkQueue(length=2, max_seconds=60)
    assert queue.submit(lambda _: "hers", what="w", owner="ann", job_id="r").future.result(5) == "hers"
    with pytest.raises(ConflictError):
        queue.submit(lambda _: "his", what="w", owner="bob", job_id="r")
    assert (queue.get("r").owner, queue.get("r").future.result(5)) == ("ann", "hers")
    assert queue.submit(lambda _: "again", what="w", owner="ann", job_id="r").future.result(5) == "again"
