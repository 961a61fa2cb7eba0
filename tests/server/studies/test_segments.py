"""Labels as viewers number, name and layer them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage, read_image, read_mask
from medclipsam.server.studies.segments import settled

TABLE = {"heart": 3, "left lung": 7}
SPACING = (1.5, 2.0, 4.0)


@pytest.fixture
def image(tmp_path: Path) -> MedicalImage:
    volume = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    volume.SetSpacing(SPACING)
    volume.SetOrigin((10.0, -20.0, 30.0))
    SimpleITK.WriteImage(volume, str(tmp_path / "image.nii.gz"))
    return read_image(tmp_path / "image.nii.gz")


def write(path: Path, layers: np.ndarray, segments: list[tuple[str, int, int]]) -> Path:
    """Write uint8 [layer, k, j, i] as 3D Slicer does: one layer as a volume, more of them along a first axis."""
    header: dict[str, Any] = {"space": "left-posterior-superior", "space origin": [10.0, -20.0, 30.0]}
    directions = np.diag(SPACING)
    voxels = layers.transpose(0, 3, 2, 1)
    if len(layers) == 1:
        voxels = voxels[0]
        header |= {"kinds": ["domain"] * 3, "space directions": directions}
    else:
        header |= {"kinds": ["list"] + ["domain"] * 3}
        header["space directions"] = np.vstack([np.full(3, np.nan), directions])
    for number, (name, value, layer) in enumerate(segments):
        header |= {
            f"Segment{number}_ID": f"Segment_{number}",
            f"Segment{number}_Name": name,
            f"Segment{number}_LabelValue": str(value),
            f"Segment{number}_Layer": str(layer),
        }
    nrrd.write(str(path), np.ascontiguousarray(voxels), header)
    return path


def planes(image: MedicalImage, native: np.ndarray) -> np.ndarray:
    return image.from_native(native.astype(np.uint8))


def test_layers_become_one_label_map_by_names(image: MedicalImage, tmp_path: Path) -> None:
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 1, 2, 3] = 1
    layers[0, 2, 0, 0] = 2
    layers[1, 3, 4, 5] = 1
    segments = [("left lung", 1, 0), ("cyst", 2, 0), ("heart", 1, 1)]
    file = write(tmp_path / "label.seg.nrrd", layers, segments)
    with settled(file, {"label_info": [{"name": "cyst", "color": "red"}]}, TABLE, lambda: image) as (kept, info):
        found = read_mask(kept, image)
    expected = np.zeros((4, 5, 6))
    expected[1, 2, 3], expected[2, 0, 0], expected[3, 4, 5] = 7, 2, 3
    assert np.array_equal(found, planes(image, expected))
    assert info["label_info"] == [
        {"name": "left lung", "idx": 7},
        {"name": "cyst", "idx": 2, "color": "red"},
        {"name": "heart", "idx": 3},
    ]
    assert not kept.exists()


def test_segments_that_overlap_are_refused(image: MedicalImage, tmp_path: Path) -> None:
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[:, 1, 2, :4] = 1
    file = write(tmp_path / "label.seg.nrrd", layers, [("heart", 1, 0), ("cyst", 1, 1)])
    with (
        pytest.raises(InputError, match="'heart' and 'cyst' overlap in 4 voxels"),
        settled(file, {}, TABLE, lambda: image),
    ):
        pass


def test_numbers_of_names_are_those_of_the_table(image: MedicalImage, tmp_path: Path) -> None:
    """As 3D Slicer numbers its segments: from 1 in the order of its list."""
    layers = np.zeros((1, 4, 5, 6), np.uint8)
    layers[0, 0, 0] = [0, 1, 2, 3, 3, 0]
    file = write(tmp_path / "label.nrrd", layers, [])
    named = [{"name": "heart", "idx": 1}, {"name": "background", "idx": 2}, {"name": "cyst", "idx": 3}]
    with settled(file, {"label_info": named}, TABLE, lambda: image) as (kept, info):
        found = read_mask(kept, image)
    expected = np.zeros((4, 5, 6))
    # 3 is the heart's, so that the cyst gets a free one
    expected[0, 0] = [0, 3, 0, 4, 4, 0]
    assert np.array_equal(found, planes(image, expected))
    assert info["label_info"] == [{"name": "heart", "idx": 3}, {"name": "cyst", "idx": 4}]


def test_a_label_in_the_servers_numbers_stays_the_file_it_is(image: MedicalImage, tmp_path: Path) -> None:
    layers = np.full((1, 4, 5, 6), 7, np.uint8)
    file = write(tmp_path / "label.nrrd", layers, [])

    def unread() -> MedicalImage:
        raise AssertionError("the image is not needed")

    for info in ({}, {"label_info": [{"name": "left lung", "idx": 7}]}, {"params": {"label_names": {"left lung": 7}}}):
        with settled(file, info, TABLE, unread) as (kept, told):
            assert kept == file
            assert told == info


def test_a_label_without_a_place_is_put_on_its_image(tmp_path: Path) -> None:
    """As OHIF sends that of a radiograph."""
    from PIL import Image

    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "film.png")
    film = read_image(tmp_path / "film.png")
    labels = np.arange(28, dtype=np.uint8).reshape(1, 4, 7)
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 7 4 1\nencoding: raw\n\n"
    (tmp_path / "label.nrrd").write_bytes(header + labels.tobytes())
    with settled(tmp_path / "label.nrrd", {}, {}, lambda: film) as (kept, _):
        assert kept.name.endswith(".nii.gz")
        assert np.array_equal(read_mask(kept, film), labels)


def test_more_names_than_numbers_are_refused(image: MedicalImage, tmp_path: Path) -> None:
    file = write(tmp_path / "label.nrrd", np.zeros((1, 4, 5, 6), np.uint8), [])
    named = [{"name": f"cyst {number}", "idx": number} for number in range(1, 256)]
    with pytest.raises(InputError, match="no number left"), settled(file, {"label_info": named}, TABLE, lambda: image):
        pass


def test_a_damaged_header_is_one_sentence(image: MedicalImage, tmp_path: Path) -> None:
    file = write(tmp_path / "label.seg.nrrd", np.zeros((2, 4, 5, 6), np.uint8), [("heart", 1, 5), ("cyst", 1, 0)])
    with pytest.raises(InputError, match="layer 5"), settled(file, {}, TABLE, lambda: image):
        pass
    (tmp_path / "byte.nrrd").write_bytes(b"x")
    with pytest.raises(InputError, match="NRRD"), settled(tmp_path / "byte.nrrd", {}, TABLE, lambda: image):
        pass
