"""The audit file: one line for each mask and label, for its owner's eyes, without what was asked for."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medclipsam.server.base.audit import AuditFile, Caller
from medclipsam.server.monai_label.app import MedClipSamApp

PARAMS: dict[str, Any] = {
    "text": "the left lung of John Doe",
    "weights": {"pair": "demo", "clip": {"name": "demo", "sha256": "aa"}, "sam": {"name": "demo", "sha256": "bb"}},
    "targets": [
        {"name": "left lung", "label": 3, "area_pixels": 120},
        {"name": "a nodule", "label": 201, "area_pixels": 0},
    ],
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_mask_is_one_line_that_says_who_what_and_with_which_weights(path: Path) -> None:
    caller = Caller("ann", "slicer-1", "POST /infer/text_prompt")
    AuditFile(str(path)).mask(caller, "chest", "text_prompt", PARAMS)
    (line,) = lines(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "event": "mask",
        "user": "ann",
        "client": "slicer-1",
        "route": "POST /infer/text_prompt",
        "image": "chest",
        "model": "text_prompt",
        "weights": {"clip": "aa", "sam": "bb"},
        "pixels": {"3": 120, "201": 0},
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_text_is_noted_only_where_it_is_wanted(path: Path) -> None:
    AuditFile(str(path)).mask(Caller(), "chest", "text_prompt", PARAMS)
    assert "John" not in path.read_text()
    AuditFile(str(path), with_text=True).mask(Caller(), "chest", "text_prompt", PARAMS)
    assert lines(path)[1]["text"] == PARAMS["text"]


def test_lines_of_many_threads_do_not_mix(path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(50):
            AuditFile(str(path)).label(Caller(), "label saved", f"image {number} " + "x" * 500, "final")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(path)) == 400


def test_a_line_break_in_a_name_begins_no_line(path: Path) -> None:
    AuditFile(str(path)).label(Caller(), "label saved", 'a\n{"event": "forged"}', "final")
    assert len(lines(path)) == 1


def test_without_a_file_nothing_is_noted() -> None:
    AuditFile(None).mask(Caller(), "chest", "text_prompt", PARAMS)


def test_the_app_notes_masks_labels_and_batches(make_app: Callable[..., MedClipSamApp], path: Path) -> None:
    app = make_app(audit_file=str(path))
    Path(app.infer({"model": "text_prompt", "image": "chest", "text": "heart"})["file"]).unlink()
    Path(
        app.infer({"model": "text_prompt", "image": "stack", "text": "heart", "save_label": True, "label_tag": "pre"})[
            "file"
        ]
    ).unlink()
    assert [(line["event"], line["image"], line.get("tag")) for line in lines(path)] == [
        ("mask", "chest", None),
        ("mask", "stack", None),
        ("label saved", "stack", "pre"),
    ]
    app.batch_infer({"model": "text_prompt", "text": "heart", "images": ["film"], "user": "ann", "client_id": "c"})
    mask, label = lines(path)[-2:]
    assert (mask["event"], label["event"]) == ("mask", "label saved")
    assert {mask["user"], label["user"]} == {"ann"}
    assert "heart" not in path.read_text()
