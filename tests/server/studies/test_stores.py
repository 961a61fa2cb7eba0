"""Segmentations that were sent and are not listed yet, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from medclipsam.imaging.dicom_seg import Reference
from medclipsam.server.studies.stores import SentLabel, SentLabels


@pytest.fixture
def sent(tmp_path: Path) -> SentLabels:
    return SentLabels(tmp_path / ".sent.json", tmp_path / ".sent")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "seg.dcm").write_bytes(b"a segmentation")
    return tmp_path / "seg.dcm"


def label(instance: str) -> SentLabel:
    return SentLabel("1.2", "1.3", Reference("1.4", instance), "20260101")


def test_entries_of_another_process_are_known(sent: SentLabels, file: Path, tmp_path: Path) -> None:
    sent.add(label("1.5"), file)
    sent.reject(label("1.6"))
    other = SentLabels(tmp_path / ".sent.json", tmp_path / ".sent")
    assert [(each.reference.instance, each.wrong) for each in other.all()] == [("1.5", False), ("1.6", True)]
    copy = other.unread("1.5")
    assert copy is not None
    assert copy.read_bytes() == file.read_bytes()


def test_a_damaged_file_is_kept_aside(sent: SentLabels, file: Path, tmp_path: Path) -> None:
    sent.reject(label("1.6"))
    damaged = (tmp_path / ".sent.json").read_bytes()[:-20]
    (tmp_path / ".sent.json").write_bytes(damaged)
    sent.add(label("1.5"), file)
    assert [each.reference.instance for each in sent.all()] == ["1.5"]
    assert (tmp_path / ".sent.damaged").read_bytes() == damaged


def test_a_file_that_cannot_be_opened_is_not_overwritten(sent: SentLabels, file: Path, tmp_path: Path) -> None:
    (tmp_path / ".sent.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        sent.add(label("1.5"), file)
    assert sent.unread("1.5") is None
    assert (tmp_path / ".sent.json").is_dir()
