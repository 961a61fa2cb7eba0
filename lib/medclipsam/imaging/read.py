"""Which reader a path goes to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medclipsam.base.errors import ImageError, MedClipSamError
from medclipsam.base.formats import DICOM_SUFFIXES, NIFTI_SUFFIXES, NRRD_SUFFIXES
from medclipsam.imaging import isolation
from medclipsam.imaging.dicom import looks_like_dicom, read_dicom, read_series
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.pictures import read_picture
from medclipsam.imaging.plain import are_plain
from medclipsam.imaging.volumes import read_nifti, read_nrrd

# Hounsfield units of air, and the share of it round a patient below which a volume of unknown modality is no CT.
_AIR = (-1100.0, -900.0)
_LEAST_AIR = 0.1
# Planes that are looked at for that, evenly over the volume.
_MOST_PLANES = 9


def read_image(path: str | os.PathLike[str], *, modality: str | None = None) -> MedicalImage:
    """Read an image file or a DICOM series folder.

    Parameters
    ----------
    path : str or path-like
        A DICOM file (recognised by its content), a folder that holds one DICOM series, NIfTI (.nii, .nii.gz), NRRD
        (.nrrd, .nhdr), PNG, JPEG, TIFF or BMP.
    modality : str, optional
        DICOM modality ("CT", "MR", ...) where the file does not say it. NIfTI and NRRD say
        none: there a grey volume of which a tenth or more has the Hounsfield units of air is taken for a CT.

    Returns
    -------
    MedicalImage

    Raises
    ------
    OptionError
        If a DICOM file says another modality; CR and DX count as one.
    ImageError
        If there is no such file, it is no image, is damaged, or holds what this package does not handle (several
        series, time points, complex, NaN or infinite values).

    Examples
    --------
    >>> from PIL import Image
    >>> from medclipsam import read_image
    >>> from medclipsam.demo.phantoms import make_phantom
    >>> Image.fromarray(make_phantom("US", 1).image).save("breast.png")
    >>> image = read_image("breast.png", modality="US")
    >>> image.n_planes, image.plane_shape
    (1, (213, 256))
    """
    path = Path(path)
    try:
        if path.is_dir() or path.is_file():
            files = _files(path) if path.is_dir() else [path]
            if not are_plain(files):
                image: MedicalImage = isolation.call(
                    _read, path, modality, preload=("SimpleITK",) if path.name.lower().endswith(NRRD_SUFFIXES) else ()
                )
                return image
        return _read(path, modality)
    except isolation.IsolationError as error:
        raise ImageError(f"{path} cannot be read: {error}") from error
    except MedClipSamError:
        raise
    except Exception as error:
        # Files break in more ways than the readers foresee; the user gets a sentence, the log the cause.
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(f"{path} cannot be read: {reason}.") from error


def _read(path: Path, modality: str | None) -> MedicalImage:
    if path.is_dir():
        files = [file for file in _files(path) if looks_like_dicom(file)]
        if not files:
            raise ImageError(f"{path} is a folder without DICOM files; give an image file or a DICOM series folder.")
        return read_series(path, files, modality)
    if not path.is_file():
        raise ImageError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty.")
    name = path.name.lower()
    if name.endswith((*NIFTI_SUFFIXES, *NRRD_SUFFIXES)):
        image = read_nifti(path, modality) if name.endswith(NIFTI_SUFFIXES) else read_nrrd(path, modality)
        if modality is None and _holds_air(image):
            image.modality = "CT"
        return image
    if looks_like_dicom(path) or name.endswith(DICOM_SUFFIXES):
        return read_dicom(path, modality)
    return read_picture(path, modality)


def _holds_air(image: MedicalImage) -> bool:
    if not image.has_units:
        return False
    planes = np.unique(np.linspace(0, image.n_planes - 1, min(image.n_planes, _MOST_PLANES)).round().astype(int))
    shares = [np.mean((values >= _AIR[0]) & (values <= _AIR[1])) for values in map(image.values, planes.tolist())]
    return float(np.mean(shares)) >= _LEAST_AIR


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise ImageError(f"{folder} cannot be read: {error.strerror or error}.") from error
