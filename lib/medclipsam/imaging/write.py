"""Masks on the image's own grid, as NIfTI, NRRD or PNG."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from medclipsam.base.errors import InputError, MedClipSamError, StorageError
from medclipsam.base.files import atomic_write
from medclipsam.base.formats import MASK_SUFFIXES, NIFTI_SUFFIXES, suffix_of
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.itk import check_nrrd, to_itk
from medclipsam.imaging.masks import read_mask

# What the operating system says of a disk without room, and of one that takes nothing.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)

# Number types of a mask's voxels.
MASK_DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")


def write_mask(
    labels: np.ndarray,
    image: MedicalImage,
    path: str | os.PathLike[str],
    *,
    dtype: str = "uint8",
    compress: bool = True,
    read_back: bool = False,
) -> Path:
    """Write a label map so that it lies voxel for voxel on the image it was made from.

    The file has the size, spacing, origin and direction that ITK (SimpleITK, 3D Slicer) reads from the image; for a
    NIfTI image it has the image's own header geometry, so nibabel agrees too. It appears under its name only when
    complete.

    Parameters
    ----------
    labels : ndarray of uint8 or bool, shape (n_planes, H, W), or (H, W) of a single plane
        Label map in display orientation.
    image : MedicalImage
        The image the labels belong to.
    path : str or path-like
        Ends in .nii.gz, .nii or .nrrd, or in .png for an image of one plane.
    dtype : {"uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"}
        Number type of the file's voxels; a PNG has uint8.
    compress : bool
        Whether the voxels of an NRRD file are compressed; the suffix says it of the other formats.
    read_back : bool
        Whether the file is read again by `read_mask` and compared voxel by voxel before it appears under its name.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        If the suffix, shape or type is not allowed, the grid cannot be written in that format, or what is read back
        differs; a file that was there before stays.

    Examples
    --------
    >>> import numpy as np
    >>> from medclipsam import MedicalImage, read_mask, write_mask
    >>> image = MedicalImage.from_array(np.zeros((60, 80), np.uint8))
    >>> labels = np.zeros((1, 60, 80), np.uint8)
    >>> labels[0, 20:40, 30:60] = 1
    >>> path = write_mask(labels, image, "labels.nii.gz")
    >>> bool((read_mask(path, image) == labels).all())
    True
    """
    path = Path(path)
    write = mask_writer(labels, image, path.name, dtype=dtype, compress=compress, read_back=read_back)
    replace_file(path, suffix_of(path.name, MASK_SUFFIXES), write)
    return path


def mask_writer(
    labels: np.ndarray,
    image: MedicalImage,
    name: str,
    *,
    dtype: str = "uint8",
    compress: bool = True,
    read_back: bool = False,
) -> Callable[[Path], None]:
    """Return what writes a label map to a file, for who gives the file its name himself.

    Parameters
    ----------
    name : str
        Name of the file, for its format and for sentences.
    labels, image, dtype, compress, read_back
        See `write_mask`, whose errors it raises, those of reading back when it is called.
    """
    suffix = suffix_of(name, MASK_SUFFIXES)
    if not suffix:
        raise InputError(f"A mask cannot be written to {name}; allowed are {', '.join(MASK_SUFFIXES)}.")
    if dtype not in MASK_DTYPES or (suffix == ".png" and dtype != "uint8"):
        allowed = "uint8" if suffix == ".png" else ", ".join(MASK_DTYPES)
        raise InputError(f"{name} cannot have voxels of type {dtype!r}; allowed: {allowed}.")
    labels = np.asarray(labels)
    if labels.dtype == np.bool_:
        labels = labels.astype(np.uint8)
    if labels.dtype != np.uint8:
        raise InputError(f"A label map of type {labels.dtype} cannot be written; uint8 is allowed.")
    native = image.to_native(labels).astype(dtype, copy=False)
    if suffix == ".png":
        if image.is_volume:
            raise InputError(
                f"{name} cannot hold the {image.n_planes} planes of {image.source.name}; give .nii.gz or .nrrd."
            )
        write: Callable[[Path], object] = Image.fromarray(native.reshape(native.shape[-2:])).save
    elif suffix == ".nrrd":
        write = _nrrd_writer(native, image, name, compress=compress)
    else:
        write = partial(nib.save, _nifti(native, image))

    def write_and_check(path: Path) -> None:
        write(path)
        if read_back:
            check_same(read_mask(path, image), labels, name)

    return write_and_check


def check_same(found: np.ndarray, labels: np.ndarray, what: str) -> None:
    """Raise `InputError` if a label map that was read back is not the one that was written.

    Parameters
    ----------
    found, labels : ndarray of uint8, shape (n_planes, H, W), or (H, W) of a single plane
    what : str
        The file, for the sentence.
    """
    different = int((found != labels.reshape(found.shape)).sum())
    if different:
        raise InputError(f"{what} differs from the label in {different} voxels when it is read back; it is not kept.")


def write_map(values: np.ndarray, image: MedicalImage, path: str | os.PathLike[str]) -> Path:
    """Write a map of numbers, such as saliency, so that it lies voxel for voxel on the image it was made from.

    Parameters
    ----------
    values : ndarray of float, shape (n_planes, H, W), or (H, W) of a single plane
        In display orientation; written as float32.
    image : MedicalImage
        The image the map belongs to.
    path : str or path-like
        Ends in .nii.gz or .nii.

    Returns
    -------
    Path
        The file written; it appears under its name only when complete.

    Raises
    ------
    InputError
        If the suffix or shape is not allowed.
    """
    path = Path(path)
    suffix = suffix_of(path.name, NIFTI_SUFFIXES)
    if not suffix:
        raise InputError(f"A map cannot be written to {path.name}; allowed are .nii.gz, .nii.")
    nifti = _nifti(image.to_native(np.asarray(values, dtype=np.float32)), image)
    replace_file(path, suffix, lambda temporary: nib.save(nifti, temporary))
    return path


def write_image(image: MedicalImage, path: str | os.PathLike[str], *, channel: int | None = None) -> Path:
    """Write an image's values as NIfTI, so that masks of `write_mask` lie on it voxel for voxel.

    Parameters
    ----------
    image : MedicalImage
        Grey values are written in the modality's units (CT: Hounsfield units), colours as NIfTI's RGB.
    path : str or path-like
        Ends in .nii.gz or .nii.
    channel : int, optional
        Of colours 0 red, 1 green, 2 blue, which alone is written.

    Returns
    -------
    Path
        The file written; it appears under its name only when complete. It holds nothing about the patient.

    Raises
    ------
    InputError
        If the suffix is not allowed.
    """
    path = Path(path)
    suffix = suffix_of(path.name, NIFTI_SUFFIXES)
    if not suffix:
        raise InputError(f"An image cannot be written to {path.name}; allowed are .nii.gz, .nii.")
    values = image.stored_values()
    if image.is_colour and values.ndim == 3:  # indices of a palette
        planes = np.stack([image.plane(index) for index in range(image.n_planes)])
        values = np.stack([image.layout.to_stored(planes[..., n]) for n in range(3)], axis=-1)
    if values.ndim == 4:
        values = values.astype(np.uint8) if values.dtype != np.uint8 and values.max() < 256 else values
        if channel is not None:
            values = values[..., channel]
        elif values.dtype == np.uint8:
            values = np.ascontiguousarray(values).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        else:
            raise InputError(f"{image.source.name} has colours of {values.dtype}, which NIfTI cannot hold.")
    native = values[0] if image.grid.ndim == 2 else values
    nifti = _nifti(native, image)
    replace_file(path, suffix, lambda temporary: nib.save(nifti, temporary))
    return path


def replace_file(path: Path, suffix: str, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name in the same folder (ending in `suffix`) and move the file to `path`.

    Raises
    ------
    InputError
        If the folder is missing.
    StorageError
        If the disk is full, or the folder must not be written.
    """
    try:
        with atomic_write(path, suffix=suffix) as temporary:
            write(temporary)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MedClipSamError:
    sentence = f"{path} cannot be written: {error.strerror or error}."
    if error.errno in (*DISK_FULL, *NOT_WRITABLE):
        return StorageError(sentence, full=error.errno in DISK_FULL)
    return InputError(sentence)


def _nifti(native: np.ndarray, image: MedicalImage) -> nib.Nifti1Image:
    voxels = native.T
    if image.nifti is None:
        affine = image.grid.affine_ras()
        result = nib.Nifti1Image(voxels, affine, dtype=native.dtype)
        result.set_qform(affine, code=1)
        result.set_sform(affine, code=1)
        result.header.set_xyzt_units("mm")
        return result
    source = image.nifti
    kind = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
    # A fresh header with the geometry fields only: free text and extensions of the source may name the patient.
    header = type(source)(endianness=source.endianness)
    header.set_data_shape(source.get_data_shape())
    header.set_data_dtype(native.dtype)
    for field in _NIFTI_GEOMETRY:
        header[field] = source[field]
    return kind(voxels.reshape(source.get_data_shape(), order="F"), source.get_best_affine(), header)


_NIFTI_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def _nrrd_writer(native: np.ndarray, image: MedicalImage, name: str, *, compress: bool) -> Callable[[Path], object]:
    check_nrrd(image, name, "write .nii.gz")
    import SimpleITK as sitk

    result = to_itk(native, image.grid)
    return lambda temporary: sitk.WriteImage(result, str(temporary), useCompression=compress)
