"""Demo data: masks that hold every structure exactly, absent ones too, under two renderers."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medclipsam.demo.polygons
from medclipsam.base.errors import InputError
from medclipsam.demo import captions
from medclipsam.demo.data import FIRST_SEEDS, RENDERERS, tasks, write_data
from medclipsam.demo.phantoms import MODALITIES, make_phantom
from medclipsam.evaluation.data import find_cases, read_case
from medclipsam.evaluation.tasks import NONSENSE
from medclipsam.targets import TargetSet
from tools.demo_training.train_clip import FIRST_SEED

TARGETS = TargetSet.load()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, 2)
    return folder


def test_every_structure_has_its_exact_mask(data: Path) -> None:
    """Overlapping ones ("lungs", "left lung") as well, and all-zero where a structure is absent."""
    structure_of = {"lung nodule": "nodule", "lungs x-ray": "lungs", "lungs CT": "lungs"}
    seen = set()
    for case in find_cases(data, TARGETS):
        code, number = case.name.split("-")
        sick = int(number) < FIRST_SEEDS["test"] + 2
        phantom = make_phantom(code.upper(), int(number), pathology=int(number) % 2 == 0 if code == "xr" else sick)
        name = structure_of.get(case.task.prompt, case.task.prompt)
        truth = phantom.masks.get(name, np.zeros(phantom.image.shape[:2], bool))
        np.testing.assert_array_equal(read_case(case)[1][0], truth, err_msg=f"{case.task.name} {case.name}")
        seen.add((case.task.name, bool(truth.any())))
    assert len({name for name, _ in seen}) == len(tasks())
    for tumour in ("breast tumour, ultrasound", "brain tumour, MRI", "nodule, CT"):
        assert {present for name, present in seen if name == tumour} == {True, False}


def test_its_texts_are_new_to_the_demo_models(data: Path) -> None:
    trained = {text for text, *_ in captions.training_texts()}
    described = {case.task.name: case.task for case in find_cases(data, TARGETS)}
    for task in described.values():
        target = TARGETS.match(task.prompt, task.modality)
        assert target is not None, task.prompt
        assert not trained & {*task.paraphrases, *task.nonsense}
        for text in task.other_structures:
            other = TARGETS.match(text, task.modality)
            assert other is not None
            assert not target.overlaps_with(other)
        assert task.other_modality
    assert described["lungs, CT"].paraphrases != described["lungs, x-ray"].paraphrases
    assert not {*NONSENSE} & {*captions.GENERIC}


def test_splits_share_no_seed_with_each_other_or_with_training(data: Path, tmp_path: Path) -> None:
    write_data(tmp_path, 1, absent=0, split="val")
    write_data(tmp_path, 1, absent=0, split="test")
    names = [path.name for path in tmp_path.glob("*/*_images/*.png")]
    assert len(set(names)) == len(names) == 8
    assert max(FIRST_SEEDS.values()) + 10_000 < FIRST_SEED
    with pytest.raises(InputError, match="holds files already"):
        write_data(data, 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"images": 0}, "0 images"),
        ({"images": 1, "absent": -1}, "-1"),
        ({"images": 1, "seed": -1}, "seed"),
        ({"images": 1, "split": "dev"}, "dev"),
        ({"images": 1, "renderer": "crayons"}, "crayons"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(tmp_path: Path, arguments: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        write_data(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_second_renderer_draws_the_same_structures(modality: str) -> None:
    draw = RENDERERS["polygons"]
    for seed in range(3):
        sick, healthy = (draw(modality, seed, pathology=pathology) for pathology in (True, False))
        first = draw(modality, seed, pathology=True)
        np.testing.assert_array_equal(sick.image, first.image)
        assert sick.image.dtype == np.uint8
        assert sick.image.std() > 20
        own = {name for name in captions.STRUCTURES if modality in captions.SEEN_IN[name]}
        findings = own & set(captions.FINDINGS)
        assert set(sick.masks) == own
        assert not set(healthy.masks) & findings
        for name, mask in sick.masks.items():
            assert mask.shape == sick.image.shape, name
        if "lungs" in own:
            both = sick.masks["left lung"] | sick.masks["right lung"]
            np.testing.assert_array_equal(sick.masks["lungs"], both)
            columns = {side: np.argwhere(sick.masks[f"{side} lung"])[:, 1].mean() for side in ("left", "right")}
            assert columns["right"] < columns["left"]  # as a radiologist sees the patient


def test_the_second_renderer_shares_no_drawing_code() -> None:
    source = Path(medclipsam.demo.polygons.__file__).read_text()
    imported = {
        (node.module, name.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medclipsam.demo")
        for name in node.names
    }
    assert imported == {("medclipsam.demo.phantoms", "MODALITIES"), ("medclipsam.demo.phantoms", "Phantom")}


def test_written_images_are_the_renderer_s(tmp_path: Path) -> None:
    write_data(tmp_path, 1, absent=0, seed=5, renderer="polygons")
    drawn = RENDERERS["polygons"]("US", 5, pathology=True).image
    written = np.asarray(Image.open(tmp_path / "breast-ultrasound" / "test_images" / "us-0000005.png"))
    np.testing.assert_array_equal(written, drawn)
