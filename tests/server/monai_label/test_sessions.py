"""Sessions end, whatever an earlier server has left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from monailabel.utils.sessions import Sessions

from medclipsam.server.monai_label.sessions import expire_sessions


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A session that has expired, one that has not, and what a killed server leaves: no, half and odd information."""
    sessions = Sessions(str(tmp_path))
    for name, used in (("over", 0), ("new", time.time())):
        (tmp_path / f"{name}.png").write_bytes(b"x")
        sessions.add_session(str(tmp_path / f"{name}.png"), session_id=name)
        sessions[name].last_access_ts = int(used)
        sessions._write_meta_info(name, sessions[name])
    for name, told in (("none", None), ("half", '{"name"'), ("odd", "[]"), ("empty", "{}"), ("binary", "\udcff")):
        (tmp_path / name).mkdir()
        if told is not None:
            (tmp_path / name / "meta.info").write_text(told, errors="surrogateescape")
    (tmp_path / "file").write_text("x")
    return tmp_path


def test_expired_sessions_of_an_earlier_server_go(place: Path) -> None:
    assert expire_sessions(Sessions(str(place))) == 1
    left = {path.name for path in place.iterdir()}
    # what is not complete may be on its way
    assert {"new", "none", "half", "file"} <= left
    assert "over" not in left


def test_what_is_left_of_incomplete_sessions_goes_in_time(place: Path) -> None:
    past = time.time() - 7200
    for path in place.iterdir():
        os.utime(path, (past, past))
    expire_sessions(Sessions(str(place)))
    assert {path.name for path in place.iterdir()} == {"new", "file"}
    assert expire_sessions(Sessions(str(place / "nowhere"))) == 0
