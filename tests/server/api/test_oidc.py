"""Users of a real OpenID provider: which tokens are taken, and how a browser logs in."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import flask
import jwt
import oidc_provider_mock
import pytest
import requests
from authlib.jose import RSAKey
from fastapi import FastAPI
from fastapi.testclient import TestClient

from medclipsam.base.errors import InputError, MedClipSamError, UpstreamError
from medclipsam.server.api.access import Access, AsUser
from medclipsam.server.api.middleware import refused
from medclipsam.server.api.oidc import OidcProvider, local_path
from medclipsam.server.api.routes import login
from medclipsam.server.base.errors import UnauthenticatedError
from medclipsam.server.base.oidc_options import OidcOptions

ROLES = {"realm_access": {"roles": ["monailabel-user"]}}


class Provider:
    """The provider's server with what its application keeps, and the requests that it was sent."""

    def __init__(self, port: int, application: flask.Flask) -> None:
        self.issuer = f"http://localhost:{port}"
        self.asked: list[tuple[str, dict[str, str]]] = []
        with application.test_request_context():
            application.preprocess_request()
            self.storage = flask.g.oidc_provider_mock_storage
        application.before_request(lambda: self.asked.append((flask.request.path, dict(flask.request.form))))

    def set_user(self, name: str, **claims: Any) -> None:
        requests.put(f"{self.issuer}/users/{name}", json={"preferred_username": name, **claims}, timeout=10)

    def token(self, key: Any = None, algorithm: str = "RS256", headers: Any = None, **claims: Any) -> str:
        """Return an access token as the provider would sign it; a claim that is None is left out."""
        now = int(time.time())
        payload = {"sub": "1", "preferred_username": "ann", "iss": self.issuer, "aud": "medclipsam", "iat": now}
        payload = {**payload, "exp": now + 300, **ROLES, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        return jwt.encode(payload, key or self.storage.jwk.as_pem(is_private=True), algorithm, headers)

    def rotate(self) -> None:
        self.storage.jwk = RSAKey.generate_key(is_private=True)

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with oidc_provider_mock.run_server_in_thread() as server:
        yield Provider(server.server_port, server.app)


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.asked.clear()
    return running


@pytest.fixture
def options(provider: Provider, tmp_path: Path) -> OidcOptions:
    (tmp_path / "secret").write_text("s3cret\n")
    return OidcOptions(issuer=provider.issuer, client_id="medclipsam", client_secret_file=str(tmp_path / "secret"))


@pytest.fixture
def oidc(options: OidcOptions) -> OidcProvider:
    return OidcProvider(options)


def test_a_token_is_a_user_with_the_roles_of_its_claim(oidc: OidcProvider, provider: Provider) -> None:
    user = Access(oidc=oidc).user_of(f"Bearer {provider.token()}")
    assert user.username == "ann"
    assert user.has("user")
    assert not user.has("annotator")
    assert oidc.user_of(provider.token(aud=["other", "medclipsam"])) == user
    assert not oidc.user_of(provider.token(realm_access=None)).has("user")
    assert oidc.user_of(provider.token(preferred_username=None)).username == "1"


FORGED: dict[str, Callable[[Provider], str]] = {
    "other audience": lambda provider: provider.token(aud="account"),
    "no audience": lambda provider: provider.token(aud=None),
    "other issuer": lambda provider: provider.token(iss="http://localhost:1"),
    "issuer with a slash": lambda provider: provider.token(iss=provider.issuer + "/"),
    "no issuer": lambda provider: provider.token(iss=None),
    "expired": lambda provider: provider.token(exp=int(time.time()) - 60),
    "no end": lambda provider: provider.token(exp=None),
    "not yet": lambda provider: provider.token(nbf=int(time.time()) + 600),
    "other key": lambda provider: provider.token(key=RSAKey.generate_key(is_private=True).as_pem(is_private=True)),
    "unknown key": lambda provider: provider.token(headers={"kid": "nonesuch"}),
    "alg none": lambda provider: jwt.encode(
        {"iss": provider.issuer, "aud": "medclipsam", "exp": int(time.time()) + 60, **ROLES}, None, algorithm="none"
    ),
    "symmetric": lambda provider: provider.token(key="k" * 64, algorithm="HS256"),
    "changed": lambda provider: ".".join(
        [provider.token().split(".")[0], provider.token(aud="x").split(".")[1], provider.token().split(".")[2]]
    ),
    "no token": lambda provider: "no.token.atall",
    "empty": lambda provider: "",
}


@pytest.mark.parametrize("kind", FORGED)
def test_other_tokens_are_refused(oidc: OidcProvider, provider: Provider, kind: str) -> None:
    assert oidc.user_of(provider.token()).username == "ann"
    with pytest.raises(UnauthenticatedError):
        oidc.user_of(FORGED[kind](provider))
    assert oidc.user_of(provider.token()).username == "ann"


def test_a_public_key_cannot_sign(oidc: OidcProvider, provider: Provider) -> None:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = provider.token().split(".")[1].encode()
    signed = hashlib.pbkdf2_hmac("sha256", provider.storage.jwk.as_pem(), head + body, 1)
    with pytest.raises(UnauthenticatedError):
        oidc.user_of(b".".join([head, body, base64.urlsafe_b64encode(signed).rstrip(b"=")]).decode())


@pytest.mark.parametrize("named", [False, True])
def test_a_rotated_key_is_taken_at_once_and_the_old_one_no_more(
    oidc: OidcProvider, provider: Provider, named: bool
) -> None:
    def headers() -> dict[str, str] | None:
        return {"kid": provider.storage.jwk.thumbprint()} if named else None

    old = provider.token(headers=headers())
    assert oidc.user_of(old).username == "ann"
    provider.rotate()
    assert oidc.user_of(provider.token(headers=headers())).username == "ann"
    with pytest.raises(UnauthenticatedError):
        oidc.user_of(old)


def test_tokens_with_unknown_keys_do_not_make_the_server_ask_again_and_again(
    oidc: OidcProvider, provider: Provider
) -> None:
    for number in range(5):
        with pytest.raises(UnauthenticatedError):
            oidc.user_of(provider.token(headers={"kid": f"key-{number}"}))
    assert provider.count("/jwks") == 2
    assert oidc.user_of(provider.token()).username == "ann"


def test_a_provider_with_another_name_or_none_at_all_is_no_users_fault(provider: Provider) -> None:
    port = urlsplit(provider.issuer).port
    renamed = OidcProvider(OidcOptions(issuer=f"http://127.0.0.1:{port}", audience="medclipsam"))
    # the provider's name is that of the request, so that a token names another one
    with pytest.raises(UnauthenticatedError):
        renamed.user_of(provider.token())
    with pytest.raises(UpstreamError):
        OidcProvider(OidcOptions(issuer=provider.issuer + "/nowhere")).user_of(provider.token())
    with pytest.raises(UpstreamError):
        OidcProvider(OidcOptions(issuer="http://localhost:9"), timeout=1).user_of(provider.token())


def browser(oidc: OidcProvider, base: str = "http://testserver") -> TestClient:
    app = FastAPI()
    app.state.access = Access(oidc=oidc)
    app.include_router(login.router)
    app.add_exception_handler(MedClipSamError, refused)

    @app.get("/page")
    def page(user: AsUser) -> str:
        return user.username

    return TestClient(app, base_url=base, follow_redirects=False, headers={"Accept": "text/html"})


def agree(url: str, name: str = "ann") -> str:
    """Log in at the provider, and return the address that it sends the browser to."""
    answer = requests.post(url, data={"sub": name}, allow_redirects=False, timeout=10)
    assert answer.status_code == 302
    return answer.headers["Location"]


def query(url: str) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}


