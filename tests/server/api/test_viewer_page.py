"""The viewer's page and files over HTTP."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from medclipsam.server.api.asgi import create_app
from medclipsam.server.base import ohif

PAGE = (
    '<!doctype html><script>window.PUBLIC_URL="/"</script><link href="/app.bundle.css" rel="stylesheet">'
    '<script rel="preload" as="script" type="module" src="/init-service-worker.js"></script>'
    '<script defer src="/app.bundle.1.js"></script>'
)


@pytest.fixture
def client(make_app: Callable[..., Any]) -> Iterator[TestClient]:
    app = create_app(make_app())
    yield TestClient(app, base_url="http://127.0.0.1:8000")
    app.state.queue.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ohif.VARIABLE, str(tmp_path / "viewer"))
    made = tmp_path / "viewer" / f"ohif-{ohif.VERSION}"
    made.mkdir(parents=True)
    (made / "index.html").write_text(PAGE)
    (made / "app.bundle.1.js").write_text("1;")
    (made / "decoder.wasm").write_bytes(b"\0asm")
    return made


def test_without_the_viewer_the_page_gives_the_command(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ohif.VARIABLE, str(tmp_path / "none"))
    answer = client.get("/viewer/")
    assert answer.status_code == 503
    assert "medclipsam viewer install" in answer.text
    assert 'href="/ohif/"' in answer.text
    assert client.get("/ohif/").status_code == 200


@pytest.mark.parametrize("path", ["", "annotate?StudyInstanceUIDs=1.2", "index.html", "study/1/2"])
def test_each_page_of_the_viewer_is_its_one_page(client: TestClient, folder: Path, path: str) -> None:
    answer = client.get(f"/viewer/{path}")
    assert answer.headers["content-type"].startswith("text/html")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert sorted(addresses) == ["/viewer/app.bundle.1.js", "/viewer/app.bundle.css"]
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text)
    assert script == 'window.PUBLIC_URL="/viewer/"'
    policy = answer.headers["content-security-policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    scripts = next(part for part in policy.split(";") if part.strip().startswith("script-src"))
    # OHIF's own modes read segmentations with functions that they compile
    assert ("'unsafe-eval'" in scripts) is not path.startswith("annotate")
    assert "'unsafe-inline'" not in scripts


def test_files_have_their_types(client: TestClient, folder: Path) -> None:
    script, wasm = client.get("/viewer/app.bundle.1.js"), client.get("/viewer/decoder.wasm")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "immutable" in script.headers["cache-control"]
    assert wasm.headers["content-type"] == "application/wasm"
    for name in ("app-config.js", "medclipsam/extension.js", "medclipsam/mode.js"):
        answer = client.get(f"/viewer/{name}")
        assert answer.headers["content-type"].startswith("text/javascript")
        assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path",
    ["absent.js", "medclipsam/absent.js", "%2e%2e/%2e%2e/secret.txt", "medclipsam/..%2fapp-config.js", "a%00b.js"],
)
def test_what_is_no_file_of_the_viewer_is_not_found(client: TestClient, folder: Path, path: str) -> None:
    (folder.parent.parent / "secret.txt").write_text("secret")
    assert client.get(f"/viewer/{path}").status_code == 404
