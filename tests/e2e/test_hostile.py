"""What a server must bear: made-up requests by the thousand, damaged files, many clients at once, a kill.

Most of the requests fail a check before any model runs, which takes milliseconds.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import psutil
import pydicom
import pytest
import requests
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medclipsam.base.options import ZeroShotOptions

FAST = {"steps": 1, "samples": 1, "presence": False}
# Of requests, 2,000 in all by default; `make drill` sends more.
REQUESTS = int(os.environ.get("DRILL_REQUESTS", "2000"))
# Seconds of load by eight clients.
LOAD = float(os.environ.get("DRILL_LOAD", "5"))
pytestmark = pytest.mark.timeout(3600 + LOAD)
ROUTE_CASES, PARAM_CASES, UPLOADS = REQUESTS * 4 // 7, REQUESTS * 3 // 7, max(60, REQUESTS // 35)


def command(studies: Path, port: int) -> Sequence[str]:
    options = ["--studies", str(studies), "--port", str(port), "--targets", "lungs x-ray", "--queue-length", "16"]
    return [sys.executable, "-m", "medclipsam", "serve", *options, "--max-seconds", "600000"]


@pytest.fixture(scope="module")
def server(start: Callable[..., Any]) -> Any:
    return start(command)


@pytest.fixture(scope="module")
def reference(server: Any) -> bytes:
    """The mask of a request before anything else was asked."""
    return mask_of(server, "film", "heart")


def mask_of(server: Any, image: str, text: str) -> bytes:
    answer = server.infer("text_prompt", image, output="image", text=text, result_extension=".nii", **FAST)
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Line:
    """A connection that sends a request's target as it is: other clients put "/../" right before it leaves."""

    def __init__(self, url: str) -> None:
        self._where = urlsplit(url).netloc
        self._connection = http.client.HTTPConnection(self._where, timeout=120)

    def ask(self, method: str, target: str, body: bytes | None = None, kind: str = "") -> Answer:
        headers = {"Content-Type": kind} if kind else {}
        for attempt in range(2):
            try:
                self._connection.request(method, target, body=body, headers=headers)
                answer = self._connection.getresponse()
                return Answer(answer.status, dict(answer.getheaders()), answer.read())
            except (http.client.HTTPException, ConnectionError):
                # a refused upload is answered before it is read to its end, and ends the connection
                self._connection.close()
                if attempt:
                    raise
        raise AssertionError


@pytest.fixture(scope="module")
def line(server: Any) -> Line:
    return Line(server.url)


def check(answer: Answer) -> None:
    """No 5xx but 503, no traceback, and an error is one sentence."""
    assert answer.status < 500 or answer.status == 503, answer.body[:500]
    assert b"Traceback" not in answer.body
    # the answer to HEAD has no body
    if answer.status >= 400 and answer.body and "application/json" in answer.headers.get("content-type", ""):
        detail = json.loads(answer.body)["detail"]
        assert isinstance(detail, str)
        assert "\n" not in detail
    if answer.status == 503:
        assert int(answer.headers["retry-after"]) > 0


def files_around(server: Any) -> dict[str, int]:
    """Everything in the server's place but what it may write: its workspace, its log, the studies."""
    place = server.log.parent
    mine = (server.log, place / "data", place / "studies")
    found = (path for path in place.rglob("*") if not any(path == own or own in path.parents for own in mine))
    return {str(path): path.stat().st_size for path in found}


# Requests of every route, from the server's own description

