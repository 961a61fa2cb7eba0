"""The application over HTTP in this process, with a stand-in for the pipeline."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import jsonschema
import numpy as np
import pytest
import SimpleITK
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from monailabel.interfaces.utils.app import apps
from PIL import Image
from requests_toolbelt import MultipartDecoder

from medclipsam.base.errors import InputError
from medclipsam.base.locks import take_lock
from medclipsam.base.options import ZeroShotOptions
from medclipsam.evaluation.data import find_cases
from medclipsam.server.api.access import Access, load_tokens
from medclipsam.server.learning.trainer import candidates
from medclipsam.training.collect import read_studies

MakeClient = Callable[..., TestClient]
TEXT = {"text": "heart"}
# What anyone may ask: pages without data, whether the server lives, and how to log in.
PUBLIC = {
    "/docs",
    "/redoc",
    "/pages/{}",
    "/openapi.json",
    "/favicon.ico",
    "/healthz",
    "/readyz",
    "/auth/",
    "/auth/token",
    # where a browser gets its session, and gives it back
    "/auth/login",
    "/auth/callback",
    "/auth/logout",
}


def infer(client: TestClient, params: Any = TEXT, model: str = "text_prompt", **query: Any) -> httpx.Response:
    query = {"image": "chest", **query}
    files = query.pop("files", None)
    return client.post(
        f"/infer/{model}",
        params=query,
        data={"params": params if isinstance(params, str) else json.dumps(params)},
        files=files,
    )


def sentence(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert "\n" not in detail
    assert "Traceback" not in detail
    return detail


def mask_of(answer: httpx.Response, tmp_path: Path) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    file = tmp_path / f"mask{time.monotonic_ns()}.nii.gz"
    file.write_bytes(answer.content)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file))


# --- which routes there are, and who may call them ---


def paths(app: Any) -> set[tuple[str, str]]:
    """Return method and path of each route, parameters' names left out."""
    found = set()
    for context in iter_route_contexts(app.routes):
        route = context.original_route if hasattr(context, "original_route") else context
        for method in getattr(route, "methods", None) or ():
            found.add((method, re.sub(r"\{\w+(:path)?\}", r"{\1}", getattr(context, "path", route.path))))
    return found


def test_every_route_of_monai_label_is_decided_here(client: TestClient) -> None:
    from monailabel.app import app as stock

    own = paths(client.app)
    merged = {("GET", "/proxy/dicom/{:path}"), ("POST", "/proxy/dicom/{:path}")}
    for service in ("wado", "qido", "stow"):
        merged |= {(method, f"/proxy/dicom/{service}/{{:path}}") for method in ("GET", "POST")}
    assert {("GET", "/proxy/dicom/{}/{:path}"), ("POST", "/proxy/dicom/{}/{:path}")} <= own
    left = {pair for pair in paths(stock) - own - merged if pair[0] != "HEAD"}
    assert left == set()


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.delenv("MEDCLIPSAM_TOKEN", raising=False)
    file = tmp_path / "tokens"
    file.write_text("".join(f"{role}-name {role} {role}-0123456789abcdef\n" for role in ("admin", "annotator", "user")))
    file.chmod(0o600)
    return Access(load_tokens(file))


def test_a_mask_is_never_saved_as_final_nor_for_who_may_not_save(make_client: MakeClient, tokens: Access) -> None:
    client = make_client(tokens)
    wanted = {**TEXT, "save_label": True, "label_tag": "final"}
    client.headers["Authorization"] = "Bearer annotator-0123456789abcdef"
    assert "label_tag" in sentence(infer(client, wanted), 400)
    client.headers["Authorization"] = "Bearer user-0123456789abcdef"
    sentence(infer(client, {**wanted, "label_tag": "original"}), 403)
    assert client.get("/datastore/").json()["label_tags"] == {}
    client.headers["Authorization"] = "Bearer admin-0123456789abcdef"
    batch = client.post("/batch/infer/text_prompt?run_sync=true", json={**TEXT, "label_tag": "final"})
    assert "label_tag" in sentence(batch, 400)
    assert client.get("/datastore/").json()["label_tags"] == {}


def test_what_is_kept_with_an_image_changes_nothing_else_in_answers(client: TestClient) -> None:
    for key in ("id", "path", "why", "lease", "file", "user", "PatientID"):
        kept = client.put("/datastore/image/info?image=chest", data={"info": json.dumps({key: "mine", "note": 1})})
        assert repr(key) in sentence(kept, 400)
    # kept by an earlier version
    app = client.app.state.label_app  # type: ignore[attr-defined]
    lies = dict.fromkeys(("id", "path", "why", "weight", "lease", "planes", "validation", "strategy"), "mine")
    for image in app.datastore().list_images():
        app.datastore().update_image_info(image, lies | {"note": 1})
    offered = client.post("/activelearning/random", json={}).json()
    assert offered["note"] == 1
    assert offered["id"] in app.datastore().list_images()
    assert [key for key in lies if offered[key] == "mine"] == []


@pytest.mark.parametrize("kind", ["image", "label"])
def test_what_is_kept_with_an_image_or_label_is_bounded(client: TestClient, label: bytes, kind: str) -> None:
    files = {"label": ("x.nii.gz", label)}
    assert client.put("/datastore/label?image=film", files=files).status_code == 200
    where = f"/datastore/{kind}/info?{kind}=film&tag=final"

    def keep(info: Any) -> int:
        return client.put(where, data={"info": json.dumps(info)}).status_code

    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert keep({"deep": deep}) == 400
    most = 65_536 if kind == "image" else 524_288
    assert keep({"a": "x" * most}) == 413
    # not in parts either
    statuses = [keep({str(part): "x" * int(most * 0.45)}) for part in range(4)]
    assert statuses == [200, 200, 413, 413]
    told = client.get(where).json()
    assert {key for key in told if key.isdigit()} == {"0", "1"}
    assert (
        client.put(
            "/datastore/label?image=film", files=files, data={"params": json.dumps({"a": "x" * 530_000})}
        ).status_code
        == 413
    )


