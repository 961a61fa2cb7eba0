"""Series that hold more than the slices of one volume, and volumes that are not uniform."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from medclipsam.base.errors import ImageError
from medclipsam.imaging import read_image
from medclipsam.imaging.dicom import read_header, source_headers, stored_pixels
from medclipsam.imaging.dicom_series import Slice, volumes_of

AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


class Series:
    """A folder with the files of one series."""

    def __init__(self, folder: Path, make_dicom: Callable[..., Dataset]) -> None:
        folder.mkdir()
        self.folder = folder
        self._make = make_dicom
        self._uid = uid.generate_uid()
        self._names = (f"{(n * 37) % 101:03d}" for n in itertools.count())

    def add(
        self, z: float, value: int = 0, dtype: Any = np.int16, shape: tuple[int, ...] = (4, 5), **more: Any
    ) -> Path:
        """Write a slice at a height that holds one value."""
        elements = {
            "SeriesInstanceUID": self._uid,
            "ImagePositionPatient": [-5, 7, z],
            "ImageOrientationPatient": AXIAL,
            "PixelSpacing": [0.7, 0.7],
            **more,
        }
        sop_class = elements.pop("sop_class", uid.MRImageStorage)
        data = self._make(np.full(shape, value, dtype), "MR", sop_class, **elements)
        for name in [name for name, given in elements.items() if given is None]:
            delattr(data, name)
        path = self.folder / next(self._names)
        data.save_as(path, enforce_file_format=True)
        return path

    def volumes(self) -> dict[str, list[int]]:
        """Return the value of each slice of each volume, from foot to head, by the volume's key."""
        files = sorted(self.folder.iterdir())
        found = volumes_of([Slice.from_header(file, read_header(file)) for file in files], stored_pixels)  # type: ignore[arg-type]
        told = {}
        for volume in found:
            slices = sorted((dcmread(file) for file in volume.files), key=lambda data: data.ImagePositionPatient[2])
            told[volume.key] = [int(data.pixel_array[0, 0]) for data in slices]
        return told

    def values(self) -> list[float]:
        """Return the value of each plane of the folder's image."""
        image = read_image(self.folder)
        return [float(image.values(n)[0, 0]) for n in range(image.n_planes)]


@pytest.fixture
def series(tmp_path: Path, make_dicom: Callable[..., Dataset]) -> Series:
    return Series(tmp_path / "series", make_dicom)


@pytest.mark.parametrize("same_uid", [True, False])
def test_second_copies_of_slices_count_once(series: Series, same_uid: bool) -> None:
    for n in range(4):
        path = series.add(2.0 * n, n)
        if n != 2:
            data = dcmread(path)
            if not same_uid:
                data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
            data.save_as(series.folder / f"copy{n}", enforce_file_format=True)
    assert series.values() == [0, 1, 2, 3]
    assert len(source_headers(series.folder)) == 4
    (note,) = read_image(series.folder).notes
    assert len([name for name in ("copy0", "copy1", "copy3") if name in note]) == 3


def test_one_instance_with_two_contents_is_refused(series: Series) -> None:
    paths = [series.add(2.0 * n, n) for n in range(4)]
    data = dcmread(paths[1])
    data.PixelData = np.full((4, 5), 9, np.int16).tobytes()
    data.save_as(series.folder / "other", enforce_file_format=True)
    with pytest.raises(ImageError, match="one SOP Instance UID but other pixels"):
        read_image(series.folder)


@pytest.mark.parametrize(
    "more",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": CORONAL},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageOrientationPatient": CORONAL},
        {"shape": (8, 9)},
        {"PixelSpacing": [2.0, 2.0]},
        {"sop_class": uid.SecondaryCaptureImageStorage, "shape": (8, 9, 3), "dtype": np.uint8},
        {
            "sop_class": uid.SecondaryCaptureImageStorage,
            "ImagePositionPatient": None,
            "ImageOrientationPatient": None,
        },
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    ],
)
def test_what_is_no_part_of_the_volume_is_left_out_and_named(series: Series, more: dict[str, Any]) -> None:
    for n in range(5):
        series.add(2.0 * n, n)
    odd = series.add(11.0, 99, **more)
    assert series.values() == [0, 1, 2, 3, 4]
    image = read_image(series.folder)
    assert any(odd.name in note for note in image.notes)
    assert image.describe()["notes"] == list(image.notes)


