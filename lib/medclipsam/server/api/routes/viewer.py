"""What the viewer of this package asks beside DICOMweb: which image a frame belongs to, drafts, labels, overlays."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from medclipsam.server.api.access import AsUser
from medclipsam.server.api.routes.common import App, give_client, turns

router = APIRouter(prefix="/viewer/api", tags=["Viewer"])

_MOST = 2**31 - 1


@router.get("/image", summary="Find the image of a DICOM series, instance or frame")
def image(
    request: Request,
    response: Response,
    app: App,
    user: AsUser,
    study: Annotated[str, Query(alias="StudyInstanceUID")],
    series: Annotated[str, Query(alias="SeriesInstanceUID")],
    instance: Annotated[str | None, Query(alias="SOPInstanceUID")] = None,
    frame: Annotated[int | None, Query(ge=1, le=_MOST, description="frame number, from 1")] = None,
) -> dict[str, Any]:
    """Answer the image's id, and the instance and frame of each of its planes in the order of the plane index.

    Everything else that is sent to and from a viewer names planes by this index, and points and masks in the frame's
    own pixels. `spacing_mm` is that of planes (null for a single one, or where not known), rows and columns.
    """
    give_client(request, response)
    with turns.of(user.username):
        image_id = app.viewed.image_of(study, series, instance, frame)
        frames = app.viewed.frames(image_id)
    rows, columns = frames.shape
    return {
        "image": image_id,
        "name": image_id,
        "modality": frames.image.modality,
        "rows": rows,
        "columns": columns,
        "spacing_mm": None if frames.spacing is None else list(frames.spacing),
        "planes": [{"sop": instance, "frame": number} for instance, number in frames.frames],
        "labelled": app.datastore().get_labels_by_image_id(image_id),
        "lease": app.rounds.lease_of(image_id),
    }
