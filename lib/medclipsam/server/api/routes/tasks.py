"""Active learning, scoring, and the tasks that MONAI Label runs in sub-processes: training and batch inference."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from medclipsam.server.api.access import AsAdmin, AsAnnotator, AsUser, User
from medclipsam.server.api.params import InferParams, ParamsOf, TrainParams
from medclipsam.server.api.routes.common import App, Queue, caller_of, is_known_reviewer
from medclipsam.server.base.audit import Caller
from medclipsam.server.base.errors import (
    AlreadyRunningError,
    ConflictError,
    ForbiddenError,
    UnknownError,
    without_folders,
)
from medclipsam.server.base.names import checked_name
from medclipsam.server.inference.memory import ensure_memory
from medclipsam.server.inference.request_schema import checked_object, without_address
from medclipsam.server.inference.work import Job
from medclipsam.server.learning.rounds import ADJUDICATION
from medclipsam.server.learning.scoring import ScoringJobs
from medclipsam.server.learning.trainer import describe_training, orphaned_training, stop_training_of
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.monai_label.upstream import AsyncTask, BatchInferImageType, processes, tasks
from medclipsam.server.studies.images import unknown_image
from medclipsam.training.lock import holder_of, training_state
from medclipsam.training.names import DEFAULT_NAME
from medclipsam.weights import MemoryNeed

router = APIRouter()

# Sub-processes that load models of their own, as the beginning of a sentence.
_LOAD_MODELS = {"batch_infer": "A batch", "train": "A training"}
# What the start of a sub-process takes at most, from its request on.
_START_SECONDS = 20.0

Params = Annotated[dict[str, Any] | None, Body(description="JSON object of options")]
InferBody = Annotated[dict[str, Any] | None, Body(description="JSON object of options"), ParamsOf(InferParams)]
TrainBody = Annotated[dict[str, Any] | None, Body(description="JSON object of options"), ParamsOf(TrainParams)]


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="Get the image to look at next")
def next_sample(request: Request, app: App, user: AsUser, strategy: str, params: Params = None) -> dict[str, Any]:
    """Answer the image that a strategy of `/info/` proposes; nothing where there is none."""
    asked = checked_object(params)
    reviews = is_known_reviewer(request, user)
    caller = replace(caller_of(request, user.username, asked), reviews=reviews)
    if strategy == ADJUDICATION and request.app.state.access.authenticates and not reviews:
        raise ForbiddenError(f"User {user.username!r} has not the role reviewer, which {ADJUDICATION} asks for.")
    sample = app.propose(strategy, asked, caller)
    if not sample:
        return {}
    info = app.datastore().get_image_info(sample["id"])
    request.app.state.keeper.wake()
    seen = {"ts": int(time.time()), "client_id": caller.client or user.username}
    names = {}
    with suppress(UnknownError):  # the file went away in this moment
        names = dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), app.viewed.names(sample["id"]), strict=True))
    # what is kept with the image takes the place of nothing that the server says
    answer = {**info, **names, **sample, "strategy": {strategy: seen}}
    if not request.app.state.local:
        # a client on this machine may open the file where it lies; to others it says nothing
        answer["path"] = ""
    return answer


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Run a model on many images in the background")
def start_batch(
    app: App,
    queue: Queue,
    user: AsAdmin,
    model: str,
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: InferBody = None,
    run_sync: bool = False,
) -> Any:
    """Start a batch, which saves a label for each image; `run_sync` waits for it and answers its results."""
    asked = without_address(checked_object(params), model=model)
    app.batch_request(model, asked, Caller(user.username))
    named = asked.get("images")
    if isinstance(named, list):
        known = set(app.datastore().list_images())
        asked["images"] = named = [checked_name(image, "Image") for image in named]
        for image in named:
            if image not in known:
                raise unknown_image(image, known.__contains__)
    request = {"images": images.value, "save_label": True, **asked, "model": model, "user": user.username}
    if run_sync:
        return _wait(queue, lambda job: app.batch_infer(request, job=job), f"batch of {model}", user)
    return _start(app, "batch_infer", request)


@router.get("/batch/infer", tags=["Infer"], summary="Tell of the batch")
def batch_status(user: AsUser, all: bool = False, check_if_running: bool = False) -> Any:
    """Answer the latest batch's state, or all batches'; folders of the server's files to admins only."""
    return _for_user(user, _status("batch_infer", all, check_if_running))