@pytest.mark.parametrize(
    ("keyword", "values", "keys"),
    [
        ("DiffusionBValue", [0.0, 50.0, 1000.0], ["b0", "b50", "b1000"]),
        ("EchoTime", [2.46, 4.92], ["te2.46", "te4.92"]),
        ("TemporalPositionIdentifier", [1, 2, 10], ["time1", "time2", "time10"]),
        ("AcquisitionNumber", [3, 4], ["acq3", "acq4"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", kind, "NONE"] for kind in "MPRI"], ["I", "M", "P", "R"]),
        ("ContentTime", ["095959", "100001"], ["time1", "time2"]),
        ("TriggerTime", [12.5, 400.0], ["time1", "time2"]),
    ],
)
def test_phases_are_volumes_of_their_own(series: Series, keyword: str, values: list[Any], keys: list[str]) -> None:
    for n in range(4):
        for number, value in enumerate(values):
            series.add(2.0 * n, 10 * number + n, **{keyword: value})
    expected = [[10 * number + n for n in range(4)] for number in range(len(values))]
    told = series.volumes()
    assert list(told) == keys
    if keyword == "ImageType":
        expected = [expected["MPRI".index(key)] for key in keys]
    assert list(told.values()) == expected
    with pytest.raises(ImageError) as error:
        read_image(series.folder)
    assert all(key in str(error.value) for key in keys)


def test_time_points_whose_times_differ_from_slice_to_slice_are_put_in_order(series: Series) -> None:
    for phase in (1, 0, 2):
        for n in range(4):
            series.add(2.0 * n, 10 * phase + n, ContentTime=f"10{phase:02d}{n:02d}", AcquisitionTime="100000")
    assert series.volumes() == {f"time{phase + 1}": [10 * phase + n for n in range(4)] for phase in range(3)}


def test_two_things_may_tell_volumes_apart_together(series: Series) -> None:
    for n, echo, kind in itertools.product(range(3), (1.0, 2.0), "MP"):
        series.add(2.0 * n, int(10 * echo) + n, EchoTime=echo, ImageType=["ORIGINAL", "PRIMARY", kind])
    assert sorted(series.volumes()) == ["te1-M", "te1-P", "te2-M", "te2-P"]


def test_phases_of_other_length_share_a_scout_and_a_copy(series: Series) -> None:
    for phase, count in ((1, 4), (2, 6)):
        for n in range(count):
            path = series.add(2.0 * n, 10 * phase + n, AcquisitionNumber=phase)
    dcmread(path).save_as(series.folder / "copy", enforce_file_format=True)
    series.add(0, 99, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=CORONAL)
    assert series.volumes() == {"acq1": [10, 11, 12, 13], "acq2": [20, 21, 22, 23, 24, 25]}


def test_black_slices_of_phases_are_no_copies(series: Series) -> None:
    for n, phase in itertools.product(range(3), (1, 2)):
        series.add(2.0 * n, 0, AcquisitionNumber=phase)
    assert series.volumes() == {"acq1": [0, 0, 0], "acq2": [0, 0, 0]}


def test_slices_at_one_position_for_no_known_reason_are_refused(series: Series) -> None:
    for n, kind in itertools.product(range(3), (0, 1)):
        series.add(2.0 * n, 10 * kind + n, InstanceNumber=2 * n + kind)
    with pytest.raises(ImageError, match="same position"):
        read_image(series.folder)


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ({"PixelSpacing": [0.7, 0.7]}, {"PixelSpacing": [0.8, 0.8]}, ["0.7x0.7mm", "0.8x0.8mm"]),
        ({"shape": (4, 5)}, {"shape": (6, 5)}, ["5x4", "5x6"]),
        ({"ImageOrientationPatient": AXIAL}, {"ImageOrientationPatient": CORONAL}, ["axial", "coronal"]),
    ],
)
def test_two_stacks_in_one_series_are_volumes_of_their_own(
    series: Series, one: dict[str, Any], other: dict[str, Any], keys: list[str]
) -> None:
    for n in range(4):
        series.add(2.0 * n, n, **one)
        series.add(2.0 * n, 10 + n, **{"ImagePositionPatient": [-5, 2 * n, 2 * n], **other})
    told = series.volumes()
    assert sorted(told) == sorted(keys)
    assert sorted(map(tuple, told.values())) == [(0, 1, 2, 3), (10, 11, 12, 13)]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("thickness", [True, False])
def test_a_scan_with_two_slice_distances_is_read_slice_by_slice(series: Series, flipped: bool, thickness: bool) -> None:
    heights = [0.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0]
    heights = [-height for height in heights] if flipped else heights
    for number, z in enumerate(heights):
        told = {"SliceThickness": 2.5 if abs(z) <= 10 else 5.0} if thickness else {}
        series.add(z, number, InstanceNumber=number + 1, **told)
    image = read_image(series.folder)
    assert series.values() == (list(range(8))[::-1] if flipped else list(range(8)))
    assert image.plane_spacing is None
    assert image.pixel_spacing == (0.7, 0.7)
    assert any("2.50" in note and "5.00" in note for note in image.notes)
    assert sorted(float(header.ImagePositionPatient[2]) for header in source_headers(series.folder)) == sorted(heights)


@pytest.mark.parametrize("missing", [[3], [3, 4], [3, 5], [2, 4, 6]])
def test_missing_slices_are_refused_by_their_positions(series: Series, missing: list[int]) -> None:
    for n in set(range(12)) - set(missing):
        series.add(2.5 * n, n, InstanceNumber=n + 1, SliceThickness=2.5)
    at = 2.5 * (missing[0] - 1)
    with pytest.raises(ImageError, match=f"between {at:.2f} and"):
        read_image(series.folder)


def test_slices_may_differ_in_type_and_rescale(series: Series) -> None:
    series.add(0, -1000, np.int16, RescaleSlope=1, RescaleIntercept=0)
    series.add(2, 60000, np.uint16, RescaleSlope=1, RescaleIntercept=-61000)
    series.add(4, 24, np.uint8, RescaleSlope=2, RescaleIntercept=-1048)
    assert series.values() == [-1000, -1000, -1000]
    np.testing.assert_array_equal(read_image(series.folder).stored_values(), np.full((3, 4, 5), -1000))
