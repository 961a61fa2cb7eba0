"""The datastore of a studies folder: what it lists, what it writes, and when."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_image, write_mask
from medclipsam.server.base.errors import ConflictError, UnknownError
from medclipsam.server.studies import folder as folder_module
from medclipsam.server.studies.folder import FolderStudies
from medclipsam.server.studies.images import ImageReader
from medclipsam.server.studies.labels import LabelReader

MakeStudies = Callable[..., FolderStudies]


@pytest.fixture
def root(tmp_path: Path, write_series: Any) -> Path:
    """Two pictures, one of them in a sub-folder, and two series of slices in one folder."""
    root = tmp_path / "studies"
    (root / "sub").mkdir(parents=True)
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(root / "a.png")
    Image.fromarray(pixels).save(root / "sub/b.png")
    for number, uid in enumerate(("one", "two")):
        write_series(np.stack([pixels] * 3) + 50 * number, root / "case", uid=uid, start=10 * number)
    return root


@pytest.fixture
def make(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeStudies:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(folder_module, "_LOOK_SECONDS", 0.0)
    return lambda **more: FolderStudies(root, **{"settle": 0, **more})


@pytest.fixture
def studies(make: MakeStudies) -> FolderStudies:
    return make()


@pytest.fixture
def label(tmp_path: Path) -> Path:
    path = tmp_path / "label.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 8), np.uint8)), path)
    return path


def config(root: Path) -> Any:
    return json.loads((root / "datastore_v2.json").read_text())


def series_of(studies: FolderStudies) -> list[str]:
    return sorted(set(studies.list_images()) - {"a", "b"})


def test_images_are_read_from_where_they_are(studies: FolderStudies, root: Path) -> None:
    assert studies.get_image_uri("a") == str(root / "a.png")
    assert studies.get_image_uri("b") == str(root / "sub/b.png")
    assert len(series_of(studies)) == 2
    assert all(set(image).isdisjoint("/\\") for image in studies.list_images())
    brightest = [read_image(studies.get_image_uri(image)).voxels().max() for image in series_of(studies)]
    assert sorted(brightest) == [47, 97]
    assert [read_image(studies.get_image_uri(image)).n_planes for image in series_of(studies)] == [3, 3]
    assert studies.get_image_uri("nobody") == ""
    assert studies.get_image_info("nobody") == {}
    info = studies.get_image_info("b")
    assert (info["name"], info["path"]) == ("b.png", str(root / "sub/b.png"))


def test_a_series_alone_in_its_folder_is_read_in_place(studies: FolderStudies, root: Path) -> None:
    uid = series_of(studies)[0]
    other = [Path(file) for file in studies._listing.images[series_of(studies)[1]].files]
    (root / "elsewhere").mkdir()
    for file in other:
        shutil.move(file, root / "elsewhere")
    assert studies.get_image_uri(uid) == str(root / "case")


def test_nothing_is_written_for_looking(studies: FolderStudies, root: Path) -> None:
    studies.status(), studies.json(), studies.datalist(), studies.get_image_info("a")
    studies.update_image_info("a", {"strategy": {"random": {"ts": 1}}})
    assert studies.get_image_info("a")["strategy"] == {"random": {"ts": 1}}
    assert not (root / "datastore_v2.json").exists()


def test_images_that_are_added_appear_and_those_that_go_disappear(studies: FolderStudies, root: Path) -> None:
    shutil.copy(root / "a.png", root / "sub" / "c.png")
    assert "c" in studies.list_images()
    (root / "a.png").unlink()
    assert "a" not in studies.list_images()
    assert studies.get_image_uri("a") == ""


def test_a_folder_that_takes_long_is_looked_at_beside_the_requests(
    make: MakeStudies, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = make()
    monkeypatch.setattr(folder_module, "_LONG_LOOK_SECONDS", -1.0)
    looking, go_on = threading.Event(), threading.Event()
    look = studies._scan.look

    def slow() -> Any:
        looking.set()
        assert go_on.wait(20)
        return look()

    monkeypatch.setattr(studies._scan, "look", slow)
    shutil.copy(root / "a.png", root / "new.png")
    assert "new" not in studies.list_images()
    assert looking.wait(20)
    assert "new" not in studies.list_images()
    go_on.set()
    end = time.monotonic() + 20
    while "new" not in studies.list_images():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert studies.get_image_uri("new") == str(root / "new.png")


def test_without_reloading_only_a_refresh_looks(make: MakeStudies, root: Path) -> None:
    studies = make(auto_reload=False)
    shutil.copy(root / "a.png", root / "c.png")
    assert "c" not in studies.list_images()
    studies.refresh()
    assert "c" in studies.list_images()


def test_an_image_with_a_label_keeps_its_id(make: MakeStudies, root: Path, label: Path) -> None:
    make().save_label("b", str(label), "final", {})
    shutil.copy(root / "a.png", root / "b.png")
    for _ in range(2):
        studies = make()
        assert studies.get_image_uri("b") == str(root / "sub/b.png")
        assert studies.get_image_uri("b_png") == str(root / "b.png")
        assert studies.get_labeled_images() == ["b"]


def test_a_label_that_may_belong_to_several_images_is_refused_by_name(
    make: MakeStudies, root: Path, label: Path
) -> None:
    make().save_label("a", str(label), "final", {})
    (root / "datastore_v2.json").unlink()
    for name in ("sub", "more"):
        (root / name).mkdir(exist_ok=True)
        shutil.copy(root / "a.png", root / name / "a.png")
    content = {"a": {"image": {"info": {}}, "labels": {"final": {"ext": ".nii.gz", "info": {}}}}}
    (root / "datastore_v2.json").write_text(json.dumps({"name": "x", "description": "", "objects": content}))
    studies = make()
    assert {"sub_a", "more_a", "a_png"} <= set(studies.list_images())
    for ask in (
        lambda: studies.get_image_uri("a"),
        lambda: studies.save_label("a", str(label), "final", {}),
        lambda: studies.remove_image("a"),
    ):
        with pytest.raises(UnknownError, match=r"a\.png.*more/a\.png.*sub/a\.png"):
            ask()
    assert (root / "a.png").exists()
    assert (root / "labels/final/a.nii.gz").exists()


def test_a_label_is_saved_and_found_again(make: MakeStudies, root: Path, label: Path) -> None:
    studies = make()
    uid = series_of(studies)[0]
    for image in ("b", uid):
        assert studies.save_label(image, str(label), "final", {"by": "me"}) == image
        assert Path(studies.get_label_uri(image, "final")).read_bytes() == label.read_bytes()
    assert sorted(studies.get_labeled_images()) == sorted(["b", uid])
    assert "a" in studies.get_unlabeled_images()
    assert studies.status() == {"total": 4, "completed": 2, "label_tags": {"final": 2}}
    assert studies.get_label_info("b", "final")["by"] == "me"
    assert {pair["label"]: pair["image"] for pair in studies.datalist()} == {
        str(root / f"labels/final/{image}.nii.gz"): studies.get_image_uri(image) for image in ("b", uid)
    }
    assert set(config(root)["objects"]) == {"b", uid}
    again = make()
    assert again.get_label_info("b", "final")["by"] == "me"
    assert again.status() == studies.status()


def test_what_is_kept_in_the_studies_has_their_rights(make: MakeStudies, root: Path, label: Path) -> None:
    """Labels are for all who may see the studies, even where the server makes its other files private."""
    root.chmod(0o755)
    label.chmod(0o600)
    before = os.umask(0o077)
    try:
        make().save_label("a", str(label), "mine", {})
    finally:
        os.umask(before)
    kept = [root / "labels/mine/a.nii.gz", root / "datastore_v2.json", root / "labels", root / "labels/mine"]
    assert [oct(path.stat().st_mode & 0o777) for path in kept] == ["0o644", "0o644", "0o755", "0o755"]


def test_a_label_replaces_the_one_before_it(studies: FolderStudies, root: Path, label: Path, tmp_path: Path) -> None:
    studies.save_label("a", str(label), "final", {})
    other = tmp_path / "label.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 8), np.uint8)), other)
    studies.save_label("a", str(other), "final", {})
    assert sorted(os.listdir(root / "labels/final")) == ["a.nrrd"]
    studies.remove_label("a", "final")
    studies.remove_label("a", "never")
    assert os.listdir(root / "labels/final") == []
    assert studies.get_labeled_images() == []
    assert config(root)["objects"] == {}


class Picky:
    """Takes any file as it is, unless what comes with it says that it is bad."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, Path, Any]] = []

    def read(self, image: Path, file: Path, info: Any) -> Any:
        self.asked.append((image, file, info))
        if info.get("bad"):
            raise InputError("No.")
        suffix = "".join(file.suffixes)
        return SimpleNamespace(suffix=suffix, write=lambda path: shutil.copyfile(file, path), info=info)


