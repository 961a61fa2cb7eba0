"""Where the users' OpenID Connect tokens come from: the settings `oidc_...`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from medclipsam.base.errors import InputError
from medclipsam.base.options import Options, option


class OidcOptions(Options):
    """How users log in with an OpenID provider."""

    prefix: ClassVar[str] = "oidc_"

    # Exactly as the provider's tokens name it in `iss`.
    issuer: str = option(..., "Issuer of the users' tokens", allowed="the URL of an OpenID provider", shown="none")
    client_id: str = option("monailabel-app", "Client id of this server at the provider")
    client_secret_file: str | None = option(
        None, "File with the client's secret; without it the client is public", shown="none"
    )
    audience: str = option("monailabel-app", "Audience that an access token must name", shown="the client id")
    scopes: str = option(
        "openid profile",
        "Scopes that browsers ask for",
        allowed="scopes separated by spaces, openid among them",
    )
    username_claim: str = option("preferred_username", "Claim with the user's name")
    roles_claim: str = option("realm_access#roles", "Claim with the list of roles; # separates levels")
    session_minutes: int = option(480, "Longest time that a browser stays logged in", 1, 7 * 24 * 60, unit="minutes")

    @model_validator(mode="before")
    @classmethod
    def _names_audience(cls, given: Any) -> Any:
        if isinstance(given, dict) and "client_id" in given:
            return {"audience": given["client_id"], **given}
        return given

    @field_validator("issuer")
    @classmethod
    def _is_issuer(cls, issuer: str) -> str:
        url = urlsplit(issuer)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError(cls.options()["issuer"].allowed)
        if url.scheme == "http" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError("an https URL; http on this machine only")
        return issuer

    @field_validator("client_secret_file")
    @classmethod
    def _is_file(cls, file: str | None) -> str | None:
        if file is not None and not Path(file).expanduser().is_file():
            raise ValueError("a file that can be read")
        return file

    @field_validator("scopes")
    @classmethod
    def _has_openid(cls, scopes: str) -> str:
        if "openid" not in scopes.split():
            raise ValueError(cls.options()["scopes"].allowed)
        return scopes

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> Self | None:
        """Read settings without their prefix; None where no value is given.

        Raises
        ------
        InputError
            If a value is not allowed, or others are given without the issuer.
        """
        chosen = {key: text for key, text in given.items() if text.strip()}
        if not chosen:
            return None
        if "issuer" not in chosen:
            raise InputError(f"The setting oidc_{next(iter(chosen))} has no effect without oidc_issuer; give both.")
        return cls.from_mapping(chosen)
