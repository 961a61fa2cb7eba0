"""The ASGI application of `medclipsam serve`.

It has the routes of MONAI Label, each decided one by one, in front of the object that MONAI Label calls the app:
checked, with roles, and off the event loop, so that one request makes another wait for nothing but the models. MONAI
Label's own route functions are not used: they run on the event loop whatever takes its time, and open what a request
names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from medclipsam import __version__
from medclipsam.base.errors import MedClipSamError
from medclipsam.imaging import isolation
from medclipsam.server.api.access import Access, caller_of
from medclipsam.server.api.health import health_router, metrics_router, not_ready
from medclipsam.server.api.middleware import (
    AccessFirst,
    BodyLimit,
    ComposedNames,
    SafeHeaders,
    SameOrigin,
    UnforeseenErrors,
    refused,
)
from medclipsam.server.api.routes import (
    datastore,
    dicomweb,
    drafts,
    infer,
    login,
    networks,
    pages,
    proxy,
    readers,
    rounds,
    sessions,
    targets,
    tasks,
    viewer,
    viewer_page,
)
from medclipsam.server.api.routes.evidence import evidence_router
from medclipsam.server.base.errors import status_of, storage_error
from medclipsam.server.base.metrics import METRICS, CountInfers
from medclipsam.server.inference.evidence import EvidenceStore
from medclipsam.server.inference.work import WorkQueue
from medclipsam.server.learning.rounds import RoundScheduler
from medclipsam.server.learning.scoring import ScoringJobs
from medclipsam.server.monai_label.adjudication import Adjudication
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.server.monai_label.saved import SavedSegments
from medclipsam.server.monai_label.upstream import settings
from medclipsam.server.studies.drafts import DraftStore
from medclipsam.server.studies.waiting import THREADS


def routers(evidence: EvidenceStore) -> Sequence[APIRouter]:
    """Return the routers of the application; of two routes that fit a request the first one answers."""
    return [
        health_router(not_ready),
        metrics_router(),
        evidence_router(lambda: evidence),
        login.router,
        # before infer, whose routes would take their addresses as a model's
        pages.router,
        infer.router,
        tasks.router,
        networks.router,
        rounds.router,
        readers.router,
        targets.router,
        datastore.router,
        sessions.router,
        proxy.router,
        dicomweb.router,
        viewer.router,
        drafts.router,
        # takes every address below its own that is not taken yet
        viewer_page.router,
    ]


def create_app(
    label_app: MedClipSamApp, access: Access | None = None, *, origins: Sequence[str] = (), local: bool = False
) -> FastAPI:
    """Make the application.

    Its `state` has what routes and metrics need: `label_app`, `queue`, `access`, `drafts`, `saved`.

    Parameters
    ----------
    label_app : MedClipSamApp
        The app that MONAI Label has made.
    access : Access, optional
        How users are told apart; everyone is let in by default.
    origins : sequence of str
        Other web origins that are let in.
    local : bool
        Whether the server is reached by this machine's own addresses only.
    """
    access = access or Access()
    limits = label_app.app_conf.limits
    app = FastAPI(
        title="medclipsam",
        version=__version__,
        description="Text-driven segmentation (MedCLIP-SAMv2) as a MONAI Label server. For research use only.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        responses={"4XX": {"description": "One sentence says what is wrong", "content": _SENTENCE}},
    )
    app.state.label_app = label_app
    app.state.access = access
    app.state.local = local
    app.state.drafts = DraftStore(label_app.workspace / "drafts")
    app.state.queue = WorkQueue(limits.queue_length, limits.max_seconds)
    queue = app.state.queue
    app.state.keeper = RoundScheduler(
        label_app.rounds,
        queue,
        start_training=lambda: tasks.train_for_rounds(label_app, queue),
        trains=tasks.running_trainer,
        prelabel=label_app.prelabel,
    )
    app.state.saved = SavedSegments(label_app)
    app.state.adjudication = Adjudication(label_app)
    app.state.scorings = ScoringJobs(queue, paused=lambda: tasks.scoring_pauses(label_app))
    for router in routers(label_app.evidence):
        app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")
    app.add_exception_handler(MedClipSamError, refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    # the last one added is the first to see a request
    login_path = f"{settings.MONAI_LABEL_API_STR}/auth/token"
    with_masks = tuple(f"{settings.MONAI_LABEL_API_STR}/{part}/" for part in ("viewer/api", "infer"))
    app.add_middleware(BodyLimit, max_bytes=limits.max_upload_mb * 2**20, login=login_path, with_masks=with_masks)
    open_paths = {login_path, f"{settings.MONAI_LABEL_API_STR}/auth/logout"}
    app.add_middleware(AccessFirst, known=caller_of, refuse=refused, open_paths=open_paths)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(CountInfers, models=lambda: label_app.model_names)
    app.add_middleware(ComposedNames)
    app.add_middleware(SameOrigin, origins=origins, local=local)
    app.add_middleware(UnforeseenErrors)
    app.add_middleware(SafeHeaders)
    return app


_SENTENCE = {
    "application/json": {
        "schema": {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    }
}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    label_app: MedClipSamApp = app.state.label_app
    label_app.server_mode(True)
    label_app.on_init_complete()
    queue: WorkQueue = app.state.queue
    METRICS.state = lambda: dataclasses.replace(label_app.pipeline.state(), queue_length=queue.waiting)
    label_app.evidence.open(settings.MONAI_LABEL_API_STR)
    app.state.keeper.start()
    label_app.viewed.warm_up()
    # the first image that is read there need not wait for it
    isolation.start()
    yield
    queue.close()
    # threads that wait for a reader end with it
    isolation.close()
    app.state.keeper.stop()
    app.state.scorings.close()


async def _refused_by_framework(request: Request, error: Exception) -> Response:
    """Answer a body that could not be read: where its files found no room, that is not the client's fault."""
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    storage = None if cause is None else storage_error(cause)
    if storage is not None:
        return JSONResponse({"detail": str(storage)}, status_code=status_of(storage))
    return await http_exception_handler(request, error)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a parameter of the address or a field of the form that is missing or of the wrong type."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return JSONResponse({"detail": f"Parameter {name!r} of the request: {first['msg']}."}, status_code=400)
