"""Label maps back from files, held against the image that they were drawn on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import MedicalImage, read_image, read_mask, write_mask
from medclipsam.imaging.geometry import Grid


@pytest.fixture
def image(tmp_path: Path) -> MedicalImage:
    """A volume of 6 x 5 x 4 voxels, stored feet first and left to right, turned a little."""
    turn = np.deg2rad(5)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.5, 1.0, -4.0])
    affine[:3, 3] = (-11, 23, -37)
    values = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "image.nii.gz")
    return read_image(tmp_path / "image.nii.gz")


@pytest.fixture
def labels(image: MedicalImage) -> np.ndarray:
    return np.random.default_rng(1).choice([0, 0, 3, 201], (image.n_planes, *image.plane_shape)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_what_was_written_is_read_back(image: MedicalImage, labels: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = write_mask(labels, image, tmp_path / f"mask{suffix}")
    assert np.array_equal(read_mask(path, image), labels)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_a_mask_has_the_number_type_and_compression_that_is_asked_for(
    image: MedicalImage, labels: np.ndarray, tmp_path: Path, suffix: str, dtype: str
) -> None:
    path = write_mask(labels, image, tmp_path / f"mask{suffix}", dtype=dtype, compress=False, read_back=True)
    itk = sitk.ReadImage(str(path))
    assert sitk.GetArrayViewFromImage(itk).dtype == np.dtype(dtype)
    assert np.array_equal(sitk.GetArrayFromImage(itk), image.to_native(labels))
    assert np.array_equal(read_mask(path, image), labels)
    source = sitk.ReadImage(str(tmp_path / "image.nii.gz"))
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(itk, part)() == pytest.approx(getattr(source, part)())
    if suffix == ".nrrd":
        assert b"encoding: raw" in path.read_bytes().split(b"\n\n")[0]
    else:
        # as nibabel sees it, which reads the header's own type
        assert nib.load(path).get_data_dtype() == np.dtype(dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mask.nrrd", "object"), ("mask.nii", "complex64"), ("mask.png", "uint16")]
)
def test_number_types_that_a_file_cannot_have_are_refused(tmp_path: Path, name: str, dtype: str) -> None:
    film = MedicalImage.from_array(np.zeros((4, 7), np.uint8))
    with pytest.raises(InputError, match=dtype):
        write_mask(np.zeros((1, 4, 7), np.uint8), film, tmp_path / name, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_another_type_are_the_same_labels(image: MedicalImage, labels: np.ndarray, tmp_path: Path) -> None:
    native = image.to_native(labels).T
    nib.save(nib.Nifti1Image(native.astype(np.float32), image.grid.affine_ras()), tmp_path / "float.nii.gz")
    scaled = nib.Nifti1Image((native // 3).astype(np.uint8), image.grid.affine_ras())
    scaled.header.set_slope_inter(3, 0)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    for name in ("float.nii.gz", "scaled.nii.gz"):
        assert np.array_equal(read_mask(tmp_path / name, image), labels)


@pytest.mark.parametrize("apart", [1e-7, -9e-4, 9e-4])
def test_values_that_are_nearly_whole_are_whole(
    image: MedicalImage, labels: np.ndarray, tmp_path: Path, apart: float
) -> None:
    native = image.to_native(labels).T + apart
    affine = image.grid.affine_ras()
    nib.save(nib.Nifti1Image(native.astype(np.float64), affine), tmp_path / "double.nii.gz")
    nib.save(nib.Nifti1Image(native.astype(np.float32), affine), tmp_path / "float.nii.gz")
    # as `get_fdata()` under the header of an integer file: nibabel scales them
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(image.to_native(labels).T.astype(np.float64), affine, header), tmp_path / "scaled.nii.gz")
    assert nib.load(tmp_path / "scaled.nii.gz").get_data_dtype() == np.int16
    for name in ("double.nii.gz", "float.nii.gz", "scaled.nii.gz"):
        read = read_mask(tmp_path / name, image)
        assert read.dtype == np.uint8
        assert np.array_equal(read, labels)


@pytest.mark.parametrize("value", [0.5, 1.01, 254.99, 255.6, -0.6])
def test_values_between_whole_numbers_are_refused(image: MedicalImage, tmp_path: Path, value: float) -> None:
    native = np.zeros(image.grid.size, np.float32)
    native[1, 2, 3] = value
    nib.save(nib.Nifti1Image(native, image.grid.affine_ras()), tmp_path / "odd.nii.gz")
    with pytest.raises(InputError):
        read_mask(tmp_path / "odd.nii.gz", image)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_a_mask_that_does_not_read_back_is_not_kept(
    image: MedicalImage, labels: np.ndarray, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_mask(labels, image, tmp_path / f"mask{suffix}", read_back=True)
    before = path.read_bytes()
    monkeypatch.setattr("medclipsam.imaging.write.read_mask", lambda *_: labels[::-1])
    with pytest.raises(InputError):
        write_mask(labels, image, path, read_back=True)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["image.nii.gz", path.name]


def test_a_picture_of_a_radiograph_is_read_back(
    tmp_path: Path, write_radiograph: Callable[[np.ndarray, Path], None]
) -> None:
    write_radiograph(np.zeros((4, 7), np.uint8), tmp_path / "film.dcm")
    film = read_image(tmp_path / "film.dcm")
    labels = np.arange(28, dtype=np.uint8).reshape(1, 4, 7)
    for name in ("mask.png", "mask.nii.gz", "mask.nrrd"):
        assert np.array_equal(read_mask(write_mask(labels, film, tmp_path / name), film), labels)


def test_a_slice_of_a_volume_file_fits_a_picture(tmp_path: Path) -> None:
    """As 3D Slicer saves the label of a PNG."""
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "film.png")
    label = sitk.GetImageFromArray(np.arange(28, dtype=np.uint8).reshape(1, 4, 7))
    sitk.WriteImage(label, tmp_path / "label.nii.gz")
    read = read_mask(tmp_path / "label.nii.gz", read_image(tmp_path / "film.png"))
    assert np.array_equal(read[0].ravel(), np.arange(28))


def test_a_label_without_a_place_lies_on_an_image_without_one(
    image: MedicalImage, tmp_path: Path, write_radiograph: Callable[[np.ndarray, Path], None]
) -> None:
    """As DICOM viewers know no place of a radiograph's pixels; a volume has one, which its label must name."""
    write_radiograph(np.zeros((4, 7), np.uint8), tmp_path / "film.dcm")
    labels = np.arange(28, dtype=np.uint8)
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: {}\nencoding: raw\n\n"
    (tmp_path / "label.nrrd").write_bytes(header.format("7 4 1").encode() + labels.tobytes())
    assert np.array_equal(read_mask(tmp_path / "label.nrrd", read_image(tmp_path / "film.dcm"))[0].ravel(), labels)
    (tmp_path / "label.nrrd").write_bytes(header.format("6 5 4").encode() + bytes(120))
    with pytest.raises(InputError, match="does not lie"):
        read_mask(tmp_path / "label.nrrd", image)