NASTY = st.sampled_from(
    [
        *("..", ".", "../..", "../../etc/passwd", "/etc/passwd", "..\\..\\x", "%2e%2e", "a/../../b", "//", "~root"),
        *("", " ", "\x00", "a\x00b", "\n", "a\nb", "\r\nX: y", "\u202e", "é" * 300, "x" * 5000, "-1", "0", "1e999"),
        *("film", "chest_ct", "small", "text_prompt", "final", "original", "random", "film.png"),
        *(
            "NaN",
            "null",
            "true",
            "[]",
            "{}",
            "'; DROP TABLE x",
            "${jndi:ldap://x}",
            "{{7*7}}",
            "<script>",
            "file:///etc",
        ),
        *("datastore_v2.json", ".lock", "CON", "lock", "labels/final/film", "meta.info"),
    ]
)
WORDS = st.one_of(NASTY, st.text(max_size=30))
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.sampled_from([2**63, -(2**63), 1e308, 10**400])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
# Requests that succeed would run for long, or take away what other tests need.
KEPT_OUT = {("post", "/batch/infer/{model}")}
PICTURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class Operation:
    method: str
    path: str
    in_path: list[str]
    in_query: list[str]
    form: dict[str, bool] | None  # field -> whether it is a file
    takes_json: bool


def operations(server: Any) -> list[Operation]:
    description = requests.get(f"{server.url}/openapi.json", timeout=60).json()
    found = []
    for path, methods in description["paths"].items():
        for method, told in methods.items():
            given_in = {"path": [], "query": []}
            for parameter in told.get("parameters", []):
                given_in.get(parameter["in"], []).append(parameter["name"])
            content = told.get("requestBody", {}).get("content", {})
            form = None
            for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
                if kind in content:
                    name = content[kind]["schema"]["$ref"].rsplit("/", 1)[-1]
                    properties = description["components"]["schemas"][name]["properties"]
                    form = {
                        key: "binary" in json.dumps(value) or "octet" in json.dumps(value)
                        for key, value in properties.items()
                    }
            if (method, path) not in KEPT_OUT:
                found.append(
                    Operation(method, path, given_in["path"], given_in["query"], form, "application/json" in content)
                )
    return found


@pytest.fixture(scope="module")
def routes(server: Any) -> list[Operation]:
    found = operations(server)
    assert len(found) > 20
    return found


def multipart(form: Mapping[str, bool], draw: Callable[[Any], Any]) -> tuple[bytes, str]:
    parts = []
    for key, is_file in form.items():
        if is_file:
            name, content = (
                draw(WORDS),
                draw(st.sampled_from([b"", b"no image", PICTURE, PICTURE * 40, b"PK\3\4" + bytes(60)])),
            )
            plain = name.encode("utf-8", "replace").replace(b'"', b"%22").replace(b"\r", b"").replace(b"\n", b"")
            parts.append(
                b'Content-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s' % (key.encode(), plain, content)
            )
        else:
            value = draw(st.one_of(WORDS, JSON.map(lambda made: json.dumps(made, ensure_ascii=False))))
            parts.append(
                b'Content-Disposition: form-data; name="%s"\r\n\r\n%s'
                % (key.encode(), value.encode("utf-8", "replace"))
            )
    body = b"".join(b"--frontier\r\n" + part + b"\r\n" for part in parts) + b"--frontier--\r\n"
    return body, "multipart/form-data; boundary=frontier"


