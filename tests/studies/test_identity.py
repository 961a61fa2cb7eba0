"""Workspaces are found again when their studies folder is moved, and are not given to a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medclipsam.studies.identity import ID_FILE, Record, nearby, record_of, remember, studies_id, workspace_of


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("studies", "workspaces/studies-1"):
        (tmp_path / name).mkdir(parents=True)
    remember(tmp_path / "studies", tmp_path / "workspaces/studies-1")
    return tmp_path


def test_a_folder_and_its_workspace_know_each_other(place: Path) -> None:
    known = studies_id(place / "studies")
    assert known
    assert record_of(place / "workspaces/studies-1") == Record(known, str(place / "studies"))
    remember(place / "studies", place / "workspaces/studies-1")
    assert studies_id(place / "studies") == known


def test_a_moved_folder_keeps_its_workspace(place: Path) -> None:
    (place / "studies").rename(place / "moved")
    found = workspace_of(place / "moved", place / "workspaces/moved-2")
    assert found == place / "workspaces/studies-1"
    remember(place / "moved", found)
    assert record_of(found) == Record(studies_id(place / "moved") or "", str(place / "moved"))
    (place / "moved").rename(place / "again")
    assert workspace_of(place / "again", place / "workspaces/again-3") == found


def test_a_copied_folder_gets_an_id_and_a_workspace_of_its_own(place: Path) -> None:
    shutil.copytree(place / "studies", place / "copy")
    default = place / "workspaces/copy-2"
    assert workspace_of(place / "copy", default) == default
    default.mkdir()
    remember(place / "copy", default)
    assert studies_id(place / "copy") != studies_id(place / "studies")
    assert workspace_of(place / "studies", place / "workspaces/studies-1") == place / "workspaces/studies-1"
    (place / "copy").rename(place / "copied")
    assert workspace_of(place / "copied", place / "workspaces/copied-3") == default


def test_without_an_id_a_workspace_of_the_same_name_is_told(place: Path) -> None:
    (place / "studies" / ID_FILE).unlink()
    (place / "studies").rename(place / "elsewhere")
    default = place / "workspaces/studies-2"
    assert workspace_of(place / "elsewhere", default) == default
    assert nearby(default) == [place / "workspaces/studies-1"]
    assert nearby(place / "workspaces/other-2") == []
    default.mkdir()
    assert nearby(default) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 3}', "\0"])
def test_a_damaged_id_is_none(place: Path, content: str) -> None:
    (place / "studies" / ID_FILE).write_text(content)
    assert studies_id(place / "studies") is None
    remember(place / "studies", place / "workspaces/studies-1")
    assert studies_id(place / "studies")


def test_a_folder_that_is_no_default_workspace_has_none_nearby(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    assert nearby(tmp_path / "workspaces") == []
