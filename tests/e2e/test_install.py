"""The built wheel in an environment of its own, outside the repository, and what the Dockerfile builds from."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from medclipsam.base.metrics import dice
from medclipsam.demo.phantoms import make_phantom

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
# Prints the help of every command, by command.
HELPS = """
import argparse, json
from medclipsam.cli.main import make_parser
def helps(parser):
    yield parser.prog, parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from helps(child)
print(json.dumps(dict(helps(make_parser()))))
"""


@dataclass
class Instruction:
    """One instruction of a Dockerfile."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of a command, in either of its forms."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage of the Dockerfile."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, text = line.partition(" ")
        if name == "FROM":
            found.append([])
        if name:
            found[-1].append(Instruction(name, text.strip()))
    return found


def of(stage: Sequence[Instruction], name: str) -> list[Instruction]:
    return [instruction for instruction in stage if instruction.name == name]


def copied() -> list[str]:
    """Return what the first stage takes from the repository."""
    return [word for copy in of(stages()[0], "COPY") for word in copy.words[:-1]]


def run(*command: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the Dockerfile copies and nothing else."""
    folder = tmp_path_factory.mktemp("context")
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder)
    return folder


@dataclass
class Environment:
    """A new environment that has this one's packages, but not this repository's."""

    folder: Path
    python: Path
    wheel: Path

    def medclipsam(self, *arguments: str | Path) -> str:
        return run(self.python.with_name("medclipsam"), *arguments, cwd=self.folder, environment=self.variables)

    @property
    def variables(self) -> dict[str, str]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG_"))}
        return {**outside, "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def installed(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "zz_outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # The Dockerfile's own line, with its pip at work on the new environment.
    (line,) = [each.words for each in of(stages()[0], "RUN") if each.words[-1] == "."]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    assert line[:2] == ["pip", "install"]
    wheel = ["wheel", "--quiet", *line[2:-1], "--no-index", "--wheel-dir", str(folder / "wheels"), "."]
    run(*pip, *wheel, cwd=context)
    (made,) = (folder / "wheels").glob("*.whl")
    run(*pip, *line[1:-1], "--quiet", "--no-index", made, cwd=folder)
    return Environment(folder, python, made)


def test_wheel_holds_the_package_and_nothing_else(installed: Environment) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("medclipsam")} == set()
    data = [path for path in (ROOT / "lib" / "medclipsam").rglob("*") if path.suffix in (".yaml", ".safetensors")]
    for path in [*data, ROOT / "lib" / "medclipsam" / "py.typed"]:
        assert str(path.relative_to(ROOT / "lib")) in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_package_is_the_one_that_is_imported(installed: Environment) -> None:
    code = "import medclipsam; print(medclipsam.__file__, medclipsam.__version__)"
    file, version = run(installed.python, "-c", code, cwd=installed.folder, environment=installed.variables).split()
    assert Path(file).is_relative_to(installed.folder)
    assert f"-{version}-" in installed.wheel.name
    assert installed.medclipsam("--version").strip() == version


def test_help_of_every_command_names_no_file_that_the_wheel_lacks(installed: Environment) -> None:
    helps = json.loads(run(installed.python, "-c", HELPS, cwd=installed.folder, environment=installed.variables))
    assert {"medclipsam segment", "medclipsam train run", "medclipsam serve"} <= helps.keys()
    assert {name for name, text in helps.items() if "docs/" in text} == set()


def test_installed_command_segments(installed: Environment) -> None:
    phantom = make_phantom("US", 1, pathology=True)
    Image.fromarray(phantom.image).save(installed.folder / "breast.png")
    installed.medclipsam("segment", "breast.png", "--modality", "US", "--text", "breast tumour", "--out", "mask.png")
    found = np.asarray(Image.open(installed.folder / "mask.png")) > 0
    assert dice(found, phantom.masks["breast tumour"]) > 0.5


def test_installed_command_trains(installed: Environment, tumours: Any) -> None:
    studies = installed.folder / "labelled"
    (studies / "labels" / "final").mkdir(parents=True)
    tumours.draw(studies)
    for name, truth in tumours.truths.items():
        Image.fromarray(truth.astype(np.uint8)).save(studies / "labels" / "final" / f"{name}.png")
    options = {**tumours.training, "epochs": 2, "iterations": 5}
    flags = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))]
    split = ["--validation-share", str(tumours.split.share), "--validation-seed", str(tumours.split.seed)]
    workspace = installed.folder / "workspace"
    environment = installed.variables
    command = [installed.python.with_name("medclipsam"), "train", "run", "--studies", studies, "--workspace", workspace]
    # 1: it was trained and measured, and is not published because it is not good enough after two epochs
    done = subprocess.run(
        [*command, *split, *flags], cwd=installed.folder, capture_output=True, check=False, env=environment
    )
    assert done.returncode in (0, 1), done.stderr
    history = json.loads(installed.medclipsam("train", "history", "--workspace", workspace, "--json"))
    (network,) = history["networks"]
    assert network["data"]["training"]["final"] + network["data"]["validation"] == len(tumours.names)


def test_installed_command_serves_as_the_dockerfile_starts_it(
    installed: Environment, start: Callable[..., Any], tmp_path: Path
) -> None:
    token = "a-token-of-the-test-000"
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann admin {token}\n")
    tokens.chmod(0o600)
    final = stages()[-1]
    (entry,), (default,), (health,) = (of(final, name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))

    def command(studies: Path, port: int) -> list[str]:
        given = {
            "/studies": str(studies),
            "/workspace": str(tmp_path / "workspace"),
            "/run/secrets/tokens": str(tokens),
            "0.0.0.0": "127.0.0.1",
        }
        program = [str(installed.python.with_name(word)) for word in entry.words]
        return [*program, *(given.get(word, word) for word in default.words), "--port", str(port)]

    # an empty value: the server must not find the repository's package
    server = start(command, PYTHONPATH="", PYTHONNOUSERSITE="1")
    log_in = {"Authorization": f"Bearer {token}"}
    asked = {"params": json.dumps({"text": "both lungs", "result_extension": ".nii.gz"})}
    answer = requests.post(
        f"{server.url}/infer/text_prompt?image=film&output=json", data=asked, headers=log_in, timeout=120
    )
    assert answer.ok, answer.text
    assert requests.get(f"{server.url}/info/", timeout=60).status_code == 401

    words = json.loads(health.text[health.text.index("[") :])
    check = [str(installed.python), *(word.replace("http://127.0.0.1:8000", server.url) for word in words[1:])]
    assert words[0] == "python"
    run(*check, cwd=tmp_path)
    server.stop()
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_image_is_made_in_stages_and_runs_as_a_user_without_rights() -> None:
    build, final = stages()
    assert not any("pip" in each.words for each in of(final, "RUN"))
    assert [copy.words[0] for copy in of(final, "COPY")] == [f"--from={build[0].words[-1]}"]
    (user,) = of(final, "USER")
    assert all(int(number) > 0 for number in user.text.split(":"))
    assert final.index(user) > max(final.index(each) for each in of(final, "RUN"))
    assert of(final, "HEALTHCHECK")
    assert of(final, "CMD")


def test_image_installs_the_runtime_lock_alone_and_every_file_that_it_copies_is_let_through() -> None:
    locks = [word for each in of(stages()[0], "RUN") for word in each.words if word.endswith(".txt")]
    assert locks == ["requirements.txt"]
    assert any("--require-hashes" in each.words for each in of(stages()[0], "RUN"))
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    for name in copied():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("useradd"), reason="needs root and useradd")
def test_commands_that_make_the_image_s_user_run(tmp_path: Path) -> None:
    (line,) = of(stages()[-1], "RUN")
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group", "shadow", "gshadow"):
        (tmp_path / "etc" / name).touch(mode=0o600)
    shutil.copy("/etc/login.defs", tmp_path / "etc")
    add, make = line.text.split(" && ")
    run(*shlex.split(add.replace("useradd", f"useradd --prefix {tmp_path}")), cwd=tmp_path)
    name, _, uid, gid, *_ = (tmp_path / "etc" / "passwd").read_text().split(":")
    (user,) = of(stages()[-1], "USER")
    assert user.text == f"{uid}:{gid}"
    words = [{name: uid}.get(word, word) for word in shlex.split(make)]
    run(*(f"{tmp_path}{word}" if word.startswith("/") else word for word in words), cwd=tmp_path)
    (volume,) = of(stages()[-1], "VOLUME")
    for path in volume.words:
        state = (tmp_path / path.lstrip("/")).stat()
        assert (state.st_uid, state.st_mode & 0o777) == (int(uid), 0o700)
