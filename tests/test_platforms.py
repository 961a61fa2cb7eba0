"""What works without the modules of Unix and without the packages of the extras."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medclipsam.base.extras import EXTRA_OF, MissingExtraError, missing_extra

LIBRARY = Path(__file__).parents[1] / "lib" / "medclipsam"
UNIX = ("fcntl", "resource", "pwd", "grp", "termios")
# Attributes of os and signal that Windows lacks.
UNIX_NAMES = {
    *("fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "setuid", "setgid", "setsid", "getpgid", "killpg"),
    *("chown", "fchown", "lchown", "chroot", "nice", "getloadavg", "sched_getaffinity", "statvfs", "wait3", "wait4"),
    *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "SIGQUIT", "pause", "alarm", "setitimer"),
}
PROBE = '''
import contextlib, importlib, io, json, sys, warnings
blocked = set(sys.argv[1].split(","))
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]

class Without:
    """A finder that finds none of the blocked, as where they are not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
warnings.simplefilter("ignore")
from medclipsam.cli.main import main
answers = []
for arguments in json.loads(sys.argv[2]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = leaving.code
    answers.append([code, errors.getvalue()])
for name in sys.argv[4:]:
    importlib.import_module(f"medclipsam.{name}")
from pathlib import Path
from medclipsam.training.lock import TrainingLock, holder_of
place = Path(sys.argv[3])
with TrainingLock(place, "network"):
    answers.append(holder_of(place) is not None)
answers.append(holder_of(place) is None)
print(json.dumps(answers))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bare")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(place / "image.png")
    (place / "rounds.sqlite").write_bytes(b"")
    return place


def run(folder: Path, *commands: list[str], modules: Sequence[str] = ()) -> list[Any]:
    """Return code and errors of commands where neither Unix's modules nor any extra's packages are there."""
    blocked = ",".join([*UNIX, *EXTRA_OF])
    command = [sys.executable, "-c", PROBE, blocked, json.dumps(commands), str(folder / "networks"), *modules]
    # Windows names its user so; MONAI's import asks for the name
    environment = {**os.environ, "USERNAME": "ann"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_a_missing_extra_is_one_line_that_names_it_and_locks_need_no_unix(folder: Path) -> None:
    serve, rounds, held, free = run(
        folder, ["serve", "--studies", str(folder)], ["rounds", "show", "--workspace", str(folder)]
    )
    for code, errors in (serve, rounds):
        assert code == 2
        (line,) = errors.strip().splitlines()
        assert "pip install 'medclipsam[server]'" in line
    assert held
    assert free


def test_segmenting_evaluating_and_training_need_neither_unix_nor_extras(folder: Path) -> None:
    lungs = ["segment", str(folder / "image.png"), "--text", "lungs", "--modality", "CR", "--saliency", "patch_text"]
    mask, nrrd, *_ = run(
        folder,
        [*lungs, "--out", str(folder / "mask.nii.gz")],
        [*lungs, "--out", str(folder / "mask.nrrd")],
        modules=("evaluation.command", "evaluation.runner", "finetune.run", "training.run"),
    )
    assert mask[0] == 0, mask[1]
    assert (folder / "mask.nii.gz").is_file()
    assert nrrd[0] == 2
    assert "pip install 'medclipsam[server]'" in nrrd[1]


@pytest.mark.parametrize("module", sorted(EXTRA_OF))
def test_each_optional_module_leads_to_its_extra(module: str) -> None:
    found = missing_extra(ModuleNotFoundError(module, name=f"{module}.part"))
    assert isinstance(found, MissingExtraError)
    assert found.extra == EXTRA_OF[module]
    assert f"medclipsam[{found.extra}]" in str(found)


def test_other_missing_modules_are_no_extras() -> None:
    assert missing_extra(ModuleNotFoundError("x", name="medclipsam.nonesuch")) is None
    assert missing_extra(ModuleNotFoundError("x")) is None


def test_no_name_of_unix_alone_is_used() -> None:
    found = []
    for file in LIBRARY.rglob("*.py"):
        if file.name == "pacs.py" and file.parent.name == "demo":  # starts Debian's Orthanc
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in ("os", "signal") and node.attr in UNIX_NAMES:
                    found.append(f"{file.name}:{node.lineno} {node.attr}")
            elif isinstance(node, ast.Import):
                found += [f"{file.name}:{node.lineno} {name.name}" for name in node.names if name.name in UNIX]
    assert found == []
