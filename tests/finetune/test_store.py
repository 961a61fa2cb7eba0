"""The store of fine-tuned CLIPs: what is used, the way back, and what is left of a kill."""

import json
from pathlib import Path

import pytest

from medclipsam.base.errors import InputError
from medclipsam.cli import main as cli
from medclipsam.finetune.store import ClipStore


def made(folder: Path, name: str) -> Path:
    place = folder / f"made-{name}"
    place.mkdir(parents=True)
    (place / "finetuned.json").write_text(json.dumps({"name": name}))
    return place


def name_of(store: ClipStore) -> str | None:
    place = store.current()
    return None if place is None else json.loads((place / "finetuned.json").read_text())["name"]


def test_what_is_published_is_used_and_undone_step_by_step(tmp_path):
    store = ClipStore(tmp_path / "finetuned")
    assert store.current() is None
    assert store.events() == []
    for number, name in enumerate("abc", start=1):
        assert store.publish(made(tmp_path, name), {"reason": name}) == number
        assert name_of(ClipStore(store.folder)) == name
    store.refuse({"reason": "worse"})
    assert name_of(store) == "c"
    assert [store.rollback(), name_of(store)] == [2, "b"]
    assert [store.rollback(), name_of(store)] == [1, "a"]
    assert [store.rollback(), name_of(store)] == [None, None]
    with pytest.raises(InputError, match="none to go back to"):
        store.rollback()
    assert [store.rollback(3), name_of(store)] == [3, "c"]
    with pytest.raises(InputError, match="in use already"):
        store.rollback(3)
    with pytest.raises(InputError, match="allowed: 0, 1, 2, 3"):
        store.rollback(7)
    assert store.rollback(0) is None
    assert store.publish(made(tmp_path, "d"), {}) == 4
    events = [(line["event"], line["version"]) for line in store.events()]
    assert events == [
        *(("published", number) for number in (1, 2, 3)),
        ("refused", None),
        *(("rolled back", number) for number in (2, 1, None, 3, None)),
        ("published", 4),
    ]


def test_a_moved_open_clip_folder_names_its_own_place(tmp_path):
    place = made(tmp_path, "a")
    (place / "config.json").write_text("{}")
    text = {"hf_model_name": str(place), "hf_tokenizer_name": str(place)}
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    store = ClipStore(tmp_path / "finetuned")
    store.publish(place, {})
    told = json.loads((store.current() / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert told["hf_model_name"] == told["hf_tokenizer_name"] == str(store.folder / "0001")


def test_half_written_lines_and_pointers(tmp_path):
    store = ClipStore(tmp_path)
    store.publish(made(tmp_path, "a"), {})
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"event": "publ')
    assert len(store.events()) == 1
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(InputError, match="does not name the current version"):
        store.current()


def test_the_command_line_lists_and_rolls_back(tmp_path, capsys):
    store = ClipStore(tmp_path / "space" / "finetuned")
    store.publish(made(tmp_path, "a"), {"reason": "better by far"})
    store.refuse({"reason": "worse"})
    place = ["--workspace", str(tmp_path / "space")]
    assert cli.main(["finetune", "history", *place]) == 0
    told = capsys.readouterr().out
    assert "better by far" in told
    assert told.rstrip().endswith("0001")
    assert cli.main(["finetune", "rollback", *place]) == 0
    assert store.current() is None
    assert cli.main(["finetune", "rollback", *place]) == 2
    assert cli.main(["finetune", "history"]) == 2
    assert cli.main(["finetune", "history", "--workspace", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 3