@st.composite
def made_up(draw: Any, routes: Sequence[Operation]) -> tuple[str, str, bytes | None, str]:
    """Draw method, target, body and content type."""
    one = draw(st.sampled_from(routes))
    # what is deleted must not be what other tests ask for
    words = WORDS if one.method != "delete" else WORDS.filter(lambda word: word not in ("film", "chest_ct", "small"))
    target = one.path
    for name in one.in_path:
        word = draw(words)
        target = target.replace("{" + name + "}", quote(word, safe=draw(st.sampled_from(["", "/."])), errors="replace"))
    query = {name: draw(words) for name in one.in_query if draw(st.booleans())}
    query |= draw(st.dictionaries(WORDS, WORDS, max_size=1))
    if query:
        target += "?" + urlencode(query, errors="replace")
    body, kind = None, ""
    if one.form is not None:
        body, kind = multipart(one.form, draw)
    elif one.takes_json or draw(st.integers(0, 9)) == 0:
        made = draw(st.one_of(JSON, st.dictionaries(WORDS, JSON, max_size=4)))
        body, kind = json.dumps(made).encode(), "application/json"
        if draw(st.integers(0, 9)) == 0:
            body = body[: len(body) // 2] + b"\xff"
    return one.method.upper(), target, body, kind


def hostile(cases: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_made_up_requests_of_every_route_do_no_harm(
    server: Any, line: Line, routes: list[Operation], reference: bytes
) -> None:
    before = files_around(server)
    seen: dict[int, int] = {}

    @hostile(ROUTE_CASES)
    @given(made_up(routes))
    def ask(asked: tuple[str, str, bytes | None, str]) -> None:
        answer = line.ask(*asked)
        check(answer)
        seen[answer.status // 100] = seen.get(answer.status // 100, 0) + 1

    ask()
    assert seen[4] > ROUTE_CASES / 3
    assert files_around(server) == before
    assert mask_of(server, "film", "heart") == reference


@pytest.mark.parametrize(
    "target",
    [
        *("/proxy/dicom/wado/%2e%2e/system", "/proxy/dicom/../../etc/passwd", "/proxy/dicom/studies?x=1", "/proxy//"),
        *("/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/ohif/..%2f..%2f..%2fetc/passwd"),
        *("/ohif/%2e%2e/%2e%2e/main.py", "/logs/?lines=-1", "/logs/?lines=1e9&refresh=x", "//etc/passwd", "/%00"),
        *("/datastore/image?image=../output.log", "/datastore/label?label=../../output.log&tag=final"),
        *("/datastore/image?image=%2Fetc%2Fpasswd", "/model/..%2f..%2fetc", "/session/..", "/requests/%2e%2e"),
    ],
)
def test_no_address_leads_out(server: Any, line: Line, target: str) -> None:
    answer = line.ask("GET", target)
    check(answer)
    assert b"root:" not in answer.body
    assert b"medclipsam serves" not in answer.body


# Params of infer requests

OPTIONS = list(ZeroShotOptions.options())
CHOICES = [choice for option in ZeroShotOptions.options().values() for choice in option.choices]
MONAI_KEYS = ["result_extension", "result_dtype", "label_tag", "save_label", "client_id", "device", "image", "session"]
PARAMS = st.dictionaries(
    st.one_of(st.sampled_from([*OPTIONS, "text", "modality", *MONAI_KEYS]), WORDS),
    st.one_of(JSON, st.sampled_from(CHOICES)),
    min_size=1,
    max_size=6,
)
# An image that is not there: what passes every check of the params still runs no model.
NOBODY = "nobody"


def test_made_up_params_are_refused_with_a_sentence(server: Any, line: Line, reference: bytes) -> None:
    before = files_around(server)

    @hostile(PARAM_CASES)
    @given(PARAMS, st.sampled_from(["text_prompt", "lungs_x_ray"]), st.sampled_from(["film", NOBODY, NOBODY]))
    def ask(params: dict[str, Any], model: str, image: str) -> None:
        # a plane that no film has: the request may be right in all else and still runs no model
        body = urlencode({"params": json.dumps({"text": "heart", **params, "planes": "7"})}, errors="replace").encode()
        answer = line.ask("POST", f"/infer/{model}?image={image}", body, "application/x-www-form-urlencoded")
        check(answer)
        assert 400 <= answer.status < 500

    ask()
    assert files_around(server) == before
    assert mask_of(server, "film", "heart") == reference


@pytest.mark.parametrize("params", ["[" * 100_000, '{"a":' * 5000, "\x00", '"text"', "[1]", "7", '{"text": NaN}', "{"])
def test_params_that_are_no_object_are_refused(server: Any, params: str) -> None:
    where = f"{server.url}/infer/text_prompt"
    answer = requests.post(where, params={"image": "film"}, data={"params": params}, timeout=60)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["detail"]


# Damaged files


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory, write_radiograph: Callable[..., None]) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    grey = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.tif", "d.bmp"):
        Image.fromarray(grey).save(folder / name)
    volume = SimpleITK.GetImageFromArray(np.stack([grey, grey]))
    for name in ("e.nii", "f.nii.gz", "g.nrrd"):
        SimpleITK.WriteImage(volume, str(folder / name))
    write_radiograph(grey, folder / "h.dcm")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_damaged_files_that_are_sent_along_are_refused(
    server: Any, small_files: dict[str, bytes], damaged: Callable[..., bytes], reference: bytes
) -> None:
    before, chance = files_around(server), random.Random(0)
    params = json.dumps({"text": "heart", "planes": "7", **FAST})
    for number in range(UPLOADS):
        name = sorted(small_files)[number % len(small_files)]
        content = damaged(small_files[name], chance)
        if number % 2:
            where = f"{server.url}/infer/text_prompt"
            answer = requests.post(where, data={"params": params}, files={"file": (name, content)}, timeout=60)
            assert 400 <= answer.status_code < 500, answer.text
        else:
            where = f"{server.url}/datastore/image?image=upload{number}"
            answer = requests.put(where, files={"file": (name, content)}, timeout=60)
            assert answer.status_code < 500, answer.text
        if not answer.ok:
            assert "\n" not in answer.json()["detail"]
            assert "/tmp" not in answer.json()["detail"]
    assert files_around(server) == before
    assert mask_of(server, "film", "heart") == reference


# Many at once, and the end


def test_eight_clients_at_once_get_the_masks_of_one_after_the_other(server: Any) -> None:
    pairs = [("film", "heart"), ("breast", "breast tumour"), ("radiograph", "lungs"), ("film", "left lung")]
    alone = [mask_of(server, *pair) for pair in pairs]
    assert len(set(alone)) == len(pairs)
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda pair: mask_of(server, *pair), pairs * 2))
    assert together == alone * 2


