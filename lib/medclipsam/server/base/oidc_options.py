"""Where the users' OpenID Connect tokens come from, typed once from strings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medclipsam.base.errors import InputError, OptionError

_LONGEST_SESSION = 7 * 24 * 60


@dataclass(frozen=True)
class OidcOptions:
    """How users log in with an OpenID provider.

    Parameters
    ----------
    issuer : str
        The provider's issuer, exactly as its tokens name it in `iss`.
    client_id : str
        This server's name at the provider.
    audience : str
        What `aud` of an access token must hold.
    client_secret_file : str or None
        File with the client's secret; None for a public client, which PKCE alone protects.
    scopes : str
        Scopes that browsers ask for, separated by spaces; `openid` among them.
    username_claim : str
        Claim that names the user.
    roles_claim : str
        Claim that holds the list of roles; "#" separates levels: "realm_access#roles".
    session_minutes : int
        Longest time that a browser stays logged in.
    timeout : float
        Seconds that the provider has for each answer.
    """

    issuer: str
    client_id: str = "monailabel-app"
    audience: str = "monailabel-app"
    client_secret_file: str | None = None
    scopes: str = "openid profile"
    username_claim: str = "preferred_username"
    roles_claim: str = "realm_access#roles"
    session_minutes: int = 480
    timeout: float = 10.0

    @classmethod
    def from_strings(cls, given: Mapping[str, str]) -> OidcOptions | None:
        """Read settings, whose names have the prefix `oidc_` taken away; None where no issuer is given.

        Raises
        ------
        InputError
            If a value is not allowed, or others are given without the issuer.
        """
        chosen: dict[str, Any] = {key: text.strip() for key, text in given.items() if text.strip()}
        if not chosen:
            return None
        if "issuer" not in chosen:
            raise InputError(f"The setting oidc_{next(iter(chosen))} has no effect without oidc_issuer; give both.")
        url = urlsplit(chosen["issuer"])
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise OptionError("oidc_issuer", chosen["issuer"], "the URL of an OpenID provider")
        if url.scheme == "http" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise OptionError("oidc_issuer", chosen["issuer"], "an https URL; http on this machine only")
        if "session_minutes" in chosen:
            text = chosen["session_minutes"]
            if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= _LONGEST_SESSION:
                raise OptionError("oidc_session_minutes", text, f"a whole number from 1 to {_LONGEST_SESSION}")
            chosen["session_minutes"] = int(text)
        if "openid" not in chosen.get("scopes", "openid").split():
            raise OptionError("oidc_scopes", chosen["scopes"], "scopes separated by spaces, openid among them")
        file = chosen.get("client_secret_file")
        if file is not None and not Path(file).expanduser().is_file():
            raise OptionError("oidc_client_secret_file", file, "a file that can be read")
        chosen.setdefault("audience", chosen.get("client_id", cls.client_id))
        return cls(**chosen)
