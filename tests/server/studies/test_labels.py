"""What is taken as a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.errors import ImageError, InputError
from medclipsam.server.studies.images import ImageReader
from medclipsam.server.studies.labels import LabelCheck, named_labels

Save = Callable[..., Path]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def run(*values: int, shape: tuple[int, int] = (6, 8)) -> Path:
        label = np.zeros(shape, np.uint8)
        label.flat[: len(values)] = values
        sitk.WriteImage(sitk.GetImageFromArray(label), tmp_path / "tmplabel.nii.gz")
        return tmp_path / "tmplabel.nii.gz"

    return run


@pytest.fixture
def check() -> LabelCheck:
    return LabelCheck(ImageReader(), {3, 201})


@pytest.mark.parametrize(
    ("values", "info"),
    [
        ([], {}),
        ([3, 201], {}),
        ([3, 7], {"label_info": [{"name": "cyst", "idx": 7}]}),
        ([1, 2], {"label_info": [{"name": "cyst"}, {"name": "stone"}]}),
        ([9], {"label_names": {"cyst": 9}}),
        ([9], {"model": "m", "params": {"label_names": {"cyst": 9}}}),
    ],
)
def test_known_labels_and_none_are_taken(
    check: LabelCheck, image: Path, save: Save, values: list[int], info: dict[str, Any]
) -> None:
    check(image, save(*values), info)


def test_unknown_labels_are_refused(check: LabelCheck, image: Path, save: Save) -> None:
    with pytest.raises(InputError, match=r"The label holds 7, 9, of which neither .* label_info knows"):
        check(image, save(3, 9, 7), {"label_info": [{"name": "cyst", "idx": 8}]})


def test_a_label_of_another_image_is_refused(check: LabelCheck, image: Path, save: Save) -> None:
    with pytest.raises(InputError, match=r"^The label has 7 x 6 voxels, the image 8 x 6") as error:
        check(image, save(3, shape=(6, 7)), {})
    assert "tmplabel" not in str(error.value)


@pytest.mark.parametrize("name", ["tmplabel.nii.gz", "tmplabel.nrrd", "tmplabel.png", "tmplabel.bin", "tmplabel"])
def test_a_file_of_one_byte_is_refused(check: LabelCheck, image: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises((ImageError, InputError)) as error:
        check(image, tmp_path / name, {})
    assert "tmplabel" not in str(error.value)


@pytest.mark.parametrize("number", [-1, 256, 1.5, True, "7", None])
def test_label_numbers_that_are_none_are_refused(number: Any) -> None:
    with pytest.raises(InputError, match="whole numbers from 0 to 255"):
        named_labels({"label_info": [{"name": "cyst", "idx": number}]})


@pytest.mark.parametrize("info", [{"label_info": "x"}, {"label_info": ["x"]}, {"params": 3}, {"label_names": []}])
def test_label_info_of_another_form_names_nothing(info: dict[str, Any]) -> None:
    assert named_labels(info) == frozenset()


def test_masks_of_the_servers_own_models_are_labels(app: Any, infer: Any) -> None:
    for image in ("chest", "stack", "film"):
        answer = app.infer({"model": "text_prompt", "image": image, "text": "a bright box", "save_label": True})
        assert app.datastore().get_labels_by_image_id(image) == {"original": image}
        assert answer["params"]["label_names"] == {"a bright box": 201}


def test_the_datastore_refuses_what_is_no_label(app: Any, tmp_path: Path) -> None:
    (tmp_path / "label.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError):
        app.datastore().save_label("chest", str(tmp_path / "label.nii.gz"), "final", {})
    assert app.datastore().get_labeled_images() == []