@dataclass
class Load:
    """What clients have seen that each do one thing after the other until the time is over."""

    server: Any
    masks: dict[tuple[str, str], bytes]
    volume: bytes
    end: float
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def client(self, number: int) -> None:
        chance = random.Random(number)
        deeds = [self.infer, self.image, self.list, self.ready, self.save, self.hostile]
        while time.monotonic() < self.end:
            chance.choice(deeds)(number, chance)

    def ask(self, what: str, method: str, path: str, **more: Any) -> requests.Response | None:
        """Return an answer; None where the server is busy, which it may say."""
        begun = time.monotonic()
        answer = requests.request(method, f"{self.server.url}{path}", timeout=120, **more)
        self.counts[what] += 1
        if what == "ready":
            self.seconds.append(time.monotonic() - begun)
        if answer.status_code in (429, 503):
            self.counts["busy"] += 1
            time.sleep(0.2)
            return None
        if answer.status_code >= 500:
            self.wrong.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return answer

    def expect(self, what: str, answer: requests.Response | None, content: bytes | None = None) -> None:
        if answer is not None and (not answer.ok or (content is not None and answer.content != content)):
            self.wrong.append(f"{what}: {answer.status_code} {answer.text[:200] if not answer.ok else 'other content'}")

    def infer(self, number: int, chance: random.Random) -> None:
        (image, text), mask = chance.choice(list(self.masks.items()))
        params = json.dumps({"text": text, "result_extension": ".nii", **FAST})
        path = f"/infer/text_prompt?image={image}&output=image"
        self.expect("infer", self.ask("infer", "POST", path, data={"params": params}), mask)

    def image(self, number: int, chance: random.Random) -> None:
        self.expect("image", self.ask("image", "GET", "/datastore/image?image=chest_ct"), self.volume)

    def list(self, number: int, chance: random.Random) -> None:
        self.expect("list", self.ask("list", "GET", "/datastore/?output=all"))

    def ready(self, number: int, chance: random.Random) -> None:
        self.expect("ready", self.ask("ready", "GET", "/readyz"))

    def save(self, number: int, chance: random.Random) -> None:
        """Save a label under a tag that no other client uses, and ask for it."""
        (image, _), mask = chance.choice(list(self.masks.items()))
        where = f"image={image}&tag=load{number}"
        saved = self.ask("save", "PUT", f"/datastore/label?{where}", files={"label": ("label.nii", mask)})
        self.expect("save", saved)
        if saved is not None and saved.ok:
            path = f"/datastore/label?label={image}&tag=load{number}"
            self.expect("label", self.ask("label", "GET", path), mask)

    def hostile(self, number: int, chance: random.Random) -> None:
        content = b"\x89PNG\r\n\x1a\n" + chance.randbytes(500)
        params = json.dumps({"text": "heart", "planes": "7"})
        answer = self.ask(
            "hostile", "POST", "/infer/text_prompt", data={"params": params}, files={"file": ("a.png", content)}
        )
        if answer is not None and answer.ok:
            self.wrong.append("hostile: accepted")