def test_an_empty_mask_is_a_label(image: MedicalImage, labels: np.ndarray, tmp_path: Path) -> None:
    assert not read_mask(write_mask(labels * 0, image, tmp_path / "mask.nii.gz"), image).any()


def _moved(image: sitk.Image) -> None:
    image.SetOrigin((1.0, 0.0, 0.0))


def _stretched(image: sitk.Image) -> None:
    image.SetSpacing((1.5, 1.0, 4.2))


def _mirrored(image: sitk.Image) -> None:
    image.SetDirection([-value for value in image.GetDirection()])


@pytest.mark.parametrize("change", [_moved, _stretched, _mirrored])
def test_another_geometry_is_refused(
    image: MedicalImage, labels: np.ndarray, tmp_path: Path, change: Callable[[sitk.Image], None]
) -> None:
    mask = sitk.ReadImage(str(write_mask(labels, image, tmp_path / "mask.nrrd")))
    change(mask)
    sitk.WriteImage(mask, tmp_path / "other.nrrd")
    with pytest.raises(InputError, match=r"other\.nrrd does not lie on the image"):
        read_mask(tmp_path / "other.nrrd", image)


def test_a_hair_s_breadth_is_not_another_geometry(image: MedicalImage, labels: np.ndarray, tmp_path: Path) -> None:
    mask = sitk.ReadImage(str(write_mask(labels, image, tmp_path / "mask.nrrd")))
    mask.SetOrigin([value + 0.01 for value in mask.GetOrigin()])
    sitk.WriteImage(mask, tmp_path / "near.nrrd")
    assert np.array_equal(read_mask(tmp_path / "near.nrrd", image), labels)


@pytest.mark.parametrize(
    ("voxels", "sentence"),
    [
        (np.zeros((5, 5, 4), np.uint8), r"has 5 x 5 x 4 voxels, the image 6 x 5 x 4"),
        (np.full((6, 5, 4), 300, np.int16), "300 to 300; whole numbers from 0 to 255"),
        (np.full((6, 5, 4), -1, np.int16), "-1 to -1"),
        (np.full((6, 5, 4), 0.5, np.float32), "0.5 to 0.5"),
    ],
)
def test_what_is_no_label_map_is_refused(
    image: MedicalImage, tmp_path: Path, voxels: np.ndarray, sentence: str
) -> None:
    nib.save(nib.Nifti1Image(voxels, image.grid.affine_ras()), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=sentence):
        read_mask(tmp_path / "mask.nii.gz", image)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("mask.nii.gz", b"x", "mask.nii.gz"),
        ("mask.png", b"x", "mask.png"),
        ("mask.nrrd", b"", "mask.nrrd is empty"),
        ("mask.jpg", b"x", "allowed are .nii.gz"),
        ("mask", b"x", "allowed are .nii.gz"),
    ],
)
def test_a_file_that_is_no_image_is_refused_without_its_path(
    image: MedicalImage, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ImageError, InputError), match=sentence) as error:
        read_mask(tmp_path / name, image)
    assert str(tmp_path) not in str(error.value)


def test_colours_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "film.png")
    Image.fromarray(np.full((4, 7, 3), (200, 0, 0), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="colours"):
        read_mask(tmp_path / "mask.png", read_image(tmp_path / "film.png"))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({}, True),
        ({"origin": (0.0, 0.0, 0.19)}, True),
        ({"origin": (0.0, 0.0, 0.21)}, False),
        ({"size": (4, 5, 7)}, False),
        # 0.1 mm a voxel is nothing beside one of 2 mm, and more than it over all of them
        ({"spacing": (2.1, 2.0, 2.0)}, False),
    ],
)
def test_grids_are_compared_at_their_corners(other: dict[str, Any], same: bool) -> None:
    fields: dict[str, Any] = {"size": (4, 5, 6), "spacing": (2.0,) * 3, "origin": (0.0,) * 3, "direction": np.eye(3)}
    assert Grid(**{**fields, **other}).lies_on(Grid(**fields)) is same


def test_a_palette_counts_by_its_indices_and_equal_channels_are_grey(tmp_path: Path) -> None:
    image = MedicalImage.from_array(np.zeros((4, 5), np.uint8))
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    palette = Image.fromarray(labels)
    palette.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.repeat(labels[..., None], 3, axis=2)).save(tmp_path / "grey.png")
    for name in ("palette.png", "grey.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, image)[0], labels)
