"""Voxels with their geometry as images of ITK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medclipsam.base.errors import InputError
from medclipsam.imaging.geometry import Grid
from medclipsam.imaging.image import MedicalImage

if TYPE_CHECKING:
    import SimpleITK


def to_itk(voxels: np.ndarray, grid: Grid, *, vector: bool = False) -> SimpleITK.Image:
    """Return voxels in the order of a file as an image of ITK.

    Parameters
    ----------
    voxels : ndarray, shape (K, J, I) or (J, I), with one more axis at the end for vectors
        The values; the last axis of space runs fastest in the file.
    grid : Grid
        Their spacing and origin (mm) and direction, in the order (i, j, k).
    vector : bool
        Whether the last axis holds the components of each voxel.
    """
    import SimpleITK

    made = SimpleITK.GetImageFromArray(voxels, isVector=vector)
    made.SetSpacing(grid.spacing)
    made.SetOrigin(grid.origin)
    made.SetDirection(grid.direction.ravel().tolist())
    return made


def check_nrrd(image: MedicalImage, name: str, otherwise: str) -> None:
    """Raise `InputError` where what is drawn on an image cannot be an NRRD file through ITK.

    Parameters
    ----------
    image : MedicalImage
        The image.
    name : str
        Of the file.
    otherwise : str
        End of the sentence about axes that are not at right angles: what can be done.
    """
    try:
        import SimpleITK  # noqa: F401
    except ImportError:
        raise InputError(f"{name} needs SimpleITK: pip install 'medclipsam[server]', or write .nii.gz.") from None
    if not image.grid.is_orthonormal:
        raise InputError(
            f"{image.source.name} has axes that are not at right angles, which NRRD through ITK cannot hold; "
            f"{otherwise}."
        )