def test_a_foreign_lock_on_the_studies_stops_saving_for_a_while(
    make_client: MakeClient, label: bytes, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medclipsam.server.studies.folder_lock.PATIENCE", 0.2)
    client = make_client()
    monkeypatch.setitem(apps, "tested", client.app.state.label_app)  # type: ignore[attr-defined]
    assert client.get("/readyz").status_code == 200
    foreign = take_lock(studies / ".lock")
    assert foreign is not None
    files = {"label": ("x.nii.gz", label)}
    with ThreadPoolExecutor(3) as threads:
        saved = threads.submit(client.put, "/datastore/label?image=film", files=files)
        noted = threads.submit(client.put, "/datastore/image/info?image=film", data={"info": '{"a": 1}'})
        # who only reads does not wait
        assert threads.submit(client.get, "/datastore/?output=all").result(30).status_code == 200
        for answer in (saved.result(30), noted.result(30)):
            sentence(answer, 503)
            assert int(answer.headers["Retry-After"]) >= 1
    assert client.get("/readyz").status_code == 503
    foreign.release()
    assert client.get("/readyz").status_code == 200
    assert client.put("/datastore/label?image=film", files=files).status_code == 200


def test_one_odd_header_keeps_no_other_image_from_being_offered(client: TestClient, studies: Path) -> None:
    app = client.app.state.label_app  # type: ignore[attr-defined]
    film = (studies / "film.dcm").read_bytes()
    for number, tag in enumerate((b"\x20\x00\x0d\x00UI", b"\x20\x00\x0e\x00UI", b"\x10\x00\x20\x00LO")):
        assert tag in film
        for vr in (b"ZZ", b"SQ", b"\0\0"):
            (studies / f"odd{number}{vr[0]}.dcm").write_bytes(film.replace(tag, tag[:4] + vr))
    app.datastore().refresh()
    offered = [client.post("/activelearning/random", json={"client_id": str(person)}) for person in range(8)]
    assert {answer.status_code for answer in offered} == {200}
    assert {"chest", "stack", "film"} <= {answer.json().get("id") for answer in offered}
    # nor from being searched for
    studies_found = client.get("/dicom-web/studies")
    assert studies_found.status_code == 200
    for study in studies_found.json():
        where = f"/dicom-web/studies/{study['0020000D']['Value'][0]}"
        assert client.get(f"{where}/series").status_code == 200
        # those that cannot be read say so
        assert client.get(f"{where}/metadata").status_code in (200, 400)


def test_no_body_is_parsed_of_callers_who_are_not_known(make_client: MakeClient, tokens: Access) -> None:
    client = make_client(tokens)
    for where in ("/activelearning/random", "/train/network", "/nowhere"):
        answer = client.post(where, content=b"[" * 1000, headers={"Content-Type": "application/json"})
        sentence(answer, 401)
        assert "WWW-Authenticate" in answer.headers


def test_a_password_that_no_text_can_hold_is_a_wrong_one(make_client: MakeClient, tokens: Access) -> None:
    # a lone surrogate, as UTF-7 writes it
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = part % (b"username", b"x") + part % (b"password", b"+2AA-") + b"--b--\r\n"
    kind = "multipart/form-data; boundary=b; charset=utf-7"
    answer = make_client(tokens).post("/auth/token", content=body, headers={"Content-Type": kind})
    sentence(answer, 401)


def as_role(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}-0123456789abcdef"}


def test_every_route_but_the_public_ones_asks_who_is_there(make_client: MakeClient, tokens: Access) -> None:
    client = make_client(tokens)
    asked = 0
    for method, path in sorted(paths(client.app)):
        if method in ("HEAD", "OPTIONS") or path in PUBLIC:
            continue
        where = path.replace("{:path}", "x").replace("{}", "x")
        answer = client.request(method, where)
        # a route that is told too little may say so first
        assert answer.status_code in (400, 401), (method, path, answer.text)
        if answer.status_code == 401:
            asked += 1
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert asked > 20


@pytest.mark.parametrize(
    ("method", "path", "least"),
    [
        ("GET", "/info/", "user"),
        ("GET", "/metrics", "user"),
        ("GET", "/ohif/", "user"),
        ("GET", "/datastore/?output=all", "user"),
        ("GET", "/requests/", "user"),
        ("GET", "/targets/vocabulary?q=l", "user"),
        ("PUT", "/datastore/image/info?image=chest", "annotator"),
        ("GET", "/logs/", "admin"),
        ("DELETE", "/datastore/image?id=nobody", "admin"),
        ("DELETE", "/train/", "admin"),
        ("POST", "/batch/infer/nobody", "admin"),
        ("POST", "/reload", "admin"),
    ],
)
def test_roles(make_client: MakeClient, tokens: Access, method: str, path: str, least: str) -> None:
    client = make_client(tokens)
    roles = ("user", "annotator", "admin")
    for role in roles:
        answer = client.request(method, path, headers=as_role(role))
        if roles.index(role) < roles.index(least):
            assert f"monailabel-{least}" in sentence(answer, 403)
        else:
            assert answer.status_code != 401
            assert "has not the role" not in answer.text


def test_log_in_as_slicer_does(make_client: MakeClient, tokens: Access) -> None:
    client = make_client(tokens)
    assert client.get("/auth/").json()["enabled"] is True
    form = {"username": "ann", "password": "user-0123456789abcdef", "grant_type": "password"}
    token = client.post("/auth/token", data=form).json()
    header = {"Authorization": f"{token['token_type']} {token['access_token']}"}
    assert client.get("/auth/token/valid", headers=header).json()["username"] == "user-name"
    sentence(client.post("/auth/token", data={**form, "password": "wrong-0123456789abcdef"}), 401)
    assert make_client().get("/auth/").json()["enabled"] is False


def test_closed_routes_say_what_to_do_instead(client: TestClient) -> None:
    assert "weights fetch" in sentence(client.put("/model/text_prompt", files={"file": b"x"}), 403)
    assert "workspace" in sentence(client.get("/logs/"), 403)
    assert "restart" in sentence(client.post("/reload"), 403)
    assert "whole-slide" in sentence(client.post("/infer/wsi/x"), 404)
    assert "no file of its own" in sentence(client.get("/model/info/text_prompt"), 404)
    assert "folder" in sentence(client.get("/proxy/dicom/qido/studies"), 404)


# --- bad requests ---


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ('{"text": "left lung', ["no JSON", "--form-string"]),
        ("[1, 2]", ["list", "object"]),
        ('"heart"', ["text", "object"]),
        ("null", ["null", "object"]),
        ("[" * 5000, ["no JSON"]),
        ('{"label_info": ' + '{"a": ' * 50 + "1" + "}" * 51, ["nested deeper"]),
        ('{"text": "\\ud800"}', ["no Unicode"]),
        ({}, ["'text'"]),
        ({"text": "  "}, ["'text'"]),
        ({"text": "x" * 2000}, ["2000 characters", "1000"]),
        ({"text": "explode"}, ["explode"]),
        ({**TEXT, "colour": "red"}, ["'colour'", "'red'"]),
        ({**TEXT, "beta": 10**400}, ["'beta'"]),
        ('{"text": "heart", "label_info": {"idx": 1e999}}', ["inf", "finite"]),
        ('{"text": "heart", "beta": NaN}', ["nan", "finite"]),
        ({**TEXT, "steps": 1001}, ["'steps'", "1 to 1000"]),
        ({**TEXT, "planes": "7"}, ["'planes'", "'7'"]),
        ({**TEXT, "result_dtype": "object"}, ["'result_dtype'", "uint8"]),
        ({**TEXT, "result_compress": {}}, ["'result_compress'", "true or false"]),
        ({**TEXT, "restore_label_idx": "x"}, ["'restore_label_idx'"]),
        ({**TEXT, "label_tag": "../x"}, ["'label_tag'"]),
        ({**TEXT, "label_info": "lung"}, ["'label_info'", "object"]),
        ({**TEXT, "logging": "LOUD"}, ["'logging'", "WARNING"]),
        ({**TEXT, "timeout": "soon"}, ["'timeout'"]),
        ({**TEXT, "gpus": "0;1"}, ["'gpus'"]),
        ({**TEXT, "max_workers": 1.5}, ["'max_workers'", "whole"]),
        ({**TEXT, "client_id": 3}, ["'client_id'"]),
        ({**TEXT, "device": "x" * 2000}, ["'device'"]),
        ({**TEXT, "image": "/etc/passwd"}, ["'image'", "address"]),
        ({**TEXT, "model": "lungs_x_ray"}, ["'model'", "address"]),
        ({**TEXT, "session": {"image": "/etc/passwd"}}, ["'session'"]),
        ({**TEXT, "user": "root"}, ["'user'"]),
        ({**TEXT, "label": "/etc/passwd"}, ["'label'"]),
    ],
)
def test_bad_params_are_one_sentence(client: TestClient, params: Any, names: list[str]) -> None:
    detail = sentence(infer(client, params), 400)
    for name in names:
        assert name in detail


