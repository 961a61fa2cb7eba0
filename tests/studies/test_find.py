"""One look at a folder: what the command line, training and evaluation find, and what a server lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from medclipsam.base.errors import ImageError, InputError
from medclipsam.imaging import read_image
from medclipsam.studies.find import find_images


@pytest.fixture
def make_dicom() -> Callable[..., Dataset]:
    def make(pixels: np.ndarray, modality: str, sop_class: str, **elements: Any) -> Dataset:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = sop_class, uid.generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = "1.2", uid.generate_uid()
        data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = modality, "MONOCHROME2", 1
        data.Rows, data.Columns = pixels.shape
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.PixelData = 15, 0, pixels.tobytes()
        for name, value in elements.items():
            setattr(data, name, value)
        return data

    return make


def test_find_images_counts_a_series_folder_once(make_dicom, tmp_path: Path) -> None:
    def save(name: str, modality: str, sop_class: str, **elements: object) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_dicom(np.zeros((4, 6), np.uint16), modality, sop_class, **elements).save_as(path, enforce_file_format=True)

    for n in range(3):
        save(
            f"patient/ct/IM{n}", "CT", uid.CTImageStorage, SeriesInstanceUID="1.2.3",
            ImagePositionPatient=[0, 0, n], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )  # fmt: skip
        save(f"xrays/{n}", "DX", uid.DigitalXRayImageStorageForPresentation, SeriesInstanceUID="1.2.4")
    save("xrays/report", "SR", uid.BasicTextSRStorage)
    save("single/slice.dcm", "MR", uid.MRImageStorage, ImagePositionPatient=[0, 0, 0],
         ImageOrientationPatient=[1, 0, 0, 0, 1, 0])  # fmt: skip
    Image.new("L", (3, 3)).save(tmp_path / "b.png")
    Image.new("L", (3, 3)).save(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "fake.dcm").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / ".hidden" / "x.png")
    images = find_images(tmp_path)
    found = [image.name for image in images]
    assert found == ["a.JPG", "b.png", "patient/ct", "single/slice.dcm", "xrays/0", "xrays/1", "xrays/2"]
    assert [image.path for image in images] == [tmp_path / name for name in found]
    assert [read_image(image.path).n_planes for image in images] == [1, 1, 3, 1, 1, 1, 1]


def test_a_folder_itself_can_be_the_series(make_dicom, tmp_path: Path) -> None:
    for n in range(2):
        data = make_dicom(
            np.zeros((4, 6), np.uint16), "CT", uid.CTImageStorage, SeriesInstanceUID="1.2.3",
            ImagePositionPatient=[0, 0, n], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        )  # fmt: skip
        data.save_as(tmp_path / str(n), enforce_file_format=True)
    (image,) = find_images(tmp_path)
    assert (image.path, image.location, image.name) == (tmp_path, tmp_path, "")


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    assert find_images(tmp_path) == []
    with pytest.raises(ImageError, match="is not a folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(ImageError, match="folder without DICOM files"):
        read_image(tmp_path)


def test_two_series_in_one_folder_are_two_images(write_series: Any, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        write_series(np.full((3, 6, 8), 50 * number, np.uint8), tmp_path / "case", uid=name, start=10 * number)
    images = find_images(tmp_path)
    assert [image.location for image in images] == [tmp_path / "case"] * 2
    assert [image.stem for image in images] == [f"case/{image.image_id}" for image in images]
    assert sorted(int(read_image(image.path).voxels().max()) for image in images) == [0, 50]


def test_labels_are_no_images_and_keep_the_image_they_were_saved_for(tmp_path: Path) -> None:
    for name in ("one/a.png", "two/a.png", "labels/final/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3)).save(tmp_path / name)
    objects = {"a": {"image": {"info": {"file": "two/a.png"}}, "labels": {}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    assert {image.image_id: image.name for image in find_images(tmp_path)} == {"a": "two/a.png", "one_a": "one/a.png"}
    (tmp_path / "datastore_v2.json").write_text("[]")
    with pytest.raises(InputError, match=r"datastore_v2\.json"):
        find_images(tmp_path)


def test_damaged_files_are_found_unless_only_whole_ones_are_wanted(tmp_path: Path) -> None:
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    assert [image.image_id for image in find_images(tmp_path)] == ["a", "b"]
    assert [image.image_id for image in find_images(tmp_path, only_whole=True)] == ["a"]


def test_volumes_of_one_file_have_names_of_their_own(write_phases: Any, tmp_path: Path) -> None:
    pixels = np.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
    (tmp_path / "sub").mkdir()
    write_phases(pixels, tmp_path / "sub/a.dcm", told_by="echo")
    write_phases(pixels, tmp_path / "IM.0001", uid="other")
    images = {image.stem: image for image in find_images(tmp_path)}
    assert set(images) == {"sub/a-te5", "sub/a-te10", "IM.0001-time1", "IM.0001-time2"}
    for stem, phase in (("sub/a-te5", 0), ("IM.0001-time2", 1)):
        assert np.array_equal(read_image(images[stem].path).stored_values(), pixels[phase])
