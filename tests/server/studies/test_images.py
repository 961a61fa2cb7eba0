"""The reader of the server's images and what it keeps in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from medclipsam.base.errors import CancelledError, ImageError
from medclipsam.imaging import isolation, read_image
from medclipsam.server.studies.images import ImageReader, series_as_volume, signature


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    return path


def test_the_last_image_is_read_once_until_it_changes(image: Path) -> None:
    reader = ImageReader()
    first = reader.read(image)
    assert reader.read(image) is first
    assert reader.read(image, "US") is not first
    Image.fromarray(np.full((4, 5), 9, np.uint8)).save(image)
    os.utime(image, (1, 1))
    assert reader.read(image).plane(0).max() == 9


def test_a_series_changes_with_any_of_its_files(tmp_path: Path, write_series: object) -> None:
    folder = write_series(np.zeros((3, 4, 5), np.uint8), tmp_path / "series")  # type: ignore[operator]
    before = signature(folder)
    assert signature(folder) == before
    os.utime(folder / "slice1.dcm", (1, 1))
    assert signature(folder) != before


def test_sentences_do_not_tell_where_images_are_kept(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(ImageError, match=name) as error:
            ImageReader().read(tmp_path / name)
        assert str(tmp_path) not in str(error.value)


def test_background_reading_leaves_the_annotators_image_in_memory(image: Path, tmp_path: Path) -> None:
    others = [tmp_path / f"other{number}.png" for number in range(2)]
    for other in others:
        Image.fromarray(np.ones((4, 5), np.uint8)).save(other)
    reader = ImageReader()
    first = reader.read(image)
    with reader.in_background():
        assert reader.read(image) is first
        seen = [reader.read(other) for other in others]
        assert reader.read(others[1]) is seen[1]
        assert reader.read(others[0]) is not seen[0]
    assert reader.read(image) is first
    assert reader.read(others[1]) is not seen[1]
    assert reader.read(image) is not first


def test_the_volume_of_a_series_is_the_one_that_masks_are_made_on(tmp_path: Path, write_series: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 4, 5)).astype(np.uint8)
    folder = write_series(pixels, tmp_path / "series")
    scout = pydicom.dcmread(folder / "slice0.dcm")
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    scout.save_as(folder / "scout.dcm", enforce_file_format=True)
    for number, file in enumerate(sorted(folder.glob("slice*"))):
        data = pydicom.dcmread(file)
        data.RescaleIntercept = -1000 * number
        data.save_as(file, enforce_file_format=True)
    image = read_image(folder)
    volume = series_as_volume(image)
    try:
        served = read_image(volume)
    finally:
        volume.unlink()
    assert served.grid.lies_on(image.grid, tolerance=1e-4)
    assert [served.values(n).tolist() for n in range(3)] == [image.values(n).tolist() for n in range(3)]
    mask = np.zeros((3, 4, 5), np.uint8)
    mask[1, 2, 3] = 1
    np.testing.assert_array_equal(served.to_native(mask), image.to_native(mask))


def test_a_reading_that_was_cancelled_says_nothing_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one that is read in another process
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "image.tif")
    reader = ImageReader()

    def hang(*_: Any, **__: Any) -> None:
        isolation._pool.call(("time", "sleep", (), 60.0), (60,), 60.0)

    with monkeypatch.context() as patch:
        patch.setattr(isolation, "call", hang)
        token = isolation.stop_asked.set(lambda: True)
        try:
            with pytest.raises(CancelledError):
                reader.read(tmp_path / "image.tif")
        finally:
            isolation.stop_asked.reset(token)
    assert reader.failures() == {}
    assert reader.read(tmp_path / "image.tif").n_planes == 1
