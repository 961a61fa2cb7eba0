"""A workspace that was backed up and restored is the same one."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medclipsam.active.ledger import SCHEMA, Ledger
from medclipsam.base.errors import InputError
from medclipsam.cli.main import main
from medclipsam.server.backup import backup, info, restore
from medclipsam.server.base.workspace import Workspace
from medclipsam.training.lock import TrainingLock

KEPT = {
    "audit.jsonl": b"{}\n",
    "networks/split.json": b"{}",
    "networks/network/current.json": b'{"version": 2}',
    "networks/network/1/network.json": b"one",
    "networks/network/2/weights.safetensors": bytes(range(256)) * 4096,
    "finetuned/current.json": b'{"version": 1}',
    "pairs/captions.csv": b"image,caption\n",
    "dicomweb/0123/labels/original/1.2.3.nii.gz": b"label",
}
LEFT_OUT = {
    "tmp/upload.nii.gz": b"x",
    "sessions/s/image.nii.gz": b"x",
    "dicomweb/0123/1.2.3/1.dcm": b"x",
    "networks/network/.work/state.pt": b"x",
    "app/logs/app.log": b"x",
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def rows(file: Path, table: str = "images") -> list[tuple[object, ...]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
    finally:
        connection.close()


@pytest.fixture
def space(tmp_path: Path) -> Path:
    folder = tmp_path / "space"
    with Workspace(folder):
        write(folder, {**KEPT, **LEFT_OUT})
    ledger = Ledger(folder / "rounds.sqlite")
    ledger.sync_images({"a": ("a", False), "b": ("b", True)})
    ledger.close()
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in KEPT}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_a_round_trip_keeps_what_cannot_be_made_again(space: Path, tmp_path: Path, suffix: str) -> None:
    archive, other = tmp_path / f"backup{suffix}", tmp_path / "elsewhere" / "space"
    backup(space, archive)
    assert archive.stat().st_mode & 0o077 == 0
    manifest = restore(archive, other)
    assert manifest["files"].keys() == {*KEPT, "rounds.sqlite"}
    assert content_of(other) == KEPT
    assert rows(other / "rounds.sqlite") == rows(space / "rounds.sqlite")
    assert len(rows(other / "rounds.sqlite")) == 2
    assert other.stat().st_mode & 0o077 == 0
    assert [path.name for path in other.parent.iterdir()] == ["space"]
    with Workspace(other):  # a server starts in it
        Ledger(other / "rounds.sqlite").close()


def test_what_a_running_server_has_just_written_is_kept(space: Path, tmp_path: Path) -> None:
    with Workspace(space):
        ledger = Ledger(space / "rounds.sqlite")
        ledger.sync_images({name: (name, False) for name in "abcdefgh"})
        # not yet in the file itself
        assert (space / "rounds.sqlite-wal").stat().st_size > 0
        backup(space, tmp_path / "backup.tar")
        ledger.close()
    restore(tmp_path / "backup.tar", tmp_path / "other")
    assert len(rows(tmp_path / "other" / "rounds.sqlite")) == 8


def test_a_workspace_in_use_is_not_restored(space: Path, tmp_path: Path) -> None:
    backup(space, tmp_path / "backup.tar")
    (space / "audit.jsonl").write_bytes(b"later\n")
    with Workspace(space), pytest.raises(InputError, match="in use by process"):
        restore(tmp_path / "backup.tar", space, replace=True)
    with TrainingLock(space / "networks", "network"), pytest.raises(InputError, match="trains"):
        restore(tmp_path / "backup.tar", space, replace=True)
    assert (space / "audit.jsonl").read_bytes() == b"later\n"


def test_a_workspace_that_holds_something_is_moved_aside_only_if_asked(space: Path, tmp_path: Path) -> None:
    backup(space, tmp_path / "backup.tar")
    (space / "audit.jsonl").write_bytes(b"later\n")
    with pytest.raises(InputError, match="--replace"):
        restore(tmp_path / "backup.tar", space)
    assert (space / "audit.jsonl").read_bytes() == b"later\n"
    moved = restore(tmp_path / "backup.tar", space, replace=True)["moved"]
    assert content_of(space) == KEPT
    assert (Path(moved) / "audit.jsonl").read_bytes() == b"later\n"


def test_an_empty_workspace_is_restored_into(space: Path, tmp_path: Path) -> None:
    backup(space, tmp_path / "backup.tar")
    with Workspace(tmp_path / "other"):
        pass
    assert restore(tmp_path / "backup.tar", tmp_path / "other")["moved"] is None
    assert content_of(tmp_path / "other") == KEPT


def change_byte(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    position = content.index(b"image,caption")
    content[position] ^= 1
    archive.write_bytes(content)


def cut_off(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])


def without_list(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("audit.jsonl")
        tar.addfile(member)


def with_path(name: str) -> Callable[[Path], None]:
    def damage(archive: Path) -> None:
        with tarfile.open(archive, "a") as tar:
            tar.addfile(tarfile.TarInfo(name))

    return damage


def with_link(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("audit.jsonl")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def no_archive(archive: Path) -> None:
    archive.write_bytes(b"text" * 1000)


@pytest.mark.parametrize(
    "damage",
    [change_byte, cut_off, without_list, with_path("../outside"), with_path("/outside"), with_link, no_archive],
)
def test_a_damaged_archive_changes_nothing(space: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    archive = tmp_path / "backup.tar"
    backup(space, archive)
    damage(archive)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError):
        restore(archive, tmp_path / "other")
    with pytest.raises(InputError):
        restore(archive, space, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert content_of(space) == KEPT


def test_a_ledger_of_a_later_version_is_not_restored(space: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(space / "rounds.sqlite")
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    backup(space, tmp_path / "backup.tar")
    with pytest.raises(InputError, match="later version"):
        restore(tmp_path / "backup.tar", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["backup.zip", "space/backup.tar", "there.tar", "no/such/folder.tar"])
def test_places_that_no_backup_can_have(space: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "there.tar").write_bytes(b"")
    with pytest.raises(InputError):
        backup(space, tmp_path / name)
    assert (tmp_path / "there.tar").read_bytes() == b""


def test_an_empty_or_missing_workspace_has_no_backup(tmp_path: Path) -> None:
    with Workspace(tmp_path / "space"):
        pass
    for folder in ("space", "none"):
        with pytest.raises(InputError):
            backup(tmp_path / folder, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


def test_info_tells_what_is_there(space: Path) -> None:
    found = info(space)
    assert (found.ledger_format, found.images, found.labels, found.rounds) == (SCHEMA, 2, 0, 1)
    assert found.networks == {"network": 2}
    assert found.in_use_by is None
    assert found.kept == sum(map(len, KEPT.values())) + (space / "rounds.sqlite").stat().st_size
    with Workspace(space):
        assert str(info(space).in_use_by).startswith("process ")


def test_the_commands(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, other = str(tmp_path / "b.tar.gz"), str(tmp_path / "other")
    assert main(["workspace", "backup", archive, "--workspace", str(space)]) == 0
    assert main(["workspace", "restore", archive, "--workspace", other]) == 0
    capsys.readouterr()
    assert main(["workspace", "info", "--workspace", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert main(["workspace", "restore", archive, "--workspace", other]) == 2
    assert main(["workspace", "info"]) == 2