def test_a_persons_label_outlives_what_takes_its_place(
    make: MakeStudies, root: Path, label: Path, tmp_path: Path
) -> None:
    studies = make(labels=Picky(), private=True)
    first, other = label.read_bytes(), tmp_path / "label.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 8), np.uint8)), other)
    studies.save_label("a", str(label), "final", {"saved_by": "ada"})
    with pytest.raises(InputError):
        studies.save_label("a", str(other), "final", {"bad": True})
    assert studies.label_versions("a", "final") == []
    studies.save_label("a", str(other), "final", {"saved_by": "bob"})
    studies.remove_label("a", "final")
    ada, bob = make().label_versions("a", "final")
    assert (ada.saved_by, ada.path.read_bytes()) == ("ada", first)
    assert (bob.saved_by, bob.path.read_bytes()) == ("bob", other.read_bytes())
    assert {path.stat().st_mode & 0o077 for path in (ada.path, ada.path.parent, root / "labels/.versions")} == {0}
    # versions are neither labels nor images
    assert make().get_labels_by_image_id("a") == {}
    assert not any("versions" in image for image in make().list_images())
    # what models make ahead is made again
    for _ in range(2):
        studies.save_label("b", str(label), "original", {"model": "network"})
        studies.save_label("b", str(other), "original", {"model": "network"})
    assert studies.label_versions("b", "original") == []
    studies.remove_image("a")
    assert make().label_versions("a", "final") == []


