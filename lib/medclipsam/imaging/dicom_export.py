"""Images of other formats as DICOM files, for viewers that read nothing else.

A volume whose place in the patient is known becomes one file a plane, with the plane's place: CT Image or MR Image
Storage by its modality, else Secondary Capture. A volume without a place becomes one multi-frame Secondary Capture, a
picture a Secondary Capture. Frames have the pixels of the display planes. Names and numbers are made of the image's id
alone, so that the same image always becomes the same files.
"""

from __future__ import annotations

import io
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.valuerep import DSfloat

import medclipsam
from medclipsam.base.formats import LOSSY_SUFFIXES, suffix_of
from medclipsam.imaging.frames import ImageFrames
from medclipsam.imaging.image import MedicalImage

# Of all names that are made here.
_NAMESPACE = uuid.UUID("0c9b6a52-3f3c-5d0e-9a55-0f5f2c1d7e41")
# Cosines of rows and columns that are this close to a right angle are one.
_RIGHT_ANGLE = 1e-4
_STORAGE = {"CT": uid.CTImageStorage, "MR": uid.MRImageStorage}


@dataclass(frozen=True)
class DicomNames:
    """What an image of another format is called in DICOM.

    Parameters
    ----------
    studies : str
        What tells one collection of studies from others, such as its id.
    image : str
        The image's id.
    """

    studies: str
    image: str

    @property
    def study(self) -> str:
        """Study Instance UID."""
        return self._uid("study")

    @property
    def series(self) -> str:
        """Series Instance UID."""
        return self._uid("series")

    def instance(self, number: int) -> str:
        """Return the SOP Instance UID of a file, counted from 0."""
        return self._uid(f"instance {number}")

    def _uid(self, what: str) -> str:
        """Return a UID of a name-based UUID (DICOM PS3.5, B.2)."""
        return f"2.25.{uuid.uuid5(_NAMESPACE, f'{self.studies}/{self.image}/{what}').int}"

    def frames(self, image: MedicalImage) -> ImageFrames:
        """Return which frame shows each plane of an image."""
        if image.is_volume and not _is_placed(image):
            frames = [(self.instance(0), plane + 1) for plane in range(image.n_planes)]
        else:
            frames = [(self.instance(plane), 1) for plane in range(image.n_planes)]
        return ImageFrames(self.study, self.series, tuple(frames), image, as_displayed=True)

    def header(self, file: str) -> Dataset:
        """Return the elements of patient, study and series; `file` is the name of the image's file."""
        data = Dataset()
        data.SpecificCharacterSet = "ISO_IR 192"
        data.PatientName = _text(self.image.replace("^", " ").replace("=", " "))
        data.PatientID = _text(self.image)
        data.PatientBirthDate = data.PatientSex = ""
        data.StudyInstanceUID = self.study
        data.StudyDate = data.StudyTime = data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
        data.StudyDescription = _text(file)
        data.SeriesInstanceUID = self.series
        data.SeriesNumber = 1
        data.Laterality = None
        data.SeriesDescription = _text(file)
        return data


def write_dicom(image: MedicalImage, names: DicomNames, folder: Path) -> list[Path]:
    """Write an image as DICOM files.

    No more than one plane is in memory beside the image.

    Parameters
    ----------
    image : MedicalImage
        Of any format.
    names : DicomNames
        What it is called.
    folder : Path
        Where the files `00000.dcm`, `00001.dcm` ... are made; it must be there.

    Returns
    -------
    list of Path
        In the order of the planes; one file for all of them where they have no place.
    """
    placed, pixels = _is_placed(image), _Pixels.of(image)
    single = placed or not image.is_volume
    data = _header(image, names, pixels, placed=placed, single=single)
    if not single:
        data.SOPInstanceUID, data.InstanceNumber = names.instance(0), 1
        data.NumberOfFrames = image.n_planes
        data.PageNumberVector = list(range(1, image.n_planes + 1))
        data.FrameIncrementPointer = 0x00182001
        with tempfile.TemporaryFile() as frames:
            for plane in range(image.n_planes):
                frames.write(pixels.stored(plane))
            if frames.tell() % 2:
                frames.write(b"\0")
            frames.seek(0)
            return [_save(data, frames, pixels, folder / "00000.dcm")]
    files = []
    for plane in range(image.n_planes):
        data.SOPInstanceUID, data.InstanceNumber = names.instance(plane), plane + 1
        if placed:
            data.ImagePositionPatient = _decimals(_position(image, plane))
        content = pixels.stored(plane)
        files.append(_save(data, io.BytesIO(content + b"\0" * (len(content) % 2)), pixels, folder / f"{plane:05d}.dcm"))
    return files


