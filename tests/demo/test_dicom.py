"""Phantoms as DICOM: valid by an independent validator, and shown as they were drawn."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medclipsam.base.errors import InputError
from medclipsam.demo.dicom import DicomPhantom, phantom_series, projection, ultrasound, volume, xray
from medclipsam.demo.phantoms import make_phantom, make_volume
from medclipsam.imaging import read_image

MADE: dict[str, Callable[[], DicomPhantom]] = {
    "MR": lambda: volume("MR", 1, 4, size=64),
    "CT": lambda: volume("CT", 1, 4, size=64),
    "CR": lambda: xray("CR", 1, size=96),
    "DX": lambda: xray("DX", 1, size=96),
    "MG": lambda: DicomPhantom("mg", [projection("MG", make_phantom("XR", 1, size=96).image, 1)], {}),
    "US": lambda: ultrasound(1, size=96),
    "US loop": lambda: ultrasound(1, size=96, frames=3),
}


@pytest.fixture(params=MADE)
def phantom(request: pytest.FixtureRequest) -> DicomPhantom:
    return MADE[request.param]()


def _write(phantom: DicomPhantom, folder: Path) -> Path:
    for index, content in enumerate(phantom.contents()):
        (folder / f"{index}.dcm").write_bytes(content)
    return folder


def test_a_validator_finds_no_error(phantom: DicomPhantom, tmp_path: Path) -> None:
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    for file in sorted(_write(phantom, tmp_path).iterdir()):
        found = subprocess.run([validator, str(file)], capture_output=True, text=True, check=False).stderr
        assert "Error" not in found, found


def test_volumes_lie_from_below_upwards_as_drawn(tmp_path: Path) -> None:
    drawn, masks = make_volume("CT", 1, 4, size=64, raw=True)
    made = MADE["CT"]()
    image = read_image(_write(made, tmp_path))
    assert image.n_planes == 4
    assert np.array_equal(image.voxels()[0], np.clip(drawn[0], -1024, 3071) + 1024)
    assert all(np.array_equal(made.masks[name], masks[name]) for name in masks)


def test_a_loop_shows_what_its_masks_say(tmp_path: Path) -> None:
    made = MADE["US loop"]()
    image = read_image(_write(made, tmp_path))
    assert (image.n_planes, image.modality, image.is_colour) == (3, "US", True)
    masks = made.masks["breast tumour"]
    assert masks.shape == (3, *image.plane_shape)
    # the probe moves by four pixels a frame
    assert np.array_equal(image.plane(0)[:, 4:], image.plane(1)[:, :-4])
    assert np.array_equal(masks[0][:, 4:], masks[1][:, :-4])
    assert image.pixel_spacing == pytest.approx((40 / image.plane_shape[0],) * 2)


def test_series_of_a_seed_are_the_same_and_all_differ() -> None:
    first, again = (phantom_series(2, size=64, n_planes=4) for _ in range(2))
    assert [phantom.contents() for phantom in first] == [phantom.contents() for phantom in again]
    assert len({phantom.series_uid for phantom in first}) == len({phantom.name for phantom in first}) == 10
    with pytest.raises(InputError, match="at least 1"):
        phantom_series(0)
