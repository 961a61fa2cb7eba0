"""What the server tells of itself: its models, pages for people, the log; and the routes of MONAI Label it has not."""

from __future__ import annotations

import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import fastapi_offline
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse

from medclipsam.server.api.access import Access, AsAdmin, AsUser
from medclipsam.server.api.routes.common import App, file_answer, give_client, mime_type
from medclipsam.server.base.errors import ForbiddenError, UnknownError
from medclipsam.server.monai_label.upstream import STATIC, settings

_OHIF = STATIC / "ohif"
# Takes the place of the bundle's own: what OHIF reads first, and may extend it by.
_OHIF_CONFIGURATION = Path(__file__).parents[2] / "viewer" / "app-config.js"
# The viewer asks its own server and nobody else, whatever the bundle would load (fonts) or be told to open.
# Its decoders are WebAssembly in workers, which it makes of blobs.
_OHIF_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
# Swagger UI and Redoc set styles, and Redoc searches in a worker that it makes of a blob.
_PAGES_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
# What the pages load: ours, and of the package fastapi-offline.
_OURS = Path(__file__).parents[2] / "viewer"
_PARTS = {
    **dict.fromkeys(("api.js", "reference.js", "start.js", "start.css"), _OURS),
    **dict.fromkeys(
        ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js"),
        Path(fastapi_offline.__file__).parent / "static",
    ),
}

router = APIRouter()


@router.get("/info/", tags=["App"], summary="Tell of models, labels, options and studies")
def info(app: App, user: AsUser) -> dict[str, Any]:
    """Answer what is served, as MONAI Label's clients expect it."""
    told: dict[str, Any] = app.info()
    return told


@router.get("/", include_in_schema=False)
def start(request: Request, user: AsUser) -> FileResponse:
    """Answer the page that people begin with: the studies, and what is labelled."""
    response = _page("start.html")
    give_client(request, response)
    return response


@router.get("/docs", include_in_schema=False)
def try_out() -> FileResponse:
    """Answer a page to try the API out."""
    return _page("api.html")


@router.get("/redoc", include_in_schema=False)
def read() -> FileResponse:
    """Answer a page with the API's description."""
    return _page("reference.html")


@router.get("/pages/{name}", include_in_schema=False)
def part(name: str) -> FileResponse:
    """Answer a script or style of these pages."""
    folder = _PARTS.get(name)
    if folder is None:
        raise UnknownError(f"{name[:80]!r} is no part of a page.")
    return FileResponse(folder / name, media_type=mime_type(name), headers={"Cache-Control": "no-cache"})


def _page(name: str) -> FileResponse:
    return FileResponse(_OURS / name, media_type="text/html", headers={"Content-Security-Policy": _PAGES_POLICY})


@router.get("/favicon.ico", include_in_schema=False)
def favicon() -> FileResponse:
    """Answer the icon of the pages."""
    return FileResponse(STATIC / "favicon.ico", media_type="image/x-icon")


@router.get("/ohif/{path:path}", include_in_schema=False)
def ohif(request: Request, user: AsUser, path: str) -> FileResponse:
    """Answer a file of the OHIF viewer; a path of the viewer's own pages gets the viewer."""
    try:
        file = (_OHIF / path).resolve()
        known = file.is_relative_to(_OHIF.resolve()) and file.is_file()
    except (OSError, ValueError):  # no file can have such a name
        known = False
    if path == _OHIF_CONFIGURATION.name:
        file = _OHIF_CONFIGURATION
    elif not known:
        file = _OHIF / "index.html"
    # those whose names tell their versions stay as they are
    kept = {} if ".bundle." in file.name else {"Cache-Control": "no-cache"}
    headers = {"Content-Security-Policy": _OHIF_POLICY, **kept}
    response = FileResponse(file, media_type=mime_type(str(file)), headers=headers)
    give_client(request, response)
    return response


@router.get("/logs/", tags=["Others"], summary="Read the end of the log")
def logs(request: Request, user: AsAdmin, lines: Annotated[int, Query(ge=1, le=10_000)] = 300) -> PlainTextResponse:
    """Answer the latest lines; only where users must say who they are."""
    _must_authenticate(request, "The log")
    file = Path(settings.MONAI_LABEL_APP_DIR, "logs", "app.log")
    if not file.is_file():
        raise UnknownError("There is no log yet.")
    with file.open(encoding="utf-8", errors="replace") as content:
        return PlainTextResponse("".join(deque(content, lines)))


@router.get("/logs/gpu", tags=["Others"], summary="Tell of the GPUs")
def gpus(request: Request, user: AsAdmin) -> PlainTextResponse:
    """Answer what nvidia-smi says; only where users must say who they are."""
    _must_authenticate(request, "The state of the GPUs")
    program = shutil.which("nvidia-smi")
    if program is None:
        raise UnknownError("This machine has no nvidia-smi.")
    told = subprocess.run([program], capture_output=True, text=True, timeout=30, check=False)
    return PlainTextResponse(told.stdout)


@router.get("/model/info/{model}", tags=["Model"], summary="Tell of a model's file")
def model_info(app: App, user: AsAdmin, model: str) -> dict[str, Any]:
    """Answer checksum and time of the file of a model that has one of its own."""
    app.task(model)
    told: dict[str, Any] | None = app.model_info(model)
    if not told:
        raise UnknownError(
            f"Model {model!r} has no file of its own; GET /info/ and `medclipsam weights` tell of weights."
        )
    return told


@router.get("/model/{model}", tags=["Model"], summary="Download a model's file")
def get_model(app: App, user: AsAdmin, model: str) -> FileResponse:
    """Answer the file of a model that has one of its own."""
    app.task(model)
    return file_answer(app.model_file(model) or "", f"Model {model!r}")


@router.put("/model/{model}", include_in_schema=False)
@router.delete("/model/{model}", include_in_schema=False)
def change_model(user: AsAdmin, model: str) -> None:
    """Refuse: weights are brought by the command `medclipsam weights`, which checks them."""
    raise ForbiddenError("Models are not changed over HTTP; bring weights with `medclipsam weights fetch`.")


@router.post("/infer/wsi/{model}", include_in_schema=False)
@router.post("/infer/wsi_v2/{model}", include_in_schema=False)
def infer_whole_slide(user: AsUser, model: str) -> None:
    """Refuse: there is no model for whole slides."""
    raise UnknownError("No model for whole-slide images is served; POST /infer/{model} takes images.")


@router.post("/reload", include_in_schema=False)
def reload(user: AsAdmin) -> None:
    """Refuse: it would make a second app beside the first, with models of its own."""
    raise ForbiddenError("The app cannot be reloaded while it serves; restart the server.")


def _must_authenticate(request: Request, what: str) -> None:
    access: Access = request.app.state.access
    if not access.authenticates:
        raise ForbiddenError(
            f"{what} is shown to an admin of a server with authentication; here it is in the workspace."
        )
