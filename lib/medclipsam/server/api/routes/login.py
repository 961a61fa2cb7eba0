"""Log-in: browsers by the OpenID provider's own page, 3D Slicer's module and MONAI Label's client by a password."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from medclipsam.server.api.access import Access, AsUser, session_cookie
from medclipsam.server.api.oidc import LOGIN_SECONDS, OidcProvider
from medclipsam.server.base.errors import UnauthenticatedError, UnknownError

router = APIRouter(prefix="/auth", tags=["Auth"])

_LOGIN_COOKIE = "medclipsam_login"


@router.get("/", summary="Tell whether users must log in")
def enabled(request: Request) -> dict[str, Any]:
    """Answer whether a token is needed, and of which provider."""
    access: Access = request.app.state.access
    if access.oidc is None:
        return {"enabled": access.authenticates}
    options = access.oidc.options
    return {"enabled": True, "client_id": options.client_id, "realm": options.issuer}


@router.get("/login", summary="Log in with a browser", response_class=RedirectResponse)
def login(request: Request, then: Annotated[str, Query(alias="next", max_length=2000)] = "/") -> RedirectResponse:
    """Send the browser to the OpenID provider (authorization code with PKCE)."""
    begun = _provider(request).begin(str(request.url_for("callback")), then)
    answer = RedirectResponse(begun.url, status_code=303, headers={"Cache-Control": "no-store"})
    secure = request.url.scheme == "https"
    answer.set_cookie(_LOGIN_COOKIE, begun.cookie, max_age=LOGIN_SECONDS, httponly=True, secure=secure, samesite="lax")
    return answer


@router.get("/callback", summary="End the log-in of a browser", response_class=RedirectResponse)
def callback(
    request: Request, state: str = "", code: str = "", error: str = "", iss: str | None = None
) -> RedirectResponse:
    """Open a session for a browser that the OpenID provider sends back."""
    provider = _provider(request)
    if error or not code:
        raise UnauthenticatedError("The OpenID provider has not logged this user in; log in again.")
    session, then = provider.complete(request.cookies.get(_LOGIN_COOKIE, ""), state, code, iss)
    answer = RedirectResponse(then, status_code=303, headers={"Cache-Control": "no-store"})
    secure = request.url.scheme == "https"
    answer.set_cookie(
        session_cookie(secure=secure),
        session,
        max_age=60 * provider.options.session_minutes,
        httponly=True,
        secure=secure,
        samesite="lax",
    )
    answer.delete_cookie(_LOGIN_COOKIE, httponly=True, secure=secure, samesite="lax")
    return answer


@router.post("/logout", summary="Log a browser out", status_code=204)
def logout(request: Request) -> Response:
    """End the browser's session; the provider's own goes on."""
    name = session_cookie(secure=request.url.scheme == "https")
    _provider(request).end_session(request.cookies.get(name))
    answer = Response(status_code=204)
    answer.delete_cookie(name, httponly=True, secure=request.url.scheme == "https", samesite="lax")
    return answer


@router.post("/token", summary="Get a token for a name and a password")
def token(
    request: Request, username: Annotated[str, Form()], password: Annotated[str, Form()]
) -> dict[str, str | None]:
    """Answer a token of the provider; where the server has tokens of its own, one of them is the password."""
    access: Access = request.app.state.access
    if not access.authenticates:
        return {"access_token": None, "token_type": None}
    if access.oidc is not None:
        return {"access_token": access.oidc.password_token(username, password), "token_type": "bearer"}
    access.user_of(f"Bearer {password}")
    return {"access_token": password, "token_type": "bearer"}


@router.get("/token/valid", summary="Tell whose token it is")
def whose(user: AsUser) -> dict[str, Any]:
    """Answer name and roles."""
    return {"username": user.username, "roles": list(user.roles)}


def _provider(request: Request) -> OidcProvider:
    access: Access = request.app.state.access
    if access.oidc is None:
        raise UnknownError("This server has no OpenID provider to log in with.")
    return access.oidc
