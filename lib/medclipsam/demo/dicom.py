"""Phantoms as the DICOM objects that scanners send: MR and CT volumes, radiographs, ultrasound pictures and loops."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from medclipsam.base.errors import InputError
from medclipsam.demo.phantoms import make_phantom, make_volume

_UID_SEED = "medclipsam demo phantom"
_PROJECTIONS = {
    "CR": uid.ComputedRadiographyImageStorage,
    "DX": uid.DigitalXRayImageStorageForPresentation,
    "MG": uid.DigitalMammographyXRayImageStorageForPresentation,
}


@dataclass(frozen=True)
class DicomPhantom:
    """One series of a phantom.

    Attributes
    ----------
    name : str
        "chest-ct-1".
    files : list of pydicom.FileDataset
        Slices from below upwards, or one file.
    masks : dict of str to numpy.ndarray
        bool [n, H, W], a plane for each slice or frame in their order.
    """

    name: str
    files: list[FileDataset]
    masks: dict[str, np.ndarray]

    @property
    def series_uid(self) -> str:
        """The SeriesInstanceUID."""
        return str(self.files[0].SeriesInstanceUID)

    @property
    def study_uid(self) -> str:
        """The StudyInstanceUID."""
        return str(self.files[0].StudyInstanceUID)

    def contents(self) -> list[bytes]:
        """Return the files' bytes."""
        return [dicom_bytes(file) for file in self.files]


def phantom_series(n: int = 1, *, seed: int = 0, size: int = 192, n_planes: int = 24) -> list[DicomPhantom]:
    """Return `n` phantoms of each kind: brain MRI, chest CT, chest X-ray (DX), breast ultrasound and ultrasound loop.

    The first of a kind has its finding, the next has none, and so on.

    Parameters
    ----------
    n : int
        Phantoms of each kind, at least 1.
    seed : int
        Seed of the first phantom of each kind.
    size : int
        Longer side of a volume's planes; X-rays have twice as many pixels.
    n_planes : int
        Planes of a volume.

    Raises
    ------
    InputError
        If `n` is below 1.
    """
    if n < 1:
        raise InputError(f"Demo studies are made of at least 1 phantom of each kind; given {n}.")
    made: list[DicomPhantom] = []
    for index in range(n):
        number, sick = index + 1, index % 2 == 0
        made += [
            volume("MR", seed + index, n_planes, size=size, pathology=sick, name=f"brain-mri-{number}"),
            volume("CT", seed + index, n_planes, size=size, pathology=sick, name=f"chest-ct-{number}"),
            xray("DX", seed + index, size=2 * size, pathology=sick, name=f"chest-xray-{number}"),
            ultrasound(seed + index, size=2 * size, pathology=sick, name=f"breast-us-{number}"),
            ultrasound(seed + index, size=size, pathology=sick, frames=6, name=f"breast-us-loop-{number}"),
        ]
    return made


def volume(
    modality: str, seed: int, n_planes: int, *, size: int = 192, pathology: bool = True, name: str = "volume"
) -> DicomPhantom:
    """Return a chest CT or brain MRI as a series of axial slices; see `make_volume`."""
    stack, masks = make_volume(modality, seed, n_planes, size=size, pathology=pathology, raw=True)
    in_plane, between = (1.1, 6.0) if modality == "MR" else (1.9, 12.0)
    extent = 24 * between  # of the body, whatever number of planes cuts it
    between = extent / n_planes
    files = []
    for index, plane in enumerate(stack):
        if modality == "CT":
            data = ct_slice(plane, seed, index + 1, spacing=in_plane)
        else:
            data = _slice("MR", uid.MRImageStorage, plane, seed, index + 1, spacing=in_plane)
            data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "SE", "NONE", ""
            data.MRAcquisitionType, data.RepetitionTime, data.EchoTime, data.EchoTrainLength = "2D", "500", "15", "1"
            data.BodyPartExamined = "BRAIN"
        data.ImagePositionPatient = [*data.ImagePositionPatient[:2], round(index * between, 6)]
        data.SliceThickness = data.SpacingBetweenSlices = str(round(between, 6))
        if modality == "CT":
            del data.SpacingBetweenSlices
        files.append(data)
    return DicomPhantom(name, files, masks)