@pytest.mark.parametrize(
    ("query", "status", "name"),
    [
        ({"model": "left_ear"}, 404, "allowed: text_prompt"),
        ({"image": "nobody"}, 404, "'nobody'"),
        ({"image": "../studies/chest"}, 400, "separators"),
        ({"image": "/etc/passwd"}, 400, "separators"),
        ({"image": ""}, 400, "no image"),
        ({"image": "broken"}, 400, "broken"),
        ({"image": "", "session_id": "../../etc"}, 404, "Session"),
        ({"image": "chest", "session_id": "x"}, 400, "one of image, session_id and file"),
        ({"output": "dicom_seg"}, 400, "'output'"),
        ({"request_id": "a/b"}, 400, "request_id"),
    ],
)
def test_bad_addresses_are_one_sentence(client: TestClient, query: dict[str, Any], status: int, name: str) -> None:
    assert name in sentence(infer(client, **query), status)


def test_options_may_come_as_a_json_body(client: TestClient) -> None:
    where = {"image": "chest", "output": "json"}
    answer = client.post("/infer/text_prompt", params=where, json={"text": "left lung, heart"})
    assert list(answer.json()["label_names"]) == ["left lung", "heart"]
    refused = client.post("/infer/text_prompt", params=where, json={"txt": "heart"})
    assert "'text'" in sentence(refused, 400)


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"params": {"image": "chest", "text": "heart"}}, "'text'"),
        ({"params": {"image": "chest"}, "data": {"text": "heart"}}, "'text'"),
        ({"params": {"image": "chest"}, "json": ["heart"]}, "list"),
        ({"params": {"image": "chest"}, "content": "heart", "headers": {"content-type": "text/plain"}}, "text/plain"),
        ({"params": {"image": "chest"}, "data": {"params": '{"text": "no heart"}'}}, "no heart"),
        ({"params": {"image": "chest"}, "data": {"params": '{"text": "heart", "modality": "xray"}'}}, "'xray'"),
    ],
)
def test_what_an_infer_request_does_not_take_is_named(client: TestClient, request_: dict[str, Any], named: str) -> None:
    assert named in sentence(client.post("/infer/text_prompt", **request_), 400)


@pytest.mark.parametrize(("method", "path"), [("POST", "/infer/text_prompt"), ("GET", "/datastore/image")])
def test_an_id_with_an_extension_is_answered_with_the_id(client: TestClient, method: str, path: str) -> None:
    form = {"data": {"params": '{"text": "heart"}'}} if method == "POST" else {}
    known = sentence(client.request(method, path, params={"image": "chest.nii.gz"}, **form), 404)
    assert "'chest'" in known
    assert "'nobody'" not in sentence(client.request(method, path, params={"image": "nobody.png"}, **form), 404)


def test_training_refuses_an_unknown_target_at_once(client: TestClient) -> None:
    assert "'haert'" in sentence(client.post("/train/network", json={"targets": "haert"}), 400)


def test_the_vocabulary_suggests_targets_of_the_modality(client: TestClient) -> None:
    first, *others = client.get("/targets/vocabulary", params={"q": "Lt lu", "modality": "DX"}).json()["targets"]
    assert (first["name"], first["label"], first["text"]) == ("left lung", 11, "left lung")
    assert "DX" in first["modality"]
    assert "left lung field" in first["synonyms"]
    assert all({"CR", "DX"} & set(other["modality"]) for other in others)
    assert len(client.get("/targets/vocabulary", params={"limit": 3}).json()["targets"]) == 3


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1000}, {"q": "x" * 101}, {"modality": "xray"}])
def test_the_vocabulary_is_bounded(client: TestClient, query: dict[str, Any]) -> None:
    sentence(client.get("/targets/vocabulary", params=query), 400)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "name"),
    [
        ("POST", "/activelearning/cleverest", {}, 404, "random"),
        ("POST", "/activelearning/random", {"colour": 1}, 400, "'colour'"),
        ("POST", "/activelearning/random", [1], 400, "dict"),
        ("POST", "/train/unet", {}, 404, "'unet'"),
        ("POST", "/train/", {"unet": {}}, 404, "'unet'"),
        ("POST", "/scoring/dice", {}, 404, "'dice'"),
        ("POST", "/batch/infer/left_ear", TEXT, 404, "'left_ear'"),
        ("POST", "/batch/infer/text_prompt", {}, 400, "'text'"),
        ("POST", "/batch/infer/text_prompt", {**TEXT, "images": ["nobody"]}, 404, "'nobody'"),
        ("POST", "/batch/infer/text_prompt", {**TEXT, "images": ["../x"]}, 400, "'../x'"),
        ("POST", "/batch/infer/text_prompt", {**TEXT, "images": "some"}, 400, "'images'"),
        ("POST", "/batch/infer/text_prompt?images=some", TEXT, 400, "'images'"),
        ("GET", "/batch/infer", None, 404, "batch infer"),
        ("GET", "/train/", None, 404, "train"),
        ("GET", "/requests/nobody", None, 404, "'nobody'"),
        ("GET", "/session/../../etc", None, 404, ""),
        ("GET", "/session/meta", None, 404, "'meta'"),
        ("DELETE", "/session/meta", None, 404, "'meta'"),
        ("GET", "/datastore/image?image=../x", None, 400, "'../x'"),
        ("GET", "/datastore/image?image=nobody", None, 404, "'nobody'"),
        ("GET", "/datastore/image", None, 400, "'image'"),
        ("GET", "/datastore/label?label=chest&tag=../..", None, 400, "label_tag"),
        ("GET", "/datastore/label?label=chest&tag=final", None, 404, "'chest'"),
        ("GET", "/datastore/label/info?label=chest&tag=final", None, 404, "'chest'"),
        ("GET", "/datastore/label?label=chest&tag=final&result_extension=.nrrd", None, 404, "'chest'"),
        ("GET", "/datastore/image/labels?image=nobody", None, 404, "'nobody'"),
        ("GET", "/datastore/image/labels?image=../x", None, 400, "'../x'"),
        ("GET", "/datastore/image/info?image=nobody", None, 404, "'nobody'"),
        ("GET", "/datastore/?output=everything", None, 400, "'output'"),
        ("GET", "/datastore/dataset", None, 404, "final label"),
        ("DELETE", "/datastore/image?id=nobody", None, 404, "'nobody'"),
        ("DELETE", "/datastore/label?id=chest&tag=final", None, 404, "'chest'"),
        ("GET", "/logs/?lines=many", None, 400, "'lines'"),
    ],
)
def test_other_routes_refuse_in_one_sentence(
    client: TestClient, method: str, path: str, body: Any, status: int, name: str
) -> None:
    answer = client.request(method, path, json=body)
    assert name in sentence(answer, status)


