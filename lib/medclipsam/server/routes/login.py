"""Log-in as 3D Slicer's module and MONAI Label's client do it: a name and a password for a token."""

from __future__ import annotations

from typing import Annotated, Any

import requests
from fastapi import APIRouter, Form, Request
from monailabel.config import settings

from medclipsam.server.access import Access, AsUser
from medclipsam.server.http import UnauthenticatedError, UpstreamError

router = APIRouter(prefix="/auth", tags=["Auth"])


@router.get("/", summary="Tell whether users must say who they are")
def enabled(request: Request) -> dict[str, Any]:
    """Answer whether a token is asked for, and of which realm."""
    access: Access = request.app.state.access
    realm = {"client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID, "realm": settings.MONAI_LABEL_AUTH_REALM_URI}
    return {"enabled": access.authenticates, **(realm if access.oidc else {})}


@router.post("/token", summary="Get a token for a name and a password")
def token(
    request: Request, username: Annotated[str, Form()], password: Annotated[str, Form()]
) -> dict[str, str | None]:
    """Answer a token of the realm; where the server has tokens of its own, one of them is the password."""
    access: Access = request.app.state.access
    if not access.authenticates:
        return {"access_token": None, "token_type": None}
    if not access.oidc:
        access.user_of(f"Bearer {password}")
        return {"access_token": password, "token_type": "bearer"}
    realm = settings.MONAI_LABEL_AUTH_REALM_URI
    form = {
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "username": username,
        "password": password,
        "grant_type": "password",
    }
    try:
        known = requests.get(f"{realm}/.well-known/openid-configuration", timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
        answer = requests.post(known.json()["token_endpoint"], data=form, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
        if answer.status_code in (400, 401, 403):
            raise UnauthenticatedError("The realm knows no such name and password.")
        given = answer.json()
        return {"access_token": str(given["access_token"]), "token_type": "bearer"}
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise UpstreamError(f"The realm does not answer as it should ({type(error).__name__}).") from None


@router.get("/token/valid", summary="Tell who a token stands for")
def whose(user: AsUser) -> dict[str, Any]:
    """Answer name and roles."""
    return {"username": user.username, "roles": list(user.roles)}
