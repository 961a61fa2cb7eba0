"""The names that `medclipsam` itself offers."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import medclipsam
from medclipsam.base.errors import InputError
from medclipsam.demo.phantoms import make_phantom
from medclipsam.imaging import MedicalImage
from medclipsam.pipeline.zero_shot import TargetEvidence, ZeroShot, ZeroShotResult

SOURCE = Path(medclipsam.__file__)


def run(code: str) -> object:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "scipy", "PIL", "pydicom", "nibabel"]
    code = f"import json, sys, medclipsam; print(json.dumps([n for n in {heavy} if n in sys.modules]))"
    assert run(code) == []


def test_reading_and_writing_need_no_torch() -> None:
    code = "import json, sys; from medclipsam import read_image, write_mask, TargetSet, draw_overlay, read_mask"
    assert run(f"{code}; print(json.dumps('torch' in sys.modules))") is False


def test_a_name_stays_what_it_is_after_its_module_was_imported() -> None:
    code = "import json, medclipsam.pipeline.refine, medclipsam.imaging.read, medclipsam.pipeline.zero_shot"
    assert run(f"{code}; from medclipsam import refine; print(json.dumps(refine.__module__))") == (
        "medclipsam.pipeline.refine"
    )


@pytest.mark.parametrize("name", medclipsam.__all__)
def test_each_name_is_there_listed_and_seen_by_type_checkers(name: str) -> None:
    value = getattr(medclipsam, name)
    assert name in dir(medclipsam)
    if name == "__version__":
        return
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    (module,) = {node.module for node in imports for alias in node.names if alias.name == name}
    assert module is not None
    assert value.__module__ == module


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError):
        medclipsam.nonesuch  # noqa: B018
    with pytest.raises(ImportError):
        from medclipsam import nonesuch  # type: ignore[attr-defined]  # noqa: F401


def test_plot_shows_the_mask_where_it_is_and_nothing_elsewhere(pipeline: ZeroShot) -> None:
    pixels = np.full((64, 64), 40, np.uint8)
    pixels[8:24, 32:56] = 250
    result = pipeline.segment(MedicalImage.from_array(pixels), "bright spot")
    assert result.labels.any()
    picture = np.asarray(result.plot())[:768, :768].astype(int)
    colourful = np.ptp(picture, axis=2) > 20
    mask = np.kron(result.labels[0] > 0, np.ones((12, 12), bool))
    assert np.mean(colourful[mask]) > 0.95
    assert np.mean(colourful[~mask]) < 0.05


def test_plot_takes_the_window_of_the_first_target_that_has_one() -> None:
    values = np.tile(np.linspace(-1000, 1000, 64).astype(np.int16), (64, 1))
    image = MedicalImage.from_array(values, modality="CT")
    targets = [TargetEvidence("heart", 1, [], True), TargetEvidence("lung", 2, [], True, window=(-600.0, 1500.0))]
    empty: dict[str, object] = {}
    result = ZeroShotResult(np.zeros((1, 64, 64), np.uint8), {}, targets, "", empty, empty, empty, {}, source=image)
    assert result.window == medclipsam.imaging.Window(-600.0, 1500.0)
    shown = np.asarray(result.plot())
    expected = np.asarray(medclipsam.draw_overlay(result.labels, image, {}, window=result.window))
    assert (shown == expected).all()
    assert (shown != np.asarray(medclipsam.draw_overlay(result.labels, image, {}))).any()


@pytest.mark.parametrize("plane", [-1, 1])
def test_plot_refuses_a_plane_that_is_not_there(plane: int) -> None:
    phantom = make_phantom("US", 1).image
    image = MedicalImage.from_array(phantom)
    empty: dict[str, object] = {}
    labels = np.zeros((1, *phantom.shape[:2]), np.uint8)
    with pytest.raises(InputError):
        ZeroShotResult(labels, {}, [], "", empty, empty, empty, {}, source=image).plot(plane=plane)
    with pytest.raises(InputError):
        ZeroShotResult(labels, {}, [], "", empty, empty, empty, {}).plot()
