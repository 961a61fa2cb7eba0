"""Whether the server lives and can work, and what it counts: `/healthz`, `/readyz`, `/metrics`.

The first two are for load balancers and service managers: they need no log-in and tell nothing but their answer.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from medclipsam.server.api.access import requires
from medclipsam.server.base.metrics import CONTENT_TYPE, METRICS, Metrics


def health_router(not_ready: Callable[[], str | None]) -> APIRouter:
    """Return the routes that anyone may ask.

    Parameters
    ----------
    not_ready : callable
        Returns why the server cannot work yet, in a few words that tell nothing private; None where it can.
    """
    router = APIRouter(tags=["Health"])

    @router.get("/healthz", summary="Whether the server answers")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    # to look for weights takes the disk; other requests may have taken all threads
    threads = anyio.CapacityLimiter(2)

    @router.get("/readyz", summary="Whether the server can work", responses={503: {"description": "Not ready"}})
    async def readyz() -> JSONResponse:
        reason = await anyio.to_thread.run_sync(not_ready, limiter=threads)
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)

    return router


def metrics_router(metrics: Metrics = METRICS) -> APIRouter:
    """Return the route of Prometheus's metrics, which asks for a log-in where the server has one."""
    router = APIRouter(tags=["Health"], dependencies=[requires("user")])

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    def answer() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router


def not_ready() -> str | None:
    """Return why MONAI Label's app cannot work yet, or None."""
    from medclipsam.server.monai_label.upstream import loaded_app

    app = loaded_app()
    if app is None:
        return "the app is not loaded"
    if not app.pipeline.can_load():
        return "weights are missing"
    return app.studies_not_ready()