def test_an_unforeseen_error_is_a_number(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    detail = sentence(infer(client, {"text": "a bug"}), 500)
    assert "John" not in detail
    assert "/infer/{model}" in caplog.text
    assert infer(client, output="json").status_code == 200


# --- the work ---


@pytest.fixture
def slow(client: TestClient, loaded: Any) -> Callable[..., Any]:
    """Send requests that are held at the gate, in a thread each."""
    pool = ThreadPoolExecutor(20)

    def send(text: str = "slow heart", *, wait: bool = True, **query: Any) -> Any:
        sent = pool.submit(infer, client, {"text": text}, output="image", **query)
        if wait:
            assert loaded.gate.entered.acquire(timeout=10)
        return sent

    return send


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_other_routes_answer_while_a_request_is_worked_on(client: TestClient, slow: Any, loaded: Any) -> None:
    held = slow()
    assert client.get("/info/").status_code == 200
    assert client.post("/activelearning/random", json={}).json()["id"]
    assert not held.done()
    loaded.gate.open.set()
    assert held.result(10).status_code == 200


def test_requests_that_overlap_give_the_masks_of_serial_ones(
    client: TestClient, slow: Any, loaded: Any, tmp_path: Path
) -> None:
    asked = [("chest", "slow left lung"), ("stack", "slow heart"), ("film", "slow lungs"), ("stack", "slow left lung")]
    first = slow(asked[0][1], image=asked[0][0])
    others = [slow(text, image=image, wait=False) for image, text in asked[1:]]
    until(lambda: client.app.state.queue.waiting == 3)  # type: ignore[attr-defined]
    loaded.gate.open.set()
    together = [mask_of(sent.result(10), tmp_path) for sent in (first, *others)]
    for (image, text), mask in zip(asked, together, strict=True):
        assert np.array_equal(mask, mask_of(infer(client, {"text": text}, image=image, output="image"), tmp_path))
        assert mask.any()


def test_a_full_queue_is_503_with_a_time_to_come_back(make_client: MakeClient, loaded: Any) -> None:
    client = make_client(queue_length="1")
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(infer, client, {"text": "slow heart"})]
        assert loaded.gate.entered.acquire(timeout=10)
        held.append(pool.submit(infer, client, TEXT))
        until(lambda: client.app.state.queue.waiting == 1)  # type: ignore[attr-defined]
        answer = infer(client)
        assert "1 more wait" in sentence(answer, 503)
        assert int(answer.headers["Retry-After"]) >= 1
        # what is wrong is told at once, full or not
        sentence(infer(client, {"text": ""}), 400)
        loaded.gate.open.set()
        assert [sent.result(10).status_code for sent in held] == [200, 200]


def test_progress_is_told_and_a_request_is_cancelled(client: TestClient, slow: Any) -> None:
    held = slow(request_id="mine", image="stack")
    until(lambda: client.get("/requests/mine").json()["fraction"] == 0.5)
    told = client.get("/requests/mine").json()
    assert (told["state"], told["model"], told["before"]) == ("running", "text_prompt", 0)
    assert told["message"] == "masks, plane 2 of 3"
    waiting = slow(wait=False, request_id="next")
    until(lambda: len(client.get("/requests/").json()) == 2)
    assert client.get("/requests/next").json()["before"] == 1
    assert "running already" in sentence(infer(client, request_id="mine"), 409)
    for name, sent in (("next", waiting), ("mine", held)):
        assert client.delete(f"/requests/{name}").status_code == 200
        assert "cancelled" in sentence(sent.result(10), 409)
        assert sent.result().headers["X-Request-ID"] == name
        assert client.get(f"/requests/{name}").json()["state"] == "cancelled"
    assert client.get("/requests/").json() == []


def test_a_request_is_its_users_own(make_client: MakeClient, tokens: Access, loaded: Any) -> None:
    client = make_client(tokens)
    with ThreadPoolExecutor(1) as pool:
        where = {"params": {"image": "chest", "request_id": "mine"}, "data": {"params": '{"text": "slow heart"}'}}
        held = pool.submit(client.post, "/infer/text_prompt", headers=as_role("user"), **where)  # type: ignore[arg-type]
        assert loaded.gate.entered.acquire(timeout=10)
        sentence(client.delete("/requests/mine", headers=as_role("annotator")), 404)
        assert client.get("/requests/", headers=as_role("annotator")).json() == []
        assert len(client.get("/requests/", headers=as_role("admin")).json()) == 1
        assert client.delete("/requests/mine", headers=as_role("user")).status_code == 200
        assert held.result(10).status_code == 409


def test_a_client_that_leaves_stops_its_work(client: TestClient, loaded: Any, tmp_path: Path) -> None:
    """Spoken as the web server does: a client's leaving is a message."""
    import asyncio

    body = b"params=%7B%22text%22%3A+%22slow+heart%22%7D"
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/infer/text_prompt",
        "query_string": b"image=chest&request_id=left",
        "headers": [(b"host", b"x"), (b"content-type", b"application/x-www-form-urlencoded")],
    }

    async def speak() -> list[Any]:
        left = asyncio.Event()
        given = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            message = next(given, None)
            if message is None:
                await left.wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        task = asyncio.create_task(client.app(scope, receive, send))  # type: ignore[arg-type]
        assert await asyncio.to_thread(loaded.gate.entered.acquire, timeout=10)
        left.set()
        await asyncio.wait_for(task, 10)
        return sent

    assert asyncio.run(speak())[0]["status"] == 499
    assert client.get("/requests/left").json()["state"] == "cancelled"


def test_a_request_that_would_take_too_long_is_refused_with_the_estimate(make_client: MakeClient) -> None:
    client = make_client(max_seconds="60")
    pace = client.app.state.label_app.pipeline.pace  # type: ignore[attr-defined]
    for rate, seconds in (("presence", 1.0), ("saliency auto", 5.0), ("rest", 4.0)):
        pace._rates[rate].append(seconds)
    # 1 s of presence, the 5 runs of the fast schedule at 5 s, 4 s of SAM
    assert infer(client, image="chest").status_code == 200
    detail = sentence(infer(client, {**TEXT, "volume": "planes"}, image="stack"), 400)
    assert "about 90 s (3 planes at 30 s" in detail
    assert "at most 2 planes" in detail
    assert infer(client, {**TEXT, "volume": "planes", "planes": "0-1"}, image="stack").status_code == 200


