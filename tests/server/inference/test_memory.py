"""Whether a sub-process fits, reckoned by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medclipsam.server.api.routes import tasks
from medclipsam.server.base.conf import AppConf
from medclipsam.server.base.errors import BusyError, ConflictError
from medclipsam.server.inference import memory as room
from medclipsam.server.inference import pipeline as shared_module
from medclipsam.server.inference.memory import CUDA_CONTEXT, Free, ensure_memory, free_memory, shortage
from medclipsam.server.inference.pipeline import SharedPipeline
from medclipsam.targets import TargetSet
from medclipsam.weights import MemoryNeed

GB = 10**9
NEED = MemoryNeed(2 * GB, 1 * GB)
LIBRARIES = 1200 * 2**20


def conf(**settings: str) -> AppConf:
    return AppConf.from_strings(settings)


@pytest.mark.parametrize(
    ("free", "fits"),
    [
        (Free(3 * GB + LIBRARIES), True),
        (Free(3 * GB + LIBRARIES - 1), False),
        (Free(0), True),  # the system does not tell
        (Free(2 * GB + LIBRARIES, 3 * GB + CUDA_CONTEXT), True),
        (Free(2 * GB + LIBRARIES - 1, 3 * GB + CUDA_CONTEXT), False),
        (Free(99 * GB, 3 * GB + CUDA_CONTEXT - 1), False),
    ],
)
def test_weights_work_and_libraries_must_fit_where_they_go(free: Free, fits: bool) -> None:
    reason = shortage("A batch", NEED, free)
    assert (reason is None) is fits


def test_models_of_the_server_itself_need_no_libraries_anew() -> None:
    assert shortage("The models", NEED, Free(3 * GB), new_process=False) is None
    assert shortage("The models", NEED, Free(2 * GB, 3 * GB), new_process=False) is None


def test_a_process_that_does_not_fit_is_refused_with_figures(loaded: Any) -> None:
    pipeline = SharedPipeline(conf(), TargetSet.load())
    pipeline.warm_up()
    with pytest.raises(ConflictError) as error:
        ensure_memory("A batch", conf(), pipeline, need=NEED, look=lambda device: Free(2 * GB))
    sentence = str(error.value)
    assert "A batch would need 4.3 GB of main memory, and 2.0 GB are free" in sentence
    assert "--release-models" in sentence
    assert pipeline.is_loaded


def test_the_server_gives_its_memory_where_it_may_and_that_helps(loaded: Any) -> None:
    pipeline = SharedPipeline(conf(), TargetSet.load())
    pipeline.warm_up()
    may = conf(release_models="true")
    answers = [Free(2 * GB), Free(5 * GB)]
    ensure_memory("A batch", may, pipeline, need=NEED, look=lambda device: answers.pop(0))
    assert not pipeline.is_loaded
    with pytest.raises(ConflictError):
        ensure_memory("A batch", may, pipeline, need=NEED, look=lambda device: Free(2 * GB))


def test_what_fits_or_is_not_known_leaves_the_models_alone(loaded: Any) -> None:
    pipeline = SharedPipeline(conf(), TargetSet.load())
    pipeline.warm_up()
    may = conf(release_models="true")
    ensure_memory("A batch", may, pipeline, need=NEED, look=lambda device: Free(9 * GB))
    ensure_memory("A batch", conf(weights="nobody"), pipeline, look=lambda device: Free(1))
    assert pipeline.is_loaded


def test_models_that_gave_way_are_loaded_when_there_is_room_again(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = SharedPipeline(conf(), TargetSet.load())
    pipeline.warm_up()
    pipeline.release()
    monkeypatch.setattr(shared_module, "free_memory", lambda device: Free(1000))
    with pytest.raises(BusyError, match="gave way to a training or a batch") as error:
        pipeline.warm_up()
    assert error.value.retry_after == 60
    monkeypatch.setattr(shared_module, "free_memory", lambda device: Free(9 * GB))
    pipeline.warm_up()
    assert pipeline.is_loaded


def test_a_batch_without_room_is_not_started(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    networks = SimpleNamespace(release=lambda: started.append("released"))
    app = SimpleNamespace(networks=networks, app_conf=conf(), pipeline=SharedPipeline(conf(), TargetSet.load()))
    monkeypatch.setattr(tasks.AsyncTask, "run", lambda method, **more: (started.append(method) or {"id": method}, None))
    monkeypatch.setattr(room, "memory_need", lambda name: MemoryNeed(10**15, 0))
    for method in ("batch_infer", "train"):
        with pytest.raises(ConflictError, match=r"would need 1000001\.3 GB"):
            tasks._start(app, method, {})  # type: ignore[arg-type]
    monkeypatch.setattr(room, "memory_need", lambda name: MemoryNeed(1, 1))
    assert tasks._start(app, "batch_infer", {}) == {"id": "batch_infer"}  # type: ignore[arg-type]
    assert [method for method in started if method != "released"] == ["batch_infer"]


def test_this_machine_tells_what_is_free() -> None:
    free = free_memory("cpu")
    assert free.main > 0
    assert free.gpu is None
