"""The endings of file names by which formats are told apart; names are compared without regard to case."""

from __future__ import annotations

from collections.abc import Sequence

NIFTI_SUFFIXES = (".nii.gz", ".nii")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
PICTURE_SUFFIXES = (*LOSSY_SUFFIXES, *LOSSLESS_SUFFIXES)

# Formats of the images in a studies folder; an image's id is its file's name without such an ending. DICOM files with
# another ending, or without one, are known by their content, and keep it in their id.
STUDY_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".dcm", ".dicom", *PICTURE_SUFFIXES)
# Segmentations of 3D Slicer: segments by names, which may overlap.
SEG_SUFFIX = ".seg.nrrd"
# Formats in which masks are written.
MASK_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".png")
# Formats from which masks are read: those that keep every value.
LABEL_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", *LOSSLESS_SUFFIXES)
# Formats of the labels in a studies folder, by whose endings the id of an image is told.
STUDY_LABEL_SUFFIXES = (SEG_SUFFIX, *STUDY_SUFFIXES)


def suffix_of(name: str, suffixes: Sequence[str] = STUDY_SUFFIXES) -> str:
    """Return the ending of a file's name that tells its format, in lower case.

    Parameters
    ----------
    name : str
        The name, with or without folders.
    suffixes : sequence of str
        The endings that count, each after those that end in it.

    Returns
    -------
    str
        Empty where the name has none of them.
    """
    lower = name.lower()
    return next((suffix for suffix in suffixes if lower.endswith(suffix)), "")


def stem_of(name: str) -> str:
    """Return a file's name without the ending that tells its format."""
    return name[: len(name) - len(suffix_of(name))]
