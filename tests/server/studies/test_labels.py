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
from medclipsam.server.studies.labels import LabelReader

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
def reader() -> LabelReader:
    return LabelReader(ImageReader(), {"heart": 3, "finding 1": 201})


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
    reader: LabelReader, image: Path, save: Save, values: list[int], info: dict[str, Any]
) -> None:
    reader.read(image, save(*values), info)


def test_unknown_labels_are_refused(reader: LabelReader, image: Path, save: Save) -> None:
    with pytest.raises(InputError, match=r"The label holds 7, 9, of which neither .* label_info knows"):
        reader.read(image, save(3, 9, 7), {"label_info": [{"name": "cyst", "idx": 8}]})


def test_a_label_of_another_image_is_refused(reader: LabelReader, image: Path, save: Save) -> None:
    with pytest.raises(InputError, match=r"^The label has 7 x 6 voxels, the image 8 x 6") as error:
        reader.read(image, save(3, shape=(6, 7)), {})
    assert "tmplabel" not in str(error.value)


@pytest.mark.parametrize("name", ["tmplabel.nii.gz", "tmplabel.nrrd", "tmplabel.png", "tmplabel.bin", "tmplabel"])
def test_a_file_of_one_byte_is_refused(reader: LabelReader, image: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises((ImageError, InputError)) as error:
        reader.read(image, tmp_path / name, {})
    assert "tmplabel" not in str(error.value)


def test_what_a_label_is_called_is_kept_with_the_numbers_of_its_file(
    reader: LabelReader, image: Path, save: Save, tmp_path: Path
) -> None:
    """3D Slicer counts from 1; what was asked for beside has the same numbers as the list."""
    info = {
        "label_info": [{"name": "cyst", "color": "red"}, {"name": "heart", "idx": 2}],
        "label_names": {"heart": 2, "a stone": 9},
        "note": "x",
    }
    file = save(1, 2, 2, 9)
    received = reader.read(image, file, info)
    assert received.file is None
    assert received.suffix == ".nii.gz"
    assert received.label.values.ravel()[:4].tolist() == [1, 3, 3, 9]
    assert received.label.names == {"cyst": 1, "heart": 3, "a stone": 9}
    assert received.info == {
        "label_info": [
            {"name": "cyst", "color": "red", "idx": 1},
            {"name": "heart", "idx": 3},
            {"name": "a stone", "idx": 9},
        ],
        "label_names": {"heart": 3, "a stone": 9},
        "note": "x",
    }
    received.write(tmp_path / "kept.nii.gz")
    received.label.check_copy(tmp_path / "kept.nii.gz")
    # what is kept says of itself what it is
    again = reader.read(image, tmp_path / "kept.nii.gz", received.info)
    assert (again.info, again.label.names) == (received.info, received.label.names)
    assert again.file == tmp_path / "kept.nii.gz"


def test_a_label_in_the_servers_numbers_stays_the_file_it_is(
    reader: LabelReader, image: Path, save: Save, tmp_path: Path
) -> None:
    for info in ({}, {"label_info": [{"name": "heart", "idx": 3}]}, {"params": {"label_names": {"heart": 3}}}):
        received = reader.read(image, save(3, 0, 201), info)
        assert received.info == info
        received.write(tmp_path / "kept.nii.gz")
        assert (tmp_path / "kept.nii.gz").read_bytes() == save(3, 0, 201).read_bytes()


def test_a_copy_that_is_another_label_is_refused(
    reader: LabelReader, image: Path, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = reader.read(image, save(3), {})
    save(201)
    with pytest.raises(InputError):
        received.write(tmp_path / "kept.nii.gz")


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
