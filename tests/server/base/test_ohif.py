"""The viewer's package: checked, unpacked whole, served from anywhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from medclipsam.base.errors import InputError
from medclipsam.base.files import file_sha256
from medclipsam.cli.main import main
from medclipsam.server.base import ohif

FILES = {
    "package/package.json": "{}",
    "package/dist/index.html": "<script>window.PUBLIC_URL='/'</script>",
    "package/dist/app.bundle.1.js": 'a();\n__webpack_require__.p = "/";\nb();',
    "package/dist/app.bundle.css": "@font-face{src:url(/a.woff2)}",
    "package/dist/app.bundle.1.js.map": "{}",
    "package/dist/ort/ort.js": "",
    "package/dist/assets/logo.svg": "<svg/>",
}


def pack(file: Path, files: dict[str, str]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ohif.VARIABLE, str(tmp_path / "viewer"))
    return tmp_path / "viewer"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = pack(tmp_path / "app.tgz", FILES)
    monkeypatch.setattr(ohif, "SHA256", file_sha256(made))
    return made


def test_the_files_are_unpacked_and_find_each_other_anywhere(home: Path, package: Path) -> None:
    assert ohif.installed_viewer() is None
    folder = ohif.install_viewer(package, quiet=True)
    assert ohif.installed_viewer() == folder
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {"index.html", "app.bundle.1.js", "app.bundle.css", "assets/logo.svg"}
    script = (folder / "app.bundle.1.js").read_text()
    assert '.p = "/"' not in script
    assert script.startswith("a();")
    assert script.endswith("b();")
    assert "url(./a.woff2)" in (folder / "app.bundle.css").read_text()
    # nothing else is left, and a second call keeps what is there
    assert [file.name for file in home.iterdir()] == [folder.name]
    assert ohif.install_viewer(Path("/no/such/file"), quiet=True) == folder


def test_another_package_is_refused_and_nothing_is_left(home: Path, tmp_path: Path) -> None:
    other = pack(tmp_path / "other.tgz", FILES)
    with pytest.raises(InputError, match=file_sha256(other)):
        ohif.install_viewer(other, quiet=True)
    assert list(home.iterdir()) == []
    with pytest.raises(InputError, match="absent"):
        ohif.install_viewer(tmp_path / "absent.tgz", quiet=True)


def test_a_registry_that_does_not_answer_is_told_and_nothing_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(home.parent / "cache"))
    with pytest.raises(InputError, match="--file"):
        ohif.install_viewer(quiet=True)
    assert list(home.iterdir()) == []


def test_a_broken_archive_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.tgz"
    broken.write_bytes(pack(tmp_path / "whole.tgz", FILES).read_bytes()[:200])
    monkeypatch.setattr(ohif, "SHA256", file_sha256(broken))
    with pytest.raises(InputError, match=r"broken\.tgz"):
        ohif.install_viewer(broken, quiet=True)
    assert list(home.iterdir()) == []


def test_no_file_is_written_outside_of_the_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = pack(tmp_path / "bad.tgz", {"package/dist/../../../../evil.js": "x", **FILES})
    monkeypatch.setattr(ohif, "SHA256", file_sha256(bad))
    with pytest.raises(InputError):
        ohif.install_viewer(bad, quiet=True)
    assert not list(tmp_path.rglob("evil.js"))


def test_the_command_installs_and_tells(home: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["viewer", "info"]) == 1
    assert "medclipsam viewer install" in capsys.readouterr().out
    assert main(["viewer", "install", "--file", str(package), "--quiet"]) == 0
    assert str(home) in capsys.readouterr().out
    assert main(["viewer", "info"]) == 0