def ct_slice(hounsfield: np.ndarray, seed: int, number: int = 1, *, spacing: float) -> FileDataset:
    """Return one CT plane (int16 [H, W] in Hounsfield units), 12 bits, with the windows of lung and soft tissue."""
    stored = np.clip(hounsfield.astype(np.int32) + 1024, 0, 4095).astype(np.uint16)
    data = _slice("CT", uid.CTImageStorage, stored, seed, number, spacing=spacing)
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    data.WindowCenter, data.WindowWidth = ["-600", "40"], ["1500", "400"]
    data.KVP, data.AcquisitionNumber, data.BodyPartExamined = "120", "1", "CHEST"
    return data


def xray(
    modality: str, seed: int, *, size: int = 512, pathology: bool | None = True, name: str = "xray"
) -> DicomPhantom:
    """Return a chest X-ray as CR or DX; see `make_phantom`."""
    phantom = make_phantom("XR", seed, size=size, pathology=pathology)
    masks = {structure: mask[None] for structure, mask in phantom.masks.items()}
    return DicomPhantom(name, [projection(modality, phantom.image, seed)], masks)


def projection(modality: str, pixels: np.ndarray, seed: int) -> FileDataset:
    """Return a picture (uint8 [H, W]) as the radiograph of a modality, CR, DX or MG, in 12 bits."""
    data = phantom_dataset(modality, _PROJECTIONS[modality], seed, pixels.astype(np.uint16) * 16)
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 0
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.BodyPartExamined = "BREAST" if modality == "MG" else "CHEST"
    # Rows run to the patient's left, columns to the feet: the right of the patient is at the image's left.
    data.PatientOrientation = ["A", "L"] if modality == "MG" else ["L", "F"]
    data.ImagerPixelSpacing = [0.8, 0.8]
    data.WindowCenter, data.WindowWidth = "2048", "4096"
    data.PresentationLUTShape = "IDENTITY"
    _remove_frame_of_reference(data)
    if modality == "CR":
        data.ViewPosition = "PA"
        return data
    data.PresentationIntentType = "FOR PRESENTATION"
    data.ImageLaterality = "L" if modality == "MG" else "U"
    region, meaning = ("76752008", "Breast") if modality == "MG" else ("51185008", "Chest")
    data.AnatomicRegionSequence = DicomSequence([_code(region, meaning)])
    data.PixelIntensityRelationship, data.PixelIntensityRelationshipSign = "LOG", -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.LossyImageCompression, data.BurnedInAnnotation = "00", "NO"
    data.DetectorType = data.PositionerType = ""
    data.AcquisitionContextSequence = DicomSequence()
    view = _code("399162004", "cranio-caudal") if modality == "MG" else _code("272479007", "posteroanterior")
    view.ViewModifierCodeSequence = DicomSequence()
    data.ViewCodeSequence = DicomSequence([view])
    if modality == "MG":
        data.ImageType = ["DERIVED", "PRIMARY", ""]
        data.PositionerType, data.OrganExposed, data.BreastImplantPresent = "MAMMOGRAPHIC", "BREAST", "NO"
    return data


