"""Users of an OpenID Connect provider: their tokens, and the log-in of browsers by authorization code with PKCE."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import requests

from medclipsam.base.errors import InputError, UpstreamError
from medclipsam.server.api.users import User
from medclipsam.server.base.errors import UnauthenticatedError
from medclipsam.server.base.oidc_options import OidcOptions

# Only signatures that a public key checks: with others the key itself could sign.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
# Seconds that keys are kept, that clocks may differ by, that a log-in may take, and between two vain looks for a key.
_KEY_SECONDS = 300
_LEEWAY = 10
LOGIN_SECONDS = 600
_VAIN_SECONDS = 10.0
_MOST_SESSIONS = 10_000
_BAD_TOKEN = "The token was not issued by this server's OpenID provider for this server, or has expired."


@dataclass(frozen=True)
class Login:
    """A log-in that has begun.

    Attributes
    ----------
    url : str
        Where the browser goes.
    cookie : str
        What the browser must bring back.
    """

    url: str
    cookie: str


class OidcProvider:
    """The provider that knows the users.

    Parameters
    ----------
    options : OidcOptions
        How users log in.
    timeout : float
        Seconds that the provider has for each answer.

    Notes
    -----
    Nothing is asked of the provider before the first user comes. Safe to use from several threads.
    """

    def __init__(self, options: OidcOptions, *, timeout: float = 10.0) -> None:
        self.options = options
        self._timeout = timeout
        self._lock = threading.Lock()
        self._known: dict[str, Any] | None = None
        self._keys: jwt.PyJWKClient | None = None
        self._vain = -_VAIN_SECONDS
        # signs what browsers keep during a log-in; of this process alone
        self._secret = secrets.token_bytes(32)
        self._sessions: dict[bytes, tuple[float, User]] = {}

    def user_of(self, token: str) -> User:
        """Return the user of an access token.

        Raises
        ------
        UnauthenticatedError
            If signature, issuer, audience or time are not right.
        UpstreamError
            If the provider does not answer.
        """
        return self._user(self._claims(token, self.options.audience))

    def begin(self, redirect_uri: str, then: str) -> Login:
        """Begin the log-in of a browser.

        Parameters
        ----------
        redirect_uri : str
            URL of this server that the provider sends the browser back to.
        then : str
            Path of this server that the browser wanted; any other address becomes "/".

        Raises
        ------
        UpstreamError
            If the provider does not answer.
        """
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self.options.client_id,
            "redirect_uri": redirect_uri,
            "scope": self.options.scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = self._endpoint("authorization_endpoint")
        kept = {
            "state": state,
            "nonce": nonce,
            "verifier": verifier,
            "redirect_uri": redirect_uri,
            "then": local_path(then),
            "exp": int(time.time()) + LOGIN_SECONDS,
        }
        url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"
        return Login(url, jwt.encode(kept, self._secret, algorithm="HS256"))

    def complete(self, cookie: str, state: str, code: str, issuer: str | None = None) -> tuple[str, str]:
        """End the log-in of a browser.

        Parameters
        ----------
        cookie : str
            Of `begin`.
        state, code : str
            What the provider has sent the browser back with.
        issuer : str, optional
            Its `iss`, where it sends one.

        Returns
        -------
        session, then : str
            The name of the session, and the path that the browser wanted.

        Raises
        ------
        UnauthenticatedError
            If the log-in is not one of this browser's, is too old, or the provider refuses it.
        UpstreamError
            If the provider does not answer as it should.
        """
        try:
            kept = jwt.decode(cookie, self._secret, algorithms=["HS256"], options={"require": ["exp"]})
        except jwt.PyJWTError:
            raise UnauthenticatedError("This log-in has ended or was begun in another browser; log in again.") from None
        if not secrets.compare_digest(state.encode(), kept["state"].encode()):
            raise UnauthenticatedError("This log-in was begun in another browser; log in again.")
        if issuer is not None and issuer != self.options.issuer:
            raise UnauthenticatedError("The answer to this log-in comes from another OpenID provider.")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": kept["redirect_uri"],
            "code_verifier": kept["verifier"],
        }
        given = self._tokens(form)
        identity = self._claims(str(given.get("id_token", "")), self.options.client_id)
        if not secrets.compare_digest(str(identity.get("nonce", "")).encode(), kept["nonce"].encode()):
            raise UnauthenticatedError("The identity token belongs to another log-in.")
        return self._open_session(self._user({**identity, **self._roles_of_access(given, identity)})), kept["then"]

    def user_of_session(self, session: str | None) -> User | None:
        """Return the user of a browser's session; None where it has ended."""
        if not session:
            return None
        with self._lock:
            expires, user = self._sessions.get(_digest(session), (0.0, None))
        return user if time.monotonic() < expires else None

    def end_session(self, session: str | None) -> None:
        """Log a browser out."""
        with self._lock:
            self._sessions.pop(_digest(session or ""), None)

    def password_token(self, username: str, password: str) -> str:
        """Return the access token for a name and a password, for clients that are no browsers.

        Raises
        ------
        UnauthenticatedError
            If the provider refuses them.
        UpstreamError
            If the provider does not answer as it should.
        """
        given = self._tokens({"grant_type": "password", "username": username, "password": password})
        if not isinstance(given.get("access_token"), str):
            raise UpstreamError("The OpenID provider does not answer as it should (no access token).")
        return str(given["access_token"])

    def _claims(self, token: str, audience: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in _ALGORITHMS:
                raise UnauthenticatedError(_BAD_TOKEN)
            name = header.get("kid")
            try:
                return self._verified(token, self._key(name), audience)
            except jwt.InvalidSignatureError:  # keys without names change too
                return self._verified(token, self._key(name, renew=True), audience)
        except jwt.PyJWKClientConnectionError as error:
            raise UpstreamError(f"The OpenID provider's keys cannot be read: {type(error).__name__}.") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise UnauthenticatedError(_BAD_TOKEN) from None

    def _verified(self, token: str, key: Any, audience: str) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=list(_ALGORITHMS),
            audience=audience,
            issuer=self.options.issuer,
            leeway=_LEEWAY,
            options={"require": ["exp", "iss", "aud"]},
        )

    def _key(self, name: str | None, *, renew: bool = False) -> Any:
        """Return a public key; an unknown name makes the keys be read again, since providers change them."""
        with self._lock:
            if self._keys is None:
                uri = self._discovered()["jwks_uri"]
                self._keys = jwt.PyJWKClient(uri, lifespan=_KEY_SECONDS, timeout=self._timeout)
            found = None if renew else _named(self._keys.get_signing_keys(), name)
            # anyone can send tokens that no key has signed
            if found is None and time.monotonic() - self._vain >= _VAIN_SECONDS:
                found = _named(self._keys.get_signing_keys(refresh=True), name)
                if found is None or renew:
                    self._vain = time.monotonic()
        if found is None:
            raise UnauthenticatedError(_BAD_TOKEN)
        return found.key

    def _endpoint(self, name: str) -> str:
        with self._lock:
            return str(self._discovered()[name])

    def _discovered(self) -> dict[str, Any]:
        """Return the provider's description of itself; the caller holds the lock."""
        if self._known is None:
            url = f"{self.options.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                answer = requests.get(url, timeout=self._timeout)
                answer.raise_for_status()
                found = answer.json()
                missing = [
                    key for key in ("authorization_endpoint", "token_endpoint", "jwks_uri") if not found.get(key)
                ]
                issuer = found.get("issuer")
            except (requests.RequestException, ValueError, AttributeError) as error:
                raise UpstreamError(f"The OpenID provider does not answer: {type(error).__name__}.") from None
            if missing:
                raise UpstreamError(f"The OpenID provider does not name its {', '.join(missing)}.")
            if issuer != self.options.issuer:
                raise UpstreamError(
                    f"The OpenID provider calls itself {issuer!r} and not {self.options.issuer!r}; set oidc_issuer so."
                )
            self._known = found
        return self._known

    def _tokens(self, form: Mapping[str, str]) -> dict[str, Any]:
        sent = {**form, "client_id": self.options.client_id}
        if self.options.client_secret_file:
            try:
                secret = Path(self.options.client_secret_file).expanduser().read_text(encoding="utf-8").strip()
            except OSError as error:
                raise InputError(f"The setting oidc_client_secret_file: {error.strerror}.") from None
            sent["client_secret"] = secret
        try:
            answer = requests.post(self._endpoint("token_endpoint"), data=sent, timeout=self._timeout)
            if answer.status_code in (400, 401, 403):
                raise UnauthenticatedError("The OpenID provider refuses this log-in.")
            answer.raise_for_status()
            given = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise UpstreamError(f"The OpenID provider does not answer as it should ({type(error).__name__}).") from None
        if not isinstance(given, dict):
            raise UpstreamError("The OpenID provider does not answer as it should (no object).")
        return given

    def _roles_of_access(self, given: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return the claim with the roles where the access token alone has it, as Keycloak's does."""
        claim = self.options.roles_claim.split("#")[0]
        if claim in identity:
            return {}
        try:
            access = self._claims(str(given.get("access_token", "")), self.options.audience)
        except UnauthenticatedError:  # it may be of any form
            return {}
        return {claim: access[claim]} if claim in access and access.get("sub") == identity.get("sub") else {}

    def _user(self, claims: Mapping[str, Any]) -> User:
        roles: Any = claims
        for part in self.options.roles_claim.split("#"):
            roles = roles.get(part) if isinstance(roles, Mapping) else None
        name = claims.get(self.options.username_claim) or claims.get("sub")
        return User(str(name or "unnamed"), tuple(map(str, roles)) if isinstance(roles, list) else ())

    def _open_session(self, user: User) -> str:
        session, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._sessions = {key: kept for key, kept in self._sessions.items() if kept[0] > now}
            while len(self._sessions) >= _MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[_digest(session)] = (now + 60.0 * self.options.session_minutes, user)
        return session


def local_path(address: str) -> str:
    r"""Return an address if it is a path of this server, else "/": browsers take "//host" and "/\host" for others."""
    plain = address.startswith("/") and address.isprintable() and "\\" not in address
    return address if plain and not address.startswith("//") else "/"


def _named(keys: list[jwt.PyJWK], name: str | None) -> jwt.PyJWK | None:
    if name is None:
        return keys[0] if len(keys) == 1 else None
    return next((key for key in keys if key.key_id == name), None)


def _digest(session: str) -> bytes:
    return hashlib.sha256(session.encode()).digest()