@router.delete("/batch/infer", tags=["Infer"], summary="Stop the batch")
def stop_batch(user: AsAdmin) -> Any:
    """Stop the batch that runs."""
    return _stop("batch_infer")


@router.post("/train/{model}", tags=["Train"], summary="Train a trainer of /info/")
def start_training(
    app: App,
    queue: Queue,
    user: AsAdmin,
    model: str,
    params: TrainBody = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """Start training in the background; `enqueue` lets it wait for one that runs."""
    return _train(app, queue, model, checked_object(params), run_sync, enqueue, user)


@router.post("/train/", tags=["Train"], include_in_schema=False)
def start_all_training(
    app: App, queue: Queue, user: AsAdmin, params: Params = None, run_sync: bool = False
) -> dict[str, Any]:
    """Start all trainers one after the other; `params` holds an object for each."""
    asked = _for_each(params, app.info()["trainers"], "Trainer")
    return {name: {"result": _train(app, queue, name, one, run_sync, True, user)} for name, one in asked.items()}


@router.get("/train/", tags=["Train"], summary="Tell of the training")
def training_status(app: App, user: AsUser, all: bool = False, check_if_running: bool = False) -> Any:
    """Answer the latest training's state, or all trainings'; also of one that an earlier server has started.

    The folders of the server's files are answered to admins only.
    """
    store = app.networks.store
    holder = orphaned_training(store, _own_processes("train"))
    if holder is not None:
        running = describe_training(store, holder)
        return _for_user(user, [*tasks("train"), running] if all else running)
    answer = _status("train", all, check_if_running)
    if not all and answer["status"] == "RUNNING" and holder_of(store.folder) is not None:
        answer = {**answer, "progress": training_state(store.folder)}
    return _for_user(user, answer)


@router.delete("/train/", tags=["Train"], summary="Stop the training")
def stop_training(app: App, user: AsAdmin) -> Any:
    """Stop the training that runs; what was published before stays."""
    holder = orphaned_training(app.networks.store, _own_processes("train"))
    if holder is not None:
        return stop_training_of(app.networks.store, holder)
    return _stop("train")


@router.post("/scoring/{method}", tags=["Scoring"], summary="Run a scoring method of /info/")
def start_scoring(
    request: Request, app: App, user: AsAnnotator, method: str, params: Params = None, run_sync: bool = False
) -> Any:
    """Score in the background what has no score yet; `run_sync` waits for it and answers its results."""
    return _score(request, app, method, checked_object(params), run_sync, False, user)


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False)
def start_all_scoring(
    request: Request, app: App, user: AsAnnotator, params: Params = None, run_sync: bool = False
) -> dict[str, Any]:
    """Start all scoring methods one after the other; `params` holds an object for each."""
    asked = _for_each(params, app.info()["scoring"], "Scoring method")
    answer: dict[str, Any] = {}
    for name, one in asked.items():
        try:
            answer[name] = {"result": _score(request, app, name, one, run_sync, True, user)}
        except ConflictError as error:
            # the others do not wait for a network
            answer[name] = {"result": None, "detail": str(error)}
    return answer


@router.get("/scoring/", tags=["Scoring"], summary="Tell of the scoring")
def scoring_status(request: Request, user: AsUser, all: bool = False, check_if_running: bool = False) -> Any:
    """Answer the latest scoring's state, or all scorings'."""
    return request.app.state.scorings.status(every=all, running=check_if_running)


@router.delete("/scoring/", tags=["Scoring"], summary="Stop the scoring")
def stop_scoring(request: Request, user: AsAnnotator) -> Any:
    """Stop the scoring that runs; what it has scored stays."""
    return request.app.state.scorings.stop()


