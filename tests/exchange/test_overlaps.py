"""Label sets of segments that overlap: whole in the formats that hold them, refused by name in those that do not."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medclipsam.base.errors import InputError
from medclipsam.demo.dicom import volume, xray
from medclipsam.exchange import ExportOptions, ImportOptions, export_labels, import_labels
from medclipsam.imaging import MedicalImage, read_image, read_mask
from medclipsam.imaging.label_map import LabelMap, is_same_label
from medclipsam.server.studies.exchange import FolderLabelStore

NAMES = {"lungs CT": 5, "lung nodule": 9, "a: b, c": 7, "nothing": 3}


def _label(image: MedicalImage) -> LabelMap:
    shape = (image.n_planes, *image.plane_shape)
    masks = {name: np.zeros(shape, bool) for name in NAMES}
    masks["lungs CT"][:, 4:30, 6:40] = True
    masks["lungs CT"][:, 10:14, 10:14] = False
    # a part of the nodule is outside of the lungs
    masks["lung nodule"][0, 20:26, 36:44] = True
    masks["a: b, c"][-1, 2:12, 2:20] = masks["a: b, c"][0, 22:24, 30:41] = True
    return LabelMap.from_masks(masks, image, NAMES, NAMES)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT series, a film and a NIfTI volume with labels that overlap."""
    folder = tmp_path_factory.mktemp("overlaps") / "studies"
    (folder / "series").mkdir(parents=True)
    for index, content in enumerate(volume("CT", 1, 4, size=64).contents()):
        (folder / "series" / f"{index}.dcm").write_bytes(content)
    (folder / "film.dcm").write_bytes(xray("DX", 1, size=64).contents()[0])
    values = np.random.default_rng(0).normal(size=(48, 50, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.5, 2.0, 1.0])), folder / "volume.nii.gz")
    store = FolderLabelStore(folder)
    for image_id, path in store.images().items():
        store.save(image_id, _label(read_image(path)), {"saved_by": "ada"})
    return folder


def _labels(folder: Path) -> dict[str, LabelMap]:
    store, found = FolderLabelStore(folder), {}
    for image_id, path in store.images().items():
        kept = store.label(image_id, read_image(path))
        if kept is not None:
            found[image_id] = kept[0]
    return found


def test_a_studies_folder_keeps_what_overlaps_whole(studies: Path) -> None:
    found = _labels(studies)
    assert len(found) == 3
    for label in found.values():
        assert label.overlaps
        assert is_same_label(label, _label(label.image))
    for file in (studies / "labels" / "final").iterdir():
        assert file.name.endswith(".seg.nrrd")
        layers = sitk.ReadImage(str(file))
        assert layers.GetNumberOfComponentsPerPixel() == 3
        assert layers.GetMetaData("Segment0_Name") == "lungs CT"


@pytest.mark.parametrize(("kind", "n_cases"), [("coco", 3), ("bids", 3), ("seg", 2), ("rtstruct", 1)])
def test_what_overlaps_is_exported_and_imported_voxel_for_voxel(
    studies: Path, tmp_path: Path, kind: Any, n_cases: int
) -> None:
    made = export_labels(studies, tmp_path / "set", kind)
    assert len(made.cases) == n_cases
    assert {case.action for case in import_labels(made.folder, kind, FolderLabelStore(studies))} == {"unchanged"}
    if kind == "coco":
        # pictures of planes bring no volumes
        shutil.copytree(studies, tmp_path / "new", ignore=shutil.ignore_patterns("labels", "datastore_v2.json", ".*"))
    else:
        (tmp_path / "new").mkdir()
    found = import_labels(made.folder, kind, FolderLabelStore(tmp_path / "new"))
    assert {case.action for case in found} == {"new"}
    before, after = _labels(studies), _labels(tmp_path / "new")
    assert after.keys() == {case["image"] for case in made.cases.values()}
    for image_id, label in after.items():
        assert label.names.keys() == NAMES.keys()
        for name in NAMES:
            stored = before[image_id].image.to_native(before[image_id].mask(name))
            assert np.array_equal(label.image.to_native(label.mask(name)), stored)


def test_what_is_left_out_uncovers_what_it_lay_on(studies: Path, tmp_path: Path) -> None:
    made = export_labels(studies, tmp_path / "set", "seg", ExportOptions(modality="CT"))
    (tmp_path / "new").mkdir()
    names = {"lung nodule": "", "a: b, c": "lungs CT"}
    import_labels(made.folder, "seg", FolderLabelStore(tmp_path / "new"), names=names)
    (label,) = _labels(tmp_path / "new").values()
    whole = _label(label.image)
    assert label.names.keys() == {"lungs CT", "nothing"}
    assert not label.overlaps
    assert np.array_equal(label.mask("lungs CT"), whole.mask("lungs CT") | whole.mask("a: b, c"))