def ultrasound(
    seed: int, *, size: int = 384, pathology: bool | None = True, frames: int = 1, name: str = "ultrasound"
) -> DicomPhantom:
    """Return a breast ultrasound as RGB, as a loop in which the probe moves along where `frames` is above 1."""
    phantom = make_phantom("US", seed, size=size, pathology=pathology)
    picture = phantom.image if phantom.image.ndim == 3 else np.repeat(phantom.image[..., None], 3, axis=2)
    step = 4
    width = picture.shape[1] - step * (frames - 1)
    starts = [step * index for index in range(frames)]
    pixels = np.stack([picture[:, start : start + width] for start in starts])
    masks = {
        structure: np.stack([mask[:, start : start + width] for start in starts])
        for structure, mask in phantom.masks.items()
    }
    loop = frames > 1
    sop_class = uid.UltrasoundMultiFrameImageStorage if loop else uid.UltrasoundImageStorage
    data = phantom_dataset("US", sop_class, seed, pixels[0, :, :, 0], what="loop" if loop else "")
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.ImageType = ["DERIVED", "PRIMARY", "BREAST", "0001"]
    data.PatientOrientation = []
    data.Laterality = "L"
    data.LossyImageCompression, data.BurnedInAnnotation, data.BodyPartExamined = "00", "NO", "BREAST"
    data.UltrasoundColorDataPresent = 0
    _remove_frame_of_reference(data)
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = data.Columns - 1, data.Rows - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 4.0 / data.Rows
    data.SequenceOfUltrasoundRegions = DicomSequence([region])
    if loop:
        data.Columns = width
        data.NumberOfFrames, data.FrameTime = frames, "40"
        data.FrameIncrementPointer = 0x00181063
    data.PixelData = _even(np.ascontiguousarray(pixels if loop else pixels[0]).tobytes())
    return DicomPhantom(name, [data], masks)


def phantom_dataset(modality: str, sop_class: str, seed: int, pixels: np.ndarray, *, what: str = "") -> FileDataset:
    """Return a DICOM data set of a phantom: 16 bits allocated, made-up names, UIDs from the seed.

    Parameters
    ----------
    modality : str
        DICOM modality.
    sop_class : str
        SOP Class UID.
    seed : int
        The phantom's seed.
    pixels : numpy.ndarray
        uint16 [H, W].
    what : str
        Tells apart what is made of one seed: the same gives the same UIDs.
    """

    def unique(level: str) -> UID:
        return generate_uid(entropy_srcs=[_UID_SEED, modality, str(seed), f"{level}{what}"])

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = unique("instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = unique("study"), unique("series")
    data.FrameOfReferenceUID = unique("frame")
    data.PositionReferenceIndicator = ""
    data.Modality = modality
    data.PatientName = f"Phantom^{modality} {seed}"
    data.PatientID = f"PHANTOM-{modality}-{seed}"
    data.PatientBirthDate = data.PatientSex = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "Computer-generated phantom; there is no patient"
    data.StudyDate, data.StudyTime, data.AccessionNumber, data.StudyID = "20260101", "000000", "", "1"
    data.ContentDate, data.ContentTime = data.StudyDate, data.StudyTime
    data.StudyDescription = data.SeriesDescription = f"{modality} phantom {seed}"
    data.ReferringPhysicianName = ""
    data.Manufacturer = "medclipsam phantom"
    data.SeriesNumber = data.InstanceNumber = 1
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    return data


def dicom_bytes(data: FileDataset) -> bytes:
    """Return a data set as the bytes of a file."""
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _slice(modality: str, sop_class: str, pixels: np.ndarray, seed: int, number: int, *, spacing: float) -> FileDataset:
    data = phantom_dataset(modality, sop_class, seed, pixels)
    instance = generate_uid(entropy_srcs=[str(data.SOPInstanceUID), str(number)]) if number > 1 else data.SOPInstanceUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = instance
    data.InstanceNumber = number
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL" if modality == "CT" else "OTHER"]
    rows, columns = pixels.shape
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [round(-spacing * (columns - 1) / 2, 6), round(-spacing * (rows - 1) / 2, 6), 0]
    data.PixelSpacing = [spacing, spacing]
    data.SliceThickness, data.PatientPosition = "5", "HFS"
    return data


def _remove_frame_of_reference(data: Dataset) -> None:
    """Take out what says where in the patient the picture lies: radiographs and ultrasound do not say it."""
    del data.FrameOfReferenceUID
    del data.PositionReferenceIndicator


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return code


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)