def _train(
    app: MedClipSamApp, queue: Queue, model: str, params: dict[str, Any], sync: bool, enqueue: bool, user: User
) -> Any:
    asked = without_address(params, model=model)
    trainer = app.check_trainer(model, asked)
    request = {**asked, "model": model, "user": user.username}
    if orphaned_training(app.networks.store, _own_processes("train")) is not None:
        raise AlreadyRunningError("A training runs that was started before; ask for its state, or stop it first.", 30)
    if sync:
        return _wait(queue, lambda job: app.train(request, job), f"training of {model}", user)
    return _start(app, "train", request, enqueue, trainer.need(asked))


def train_for_rounds(app: MedClipSamApp, queue: Queue) -> None:
    """Start the training that is due by the rounds.

    Raises
    ------
    MedClipSamError
        If one runs already, or there is no room for it.
    """
    _train(app, queue, DEFAULT_NAME, app.app_conf.rounds.training, False, False, User("rounds"))


def running_trainer() -> str | None:
    """Return the name of what this server trains, a network's or another trainer's; None where it trains nothing."""
    running = processes("train")
    request = next((task["request"] for task in tasks("train") if task["id"] in running), None)
    if request is None:
        return None
    model = str(request.get("model"))
    return str(request.get("name") or DEFAULT_NAME) if model == DEFAULT_NAME else model


def scoring_pauses(app: MedClipSamApp) -> bool:
    """Return whether scoring has to wait for a training, this server's or another's on the same workspace."""
    return bool(processes("train")) or holder_of(app.networks.store.folder) is not None


def _score(
    request: Request, app: MedClipSamApp, method: str, params: dict[str, Any], sync: bool, enqueue: bool, user: User
) -> Any:
    task = app.scoring_method(method, params)
    asked = {**params, "method": method, "user": user.username}
    scorings: ScoringJobs = request.app.state.scorings
    return scorings.wait(task) if sync else scorings.start(task, asked, enqueue=enqueue)


def _wait(queue: Queue, work: Callable[[Job], Any], what: str, user: User) -> Any:
    """Do long work in the queue, without a limit to its time."""
    return queue.submit(work, what=what, owner=user.username, max_seconds=math.inf).future.result()


def _for_user(user: User, answer: Any) -> Any:
    """Return the state of a task as a user may see it."""
    return answer if user.has("admin") else without_folders(answer)


def _for_each(params: dict[str, Any] | None, known: dict[str, Any], what: str) -> dict[str, dict[str, Any]]:
    """Return the params for each of `known`."""
    given = checked_object(params)
    given.pop("client_id", None)
    for name, value in given.items():
        if name not in known:
            raise UnknownError(f"{what} {name!r} is not served; allowed: {', '.join(known) or 'none'}.")
        if not isinstance(value, dict):
            raise UnknownError(f"The params of {what.lower()} {name!r} are not a JSON object.")
    return {name: given.get(name, {}) for name in known}


def _start(
    app: MedClipSamApp, method: str, request: dict[str, Any], enqueue: bool = False, need: MemoryNeed | None = None
) -> Any:
    _await_start(method)
    if not processes(method):
        app.networks.release()
        ensure_memory(_LOAD_MODELS[method], app.app_conf, app.pipeline, need=need)
    task, _ = AsyncTask.run(method, request=request, enqueue=enqueue)
    if task is None:
        raise AlreadyRunningError(f"Another {method.replace('_', ' ')} runs; ask for its state, or stop it first.", 30)
    return task


def _stop(method: str) -> Any:
    _await_start(method)
    return AsyncTask.stop(method)


def _await_start(method: str) -> None:
    """Wait where a sub-process is on its way: MONAI Label would not see it, nor stop it, and start a second one."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        states = {task["status"] for task in tasks(method)}
        if "SUBMITTED" not in states or "RUNNING" in states:
            return
        time.sleep(0.02)


def _own_processes(method: str) -> set[int]:
    """Return the processes that this server has started for a method, and its own, which trains where it waits."""
    started = [process.pid for process in processes(method).values()]
    return {os.getpid(), *started}


def _status(method: str, every: bool, running: bool) -> Any:
    task, _ = AsyncTask.status(method, every, running)
    if task is None:
        raise UnknownError(f"No {method.replace('_', ' ')} {'runs' if running else 'has been started'}.")
    return task
