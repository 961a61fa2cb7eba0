import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medclipsam.base.errors import InputError
from medclipsam.server.base.workspace import Workspace, default_workspace


def test_workspace_is_private_and_holds_the_app(tmp_path: Path) -> None:
    with Workspace(tmp_path / "a" / "space") as space:
        assert stat.S_IMODE(space.folder.stat().st_mode) == 0o700
        assert "MedClipSamApp" in (space.app / "main.py").read_text()
        assert space.temporary.is_dir()
        assert space.sessions.is_dir()


def test_second_server_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with Workspace(tmp_path), pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
        Workspace(tmp_path)
    with Workspace(tmp_path):
        pass


def test_lock_of_a_killed_server_is_free(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from medclipsam.server.base.workspace import Workspace;"
        "space = Workspace(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == "held"
            with pytest.raises(InputError, match=f"in use by process {server.pid}"):
                Workspace(tmp_path)
        finally:
            server.send_signal(signal.SIGKILL)
    with Workspace(tmp_path):
        pass


def test_leftover_temporary_files_go_at_the_next_start(tmp_path: Path) -> None:
    with Workspace(tmp_path) as space:
        (space.temporary / "upload.nii.gz").write_text("x")
        (space.sessions / "kept").mkdir()
    with Workspace(tmp_path) as space:
        assert list(space.temporary.iterdir()) == []
        assert (space.sessions / "kept").is_dir()


def test_files_that_were_being_written_go_at_the_next_start(tmp_path: Path) -> None:
    with Workspace(tmp_path) as space:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait(30)
        left = [space.folder / f".owner.json.{ended.pid}", space.networks / f".holder.json.{ended.pid}"]
        kept = [space.folder / f".owner.json.{os.getpid()}", space.folder / ".notes.txt", space.folder / "a.1"]
        for file in (*left, *kept):
            file.write_text("x")
    with Workspace(tmp_path):
        assert not any(file.exists() for file in left)
        assert all(file.exists() for file in kept[1:])


def test_a_file_in_the_workspaces_place_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "space").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        Workspace(tmp_path / "space")


def test_default_workspaces_differ_by_studies_and_lie_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    first, second = default_workspace("/data/a/studies"), default_workspace("/data/b/studies")
    pacs = default_workspace("http://pacs:8042/dicom-web/")
    assert len({first, second, pacs}) == 3
    assert all(place.parent == tmp_path / "medclipsam" / "workspaces" for place in (first, second, pacs))
    assert first.name.startswith("studies-")
    assert pacs == default_workspace("http://pacs:8042/dicom-web")


def test_old_temporary_files_expire(tmp_path: Path) -> None:
    with Workspace(tmp_path / "space") as space:
        old, new = space.temporary / "old.nii.gz", space.temporary / "new.nii.gz"
        for file in (old, new):
            file.write_bytes(b"x")
        os.utime(old, (time.time() - 100, time.time() - 100))
        assert space.expire(50) == 1
        assert not old.exists()
        assert new.exists()


def test_what_is_made_is_the_owners_alone(tmp_path: Path) -> None:
    with Workspace(tmp_path / "space") as space:
        made = [space.folder, *space.folder.rglob("*")]
        assert [path for path in made if path.stat().st_mode & 0o077] == []
