"""Trained networks: their history, reports, and the way back to an earlier one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from medclipsam.server.api.access import AsAdmin, AsUser
from medclipsam.server.api.routes.common import LARGEST, App, caller_of
from medclipsam.server.base.errors import UnknownError
from medclipsam.training.store import Network

router = APIRouter(prefix="/networks", tags=["Networks"])

_MEDIA = {"report.md": "text/markdown; charset=utf-8", "report.json": "application/json", "curve.png": "image/png"}


@router.get("/", summary="List the trained networks")
def list_networks(app: App, user: AsUser) -> dict[str, Any]:
    """Answer, for each name, which version is served, all versions, and what happened to them."""
    store = app.networks.store
    answer = {}
    for name in store.names():
        current = store.current(name)
        answer[name] = {
            "current": None if current is None else current.version,
            "networks": [_describe(network) for network in store.history(name)],
            "events": store.events(name),
        }
    return answer


@router.get("/{name}/{version}/{file}", summary="Download the report of a training")
def get_report(
    app: App,
    user: AsUser,
    name: str,
    version: Annotated[int, PathParameter(ge=0, le=LARGEST)],
    file: Literal["report.md", "report.json", "curve.png"],
) -> FileResponse:
    """Answer the report, readable or for programs, or the learning curve."""
    path = app.networks.store.get(name, version).folder / file
    if not path.is_file():
        raise UnknownError(f"Version {version} of {name!r} has no {file}.")
    return FileResponse(path, media_type=_MEDIA[file], headers={"Cache-Control": "private, no-store"})


@router.post("/{name}/rollback", summary="Serve an earlier network again")
def roll_back(
    request: Request,
    app: App,
    user: AsAdmin,
    name: str,
    version: Annotated[int | None, Query(ge=0, le=LARGEST)] = None,
) -> dict[str, Any]:
    """Serve the network that was served before, or the version that is named."""
    network = app.networks.store.rollback(name, version)
    app.audit.network(caller_of(request, user.username), "network rolled back", network.name, network.version)
    return _describe(network)


def _describe(network: Network) -> dict[str, Any]:
    about = network.to_dict()
    # which image scored what stands in the report
    about["metrics"] = {key: value for key, value in network.metrics.items() if key != "images"}
    return about