def test_a_label_put_there_by_hand_is_kept_too(studies: FolderStudies, root: Path, label: Path, tmp_path: Path) -> None:
    (root / "labels/final/a.png").write_bytes(b"by hand")
    studies.save_label("a", str(label), "final", {"saved_by": "ada"})
    (version,) = studies.label_versions("a", "final")
    assert version.path.read_bytes() == b"by hand"
    assert os.listdir(root / "labels/final") == ["a.nii.gz"]


def test_a_label_that_is_refused_leaves_the_one_before_it(make: MakeStudies, root: Path, label: Path) -> None:
    reader = Picky()
    studies = make(labels=reader)
    studies.save_label("b", str(label), "final", {"n": 1})
    assert reader.asked == [(root / "sub/b.png", label, {"n": 1})]
    before = label.read_bytes()
    label.write_bytes(b"x")
    with pytest.raises(InputError, match="No"):
        studies.save_label("b", str(label), "final", {"bad": True})
    assert Path(studies.get_label_uri("b", "final")).read_bytes() == before
    assert studies.get_label_info("b", "final")["n"] == 1


def _full(*arguments: Any, **more: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def _no_room(patch: pytest.MonkeyPatch) -> None:
    """Let the list of labels be cut off while it is written; labels are copied and not written as text."""
    write = Path.write_text

    def refuse(path: Path, content: str, **more: Any) -> int:
        if path.name.startswith(".medclipsam-part-"):
            write(path, content[: len(content) // 2], **more)
            _full()
        return write(path, content, **more)

    patch.setattr(Path, "write_text", refuse)


def _no_rename_of_the_list(patch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == "datastore_v2.json":
            raise OSError(errno.EROFS, "Read-only file system")
        replace(source, target)

    patch.setattr("os.replace", refuse)


def _no_room_or_links(patch: pytest.MonkeyPatch) -> None:
    _no_room(patch)
    patch.setattr("os.link", _full)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("fault", [_no_room, _no_rename_of_the_list, _no_room_or_links])
@pytest.mark.parametrize("act", ["replace", "replace with another format", "first", "remove", "note", "remove image"])
def test_a_change_that_cannot_be_listed_leaves_everything_as_it_was(
    make: MakeStudies,
    root: Path,
    label: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    act: str,
) -> None:
    studies = make()
    studies.save_label("a", str(label), "final", {"n": 1})
    other = tmp_path / f"other{'.nrrd' if 'format' in act else '.nii.gz'}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 8), np.uint8)), other)
    if act == "remove image":
        (root / "a.png").unlink()
        shutil.copy(root / "sub/b.png", root / "a.png")
    changes: dict[str, Callable[[], object]] = {
        "first": lambda: studies.save_label("b", str(other), "final", {"n": 2}),
        "remove": lambda: studies.remove_label("a", "final"),
        "note": lambda: studies.update_label_info("a", "final", {"n": 2}),
        "remove image": lambda: studies.remove_image("a"),
    }
    change = changes.get(act, lambda: studies.save_label("a", str(other), "final", {"n": 2}))
    # images are too large to be kept aside: only what is written of them comes back
    before, told = _files(root / "labels"), studies.json()["objects"]["b"]["labels"]
    listed = (root / "datastore_v2.json").read_bytes()
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(OSError, match=r"No space|Read-only"):
            change()
    assert _files(root / "labels") == before
    assert (root / "datastore_v2.json").read_bytes() == listed
    for each in (studies, make()):
        assert each.json()["objects"]["b"]["labels"] == told
        if act != "remove image":
            assert each.get_label_info("a", "final")["n"] == 1
            assert Path(each.get_label_uri("a", "final")).read_bytes() == label.read_bytes()
    assert [path.name for path in root.iterdir() if path.name.startswith(".") and path.name != ".lock"] == []


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_copy_that_is_not_the_label_leaves_the_one_before_it(
    make: MakeStudies, root: Path, label: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = make(labels=LabelReader(ImageReader(), {"heart": 1}))
    studies.save_label("b", str(label), "final", {"n": 1})
    before = Path(studies.get_label_uri("b", "final")).read_bytes()
    other = tmp_path / f"other{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 8), np.uint8)), other)
    empty = tmp_path / f"empty{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 8), np.uint8)), empty)
    copy = shutil.copyfile
    monkeypatch.setattr(
        "medclipsam.server.studies.label_files.shutil.copyfile", lambda source, target: copy(empty, target)
    )
    with pytest.raises(InputError):
        studies.save_label("b", str(other), "final", {"n": 2})
    assert Path(studies.get_label_uri("b", "final")).read_bytes() == before
    assert studies.get_label_info("b", "final")["n"] == 1
    assert os.listdir(root / "labels/final") == ["b.nii.gz"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("private", [False, True])
def test_labels_are_for_whom_they_are_meant_whatever_the_umask(
    make: MakeStudies, root: Path, label: Path, umask: int, private: bool
) -> None:
    root.chmod(0o750)
    before = os.umask(umask)
    try:
        studies = make(private=private)
        studies.save_label("b", str(label), "final", {})
        studies.save_label("b", str(label), "network", {})
        added = studies.add_image("c", str(root / "a.png"), {})
    finally:
        os.umask(before)
    files = [root / "labels/final/b.nii.gz", root / "labels/network/b.nii.gz", root / "datastore_v2.json"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600 if private else 0o640}
    folders = [root / "labels", root / "labels/final", root / "labels/network"]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700 if private else 0o750}
    assert Path(studies.get_image_uri(added)).stat().st_mode & 0o777 == 0o640


def test_labels_that_others_could_read_are_hidden(make: MakeStudies, root: Path, label: Path) -> None:
    root.chmod(0o755)
    make().save_label("b", str(label), "final", {})
    assert (root / "labels/final/b.nii.gz").stat().st_mode & 0o004
    make(private=True)
    assert {(root / name).stat().st_mode & 0o077 for name in ("labels", "labels/final", "datastore_v2.json")} == {0}


def test_labels_put_into_their_folder_by_hand_are_found(studies: FolderStudies, root: Path, label: Path) -> None:
    shutil.copy(label, root / "labels/final/a.nii.gz")
    shutil.copy(label, root / "labels/final/nobody.nii.gz")
    assert studies.get_labeled_images() == ["a"]
    (root / "labels/final/a.nii.gz").unlink()
    assert studies.get_labeled_images() == []
    # a label that lies there before its image comes
    shutil.copy(root / "a.png", root / "nobody.png")
    assert studies.get_labeled_images() == ["nobody"]


def test_a_segmentation_put_there_by_hand_is_found(studies: FolderStudies, root: Path, label: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(label), root / "labels/final/a.seg.nrrd")
    assert studies.get_labeled_images() == ["a"]
    assert studies.get_label_uri("a", "final").endswith("a.seg.nrrd")
    studies.save_label("a", str(label), "final", {})
    assert [path.name for path in (root / "labels/final").iterdir()] == ["a.nii.gz"]


def test_what_is_known_of_a_label_outlives_its_images_absence(make: MakeStudies, root: Path, label: Path) -> None:
    """As when the share that holds the images is away for a while."""
    studies = make()
    studies.save_label("b", str(label), "final", {"by": "me"})
    (root / "sub").rename(root / ".away")
    assert "b" not in studies.list_images()
    assert studies.get_labeled_images() == []
    studies.save_label("a", str(label), "final", {})
    (root / ".away").rename(root / "sub")
    assert make().get_label_info("b", "final")["by"] == "me"
    assert sorted(make().get_labeled_images()) == ["a", "b"]


def test_two_datastores_do_not_undo_each_other(make: MakeStudies, label: Path) -> None:
    """The server and its batch inference."""
    server, batch = make(), make()
    server.update_image_info("a", {"strategy": {"random": 1}})
    batch.save_label("a", str(label), "original", {"from": "batch"})
    server.save_label("b", str(label), "final", {})
    assert server.get_label_info("a", "original")["from"] == "batch"
    assert server.get_image_info("a")["strategy"] == {"random": 1}
    assert sorted(make().status()["label_tags"]) == ["final", "original"]


def test_a_label_that_another_process_has_saved_is_there_when_it_is_asked_for(make: MakeStudies, label: Path) -> None:
    server = make()
    assert server.get_label_uri("a", "original") == ""
    make().save_label("a", str(label), "original", {"from": "batch"})
    assert Path(server.get_label_uri("a", "original")).is_file()
    assert server.get_label_info("a", "original")["from"] == "batch"
    assert server.get_labels_by_image_id("a") == {"original": "a"}


def _save_many(root: Path, label: Path, tag: str) -> None:
    studies = FolderStudies(root, settle=0)
    for number in range(10):
        studies.save_label("a", str(label), f"{tag}{number}", {})


def test_processes_that_save_at_once_lose_nothing(make: MakeStudies, root: Path, label: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_save_many, args=(root, label, tag)) for tag in ("x", "y")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(make().status()["label_tags"]) == 20
    assert [name for name in os.listdir(root) if name.startswith(".") and name != ".lock"] == []


def test_a_write_that_fails_keeps_what_was_there(
    studies: FolderStudies, root: Path, label: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies.save_label("a", str(label), "final", {"n": 1})
    before = (root / "datastore_v2.json").read_bytes()

    _no_room(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        studies.update_image_info("a", {"note": "x"})
    assert (root / "datastore_v2.json").read_bytes() == before
    assert [name for name in os.listdir(root) if name.startswith(".") and name != ".lock"] == []


def test_what_a_killed_process_was_writing_goes_at_the_next_start(
    make: MakeStudies, root: Path, label: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts() -> list[Path]:
        return [path for path in root.rglob(".*") if path.is_file() and path.name not in (".lock", ".notes.png")]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    (root / ".notes.png").write_text("mine")
    for module, at in ((shutil, "copyfile"), (Path, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(module, at, killed)
            # a process that is killed removes nothing
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                make().save_label("a", str(label), "final", {})
        assert len(parts()) == 1
        make()
        assert parts() == []
    make().save_label("a", str(label), "final", {})
    assert (root / "labels/final/a.nii.gz").is_file()
    assert (root / ".notes.png").is_file()


def test_a_broken_list_stops_the_start_with_a_sentence(make: MakeStudies, root: Path) -> None:
    (root / "datastore_v2.json").write_text("{")
    with pytest.raises(InputError, match=r"datastore_v2\.json cannot be read"):
        make()


def test_what_monai_label_has_written_is_taken_over(make: MakeStudies, root: Path, label: Path) -> None:
    from monailabel.datastore.local import LocalDatastore

    stock = LocalDatastore(str(root), extensions=["*.png"])
    stock.save_label("a", str(label), "final", {"by": "stock"})
    studies = make()
    assert studies.get_label_info("a", "final")["by"] == "stock"
    studies.save_label("a", str(label), "original", {})
    back = LocalDatastore(str(root), extensions=["*.png", "*.nii.gz"])
    assert sorted(back.get_labels_by_image_id("a")) == ["final", "original"]


def test_an_image_is_added_and_listed_at_once(make: MakeStudies, root: Path, tmp_path: Path) -> None:
    studies = make(settle=60)
    assert studies.list_images() == []
    shutil.copy(root / "a.png", tmp_path / "upload.png")
    assert studies.add_image("new", str(tmp_path / "upload.png"), {"note": "x"}) == "new"
    assert studies.list_images() == ["new"]
    assert studies.get_image_info("new")["note"] == "x"
    assert studies.get_image_uri("new") == str(root / "new.png")
    shutil.copy(tmp_path / "upload.png", tmp_path / "upload.bmp")
    for suffix in ("png", "bmp"):
        with pytest.raises(ConflictError, match=r"'new' is that of new\.png already"):
            studies.add_image("new", str(tmp_path / f"upload.{suffix}"), {})
    for name in ("../x", "a/b", ".hidden"):
        with pytest.raises(InputError, match="cannot be named so"):
            studies.add_image(name, str(tmp_path / "upload.png"), {})
    assert not (tmp_path / "x.png").exists()


def test_of_several_images_added_at_once_under_one_id_one_is_kept(studies: FolderStudies, tmp_path: Path) -> None:
    uploads = []
    for number, suffix in enumerate((".png", ".bmp", ".png")):
        uploads.append(tmp_path / f"upload{number}{suffix}")
        Image.new("L", (3, 3), number).save(uploads[-1])
    start, ends = threading.Barrier(3), []

    def add(upload: Path) -> None:
        start.wait()
        try:
            ends.append((studies.add_image("new", str(upload), {}), upload))
        except ConflictError:
            ends.append(("", upload))

    threads = [threading.Thread(target=add, args=(upload,)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = [upload for name, upload in ends if name]
    assert Path(studies.get_image_uri("new")).read_bytes() == kept.read_bytes()


def test_a_second_slice_of_a_series_is_refused_and_the_first_keeps_its_label(
    make: MakeStudies, root: Path, label: Path, write_series: Any, tmp_path: Path
) -> None:
    studies = make(settle=60)
    folder = write_series(np.zeros((2, 6, 8), np.uint8), tmp_path / "upload", uid="new")
    assert studies.add_image("first", str(folder / "slice0.dcm"), {}) == "first"
    assert studies.list_images() == ["first"]
    studies.save_label("first", str(label), "final", {})
    before = sorted(root.rglob("*"))
    with pytest.raises(ConflictError, match="first"):
        studies.add_image("second", str(folder / "slice1.dcm"), {})
    assert sorted(root.rglob("*")) == before
    assert studies.get_labeled_images() == ["first"]
    # copied into the folder by hand it makes a series, beside which the labelled slice stays
    shutil.copy(folder / "slice1.dcm", root / "second.dcm")
    again = make()
    assert again.get_labeled_images() == ["first"]
    assert Path(again.get_image_uri("first")).name == "first.dcm"
    assert [len(found.files) for found in again._listing.images.values() if found.suffix == ""].count(2) == 1


def test_an_added_file_that_would_not_be_listed_is_refused(make: MakeStudies, root: Path, tmp_path: Path) -> None:
    studies = make(patterns=["*.png"])
    Image.new("L", (3, 3)).save(tmp_path / "upload.bmp")
    with pytest.raises(InputError, match="'new'"):
        studies.add_image("new", str(tmp_path / "upload.bmp"), {})
    assert not (root / "new.bmp").exists()


def test_removing_an_image_removes_its_files_and_labels(studies: FolderStudies, root: Path, label: Path) -> None:
    one, two = series_of(studies)
    for image in (one, "a"):
        studies.save_label(image, str(label), "final", {})
        studies.remove_image(image)
    assert sorted(studies.list_images()) == sorted(["b", two])
    assert len(list((root / "case").iterdir())) == 3
    assert os.listdir(root / "labels/final") == []
    studies.remove_image(two)
    assert not (root / "case").exists()
    with pytest.raises(UnknownError, match="'nobody'"):
        studies.remove_image("nobody")


def test_changes_to_what_is_not_there_are_refused(studies: FolderStudies, label: Path) -> None:
    with pytest.raises(UnknownError, match="'nobody'"):
        studies.save_label("nobody", str(label), "final", {})
    with pytest.raises(UnknownError, match="'nobody'"):
        studies.update_image_info("nobody", {"x": 1})
    with pytest.raises(UnknownError, match="no label of the tag 'final'"):
        studies.update_label_info("a", "final", {"x": 1})


@pytest.fixture
def phases(root: Path, write_phases: Callable[..., Path]) -> np.ndarray:
    """Two volumes in one file of the studies, `mr.dcm`."""
    pixels = np.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
    write_phases(pixels, root / "mr.dcm")
    return pixels


def test_labels_of_the_volumes_of_one_file_are_kept_apart(
    make: MakeStudies, phases: np.ndarray, tmp_path: Path
) -> None:
    studies = make()
    ids = ["mr-time1", "mr-time2"]
    assert set(ids) < set(studies.list_images())
    for number, image_id in enumerate(ids):
        image = read_image(studies.get_image_uri(image_id))
        assert studies.image_at(Path(studies.get_image_uri(image_id))) == image_id
        labels = np.full((4, 6, 8), number + 1, np.uint8)
        studies.save_label(image_id, str(write_mask(labels, image, tmp_path / "label.nii.gz")), "final", {})
    for store in (studies, make()):
        for number, image_id in enumerate(ids):
            image = read_image(store.get_image_uri(image_id))
            assert np.array_equal(image.stored_values(), phases[number])
            mask = sitk.ReadImage(store.get_label_uri(image_id, "final"))
            assert (sitk.GetArrayFromImage(mask) == number + 1).all()
    with pytest.raises(UnknownError) as refused:
        studies.get_image_uri("mr")
    assert all(image_id in str(refused.value) for image_id in ids)


def test_one_of_the_volumes_of_a_file_is_not_removed_alone(
    make: MakeStudies, phases: np.ndarray, root: Path, label: Path
) -> None:
    studies = make()
    with pytest.raises(ConflictError, match="mr-time2"):
        studies.remove_image("mr-time1")
    assert (root / "mr.dcm").is_file()


def test_an_archive_holds_pictures_slices_and_labels(studies: FolderStudies, root: Path, label: Path) -> None:
    series = series_of(studies)[0]
    for image in ("b", series):
        studies.save_label(image, str(label), "final", {})
    packed = Path(studies.get_dataset_archive(None))
    with zipfile.ZipFile(packed) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    assert names.pop("image/b.png") == (root / "sub/b.png").read_bytes()
    for image in ("b", series):
        assert names.pop(f"label/{image}.nii.gz") == label.read_bytes()
    assert set(json.loads(names.pop("metadata.json"))["objects"]) >= {"b", series}
    slices = {path.read_bytes() for path in Path(studies.get_image_uri(series)).iterdir()}
    assert len(slices) == 3
    assert set(names.values()) == slices
    limited = Path(studies.get_dataset_archive(1))
    with zipfile.ZipFile(limited) as archive:
        assert sum(name.startswith("label/") for name in archive.namelist()) == 1
