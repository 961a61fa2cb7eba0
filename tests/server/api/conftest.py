"""The application over HTTP in this process, with a stand-in for the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from medclipsam.server.api.access import Access
from medclipsam.server.api.asgi import create_app
from medclipsam.server.monai_label.app import MedClipSamApp

MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client(make_app: Callable[..., MedClipSamApp], loaded: Any, tmp_path: Path) -> Iterator[MakeClient]:
    asgi: list[FastAPI] = []

    def make(access: Access | None = None, local: bool = False, **conf: str) -> TestClient:
        app = make_app(**{"targets": "lungs x-ray", "audit_file": str(tmp_path / "audit.jsonl"), **conf})
        asgi.append(create_app(app, access, local=local))
        return TestClient(asgi[-1], base_url="http://127.0.0.1:8000")

    yield make
    loaded.gate.open.set()
    for app in asgi:
        app.state.queue.close()


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()
