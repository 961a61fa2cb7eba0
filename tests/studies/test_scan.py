"""Images of a studies folder: series, formats, sub-folders, shared ids, files on their way."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from medclipsam.imaging import read_image
from medclipsam.imaging.dicom import source_headers
from medclipsam.studies import scan
from medclipsam.studies.links import LinkedFolders
from medclipsam.studies.scan import FolderScan, Pin

FLAT = np.zeros((6, 8), np.uint8)


class Clock:
    """The time as files have it; starts an hour after they were made."""

    now = 3600.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "studies").mkdir()
    return tmp_path / "studies"


@pytest.fixture
def look(root: Path, clock: Clock) -> Callable[..., dict[str, str]]:
    scanner = FolderScan(root, settle=2, clock=clock)

    def run() -> dict[str, str]:
        """Return ids and what they stand for, from the root on."""
        run.listing = scanner.look()  # type: ignore[attr-defined]
        return {name: str(found.path.relative_to(root)) for name, found in run.listing.images.items()}  # type: ignore[attr-defined]

    return run


def old(path: Path, at: float = 0.0) -> Path:
    """Give a file, or all of a folder, and the folders on the way, an old time."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(each, (at, at))
    os.utime(path.parent, (at, at))
    return path


def picture(path: Path, at: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(FLAT).save(path, format="PNG" if path.suffix == "" else None)
    return old(path, at)


def series(folder: Path, write_series: Any, uid: str, slices: int = 3, at: float = 0.0, **more: Any) -> str:
    from pydicom.uid import generate_uid

    write_series(np.zeros((slices, 6, 8), np.uint8), folder, uid=uid, **more)
    old(folder, at)
    return str(generate_uid(entropy_srcs=[uid]))


def test_every_format_is_found_in_sub_folders_too(root: Path, look: Any, write_radiograph: Any) -> None:
    for name in ("a.png", "b.JPEG", "deep/er/c.tif", "deep/d.tiff", "e.bmp", "f.jpg"):
        picture(root / name)
    for name in ("deep/g.dcm", "h.dicom", "i", "j.1"):
        write_radiograph(FLAT, root / name)
        old(root / name)
    for name in ("notes.txt", ".hidden.png", ".hidden/k.png", "README"):
        (root / name).parent.mkdir(exist_ok=True)
        old(root / name) if (root / name).write_text("text") else None
    assert look() == {
        **{"a": "a.png", "b": "b.JPEG", "c": "deep/er/c.tif", "d": "deep/d.tiff", "e": "e.bmp", "f": "f.jpg"},
        **{"g": "deep/g.dcm", "h": "h.dicom", "i": "i", "j.1": "j.1"},
    }


def test_a_folder_of_slices_is_one_image(root: Path, look: Any, write_series: Any) -> None:
    uid = series(root / "case", write_series, "one")
    assert look() == {uid: "case"}
    found = look.listing.images[uid]
    assert len(found.files) == 3
    assert found.alone
    assert found.suffix == ""


def test_series_are_told_apart_by_their_uid(root: Path, look: Any, write_series: Any, write_radiograph: Any) -> None:
    one = series(root, write_series, "one", 3)
    two = series(root, write_series, "two", 4, start=10)
    single = series(root, write_series, "three", 1, start=20)
    write_radiograph(FLAT, root / "film.dcm")
    picture(root / "photo.png")
    old(root / "film.dcm")
    assert look() == {one: ".", two: ".", "slice20": "slice20.dcm", "film": "film.dcm", "photo": "photo.png"}
    assert single not in look()
    assert [len(look.listing.images[uid].files) for uid in (one, two)] == [3, 4]
    assert not look.listing.images[one].alone


def test_images_of_one_name_have_ids_of_their_own(root: Path, look: Any, clock: Clock) -> None:
    for name in ("sub/a.jpg", "other/a.jpg", "b.png", "b.tif"):
        picture(root / name)
    expected = {"sub_a": "sub/a.jpg", "other_a": "other/a.jpg", "b_png": "b.png", "b_tif": "b.tif"}
    assert look() == expected
    assert set(FolderScan(root, settle=2, clock=clock).look().images) == set(expected)
    # its path is its name
    picture(root / "a.png", at=10)
    assert look() == {**expected, "a": "a.png"}
    (root / "other/a.jpg").unlink()
    (root / "a.png").unlink()
    assert look() == {"a": "sub/a.jpg", "b_png": "b.png", "b_tif": "b.tif"}


def test_dicom_files_of_one_name_are_told_apart_by_their_instance(
    root: Path, look: Any, write_series: Any, write_radiograph: Any, clock: Clock
) -> None:
    write_series(np.zeros((1, 6, 8), np.uint8), root / "one", uid="one")
    write_series(np.zeros((1, 6, 8), np.uint8), root / "two", uid="two")
    for name in ("one", "two"):
        (root / name / "slice0.dcm").rename(root / name / "1-1.dcm")
        old(root / name)
    uids = {name: pydicom.dcmread(root / name / "1-1.dcm").SOPInstanceUID for name in ("one", "two")}
    assert look() == {uid: f"{name}/1-1.dcm" for name, uid in uids.items()}
    shutil.copytree(root / "one", root / "again")
    old(root / "again")
    assert len(look()) == 2
    shutil.rmtree(root / "two")
    assert list(look()) == ["1-1"]


def test_a_series_is_one_image_whatever_folders_its_slices_are_in(
    root: Path, look: Any, write_series: Any, tmp_path: Path
) -> None:
    uid = series(tmp_path / "source", write_series, "one", 4)
    for number, file in enumerate(sorted((tmp_path / "source").iterdir())):
        folder = root / f"DIR00{number % 2}"
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder / f"I{number // 2}")
        old(folder)
    assert list(look()) == [uid]
    found = look.listing.images[uid]
    assert not found.alone
    assert len(found.files) == 4
    assert read_image(LinkedFolders().path_of(found)).n_planes == 4
    shutil.copytree(root / "DIR000", root / "copy")
    old(root / "copy", at=10)
    assert list(look()) == [uid]
    assert len(look.listing.images[uid].files) == 6
    assert read_image(LinkedFolders().path_of(look.listing.images[uid])).n_planes == 4


