"""Archives unpack inside their folder or not at all."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from medclipsam.base.errors import InputError, TooLargeError
from medclipsam.imaging.archives import unpack

MB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    return inside


def zipped(tmp_path: Path, entries: dict[str, bytes]) -> Path:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def rolled(tmp_path: Path, members: list[tarfile.TarInfo], mode: str = "w:gz") -> Path:
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = (size if kind == tarfile.REGTYPE else 0), kind, link
    return made


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if not path.is_dir()}


def test_a_zip_with_folders(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path, {"a.dcm": b"one", "series/b.dcm": b"two"})
    assert unpack(archive, folder, max_bytes=MB) == 2
    assert (folder / "a.dcm").read_bytes() == b"one"
    assert (folder / "series" / "b.dcm").read_bytes() == b"two"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives(tmp_path: Path, folder: Path, mode: str) -> None:
    archive = rolled(tmp_path, [member("./a.dcm"), member("s/b.dcm"), member("s", kind=tarfile.DIRTYPE)], mode)
    assert unpack(archive, folder, max_bytes=MB) == 2
    assert everything(folder) == {"inside/a.dcm", "inside/s/b.dcm"}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..\\x", "C:\\x", "a/../x"])
def test_an_entry_outside_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    for archive in (zipped(tmp_path, {name: b"x"}), rolled(tmp_path, [member(name)])):
        with pytest.raises(InputError, match="outside"):
            unpack(archive, folder, max_bytes=MB)
    assert everything(folder) == set()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, folder: Path, kind: bytes) -> None:
    archive = rolled(tmp_path, [member("a", kind=kind, link="/etc/passwd")])
    with pytest.raises(InputError, match="no plain file"):
        unpack(archive, folder, max_bytes=MB)
    assert everything(folder) == set()


def test_a_link_in_a_zip_is_refused(tmp_path: Path, folder: Path) -> None:
    entry = zipfile.ZipInfo("a")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="no plain file"):
        unpack(tmp_path / "a.zip", folder, max_bytes=MB)


def test_a_bomb_is_stopped_while_it_unpacks(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path, {"bomb": b"\0" * (20 * MB)})
    assert archive.stat().st_size < MB
    with pytest.raises(TooLargeError, match="more than 4 MiB"):
        unpack(archive, folder, max_bytes=4 * MB)
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 5 * MB


def test_too_many_files_and_a_name_twice(tmp_path: Path, folder: Path) -> None:
    archive = zipped(tmp_path, {str(number): b"" for number in range(11)})
    with pytest.raises(TooLargeError, match="more than 10 files"):
        unpack(archive, folder, max_bytes=MB, max_files=10)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(rolled(tmp_path, [member("twice"), member("twice")]), folder, max_bytes=MB)


def test_what_is_no_archive_or_a_damaged_one(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "x.zip"
    other.write_bytes(os.urandom(2000))
    with pytest.raises(InputError, match="no zip or tar"):
        unpack(other, folder, max_bytes=MB)
    whole = zipped(tmp_path, {"a": os.urandom(5000)}).read_bytes()
    damaged = bytearray(whole)
    damaged[2000:2100] = b"\0" * 100
    other.write_bytes(damaged)
    with pytest.raises(InputError, match="damaged"):
        unpack(other, folder, max_bytes=MB)
    with pytest.raises(InputError, match="holds no file"):
        unpack(rolled(tmp_path, [member("empty", kind=tarfile.DIRTYPE)]), folder, max_bytes=MB)
