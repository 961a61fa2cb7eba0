"""Grey values to 8 bits: windows, the file's own VOI LUT, and percentiles of the foreground."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi, apply_windowing

from medclipsam.base.errors import InputError

PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Window:
    """A grey window as DICOM defines it (PS3.3 C.11.2.1.2).

    Parameters
    ----------
    center, width : float
        In the modality's units (Hounsfield units for CT); the width is at least 1.
    """

    center: float
    width: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.center) and np.isfinite(self.width) and self.width >= 1):
            raise InputError(
                f"Window {self.center!r}/{self.width!r} cannot be used: a finite centre and a width of at least 1 "
                "are allowed."
            )


SOFT_TISSUE = Window(40.0, 400.0)


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Return `values` (modality units, any shape) through a linear window as uint8."""
    voi = Dataset()
    voi.WindowCenter, voi.WindowWidth = window.center, window.width
    return apply_file_window(values, voi)


def apply_file_window(values: np.ndarray, voi: Dataset) -> np.ndarray:
    """Return `values` through the first window of a DICOM data set (LINEAR, LINEAR_EXACT or SIGMOID) as uint8."""
    target = Dataset()
    target.WindowCenter, target.WindowWidth = voi.WindowCenter, voi.WindowWidth
    if voi.get("VOILUTFunction"):
        target.VOILUTFunction = voi.VOILUTFunction
    # pydicom scales to the range of the stored bits: with these it is 0 to 255.
    target.PhotometricInterpretation = "MONOCHROME2"
    target.BitsStored, target.PixelRepresentation = 8, 0
    return _to_uint8(apply_windowing(np.asarray(values, dtype=np.float64), target))


def apply_file_lut(values: np.ndarray, voi: Dataset) -> np.ndarray:
    """Return `values` through the first VOI LUT of a DICOM data set as uint8, its least entry black."""
    count, first, _ = (int(v) for v in voi.VOILUTSequence[0].LUTDescriptor)
    entries = apply_voi(np.arange(first, first + (count or 2**16)), voi)
    mapped = apply_voi(np.rint(values).astype(np.int64), voi)
    return stretch(mapped, float(entries.min()), float(entries.max()))


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return `values` scaled linearly so that `low` is 0 and `high` 255, as uint8; black where the two are equal."""
    if not high > low:
        return np.zeros(np.shape(values), dtype=np.uint8)
    return _to_uint8((np.asarray(values, dtype=np.float64) - low) * (255.0 / (high - low)))


def has_modality_transform(lut: Dataset) -> bool:
    """Whether a data set turns stored values into others (a modality LUT, or a rescale that is not 1 and 0)."""
    if "ModalityLUTSequence" in lut:
        return True
    slope, intercept = lut.get("RescaleSlope"), lut.get("RescaleIntercept")
    return slope is not None and intercept is not None and (float(slope), float(intercept)) != (1.0, 0.0)


def padding_of(stored: np.ndarray, lut: Dataset) -> np.ndarray | None:
    """Return where stored values are padding by Pixel Padding Value and Pixel Padding Range Limit.

    Parameters
    ----------
    stored : ndarray
        Values before any rescale.
    lut : pydicom.Dataset
        The elements of their file. A value written as unsigned where pixels are signed, or the reverse, means the
        pixel of the same bits.

    Returns
    -------
    ndarray of bool, of the shape of `stored`, or None
        None where the file names no padding, or pixels of a kind that has none.
    """
    if lut.get("PixelPaddingValue") in (None, "") or stored.dtype.kind not in "ui":
        return None
    limit = lut.get("PixelPaddingRangeLimit")
    ends = [lut.PixelPaddingValue, lut.PixelPaddingValue if limit in (None, "") else limit]
    size = stored.dtype.itemsize
    low, high = sorted(int(np.array(int(end) % 2 ** (8 * size), f"u{size}").astype(stored.dtype)) for end in ends)
    return (stored >= low) & (stored <= high)


def foreground_range(samples: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentiles of the foreground.

    Foreground is every value above the least one: the padding and the masked-out air of a scan hold one constant
    minimum, and a picture without such a background loses next to nothing by it.

    Parameters
    ----------
    samples : iterable of ndarray
        One-dimensional pieces of the volume.
    """
    pieces = [np.asarray(piece, dtype=np.float32).ravel() for piece in samples]
    values = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    if not values.size:
        return 0.0, 0.0
    least = float(values.min())
    foreground = values[values > least]
    if not foreground.size:
        return least, least
    low, high = (float(v) for v in np.percentile(foreground, PERCENTILES))
    # A foreground of one value (a binary image) still has to differ from the background.
    return (low, high) if high > low else (least, high)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