def test_under_load_masks_labels_and_memory_stay_as_they_are(
    server: Any, note: Callable[[str, str, object], None]
) -> None:
    pairs = [("film", "heart"), ("breast", "breast tumour"), ("radiograph", "lungs"), ("film", "left lung")]
    masks = {pair: mask_of(server, *pair) for pair in pairs}
    volume = requests.get(f"{server.url}/datastore/image", params={"image": "chest_ct"}, timeout=60)
    assert volume.ok
    # memory is measured once everything has been done once
    parts = []
    for seconds in (min(LOAD, 60) / 2, LOAD - min(LOAD, 60) / 2):
        load = Load(server, masks, volume.content, time.monotonic() + seconds)
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(load.client, range(8)))
        assert load.wrong == []
        parts.append(
            (load, sum(each.memory_info().rss for each in [psutil.Process(server.process.pid), *server.children()]))
        )
    (first, before), (second, after) = parts
    assert after < before + 512 * 2**20
    counts = first.counts + second.counts
    asked = sum(counts.values()) - counts["busy"]
    note("load", "seconds, requests, of these answered as busy", f"{LOAD:g}, {asked}, {counts['busy']}")
    note("load", "labels saved and compared", counts["label"])
    note("load", "MiB at the beginning / end", f"{before // 2**20} / {after // 2**20}")
    note(
        "load",
        "ms until /readyz answers, median / 99 %",
        " / ".join(f"{1000 * np.quantile(first.seconds + second.seconds, share):.0f}" for share in (0.5, 0.99)),
    )


def test_the_log_has_no_traceback_and_the_metrics_no_failure(server: Any, reference: bytes) -> None:
    assert mask_of(server, "film", "heart") == reference
    assert server.infer("made_up", "film").status_code == 404
    assert "Traceback" not in server.output()
    metrics = requests.get(f"{server.url}/metrics", timeout=30).text
    assert 'outcome="failed"' not in metrics
    assert 'medclipsam_infer_requests_total{model="unknown",outcome="refused"}' in metrics
    assert requests.get(f"{server.url}/readyz", timeout=30).json() == {"status": "ready"}


