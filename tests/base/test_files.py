"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from medclipsam.base.files import PRIVATE, atomic_write, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with atomic_write(path, prefix=".part-", suffix=".bin") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".part-")
        assert temporary.name.endswith(".bin")
        temporary.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with pytest.raises(FileNotFoundError), atomic_write(path) as temporary:
        (temporary.parent / "none").rename(temporary)
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_a_writer_may_replace_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_write(path) as temporary:
        other = tmp_path / "other"
        other.write_text("content")
        os.replace(other, temporary)
    assert path.read_text() == "content"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_rights_are_those_of_a_new_file_or_the_given_ones(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "public", {"a": 1})
        write_json(tmp_path / "private", {"a": 1}, mode=PRIVATE)
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    rights = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert rights["public"] == rights["plain"]
    assert rights["private"] == 0o600
    assert json.loads((tmp_path / "public").read_text()) == {"a": 1}