def test_running_out_of_memory_frees_it_and_the_server_serves_on(client: TestClient, loaded: Any) -> None:
    assert infer(client).status_code == 200
    answer = infer(client, {"text": "huge"})
    assert "out of memory" in sentence(answer, 503)
    assert int(answer.headers["Retry-After"]) >= 1
    assert loaded[0].forgotten == 1
    assert infer(client).status_code == 200
    assert len(loaded) == 1


# --- what is sent and stored ---


@pytest.fixture
def label(client: TestClient, tmp_path: Path) -> bytes:
    return infer(client, image="film", output="image").content


def nothing_outside(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


def final_of(app: Any, studies: Path) -> set[frozenset[str]]:
    """Return the images with a final label by each of what goes by such labels."""
    store = app.datastore()
    total = store.status()
    assert total["label_tags"].get("final", 0) == total["completed"]
    try:
        cases = {case.name for case in find_cases(studies, app.targets)}
    except InputError:
        cases = set()
    app.rounds.look()
    offered = {row["image"] for row in app.rounds.ledger.images() if row["finished"]}
    found = [
        store.get_labeled_images(),
        set(store.list_images()) - set(store.get_unlabeled_images()),
        {Path(pair["image"]).name.split(".")[0] for pair in store.datalist()},
        {each.image_id for each in candidates(store) if "final" in each.labels},
        {each.image_id for each in read_studies(studies) if "final" in each.labels},
        cases,
        offered,
    ]
    assert len(found[0]) == total["completed"]
    return {frozenset(each) for each in found}


def test_one_notion_of_a_final_label_holds_everywhere(client: TestClient, label: bytes, studies: Path) -> None:
    app = client.app.state.label_app  # type: ignore[attr-defined]
    mask = studies.parent / "mask.nii.gz"
    mask.write_bytes(label)
    # as earlier versions saved what a model had made
    made = {"model": "text_prompt", "params": {"label_names": {"heart": 13}, "targets": []}}
    app.datastore().save_label("film", str(mask), "final", made)
    assert final_of(app, studies) == {frozenset()}
    sentence(client.get("/datastore/dataset"), 404)
    # nobody makes it a person's without saving it
    where = "/datastore/label/info?label=film&tag=final"
    for key in ("model", "saved_by"):
        sentence(client.put(where, data={"info": json.dumps({key: ""})}), 400)
    assert client.put(where, data={"info": json.dumps({"note": 1})}).status_code == 200
    assert final_of(app, studies) == {frozenset()}
    assert (
        client.put(
            "/datastore/label?image=film",
            files={"label": ("x.nii.gz", label)},
            data={"params": json.dumps({"model": "text_prompt", "label_info": [{"name": "heart", "idx": 13}]})},
        ).status_code
        == 200
    )
    assert final_of(app, studies) == {frozenset({"film"})}
    assert [each.image for each in app.rounds.ledger.labels()] == ["film"]
    # one that was put there by hand
    with Image.open(studies / "chest.png") as picture:
        Image.fromarray(np.where(np.asarray(picture) > 128, 13, 0).astype(np.uint8)).save(
            studies / "labels/final/chest.png"
        )
    app.datastore().refresh()
    assert final_of(app, studies) == {frozenset({"film", "chest"})}


def test_a_label_that_was_replaced_is_listed_and_brought_back(
    make_client: MakeClient, tokens: Access, studies: Path
) -> None:
    client = make_client(tokens)
    client.headers.update(as_role("annotator"))

    def save(rows: int, role: str = "annotator") -> bytes:
        pixels, buffer = np.zeros((40, 60), np.uint8), io.BytesIO()
        pixels[:rows] = 13
        Image.fromarray(pixels).save(buffer, "PNG")
        files, info = {"label": ("m.png", buffer.getvalue())}, {"params": json.dumps({"rows": rows})}
        saved = client.put("/datastore/label?image=chest", files=files, data=info, headers=as_role(role))
        assert saved.status_code == 200, saved.text
        return client.get("/datastore/label?label=chest&tag=final", headers=as_role(role)).content

    first = save(10)
    assert client.get("/datastore/label/versions?label=chest").json() == []
    second = save(20, "admin")
    (version,) = client.get("/datastore/label/versions?label=chest", headers=as_role("user")).json()
    assert (version["version"], version["saved_by"]) == (1, "annotator-name")
    assert version["info"]["rows"] == 10
    assert client.get("/datastore/label?label=chest&tag=final&version=1").content == first
    sentence(client.get("/datastore/label?label=chest&tag=final&version=2"), 404)
    again = "/datastore/label/versions?label=chest&version=1"
    sentence(client.put(again, headers=as_role("user")), 403)
    assert client.put(again).status_code == 200
    assert client.get("/datastore/label?label=chest&tag=final").content == first
    told = client.get("/datastore/label/info?label=chest&tag=final").json()
    assert (told["saved_by"], told["rows"]) == ("annotator-name", 10)
    # and nothing was lost by that
    versions = client.get("/datastore/label/versions?label=chest", headers=as_role("admin")).json()
    assert [each["saved_by"] for each in versions] == ["annotator-name", "admin-name"]
    shown = client.get("/datastore/label?label=chest&tag=final&version=2", headers=as_role("admin"))
    assert shown.content == second
    # the readers of one image do not see each other's
    sentence(client.get("/datastore/label?label=chest&tag=final&version=2"), 404)
    # a removed one too
    sentence(client.get("/datastore/label/versions?label=nobody"), 404)
    removed = client.delete("/datastore/label?id=chest&tag=final", headers=as_role("admin"))
    assert removed.status_code == 200
    assert client.put(again).status_code == 200
    assert client.get("/datastore/label?label=chest&tag=final").content == first


@pytest.mark.parametrize("tag", ["../..", "a/b", "..", "%2e%2e"])
@pytest.mark.parametrize("image", ["film"])
def test_no_tag_leads_out_of_the_studies(
    client: TestClient, label: bytes, tmp_path: Path, image: str, tag: str
) -> None:
    before = nothing_outside(tmp_path)
    answer = client.put("/datastore/label", params={"image": image, "tag": tag}, files={"label": ("x.nii.gz", label)})
    assert "label_tag" in sentence(answer, 400)
    assert nothing_outside(tmp_path) == before


@pytest.mark.parametrize("image", ["../x", "/tmp/x", "a/b", "..", ".x", "a\\b", "a\0b"])
def test_no_image_id_leads_out_of_the_studies(client: TestClient, studies: Path, tmp_path: Path, image: str) -> None:
    before = nothing_outside(tmp_path)
    picture = (studies / "chest.png").read_bytes()
    for path in ("/datastore/image", "/datastore/"):
        sentence(client.put(path, params={"image": image}, files={"file": ("x.png", picture)}), 400)
    assert nothing_outside(tmp_path) == before


def test_an_image_is_added_once_and_only_if_it_can_be_read(client: TestClient, studies: Path) -> None:
    picture = (studies / "chest.png").read_bytes()
    added = client.put(
        "/datastore/image", files={"file": ("../../new.png", picture)}, data={"params": '{"from": "me"}'}
    )
    assert added.json() == {"image": "new"}
    assert (studies / "new.png").read_bytes() == picture
    told = client.get("/datastore/image/info", params={"image": "new"}).json()
    assert (told["from"], told["user"]) == ("me", "anonymous")
    assert "path" not in told
    assert client.get("/datastore/image", params={"image": "new"}).content == picture
    assert "already" in sentence(client.put("/datastore/image", files={"file": ("new.png", picture)}), 409)
    broken = client.put("/datastore/image", files={"file": ("b.png", picture[:50])})
    assert str(studies.parent) not in sentence(broken, 400)
    sentence(client.put("/datastore/image", files={"file": ("b.exe", picture)}), 400)
    assert client.delete("/datastore/image", params={"id": "new"}).status_code == 200
    assert not (studies / "new.png").exists()


def test_a_checksum_is_compared(client: TestClient, studies: Path) -> None:
    import hashlib

    digest = hashlib.sha256((studies / "chest.png").read_bytes()).hexdigest()
    ask = {"image": "chest", "check_sum": f"SHA256:{digest}"}
    assert client.head("/datastore/image", params=ask).status_code == 200
    assert client.head("/datastore/image", params={**ask, "check_sum": digest[::-1]}).status_code == 404
    assert client.head("/datastore/image", params={**ask, "check_sum": "CRC:1"}).status_code == 400


def test_a_label_is_saved_told_of_and_removed(client: TestClient, label: bytes, tmp_path: Path) -> None:
    saved = client.put(
        "/datastore/label",
        params={"image": "film"},
        files={"label": ("x.nii.gz", label)},
        data={"params": '{"client_id": "slicer"}'},
    )
    assert saved.json() == {"image": "film", "label": "film"}
    where = {"label": "film", "tag": "final"}
    assert client.get("/datastore/label", params=where).content == label
    assert client.head("/datastore/label", params=where).status_code == 200
    assert client.put("/datastore/label/info", params=where, data={"info": '{"seen": 1}'}).status_code == 200
    assert client.get("/datastore/label/info", params=where).json()["seen"] == 1
    pairs = client.get("/datastore/", params={"output": "train"}).json()
    assert pairs == [{"image": "film.dcm", "label": "film.nii.gz"}]
    assert zipfile.ZipFile(io.BytesIO(client.get("/datastore/dataset").content)).testzip() is None
    assert client.delete("/datastore/label", params={"id": "film", "tag": "final"}).status_code == 200
    sentence(client.put("/datastore/label", params={"image": "nobody"}, files={"label": ("x.nii.gz", label)}), 404)
    sentence(client.put("/datastore/label", params={"image": "film"}, files={"label": ("x.exe", label)}), 400)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["route"], line["client"]) for line in lines] == [
        ("mask", "POST /infer/text_prompt", ""),
        ("label saved", "PUT /datastore/label", "slicer"),
        ("label removed", "DELETE /datastore/label", ""),
    ]


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".nii"])
def test_a_label_comes_in_the_format_that_is_asked_for(client: TestClient, tmp_path: Path, extension: str) -> None:
    volume = SimpleITK.ReadImage(tmp_path / "studies" / "stack.nii.gz")
    # no axis of it is a mirror image of itself
    drawn = np.random.default_rng(1).choice([0, 0, 201], volume.GetSize()[::-1]).astype(np.uint8)
    label = SimpleITK.GetImageFromArray(drawn)
    label.CopyInformation(volume)
    SimpleITK.WriteImage(label, tmp_path / "label.nii.gz")
    content = (tmp_path / "label.nii.gz").read_bytes()
    saved = client.put("/datastore/label", params={"image": "stack"}, files={"label": ("x.nii.gz", content)})
    assert saved.status_code == 200, saved.text
    assert client.get("/datastore/image/labels", params={"image": "stack"}).json() == {"final": "stack"}
    assert client.get("/datastore/image/labels", params={"image": "film"}).json() == {}

    where = {"label": "stack", "tag": "final"}
    answer = client.get("/datastore/label", params={**where, "result_extension": extension})
    assert answer.headers["content-disposition"] == f'attachment; filename="stack{extension}"'
    (tmp_path / f"answer{extension}").write_bytes(answer.content)
    found = SimpleITK.ReadImage(tmp_path / f"answer{extension}")
    assert np.array_equal(SimpleITK.GetArrayFromImage(found), drawn)
    assert np.allclose(found.GetOrigin(), volume.GetOrigin())
    assert np.allclose(found.GetSpacing(), volume.GetSpacing())
    for refused in (".exe", ".png"):
        told = sentence(client.get("/datastore/label", params={**where, "result_extension": refused}), 400)
        assert ".nrrd" in told