def phases(root: Path, write_series: Any, numbers: tuple[int, ...]) -> str:
    """Write acquisitions of one series into one folder."""
    for number in numbers:
        uid = series(root / "source", write_series, "one")
        (root / "case").mkdir(exist_ok=True)
        for file in (root / "source").iterdir():
            data = pydicom.dcmread(file)
            data.AcquisitionNumber = number
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
            data.save_as(root / "case" / f"{number}-{file.name}")
        shutil.rmtree(root / "source")
    old(root / "case")
    return uid


def test_volumes_of_one_series_are_images_of_their_own(root: Path, look: Any, write_series: Any) -> None:
    uid = phases(root, write_series, (1, 2))
    assert look() == {f"{uid}-acq1": "case", f"{uid}-acq2": "case"}
    assert look.listing.split == {uid: [f"{uid}-acq1", f"{uid}-acq2"]}
    for number in (1, 2):
        folder = LinkedFolders().path_of(look.listing.images[f"{uid}-acq{number}"])
        headers = source_headers(folder)
        assert [header.AcquisitionNumber for header in headers] == [number] * 3


def test_an_id_with_a_label_keeps_its_image(root: Path, write_series: Any, clock: Clock) -> None:
    scan = FolderScan(root, settle=2, clock=clock)
    picture(root / "sub/a.png")
    series(root / "case", write_series, "one", 1)
    uid = phases(root, write_series, (2,))
    scan.pins = {
        "a": Pin("sub/a.png", "a.png"),
        "slice0": Pin("case/slice0.dcm", "slice0.dcm"),
        uid: Pin("case/2-slice0.dcm", "case"),
    }
    picture(root / "a.png")
    picture(root / "a.jpg")
    phases(root, write_series, (1, 2))
    images = scan.look().images
    assert images["a"].path == root / "sub/a.png"
    assert images["slice0"].files == (root / "case/slice0.dcm",)
    assert {file.name[:2] for file in images[uid].files} == {"2-"}
    assert {"a_png", "a_jpg", f"{uid}-acq1"} < images.keys()