@dataclass(frozen=True)
class _Pixels:
    """How the values of an image are stored: `slope` * stored + `intercept` is the value."""

    image: MedicalImage
    bits: int
    signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def of(cls, image: MedicalImage) -> _Pixels:
        if not image.has_units:
            return cls(image, 8)
        low, high, whole = np.inf, -np.inf, True
        for plane in _values(image):
            low, high = min(low, float(plane.min())), max(high, float(plane.max()))
            whole = whole and bool((plane == np.rint(plane)).all())
        if whole and low >= 0 and high < 2**16:
            return cls(image, 16)
        if whole and low >= -(2**15) and high < 2**15:
            return cls(image, 16, signed=True)
        slope = float(DSfloat((high - low) / (2**16 - 1) or 1.0, auto_format=True))
        # as they will be read: the rounded slope must lead up to the highest value
        return cls(image, 16, False, slope, float(DSfloat(low, auto_format=True)))

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)

    def stored(self, plane: int) -> bytes:
        if self.bits == 8:
            shown = self.image.plane(plane)
            return np.ascontiguousarray(shown if self.image.is_colour else shown[..., 0]).tobytes()
        values = self.image.values(plane).astype(np.float64)
        stored = np.rint((values - self.intercept) / self.slope)
        low, high = (-(2**15), 2**15 - 1) if self.signed else (0, 2**16 - 1)
        return np.clip(stored, low, high).astype("<i2" if self.signed else "<u2").tobytes()


def _values(image: MedicalImage) -> Iterator[np.ndarray]:
    return (image.values(plane) for plane in range(image.n_planes))


def _header(image: MedicalImage, names: DicomNames, pixels: _Pixels, *, placed: bool, single: bool) -> Dataset:
    """Return everything but what differs from file to file."""
    data = names.header(image.source.name)
    data.update(_pixel_elements(image, pixels))
    storage = _STORAGE.get(image.modality or "") if placed and pixels.bits == 16 else None
    if storage is None and single:
        storage = uid.SecondaryCaptureImageStorage
    elif storage is None and image.is_colour:
        storage = uid.MultiFrameTrueColorSecondaryCaptureImageStorage
    elif storage is None:
        words = pixels.bits == 16
        storage = (
            uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
            if words
            else uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage
        )
    data.SOPClassUID = storage
    data.Modality = image.modality or "OT"
    data.Manufacturer, data.ManufacturerModelName = "medclipsam", "MedCLIP-SAM for MONAI Label"
    data.SoftwareVersions = medclipsam.__version__
    data.ImageType = ["DERIVED", "SECONDARY"]
    data.DerivationDescription = "Made for viewers from a file of another format"
    _add_values(data, image, pixels, single=single)
    if placed:
        _add_place(data, image, names)
    elif image.pixel_spacing is not None and single:
        data.PixelSpacing = _decimals(image.pixel_spacing)
    if storage == uid.CTImageStorage:
        data.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        data.KVP = data.AcquisitionNumber = data.PatientPosition = None
    elif storage == uid.MRImageStorage:
        data.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        data.ScanningSequence, data.SequenceVariant = "RM", "NONE"
        for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime"):
            setattr(data, keyword, None)
        data.PatientPosition = None
    else:
        data.ConversionType, data.PatientOrientation = "WSD", None
    return data


