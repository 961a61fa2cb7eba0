"""Drafts over HTTP: kept, read back, after a restart too, and told apart by annotator and window."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from medclipsam.server.api.access import Access, User
from medclipsam.server.api.asgi import create_app
from medclipsam.server.api.routes.common import CLIENT_COOKIE
from medclipsam.server.api.users import role_name

MINE, THEIRS = "a" * 32, "b" * 32
SEGMENT = {
    "name": 'odd "name"; ä',
    "colour": "#10a0ff",
    "source": "text",
    "edited": True,
    "planes": [{"plane": 0, "runs": [0, 3, 5, 2]}],
    "evidence": {
        "presence": 0.97,
        "threshold": 0.5,
        "reason": "found",
        "doubt": "",
        "network": "network version 2",
        "uncertainty": 0.25,
    },
}


@pytest.fixture
def connect(make_app: Callable[..., Any]) -> Iterator[Callable[..., TestClient]]:
    apps = []

    def make(client: str = MINE) -> TestClient:
        app = create_app(make_app())
        apps.append(app)
        return TestClient(app, base_url="http://127.0.0.1:8000", cookies={CLIENT_COOKIE: client})

    yield make
    for app in apps:
        app.state.queue.close()


@pytest.fixture
def image(connect: Callable[..., TestClient]) -> str:
    return str(sorted(connect().get("/datastore/?output=all").json()["objects"])[0])


def draft(*names: str, **more: Any) -> dict[str, Any]:
    return {"segments": [{**SEGMENT, "name": name} for name in names], "base": None, "revision": None, **more}


def test_the_description_of_the_api_refers_to_nothing_that_it_lacks(connect: Callable[..., TestClient]) -> None:
    told = connect().get("/openapi.json").json()

    def references(part: Any) -> Iterator[str]:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part if isinstance(part, list) else []):
            if key == "$ref":
                yield value
            yield from references(value)

    for reference in set(references(told)):
        part = told
        for name in reference.removeprefix("#/").split("/"):
            assert name in part, reference
            part = part[name]


def test_a_draft_comes_back_after_a_restart_and_goes(connect: Callable[..., TestClient], image: str) -> None:
    address = f"/viewer/api/drafts/{image}"
    client = connect()
    assert client.get(address).status_code == 204
    sent = {"segments": [SEGMENT], "base": "v1", "revision": None}
    kept = client.put(address, json=sent).json()
    assert kept["segments"] == sent["segments"]
    again = connect()
    assert again.get(address).json() == {**kept, "own": True}
    changed = again.put(address, json={**kept, "segments": []}).json()
    assert changed["revision"] > kept["revision"]
    assert again.delete(address).status_code == 204
    assert again.get(address).status_code == 204
    assert again.delete(address).status_code == 204


def test_annotators_have_drafts_of_their_own(connect: Callable[..., TestClient], image: str) -> None:
    address = f"/viewer/api/drafts/{image}"
    mine, theirs = connect(), connect(THEIRS)
    mine.put(address, json=draft("mine"))
    # without log-in the work is found again on another computer
    found = theirs.get(address).json()
    assert (found["own"], found["segments"][0]["name"]) == (False, "mine")
    theirs.put(address, json=draft("theirs"))
    assert theirs.get(address).json()["own"] is True
    assert [segment["name"] for segment in mine.get(address).json()["segments"]] == ["mine"]


def test_where_users_log_in_nobody_sees_drafts_of_others(make_app: Callable[..., Any], image: str) -> None:
    users = {name: f"token-of-{name}-0123456789" for name in ("ann", "ben")}
    tokens = {
        hashlib.sha256(token.encode()).digest(): User(name, (role_name("user"),)) for name, token in users.items()
    }
    app = create_app(make_app(), Access(tokens))
    address = f"/viewer/api/drafts/{image}"
    with contextlib.closing(app.state.queue):
        ann, ben = (
            TestClient(app, base_url="http://127.0.0.1:8000", headers={"Authorization": f"Bearer {token}"})
            for token in users.values()
        )
        ann.put(address, json=draft("mine")).raise_for_status()
        assert ann.get(address).json()["by"] == "ann"
        assert ben.get(address).status_code == 204
        # on another computer of the same user
        ann.cookies.set(CLIENT_COOKIE, THEIRS)
        assert ann.get(address).json()["own"] is True


def test_of_two_windows_none_overwrites_the_other_unseen(connect: Callable[..., TestClient], image: str) -> None:
    address = f"/viewer/api/drafts/{image}"
    client = connect()
    first = client.put(address, json=draft("one")).json()

    def change(name: str) -> tuple[int, dict[str, Any]]:
        answer = client.put(address, json=draft(name, revision=first["revision"]))
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(change, "abcd"))
    assert sorted(status for status, _ in answers) == [200, 409, 409, 409]
    kept = client.get(address).json()
    assert all({**told["draft"], "own": True} == kept for status, told in answers if status == 409)
    stale = client.put(address, json=draft("later"))
    assert stale.status_code == 409
    settled = client.put(address, json=draft("later", revision=kept["revision"]))
    assert settled.status_code == 200


@pytest.mark.parametrize(
    "segment",
    [
        {"planes": [{"plane": 0, "runs": [0, 3, 3, 2]}]},
        {"planes": [{"plane": 0, "runs": [5, 2, 0, 1]}]},
        {"planes": [{"plane": 0, "runs": [5]}]},
        {"planes": [{"plane": 0, "runs": [5, 0]}]},
        {"planes": [{"plane": -1, "runs": []}]},
        {"planes": [{"plane": 0, "runs": [0.5, 2]}]},
        {"name": ""},
        {"colour": "red"},
        {"other": 1},
    ],
)
def test_what_is_no_draft_is_refused(connect: Callable[..., TestClient], image: str, segment: dict[str, Any]) -> None:
    client = connect()
    answer = client.put(f"/viewer/api/drafts/{image}", json={"segments": [{**SEGMENT, **segment}]})
    assert answer.status_code == 400
    assert "segments.0" in answer.json()["detail"]
    assert client.get(f"/viewer/api/drafts/{image}").status_code == 204


def test_bodies_and_images_that_are_none_are_refused(connect: Callable[..., TestClient], image: str) -> None:
    client = connect()
    assert client.put(f"/viewer/api/drafts/{image}", content=b"{").status_code == 400
    assert client.put("/viewer/api/drafts/no-such-image", json=draft("x")).status_code == 404
    assert client.get("/viewer/api/drafts/no-such-image").status_code == 404


def test_a_draft_of_a_large_volume_is_taken_and_a_larger_body_refused(
    connect: Callable[..., TestClient], image: str
) -> None:
    client, address = connect(), f"/viewer/api/drafts/{image}"
    runs = [value for start in range(0, 512 * 512, 512) for value in (start + 100, 300)]
    planes = [{"plane": plane, "runs": runs} for plane in range(200)]
    body = json.dumps({"segments": [{"name": str(each), "planes": planes} for each in range(4)]}).encode()
    assert len(body) > 4 * 2**20
    assert client.put(address, content=body).status_code == 200
    assert client.get(address).json()["segments"][3]["planes"][199]["runs"] == runs
    assert client.put(address, content=b" " * (64 * 2**20 + 1)).status_code == 413


def test_a_damaged_file_is_told_and_not_overwritten(connect: Callable[..., TestClient], image: str) -> None:
    client, address = connect(), f"/viewer/api/drafts/{image}"
    client.put(address, json=draft("x"))
    folder: Path = client.app.state.drafts._folder  # type: ignore[attr-defined]
    (file,) = folder.iterdir()
    file.write_text("{")
    assert client.get(address).status_code == 503
    assert client.put(address, json=draft("y")).status_code == 503
    assert file.read_text() == "{"
    assert client.delete(address).status_code == 204
    assert client.put(address, json=draft("y")).status_code == 200
