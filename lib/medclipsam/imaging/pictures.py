"""PNG, JPEG, TIFF and BMP pictures (through Pillow)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medclipsam.errors import ImageError
from medclipsam.imaging.geometry import plain_grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.orientation import layout_for
from medclipsam.imaging.volumes import MAX_PLANE, check_size, check_voxels

_TIFF_ORIENTATION, _TIFF_X, _TIFF_Y, _TIFF_UNIT = 274, 282, 283, 296
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_picture(path: Path, modality: str | None = None) -> MedicalImage:
    """Read a PNG, JPEG, TIFF or BMP file; see `read_image`.

    Transparent pixels are laid on black. A picture says nothing about millimetres: the density in its header is that
    of a printer, and only goes into the mask's header, where ITK reads it too.
    """
    try:
        with warnings.catch_warnings():
            # What Pillow thinks of a file's metadata is none of the user's business.
            warnings.simplefilter("ignore")
            array, spacing = _open(path)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} states more pixels than the {MAX_PLANE} that are allowed.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image, or of a format this package does not read.") from error
    except Exception as error:
        raise ImageError(f"{path} cannot be read as a picture; it is damaged or truncated ({error}).") from error
    stored = check_voxels(path, array)[None]
    height, width = stored.shape[1:3]
    return MedicalImage(
        source=path,
        stored=stored,
        grid=plain_grid((width, height), spacing),
        layout=layout_for(stored.shape[:3], (1.0, 1.0, 1.0), None, stack_axis=0),
        modality=modality,
    )


def _open(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    with Image.open(path) as picture:
        check_size(path, picture.size)
        if isinstance(picture, TiffImageFile):
            if picture.n_frames > 1:
                raise ImageError(f"{path} holds {picture.n_frames} pages; pictures of one page are allowed.")
            if picture.tag_v2.get(_TIFF_ORIENTATION, 1) != 1:
                raise ImageError(f"{path} is a rotated TIFF (Orientation is not 1); save it upright.")
        return _pixels(picture), _itk_spacing(picture)


def _pixels(picture: Image.Image) -> np.ndarray:
    if picture.mode in _DEEP_MODES:
        return np.asarray(picture)
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    if picture.mode == "La" or "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "RGBa"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return np.asarray(picture.convert("RGB"))


def _itk_spacing(picture: Image.Image) -> tuple[float, float] | None:
    """Return the (x, y) spacing that ITK derives from the file's density, None where it takes 1."""
    if isinstance(picture, TiffImageFile):
        unit = {2: 25.4, 3: 10.0}.get(int(picture.tag_v2.get(_TIFF_UNIT, 2)))
        density = (picture.tag_v2.get(_TIFF_X), picture.tag_v2.get(_TIFF_Y))
    elif picture.format == "JPEG":
        unit = {1: 25.4, 2: 10.0}.get(picture.info.get("jfif_unit", 0))
        density = picture.info.get("jfif_density", (None, None))
    else:
        return None
    x, y = density
    return (unit / float(x), unit / float(y)) if unit and x and y else None
