"""PNG, JPEG, TIFF and BMP pictures."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import MedicalImage, Window, read_image, write_mask

GREY = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("array", [GREY, RGB], ids=["grey", "rgb"])
def test_lossless_pictures_come_as_they_are(suffix: str, array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(array).save(path)
    image = read_image(path)
    expected = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)
    np.testing.assert_array_equal(image.plane(0), expected)
    np.testing.assert_array_equal(image.plane(0, Window(40, 400)), expected)
    assert (image.n_planes, image.is_volume, image.pixel_spacing, image.plane_spacing) == (1, False, None, None)
    assert image.modality is None


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.jpeg")
    np.testing.assert_array_equal(
        read_image(tmp_path / "image.jpeg").plane(0), np.asarray(Image.open(tmp_path / "image.jpeg"))
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_stretched_by_percentiles(suffix: str, tmp_path: Path) -> None:
    values = np.linspace(0, 40000, 5000).round().astype(np.uint16).reshape(50, 100)
    Image.fromarray(values).save(tmp_path / f"image{suffix}")
    low, high = np.percentile(values[values > 0], [0.5, 99.5])
    expected = np.clip((values - low) * 255 / (high - low), 0, 255)
    np.testing.assert_allclose(read_image(tmp_path / f"image{suffix}").plane(0)[..., 1], expected, atol=0.51)


def test_a_float_tiff(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 400, dtype=np.float32).reshape(20, 20)
    Image.fromarray(values).save(tmp_path / "image.tif")
    plane = read_image(tmp_path / "image.tif").plane(0)
    assert (plane.min(), plane.max()) == (0, 255)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "image.tif")
    with pytest.raises(ImageError, match="NaN"):
        read_image(tmp_path / "image.tif")


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    rgba[2, 3, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "image.png")
    plane = read_image(tmp_path / "image.png").plane(0)
    assert plane[2, 3].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(plane[0], RGB[0])


def test_palettes_and_bilevel_pictures(tmp_path: Path) -> None:
    picture = Image.fromarray(GREY % 4, mode=None)
    palette = picture.convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 756)
    palette.putdata((GREY % 4).ravel().tolist())
    palette.save(tmp_path / "palette.png")
    expected = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[GREY % 4]
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png").plane(0), expected)
    Image.fromarray(GREY > 128).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png").plane(0)[..., 0], (GREY > 128) * 255)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".png", {"dpi": (100, 200)}),
        (".jpg", {}),
        (".jpg", {"dpi": (100, 200)}),
        (".tif", {}),
        (".tif", {"dpi": (100, 200)}),
        (".tif", {"resolution_unit": 3, "resolution": 50.0}),
        (".tif", {"resolution_unit": 1, "resolution": 50.0}),
        (".bmp", {"dpi": (100, 200)}),
    ],
)
def test_masks_lie_on_what_simpleitk_opens(suffix: str, options: dict, tmp_path: Path, assert_same_grid) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(GREY).save(path, **options)
    image = read_image(path)
    labels = np.zeros((5, 7), np.uint8)
    labels[0, 5:], labels[4, 0] = 2, 1
    for name in ("a.nii.gz", "b.nii", "c.nrrd"):
        write_mask(labels, image, tmp_path / name)
        mask = sitk.ReadImage(str(tmp_path / name))
        assert_same_grid(mask, sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj), labels.T)
    write_mask(labels, image, tmp_path / "d.png")
    mask = sitk.ReadImage(str(tmp_path / "d.png"))
    assert mask.GetSize() == sitk.ReadImage(str(path)).GetSize()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)


def test_a_density_is_no_known_spacing(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "image.jpg", dpi=(100, 100))
    assert read_image(tmp_path / "image.jpg").pixel_spacing is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_damaged_pictures_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"not an image", b""):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageError, match="more than one page"):
        read_image(tmp_path / "pages.tif")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png does not exist"):
        read_image(tmp_path / "nothing.png")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match=r"notes\.txt is not an image"):
        read_image(tmp_path / "notes.txt")
    (tmp_path / "empty.dcm").write_bytes(b"")
    with pytest.raises(ImageError, match=r"empty\.dcm is empty"):
        read_image(tmp_path / "empty.dcm")


def test_planes_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    for index in (-1, 1):
        with pytest.raises(InputError, match=f"has no plane {index}; allowed are 0 to 0"):
            image.plane(index)


def test_an_array_is_an_image_as_it_is() -> None:
    array = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    image = MedicalImage.from_array(array, modality="US")
    assert (image.n_planes, image.plane_shape, image.modality) == (2, (3, 5), "US")
    assert image.pixel_spacing is None
    np.testing.assert_array_equal(image.plane(1)[..., 0], array[1])
    np.testing.assert_array_equal(image.to_native(array), array)
    assert image.grid.size == (5, 3, 2)
    flat = MedicalImage.from_array(array[0])
    assert (flat.n_planes, flat.grid.size) == (1, (5, 3))
    np.testing.assert_array_equal(flat.plane(0)[..., 1], array[0])
