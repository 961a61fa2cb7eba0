"""Series of a DICOMweb server that grow, hold several volumes, or are answered wrongly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medclipsam.base.errors import UpstreamError
from medclipsam.dicomweb.client import Pacs
from medclipsam.dicomweb.options import PacsOptions
from medclipsam.imaging import read_image, write_mask
from medclipsam.server.base.errors import ConflictError, UnknownError
from medclipsam.server.studies.dicomweb import DicomWebStudies, LabelText
from medclipsam.server.studies.images import ImageReader
from medclipsam.server.studies.labels import LabelReader

UID = "1.2.826.1"


@dataclass
class FakePacs(Pacs):
    """A server whose answers are taken from a folder; `sent` changes what a retrieval answers."""

    folder: Path
    sent: Callable[[list[Path]], list[Path]] = lambda files: files
    retrievals: int = 0
    stored: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__("http://127.0.0.1:9", PacsOptions(modalities=("CT",), retries=0))

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.dcm"))

    def search(self, path: str, conditions: Any, fields: Any = ()) -> list[Dataset]:
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in self.files]
        if path.endswith("instances"):
            return headers
        if conditions.get("Modality") != "CT" or not headers:
            return []
        headers[0].NumberOfSeriesRelatedInstances = len(headers)
        return headers[:1]

    def store(self, content: bytes, study: str) -> None:
        self.stored.append(content)

    def _retrieve_once(self, path: str, series: str, folder: Path, count: int, expected: frozenset[str]) -> None:
        self.retrievals += 1
        copies = []
        for number, file in enumerate(self.sent(self.files)):
            copies.append(Path(shutil.copy(file, folder / f"{number}.dcm")))
        self._check_files(copies, series, count, expected)


@pytest.fixture
def pacs(tmp_path: Path, write_series: Any) -> FakePacs:
    folder = write_series(np.zeros((4, 6, 8), np.uint8), tmp_path / "pacs")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.SeriesInstanceUID = UID
        data.save_as(file, enforce_file_format=True)
    return FakePacs(folder)


@pytest.fixture
def make(pacs: FakePacs, tmp_path: Path) -> Callable[[], DicomWebStudies]:
    def run() -> DicomWebStudies:
        return DicomWebStudies(
            pacs,
            tmp_path / "cache",
            images=ImageReader(),
            describe=lambda *_: LabelText([]),
            label_of=lambda *_: 0,
            fresh=0.0,
        )

    return run


def add(pacs: FakePacs, name: str, **elements: Any) -> Path:
    """Add a slice that is like the first one but for its instance and some elements."""
    data = pydicom.dcmread(pacs.files[0])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(pacs.folder / name, enforce_file_format=True)
    return pacs.folder / name


def label(studies: DicomWebStudies, place: Path) -> Path:
    image = read_image(studies.get_image_uri(UID))
    return write_mask(np.zeros((image.n_planes, *image.plane_shape), np.uint8), image, place / "label.nii.gz")


def test_a_series_that_has_grown_is_fetched_again(make: Any, pacs: FakePacs) -> None:
    studies = make()
    for _ in range(2):
        assert read_image(studies.get_image_uri(UID)).n_planes == 4
    assert pacs.retrievals == 1
    extra = add(pacs, "new.dcm", ImagePositionPatient=[-10, 20, 20])
    assert read_image(studies.get_image_uri(UID)).n_planes == 5
    # as many, but others
    extra.unlink()
    add(pacs, "other.dcm", ImagePositionPatient=[-10, 20, -5])
    assert read_image(studies.get_image_uri(UID)).n_planes == 5
    assert pacs.retrievals == 3
    assert read_image(make().get_image_uri(UID)).n_planes == 5
    assert pacs.retrievals == 3


def test_a_label_of_fewer_slices_is_not_stored(make: Any, pacs: FakePacs, tmp_path: Path) -> None:
    studies = make()
    file = label(studies, tmp_path)
    received = LabelReader(ImageReader()).read(Path(studies.get_image_uri(UID)), file, {})
    add(pacs, "new.dcm", ImagePositionPatient=[-10, 20, 20])
    with pytest.raises(ConflictError, match="5 instances"):
        studies.keep_label(UID, "final", received)
    assert pacs.stored == []


@pytest.mark.parametrize("change", ["twice", "foreign", "missing"])
def test_answers_with_other_instances_are_refused(make: Any, pacs: FakePacs, tmp_path: Path, change: str) -> None:
    studies = make()
    foreign = add(pacs, "foreign.dcm", ImagePositionPatient=[-10, 20, 20]).rename(tmp_path / "foreign")
    pacs.sent = {
        "twice": lambda files: [*files, files[0]],
        "foreign": lambda files: [*files, foreign],
        "missing": lambda files: files[1:],
    }[change]
    with pytest.raises(UpstreamError):
        studies.get_image_uri(UID)
    assert not (tmp_path / "cache" / UID).exists()
    pacs.sent = lambda files: files
    assert read_image(studies.get_image_uri(UID)).n_planes == 4


def test_instances_that_arrive_during_the_retrieval_are_taken(make: Any, pacs: FakePacs) -> None:
    def grow(files: list[Path]) -> list[Path]:
        if pacs.retrievals == 1:
            add(pacs, "new.dcm", ImagePositionPatient=[-10, 20, 20])
        return pacs.files

    pacs.sent = grow
    assert read_image(make().get_image_uri(UID)).n_planes == 5


def test_phases_of_a_series_are_images_of_their_own(make: Any, pacs: FakePacs) -> None:
    for number, file in enumerate(pacs.files):
        position = pydicom.dcmread(file).ImagePositionPatient
        add(pacs, f"second{number}.dcm", ImagePositionPatient=position, AcquisitionNumber=2)
    ids = [f"{UID}-acqnone", f"{UID}-acq2"]
    studies = make()
    assert studies.list_images() == [UID]
    with pytest.raises(UnknownError) as refused:
        studies.get_image_uri(UID)
    assert all(image in str(refused.value) for image in ids)
    for store in (studies, make()):
        assert sorted(store.list_images()) == sorted(ids)
        for image, number in zip(ids, (None, 2), strict=True):
            folder = Path(store.get_image_uri(image))
            assert read_image(folder).n_planes == 4
            assert store.image_at(folder) == image
            assert {pydicom.dcmread(file).get("AcquisitionNumber") for file in folder.iterdir()} == {number}
            assert store.get_image_info(image)["SeriesInstanceUID"] == UID
    assert pacs.retrievals == 1
    with pytest.raises(UnknownError):
        studies.get_image_uri(f"{UID}-acq9")
    assert studies.forget_series(-1000) == 1
    assert read_image(studies.get_image_uri(ids[1])).n_planes == 4


def test_a_volume_can_be_asked_for_before_it_is_listed(make: Any, pacs: FakePacs) -> None:
    for number, file in enumerate(pacs.files):
        position = pydicom.dcmread(file).ImagePositionPatient
        add(pacs, f"second{number}.dcm", ImagePositionPatient=position, AcquisitionNumber=2)
    assert read_image(make().get_image_uri(f"{UID}-acq2")).n_planes == 4


def test_phases_of_a_multi_frame_file_are_images_of_their_own(
    make: Any, pacs: FakePacs, write_phases: Callable[..., Path]
) -> None:
    pixels = np.arange(2 * 4 * 6 * 8).reshape(2, 4, 6, 8)
    for file in pacs.files:
        file.unlink()
    data = pydicom.dcmread(write_phases(pixels, pacs.folder / "phases.dcm"))
    data.SeriesInstanceUID = UID
    data.save_as(pacs.folder / "phases.dcm")
    ids = [f"{UID}-time1", f"{UID}-time2"]
    studies = make()
    with pytest.raises(UnknownError) as refused:
        studies.get_image_uri(UID)
    assert all(image in str(refused.value) for image in ids)
    for store in (studies, make()):
        assert sorted(store.list_images()) == ids
        for image, phase in zip(ids, pixels, strict=True):
            folder = Path(store.get_image_uri(image))
            assert np.array_equal(read_image(folder).stored_values(), phase)
            assert store.image_at(folder) == image
    assert pacs.retrievals == 1


def test_multi_frame_files_of_one_series_are_images_of_their_own(
    make: Any, pacs: FakePacs, write_phases: Callable[..., Path]
) -> None:
    pixels = np.arange(3 * 4 * 6 * 8).reshape(3, 4, 6, 8)
    for file in pacs.files:
        file.unlink()
    for number, stored in enumerate((pixels[:1], pixels[1:])):
        path = write_phases(stored, pacs.folder / f"{number}.dcm", uid=f"{number}")
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID, data.StudyInstanceUID, data.InstanceNumber = UID, "1.2.3", number + 1
        data.save_as(path)
    ids = [f"{UID}-instance1", f"{UID}-instance2-time1", f"{UID}-instance2-time2"]
    studies = make()
    with pytest.raises(UnknownError):
        studies.get_image_uri(UID)
    assert sorted(studies.list_images()) == ids
    for image, phase in zip(ids, pixels, strict=True):
        assert np.array_equal(read_image(studies.get_image_uri(image)).stored_values(), phase)
