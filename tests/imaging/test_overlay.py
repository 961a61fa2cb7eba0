"""The overlay picture."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.imaging import read_image, write_overlay
from medclipsam.imaging.colour import COLOURS


def picture(tmp_path: Path, shape: tuple[int, int] = (60, 80)):
    Image.new("L", shape[::-1], 100).save(tmp_path / "image.png")
    return read_image(tmp_path / "image.png")


def stack(tmp_path: Path, planes: int, zoom: tuple[float, float] = (1.0, 1.0)):
    data = np.full((20, 30, planes), 100, np.uint8)
    nib.save(nib.Nifti1Image(data, np.diag([-zoom[1], -zoom[0], 9.0, 1.0])), tmp_path / "stack.nii")
    return read_image(tmp_path / "stack.nii")


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) <= 3).all(axis=-1)


def test_small_images_are_enlarged_and_masks_lie_where_they_are(tmp_path: Path) -> None:
    labels = np.zeros((1, 60, 80), np.uint8)
    labels[0, 10:30, 20:60] = 7
    write_overlay(labels, picture(tmp_path), {"tumour": 7}, tmp_path / "overlay.png")
    shown = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert shown.shape[1] == 768
    assert shown.shape[0] > 576, "a legend stands below the picture"
    rim = np.argwhere(near(shown[:576], COLOURS[0]))
    scale = 768 / 80
    np.testing.assert_allclose(rim.min(axis=0), [10 * scale, 20 * scale], atol=scale)
    np.testing.assert_allclose(rim.max(axis=0), [30 * scale, 60 * scale], atol=scale)
    inside = shown[int(20 * scale), int(40 * scale)].astype(float)
    np.testing.assert_allclose(inside, 0.68 * 100 + 0.32 * np.array(COLOURS[0]), atol=2)
    assert shown[5, 5].tolist() == [100, 100, 100], "outside the image is untouched"
    assert near(shown[576:], COLOURS[0]).any(), "the legend has the colour"


def test_a_single_pixel_is_seen(tmp_path: Path) -> None:
    labels = np.zeros((1, 60, 80), np.uint8)
    labels[0, 30, 40] = 1
    labels[0, 2:50, 2:20] = 2
    write_overlay(labels, picture(tmp_path), {"speck": 1, "large": 2}, tmp_path / "overlay.png")
    assert near(np.asarray(Image.open(tmp_path / "overlay.png"))[280:310, 370:400], COLOURS[0]).sum() > 20


def test_nothing_found_leaves_the_image_and_says_so(tmp_path: Path) -> None:
    write_overlay(np.zeros((60, 80), np.uint8), picture(tmp_path), {"tumour": 1}, tmp_path / "overlay.png")
    shown = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert (shown[:576] == 100).all()
    assert not near(shown, COLOURS[0]).any()
    assert shown[576:].max() > 100, "the legend names it"


def test_large_images_are_reduced(tmp_path: Path) -> None:
    write_overlay(np.zeros((1, 2000, 1000), bool), picture(tmp_path, (2000, 1000)), {}, tmp_path / "overlay.png")
    assert Image.open(tmp_path / "overlay.png").size == (384, 768)


def test_pixels_that_are_not_square_are_shown_in_their_true_aspect(tmp_path: Path) -> None:
    image = stack(tmp_path, 3, zoom=(2.0, 1.0))
    write_overlay(np.zeros((3, 30, 20), bool), image, {}, tmp_path / "overlay.png")
    assert Image.open(tmp_path / "overlay.png").size == (256, 768)


@pytest.mark.parametrize(
    ("holding", "plane", "tiles"),
    [
        ([], None, (1, 1)),
        ([3], None, (1, 1)),
        ([3, 4], None, (2, 1)),
        (range(3), None, (2, 2)),
        (range(9), None, (3, 2)),
        (range(9), 4, (1, 1)),
    ],
)
def test_a_volume_shows_up_to_six_planes(holding, plane: int | None, tiles: tuple[int, int], tmp_path: Path) -> None:
    labels = np.zeros((12, 30, 20), np.uint8)
    for n in holding:
        labels[n, 5:15, 5:10] = 1
    write_overlay(labels, stack(tmp_path, 12), {}, tmp_path / "overlay.png", plane=plane)
    side = 768 if tiles == (1, 1) else 400
    width, height = round(side * 2 / 3), side
    expected = (tiles[0] * width + (tiles[0] - 1) * 8, tiles[1] * height + (tiles[1] - 1) * 8)
    assert Image.open(tmp_path / "overlay.png").size == expected


def test_long_legends_wrap(tmp_path: Path) -> None:
    names = {f"a structure with a long name {n}": n for n in range(1, 9)}
    write_overlay(np.zeros((60, 80), np.uint8), picture(tmp_path), names, tmp_path / "overlay.png")
    width, height = Image.open(tmp_path / "overlay.png").size
    assert width == 768
    assert height > 576 + 3 * 28


@pytest.mark.parametrize(
    ("shape", "name", "plane", "sentence"),
    [
        ((1, 60, 81), "overlay.png", None, r"allowed is \(1, 60, 80\)"),
        ((1, 60, 80), "overlay.jpg", None, r"allowed is \.png"),
        ((1, 60, 80), "overlay.png", 5, "has no plane 5"),
    ],
)
def test_overlays_that_cannot_be_made_are_refused(
    shape: tuple[int, ...], name: str, plane: int | None, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        write_overlay(np.zeros(shape, np.uint8), picture(tmp_path), {}, tmp_path / name, plane=plane)
    assert [file.name for file in tmp_path.iterdir()] == ["image.png"]


def test_a_name_without_a_pixel_keeps_its_colour_when_it_is_not_listed(tmp_path: Path) -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 30:60] = 2
    names = {"absent": 1, "there": 2}
    listed = write_overlay(labels, picture(tmp_path), names, tmp_path / "listed.png")
    short = write_overlay(labels, picture(tmp_path), names, tmp_path / "short.png", list_absent=False)
    with Image.open(listed) as one, Image.open(short) as two:
        np.testing.assert_array_equal(np.asarray(one)[:500], np.asarray(two)[:500])
        legends = [np.asarray(opened)[-30:] for opened in (one, two)]
    assert (legends[1] != legends[1][0, 0]).any(axis=2).sum() < (legends[0] != legends[0][0, 0]).any(axis=2).sum()
