import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medclipsam.base.errors import InputError, OptionError
from medclipsam.training.split import Split
from medclipsam.training.store import Network, NetworkStore, UnknownNetworkError


def about(status: str = "published", name: str = "network", **more: Any) -> Mapping[str, Any]:
    made = {"name": name, "status": status, "reason": "why", "labels": {"heart": 13}, "classes": {"heart": 1}}
    return {**made, "data": {"hash": "abc"}, **more}


def add(store: NetworkStore, status: str = "published", **more: Any) -> Network:
    made = store.work(str(more.get("name", "network")), "digest") / "made"
    made.mkdir()
    (made / "plan.json").write_text("{}")
    current = store.current(str(more.get("name", "network")))
    network = store.add(made, about(status, **more), expected=current.version if current else None)
    assert network is not None
    return network


@pytest.fixture
def store(tmp_path: Path) -> NetworkStore:
    return NetworkStore(tmp_path / "networks")


def current(store: NetworkStore, name: str = "network") -> int | None:
    network = store.current(name)
    return None if network is None else network.version


def test_only_published_networks_are_served(store: NetworkStore) -> None:
    assert store.names() == []
    assert store.current() is None
    first = add(store, "unvalidated")
    assert (first.version, current(store)) == (1, None)
    assert store.newest() == first
    assert add(store).version == 2
    assert current(store) == 2
    add(store, "refused")
    assert current(store) == 2
    assert [(each.version, each.status) for each in store.history()] == [
        (1, "unvalidated"),
        (2, "published"),
        (3, "refused"),
    ]
    assert store.names() == ["network"]
    assert [event["event"] for event in store.events()] == ["unvalidated", "published", "refused"]
    kept = store.get("network", 2)
    assert (kept.labels, kept.data) == ({"heart": 13}, {"hash": "abc"})
    assert (kept.folder / "plan.json").read_text() == "{}"
    assert all(path.stat().st_mode & 0o077 == 0 for path in [kept.folder, *kept.folder.iterdir()])


def test_names_do_not_mix(store: NetworkStore) -> None:
    add(store)
    add(store, name="network_lungs")
    assert current(store, "network_lungs") == 1
    assert store.names() == ["network", "network_lungs"]
    for name in ("..", "network/../x", "Network", "text_prompt", "network_" + "a" * 80, 3, None):
        with pytest.raises(OptionError, match="name"):
            store.current(name)  # type: ignore[arg-type]


def test_rolling_back_goes_along_what_was_served(store: NetworkStore) -> None:
    for status in ("published", "published", "refused", "unvalidated", "published"):
        add(store, status)
    assert current(store) == 5
    assert store.rollback().version == 2
    assert store.rollback().version == 1
    with pytest.raises(InputError, match="no network 'network' to go back to"):
        store.rollback()
    assert store.rollback(version=5).version == 5
    assert current(store) == 5
    for version, words in ((3, "refused and was never served"), (5, "is the one that is served")):
        with pytest.raises(InputError, match=words):
            store.rollback(version=version)
    with pytest.raises(UnknownNetworkError, match="no version 9"):
        store.rollback(version=9)
    assert [event["event"] for event in store.events()][-3:] == ["rolled back"] * 3
    # what was published by hand can be gone back to as well
    store.publish("network", 4, "by hand")
    add(store)
    assert store.rollback().version == 5
    assert store.rollback().version == 4


def test_a_network_is_not_published_over_one_it_was_not_compared_with(store: NetworkStore) -> None:
    add(store)
    made = store.work("network", "other") / "made"
    made.mkdir()
    assert store.add(made, about(), expected=None) is None
    assert made.is_dir()
    assert current(store) == 1
    assert len(store.history()) == 1


def test_what_a_killed_training_left_is_not_a_network(store: NetworkStore) -> None:
    add(store)
    half = store.work("network", "killed") / "made"
    half.mkdir()
    (half / "ensemble.safetensors").write_bytes(b"half")
    assert [each.version for each in store.history()] == [1]
    assert store.work("network", "killed") / "made" == half, "the same training finds its state again"
    assert half.is_dir()
    store.work("network", "another")
    assert not half.exists()


def test_two_processes_publish_one_after_the_other(store: NetworkStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    places = []
    for number in range(6):
        place = tmp_path / f"made{number}"
        place.mkdir()
        places.append(context.Process(target=_publish, args=(store, place)))
    for process in places:
        process.start()
    for process in places:
        process.join()
        assert process.exitcode == 0
    assert [each.version for each in store.history()] == [1, 2, 3, 4, 5, 6]
    assert current(store) == 6
    assert len(store.events()) == 6


def _publish(store: NetworkStore, made: Path) -> None:
    while True:
        network = store.current()
        if store.add(made, about(), expected=network.version if network else None) is not None:
            return


def test_validation_images_are_drawn_once(store: NetworkStore) -> None:
    assert store.split(Split(seed=3, share=0.3)) == Split(seed=3, share=0.3)
    assert store.split() == Split(seed=3, share=0.3)
    with pytest.raises(InputError, match=r"share 0\.3 and seed 3.*Share 0\.15"):
        store.split(Split())
    (store.folder / "split.json").write_text("{")
    with pytest.raises(InputError, match=r"split\.json cannot be read"):
        store.split()


def test_a_line_that_was_cut_off_is_passed_over(store: NetworkStore) -> None:
    add(store)
    with (store.folder / "network" / "history.jsonl").open("a") as file:
        file.write('{"event": "publ')
    assert [event["version"] for event in store.events()] == [1]
    add(store)
    assert [event["version"] for event in store.events()] == [1, 2]
    assert json.loads((store.folder / "network" / "current.json").read_text()) == {"version": 2}