def test_a_mask_made_ahead_is_told_from_what_is_drawn_after_it(client: TestClient) -> None:
    """It counts as given to the browser that has loaded it, as a final label does not."""
    app = client.app.state.label_app  # type: ignore[attr-defined]
    infer(client, {**TEXT, "save_label": True}, image="film")
    where = {"label": "film", "tag": "original", "result_extension": ".nrrd"}
    cookie = client.get("/ohif/").cookies["medclipsam_client"]
    path = app.image_path("film")
    assert client.get("/datastore/label", params={**where, "tag": "final"}).status_code == 404
    assert app.masks.find(f"browser-{cookie}", path) is None
    kept = client.get("/datastore/label", params={"label": "film", "tag": "original"}).content
    assert client.put("/datastore/label", params={"image": "film"}, files={"label": ("x.nii.gz", kept)}).is_success
    assert client.get("/datastore/label", params={**where, "tag": "final"}).status_code == 200
    assert app.masks.find(f"browser-{cookie}", path) is None
    assert client.get("/datastore/label", params=where).status_code == 200
    mask, names, _ = app.masks.find(f"browser-{cookie}", path)
    assert mask.any()
    assert names == {"heart": int(mask.max())}
    assert app.masks.made(f"browser-{cookie}", path)["model"] == "text_prompt"