@pytest.mark.parametrize("base", ["http://testserver", "https://testserver"])
def test_a_browser_logs_in_by_code_with_pkce_and_out_again(oidc: OidcProvider, provider: Provider, base: str) -> None:
    provider.set_user("ann", **ROLES)
    client = browser(oidc, base)
    sent = client.get("/page?a=1")
    assert sent.status_code == 303
    begun = client.get(sent.headers["Location"])
    assert begun.status_code == 303
    asked = query(begun.headers["Location"])
    assert asked["response_type"] == "code"
    assert asked["redirect_uri"] == f"{base}/auth/callback"
    assert asked["code_challenge_method"] == "S256"
    back = client.get(agree(begun.headers["Location"]))
    assert (back.status_code, back.headers["Location"]) == (303, "/page?a=1")
    (form,) = [form for path, form in provider.asked if path == "/oauth2/token"]
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
    assert len(form["code_verifier"]) >= 43
    cookies = [cookie.lower() for cookie in back.headers.get_list("set-cookie")]
    session = next(cookie for cookie in cookies if "session=" in cookie)
    assert "httponly" in session
    assert "samesite=lax" in session
    assert ("secure" in session) == base.startswith("https")
    page = client.get("/page")
    assert (page.status_code, page.json()) == (200, "ann")
    assert client.post("/auth/logout").status_code == 204
    assert client.get("/page").status_code == 303
    # the cookie alone is worth nothing any more
    name, value = session.split(";")[0].split("=")
    assert client.get("/page", headers={"Cookie": f"{name}={value}"}).status_code == 303


