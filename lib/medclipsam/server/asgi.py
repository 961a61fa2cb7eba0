"""The ASGI application of `medclipsam serve`: own routes first, then those of MONAI Label that are kept as they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance
from starlette.routing import Route

from medclipsam.errors import MedClipSamError
from medclipsam.server.evidence import evidence_router
from medclipsam.server.health import health_router, metrics_router, not_ready
from medclipsam.server.http import status_of
from medclipsam.server.metrics import METRICS, CountInfers


def own_routers() -> Sequence[APIRouter]:
    """Return the routers of this package; a route of theirs goes before MONAI Label's of the same path."""
    return [health_router(not_ready), metrics_router(), evidence_router(lambda: app_instance().evidence)]


def create_app() -> FastAPI:
    """Return the application; MONAI Label's settings must stand by now, the app is made when the server starts."""
    from monailabel.app import app as stock

    app = FastAPI(title="medclipsam", openapi_url="/openapi.json", docs_url=None, redoc_url="/docs", lifespan=_lifespan)
    for router in own_routers():
        app.include_router(router, prefix=settings.MONAI_LABEL_API_STR)
    taken = {route.path for route in app.routes if isinstance(route, Route)}
    app.router.routes.extend(route for route in stock.routes if getattr(route, "path", None) not in taken)
    app.user_middleware.extend(stock.user_middleware)
    app.add_middleware(CountInfers, models=lambda: app_instance().model_names)
    app.add_exception_handler(MedClipSamError, _refused)
    app.add_exception_handler(json.JSONDecodeError, _not_json)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    instance = app_instance()
    instance.server_mode(True)
    instance.on_init_complete()
    METRICS.state = instance.pipeline.state
    instance.evidence.open(settings.MONAI_LABEL_API_STR)
    yield


def _refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=status_of(error))


def _not_json(request: Request, error: Exception) -> JSONResponse:
    """Answer params that are no JSON, which MONAI Label's routes read before the app is asked."""
    hint = "curl cuts a -F value at ';', use --form-string"
    return JSONResponse({"detail": f"The params of the request are no JSON ({error}; {hint})."}, status_code=400)