def _pixel_elements(image: MedicalImage, pixels: _Pixels) -> Dataset:
    data = Dataset()
    data.Rows, data.Columns = image.plane_shape
    data.SamplesPerPixel = 3 if image.is_colour else 1
    inverted = image.is_inverted and pixels.bits == 16
    data.PhotometricInterpretation = "RGB" if image.is_colour else "MONOCHROME1" if inverted else "MONOCHROME2"
    if image.is_colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels.bits
    data.HighBit = pixels.bits - 1
    data.PixelRepresentation = int(pixels.signed)
    data.BurnedInAnnotation = "NO" if image.modality in _STORAGE else "YES"
    if suffix_of(image.source.name) in LOSSY_SUFFIXES:
        size = image.n_planes * data.Rows * data.Columns * data.SamplesPerPixel
        data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
        data.LossyImageCompressionRatio = _decimal(max(1.0, size / max(1, image.source.stat().st_size)))
    return data


def _add_values(data: Dataset, image: MedicalImage, pixels: _Pixels, *, single: bool) -> None:
    """Add what turns stored values into those that are shown."""
    if image.is_colour:
        return
    scale, shift = pixels.slope, pixels.intercept
    if single and (image.modality == "CT" or pixels.is_scaled):
        data.RescaleIntercept, data.RescaleSlope = _decimal(shift), _decimal(scale)
        data.RescaleType = "HU" if image.modality == "CT" else "US"
        scale, shift = 1.0, 0.0
    elif not single:
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
        data.PresentationLUTShape = "IDENTITY"
    window = image.default_window()
    if window is not None and window.width / scale >= 1:
        data.WindowCenter = _decimal((window.center - shift) / scale)
        data.WindowWidth = _decimal(window.width / scale)


def _add_place(data: Dataset, image: MedicalImage, names: DicomNames) -> None:
    rows, columns = _axes(image)
    assert image.pixel_spacing is not None
    data.FrameOfReferenceUID = names._uid("frame of reference")
    data.PositionReferenceIndicator = None
    data.ImageOrientationPatient = _decimals((*_unit(columns), *_unit(rows)))
    data.PixelSpacing = _decimals((float(np.linalg.norm(rows)), float(np.linalg.norm(columns))))
    data.SliceThickness = None if image.plane_spacing is None else _decimal(image.plane_spacing)


def _is_placed(image: MedicalImage) -> bool:
    """Return whether the planes' places in the patient are known, as DICOM can say them."""
    if image.grid.ndim != 3 or image.layout.name is None or image.pixel_spacing is None:
        return False
    if image.is_volume and image.plane_spacing is None:
        return False
    rows, columns = map(_unit, _axes(image))
    return bool(np.abs(rows @ columns) <= _RIGHT_ANGLE)


def _axes(image: MedicalImage) -> tuple[np.ndarray, np.ndarray]:
    """Return the LPS vectors from one row to the next and from one column to the next of a display plane."""
    vectors = (image.grid.direction * np.asarray(image.grid.spacing)).T[::-1]
    layout = image.layout
    return (
        vectors[layout.axes[1]] * (-1 if layout.flip_rows else 1),
        vectors[layout.axes[2]] * (-1 if layout.flip_columns else 1),
    )


def _position(image: MedicalImage, plane: int) -> np.ndarray:
    """Return the LPS position of the centre of a display plane's first pixel."""
    (voxel,) = image.voxel_index(np.array([[plane, 0, 0]]))
    grid = image.grid
    position: np.ndarray = np.asarray(grid.origin) + grid.direction @ (voxel * np.asarray(grid.spacing))
    return position


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / (length if length else 1.0)


def _save(data: Dataset, content: Any, pixels: _Pixels, path: Path) -> Path:
    data.add_new(0x7FE00010, "OB" if pixels.bits == 8 else "OW", content)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return path


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def _decimals(values: Any) -> list[DSfloat]:
    return [_decimal(value) for value in values]


def _text(text: str) -> str:
    """Return a text as DICOM's LO and PN can hold it."""
    return "".join(character for character in text.replace("\\", "/") if character.isprintable())[:64].strip()
