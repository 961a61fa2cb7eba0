"""Label sets written and read again: the same voxels and names, where the images are and in an empty folder."""

import csv
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.errors import CancelledError, InputError, StorageError
from medclipsam.cli.main import main
from medclipsam.demo.dicom import ultrasound, volume, xray
from medclipsam.exchange import Exported, ExportOptions, ImportOptions, export_labels, import_labels
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.label_map import LabelMap
from medclipsam.server.studies.exchange import FolderLabelStore

NAMES = {"breast tumour": 1, "heart": 13, "a cyst": 77}


def _studies(folder: Path) -> Path:
    """CT and MR series, a film, a loop, an oblique NIfTI file and a picture of two patients and more, with labels."""
    folder.mkdir()
    for made in (volume("CT", 1, 4, size=64), volume("MR", 2, 5, size=48), ultrasound(1, size=64, frames=3)):
        place = folder / made.name if made.name != "volume" else folder / f"series-{made.files[0].Modality}"
        place.mkdir()
        for index, content in enumerate(made.contents()):
            (place / f"{index}.dcm").write_bytes(content)
    (folder / "film.dcm").write_bytes(xray("DX", 1, size=64).contents()[0])
    affine = np.array([[0.0, 0.8, 0.1, 5], [-1.1, 0, 0, 6], [0, 0.1, 2.4, 7], [0, 0, 0, 1]])
    values = np.random.default_rng(0).normal(size=(20, 24, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), folder / "some volume.nii.gz")
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "picture.png")
    store = FolderLabelStore(folder)
    for image_id, path in store.images().items():
        image = read_image(path)
        store.save(image_id, LabelMap(_values(image), image, NAMES, NAMES), {"saved_by": "ada"})
    return folder


def _values(image: MedicalImage) -> np.ndarray:
    values = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    values[0, 5:12, 3:15] = 1
    # a ring, and a label that another one cuts in two
    values[-1, 2:16, 4:18] = 77
    values[-1, 6:10, 8:12] = 0
    values[-1, 12:14] = 1
    return values


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _studies(tmp_path_factory.mktemp("exchange") / "studies")


