"""Images pair with masks by name; what is missing, broken or of another size is named."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.evaluation.data import check_cases, draw_cases, find_cases, read_case
from medclipsam.evaluation.tasks import NONSENSE, read_prompts, task_of_folder
from medclipsam.imaging import read_image, write_mask
from medclipsam.imaging.label_map import LabelMap
from medclipsam.targets import TargetSet

from .conftest import disc, save

TARGETS = TargetSet.load()


def test_images_pair_with_masks_by_name_and_not_by_order(tmp_path: Path) -> None:
    """Names whose order differs from that of their extensions; the mask of each image is known by its area."""
    for size, (image, mask) in enumerate([("10.png", "10.bmp"), ("9.jpg", "9.png"), ("x/1.png", "x/1.png")], start=3):
        save(np.zeros((30, 40)), tmp_path / "lung_xray" / "test_images" / image)
        save(disc((30, 40), 15, 20, size) * 255, tmp_path / "lung_xray" / "test_masks" / mask)
    cases = find_cases(tmp_path, TARGETS)
    areas = {case.name: int(read_case(case)[1].sum()) for case in cases}
    assert areas == {name: int(disc((30, 40), 15, 20, n).sum()) for name, n in {"10": 3, "9": 4, "x/1": 5}.items()}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda task: (task / "test_masks" / "b.png").unlink(), "images/b.png has no mask"),
        (lambda task: (task / "test_images" / "b.png").unlink(), "masks/b.png has no image"),
        (lambda task: save(np.zeros((64, 95)), task / "test_masks" / "b.png"), "b.png has 95 x 64 voxels"),
        (lambda task: (task / "test_masks" / "b.png").write_bytes(b"no picture"), "masks/b.png"),
        (lambda task: (task / "test_images" / "b.png").write_bytes(b"no picture"), "images/b.png"),
        (lambda task: save(np.zeros((64, 96)), task / "test_images" / "b.bmp"), "have one name"),
        (lambda task: save(np.eye(64, 96)[..., None] * [255, 0, 0], task / "test_masks" / "b.png"), "colours"),
        (lambda task: (task / "test_masks").rename(task / "masks"), "test_masks is missing"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_file(spots: Path, spoil, named: str) -> None:
    spoil(spots / "spot")
    with pytest.raises(InputError, match=named):
        check_cases(find_cases(spots, TARGETS))


def test_masks_of_labels_palettes_and_lossy_files(tmp_path: Path) -> None:
    """Two tasks share a folder and take different values of the mask."""
    folder = tmp_path / "chest"
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8], labels[10:14, 10:14], labels[16:18, 16:18] = 1, 2, 7
    palette = Image.fromarray(labels)
    palette.putpalette([0, 0, 0, *(37 * n % 256 for n in range(1, 22))])
    for name in ("grey", "palette", "lossy"):
        save(np.zeros((20, 30)), folder / "test_images" / f"{name}.png")
    save(labels, folder / "test_masks" / "grey.png")
    palette.save(folder / "test_masks" / "palette.png")
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(folder / "test_masks" / "lossy.jpg", quality=60)
    tasks = {
        "heart": {"folder": "chest", "labels": [1, 7]},
        "spine": {"folder": "chest", "labels": 2},
        "any": {"folder": "chest", "prompt": "lungs"},
    }
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    truths = {(case.task.name, case.name): read_case(case)[1][0] for case in find_cases(tmp_path, TARGETS)}
    for name in ("grey", "palette"):
        np.testing.assert_array_equal(truths["heart", name], np.isin(labels, (1, 7)))
        np.testing.assert_array_equal(truths["spine", name], labels == 2)
    np.testing.assert_array_equal(truths["any", "lossy"], labels > 0)
    # The tasks of one image follow each other, so that it is read and encoded once.
    names = [case.name for case in find_cases(tmp_path, TARGETS)]
    assert names == sorted(names)


def test_folders_and_the_published_names_need_no_tasks_file(tmp_path: Path) -> None:
    for name in ("breast_tumors", "lung_CT", "left_lung"):
        save(np.zeros((10, 10)), tmp_path / name / "test_images" / "1.png")
        save(np.zeros((10, 10)), tmp_path / name / "test_masks" / "1.png")
    tasks = {case.task.name: case.task for case in find_cases(tmp_path, TARGETS)}
    assert tasks["breast_tumors"].prompt == "breast tumour"
    assert tasks["breast_tumors"].modality == "US"
    assert tasks["lung_CT"].published == "lung CT"
    left = TARGETS.get("left lung")
    assert tasks["left_lung"].prompt == "left lung"
    assert tasks["left_lung"].nonsense == NONSENSE
    # Other structures are disjoint, other modalities are others.
    others = [TARGETS.match(text) for text in tasks["left_lung"].other_structures]
    assert others
    assert not any(other is None or left.overlaps_with(other) for other in others)
    assert not any(TARGETS.match(text).shares_modality(left) for text in tasks["left_lung"].other_modality)
    with pytest.raises(InputError, match="gallstones"):
        task_of_folder("gallstones", TARGETS)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"promt": "heart"}, "promt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "heart; spine"}, "asks for 2"),
        ({"labels": [0]}, "labels"),
        ({"folder": "../elsewhere"}, "folder"),
        ({"nonsense": "one text"}, "nonsense"),
        ({"prompt": "left lung", "modality": "DX", "other_structures": ["both lungs"]}, "both lungs"),
    ],
)
def test_a_bad_tasks_file_is_named_with_its_task_and_key(tmp_path: Path, entry: dict, named: str) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": {"mine": entry}}))
    with pytest.raises(InputError, match=named) as error:
        find_cases(tmp_path, TARGETS)
    assert "mine" in str(error.value)


def test_a_studies_folder_with_final_labels(tmp_path: Path) -> None:
    """Values are named by the datastore file where it does, else by the targets' own labels; absent ones count."""
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    volume = np.zeros((8, 9, 4), np.int16)
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "one.nii.gz")
    save(np.zeros((20, 30)), tmp_path / "two.png")
    final = tmp_path / "labels" / "final"
    final.mkdir(parents=True)
    image = read_image(tmp_path / "one.nii.gz")
    drawn = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    drawn[1, 2:5, 3:6] = 5
    write_mask(drawn, image, final / "one.nii.gz")
    write_mask(disc((20, 30), 10, 10, 4).astype(np.uint8) * 13, read_image(tmp_path / "two.png"), final / "two.nii.gz")
    info = {"label_info": [{"name": "left lung", "idx": 5}, {"name": "spine", "idx": 6}]}
    objects = {"one": {"image": {}, "labels": {"final": {"ext": ".nii.gz", "info": info}}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    truths = {(case.name, case.task.name): read_case(case)[1] for case in find_cases(tmp_path, TARGETS)}
    assert {key: bool(truth.any()) for key, truth in truths.items()} == {
        ("one", "left lung"): True,
        ("one", "spine"): False,
        ("two", "heart"): True,
    }
    np.testing.assert_array_equal(truths["one", "left lung"], drawn > 0)
    np.testing.assert_array_equal(truths["two", "heart"][0], disc((20, 30), 10, 10, 4))
    (tmp_path / "two.png").unlink()
    with pytest.raises(InputError, match="two"):
        find_cases(tmp_path, TARGETS)


def test_structures_that_overlap_are_measured_whole(tmp_path: Path) -> None:
    save(np.zeros((20, 30)), tmp_path / "film.png")
    masks = {"heart": disc((20, 30), 10, 10, 6)[None], "left lung": disc((20, 30), 10, 16, 6)[None]}
    (tmp_path / "labels" / "final").mkdir(parents=True)
    label = LabelMap.from_masks(masks, read_image(tmp_path / "film.png"), {"heart": 3, "left lung": 9})
    label.write(tmp_path / "labels" / "final" / "film.seg.nrrd")
    cases = find_cases(tmp_path, TARGETS)
    assert [(case.name, case.task.name) for case in cases] == [("film", "heart"), ("film", "left lung")]
    for case in cases:
        np.testing.assert_array_equal(read_case(case)[1], masks[case.task.name])
    # what is drawn by lot looks at the masks too
    assert draw_cases([*cases, *(replace(case, name="other") for case in cases)], 1, 0)


def test_prompts_of_protocol_a(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"1.png": "a mass", "2.png": "another"}))
    assert read_prompts(file, {"breast": ["1.png"]}, TARGETS) == {"breast": {"1.png": "a mass"}}
    with pytest.raises(InputError, match=r"3\.png"):
        read_prompts(file, {"breast": ["1.png", "3.png"]}, TARGETS)
    with pytest.raises(InputError, match="names no task"):
        read_prompts(file, {"breast": ["1.png"], "brain": ["1.png"]}, TARGETS)
    file.write_text(json.dumps({"breast": {"1.png": "a mass"}, "brain": {"1.png": "a glioma"}}))
    assert read_prompts(file, {"brain": ["1.png"]}, TARGETS) == {"brain": {"1.png": "a glioma"}}


