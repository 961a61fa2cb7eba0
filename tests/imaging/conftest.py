"""Images with a known patient inside, and an independent opinion (SimpleITK) on where voxels lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

sitk = pytest.importorskip("SimpleITK")
sitk.ProcessObject.SetGlobalWarningDisplay(False)

MakeDicom = Callable[..., Dataset]


@pytest.fixture
def make_dicom() -> MakeDicom:
    """Return a function that makes a DICOM data set around given pixels."""

    def make(pixels: np.ndarray, modality: str, sop_class: str, **elements: Any) -> Dataset:
        colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
        frames = pixels.shape[0] if pixels.ndim - colour == 3 else None
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid.generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = uid.generate_uid(), uid.generate_uid()
        data.PatientName, data.PatientID = "Secret^Patient", "SECRET-1"
        data.Modality = modality
        data.SamplesPerPixel = 3 if colour else 1
        data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            data.PlanarConfiguration = 0
        data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        if frames:
            data.NumberOfFrames = frames
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = np.ascontiguousarray(pixels).tobytes()
        for name, value in elements.items():
            setattr(data, name, value)
        return data

    return make


@pytest.fixture
def save_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a data set and returns its path."""

    def save(data: Dataset, name: str = "image.dcm") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save_as(path, enforce_file_format=True)
        return path

    return save


@pytest.fixture
def assert_same_grid() -> Callable[[Any, Any], None]:
    """Return a check that two SimpleITK images have the same size, spacing, origin and direction."""

    def check(mask: Any, image: Any) -> None:
        assert mask.GetSize() == image.GetSize()
        np.testing.assert_allclose(mask.GetSpacing(), image.GetSpacing(), rtol=1e-6)
        np.testing.assert_allclose(mask.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(mask.GetDirection(), image.GetDirection(), atol=1e-6)

    return check


@pytest.fixture
def bright_labels() -> Callable[..., np.ndarray]:
    """Return a function that segments an image's bright voxels from its display planes alone."""

    def segment(image: Any, threshold: int = 128) -> np.ndarray:
        return np.stack([image.plane(n)[..., 0] > threshold for n in range(image.n_planes)]).astype(np.uint8)

    return segment
