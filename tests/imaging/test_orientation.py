"""Display orientation and the way back, over every axis order a volume can be stored in."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_image, write_mask
from medclipsam.imaging.orientation import directions_from_letters, layout_for

AXES = (("R", "L"), ("A", "P"), ("S", "I"))
ORDERS = [
    "".join(signs[n] for n, signs in zip(order, itertools.repeat(choice), strict=False))
    for order in itertools.permutations(range(3))
    for choice in itertools.product(*AXES)
]
RAS_SPACING = {"axial": (1.0, 2.0, 5.0), "coronal": (1.0, 5.0, 2.0), "sagittal": (5.0, 1.0, 2.0)}


def patient_ras() -> np.ndarray:
    """Return a volume in RAS index order with a block in the left anterior upper corner of the patient.

    Indices grow towards right, anterior and superior; the patient's right is therefore at high first indices.
    """
    volume = np.zeros((7, 8, 9), np.int16)
    volume[:2, 5:, 7:] = 1000  # left, front, top
    volume[3, 3, 3] = 1000
    return volume


def store(codes: str, spacing: tuple[float, float, float], rotation: np.ndarray | None = None) -> nib.Nifti1Image:
    """Return the patient stored in the axis order `codes` (nibabel's letters), in the same place in space."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-11, 23, -37)
    if rotation is not None:
        affine[:3, :3] = rotation @ affine[:3, :3]
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    data = apply_orientation(patient_ras(), transform)
    return nib.Nifti1Image(np.ascontiguousarray(data), affine @ inv_ornt_aff(transform, patient_ras().shape))


def test_there_are_48_axis_orders() -> None:
    assert len(set(ORDERS)) == 48


@pytest.mark.parametrize("plane_name", sorted(RAS_SPACING))
@pytest.mark.parametrize("codes", ORDERS)
def test_every_axis_order_shows_the_same_patient_and_masks_come_back(
    codes: str, plane_name: str, tmp_path: Path, assert_same_grid, bright_labels
) -> None:
    path = tmp_path / "image.nii.gz"
    nib.save(store(codes, RAS_SPACING[plane_name]), path)
    image = read_image(path)
    assert image.describe()["orientation"] == plane_name

    # The expected display is made by hand from the RAS volume: indices grow to R, A, S.
    ras = patient_ras()
    if plane_name == "axial":  # foot to head; rows front to back; columns right to left
        expected = ras[::-1, ::-1, :].transpose(2, 1, 0)
        spacing, between = (2.0, 1.0), 5.0
    elif plane_name == "coronal":  # front to back; rows head to foot; columns right to left
        expected = ras[::-1, ::-1, ::-1].transpose(1, 2, 0)
        spacing, between = (2.0, 1.0), 5.0
    else:  # right to left; rows head to foot; columns front to back
        expected = ras[::-1, ::-1, ::-1].transpose(0, 2, 1)
        spacing, between = (2.0, 1.0), 5.0
    labels = bright_labels(image)
    np.testing.assert_array_equal(labels, expected > 0)
    assert image.pixel_spacing == pytest.approx(spacing)
    assert image.plane_spacing == pytest.approx(between)

    for suffix in (".nii.gz", ".nrrd"):
        mask_path = tmp_path / f"mask{suffix}"
        write_mask(labels, image, mask_path)
        mask, original = sitk.ReadImage(str(mask_path)), sitk.ReadImage(str(path))
        assert_same_grid(mask, original)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(original) > 0)
    by_nibabel = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(by_nibabel.affine, nib.load(path).affine)
    np.testing.assert_array_equal(np.asarray(by_nibabel.dataobj), np.asarray(nib.load(path).dataobj) > 0)


def test_the_display_has_the_patients_right_at_image_left() -> None:
    ras = patient_ras()
    # Guards the expectation above itself: the block is in the left front upper corner of the patient.
    left_front_top = ras[0, -1, -1]
    assert left_front_top == 1000
    axial = ras[::-1, ::-1, :].transpose(2, 1, 0)[-1]
    assert axial[0, -1] == 1000, "left front: upper right corner of the top axial plane"


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR", "AIL", "SRA"])
def test_oblique_volumes_are_shown_by_the_closest_axes_and_masks_come_back(
    codes: str, tmp_path: Path, assert_same_grid, bright_labels
) -> None:
    x, z = np.deg2rad(20), np.deg2rad(-15)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    path = tmp_path / "oblique.nii.gz"
    nib.save(store(codes, RAS_SPACING["axial"], about_z @ about_x), path)
    image = read_image(path)
    labels = bright_labels(image)
    np.testing.assert_array_equal(labels, patient_ras()[::-1, ::-1, :].transpose(2, 1, 0) > 0)
    for suffix in (".nii.gz", ".nrrd"):
        write_mask(labels, image, tmp_path / f"mask{suffix}")
        mask, original = sitk.ReadImage(str(tmp_path / f"mask{suffix}")), sitk.ReadImage(str(path))
        assert_same_grid(mask, original)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(original) > 0)


