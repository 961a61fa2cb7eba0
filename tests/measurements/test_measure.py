"""Measurements of masks, against SimpleITK and shapes of known values."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medclipsam.base.errors import InputError
from medclipsam.demo.dicom import projection, ultrasound, volume
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.measurements import measure


def _volume(folder: Path, *, modality: str | None = "CT", turn: float = 0.0, order: str = "ijk") -> MedicalImage:
    """A volume with other spacings along each axis, oblique by `turn`, and its axes stored in any order."""
    rng = np.random.default_rng(3)
    values = ndimage.gaussian_filter(rng.normal(size=(40, 36, 12)), 2) * 4000
    affine = np.diag([0.8, 1.1, 3.0, 1.0])
    rotation = np.eye(4)
    rotation[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    affine = rotation @ affine
    affine[:3, 3] = [-31, 12, 80]
    axes = ["ijk".index(axis) for axis in order]
    file = nib.Nifti1Image(np.transpose(values, axes).astype(np.int16), affine[:, [*axes, 3]])
    file.set_qform(file.affine, 1)
    nib.save(file, folder / "volume.nii.gz")
    return read_image(folder / "volume.nii.gz", modality=modality)


def _blobs(image: MedicalImage) -> np.ndarray:
    rng = np.random.default_rng(5)
    shape = (image.n_planes, *image.plane_shape)
    return ndimage.gaussian_filter(rng.normal(size=shape), (0.8, 2, 2)) > 0.08


@pytest.mark.parametrize("order", ["ijk", "kij", "jki"])
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_a_volume_measures_what_simpleitk_measures(tmp_path: Path, order: str, turn: float) -> None:
    image = _volume(tmp_path, turn=turn, order=order)
    mask = _blobs(image)
    found = measure(mask, image)
    read = sitk.ReadImage(str(tmp_path / "volume.nii.gz"))
    label = sitk.GetImageFromArray(image.to_native(mask.astype(np.uint8)))
    label.CopyInformation(read)
    shape, values = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shape.Execute(label)
    values.Execute(read, label)
    parts = sitk.ConnectedComponentImageFilter()
    parts.SetFullyConnected(True)
    parts.Execute(label)
    assert found.n_voxels == shape.GetNumberOfPixels(1)
    assert found.n_components == parts.GetObjectCount() > 1
    assert found.volume_mm3 == pytest.approx(shape.GetPhysicalSize(1), rel=1e-6)
    assert found.area_mm2 is None
    assert found.centre_lps == pytest.approx(shape.GetCentroid(1), abs=1e-3)
    assert found.centre == pytest.approx(read.TransformPhysicalPointToContinuousIndex(shape.GetCentroid(1)), abs=1e-3)
    assert found.values is not None
    assert found.values.mean == pytest.approx(values.GetMean(1))
    assert found.values.sd == pytest.approx(values.GetSigma(1))
    assert (found.values.minimum, found.values.maximum) == (values.GetMinimum(1), values.GetMaximum(1))
    assert found.values.unit == "HU"


def test_a_ball_measures_what_it_was_drawn_with(tmp_path: Path) -> None:
    image = _volume(tmp_path, order="ijk")
    plane_mm, (row_mm, column_mm) = image.plane_spacing, image.pixel_spacing or (0, 0)
    grid = np.indices((image.n_planes, *image.plane_shape)) - np.array([6, 18, 20])[:, None, None, None]
    steps = np.array([plane_mm, row_mm, column_mm])[:, None, None, None]
    mask = (np.square(grid * steps).sum(axis=0)) <= 12**2
    found = measure(mask, image)
    assert found.n_components == 1
    assert found.volume_mm3 == pytest.approx(4 / 3 * math.pi * 12**3, rel=0.03)
    assert found.long_axis_mm == pytest.approx(24, abs=1.0)
    assert found.short_axis_mm == pytest.approx(24, abs=1.5)
    assert found.long_axis is not None
    assert found.long_axis.plane == 6
    assert found.planes == (2, 10)
    assert found.n_planes == 9


def test_hounsfield_units_are_those_of_a_ct_whose_values_are_such(tmp_path: Path) -> None:
    for index, content in enumerate(volume("CT", 1, 4, size=64).contents()):
        (tmp_path / f"{index}.dcm").write_bytes(content)
    image = read_image(tmp_path)
    mask = np.zeros((4, *image.plane_shape), bool)
    mask[1:3, 20:30, 20:40] = True
    found = measure(mask, image)
    values = np.stack([image.values(plane) for plane in range(4)])[mask]
    assert found.values is not None
    assert found.values.unit == "HU"
    assert found.values.mean == pytest.approx(values.mean(dtype=np.float64))
    shifted = MedicalImage.from_array(np.stack([image.values(n) for n in range(4)]) + 1024, modality="CT")
    other = measure(mask, shifted).values
    assert other is not None
    assert other.unit == "stored values"
    assert other.mean == pytest.approx(found.values.mean + 1024)


def test_a_film_has_an_area_and_no_place_and_a_loop_no_volume(tmp_path: Path) -> None:
    pixels = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80) % 251
    projection("DX", pixels.astype(np.uint8), 1).save_as(tmp_path / "film.dcm", enforce_file_format=True)
    film = read_image(tmp_path / "film.dcm")
    mask = np.zeros((60, 80), bool)
    mask[10:20, 30:60] = True
    found = measure(mask, film)
    assert film.pixel_spacing is None or found.area_mm2 == pytest.approx(300 * math.prod(film.pixel_spacing))
    assert found.volume_mm3 is None
    assert found.centre_lps is None
    assert found.centre == (44.5, 14.5, 0)
    (tmp_path / "loop.dcm").write_bytes(ultrasound(1, size=96, frames=4).contents()[0])
    loop = read_image(tmp_path / "loop.dcm")
    measured = measure(np.ones((loop.n_planes, *loop.plane_shape), np.uint8), loop)
    assert (measured.volume_mm3, measured.values, measured.n_planes) == (None, None, 4)


def test_nothing_measures_nothing_and_one_voxel_has_no_deviation() -> None:
    image = MedicalImage.from_array(np.full((3, 20, 30), 9, np.int16))
    mask = np.zeros((3, 20, 30), bool)
    empty = measure(mask, image)
    assert (empty.n_voxels, empty.n_components, empty.values, empty.long_axis, empty.centre) == (0, 0, None, None, None)
    mask[1, 4, 5] = True
    found = measure(mask, image)
    assert found.values is not None
    assert (found.values.mean, found.values.sd) == (9.0, 0.0)
    assert found.long_axis_mm is None
    assert found.centre == (5, 4, 1)


@pytest.mark.parametrize("shape", [(20, 31), (2, 20, 30), (30,), ()])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    image = MedicalImage.from_array(np.zeros((20, 30), np.int16))
    with pytest.raises(InputError, match="does not fit"):
        measure(np.ones(shape, bool), image)