def test_a_file_sent_along_is_used_and_removed(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    sent = {"file": ("../../x.png", (studies / "chest.png").read_bytes())}
    for output in ("image", "json", "all"):
        answer = infer(client, image="", output=output, files=sent)
        assert answer.status_code == 200
    sentence(infer(client, {"text": ""}, image="", files=sent), 400)
    sentence(infer(client, {"text": "explode"}, image="", files=sent), 400)
    sentence(infer(client, image="", files={"file": ("x.png", b"no image")}), 400)
    assert list(place.iterdir()) == []


def test_the_answer_of_two_parts_holds_the_mask_and_says_its_length(client: TestClient) -> None:
    answer = infer(client, image="stack", output="all")
    assert int(answer.headers["content-length"]) == len(answer.content)
    params, mask = MultipartDecoder(answer.content, answer.headers["content-type"]).parts
    assert list(json.loads(params.content)["label_names"]) == ["heart"]
    assert b"filename=" in mask.headers[b"Content-Disposition"]
    assert mask.content == infer(client, image="stack", output="image").content


def test_a_session_of_an_archive_that_leads_outside_is_refused(client: TestClient, tmp_path: Path) -> None:
    before = nothing_outside(tmp_path) | {"sessions"}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../evil.dcm", b"x")
    answer = client.put("/session/", params={"uncompress": True}, files={"files": ("a.zip", packed.getvalue())})
    assert "outside" in sentence(answer, 400)
    assert nothing_outside(tmp_path) <= before
    sentence(client.put("/session/", files={"files": ("meta.info", b"x")}), 400)


@pytest.mark.parametrize("name", ["series", "sent", "a.zip"])
def test_files_of_a_session_may_have_any_name(client: TestClient, studies: Path, name: str) -> None:
    film = (studies / "film.dcm").read_bytes()
    made = client.put("/session/", files={"files": (name, film)})
    assert made.status_code == 200, made.text
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, film)
    answer = client.put("/session/", params={"uncompress": True}, files={"files": (name, packed.getvalue())})
    assert answer.status_code == 200, answer.text


def test_a_session_lives_and_ends(client: TestClient, studies: Path) -> None:
    made = client.put("/session/", files={"files": ("/a/film.dcm", (studies / "film.dcm").read_bytes())}).json()
    session = made["session_id"]
    assert made["session_info"]["image"] == "film.dcm"
    assert made["session_info"]["path"] == ""
    assert infer(client, image="", session_id=session, output="json").json()["image"]["modality"] == "DX"
    where = f"/session/{session}"
    assert client.get(where, params={"image": True}).content == (studies / "film.dcm").read_bytes()
    assert client.delete(where).status_code == 200
    sentence(client.get(where), 404)
    sentence(infer(client, image="", session_id=session), 404)


def test_a_request_of_too_many_bytes_is_refused(make_client: MakeClient) -> None:
    client = make_client(max_upload_mb="1")
    answer = client.put("/datastore/image", files={"file": ("x.png", b"x" * 2**21)})
    assert "1 MiB" in sentence(answer, 413)


def test_paths_of_the_server_are_told_to_its_own_machine_alone(make_client: MakeClient, studies: Path) -> None:
    told = make_client(local=True).post("/activelearning/random", json={}).json()["path"]
    assert Path(told).parent == studies
    assert make_client().post("/activelearning/random", json={}).json()["path"] == ""


@pytest.mark.parametrize(
    "path", ["", "x" * 300, "viewer", "../../app.py", "%2e%2e/%2e%2e/app.py", "/etc/passwd", "a%00b"]
)
def test_the_viewer_is_all_that_its_route_serves(client: TestClient, path: str) -> None:
    answer = client.get(f"/ohif/{path}")
    if answer.status_code == 200:
        assert "<html" in answer.text.lower()
    else:
        assert answer.status_code == 404


def test_the_viewers_files_are_served(client: TestClient) -> None:
    answer = client.get("/ohif/app-config.js")
    assert answer.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert "window.config" in answer.text


def test_the_viewer_gets_our_configuration_and_asks_nobody_else(client: TestClient) -> None:
    configuration = client.get("/ohif/app-config.js")
    assert "saveLabel" in configuration.text
    assert "javascript" in configuration.headers["content-type"]
    page = client.get("/ohif/monai-label")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["cache-control"] == "no-cache"


def test_a_browser_is_a_client_of_its_own(client: TestClient, loaded: Any) -> None:
    """The viewer names no client; whoever has no cookie either is everybody."""
    one, other = (TestClient(client.app, base_url="http://127.0.0.1:8000") for _ in range(2))
    cookies = [browser.get("/ohif/").cookies["medclipsam_client"] for browser in (one, other)]
    assert len(set(cookies)) == 2
    assert "medclipsam_client" not in one.get("/ohif/").cookies
    assert infer(one).status_code == 200
    click = {"heart": [[2, 2, 0]]}
    sources = [infer(browser, click, "refine", output="json").json()["present_mask"] for browser in (one, other)]
    assert sources == ["last", "none"]
    assert (
        infer(client, {**click, "client_id": f"browser-{cookies[0]}"}, "refine", output="json").json()["present_mask"]
        == "last"
    )