def test_programs_are_answered_401_and_no_page(oidc: OidcProvider, provider: Provider) -> None:
    client = browser(oidc)
    assert client.get("/page", headers={"Accept": "application/json"}).status_code == 401
    assert client.get("/page", headers={"Authorization": f"Bearer {provider.token()}"}).json() == "ann"


def test_a_log_in_is_its_own_browsers_and_ends_once(oidc: OidcProvider, provider: Provider) -> None:
    mine, other = browser(oidc), browser(oidc)
    first = agree(mine.get("/auth/login").headers["Location"])
    assert other.get(first).status_code == 401
    other.get("/auth/login")
    assert other.get(first).status_code == 401
    assert mine.get(first.replace("state=", "state=x")).status_code == 401
    assert mine.get(first + "&iss=http://localhost:1").status_code == 401
    assert mine.get("/auth/callback?error=access_denied").status_code == 401
    assert mine.get(first).status_code == 303
    assert mine.get(first).status_code == 401


def test_the_code_of_another_log_in_is_refused_for_its_nonce(oidc: OidcProvider, provider: Provider) -> None:
    client, victim = browser(oidc), browser(oidc)
    theirs = query(agree(victim.get("/auth/login").headers["Location"], "eve"))
    mine = query(agree(client.get("/auth/login").headers["Location"]))
    answer = client.get("/auth/callback", params={"state": mine["state"], "code": theirs["code"]})
    assert answer.status_code == 401
    assert client.get("/page").status_code == 303


def test_a_session_ends(provider: Provider, options: OidcOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    provider.set_user("ann", **ROLES)
    client = browser(OidcProvider(options.replace(session_minutes=1)))
    client.get(agree(client.get("/auth/login").headers["Location"]))
    assert client.get("/page").status_code == 200
    later = time.monotonic() + 61
    monkeypatch.setattr("medclipsam.server.api.oidc.time.monotonic", lambda: later)
    assert client.get("/page").status_code == 303


@pytest.mark.parametrize("public", [False, True])
def test_a_client_sends_its_secret_if_it_has_one(provider: Provider, options: OidcOptions, public: bool) -> None:
    client = browser(OidcProvider(options.replace(client_secret_file=None) if public else options))
    client.get(agree(client.get("/auth/login").headers["Location"]))
    (form,) = [form for path, form in provider.asked if path == "/oauth2/token"]
    assert form.get("client_secret") == (None if public else "s3cret")
    assert form["client_id"] == "medclipsam"


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("/ohif/viewer?a=b", "/ohif/viewer?a=b"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/a\nb", "/"),
        ("", "/"),
    ],
)
def test_a_log_in_leads_to_this_server_alone(address: str, kept: str) -> None:
    assert local_path(address) == kept


def test_a_password_is_refused_as_the_provider_refuses_it(oidc: OidcProvider) -> None:
    answer = browser(oidc).post("/auth/token", data={"username": "ann", "password": "x"})
    assert answer.status_code == 401


def test_without_a_provider_there_is_no_log_in() -> None:
    app = FastAPI()
    app.state.access = Access()
    app.include_router(login.router)
    app.add_exception_handler(MedClipSamError, refused)
    client = TestClient(app)
    assert client.get("/auth/login").status_code == 404
    assert client.get("/auth/").json() == {"enabled": False}


def test_options_are_typed() -> None:
    assert OidcOptions.from_strings({}) is None
    found = OidcOptions.from_strings({"issuer": "https://id.example", "client_id": "me"})
    assert found == OidcOptions(issuer="https://id.example", client_id="me", audience="me")
    with pytest.raises(InputError):
        OidcOptions.from_strings({"audience": "me"})