def _many(data: Path, folder: str, present: int, absent: int) -> None:
    """Images whose order by name is that of presence."""
    for number in range(present + absent):
        mask = disc((12, 12), 6, 6, 3) & (number < present)
        save(np.zeros((12, 12)), data / folder / "test_images" / f"{number:03}.png")
        save(mask * 255, data / folder / "test_masks" / f"{number:03}.png")


def _drawn(cases, limit: int, seed: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for case in draw_cases(cases, limit, seed):
        found.setdefault(case.task.folder, []).append(int(case.name))
    return found


@pytest.mark.parametrize(
    ("present", "absent", "limit", "expected"),
    [(30, 10, 8, (6, 2)), (30, 10, 2, (1, 1)), (10, 30, 6, (2, 4)), (20, 20, 1, (1, 0)), (9, 1, 3, (3, 0))],
)
def test_a_sample_has_present_and_absent_in_the_proportion_of_the_data(
    tmp_path: Path, present: int, absent: int, limit: int, expected: tuple[int, int]
) -> None:
    _many(tmp_path, "lung_xray", present, absent)
    drawn = _drawn(find_cases(tmp_path, TARGETS), limit, seed=0)["lung_xray"]
    holds = sum(number < present for number in drawn)
    assert len(drawn) == limit
    assert (holds, limit - holds) == expected or (present == absent and holds in (0, 1))
    assert drawn == sorted(drawn)


def test_a_sample_is_of_every_folder_and_its_seed_alone_decides(tmp_path: Path) -> None:
    _many(tmp_path, "lung_xray", 30, 10)
    _many(tmp_path, "lung_CT", 20, 20)
    _many(tmp_path, "breast_tumors", 3, 1)
    cases = find_cases(tmp_path, TARGETS)
    drawn = _drawn(cases, 8, seed=0)
    assert {folder: len(names) for folder, names in drawn.items()} == {
        "lung_xray": 8,
        "lung_CT": 8,
        "breast_tumors": 4,  # there are no more
    }
    assert _drawn(cases, 8, seed=0) == drawn
    others = [_drawn(cases, 8, seed)["lung_xray"] for seed in range(1, 6)]
    assert any(other != drawn["lung_xray"] for other in others)
    # not the first by name of each kind
    assert any(set(names) - {*range(6), 30, 31} for names in (drawn["lung_xray"], *others))


def test_a_sample_keeps_the_tasks_of_an_image_together_and_draws_each_combination(tmp_path: Path) -> None:
    for number in range(16):
        labels = np.zeros((12, 12))
        labels[2:4, 2:4], labels[8:10, 8:10] = 1 * (number < 8), 2 * (number % 2)
        save(labels, tmp_path / "chest" / "test_masks" / f"{number:02}.png")
        save(np.zeros((12, 12)), tmp_path / "chest" / "test_images" / f"{number:02}.png")
    tasks = {name: {"folder": "chest", "prompt": name, "labels": [value]} for name, value in (("a", 1), ("b", 2))}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    drawn = draw_cases(find_cases(tmp_path, TARGETS), 4, 0)
    assert [case.task.name for case in drawn] == ["a", "b"] * 4
    kinds = {(int(case.name) < 8, int(case.name) % 2) for case in drawn}
    assert len(kinds) == 4


def test_a_prompt_that_cannot_be_searched_for_is_refused_before_the_run(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"1.png": "a mass", "2.png": "no mass"}))
    with pytest.raises(InputError, match=r"2\.png"):
        read_prompts(file, {"breast": ["1.png", "2.png"]}, TARGETS)