def _masks(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """By image, the mask of each structure: numbers may differ from folder to folder."""
    store = FolderLabelStore(folder)
    found = {}
    for image_id, path in store.images().items():
        label = store.label(image_id, read_image(path))
        if label is not None:
            found[image_id] = {name: label[0].values == value for name, value in label[0].names.items()}
    return found


def _files(folder: Path) -> list[str]:
    """The files of a studies folder but its lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(str(path.relative_to(folder)) for path in found)


def _same(one: dict[str, dict[str, np.ndarray]], other: dict[str, dict[str, np.ndarray]]) -> bool:
    return one.keys() == other.keys() and all(
        masks.keys() == other[image].keys() and all(np.array_equal(masks[n], other[image][n]) for n in masks)
        for image, masks in one.items()
    )


# What each format cannot hold: images that are not DICOM, or have no place, or other channels.
TAKEN = {
    "nifti": {"CT", "MR", "US", "DX", "volume", "picture"},
    "nnunet": {"CT"},
    "coco": {"CT", "MR", "US", "DX", "volume", "picture"},
    "bids": {"CT", "MR", "US", "DX", "volume", "picture"},
    "seg": {"CT", "MR", "US", "DX"},
    "rtstruct": {"CT", "MR"},
}


def _options(kind: str) -> ExportOptions:
    return ExportOptions(modality="CT") if kind == "nnunet" else ExportOptions()


@pytest.fixture(scope="module")
def exported(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Exported]:
    """Return the function that exports the studies in a format, once."""

    @cache
    def export(kind: Any) -> Exported:
        return export_labels(studies, tmp_path_factory.mktemp("sets") / kind, kind, _options(kind))

    return export


@pytest.mark.parametrize("kind", TAKEN)
def test_a_set_that_is_read_where_the_images_are_changes_nothing_and_restores_what_was_lost(
    studies: Path, exported: Callable[[Any], Exported], tmp_path: Path, kind: Any
) -> None:
    made = exported(kind)
    assert len(made.cases) == len(TAKEN[kind])
    assert len(made.cases) + len(made.left_out) == (1 if kind == "nnunet" else 6)
    before = _masks(studies)
    found = import_labels(made.folder, kind, FolderLabelStore(studies))
    assert {case.action for case in found} == {"unchanged"}
    ids = {case.image_id for case in found}
    copy = _studies(tmp_path / "copy")
    store = FolderLabelStore(copy)
    for image_id, path in store.images().items():
        image = read_image(path)
        store.save(image_id, LabelMap(np.zeros_like(_values(image)), image, {}), {"saved_by": "bob"})
    kept = import_labels(made.folder, kind, FolderLabelStore(copy))
    assert {case.action for case in kept} == {"kept"}
    replaced = import_labels(made.folder, kind, FolderLabelStore(copy), ImportOptions(existing="replace"))
    assert {case.action for case in replaced} == {"replaced"}
    late = FolderLabelStore(copy)
    assert not any(late.waits_for_consensus(name) for name in ids)
    after = _masks(copy)
    assert _same({name: after[name] for name in ids}, {name: before[name] for name in ids})


@pytest.mark.parametrize("kind", ["nifti", "nnunet", "bids", "seg", "rtstruct"])
def test_a_set_that_is_read_into_an_empty_folder_brings_its_images(
    studies: Path, exported: Callable[[Any], Exported], tmp_path: Path, kind: Any
) -> None:
    folder = exported(kind).folder
    (tmp_path / "new").mkdir()
    planned = import_labels(folder, kind, FolderLabelStore(tmp_path / "new"), dry_run=True)
    assert _files(tmp_path / "new") == []
    found = import_labels(folder, kind, FolderLabelStore(tmp_path / "new"))
    assert found == planned
    assert {(case.action, case.image_copied) for case in found} == {("new", True)}
    store = FolderLabelStore(tmp_path / "new")
    original = FolderLabelStore(studies)
    for image_id, path in store.images().items():
        ours, theirs = read_image(path), read_image(original.images()[image_id])
        assert ours.grid.lies_on(theirs.grid)
        # what a picture or volume file says of orientation decides how it is shown; voxels are compared as stored
        one, other = store.label(image_id, ours), original.label(image_id, theirs)
        assert one is not None
        assert other is not None
        assert one[0].names.keys() == other[0].names.keys()
        for name, value in one[0].names.items():
            stored = theirs.to_native(other[0].values == other[0].names[name])
            assert np.array_equal(ours.to_native(one[0].values == value), stored)
        if not ours.is_colour:
            np.testing.assert_allclose(ours.stored_values(), theirs.stored_values(), atol=1e-3)
        assert one[1]["saved_by"] == "ada"
        assert one[1]["imported"]["format"] == kind


def test_pycocotools_reads_the_masks(studies: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    export_labels(studies, tmp_path / "rle", "coco")
    export_labels(studies, tmp_path / "polygons", "coco", ExportOptions(coco_masks="polygons"))
    exact, drawn = (COCO(str(tmp_path / kind / "instances_train.json")) for kind in ("rle", "polygons"))
    before = _masks(studies)
    provenance = json.loads((tmp_path / "rle" / "provenance.json").read_text())["cases"]
    compared = 0
    for image in exact.loadImgs(exact.getImgIds()):
        with Image.open(tmp_path / "rle" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        annotations = exact.loadAnns(exact.getAnnIds(imgIds=image["id"]))
        for annotation in annotations:
            name = exact.loadCats(annotation["category_id"])[0]["name"]
            mask = before[provenance[image["case"]]["image"]][name][image["plane"]]
            assert np.array_equal(exact.annToMask(annotation), mask)
            rows, columns = np.nonzero(mask)
            assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["area"] == mask.sum()
            (same,) = drawn.loadAnns(drawn.getAnnIds(imgIds=image["id"], catIds=annotation["category_id"]))
            # polygons have no holes, and pycocotools draws them to within a pixel
            if name == "breast tumour":
                assert np.mean(drawn.annToMask(same) != mask) < 0.03
            compared += 1
    assert compared > 8


def test_compressed_run_lengths_of_pycocotools_are_read(tmp_path: Path) -> None:
    from pycocotools import mask as coco_masks

    from medclipsam.exchange.coco import mask_of, run_lengths

    rng = np.random.default_rng(0)
    for shape in ((7, 9), (64, 50), (300, 400)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(shape) < share
            compressed = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            text = {"size": list(shape), "counts": compressed["counts"].decode()}
            assert np.array_equal(mask_of(text, shape, "x"), mask)
            ours = coco_masks.frPyObjects(run_lengths(mask), *shape)
            assert np.array_equal(coco_masks.decode(ours), mask)


def test_an_nnunet_set_is_laid_out_as_nnunet_wants_it(studies: Path, tmp_path: Path) -> None:
    """As its integrity check looks at it: names, channels, sizes, spacings and labels without gaps, by SimpleITK."""
    export_labels(studies, tmp_path / "set", "nnunet", ExportOptions(modality="CT", dataset_id=7, name="Lungs"))
    root = tmp_path / "set" / "Dataset007_Lungs"
    described = json.loads((root / "dataset.json").read_text())
    labels = sorted((root / "labelsTr").glob("*.nii.gz"))
    assert described["numTraining"] == len(labels) == 1
    assert described["channel_names"] == {"0": "CT"}
    assert sorted(described["labels"].values()) == list(range(len(NAMES) + 1))
    assert described["labels"]["background"] == 0
    for label in labels:
        case = label.name.removesuffix(described["file_ending"])
        image, mask = sitk.ReadImage(str(root / "imagesTr" / f"{case}_0000.nii.gz")), sitk.ReadImage(str(label))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, get)() == pytest.approx(getattr(mask, get)())
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= set(described["labels"].values())
    splits = json.loads((root / "splits_final.json").read_text())
    assert sorted(name for fold in splits for name in fold["val"]) == [label.name[:-7] for label in labels]


def _patients(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        # two images of each patient
        for part in (1, 2):
            data = xray("DX", number, size=64).files[0]
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}.{part}"
            data.SeriesInstanceUID = f"1.3.{number}.{part}"
            data.save_as(folder / f"p{number}-{part}.dcm", enforce_file_format=True)
    store = FolderLabelStore(folder)
    for image_id, path in store.images().items():
        image = read_image(path)
        store.save(image_id, LabelMap(_values(image), image, NAMES), {"saved_by": "ada"})
    return folder


def test_splits_keep_patients_together(tmp_path: Path) -> None:
    folder = _patients(tmp_path / "studies", 8)
    options = ExportOptions(test_share=0.3, folds=3)
    export_labels(folder, tmp_path / "set", "nnunet", options)
    root = tmp_path / "set" / "Dataset501_Labels"
    tests = {file.name.split("-")[0] for file in (root / "labelsTs").iterdir()}
    splits = json.loads((root / "splits_final.json").read_text())
    assert 0 < len(tests) < 8
    assert len(splits) == 3
    validated = []
    for fold in splits:
        train, val = ({name.split("-")[0] for name in fold[part]} for part in ("train", "val"))
        assert not train & val
        assert not (train | val) & tests
        assert len(train | val) == 8 - len(tests)
        validated += fold["val"]
    assert len(validated) == len(set(validated)) == 2 * (8 - len(tests))
    export_labels(folder, tmp_path / "coco", "coco", options)
    test = json.loads((tmp_path / "coco" / "instances_test.json").read_text())
    assert {image["case"].split("-")[0] for image in test["images"]} == tests


def test_a_bids_set_is_laid_out_as_bids_wants_it(studies: Path, tmp_path: Path) -> None:
    export_labels(studies, tmp_path / "set", "bids", ExportOptions(modality="MR", bids_suffix="T1w"))
    (image,) = (tmp_path / "set").glob("sub-*/anat/sub-*_run-1_T1w.nii.gz")
    (mask,) = (tmp_path / "set").glob("derivatives/medclipsam/sub-*/anat/sub-*_run-1_dseg.nii.gz")
    assert nib.load(image).shape == nib.load(mask).shape
    with (tmp_path / "set" / "derivatives" / "medclipsam" / "dseg.tsv").open() as file:
        table = {row["name"]: int(row["index"]) for row in csv.DictReader(file, delimiter="\t")}
    assert table == NAMES
    for place in (tmp_path / "set", tmp_path / "set" / "derivatives" / "medclipsam"):
        described = json.loads((place / "dataset_description.json").read_text())
        assert {"Name", "BIDSVersion", "DatasetType", "GeneratedBy"} <= described.keys()


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("nifti", lambda root: (root / "labels.json").unlink(), r"no labels\.json"),
    ("nifti", lambda root: (root / "labels.json").write_text("[1]"), "does not hold an object"),
    ("nifti", lambda root: _edit(root / "labels.json", heart=300), "'heart' the value 300"),
    ("nifti", lambda root: _edit(root / "labels.json", heart=1), "another name has"),
    ("nifti", lambda root: _truncate(sorted((root / "labels").iterdir())[-1]), "cannot be"),
    ("nifti", lambda root: (root / "labels.json").write_text('{"heart": 13}'), "does not name"),
    ("nnunet", lambda root: _first(root, "dataset.json").write_text("{}"), "not one of nnU-Net v2"),
    ("nnunet", lambda root: _edit(_first(root, "dataset.json"), labels={"background": 0, "all": [1, 2]}), "regions"),
    ("bids", lambda root: _first(root, "dseg.tsv").unlink(), r"no dseg\.tsv"),
    ("bids", lambda root: _first(root, "dseg.tsv").write_text("a\tb\n1\t2\n"), "index and name"),
    ("coco", lambda root: (root / "instances_train.json").write_text("nothing"), "no COCO annotations"),
    ("coco", lambda root: _edit(root / "instances_train.json", images=[]), "does not list"),
    ("coco", lambda root: _edit(root / "instances_train.json", categories=[]), "category"),
    ("seg", lambda root: _truncate(sorted((root / "labels").iterdir())[-1]), "cannot be"),
    ("rtstruct", lambda root: _truncate(sorted((root / "labels").iterdir())[-1]), "cannot be"),
]


@pytest.mark.parametrize(("kind", "change", "named"), BROKEN)
def test_of_a_set_that_cannot_be_read_nothing_is_imported(
    studies: Path,
    exported: Callable[[Any], Exported],
    tmp_path: Path,
    kind: Any,
    change: Callable[[Path], object],
    named: str,
) -> None:
    shutil.copytree(exported(kind).folder, tmp_path / "set")
    change(tmp_path / "set")
    (tmp_path / "new").mkdir()
    images = ImportOptions()
    if kind == "coco":
        # a set of pictures of planes brings no volumes
        for place in studies.iterdir():
            if place.name not in ("labels", "datastore_v2.json") and not place.name.startswith("."):
                (tmp_path / "new" / place.name).symlink_to(place)
    before = _files(tmp_path / "new")
    with pytest.raises(InputError, match=named):
        import_labels(tmp_path / "set", kind, FolderLabelStore(tmp_path / "new"), images)
    assert _files(tmp_path / "new") == before


@pytest.mark.parametrize(
    ("segmentation", "named"),
    [
        ({"size": [64, 64], "counts": [5]}, "do not fit"),
        ({"size": [64, 64], "counts": "\x7f"}, "cannot be read"),
        ({"size": [64, 64]}, "neither"),
        ([[1, 2, 3]], "polygon"),
        ([["a", "b"]], "polygon"),
        (None, "neither"),
    ],
)
def test_odd_coco_masks_are_refused(segmentation: Any, named: str) -> None:
    from medclipsam.exchange.coco import mask_of

    with pytest.raises(InputError, match=named):
        mask_of(segmentation, (64, 64), "x")


def test_names_become_known_targets_are_mapped_or_left_out(studies: Path, tmp_path: Path) -> None:
    export_labels(studies, tmp_path / "set", "nifti", ExportOptions(modality="DX"))
    # as another program writes it
    (tmp_path / "set" / "provenance.json").unlink()
    (tmp_path / "set" / "labels.json").write_text(json.dumps({"Left Lung": 1, "heart": 13, "a cyst": 77}))
    (tmp_path / "new").mkdir()
    names = {"a cyst": "a bone cyst", "heart": ""}
    (case,) = import_labels(tmp_path / "set", "nifti", FolderLabelStore(tmp_path / "new"), names=names)
    assert case.names == {"left lung": 11, "a bone cyst": 77}
    assert case.renamed == {"Left Lung": "left lung", "a cyst": "a bone cyst"}
    assert case.left_out == ["heart"]
    masks = _masks(tmp_path / "new")[case.image_id]
    (original,) = [each for name, each in _masks(studies).items() if name == "film"]
    assert np.array_equal(masks["left lung"].sum(), original["breast tumour"].sum())
    with pytest.raises(InputError, match="'nonesuch'"):
        import_labels(tmp_path / "set", "nifti", FolderLabelStore(tmp_path / "new"), names={"nonesuch": "heart"})


class _FullDisk(FolderLabelStore):
    saved = 0

    def save(self, image_id: str, label: LabelMap, info: Any) -> None:
        self.saved += 1
        if self.saved == 3:
            raise StorageError("The disk is full.", full=True)
        super().save(image_id, label, info)


def test_where_saving_fails_everything_is_taken_back(studies: Path, tmp_path: Path) -> None:
    export_labels(studies, tmp_path / "set", "nifti")
    (tmp_path / "new").mkdir()
    with pytest.raises(StorageError):
        import_labels(tmp_path / "set", "nifti", _FullDisk(tmp_path / "new"))
    store = FolderLabelStore(tmp_path / "new")
    assert dict(store.images()) == {}
    assert [file for file in _files(tmp_path / "new") if file.endswith(".nii.gz")] == []


def test_cancelled_work_leaves_nothing(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(CancelledError):
        export_labels(studies, tmp_path / "set", "nifti", cancelled=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_exports_that_cannot_be_are_refused(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_labels(studies, tmp_path / "full", "nifti")
    with pytest.raises(InputError, match="does not exist"):
        export_labels(studies, tmp_path / "no" / "set", "nifti")
    with pytest.raises(InputError, match="no final labels of the modality PT"):
        export_labels(studies, tmp_path / "set", "nifti", ExportOptions(modality="PT"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no final labels"):
        export_labels(tmp_path / "empty", tmp_path / "set", "nifti")
    with pytest.raises(InputError, match="No label can be written"):
        export_labels(studies, tmp_path / "set", "rtstruct", ExportOptions(modality="DX"))
    assert not (tmp_path / "set").exists()


def test_the_command_exports_says_what_is_left_out_and_imports(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--studies", str(studies), "--format", "seg"]
    assert main(["labels", "export", str(tmp_path / "set"), *where, "--seg-type", "LABELMAP", "--reports", "true"]) == 0
    said = capsys.readouterr().out
    assert "4 images" in said
    assert "left out: picture" in said
    assert len(list((tmp_path / "set" / "reports").iterdir())) == 4
    (tmp_path / "new").mkdir()
    into = ["--studies", str(tmp_path / "new"), "--format", "seg"]
    assert main(["labels", "import", str(tmp_path / "set"), *into, "--dry-run", "--map", "a cyst="]) == 0
    assert "would be" in capsys.readouterr().out
    assert _files(tmp_path / "new") == []
    assert main(["labels", "import", str(tmp_path / "set"), *into, "--map", "a cyst="]) == 0
    assert all(masks.keys() == {"breast tumour", "heart"} for masks in _masks(tmp_path / "new").values())
    assert len(_masks(tmp_path / "new")) == 4
    assert main(["labels", "import", str(tmp_path / "set"), *into, "--map", "cyst"]) == 2
    assert "--map" in capsys.readouterr().err


def test_a_set_of_another_reader_counts_beside_the_labels_that_are_there(
    exported: Callable[[Any], Exported], tmp_path: Path
) -> None:
    made, copy = exported("nifti"), _studies(tmp_path / "copy")
    for file in (made.folder / "provenance.json", *made.folder.rglob("provenance.json")):
        assert file.is_file()
    options = ImportOptions(existing="beside", reader="zoe")
    first = import_labels(made.folder, "nifti", FolderLabelStore(copy), options)
    store = FolderLabelStore(copy)
    for case in first:
        image = read_image(store.images()[case.image_id])
        store.save(case.image_id, LabelMap(np.zeros_like(_values(image)), image, {}), {"saved_by": "yan"})
    again = import_labels(made.folder, "nifti", FolderLabelStore(copy), options)
    assert {case.action for case in again} == {"beside"}
    late = FolderLabelStore(copy)
    assert all(late.waits_for_consensus(case.image_id) for case in again)
    assert all("yan" in late.readings(case.image_id, read_image(late.images()[case.image_id])) for case in again)
