"""Who is let in: tokens, roles, and where a server may listen."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path
from typing import Any

import pytest

from medclipsam.errors import InputError, OptionError
from medclipsam.server import access as module
from medclipsam.server.access import Access, check_exposure, is_loopback, load_tokens
from medclipsam.server.http import UnauthenticatedError

ANN, BEN = "ann-secret-0123456789", "ben-secret-0123456789"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MEDCLIPSAM_TOKEN", raising=False)
    path = tmp_path / "tokens"
    path.write_text(f"# who may\n\nann annotator {ANN}\nben admin {BEN}\n")
    path.chmod(0o600)
    return path


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_a_token_is_its_user_with_the_roles_below_its_own(file: Path) -> None:
    access = Access(load_tokens(file))
    ann = access.user_of(f"Bearer {ANN}")
    assert ann.username == "ann"
    assert [ann.has(role) for role in ("admin", "reviewer", "annotator", "user")] == [False, False, True, True]
    assert access.user_of(f"bearer {BEN}").has("admin")
    assert access.user_of(basic("whoever", ANN)) == ann
    # what is kept cannot be used to log in
    assert not any(ANN.encode() in key for key in access.tokens)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong-secret-0123456", ANN, f"Basic {ANN}", "Basic ä", basic(ANN, "x")]
)
def test_others_are_not_let_in(file: Path, header: str | None) -> None:
    with pytest.raises(UnauthenticatedError) as error:
        Access(load_tokens(file)).user_of(header)
    assert ANN not in str(error.value)


def test_without_authentication_everyone_may_do_everything() -> None:
    user = Access().user_of(None)
    assert user.has("admin")
    assert user.has("user")
    assert not Access().authenticates


def test_the_token_of_the_environment_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDCLIPSAM_TOKEN", ANN)
    access = Access(load_tokens(None))
    assert "MEDCLIPSAM_TOKEN" not in os.environ
    assert access.user_of(f"Bearer {ANN}").has("admin")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("short", "fewer than 16 characters"),
        (f"ann {ANN}", "USER ROLE TOKEN"),
        (f"ann owner {ANN}", "admin, reviewer, annotator, user"),
        ("# nothing\n", "holds no token"),
        ("", "holds no token"),
    ],
)
def test_a_file_that_cannot_be_used(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError, match=sentence) as error:
        load_tokens(file)
    assert ANN not in str(error.value)


def test_a_file_that_others_can_read_is_refused(file: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        load_tokens(file)
    with pytest.raises(InputError, match="No such file"):
        load_tokens(file.with_name("other"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, authenticates=False, encrypts=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "workstation", "", "localhost.example"])
def test_other_hosts_need_authentication_and_encryption(host: str) -> None:
    for authenticates, encrypts, missing in [
        (False, False, "authentication .* and TLS"),
        (True, False, "with TLS"),
        (False, True, "with authentication"),
    ]:
        with pytest.raises(OptionError, match=missing) as error:
            check_exposure(host, authenticates=authenticates, encrypts=encrypts, insecure=False)
        assert "--insecure" in str(error.value)
    check_exposure(host, authenticates=True, encrypts=True, insecure=False)
    check_exposure(host, authenticates=False, encrypts=False, insecure=True)


class Realm:
    """An OpenID Connect realm with a key pair."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.public = self.private.public_key().public_bytes(*form).decode()

    def token(self, key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        import jwt

        payload = {"preferred_username": "ann", "exp": time.time() + 60, "realm_access": {"roles": ["monailabel-user"]}}
        return jwt.encode({**payload, **claims}, key or self.private, algorithm=algorithm)


@pytest.fixture(scope="module")
def realm() -> Realm:
    return Realm()


@pytest.fixture
def oidc(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.setattr(module, "_realm_key", lambda uri: realm.public)
    return Access(oidc=True)


def test_a_token_of_the_realm_is_a_user_with_the_realms_roles(oidc: Access, realm: Realm) -> None:
    user = oidc.user_of(f"Bearer {realm.token()}")
    assert user.username == "ann"
    assert user.has("user")
    assert not user.has("annotator")
    assert not oidc.user_of(f"Bearer {realm.token(realm_access=None)}").has("user")


def test_forged_and_stale_tokens_of_a_realm_are_refused(oidc: Access, realm: Realm) -> None:
    import jwt

    unsigned = jwt.encode({"preferred_username": "eve", "exp": time.time() + 60}, None, algorithm="none")
    head, body, signature = realm.token().split(".")
    tokens = [
        unsigned,
        realm.token(exp=time.time() - 5),
        realm.token(key=Realm().private),
        f"{head}.{body[:-2]}AA.{signature}",
        "no.token.atall",
        jwt.encode({"exp": time.time() + 60}, "k" * 64, algorithm="HS256"),
    ]
    for token in tokens:
        with pytest.raises(UnauthenticatedError):
            oidc.user_of(f"Bearer {token}")


def test_a_token_without_an_end_is_refused(oidc: Access, realm: Realm) -> None:
    import jwt

    endless = jwt.encode({"preferred_username": "ann"}, realm.private, algorithm="RS256")
    with pytest.raises(UnauthenticatedError):
        oidc.user_of(f"Bearer {endless}")