def test_a_label_that_may_belong_to_several_images_is_given_to_none(
    root: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one/a.png", "two/a.png", "a.jpg"):
        picture(root / name)
    scan = FolderScan(root, settle=2, clock=clock)
    with caplog.at_level(logging.WARNING):
        scan.pins = {"a": Pin()}
        listing = scan.look()
    assert sorted(listing.images) == ["a_jpg", "one_a", "two_a"]
    assert listing.shared == {"a": sorted(root / name for name in ("one/a.png", "two/a.png", "a.jpg"))}
    assert len(caplog.records) == 1
    # a name that only one of them has is enough
    scan.pins = {"a": Pin(name="a.jpg")}
    assert scan.look().images["a"].path == root / "a.jpg"


def test_a_file_is_listed_when_it_has_stayed_as_it_is(root: Path, look: Any, clock: Clock) -> None:
    picture(root / "a.png", at=clock.now - 1)
    assert look() == {}
    clock.now += 1.1
    assert look() == {"a": "a.png"}


def test_a_file_from_the_future_is_listed_when_it_has_been_seen_for_long_enough(
    root: Path, look: Any, clock: Clock
) -> None:
    picture(root / "a.png", at=clock.now + 9999)
    for wait in (0, 1, 0.9):
        clock.now += wait
        assert look() == {}
    clock.now += 0.2
    assert look() == {"a": "a.png"}


def test_half_a_file_is_not_listed_until_it_is_whole(
    root: Path, look: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    content = picture(root / "a.png").read_bytes()
    (root / "a.png").write_bytes(content[: len(content) // 2])
    old(root / "a.png", at=clock.now - 3)
    assert look() == {}
    look()
    assert list(look.listing.faults) == ["a.png"]
    # once, however often it is looked at
    assert ["a.png" in record.getMessage() for record in caplog.records] == [True]
    (root / "a.png").write_bytes(content)
    old(root / "a.png", at=clock.now - 1)
    assert look() == {}
    clock.now += 1.1
    assert look() == {"a": "a.png"}
    assert look.listing.faults == {}


BAD = {
    "preview.jpg": b"",
    "notes.dcm": b"not DICOM at all",
    "empty.dcm": b"",
    "empty": b"",
    "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "archive.tif": b"PK\x03\x04" + bytes(60),
    "a.nii": b"\x5c\x01\0\0",
    "b.nii.gz": b"\x1f\x8b\x08",
    "c.nrrd": b"NRRD0004\n",
    "headless.dcm": bytes(128) + b"DICM" + bytes(40),
}


@pytest.mark.parametrize("settle", [0, 2])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_hides_nothing_else(
    root: Path, clock: Clock, name: str, settle: float, write_series: Any, write_radiograph: Any, caplog: Any
) -> None:
    uid = series(root / "case", write_series, "one")
    single = series(root / "case", write_series, "two", 1, start=20)
    write_radiograph(FLAT, root / "case" / "film.dcm")
    (root / "case" / name).write_bytes(BAD[name])
    old(root / "case")
    listed = {uid: "case", "slice20": "case/slice20.dcm", "film": "case/film.dcm"}
    # the second is the look after a restart
    for scanner in (FolderScan(root, settle=settle, clock=clock), FolderScan(root, settle=settle, clock=clock)):
        caplog.clear()
        for _ in range(2):
            listing = scanner.look()
            assert {image: str(found.path.relative_to(root)) for image, found in listing.images.items()} == listed
        if name != "empty":  # a file without an extension is none that anybody meant to be an image
            assert list(listing.faults) == [f"case/{name}"]
            assert listing.faults[f"case/{name}"]
            assert [f"case/{name}" in record.getMessage() for record in caplog.records] == [True]
    assert single not in listed


def test_links_to_nothing_and_folders_that_must_not_be_opened_hide_nothing_else(
    root: Path, look: Any, write_series: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = series(root / "case", write_series, "one")
    (root / "case" / "secret").mkdir()
    (root / "case" / "gone.dcm").symlink_to("nowhere.dcm")
    (root / "case" / "round.png").symlink_to("round.png")
    os.utime(root / "case", (0, 0))
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(scan.os, "scandir", refusing)
    assert look() == {uid: "case"}
    assert sorted(look.listing.faults) == ["case/gone.dcm", "case/round.png", "case/secret"]


def test_values_that_break_their_rules_hide_nothing_else(
    root: Path, look: Any, write_series: Any, write_radiograph: Any
) -> None:
    uid = series(root / "case", write_series, "one")
    write_radiograph(FLAT, root / "case" / "odd.dcm")
    content = (root / "case" / "odd.dcm").read_bytes()
    rows = content.index(b"\x28\0\x10\0US")
    frames = b"\x28\0\x08\0IS\x04\0many"
    (root / "case" / "odd.dcm").write_bytes(content[:rows] + frames + content[rows:])
    old(root / "case")
    assert look()[uid] == "case"


def test_a_truncated_slice_stays_in_its_series_and_is_named(root: Path, look: Any, write_series: Any) -> None:
    uid = series(root / "case", write_series, "one", 4)
    content = (root / "case" / "slice3.dcm").read_bytes()
    (root / "case" / "slice3.dcm").write_bytes(content[:-20])
    old(root / "case")
    assert look() == {uid: "case"}
    assert len(look.listing.images[uid].files) == 4
    assert list(look.listing.faults) == ["case/slice3.dcm"]


def test_a_file_that_never_rests_and_a_folder_from_the_future_hold_nothing_up(
    root: Path, look: Any, clock: Clock, write_series: Any
) -> None:
    uid = series(root / "case", write_series, "one")
    (root / "case" / "transfer.log").write_text("busy")
    os.utime(root / "case" / "transfer.log", (clock.now, clock.now))
    os.utime(root / "case", (clock.now + 9999, clock.now + 9999))
    look()
    clock.now += 2.1
    os.utime(root / "case" / "transfer.log", (clock.now, clock.now))
    assert look() == {uid: "case"}


def test_a_series_is_listed_when_all_of_it_has_arrived(
    root: Path, look: Any, clock: Clock, write_series: Any, tmp_path: Path
) -> None:
    uid = series(tmp_path / "source", write_series, "one", 4)
    (root / "case").mkdir()
    for number, file in enumerate(sorted((tmp_path / "source").iterdir())):
        clock.now += 1
        shutil.copy(file, root / "case")
        for path in (root / "case" / file.name, root / "case"):
            os.utime(path, (clock.now, clock.now))
        # the first ones have stayed as they are by now, and alone would be images of their own
        assert look() == {}, number
    clock.now += 2.1
    assert look() == {uid: "case"}
    assert len(look.listing.images[uid].files) == 4
    # a fifth slice: the series stays as it was until that one has arrived
    (root / "case" / "more.dcm").write_bytes(b"DICM")
    os.utime(root / "case", (clock.now, clock.now))
    assert len((look(), look.listing.images[uid].files)[1]) == 4


def test_images_come_and_go_while_the_folder_is_watched(root: Path, look: Any, clock: Clock) -> None:
    picture(root / "a.png")
    assert look() == {"a": "a.png"}
    picture(root / "new/b.png", at=clock.now - 5)
    assert look() == {"a": "a.png", "b": "new/b.png"}
    (root / "a.png").unlink()
    assert look() == {"b": "new/b.png"}
    shutil.rmtree(root / "new")
    assert look() == {}


def test_what_has_not_changed_is_not_opened_again(
    root: Path, look: Any, monkeypatch: pytest.MonkeyPatch, write_series: Any
) -> None:
    picture(root / "a.png")
    series(root / "case", write_series, "one")
    before = look()
    opened: list[Path] = []
    listed: list[Any] = []
    fault_of, scandir = scan.fault_of, os.scandir
    monkeypatch.setattr(scan, "fault_of", lambda path: opened.append(path) or fault_of(path))
    monkeypatch.setattr(scan.os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert look() == before
    assert opened == []
    assert listed == []
    picture(root / "b.png", at=10.0)
    assert look() == {**before, "b": "b.png"}
    assert opened == [root / "b.png"]
    assert listed == [root]


@pytest.mark.parametrize("name", ["x" * 201 + ".png", "a\\b.png", "a\nb.png"])
def test_names_that_cannot_be_ids_are_not_listed(
    root: Path, look: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    picture(root / name)
    assert look() == {}
    assert "cannot be an image id" in caplog.text


def test_patterns_choose_files(root: Path, clock: Clock) -> None:
    for name in ("a.png", "b.jpg"):
        picture(root / name)
    assert list(FolderScan(root, ["*.png"], clock=clock).look().images) == ["a"]


def test_the_volumes_of_a_multi_frame_file_are_images_of_their_own(
    root: Path, look: Any, write_phases: Callable[..., Path]
) -> None:
    pixels = np.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
    for folder in ("one", "two"):
        (root / folder).mkdir()
        old(write_phases(pixels, root / folder / "1-1.dcm", uid=folder))
    old(write_phases(pixels, root / "b.dcm", told_by="b", uid="b"))
    old(write_phases(pixels[:1], root / "whole.dcm", uid="whole"))
    found = look()
    uids = [str(pydicom.dcmread(root / folder / "1-1.dcm").SOPInstanceUID) for folder in ("one", "two")]
    assert found == {
        **{
            f"{uid}-time{n}": f"{folder}/1-1.dcm"
            for uid, folder in zip(uids, ("one", "two"), strict=True)
            for n in (1, 2)
        },
        **{"b-b0": "b.dcm", "b-b500": "b.dcm", "whole": "whole.dcm"},
    }
    links = LinkedFolders()
    for name, image in look.listing.images.items():
        path = links.path_of(image)
        assert links.known_path_of(image) == path
        read = read_image(path).stored_values()
        assert np.array_equal(read, pixels[1] if name.endswith(("time2", "b500")) else pixels[0])
        assert source_headers(path)[0].SOPInstanceUID == image.instance
    assert look.listing.split["b"] == ["b-b0", "b-b500"]