def test_a_mask_alone_comes_with_its_sentence(client: TestClient) -> None:
    click = {"heart": [[2, 2, 0]], "use_last_mask": False}
    told = infer(client, click, "refine", output="json").json()["sentence"]
    answer = infer(client, click, "refine", output="image")
    assert unquote(answer.headers["x-sentence"]) == told
    assert "heart" in told


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EROFS, 503)])
def test_a_disk_that_takes_nothing_is_told_by_every_route_that_writes(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    mask = infer(client, output="image").content
    content = (studies / "chest.png").read_bytes()

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), str(studies / "chest.png"))

    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    answers = [
        infer(client),
        client.put("/datastore/label?image=chest&tag=final", files={"label": ("a.nii.gz", mask)}),
        client.put("/datastore/image?image=new", files={"file": ("new.png", content)}),
        client.put("/session/", files={"files": ("new.png", content)}),
        client.put("/datastore/image/info?image=chest", data={"info": json.dumps({"note": "x"})}),
    ]
    assert [answer.status_code for answer in answers] == [status] * len(answers)
    assert not [answer.text for answer in answers if str(studies.parent) in answer.text]


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EROFS, 503)])
def test_a_label_that_cannot_be_listed_is_not_kept(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    first = infer(client, output="image").content
    put = {"url": "/datastore/label?image=chest&tag=final", "files": {"label": ("a.nii.gz", first)}}
    assert client.put(**put).status_code == 200  # type: ignore[arg-type]
    empty = studies.parent / "empty.nii.gz"
    mask = SimpleITK.ReadImage(studies / "labels" / "final" / "chest.nii.gz")
    SimpleITK.WriteImage(mask * 0, empty)

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), str(studies / "chest.png"))

    with monkeypatch.context() as patch:
        patch.setattr("medclipsam.server.studies.label_files.LabelFiles._write_config", refuse)
        answer = client.put(**{**put, "files": {"label": ("a.nii.gz", empty.read_bytes())}})  # type: ignore[arg-type]
    assert answer.status_code == status
    assert str(studies.parent) not in answer.text
    assert client.get("/datastore/label?label=chest&tag=final").content == first


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE])
def test_the_servers_paths_are_not_told(
    client: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever the operating system says of a file, in an error that was foreseen and in one that was not."""

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), str(studies / "labels" / "chest.png"))

    for place in ("medclipsam.base.files.tempfile.mkstemp", "medclipsam.server.inference.results.tempfile.mkstemp"):
        with monkeypatch.context() as patch:
            patch.setattr(place, refuse)
            answer = infer(client)
        assert answer.status_code >= 400
        assert str(studies.parent) not in answer.text


@pytest.mark.parametrize("digits", [20, 300, 4000, 5000])
def test_numbers_of_many_digits_are_refused(client: TestClient, digits: int) -> None:
    number = "9" * digits
    content = b"anything"
    answers = [
        client.get(f"/networks/network/{number}/report.md"),
        client.post(f"/networks/network/rollback?version={number}"),
        client.put(f"/session/?expiry={number}", files={"files": ("a.png", content)}),
        client.get(f"/datastore/dataset?limit_cases={number}"),
        infer(client, {**TEXT, "planes": number}),
        infer(client, {**TEXT, "steps": number}),
        infer(client, '{"text": "heart", "beta": ' + number + "}"),
        infer(client, '{"text": "heart", "max_workers": ' + number + "}"),
        infer(client, '{"foreground": [[' + number + ", 1]]}", model="refine"),
    ]
    assert {answer.status_code for answer in answers} <= {400, 404}


def test_an_image_is_found_by_its_name_composed_or_not(client: TestClient, studies: Path, picture: np.ndarray) -> None:
    name = "M\u00fcller"
    apart = unicodedata.normalize("NFD", name)
    Image.fromarray(picture).save(studies / f"{apart}.png")
    client.app.state.label_app.datastore().refresh()  # type: ignore[attr-defined]
    assert name in client.get("/datastore/", params={"output": "all"}).json()["objects"]
    for given in (name, apart):
        assert infer(client, image=given).status_code == 200
        assert client.head("/datastore/image", params={"image": given}).status_code == 200
    mask = infer(client, image=apart, output="image").content
    saved = client.put(f"/datastore/label?image={apart}&tag=final", files={"label": ("a.nii.gz", mask)})
    assert saved.status_code == 200
    for given in (name, apart):
        assert client.get("/datastore/label", params={"label": given, "tag": "final"}).content == mask
    # a label that was put into its folder by hand, named as the image is
    (studies / "labels" / "final" / f"{name}.nii.gz").unlink()
    (studies / "labels" / "original" / f"{apart}.nii.gz").write_bytes(mask)
    client.app.state.label_app.datastore().refresh()  # type: ignore[attr-defined]
    assert client.get("/datastore/label", params={"label": name, "tag": "original"}).content == mask


def test_what_cannot_be_read_is_named_with_the_studies(client: TestClient, studies: Path) -> None:
    assert client.get("/datastore/").json()["unreadable"] == {"files": {}, "images": {}}
    (studies / "preview.jpg").write_bytes(b"")
    assert infer(client, image="broken").status_code == 400
    client.app.state.label_app.datastore().refresh()  # type: ignore[attr-defined]
    for output in ("stats", "all"):
        told = client.get("/datastore/", params={"output": output}).json()["unreadable"]
        assert list(told["files"]) == ["preview.jpg"]
        assert list(told["images"]) == ["broken"]
        assert str(studies) not in str(told)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 4, 4), np.uint8)), studies / "broken.nii.gz")
    assert client.get("/datastore/").json()["unreadable"]["images"] == {}


def test_the_document_describes_params_by_the_options_of_the_tasks(client: TestClient) -> None:
    """What the schema allows and refuses is what the server allows and refuses."""
    document = client.get("/openapi.json").json()
    form = document["paths"]["/infer/{model}"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    params = document["components"]["schemas"][form["$ref"].rpartition("/")[2]]["properties"]["params"]
    assert (params["type"], params["contentMediaType"]) == ("string", "application/json")
    schema = params["contentSchema"]
    (text,) = [way for way in schema["anyOf"] if way["$ref"].endswith("TextParams")]
    described = jsonschema.Draft7Validator({**schema, "components": document["components"], "anyOf": [text]})
    for name, option in ZeroShotOptions.options().items():
        value = option.default if option.default is not None else option.low
        if value is not None and option.kind != "other":
            assert described.is_valid({**TEXT, name: value}), name
    for wrong in ({"presence_threshold": 1.5}, {"saliency": "gradcam"}, {"layer": 2.5}, {"presense": True}):
        assert not described.is_valid({**TEXT, **wrong}), wrong
        assert infer(client, {**TEXT, **wrong}).status_code == 400, wrong
    body = document["paths"]["/train/{model}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema.Draft7Validator({**body, "components": document["components"]}).is_valid({"epochs": 5})


def test_the_description_of_the_api_is_whole(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert operation.get("summary"), path
            assert "422" not in operation["responses"], path


# --- names and texts that no id is ---

ODD_NAMES = [
    "\uff46\uff49\uff4c\uff4d",  # full-width letters
    "\uff11.\uff12.\uff13",
    "chest\uff0e\uff50\uff4e\uff47",
    "\u0661\u00b2",
    "%ff%fe",
    "%c0%af",
    "%ed%a0%80",  # half a character, as UTF-8 would write it
    "\ufffd",
    "\U0001f600" * 60,
    "x" * 300,
    "\u202efilm",
    "film%00",
    "%0d%0aX: y",
]


def test_odd_names_give_an_answer_below_500(make_client: MakeClient) -> None:
    client = make_client()
    client = TestClient(client.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    asked = 0
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, told in methods.items():
            names = [each["name"] for each in told.get("parameters", []) if each["in"] in ("path", "query")]
            if not names or (method == "delete" and path == "/train/"):
                continue
            for odd in ODD_NAMES:
                where = re.sub(r"\{\w+(:path)?\}", odd, path) + "?" + "&".join(f"{name}={odd}" for name in names)
                answer = client.request(method.upper(), where)
                assert answer.status_code < 500, (method, where, answer.text)
                asked += 1
    assert asked > 200


@pytest.mark.parametrize(
    "field", ["text", "client_id", "label_tag", "result_extension", "modality", "planes", "device"]
)
@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\uff11", "\uff11\uff12\uff0d\uff13", "\u0000"])
def test_odd_texts_in_params_give_an_answer_below_500(make_client: MakeClient, field: str, value: str) -> None:
    client = TestClient(make_client().app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    params = json.dumps({**TEXT, "save_label": True, field: value})
    for answer in (
        infer(client, params, output="json"),
        client.post("/infer/text_prompt?image=chest", content=params, headers={"Content-Type": "application/json"}),
        client.post("/activelearning/random", content=params, headers={"Content-Type": "application/json"}),
        client.put("/datastore/image/info?image=chest", data={"info": json.dumps({field: value, value: 1})}),
    ):
        assert answer.status_code < 500, answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/datastore/?output=all").status_code == 200


def test_the_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/docs", "/redoc"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        policy = dict(part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";"))
        assert policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == "'self'"
        parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(parts) > 2
        assert "<script>" not in page.text
        for part in parts:
            assert not re.match(r"\w+:|//", part)
            loaded = client.get(f"/{part}")
            # where the viewer was not installed its page says how to
            assert loaded.status_code == 200 or part == "viewer/"
            assert loaded.headers["x-content-type-options"] == "nosniff"
    assert client.get("/pages/api.html").status_code == 404
    assert client.get("/pages/..%2Fapi.html").status_code == 404