def test_equal_spacings_give_axial_planes() -> None:
    # Stored as k: right, j: up, i: front, so the head-foot axis is j.
    directions = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    layout = layout_for((4, 5, 6), (1.0, 1.0, 1.0), directions)
    assert (layout.name, layout.axes[0]) == ("axial", 1)


def test_nearly_equal_spacings_count_as_equal() -> None:
    assert layout_for((4, 5, 6), (1.0, 1.0, 1.004), np.eye(3)[:, ::-1]).name == "axial"
    assert layout_for((4, 5, 6), (1.0, 1.0, 1.2), np.eye(3)[:, ::-1]).name == "sagittal"


def test_the_only_axis_of_size_one_is_the_plane_axis() -> None:
    assert layout_for((40, 50, 1), (5.0, 1.0, 1.0), np.eye(3)[:, ::-1]).name == "sagittal"


def test_unknown_orientation_is_shown_as_stored() -> None:
    stored = np.arange(24).reshape(2, 3, 4)
    layout = layout_for(stored.shape, (1.0, 1.0, 1.0), None)
    assert layout.name is None
    np.testing.assert_array_equal(layout.plane(stored, 1), stored[1])
    np.testing.assert_array_equal(layout.to_stored(stored), stored)


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        (["L", "F"], np.array([[0, 1, 2], [3, 4, 5]])),  # as a radiologist sees a chest
        (["R", "F"], np.array([[2, 1, 0], [5, 4, 3]])),  # mirrored
        (["L", "H"], np.array([[3, 4, 5], [0, 1, 2]])),  # upside down
        (["F", "L"], np.array([[0, 3], [1, 4], [2, 5]])),  # lying on its side
        (["H", "R"], np.array([[5, 2], [4, 1], [3, 0]])),
        (["P", "F"], np.array([[0, 1, 2], [3, 4, 5]])),  # lateral, front at image left
        (["A", "F"], np.array([[2, 1, 0], [5, 4, 3]])),
        (["LA", "FR"], np.array([[0, 1, 2], [3, 4, 5]])),  # the first letter counts
    ],
)
def test_patient_orientation_letters_turn_a_radiograph_upright(letters: list[str], expected: np.ndarray) -> None:
    stored = np.arange(6).reshape(1, 2, 3)
    layout = layout_for(stored.shape, (1.0, 1.0, 1.0), directions_from_letters(letters), stack_axis=0)
    np.testing.assert_array_equal(layout.plane(stored, 0), expected)
    np.testing.assert_array_equal(layout.to_stored(expected[None]), stored)


@pytest.mark.parametrize("letters", [[], ["L"], ["L", "R"], ["L", "L"], ["X", "F"], ["", "F"], ["L", "F", "P"]])
def test_unusable_patient_orientation_is_no_orientation(letters: list[str]) -> None:
    assert directions_from_letters(letters) is None


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    nib.save(store("LPS", (1.0, 1.0, 4.0)), tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii")
    with pytest.raises(InputError, match=r"shape \(9, 7, 8\) does not fit image.nii; allowed is \(9, 8, 7\)"):
        image.to_native(np.zeros((9, 7, 8), np.uint8))


@pytest.mark.parametrize("codes", ORDERS)
def test_clicked_voxels_are_found_on_display(codes: str, tmp_path: Path) -> None:
    """A voxel that is lit at (i, j, k) of the file is the pixel of the plane that its index is turned into."""
    picture = store(codes, RAS_SPACING["coronal"])
    rng = np.random.default_rng(ORDERS.index(codes))
    ijk = np.stack([rng.integers(0, size, 5) for size in picture.shape], axis=1)
    for lit in ijk:
        voxels = np.zeros(picture.shape, np.uint8)
        voxels[tuple(lit)] = 255
        nib.save(nib.Nifti1Image(voxels, picture.affine), tmp_path / "image.nii.gz")
        image = read_image(tmp_path / "image.nii.gz")
        ((plane, row, column),) = image.display_index([lit])
        assert image.plane(plane)[row, column, 0] == 255
        assert sitk.ReadImage(str(tmp_path / "image.nii.gz"))[tuple(map(int, lit))] == 255
    assert np.array_equal(image.display_index(ijk + 0.4), image.display_index(ijk))
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[tuple(image.display_index(ijk).T)] = 1
    assert np.array_equal(image.from_native(image.to_native(labels)), labels)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ([[7, 0, 0]], r"\[7.0, 0.0, 0.0\] lies outside image.nii.gz; allowed: .* to \[6, 7, 8\]"),
        ([[0, 0, -1]], "lies outside"),
        ([[0, 0]], r"allowed: a list of voxel indices \[i, j, k\]"),
        ([[0, 0, float("nan")]], "cannot be used"),
        ([["a", "b", "c"]], "cannot be used"),
        ([[0, 0, 0], [0, 0]], "cannot be used"),
        ("left", "cannot be used"),
    ],
)
def test_indices_that_are_no_voxels_are_refused(points: object, sentence: str, tmp_path: Path) -> None:
    nib.save(store("RAS", RAS_SPACING["axial"]), tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match=sentence):
        read_image(tmp_path / "image.nii.gz").display_index(points)
