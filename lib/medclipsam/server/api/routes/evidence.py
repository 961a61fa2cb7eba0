"""The files that an answer's evidence consists of: maps and pictures under addresses that expire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from medclipsam.server.api.access import requires
from medclipsam.server.inference.evidence import OVERLAY, SALIENCY, UNCERTAINTY, EvidenceStore


def evidence_router(store: Callable[[], EvidenceStore]) -> APIRouter:
    """Return the routes that hand out evidence.

    Parameters
    ----------
    store : callable
        Returns the store; asked at each request, since the app is made after its routes.
    """
    router = APIRouter(prefix="/evidence", tags=["Evidence"], dependencies=[requires("user")])
    missing: dict[int | str, dict[str, Any]] = {404: {"description": "Unknown or expired"}}

    @router.get("/{token}/" + SALIENCY, summary="Saliency map of a target, on the image's voxels", responses=missing)
    def saliency(token: str) -> Response:
        return _answer(store().read(token, SALIENCY), "application/gzip")

    @router.get("/{token}/" + UNCERTAINTY, summary="A network's uncertainty, on the image's voxels", responses=missing)
    def uncertainty(token: str) -> Response:
        return _answer(store().read(token, UNCERTAINTY), "application/gzip")

    @router.get("/{token}/" + OVERLAY, summary="Picture of a map and the mask", responses=missing)
    def overlay(token: str, plane: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None) -> Response:
        return _answer(store().read(token, OVERLAY, plane), "image/png")

    return router


def _answer(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"Cache-Control": "private, no-store"})
