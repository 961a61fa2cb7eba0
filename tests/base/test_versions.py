"""Numbered versions: taken in whole, one of them current, every change recorded."""

import json
import stat
from pathlib import Path

import pytest

from medclipsam.base.errors import InputError
from medclipsam.base.versions import VersionStore


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "store", remedy="remove it")


def add(store: VersionStore, content: str = "x") -> int:
    made = store.work_folder() / "made"
    (made / "part").mkdir(parents=True)
    (made / "part" / "file").write_text(content)
    with store.changing():
        version = store.add(made, lambda number, place: (made / "about").write_text(f"{number} {place.name}"))
        store.set_current(version, "published", {"reason": content})
    return version


def test_nothing_is_written_by_looking(store: VersionStore) -> None:
    assert (store.versions(), store.current_version(), store.events()) == ([], None, [])
    assert store.previous([1, 2]) is None
    assert not store.folder.exists()


def test_versions_are_numbered_and_private(store: VersionStore) -> None:
    assert [add(store, each) for each in "abc"] == [1, 2, 3] == store.versions()
    assert (store.folder_of(2) / "part" / "file").read_text() == "b"
    assert (store.folder_of(2) / "about").read_text() == "2 0002"
    for path in store.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert [(each["event"], each["version"], each["reason"]) for each in store.events()] == [
        ("published", 1, "a"),
        ("published", 2, "b"),
        ("published", 3, "c"),
    ]


def test_a_failed_addition_takes_no_number(store: VersionStore) -> None:
    made = store.work_folder() / "made"
    made.mkdir()
    with pytest.raises(ZeroDivisionError), store.changing():
        store.add(made, lambda *_: 1 / 0)
    assert store.versions() == []


def test_going_back_goes_on_back(store: VersionStore) -> None:
    for each in "abc":
        add(store, each)
    for expected in (2, 1, None):
        assert store.previous(store.versions()) == expected
        with store.changing():
            store.set_current(expected, "rolled back", {})
        assert store.current_version() == expected


def test_a_line_that_was_cut_off_harms_no_other(store: VersionStore) -> None:
    add(store)
    file = store.folder / "history.jsonl"
    file.write_text(file.read_text() + '{"event": "publ')
    add(store)
    assert [each["version"] for each in store.events()] == [1, 2]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": "first"}', '{"version": [1]}'])
def test_a_damaged_pointer_names_its_file_and_the_remedy(store: VersionStore, content: str) -> None:
    add(store)
    (store.folder / "current.json").write_text(content)
    with pytest.raises(InputError) as caught:
        store.current_version()
    assert str(store.folder / "current.json") in str(caught.value)
    assert "remove it" in str(caught.value)
    (store.folder / "current.json").write_text(json.dumps({"version": None}))
    assert store.current_version() is None
