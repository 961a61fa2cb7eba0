"""The image every other room works with: display planes made one at a time from the stored volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut

from medclipsam.base.errors import ImageError, InputError, MedClipSamError
from medclipsam.imaging.geometry import Grid, plain_grid
from medclipsam.imaging.orientation import Layout, layout_for
from medclipsam.imaging.windows import (
    SOFT_TISSUE,
    Window,
    apply_file_lut,
    apply_file_window,
    apply_window,
    foreground_range,
    has_modality_transform,
    padding_of,
    stretch,
)

# Percentiles look at no more values than this, taken evenly from all planes, so that they cost no second volume.
_MAX_SAMPLES = 1 << 22
# Planes that are looked at, evenly over the volume, for whether values are Hounsfield units.
_DOUBT_PLANES = 9
# A CT of fewer Hounsfield units than this between its darkest and brightest voxel shows nothing.
_LEAST_SPAN = 3.0
# Where air and the body are once 1000 or 1024 was added, and the share of each that a CT holds at least.
_SHIFTED_AIR, _SHIFTED_BODY = (-50.0, 150.0), (850.0, 1250.0)
_LEAST_SHARE = 0.05
# Modalities whose pictures have no place in the patient.
_PROJECTIONS = ("CR", "DX", "MG", "US")


class MedicalImage:
    """Planes of one image or volume in display orientation, and the way back to its own grid.

    Made by `read_image`. The volume is kept once, in the file's own data type; planes are computed when asked for.

    Parameters
    ----------
    source : Path
        File or folder it was read from.
    stored : ndarray, shape (k, j, i) or (k, j, i, 3)
        Voxels in the file's own order and type; four axes are RGB.
    grid : Grid
        The voxel grid as ITK reads it; masks are written on it.
    layout : Layout
        How stored voxels become display planes.
    modality : str or None
        DICOM modality.
    known_spacing : tuple of float or None
        Millimetres along k, j, i where really known; an entry may be None.
    luts : sequence of pydicom Dataset
        One for each stored plane (or one for all): the elements that turn stored values into grey or colour values.
    region : ndarray of bool, shape (j, i), or None
        Part of the picture that holds image rather than frame and text, in stored order.
    nifti : nibabel header or None
        Header of a NIfTI source, kept so that a mask gets the same one.
    notes : sequence of str
        Sentences about what was not read as it is stored: files of a series that are not part of its volume.
    frames : sequence of int, optional
        The frames of a multi-frame file, counted from 0, that are the stored planes; None where all of them are.
    """

    def __init__(
        self,
        *,
        source: Path,
        stored: np.ndarray,
        grid: Grid,
        layout: Layout,
        modality: str | None = None,
        known_spacing: tuple[float | None, float | None, float | None] = (None, None, None),
        luts: Sequence[Dataset] = (),
        region: np.ndarray | None = None,
        nifti: Any = None,
        notes: Sequence[str] = (),
        frames: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.modality = modality
        self.grid = grid
        self.layout = layout
        self.nifti = nifti
        self.notes = tuple(notes)
        self.frames = None if frames is None else tuple(frames)
        self._stored = stored
        self._luts = tuple(luts)
        self._region = region
        self._known_spacing = known_spacing
        self._range: tuple[float, float] | None = None
        self._doubt: str | None = None

    @classmethod
    def from_array(cls, planes: np.ndarray, *, modality: str | None = None) -> MedicalImage:
        """Make an image of an array in display orientation, about whose distances nothing is known.

        Parameters
        ----------
        planes : ndarray, shape (H, W), (n_planes, H, W) or (n_planes, H, W, 3)
            Grey or RGB values.
        modality : str, optional
            DICOM modality.
        """
        stored = planes[None] if planes.ndim == 2 else planes
        layout = layout_for(stored.shape[:3], (1.0, 1.0, 1.0), None, stack_axis=0)
        grid = plain_grid(stored.shape[2:0:-1] if planes.ndim == 2 else stored.shape[2::-1])
        return cls(source=Path("array"), stored=stored, grid=grid, layout=layout, modality=modality)

    def __repr__(self) -> str:
        rows, columns = self.plane_shape
        size = f"{self.n_planes} x {rows} x {columns}" if self.is_volume else f"{rows} x {columns}"
        steps = (*((self.plane_spacing,) if self.is_volume else ()), *(self.pixel_spacing or (None, None)))
        spacing = "unknown" if None in steps else " x ".join(f"{step:g}" for step in steps) + " mm"
        kind = self.modality or "unknown modality"
        return f"<MedicalImage {self.source.name!r}: {kind}, {size}, {self._stored.dtype}, spacing {spacing}>"

    @property
    def n_planes(self) -> int:
        """Number of display planes."""
        return len(self.layout.plane_order)

    @property
    def plane_shape(self) -> tuple[int, int]:
        """(H, W) of a display plane."""
        return self._stored.shape[self.layout.axes[1]], self._stored.shape[self.layout.axes[2]]

    @property
    def is_volume(self) -> bool:
        """Whether there is more than one plane."""
        return self.n_planes > 1

    @property
    def pixel_spacing(self) -> tuple[float, float] | None:
        """(row, column) millimetres between display pixels, None where not really known."""
        rows, columns = (self._known_spacing[axis] for axis in self.layout.axes[1:])
        return None if rows is None or columns is None else (rows, columns)

    @property
    def plane_spacing(self) -> float | None:
        """Millimetres between planes; None for a single plane, a time stack, or where not known."""
        return self._known_spacing[self.layout.axes[0]] if self.is_volume else None

    @property
    def is_placed(self) -> bool:
        """Whether the file says where its voxels lie in the patient."""
        grid = self.grid
        somewhere = any(grid.origin) or bool((grid.direction != np.eye(grid.ndim)).any())
        # of a projection the sides may be known, and yet no place
        return grid.ndim == 3 and self.layout.name is not None and (somewhere or self.modality not in _PROJECTIONS)

    @property
    def is_colour(self) -> bool:
        """Whether the file holds colour."""
        return self._stored.ndim == 4 or self._palette is not None

    def plane(self, index: int, window: Window | None = None) -> np.ndarray:
        """Return one plane as a radiologist sees it.

        Parameters
        ----------
        index : int
            0-based plane.
        window : Window, optional
            Grey window in the modality's units. It is ignored for colour and for 8-bit grey pictures without a
            modality transform, whose values already are display values. Without it: CT takes the file's window,
            else soft tissue 40/400; MR percentiles 0.5 to 99.5 of the volume's foreground; other DICOM the file's
            VOI LUT; what is left is taken as is if it has 8 bits, else by the percentiles.

        Returns
        -------
        ndarray of uint8, shape (H, W, 3)
            RGB, patient right at image left, anterior or head up.

        Raises
        ------
        InputError
            If there is no such plane.
        ImageError
            If the file's look-up tables are broken.
        """
        self._check_index(index)
        try:
            return self._render(self.layout.plane(self._stored, index), index, window)
        except MedClipSamError:
            raise
        except Exception as error:
            raise ImageError(f"{self.source} has look-up tables that cannot be applied: {error}.") from error

    @property
    def is_inverted(self) -> bool:
        """Whether high values are shown dark, as in DICOM's MONOCHROME1."""
        return bool(self._luts) and self._luts[0].get("PhotometricInterpretation") == "MONOCHROME1"

    def default_window(self) -> Window | None:
        """Return the grey window that `plane` shows without one, where it is one for all planes and not the file's own.

        None for colours and display values, and where the file has a window or look-up table itself.
        """
        lut = self._luts[0] if self._luts else None
        if not self.has_units or (lut is not None and ("WindowWidth" in lut or "VOILUTSequence" in lut)):
            return None
        if self.modality == "CT":
            return SOFT_TISSUE
        low, high = self._display_range()
        return Window((low + high) / 2, high - low) if high - low >= 1 else None

    @property
    def has_units(self) -> bool:
        """Whether the file holds more than 8-bit display values: grey values in the modality's units."""
        if self.is_colour:
            return False
        return self._stored.dtype != np.uint8 or any(has_modality_transform(lut) for lut in self._luts)

    def values(self, index: int) -> np.ndarray:
        """Return one plane in the modality's units (CT: Hounsfield units), in display orientation.

        Parameters
        ----------
        index : int
            0-based plane.

        Returns
        -------
        ndarray of float32, shape (H, W)

        Raises
        ------
        InputError
            If there is no such plane, or the image holds colours.
        ImageError
            If the file's look-up tables are broken.
        """
        self._check_index(index)
        if self.is_colour:
            raise InputError(f"{self.source.name} holds colours, which have no units.")
        try:
            values = self._values(self.layout.plane(self._stored, index), self._lut(index))
        except Exception as error:
            raise ImageError(f"{self.source} has look-up tables that cannot be applied: {error}.") from error
        return np.ascontiguousarray(values, dtype=np.float32)

    def doubt_of_units(self) -> str | None:
        """Return why the values of a CT are not Hounsfield units, as a sentence; None where nothing speaks against it.

        Values from 0 to 1, and values to which about 1000 was added, are recognised: both look like nothing in a
        window of Hounsfield units.
        """
        if self.modality != "CT" or not self.has_units:
            return None
        if self._doubt is None:
            planes = np.unique(np.linspace(0, self.n_planes - 1, _DOUBT_PLANES).round().astype(int))
            self._doubt = _doubt_of_units(np.concatenate([self._unpadded(index) for index in planes.tolist()]))
        return self._doubt or None

    def valid_region(self, index: int) -> np.ndarray | None:
        """Return the part of plane `index` that holds image (bool [H, W]); None means all of it."""
        self._check_index(index)
        if self._region is None:
            return None
        return np.ascontiguousarray(self.layout.plane(np.broadcast_to(self._region, self._stored.shape[:3]), index))

    def model_plane(self, index: int, window: Window | None = None) -> np.ndarray:
        """Return one plane as the models see it: as `plane`, black outside `valid_region`.

        Burned-in text beside an ultrasound sector is no anatomy. Everything that embeds planes takes them from here, so
        that an embedding is computed once.
        """
        pixels, region = self.plane(index, window), self.valid_region(index)
        return pixels if region is None else np.where(region[..., None], pixels, 0).astype(np.uint8)

    def to_native(self, labels: np.ndarray) -> np.ndarray:
        """Bring a label map from display orientation to the file's own order.

        Parameters
        ----------
        labels : ndarray of uint8 or bool, shape (n_planes, H, W), or (H, W) of a single plane

        Returns
        -------
        ndarray, shape (k, j, i), or (j, i) of a 2-D file
            In the order of `SimpleITK.GetArrayFromImage` of the source; transposed it is nibabel's.

        Raises
        ------
        InputError
            If the shape is not that of the image's planes.
        """
        labels = np.asarray(labels)
        if labels.ndim == 2:
            labels = labels[None]
        expected = (self.n_planes, *self.plane_shape)
        if labels.shape != expected:
            raise InputError(
                f"A label map of shape {labels.shape} does not fit {self.source.name}; allowed is {expected}."
            )
        native = self.layout.to_stored(labels)
        return native[0] if self.grid.ndim == 2 else native

    def from_native(self, labels: np.ndarray) -> np.ndarray:
        """Bring a label map from the file's own order to display orientation: the inverse of `to_native`.

        Parameters
        ----------
        labels : ndarray, shape (k, j, i), or (j, i) of a single plane

        Returns
        -------
        ndarray, shape (n_planes, H, W)

        Raises
        ------
        InputError
            If the shape is not that of the image.
        """
        labels = np.asarray(labels)
        if labels.ndim == 2:
            labels = labels[None]
        expected = self._stored.shape[:3]
        if labels.shape != expected:
            raise InputError(
                f"A label map of {_by_axis(labels.shape)} voxels does not fit {self.source.name}, which has "
                f"{_by_axis(expected)}."
            )
        return self.layout.to_display(labels)

    def display_index(self, ijk: Any) -> np.ndarray:
        """Return voxel indices as they are on display.

        Parameters
        ----------
        ijk : array_like, shape (n, 3), or (n, 2) for an image of one voxel along k
            Indices (i, j, k) in the order of the file as ITK, 3D Slicer and OHIF read it: i along an image row.
            Fractions are rounded to the nearest voxel.

        Returns
        -------
        ndarray of int, shape (n, 3)
            (plane, row, column).

        Raises
        ------
        InputError
            If these are no indices, or one lies outside the image.
        """
        k, j, i = self._stored.shape[:3]
        try:
            points = np.asarray(ijk, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.empty(0)
        if points.ndim == 2 and points.shape[1] == 2 and k == 1:
            points = np.pad(points, ((0, 0), (0, 1)))
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise InputError(
                f"The points {str(ijk)[:80]} cannot be used; allowed: a list of voxel indices [i, j, k] of "
                f"{self.source.name}{', or [i, j]' if k == 1 else ''}."
            )
        rounded = np.rint(points)
        outside = ((rounded < 0) | (rounded >= (i, j, k))).any(axis=1)
        if outside.any():
            raise InputError(
                f"The point {points[outside][0].tolist()} lies outside {self.source.name}; allowed: [i, j, k] from "
                f"[0, 0, 0] to {[i - 1, j - 1, k - 1]}."
            )
        return self.layout.display_index(rounded[:, ::-1].astype(np.int64), (k, j, i))

    def voxel_index(self, display: np.ndarray) -> np.ndarray:
        """Return display indices as the file's voxel indices: the inverse of `display_index`.

        Parameters
        ----------
        display : ndarray of int, shape (n, 3)
            (plane, row, column), within the image.

        Returns
        -------
        ndarray of int, shape (n, 3)
            (i, j, k).
        """
        return self.layout.stored_index(display, self._stored.shape[:3])[:, ::-1]

    def voxels(self) -> np.ndarray:
        """Return the voxels in the file's own order, shape (k, j, i) or (k, j, i, 3), not to be written to.

        Where one rescale holds for all of them, as in NIfTI, it has been applied.
        """
        values = self._values(self._stored, self._luts[0] if len(self._luts) == 1 else None).view()
        values.flags.writeable = False
        return values

    def stored_values(self) -> np.ndarray:
        """Return the voxels in the file's own order in the modality's units, each slice by its own rescale.

        Returns
        -------
        ndarray, shape (k, j, i) or (k, j, i, 3)
            Of the stored data type where that holds all values, else float32; colours as they are stored.
        """
        if self._stored.ndim == 4 or not any(has_modality_transform(lut) for lut in self._luts):
            return self._stored
        planes = self._stored.shape[0]
        luts = self._luts if len(self._luts) == planes else self._luts * planes
        values = np.empty(self._stored.shape, np.float32)
        for k, (plane, lut) in enumerate(zip(self._stored, luts, strict=True)):
            values[k] = self._values(plane, lut)
        if (values == np.rint(values)).all() and np.abs(values).max(initial=0) < 2**15:
            return values.astype(np.int16)
        return values

    def describe(self) -> dict[str, Any]:
        """Return what the image is as a JSON-able dictionary; it holds nothing about the patient."""
        return {
            "modality": self.modality,
            "planes": self.n_planes,
            "plane_shape": list(self.plane_shape),
            "pixel_spacing_mm": None if self.pixel_spacing is None else list(self.pixel_spacing),
            "plane_spacing_mm": self.plane_spacing,
            "orientation": self.layout.name,
            "colour": self.is_colour,
            "dtype": str(self._stored.dtype),
            "notes": list(self.notes),
        }

    def _unpadded(self, index: int) -> np.ndarray:
        """Return the values of a plane that are no padding, in the modality's units, in one dimension."""
        stored, lut = self.layout.plane(self._stored, index), self._lut(index)
        padding = None if lut is None else padding_of(stored, lut)
        values = self._values(stored, lut)
        return values.ravel() if padding is None else values[~padding]

    @property
    def _palette(self) -> Dataset | None:
        lut = self._luts[0] if self._luts else None
        return lut if lut is not None and lut.get("PhotometricInterpretation") == "PALETTE COLOR" else None

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_planes:
            raise InputError(f"{self.source.name} has no plane {index}; allowed are 0 to {self.n_planes - 1}.")

    def _lut(self, index: int) -> Dataset | None:
        if not self._luts:
            return None
        return self._luts[0] if len(self._luts) == 1 else self._luts[self.layout.plane_order[index]]

    def _colour(self, plane: np.ndarray) -> np.ndarray:
        if plane.dtype == np.uint8:
            return plane
        bits = 8 * plane.dtype.itemsize
        if self._luts and self._palette is None:
            bits = int(self._luts[0].get("BitsStored", bits))
        return stretch(plane, 0.0, float(2**bits - 1))

    def _render(self, stored: np.ndarray, index: int, window: Window | None) -> np.ndarray:
        if stored.ndim == 3:
            return np.ascontiguousarray(self._colour(stored))
        palette = self._palette
        if palette is not None:
            return np.ascontiguousarray(self._colour(apply_color_lut(np.ascontiguousarray(stored), palette)[..., :3]))
        grey = self._grey(stored, self._lut(index), window)
        return np.repeat(grey[:, :, None], 3, axis=2)

    def _values(self, stored: np.ndarray, lut: Dataset | None) -> np.ndarray:
        """Return stored values in the modality's units."""
        if lut is None or not has_modality_transform(lut):
            return stored
        return apply_modality_lut(stored, lut)

    def _grey(self, stored: np.ndarray, lut: Dataset | None, window: Window | None) -> np.ndarray:
        values = self._values(stored, lut)
        as_is = values.dtype == np.uint8
        if window is not None and not as_is:
            grey = apply_window(values, window)
        elif lut is not None and "VOILUTSequence" in lut and self.modality not in ("CT", "MR"):
            grey = apply_file_lut(values, lut)
        elif lut is not None and "WindowWidth" in lut and self.modality != "MR":
            grey = apply_file_window(values, lut)
        elif as_is:
            grey = values
        elif self.modality == "CT":
            grey = apply_window(values, SOFT_TISSUE)
        else:
            grey = stretch(values, *self._display_range())
        if lut is None:
            return grey
        if lut.get("PhotometricInterpretation") == "MONOCHROME1":
            grey = 255 - grey
        padding = padding_of(stored, lut)
        # padding is background, whichever way round values are shown
        return grey if padding is None else np.where(padding, np.uint8(0), grey)

    def _display_range(self) -> tuple[float, float]:
        """Return the values that are shown black and white where neither modality nor file says it."""
        if self._range is None:
            self._range = foreground_range(self._samples())
        return self._range

    def _samples(self) -> Iterator[np.ndarray]:
        """Yield values in modality units, evenly from all planes, without padding and what lies outside the region."""
        step = -(-self.n_planes * self.plane_shape[0] * self.plane_shape[1] // _MAX_SAMPLES)
        for index in range(self.n_planes):
            stored, lut = self.layout.plane(self._stored, index), self._lut(index)
            keep = np.ones(stored.shape, dtype=bool)
            region = self.valid_region(index)
            if region is not None:
                keep &= region
            padding = None if lut is None else padding_of(stored, lut)
            if padding is not None:
                keep &= ~padding
            yield self._values(stored, lut)[keep][index % step :: step]


def _doubt_of_units(values: np.ndarray) -> str:
    """Return what speaks against Hounsfield units; empty where nothing does."""
    if not values.size:
        return ""
    low, high = float(values.min()), float(values.max())
    if high - low <= _LEAST_SPAN:
        return (
            f"its values, {low:g} to {high:g}, are not Hounsfield units, which the window of a CT needs; give the "
            "volume without scaling."
        )
    shares = [float(np.mean((values >= first) & (values <= last))) for first, last in (_SHIFTED_AIR, _SHIFTED_BODY)]
    if low >= _SHIFTED_AIR[0] and min(shares) >= _LEAST_SHARE:
        return (
            f"its values, {low:g} to {high:g}, look like Hounsfield units to which 1000 or 1024 was added; give the "
            "volume with the rescale intercept applied."
        )
    return ""


def _by_axis(shape: Sequence[int]) -> str:
    """Return a shape [k, j, i] as people say it: "256 x 256 x 40"."""
    return " x ".join(map(str, shape[::-1]))