def test_a_server_killed_in_the_middle_serves_again_in_the_same_workspace(
    server: Any, start: Callable[..., Any], reference: bytes, tmp_path: Path
) -> None:
    """Last, since the server of the other tests ends here."""
    (tmp_path / "label.nii").write_bytes(reference)
    with (tmp_path / "label.nii").open("rb") as label:
        saved = requests.put(
            f"{server.url}/datastore/label",
            params={"image": "film", "tag": "final"},
            files={"label": label},
            timeout=60,
        )
    assert saved.ok, saved.text
    slow = {"text": "lungs; heart", "presence": False, "steps": 20}
    asked = threading.Thread(target=lambda: _ignore(lambda: server.infer("text_prompt", "chest_ct", **slow)))
    asked.start()
    end = time.monotonic() + 60
    while not (running := requests.get(f"{server.url}/requests/", timeout=30).json()) and time.monotonic() < end:
        time.sleep(0.05)
    assert running
    space = next((server.log.parent / "data" / "medclipsam" / "workspaces").iterdir())
    on_their_way = {file for file in (space / "tmp").rglob("*") if file.is_file()}
    assert on_their_way
    hostile = put_hostile_files(server.studies)
    children = server.children()
    server.process.send_signal(signal.SIGKILL)
    assert server.process.wait(30) == -signal.SIGKILL
    asked.join(30)
    end = time.monotonic() + 30
    while any(map(_runs, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(_runs, children))

    again = start(command, again=server)
    assert requests.get(f"{again.url}/readyz", timeout=30).json() == {"status": "ready"}
    assert mask_of(again, "film", "heart") == reference
    listed = requests.get(f"{again.url}/datastore/", params={"output": "all"}, timeout=30).json()["objects"]
    assert "final" in listed["film"]["labels"]
    kept = requests.get(f"{again.url}/datastore/label", params={"label": "film", "tag": "final"}, timeout=30)
    assert kept.ok
    assert not {file for file in on_their_way if file.exists()}

    # hostile files among the studies: each is refused or read, the others are served, and the server ends when told to
    for image in hostile:
        for route in ("datastore/image", "datastore/image/info"):
            answer = requests.get(f"{again.url}/{route}", params={"image": image}, timeout=120)
            assert answer.status_code in (200, 400, 404), answer.text
        assert again.infer("text_prompt", image, text="heart", **FAST).status_code in (200, 400, 404)
    offered = requests.post(f"{again.url}/activelearning/random", json={}, timeout=120)
    assert offered.ok
    assert mask_of(again, "film", "heart") == reference
    assert requests.get(f"{again.url}/readyz", timeout=30).json() == {"status": "ready"}
    assert again.stop() == 0


def put_hostile_files(studies: Path) -> list[str]:
    """Put files that once crashed, hung or filled a reader among the studies; returns their ids."""
    film = pydicom.dcmread(studies / "radiograph.dcm")
    film.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    film.save_as(studies / "padded.dcm", enforce_file_format=True)
    with (studies / "padded.dcm").open("ab") as file:
        file.write(bytes(1))
    film.add_new(0x00090010, "LO", "much")
    film.add_new(0x00091010, "OB", bytes(200 * 2**20))
    film.save_as(studies / "bomb.dcm", enforce_file_format=True)
    head = "NRRD0004\ntype: uchar\nencoding: raw\n"
    (studies / "pattern.nrrd").write_text(f"{head}dimension: 3\nsizes: 4 4 4\ndata file: %d%s%s%s%s 1 9 1\n\n")
    (studies / "axes.nrrd").write_text(f"{head}dimension: 16\nsizes: {'1 ' * 16}\n\nx")
    long_origin = f"space: left-posterior-superior\nspace origin: ({'1' * 100_000},0,0)"
    (studies / "long.nrrd").write_text(f"{head}dimension: 3\nsizes: 1 1 1\n{long_origin}\n\nx")
    page = Image.fromarray(np.zeros((2, 2), np.uint8))
    page.save(studies / "pages.tif", save_all=True, append_images=[page] * 3000)
    past = time.time() - 3600
    names = ["padded.dcm", "bomb.dcm", "pattern.nrrd", "axes.nrrd", "long.nrrd", "pages.tif"]
    for name in names:
        os.utime(studies / name, (past, past))
    return [name.partition(".")[0] for name in names]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _ignore(work: Callable[[], Any]) -> None:
    try:
        work()
    except requests.RequestException:
        return
