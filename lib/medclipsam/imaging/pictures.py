"""PNG, JPEG, TIFF and BMP pictures (through Pillow)."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medclipsam.base.errors import ImageError
from medclipsam.imaging import isolation
from medclipsam.imaging.colour import as_colours
from medclipsam.imaging.geometry import plain_grid
from medclipsam.imaging.image import MedicalImage
from medclipsam.imaging.limits import MAX_PLANE
from medclipsam.imaging.orientation import Layout
from medclipsam.imaging.plain import is_plain
from medclipsam.imaging.volumes import check_size, check_voxels

_ORIENTATION = 274
_TIFF_BITS, _TIFF_X, _TIFF_Y, _TIFF_UNIT = 258, 282, 283, 296
# What EXIF and TIFF call orientation: the stored picture is shown turned and mirrored so (transposed first).
_LAYOUTS = {
    value: Layout((0, *axes), rows, columns, (0,), None)
    for value, (axes, rows, columns) in {
        1: ((1, 2), False, False),
        2: ((1, 2), False, True),
        3: ((1, 2), True, True),
        4: ((1, 2), True, False),
        5: ((2, 1), False, False),
        6: ((2, 1), False, True),
        7: ((2, 1), True, True),
        8: ((2, 1), True, False),
    }.items()
}
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
# Bytes of a pixel in memory where they are not its number of colours.
_BYTES = {**dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), 2), "I": 4, "F": 4, "RGB": 4, "P": 3}
# Of all the formats that Pillow reads, those that are images here.
PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
# Bytes of a pixel of 16 bits and four colours.
_DEEP_BYTES = 8
# Pixels that are converted at a time.
_STRIP = 2**20


def read_picture(path: Path, modality: str | None = None) -> MedicalImage:
    """Read a PNG, JPEG, TIFF or BMP file; see `read_image`.

    Transparent pixels are laid on black. A picture is shown upright by its EXIF or TIFF orientation; masks are written
    for the pixels as they are stored. A picture says nothing about millimetres: the density in its header is that
    of a printer, and only goes into the mask's header, where ITK reads it too.
    """
    try:
        with warnings.catch_warnings():
            # What Pillow thinks of a file's metadata is none of the user's business.
            warnings.simplefilter("ignore")
            array, spacing, orientation = _open(path)
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
        layout=_LAYOUTS[orientation],
        modality=modality,
    )


def read_indices(path: Path) -> np.ndarray | None:
    """Return the indices of a picture's palette as they are stored; None where it has no palette.

    Parameters
    ----------
    path : Path
        A picture that `read_picture` has read.

    Returns
    -------
    ndarray of uint8, shape (H, W), or None
    """
    found: np.ndarray | None = _indices(path) if is_plain(path) else isolation.call(_indices, path)
    return found


def _indices(path: Path) -> np.ndarray | None:
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        check_size(path, picture.size)
        return np.array(picture) if picture.mode == "P" else None


def _open(path: Path) -> tuple[np.ndarray, tuple[float, float] | None, int]:
    """Return the pixels as they are stored, the spacing that ITK derives, and the orientation (1 to 8)."""
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        check_size(path, picture.size, _BYTES.get(picture.mode, len(picture.getbands())))
        is_tiff = isinstance(picture, TiffImageFile)
        if isinstance(picture, TiffImageFile) and _has_more_pages(picture):
            raise ImageError(f"{path} holds more than one page; pictures of one page are allowed.")
        is_deep = _is_deep_colour(path, picture)
        orientation = picture.getexif().get(_ORIENTATION, 1)
        spacing = _itk_spacing(picture)
        if orientation not in _LAYOUTS:
            orientation = 1  # as viewers take it
        if is_deep:
            check_size(path, picture.size, _DEEP_BYTES)
            return _deep_colours(path), spacing, orientation
        if not is_tiff or orientation == 1:
            return _pixels(picture), spacing, orientation
    # Pillow turns TIFF itself, and not all kinds of it rightly
    with Image.open(BytesIO(_as_stored(path.read_bytes())), formats=PICTURE_FORMATS) as picture:
        return _pixels(picture), spacing, orientation


def _as_stored(content: bytes) -> bytes:
    """Return a TIFF file with its orientation set to 1."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"\x2b\0", b"\0\x2b")
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, place)
    first, step = place + (8 if big else 2), 20 if big else 12
    changed = bytearray(content)
    for entry in range(first, first + count * step, step):
        (tag,) = struct.unpack_from(f"{order}H", content, entry)
        if tag == _ORIENTATION:
            struct.pack_into(f"{order}H", changed, entry + (12 if big else 8), 1)
    return bytes(changed)


def _is_deep_colour(path: Path, picture: Image.Image) -> bool:
    """Return whether a picture has colours of 16 bits or more, of which Pillow would keep the upper 8."""
    if isinstance(picture, TiffImageFile):
        bits = picture.tag_v2.get(_TIFF_BITS, (1,))
        return len(bits) >= 3 and max(bits) > 8
    # the header chunk, which is the first: depth and kind of colour
    if picture.format != "PNG":
        return False
    with path.open("rb") as file:
        head = file.read(26)
    return head[12:16] == b"IHDR" and head[24] == 16 and head[25] in (2, 6)


def _deep_colours(path: Path) -> np.ndarray:
    try:
        import SimpleITK as sitk
    except ImportError:
        raise ImageError(f"{path} has colours of 16 bits, which needs SimpleITK: pip install SimpleITK.") from None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    array = sitk.GetArrayFromImage(reader.Execute())
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ImageError(f"{path} holds {array.shape[-1]} values a pixel; grey, RGB and RGBA are allowed.")
    colours = as_colours(path, check_voxels(path, array[..., :3]), stated=True)
    if array.shape[-1] == 3:
        return colours
    opaque = array[..., 3:] / (1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max))
    return np.rint(colours * np.clip(opaque, 0, 1)).astype(np.uint8)


def _has_more_pages(picture: TiffImageFile) -> bool:
    """Return whether there is a second page, without a look at those after it, which may be many."""
    try:
        picture.seek(1)
    except EOFError:
        return False
    return True


def _pixels(picture: Image.Image) -> np.ndarray:
    if picture.mode in _DEEP_MODES:
        return np.asarray(picture)
    width, height = picture.size
    grey = picture.mode in ("1", "L") and "transparency" not in picture.info
    pixels = np.empty((height, width) if grey else (height, width, 3), np.uint8)
    picture.load()
    # strip by strip: conversions of the whole would take the memory of several pictures
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
        strip = picture.crop((0, top, width, min(top + step, height)))
        pixels[top : top + step] = np.asarray(strip.convert("L") if grey else _rgb(strip))
    return pixels


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "La" or "transparency" in picture.info or picture.mode in ("LA", "PA", "RGBA", "RGBa"):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture.convert("RGB")


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
