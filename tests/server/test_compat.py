"""The stand-in for the module that pydicom 3 removed: what it answers for, and that installing brings it."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import medclipsam_compat

ROOT = Path(__file__).parents[2]
PTH_NAME = "medclipsam_compat.pth"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name", ["pydicom", "pydicom.uid", "pydicom._storage_sopclass_uid", "_storage_sopclass_uids", "nonesuch"]
)
def test_finder_answers_for_no_other_name(name: str) -> None:
    assert medclipsam_compat.RemovedPydicomModule.find_spec(name) is None


def test_stand_in_holds_the_uid_of_segmentation_storage() -> None:
    import pydicom._storage_sopclass_uids as removed

    assert removed.SegmentationStorage == "1.2.840.10008.5.1.4.1.1.66.4"
    assert not hasattr(removed, "CTImageStorage")


def test_finder_is_last_in_line_and_installed_once() -> None:
    medclipsam_compat.install()
    assert sys.meta_path.count(medclipsam_compat.RemovedPydicomModule) == 1


def test_a_module_of_that_name_that_really_exists_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "pydicom").mkdir()
    (tmp_path / "pydicom" / "__init__.py").write_text("")
    (tmp_path / "pydicom" / "_storage_sopclass_uids.py").write_text("SegmentationStorage = 'the real one'\n")
    code = "import pydicom._storage_sopclass_uids as m; print(m.SegmentationStorage)"
    assert run(sys.executable, "-c", f"import medclipsam_compat; {code}", cwd=tmp_path).strip() == "the real one"


def test_starting_an_interpreter_imports_nothing_more_for_it() -> None:
    code = "import medclipsam_compat, sys; print('pydicom' in sys.modules, 'importlib.abc' in sys.modules)"
    bare = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'lib')!r}); {code}"]
    assert run(*bare).split() == ["False", "False"]


def test_the_servers_adapters_need_no_pth_file() -> None:
    # as if no .pth file had put the finder in place
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") != "medclipsam_compat"]
sys.modules.pop("medclipsam_compat", None)
import medclipsam.server.monai_label.upstream, pydicom_seg
print("ready")
"""
    assert "ready" in run(sys.executable, "-c", code)


def test_monailabel_imports_in_a_fresh_interpreter() -> None:
    assert "ready" in run(sys.executable, "-c", "import monailabel.app; print('ready')")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, so that a build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__", "weights", "*.egg-info"))
    for name in ("README.md", "LICENSE"):
        (folder / name).write_text("\n")
    return folder


@pytest.fixture
def bare_venv(tmp_path: Path) -> Path:
    """The interpreter of a new environment that sees this one's packages but none of its `.pth` files."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "zz_outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def build_wheel(source: Path, out: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source)
    return next(out.glob("*.whl"))


def build_editable_wheel(source: Path, out: Path) -> Path:
    out.mkdir()
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_editable({str(out)!r})", cwd=source)
    return next(out.glob("*.whl"))


@pytest.mark.parametrize("build", [build_wheel, build_editable_wheel])
def test_installing_puts_the_stand_in_in_place(build, source: Path, bare_venv: Path, tmp_path: Path) -> None:
    wheel = build(source, tmp_path / "out")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(PTH_NAME).decode() == "import medclipsam_compat\n"

    ask = "import sys; import pydicom_seg; print(sys.modules['pydicom._storage_sopclass_uids'].SegmentationStorage)"
    before = subprocess.run([bare_venv, "-c", ask], capture_output=True, text=True, check=False)
    assert "_storage_sopclass_uids" in before.stderr

    run(sys.executable, "-m", "pip", "--python", bare_venv, "install", "-q", "--no-deps", "--no-index", wheel)
    assert run(bare_venv, "-c", ask).strip() == "1.2.840.10008.5.1.4.1.1.66.4"
    spawned = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {ask!r}]))"
    assert run(bare_venv, "-c", spawned).strip() == "1.2.840.10008.5.1.4.1.1.66.4"
