"""Passwords in addresses: used, and shown nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from medclipsam.dicomweb.addresses import hide_passwords, keep_user, user_of, without_user
from medclipsam.server.base.workspace import default_workspace

PLAIN = "https://pacs.example:8443/dicom-web"


@pytest.mark.parametrize(
    ("url", "user"),
    [
        (PLAIN, None),
        (f"{PLAIN}/", None),
        ("https://reader:secret@pacs.example:8443/dicom-web/", ("reader", "secret")),
        ("https://reader@pacs.example:8443/dicom-web", ("reader", "")),
        ("https://a%40b:s%3A%2F@pacs.example:8443/dicom-web", ("a@b", "s:/")),
        ("https://a:b@c@pacs.example:8443/dicom-web", ("a", "b@c")),
    ],
)
def test_users_are_taken_out_of_addresses(url: str, user: tuple[str, str] | None) -> None:
    assert without_user(url) == PLAIN
    assert user_of(url) == user
    environment: dict[str, str] = {}
    assert keep_user(url, environment) == PLAIN
    assert tuple(environment.values()) == (user or ())


def test_a_workspace_hangs_on_the_address_and_not_on_the_password() -> None:
    places = {default_workspace(f"https://{user}pacs.example/dicom-web") for user in ("", "a:b@", "a:c@", "d@")}
    assert len(places) == 1
    assert default_workspace("https://pacs.example/other") not in places


def test_a_command_line_with_a_password_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda program, words, environment: called.append((words, environment)))
    hide_passwords(["python", "-m", "medclipsam", "serve", "--studies", PLAIN, "--conf", "a@b", "x@y"])
    assert called == []
    for given, left in [
        (["--studies", "http://a:b@h/x"], ["--studies", "http://h/x"]),
        (["--studies=http://a:b@h"], ["--studies=http://h"]),
    ]:
        hide_passwords(["python", "-m", "medclipsam", "serve", *given])
        words, environment = called.pop()
        assert words == ["python", "-m", "medclipsam", "serve", *left]
        assert environment["MONAI_LABEL_DICOMWEB_USERNAME"] == "a"
        assert environment["MONAI_LABEL_DICOMWEB_PASSWORD"] == "b"
        assert "b" not in " ".join(words).split("/")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_other_users_of_the_machine_do_not_see_a_password() -> None:
    """The process goes on under its id with a command line that does not have it, and with the password."""
    program = (
        "import os, sys; from medclipsam.dicomweb.addresses import hide_passwords; hide_passwords();"
        "print(os.environ['MONAI_LABEL_DICOMWEB_PASSWORD'], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, "serve", "--studies", "https://reader:s3cret@pacs.example/"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "s3cret"
        assert "s3cret" not in " ".join(psutil.Process(process.pid).cmdline())
        assert "s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
