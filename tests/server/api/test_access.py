"""Who is let in: tokens, roles, and where a server may listen."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from medclipsam.base.errors import InputError, OptionError
from medclipsam.server.api.access import Access, check_exposure, is_loopback, load_tokens
from medclipsam.server.base.errors import UnauthenticatedError

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
