"""Known targets, for forms that suggest while someone types."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from medclipsam.server.api.access import AsUser
from medclipsam.server.api.routes.common import App
from medclipsam.server.inference.request_schema import checked_modality
from medclipsam.targets import suggest

router = APIRouter(prefix="/targets", tags=["Targets"])

_LONGEST_QUERY = 100
_MOST = 50
_MOST_SYNONYMS = 50


@router.get("/vocabulary", summary="Suggest known targets for what was typed so far")
def vocabulary(
    app: App,
    user: AsUser,
    q: Annotated[str, Query(max_length=_LONGEST_QUERY, description="what was typed; empty for all targets")] = "",
    modality: Annotated[str, Query(description="DICOM modality of the image; empty for all")] = "",
    limit: Annotated[int, Query(ge=1, le=_MOST, description="most targets in the answer")] = 10,
) -> dict[str, Any]:
    """Answer the targets whose names or synonyms fit best: first those that begin with it, then similar ones."""
    return {
        "targets": [
            {
                "name": found.target.name,
                "text": found.text,
                "label": found.target.label,
                "modality": list(found.target.modality),
                "synonyms": list(found.target.synonyms[:_MOST_SYNONYMS]),
            }
            for found in suggest(q, app.targets, checked_modality(modality), limit)
        ]
    }
