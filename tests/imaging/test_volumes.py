"""NIfTI and NRRD volumes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import Window, read_image, write_mask

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save_nifti(
    path: Path, data: np.ndarray, affine: np.ndarray = LPS, qform: int = 1, sform: int = 1
) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine if qform else None, qform)
    image.set_sform(affine if sform else None, sform)
    nib.save(image, path)
    return image


def check_nifti_mask(path: Path, assert_same_grid, itk_can: bool = True) -> None:
    """A mask of a NIfTI file has its affine for nibabel, and lies on it for SimpleITK where that can open it."""
    image = read_image(path)
    labels = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    labels[0, 0, :2] = 3
    mask_path = path.with_name("result.nii.gz")
    write_mask(labels, image, mask_path)
    mask, original = nib.load(mask_path), nib.load(path)
    np.testing.assert_array_equal(mask.affine, original.affine)
    assert mask.shape == original.shape
    assert mask.get_data_dtype() == np.uint8
    voxels = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(voxels.reshape(voxels.shape[:3]).T, image.to_native(labels))
    assert voxels.sum() == 6
    if itk_can:
        assert_same_grid(sitk.ReadImage(str(mask_path)), sitk.ReadImage(str(path)))


@pytest.mark.parametrize(
    ("shape", "qform", "sform"),
    [((5, 4), 1, 1), ((5, 4, 1), 1, 1), ((5, 4, 3, 1), 1, 1), ((5, 4, 3), 0, 2), ((5, 4, 3), 1, 0), ((5, 4, 3), 0, 0),
     ((5, 4), 0, 0), ((1, 4, 5), 1, 2)],
)  # fmt: skip
def test_masks_have_the_images_own_nifti_geometry(
    shape: tuple[int, ...], qform: int, sform: int, tmp_path: Path, assert_same_grid
) -> None:
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = (4, 5, 6)
    save_nifti(tmp_path / "image.nii.gz", np.zeros(shape, np.int16), affine, qform, sform)
    check_nifti_mask(tmp_path / "image.nii.gz", assert_same_grid)


def test_where_qform_and_sform_differ_both_are_kept(tmp_path: Path, assert_same_grid) -> None:
    image = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([1.0, 2, 3, 1]))
    image.set_qform(np.diag([-1.0, -2, 3, 1]), 1)
    image.set_sform(np.diag([1.0, 2, 3, 1]), 2)
    nib.save(image, tmp_path / "image.nii")
    check_nifti_mask(tmp_path / "image.nii", assert_same_grid)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_units_other_than_millimetres(unit: str, factor: float, tmp_path: Path, assert_same_grid) -> None:
    image = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([-1.0, -2, 3, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "image.nii")
    read = read_image(tmp_path / "image.nii")
    assert read.pixel_spacing == pytest.approx((2 * factor, 1 * factor))
    assert read.plane_spacing == pytest.approx(3 * factor)
    check_nifti_mask(tmp_path / "image.nii", assert_same_grid)
    write_mask(np.zeros((3, 4, 5), np.uint8), read, tmp_path / "mask.nrrd")
    assert_same_grid(sitk.ReadImage(str(tmp_path / "mask.nrrd")), sitk.ReadImage(str(tmp_path / "image.nii")))


def test_sheared_axes_are_kept_in_nifti_and_refused_in_nrrd(tmp_path: Path, assert_same_grid) -> None:
    affine = np.diag([-1.0, -2, 3, 1])
    affine[0, 1] = 0.4
    save_nifti(tmp_path / "image.nii.gz", np.zeros((5, 4, 3), np.int16), affine, qform=0, sform=2)
    check_nifti_mask(tmp_path / "image.nii.gz", assert_same_grid, itk_can=False)
    image = read_image(tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match=r"image\.nii\.gz has axes that are not at right angles"):
        write_mask(np.zeros((3, 4, 5), np.uint8), image, tmp_path / "mask.nrrd")
    assert not list(tmp_path.glob("*mask*"))


def test_a_sheared_sform_beside_a_qform_follows_itk_in_nrrd(tmp_path: Path, assert_same_grid) -> None:
    affine = np.diag([-1.0, -2, 3, 1])
    affine[0, 1] = 0.4
    save_nifti(tmp_path / "image.nii.gz", np.zeros((5, 4, 3), np.int16), affine, qform=1, sform=2)
    check_nifti_mask(tmp_path / "image.nii.gz", assert_same_grid)
    write_mask(np.zeros((3, 4, 5), np.uint8), read_image(tmp_path / "image.nii.gz"), tmp_path / "mask.nrrd")
    assert_same_grid(sitk.ReadImage(str(tmp_path / "mask.nrrd")), sitk.ReadImage(str(tmp_path / "image.nii.gz")))


def test_a_2d_slice_of_any_plane_keeps_its_affine(tmp_path: Path, assert_same_grid) -> None:
    coronal = np.array([[-1.0, 0, 0, 1], [0, 0, 3, 2], [0, 2, 0, 3], [0, 0, 0, 1]])
    data = np.zeros((5, 4), np.int16)
    data[0, 3] = 1000  # right, top
    save_nifti(tmp_path / "image.nii.gz", data, coronal)
    # ITK cannot open such a file: its in-plane axes are singular.
    check_nifti_mask(tmp_path / "image.nii.gz", assert_same_grid, itk_can=False)
    image = read_image(tmp_path / "image.nii.gz")
    assert image.describe()["orientation"] == "coronal"
    # i runs to the patient's left, j up: shown upside up with the right at image left.
    assert image.plane(0)[..., 0].argmax() == 0


def test_nifti_two_and_big_endian(tmp_path: Path, assert_same_grid) -> None:
    nib.save(nib.Nifti2Image(np.zeros((5, 4, 3), np.int16), np.diag([-1.0, -2, 3, 1])), tmp_path / "image.nii")
    check_nifti_mask(tmp_path / "image.nii", assert_same_grid, itk_can=False)
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(np.ones((5, 4, 3), ">i2"), np.diag([-1.0, -2, 3, 1]), header), tmp_path / "image.nii")
    check_nifti_mask(tmp_path / "image.nii", assert_same_grid)


def test_free_text_and_extensions_of_a_header_do_not_reach_the_mask(tmp_path: Path) -> None:
    source = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), LPS)
    source.header["descrip"] = b"Secret^Patient"
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Secret^Patient"))
    nib.save(source, tmp_path / "image.nii")
    write_mask(np.zeros((3, 4, 5), np.uint8), read_image(tmp_path / "image.nii"), tmp_path / "mask.nii")
    assert b"Secret" in (tmp_path / "image.nii").read_bytes()
    assert b"Secret" not in (tmp_path / "mask.nii").read_bytes()


def test_scaled_values_are_windowed_in_their_units_and_kept_in_their_own_type(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 3, 2), np.int16), LPS)
    image.header.set_slope_inter(2.0, -1000.0)
    hounsfield = np.full((4, 3, 2), 40.0)
    nib.save(nib.Nifti1Image(hounsfield, LPS, image.header), tmp_path / "image.nii")
    read = read_image(tmp_path / "image.nii", modality="CT")
    assert read.describe()["dtype"] == "int16"
    assert set(np.unique(read.plane(0))) == {128}, "Hounsfield value 40 is the middle of soft tissue 40/400"
    assert set(np.unique(read.plane(0, Window(0, 100)))) == {232}


def test_eight_bits_are_shown_as_they_are(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    save_nifti(tmp_path / "image.nii", data)
    read = read_image(tmp_path / "image.nii")
    np.testing.assert_array_equal(read.plane(1)[..., 0], data[:, :, 1].T)
    np.testing.assert_array_equal(read.plane(1, Window(40, 400)), read.plane(1))


def test_a_binary_and_a_constant_volume_are_shown_without_surprise(tmp_path: Path) -> None:
    data = np.zeros((4, 3, 2), np.int16)
    save_nifti(tmp_path / "constant.nii", data)
    assert read_image(tmp_path / "constant.nii").plane(0).max() == 0
    data[1, 1, 1] = 7
    save_nifti(tmp_path / "binary.nii", data)
    assert set(np.unique(read_image(tmp_path / "binary.nii").plane(1))) == {0, 255}


def test_rgb_nifti(tmp_path: Path, assert_same_grid) -> None:
    rgb = np.zeros((5, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"][2, 1, 0] = 200
    nib.save(nib.Nifti1Image(rgb, LPS), tmp_path / "image.nii.gz")
    image = read_image(tmp_path / "image.nii.gz")
    assert image.is_colour
    assert image.plane(0)[1, 2].tolist() == [0, 200, 0]
    check_nifti_mask(tmp_path / "image.nii.gz", assert_same_grid)


def test_spacing_of_a_header_that_says_nothing_is_not_known(tmp_path: Path) -> None:
    save_nifti(tmp_path / "image.nii", np.zeros((4, 3), np.int16), np.eye(4), qform=0, sform=0)
    assert read_image(tmp_path / "image.nii").pixel_spacing is None
    save_nifti(tmp_path / "image.nii", np.zeros((4, 3), np.int16), np.eye(4), qform=0, sform=1)
    assert read_image(tmp_path / "image.nii").pixel_spacing == (1.0, 1.0)


# NRRD ---------------------------------------------------------------------------------------------------------------


def save_nrrd(path: Path, data: np.ndarray, spacing: tuple[float, ...], direction: np.ndarray | None = None) -> None:
    image = sitk.GetImageFromArray(data)
    image.SetSpacing(spacing)
    image.SetOrigin(tuple(float(n) for n in range(len(spacing))))
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_nrrd_volumes(suffix: str, tmp_path: Path, assert_same_grid) -> None:
    data = np.zeros((3, 4, 5), np.int16)  # k, j, i
    data[2, 0, 1] = 900
    # i to the front, j to the right, k down.
    direction = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1.0]])
    path = tmp_path / f"image{suffix}"
    save_nrrd(path, data, (1.0, 2.0, 4.0), direction)
    image = read_image(path)
    assert (image.describe()["orientation"], image.pixel_spacing, image.plane_spacing) == ("axial", (1.0, 2.0), 4.0)
    bright = np.argwhere(np.stack([image.plane(n)[..., 0] for n in range(3)]) == 255)
    # Lowest plane; i = 1 of 5 from the back: row 3; j = 0 is the leftmost of the patient: last column.
    np.testing.assert_array_equal(bright, [[0, 3, 3]])
    labels = np.stack([image.plane(n)[..., 0] == 255 for n in range(3)])
    for name in ("a.nii.gz", "b.nrrd"):
        write_mask(labels, image, tmp_path / name)
        mask = sitk.ReadImage(str(tmp_path / name))
        assert_same_grid(mask, sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), data > 0)


def test_a_2d_nrrd(tmp_path: Path, assert_same_grid) -> None:
    save_nrrd(tmp_path / "image.nrrd", np.arange(20, dtype=np.uint16).reshape(4, 5), (0.3, 0.7))
    image = read_image(tmp_path / "image.nrrd")
    assert image.plane_shape == (4, 5)
    assert image.pixel_spacing == (0.7, 0.3)
    for name in ("a.nii.gz", "b.nrrd"):
        write_mask(np.eye(4, 5, dtype=bool), image, tmp_path / name)
        mask = sitk.ReadImage(str(tmp_path / name))
        assert_same_grid(mask, sitk.ReadImage(str(tmp_path / "image.nrrd")))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), np.eye(4, 5))


def test_an_nrrd_without_spacings_has_none(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 3 2\nencoding: raw\n\n"
    (tmp_path / "image.nrrd").write_bytes(header + bytes(range(6)))
    image = read_image(tmp_path / "image.nrrd")
    assert image.pixel_spacing is None
    np.testing.assert_array_equal(image.plane(0)[..., 0], [[0, 1, 2], [3, 4, 5]])


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_nan_and_infinity_are_refused(bad: float, suffix: str, tmp_path: Path) -> None:
    data = np.ones((3, 4, 5), np.float32)
    data[1, 2, 3] = bad
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(data), str(path))
    with pytest.raises(ImageError, match=r"image\.n\S+ holds NaN or infinite values"):
        read_image(path)


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (4, 5, 6, 1, 3), (4, 5, 1, 2)])
def test_series_of_volumes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    save_nifti(tmp_path / "image.nii", np.zeros(shape, np.int16))
    with pytest.raises(ImageError, match="2-D and 3-D images are allowed"):
        read_image(tmp_path / "image.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_damaged_volumes_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    data = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(data), str(path))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"not an image at all", b"\x00" * 400, b""):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_complex_and_one_dimensional_volumes_are_refused(tmp_path: Path) -> None:
    save_nifti(tmp_path / "complex.nii", np.ones((3, 4, 5), np.complex64))
    with pytest.raises(ImageError, match="complex64"):
        read_image(tmp_path / "complex.nii")
    nib.save(nib.Nifti1Image(np.zeros(5, np.int16), np.eye(4)), tmp_path / "line.nii")
    with pytest.raises(ImageError, match="at least 2 dimensions"):
        read_image(tmp_path / "line.nii")
    complex_nrrd = sitk.RealAndImaginaryToComplex(
        sitk.Image(3, 3, 3, sitk.sitkFloat32), sitk.Image(3, 3, 3, sitk.sitkFloat32)
    )
    sitk.WriteImage(sitk.Compose([sitk.Image(3, 3, 3, sitk.sitkInt16)] * 2), str(tmp_path / "vector.nrrd"))
    with pytest.raises(ImageError, match="2 components"):
        read_image(tmp_path / "vector.nrrd")
    assert complex_nrrd.GetPixelIDTypeAsString().startswith("complex")


def test_an_affine_without_extent_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.set_sform(np.diag([1.0, 0, 1, 1]), 1)
    nib.save(image, tmp_path / "flat.nii")
    with pytest.raises(ImageError, match="no usable voxel geometry"):
        read_image(tmp_path / "flat.nii")


def test_nifti_needs_no_simpleitk(tmp_path: Path) -> None:
    save_nifti(tmp_path / "image.nii.gz", np.ones((4, 3, 2), np.int16))
    code = (
        "import sys; sys.modules['SimpleITK'] = sys.modules['itk'] = sys.modules['nrrd'] = None\n"
        "import numpy as np\n"
        "from medclipsam.imaging import read_image, write_mask\n"
        f"image = read_image({str(tmp_path / 'image.nii.gz')!r})\n"
        f"write_mask(np.ones((2, 3, 4), bool), image, {str(tmp_path / 'mask.nii.gz')!r})\n"
        "try:\n"
        f"    write_mask(np.ones((2, 3, 4), bool), image, {str(tmp_path / 'mask.nrrd')!r})\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs SimpleITK" in result.stdout
    assert np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).sum() == 24


def test_planes_are_made_from_the_volume_in_its_own_type(tmp_path: Path) -> None:
    import tracemalloc

    data = np.random.default_rng(0).integers(0, 3000, (64, 64, 100)).astype(np.int16)
    save_nifti(tmp_path / "image.nii", data, np.diag([-1.0, -1.0, 3.0, 1.0]))
    image = read_image(tmp_path / "image.nii", modality="CT")
    tracemalloc.start()
    for n in range(image.n_planes):
        image.plane(n)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < data.nbytes / 2, "all planes together would take twice the volume"


def ct() -> np.ndarray:
    """Air round a body with bone, in Hounsfield units."""
    values = np.full((20, 20, 4), -1000.0)
    values[4:16, 4:16] = 40
    values[8:10, 8:10] = 900
    return values + np.random.default_rng(0).normal(0, 10, values.shape)


@pytest.mark.parametrize(
    ("values", "doubted"),
    [
        (ct(), False),
        (np.clip(ct(), -160, 240), False),
        (ct()[4:16, 4:16], False),
        ((ct() + 1024) / 2500, True),
        (ct() / 1000, True),
        (ct() + 1024, True),
        (ct() + 1000, True),
    ],
)
def test_a_ct_whose_values_are_no_hounsfield_units_is_doubted(
    values: np.ndarray, doubted: bool, tmp_path: Path
) -> None:
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    assert (read_image(tmp_path / "a.nii.gz", modality="CT").doubt_of_units() is not None) is doubted
    assert read_image(tmp_path / "a.nii.gz", modality="MR").doubt_of_units() is None


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_volume_with_air_in_hounsfield_units_is_a_ct(suffix: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    body = np.full((6, 20, 20), -1000.0)
    body[:, 3:17, 3:17] = 40
    thin = np.full((6, 20, 20), 40.0)
    thin[:, 0] = -1000  # 5 % of it
    volumes = {
        "ct": (body + rng.normal(0, 15, body.shape)).astype(np.int16),
        "unsigned": (body + 1024).astype(np.uint16),
        "phase": rng.uniform(-4096, 4095, body.shape).astype(np.int16),
        "normalised": ((body - body.mean()) / body.std()).astype(np.float32),
        "thin": thin.astype(np.int16),
    }
    found = {}
    for name, voxels in volumes.items():
        path = tmp_path / f"{name}{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
        found[name] = read_image(path).modality
        assert read_image(path, modality="MR").modality == "MR"
    assert found == {"ct": "CT", "unsigned": None, "phase": None, "normalised": None, "thin": None}