@pytest.mark.parametrize("kind", ["nifti", "nnunet"])
def test_formats_of_one_value_for_each_voxel_refuse_what_overlaps_or_have_the_smaller_on_top(
    studies: Path, tmp_path: Path, kind: Any
) -> None:
    with pytest.raises(InputError, match=r"'.+' and '.+' overlap in [0-9]+ voxels"):
        export_labels(studies, tmp_path / "set", kind, ExportOptions(modality="CT"))
    assert not (tmp_path / "set").exists()
    made = export_labels(studies, tmp_path / "set", kind, ExportOptions(modality="CT", overlaps="smaller-on-top"))
    (file,) = (path for path in made.folder.rglob("*.nii.gz") if "label" in path.parent.name)
    (image_id,) = (case["image"] for case in made.cases.values())
    label = _labels(studies)[image_id]
    lookup = np.zeros(256, np.uint8)
    for name, value in label.names.items():
        lookup[value] = made.classes[name]
    assert np.array_equal(read_mask(file, label.image), lookup[label.values])


def test_a_labelmap_segmentation_refuses_what_overlaps(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.+' and '.+' overlap.*LABELMAP"):
        export_labels(studies, tmp_path / "set", "seg", ExportOptions(modality="CT", seg_type="LABELMAP"))
    assert not (tmp_path / "set").exists()


def test_highdicom_reads_segments_that_overlap(studies: Path, tmp_path: Path) -> None:
    made = export_labels(studies, tmp_path / "set", "seg", ExportOptions(modality="CT", reports=True))
    ((name, case),) = made.cases.items()
    found = highdicom.seg.segread(tmp_path / "set" / "labels" / f"{name}.dcm")
    assert str(found.SegmentsOverlap) != "NO"
    label = _labels(studies)[case["image"]]
    numbers = {found.get_segment_description(n).segment_label: n for n in found.segment_numbers}
    assert numbers.keys() == NAMES.keys()
    instances = [
        file.SOPInstanceUID
        for file in sorted(
            (highdicom.imread(path) for path in (tmp_path / "set" / "images" / name).iterdir()),
            key=lambda each: each.ImagePositionPatient[2],
        )
    ]
    for each, number in numbers.items():
        frames = found.get_pixels_by_source_instance(
            instances, segment_numbers=[number], assert_missing_frames_are_empty=True
        )
        assert np.array_equal(frames[..., 0] > 0, label.image.to_native(label.mask(each)))


def test_a_bids_set_has_a_mask_for_each_segment_that_overlaps(studies: Path, tmp_path: Path) -> None:
    export_labels(studies, tmp_path / "set", "bids", ExportOptions(modality="CT"))
    derived = tmp_path / "set" / "derivatives" / "medclipsam"
    assert not list(derived.rglob("*_dseg.nii.gz"))
    with (derived / "dseg.tsv").open() as file:
        words = {row["name"]: row["abbreviation"] for row in csv.DictReader(file, delimiter="\t")}
    assert words == {"nothing": "nothing", "lungs CT": "lungsCT", "a: b, c": "abc", "lung nodule": "lungnodule"}
    (label,) = (each for each in _labels(studies).values() if each.image.modality == "CT")
    for name, word in words.items():
        (path,) = derived.glob(f"sub-*/anat/sub-*_run-1_label-{word}_mask.nii.gz")
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert np.array_equal(mask > 0, label.image.to_native(label.mask(name)))
        assert json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["Type"] == "ROI"
    path.rename(path.with_name(path.name.replace("lungnodule", "other")))
    with pytest.raises(InputError, match="'other'"):
        import_labels(tmp_path / "set", "bids", FolderLabelStore(studies), ImportOptions(existing="replace"))


def test_a_segmentation_put_there_by_hand_is_exported_by_its_own_names(tmp_path: Path) -> None:
    """As 3D Slicer saves it: every layer counts its values from 1."""
    studies = tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros((8, 9, 4), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0])), studies / "ct.nii.gz")
    voxels = np.zeros((4, 9, 8, 2), np.uint8)
    voxels[:, 2:8, 2:8, 0] = voxels[1, 3:5, 3:5, 1] = 1
    drawn = sitk.GetImageFromArray(voxels, isVector=True)
    for number, name in enumerate(("lung", "nodule")):
        for key, text in (("Name", name), ("LabelValue", "1"), ("Layer", str(number))):
            drawn.SetMetaData(f"Segment{number}_{key}", text)
    sitk.WriteImage(drawn, str(studies / "labels" / "final" / "ct.seg.nrrd"))
    made = export_labels(studies, tmp_path / "set", "bids")
    assert made.classes.keys() == {"lung", "nodule"}
    for number, name in enumerate(("lung", "nodule")):
        (path,) = (tmp_path / "set").rglob(f"*_label-{name}_mask.nii.gz")
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels[..., number])
