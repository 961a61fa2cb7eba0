"""What the doctor finds, on recorded machines, real folders and small DICOMweb servers of every kind."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medclipsam.active import LEDGER_FILE
from medclipsam.active.ledger import SCHEMA, Ledger
from medclipsam.base import engine
from medclipsam.base.devices import Gpu, Machine
from medclipsam.cli.main import main
from medclipsam.server import doctor
from medclipsam.server.base.workspace import Workspace, default_workspace
from medclipsam.server.doctor import Check
from medclipsam.studies.identity import ID_FILE, remember

GIB = 2**30
GPU = Gpu("NVIDIA L4", (8, 9), 24 * GIB, 20 * GIB)
MACHINE = Machine(torch_cuda="13.0", memory=16 * GIB, memory_total=32 * GIB)
ON_GPU = replace(MACHINE, torch_archs=("sm_80", "sm_90"), gpus=(GPU,), driver="580.95.05", driver_gpus=(GPU.name,))


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS", raising=False)
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MONAI_LABEL_DICOMWEB_{name}", raising=False)
    return tmp_path / "data"


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_good_machine_passes_and_nothing_is_made(data_home: Path) -> None:
    checks = doctor.examine(machine=MACHINE)
    assert [check.status for check in checks] == ["ok"] * 6
    assert [check.name for check in checks] == ["versions", "gpu", "engine", "weights", "memory", "workspace"]
    assert not data_home.exists()


def test_report_has_one_line_each_and_json_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert [line.split()[:2] for line in lines] == [[check["status"], check["name"]] for check in answer["checks"]]


def test_what_fails_is_exit_code_1_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--weights", "biomedclip+medsam", "--device", "cpu"]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if " weights " in line)
    assert line.startswith("failed")
    assert "Run `medclipsam weights fetch biomedclip+medsam`" in line


def test_an_impossible_device_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda:x"]) == 2
    assert "'cuda:x'" in capsys.readouterr().err


# Versions


def version_of(**versions: str) -> Callable[[str], str]:
    def find(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    return find


def requirements() -> list[str]:
    return ["torch>=2.4", 'monailabel==0.8.5; extra == "server"', 'pytest>=8; extra == "test"']


def test_versions_are_held_to_what_the_package_asks_for() -> None:
    good = doctor.check_versions(version_of(torch="2.15.0+cu130", monailabel="0.8.5"), requirements, (3, 11, 7))
    assert good.status == "ok"
    assert "torch 2.15.0+cu130, monailabel 0.8.5" in good.found
    old = doctor.check_versions(version_of(torch="2.3.9", monailabel="0.8.50"), requirements, (3, 12, 0))
    assert old.status == "failed"
    assert "Python 3.12 is not 3.11" in old.found
    assert "torch 2.3.9 is not >=2.4" in old.found
    assert "monailabel 0.8.50 is not ==0.8.5" in old.found


def test_what_only_the_tests_need_may_be_missing_and_nothing_else() -> None:
    check = doctor.check_versions(version_of(torch="2.15.0"), requirements, (3, 11, 7))
    assert check.found == "monailabel is not installed."


# GPU and memory


@pytest.mark.parametrize(
    ("machine", "device", "status", "words"),
    [
        (MACHINE, None, "ok", ["no NVIDIA GPU", "CPU is used", "13.0"]),
        (MACHINE, "cuda", "failed", ["no NVIDIA GPU", "cuda was asked for"]),
        (ON_GPU, None, "ok", ["NVIDIA L4", "580.95.05", "13.0"]),
        (ON_GPU, "cuda:1", "failed", ["no cuda:1", "1 GPU"]),
        (replace(ON_GPU, gpus=(), driver="470.1"), None, "warning", ["470.1", "580"]),
        (replace(ON_GPU, gpus=(), driver="470.1"), "cuda", "failed", ["470.1", "Update it"]),
        (replace(ON_GPU, gpus=(), driver="470.1"), "cpu", "ok", ["asked for"]),
    ],
)
def test_the_gpu_is_judged_by_what_was_asked_for(
    machine: Machine, device: str | None, status: str, words: list[str]
) -> None:
    check = doctor.check_gpu(machine, device)
    assert check.status == status
    for word in words:
        assert word in f"{check.found} {check.advice}"
    assert bool(check.advice) is (status != "ok")


def test_memory_is_held_to_the_need_of_the_weights() -> None:
    # 747 + 2446 MiB of parameters and 2510 MiB of work
    fits, main_memory = doctor.check_memory(ON_GPU, "biomedclip", None)
    assert (fits.name, fits.status) == ("gpu memory", "ok")
    assert "need 6.0 GB" in fits.found
    assert main_memory.status == "ok"
    tight = doctor.check_memory(replace(ON_GPU, gpus=(replace(GPU, free=5 * GIB),)), "biomedclip", None)[0]
    assert tight.status == "warning"
    small = doctor.check_memory(replace(ON_GPU, gpus=(replace(GPU, free=5 * GIB, total=5 * GIB),)), "biomedclip", None)[
        0
    ]
    assert small.status == "failed"
    (on_cpu,) = doctor.check_memory(replace(ON_GPU, memory=GIB, memory_total=2 * GIB), "biomedclip", "cpu")
    assert (on_cpu.name, on_cpu.status) == ("memory", "failed")
    (unknown,) = doctor.check_memory(MACHINE, "nobody", None)
    assert (unknown.status, "not known" in unknown.found) == ("ok", True)
    assert doctor.check_memory(Machine(), "demo", None)[0].status == "warning"


# Weights and workspace


def test_damaged_weights_are_found_by_their_hash(tmp_path: Path) -> None:
    import shutil

    from medclipsam.weights import REGISTRY

    pair = tmp_path / "pair"
    shutil.copytree(REGISTRY["demo_clip"].folder, pair)
    assert doctor.check_weights(str(pair)).status == "ok"
    with (pair / "sam.safetensors").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff\x00\xff")
    check = doctor.check_weights(str(pair))
    assert check.status == "failed"
    assert "sam.safetensors" in check.found
    assert "sha256" in check.found


def test_a_workspace_in_use_names_its_server_and_is_free_again_afterwards(tmp_path: Path) -> None:
    with Workspace(tmp_path / "space"):
        check = doctor.check_workspace(tmp_path / "space")
        assert check.status == "warning"
        assert f"in use by process {os.getpid()}" in check.found
    check = doctor.check_workspace(tmp_path / "space")
    assert check.status == "ok"
    with Workspace(tmp_path / "space"):
        pass


def test_a_workspace_that_others_can_read_or_that_is_a_file_is_told(tmp_path: Path) -> None:
    with Workspace(tmp_path / "space") as space:
        space.folder.chmod(0o755)
    assert "mode 755" in doctor.check_workspace(tmp_path / "space").found
    (tmp_path / "file").write_text("")
    assert doctor.check_workspace(tmp_path / "file").status == "failed"


@pytest.mark.parametrize(("free", "status"), [(10 * GIB, "ok"), (GIB, "warning"), (1000, "failed")])
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    check = doctor.check_workspace(tmp_path / "not" / "made" / "yet")
    assert check.status == status
    assert not (tmp_path / "not").exists()


def test_a_folder_without_the_right_to_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the super-user, whom tests may run as, may write everywhere
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: not mode & os.W_OK)
    assert "not writable" in doctor.check_workspace(tmp_path / "space").found
    assert doctor.check_folder(tmp_path).status == "failed"


def test_the_workspace_is_that_of_the_studies(tmp_path: Path) -> None:
    (tmp_path / "chest").mkdir()
    checks = doctor.examine(studies=str(tmp_path / "chest"), machine=MACHINE)
    assert "/workspaces/chest-" in named(checks, "workspace").found
    assert named(checks, "studies").status == "ok"
    assert named(doctor.examine(studies=str(tmp_path / "no"), machine=MACHINE), "studies").status == "failed"


# PACS

STUDY = json.dumps([{"0020000D": {"vr": "UI", "Value": ["1.2.3"]}}])


@pytest.fixture
def pacs() -> Iterator[Callable[..., str]]:
    """Return a function that starts a server with one answer, behind a log-in where one is given."""
    servers = []

    def start(status: int, body: str, login: tuple[str, str] | None = None) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                expected = "Basic " + base64.b64encode(":".join(login or ()).encode()).decode()
                code = 401 if login and self.headers.get("Authorization") != expected else status
                assert self.path.startswith("/dicom-web/studies?limit=1")
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body.encode() if code == status and code != 204 else b"")

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/dicom-web"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        (200, STUDY, "ok", "answers searches"),
        (200, "[]", "warning", "no study"),
        (204, "", "warning", "no study"),
        (200, "<html>log in here</html>", "failed", "something else than DICOM JSON"),
        (200, '{"error": "x"}', "failed", "something else than DICOM JSON"),
        (404, "", "failed", "404"),
        (500, "", "failed", "500"),
    ],
)
def test_a_pacs_is_judged_by_its_answer_to_a_search(
    pacs: Callable[..., str], status: int, body: str, expected: str, words: str
) -> None:
    check = doctor.check_pacs(pacs(status, body))
    assert check.status == expected
    assert words in check.found


def test_credentials_are_used_and_missing_or_wrong_ones_told(
    pacs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = pacs(200, STUDY, ("reader", "secret"))
    missing = doctor.check_pacs(url)
    assert (missing.status, "asks for credentials" in missing.found) == ("failed", True)
    assert "MONAI_LABEL_DICOMWEB_USERNAME" in missing.advice
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "wrong")
    assert "refuses the credentials" in doctor.check_pacs(url).found
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "secret")
    assert doctor.check_pacs(url).status == "ok"


def test_no_credentials_are_shown() -> None:
    check = doctor.check_pacs("http://reader:secret@127.0.0.1:9/dicom-web")
    assert check.status == "failed"
    assert "http://127.0.0.1:9/dicom-web" in check.found
    assert "secret" not in check.found + check.advice


@pytest.mark.parametrize(("version", "status"), [(SCHEMA, "ok"), (SCHEMA + 1, "failed")])
def test_a_ledger_of_a_newer_version_fails(tmp_path: Path, version: int, status: str) -> None:
    Ledger(tmp_path / LEDGER_FILE)
    with closing(sqlite3.connect(tmp_path / LEDGER_FILE)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    assert named(doctor.examine(workspace=tmp_path, machine=MACHINE), "ledger").status == status
    with closing(sqlite3.connect(tmp_path / LEDGER_FILE)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (version,)


def test_a_damaged_ledger_fails_and_a_missing_one_does_not(tmp_path: Path) -> None:
    assert doctor.check_ledger(tmp_path).status == "ok"
    (tmp_path / LEDGER_FILE).write_bytes(b"no database" * 100)
    assert doctor.check_ledger(tmp_path).status == "failed"


def test_the_workspace_of_a_moved_folder_is_found_or_told(tmp_path: Path, data_home: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    place = default_workspace(str(studies))
    with Workspace(place):
        remember(studies, place)
    studies.rename(tmp_path / "moved")
    assert default_workspace(str(tmp_path / "moved")) == place
    # without the id, a folder of the same name elsewhere
    (tmp_path / "moved" / ID_FILE).unlink()
    (tmp_path / "new").mkdir()
    (tmp_path / "moved").rename(tmp_path / "new/studies")
    check = named(doctor.examine(studies=str(tmp_path / "new/studies"), machine=MACHINE), "workspace")
    assert check.status == "warning"
    assert str(place) in check.found


# The engine


def test_the_engine_is_told_and_an_impossible_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = engine.Choice("an encoder", "openvino", 2.0, 0.5, 0.0)
    monkeypatch.setattr(doctor, "choices", lambda: [measured])
    monkeypatch.delenv(engine.VARIABLE, raising=False)
    check = doctor.check_engine(MACHINE, None)
    assert check.status == "ok"
    assert "an encoder: openvino, 4.0 x" in check.found
    assert "OpenVINO" not in doctor.check_engine(ON_GPU, None).found
    monkeypatch.setenv(engine.VARIABLE, "openvino")
    assert doctor.check_engine(ON_GPU, None).status == "failed"
    assert doctor.check_engine(ON_GPU, "cpu").status == "ok"
    monkeypatch.setenv(engine.VARIABLE, "nonsense")
    assert doctor.check_engine(MACHINE, None).status == "failed"

    monkeypatch.delenv(engine.VARIABLE)
    monkeypatch.setattr(engine, "_version", lambda package: None)
    check = doctor.check_engine(MACHINE, None)
    assert (check.status, "OpenVINO" in check.found) == ("ok", False)
    assert "medclipsam[engine]" in check.advice
    assert not doctor.check_engine(ON_GPU, None).advice


def test_the_doctor_loads_no_torch_where_no_gpu_can_be(tmp_path: Path) -> None:
    code = """
import sys
from medclipsam.base import devices
from medclipsam.cli.main import main
devices.may_have_gpu = lambda: False
devices.pci_gpus = lambda folder: 0
devices._run_smi = lambda: ("", "")
assert main(["doctor", "--studies", sys.argv[1], "--workspace", sys.argv[1]]) in (0, 1)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gpu" in done.stdout
