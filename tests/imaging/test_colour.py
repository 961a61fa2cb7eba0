"""Colours of all depths, what looks like colours and is none, and pictures that are stored turned."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageOps

from medclipsam.base.errors import ImageError
from medclipsam.imaging import read_image, read_mask, write_mask

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
VOLUME = np.random.default_rng(1).integers(0, 256, (4, 5, 7, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray, kinds: str | None = None) -> Path:
    compress = kinds is None
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path), useCompression=compress)
    if kinds:
        head, _, voxels = path.read_bytes().partition(b"\n\n")
        lines = [line for line in head.split(b"\n") if not line.startswith(b"kinds:")]
        path.write_bytes(b"\n".join([*lines, f"kinds: {kinds}".encode()]) + b"\n\n" + voxels)
    return path


def png(array: np.ndarray) -> bytes:
    """Return a PNG of 16 bits with 3 or 4 channels, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, columns, channels = array.shape
    header = struct.pack(">IIBBBBB", columns, rows, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_colours_of_volumes_are_scaled_by_their_bits(tmp_path: Path, suffix: str, bits: int) -> None:
    deep = VOLUME if bits == 8 else np.rint(VOLUME * ((2.0**bits - 1) / 255)).astype(np.uint16)
    image = read_image(save(tmp_path / f"a{suffix}", deep))
    assert image.is_colour
    np.testing.assert_allclose(image.voxels(), VOLUME, atol=1)
    labels = (np.arange(4 * 5 * 7).reshape(4, 5, 7) % 3).astype(np.uint8)
    shown = np.stack([image.plane(index) for index in range(image.n_planes)])
    assert shown.shape[:3] == image.from_native(labels).shape
    for name in ("mask.nii.gz", "mask.nrrd"):
        write_mask(image.from_native(labels), image, tmp_path / name)
        mask = sitk.ReadImage(str(tmp_path / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)
        np.testing.assert_array_equal(read_mask(tmp_path / name, image), image.from_native(labels))


def test_real_colours_that_the_header_calls_so(tmp_path: Path) -> None:
    made = save(tmp_path / "a.nrrd", (VOLUME / 255).astype(np.float32), "RGB-color domain domain domain")
    np.testing.assert_array_equal(read_image(made).voxels(), VOLUME)


NO_COLOURS = {
    "vectors": (VOLUME - 128.0).astype(np.float32),
    "shares": (VOLUME / 255).astype(np.float32),
    "differences": VOLUME.astype(np.int16) - 128,
    "labels": VOLUME % 4,
    "large numbers": VOLUME.astype(np.uint32) * 1000,
    "NaN": np.full_like(VOLUME, np.nan, np.float32),
}


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("what", NO_COLOURS)
def test_three_values_that_are_no_colour_are_refused(tmp_path: Path, suffix: str, what: str) -> None:
    path = save(tmp_path / f"a{suffix}", NO_COLOURS[what])
    with pytest.raises(ImageError, match=path.name):
        read_image(path)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_pictures_of_16_bits_a_colour(tmp_path: Path, name: str, bits: int) -> None:
    deep = np.rint(RGB * ((2.0**bits - 1) / 255)).astype(np.uint16)
    if name == "a.png":
        (tmp_path / name).write_bytes(png(deep))
    else:
        save(tmp_path / name, deep)
    np.testing.assert_allclose(read_image(tmp_path / name).plane(0), RGB, atol=1)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_transparent_pixels_of_16_bits_are_black(tmp_path: Path, name: str) -> None:
    deep = np.concatenate([RGB * np.uint16(257), np.full((5, 7, 1), 65535, np.uint16)], axis=-1)
    deep[2, 3, 3] = 0
    if name == "a.png":
        (tmp_path / name).write_bytes(png(deep))
    else:
        save(tmp_path / name, deep)
    expected = RGB.copy()
    expected[2, 3] = 0
    np.testing.assert_allclose(read_image(tmp_path / name).plane(0), expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "grey.tif", "deep.png"])
def test_turned_pictures_are_shown_upright_and_masks_go_back(tmp_path: Path, name: str, orientation: int) -> None:
    stored = {"grey.tif": RGB[..., 0], "deep.png": RGB[..., 0].astype(np.uint16) * 200}.get(name, RGB)
    exif = Image.Exif()
    exif[274] = orientation
    lossless = {"lossless": True} if name.endswith(".webp") else {}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **lossless)
    image = read_image(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        # Pillow turns TIFF when it decodes it, some kinds of it wrongly
        turned = Image.fromarray(stored) if name.endswith(".tif") else opened
        turned.getexif()[274] = orientation
        upright = np.asarray(ImageOps.exif_transpose(turned))
    if stored.dtype == np.uint8:
        expected = upright if upright.ndim == 3 else np.repeat(upright[..., None], 3, axis=2)
        np.testing.assert_array_equal(image.plane(0), expected)
    else:
        assert image.plane(0).shape[:2] == upright.shape
    # a mask of the stored pixels is what the upright one of it comes back as
    native = np.arange(35, dtype=np.uint8).reshape(5, 7)
    turned = Image.fromarray(native)
    turned.getexif()[274] = orientation
    labels = np.asarray(ImageOps.exif_transpose(turned))
    np.testing.assert_array_equal(image.to_native(labels), native)
    np.testing.assert_array_equal(image.from_native(native)[0], labels)
    points = np.argwhere(native >= 0)
    for (row, column), (_, *shown) in zip(points, image.display_index(points[:, ::-1]).tolist(), strict=True):
        assert labels[tuple(shown)] == native[row, column]
    for made in ("mask.png", "mask.nii.gz"):
        write_mask(labels, image, tmp_path / made)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / made))), native)
        np.testing.assert_array_equal(read_mask(tmp_path / made, image)[0], labels)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_passed_over(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").plane(0), RGB)
