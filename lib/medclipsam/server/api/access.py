"""Who may call what, and where the server may be reached.

Without authentication everyone who reaches the server may do everything, so that it then listens to its own machine
only. With it each route asks for one of MONAI Label's roles.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, Request

from medclipsam.base.errors import InputError, OptionError
from medclipsam.server.api.oidc import OidcProvider
from medclipsam.server.api.users import ROLES, Role, User, role_name
from medclipsam.server.base.errors import ForbiddenError, UnauthenticatedError

TOKEN_VARIABLE = "MEDCLIPSAM_TOKEN"
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """How users are told apart.

    Parameters
    ----------
    tokens : mapping of bytes to User
        SHA-256 of each token to its user.
    oidc : OidcProvider or None
        The OpenID Connect provider whose users are let in.
    """

    tokens: Mapping[bytes, User] = field(default_factory=dict)
    oidc: OidcProvider | None = None

    @property
    def authenticates(self) -> bool:
        """Whether users must say who they are."""
        return bool(self.tokens) or self.oidc is not None

    def user_of(self, authorization: str | None, session: str | None = None) -> User:
        """Return the user of a request; may ask the OpenID provider.

        Parameters
        ----------
        authorization : str or None
            The Authorization header; it takes precedence.
        session : str or None
            The cookie of a browser that has logged in.

        Raises
        ------
        UnauthenticatedError
            If there are no valid credentials.
        """
        if not self.authenticates:
            return User("anonymous", tuple(role_name(role) for role in ROLES))
        token = _token_of(authorization or "")
        if not token and self.oidc is not None:
            logged_in = self.oidc.user_of_session(session)
            if logged_in is not None:
                return logged_in
        if not token:
            raise UnauthenticatedError("This server asks for a token; send it in the header Authorization: Bearer.")
        known = self.tokens.get(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())
        if known is not None:
            return known
        if self.oidc is not None:
            return self.oidc.user_of(token)
        raise UnauthenticatedError("The token is not one of this server's.")


def requires(role: Role) -> Any:
    """Return the dependency of a route that asks for `role`; its value is the user.

    Use it in a router's `dependencies=[requires("user")]`, or as the type of a parameter, see `AsUser`.
    """

    async def user(request: Request) -> User:
        # the provider may be asked, and the loop must not wait for it
        found = await anyio.to_thread.run_sync(caller_of, request)
        if not found.has(role):
            raise ForbiddenError(f"User {found.username!r} has not the role {role_name(role)}, which this asks for.")
        return found

    user.__name__ = f"requires_{role}"
    return Depends(user)


def caller_of(request: Request) -> User:
    """Return the user of a request by its Authorization header or its browser's session; see `Access.user_of`."""
    access: Access = request.app.state.access
    session = request.cookies.get(session_cookie(secure=request.url.scheme == "https"))
    return access.user_of(request.headers.get("authorization"), session)


# Who may call a route, as the type of a parameter.
AsUser = Annotated[User, requires("user")]
AsAnnotator = Annotated[User, requires("annotator")]
AsAdmin = Annotated[User, requires("admin")]
AsReviewer = Annotated[User, requires("reviewer")]


def load_tokens(file: Path | None) -> dict[bytes, User]:
    """Read the tokens of a file, and the one of the environment variable MEDCLIPSAM_TOKEN.

    The variable is taken out of the environment, which sub-processes inherit. The file has one token a line: "TOKEN"
    alone, or "USER ROLE TOKEN" with the role admin, reviewer, annotator or user, each of which includes those after it.
    Lines that begin with # are left out.

    Returns
    -------
    dict of bytes to User
        SHA-256 of each token to its user.

    Raises
    ------
    InputError
        If the file cannot be read, others can read it, or a line or token is not usable.
    """
    tokens: dict[bytes, User] = {}
    lines = [(TOKEN_VARIABLE, os.environ.pop(TOKEN_VARIABLE, ""))]
    if file is not None:
        try:
            mode = file.stat().st_mode
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"Token file {file} cannot be read: {getattr(error, 'strerror', 'no UTF-8 text')}."
            ) from None
        if stat.S_IMODE(mode) & 0o077:
            raise InputError(f"Token file {file} can be read by others than its owner; say: chmod 600 {file}.")
        lines += [(f"{file}, line {number}", line) for number, line in enumerate(text.splitlines(), start=1)]
    for where, line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (1, 3):
            raise InputError(f"{where} cannot be used; allowed: TOKEN, or USER ROLE TOKEN.")
        name, role = ("token", "admin") if len(words) == 1 else (words[0], words[1])
        if role not in ROLES:
            raise InputError(f"{where} names the role {role!r}; allowed: {', '.join(ROLES)}.")
        if len(words[-1]) < _SHORTEST_TOKEN:
            raise InputError(f"{where} has a token of fewer than {_SHORTEST_TOKEN} characters; such can be guessed.")
        roles = ROLES[ROLES.index(role) :]
        tokens[hashlib.sha256(words[-1].encode()).digest()] = User(name, tuple(map(role_name, roles)))
    if file is not None and not tokens:
        raise InputError(f"Token file {file} holds no token.")
    return tokens


def check_exposure(host: str, *, authenticates: bool, encrypts: bool, insecure: bool) -> None:
    """Refuse to listen to other machines where anyone there could ask anything, or read what is asked.

    Parameters
    ----------
    host : str
        Address to listen at.
    authenticates : bool
        Whether users must say who they are.
    encrypts : bool
        Whether the server speaks TLS, or a proxy in front of it does.
    insecure : bool
        Whether the user wants it all the same.

    Raises
    ------
    OptionError
        If the host is no loopback address and one of the two is missing.
    """
    if insecure or is_loopback(host):
        return
    missing = []
    if not authenticates:
        missing.append(f"authentication (--token-file, {TOKEN_VARIABLE}, or MONAI_LABEL_AUTH_ENABLE)")
    if not encrypts:
        missing.append("TLS (--ssl-certfile and --ssl-keyfile, or --behind-proxy)")
    if missing:
        raise OptionError("host", host, f"127.0.0.1, or other addresses with {' and '.join(missing)}, or --insecure")


def is_loopback(host: str) -> bool:
    """Return whether an address to listen at is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def session_cookie(*, secure: bool) -> str:
    """Return the name of the cookie of a browser's session; over TLS one that no other host can set."""
    return "__Host-medclipsam_session" if secure else "medclipsam_session"


def _token_of(authorization: str) -> str:
    """Return the token of a Bearer header, or the password of a Basic one, which browsers ask their users for."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""
