"""DICOM files and series: the grid against SimpleITK, pixels against the standard's formulas."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, pixel_array

from medclipsam.base.errors import ImageError, OptionError
from medclipsam.imaging import Window, read_image, write_mask

RNG = np.random.default_rng(0)
REAL_FILES = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "693_J2KI.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "ExplVR_BigEnd.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "JPEGLSNearLossless_16.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "examples_jpeg2k.dcm",
    "examples_overlay.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
    "image_dfl.dcm",
]


def real_file(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom carries no {name} here")
    return Path(str(path))


def asymmetric(shape: Sequence[int]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[:, : shape[1] // 3, : shape[2] // 2] = 1
    labels[0, -1, -1] = 2
    return labels


def check_mask(image, path: Path, folder: Path, assert_same_grid) -> None:
    """Write a mask in display orientation and look at it, and at the image, through SimpleITK."""
    labels = asymmetric((image.n_planes, *image.plane_shape))
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        original = reader.Execute()
    else:
        original = sitk.ReadImage(str(path))
    # Different names: next to x.nii, ITK takes the voxels of x.nii.gz from x.nii.
    for name in ("a.nii.gz", "b.nii", "c.nrrd"):
        write_mask(labels, image, folder / name)
        mask = sitk.ReadImage(str(folder / name))
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert_same_grid(mask, original)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), image.to_native(labels))


@pytest.mark.parametrize("name", REAL_FILES)
def test_masks_of_real_files_lie_on_what_simpleitk_opens(name: str, tmp_path: Path, assert_same_grid) -> None:
    path = real_file(name)
    image = read_image(path)
    check_mask(image, path, tmp_path, assert_same_grid)
    plane = image.plane(0)
    assert plane.dtype == np.uint8
    assert plane.shape == (*image.plane_shape, 3)
    assert plane.max() > plane.min()


SOP_CLASSES = {
    "CT": uid.CTImageStorage,
    "MR": uid.MRImageStorage,
    "CR": uid.ComputedRadiographyImageStorage,
    "DX": uid.DigitalXRayImageStorageForPresentation,
    "MG": uid.DigitalMammographyXRayImageStorageForPresentation,
    "IO": uid.DigitalIntraOralXRayImageStorageForPresentation,
    "XA": uid.XRayAngiographicImageStorage,
    "RF": uid.XRayRadiofluoroscopicImageStorage,
    "US": uid.UltrasoundImageStorage,
    "OT": uid.SecondaryCaptureImageStorage,
    "PT": uid.PositronEmissionTomographyImageStorage,
    "NM": uid.NuclearMedicineImageStorage,
    "XC": uid.VLPhotographicImageStorage,
    "OP": uid.OphthalmicPhotography8BitImageStorage,
}
SPACINGS = {
    "PixelSpacing": [0.2, 0.3],
    "ImagerPixelSpacing": [0.4, 0.5],
    "NominalScannedPixelSpacing": [0.6, 0.7],
    "SpacingBetweenSlices": 4,
    "SliceThickness": 3,
}


@pytest.mark.parametrize("given", ["nothing", "everything", "no imager spacing", "no pixel spacing"])
@pytest.mark.parametrize("modality", sorted(SOP_CLASSES))
def test_single_frames_of_every_class_lie_on_what_simpleitk_opens(
    modality: str, given: str, make_dicom, save_dicom, tmp_path: Path, assert_same_grid
) -> None:
    elements = {} if given == "nothing" else dict(SPACINGS)
    if given == "everything":
        elements |= {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    if given == "no imager spacing":
        del elements["ImagerPixelSpacing"]
    if given == "no pixel spacing":
        del elements["PixelSpacing"], elements["ImagerPixelSpacing"]
    pixels = RNG.integers(0, 4000, (4, 6)).astype(np.uint16)
    path = save_dicom(make_dicom(pixels, modality, SOP_CLASSES[modality], **elements))
    check_mask(read_image(path), path, tmp_path, assert_same_grid)


@pytest.mark.parametrize(
    "elements",
    [
        {"SpacingBetweenSlices": -4},
        {"ImageOrientationPatient": [0.99, 0, 0, 0, 1, 0]},
        {"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]},
        {"ImageOrientationPatient": [0.8, 0.6, 0, -0.36, 0.48, -0.8], "ImagePositionPatient": [3, 1, 4]},
    ],
)
def test_unusual_geometry_lies_on_what_simpleitk_opens(
    elements: dict, make_dicom, save_dicom, tmp_path: Path, assert_same_grid
) -> None:
    pixels = RNG.integers(0, 4000, (4, 6)).astype(np.uint16)
    path = save_dicom(make_dicom(pixels, "MR", uid.MRImageStorage, PixelSpacing=[0.5, 0.7], **elements))
    check_mask(read_image(path), path, tmp_path, assert_same_grid)


@pytest.mark.parametrize(
    ("modality", "sop_class", "elements"),
    [
        ("US", uid.UltrasoundMultiFrameImageStorage, {"FrameTime": 33, "FrameIncrementPointer": 0x00181063}),
        ("US", uid.UltrasoundMultiFrameImageStorage, {"PixelSpacing": [0.2, 0.3]}),
        ("XA", uid.XRayAngiographicImageStorage, {"FrameTime": 33, "FrameIncrementPointer": 0x00181063}),
        ("OT", uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage, {"PixelSpacing": [0.2, 0.3]}),
        ("MR", uid.EnhancedMRImageStorage, {}),
        ("NM", uid.NuclearMedicineImageStorage, {"PixelSpacing": [2, 3], "SpacingBetweenSlices": 4}),
    ],
)
def test_frame_stacks_lie_on_what_simpleitk_opens(
    modality: str, sop_class: str, elements: dict, make_dicom, save_dicom, tmp_path: Path, assert_same_grid
) -> None:
    pixels = RNG.integers(0, 4000, (3, 4, 6)).astype(np.uint16)
    path = save_dicom(make_dicom(pixels, modality, sop_class, **elements))
    image = read_image(path)
    assert image.n_planes == 3
    assert image.plane_spacing is None
    check_mask(image, path, tmp_path, assert_same_grid)


# Series -------------------------------------------------------------------------------------------------------------

PLANES = {
    "axial": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "prone axial": [-1, 0, 0, 0, -1, 0],
    "oblique": [0.9553365, 0.2955202, 0, -0.2896295, 0.9362934, 0.1986693],
}


def write_series(
    folder: Path,
    make_dicom,
    orientation: list[float],
    volume: np.ndarray,
    gap: float = 2.5,
    modality: str = "CT",
    **more,
) -> list[Dataset]:
    """Write slices `volume[n]` at n * gap along the normal, in files whose names are in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    series = uid.generate_uid()
    slices = []
    for n, pixels in enumerate(volume):
        data = make_dicom(
            pixels,
            modality,
            SOP_CLASSES[modality],
            PixelSpacing=[0.7, 0.9],
            ImageOrientationPatient=orientation,
            ImagePositionPatient=[float(f"{v:.6f}") for v in np.array([-5.0, 7.0, 11.0]) + n * gap * normal],
            SeriesInstanceUID=series,
            **more,
        )
        data.save_as(folder / f"{(n * 7) % len(volume):03d}{n}", enforce_file_format=True)
        slices.append(data)
    return slices


@pytest.mark.parametrize("plane", sorted(PLANES))
def test_a_series_folder_is_one_volume_that_lies_on_what_simpleitk_opens(
    plane: str, make_dicom, tmp_path: Path, assert_same_grid, bright_labels
) -> None:
    volume = np.full((5, 6, 8), 0, np.int16)
    volume[3:, :2, :3] = 1000
    write_series(tmp_path / "series", make_dicom, PLANES[plane], volume, RescaleSlope=1, RescaleIntercept=-200)
    image = read_image(tmp_path / "series")
    assert image.n_planes == 5
    assert image.plane_spacing == pytest.approx(2.5)
    assert sorted(image.pixel_spacing) == pytest.approx([0.7, 0.9])
    check_mask(image, tmp_path / "series", tmp_path, assert_same_grid)
    labels = bright_labels(image)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    np.testing.assert_array_equal(image.to_native(labels), sitk.GetArrayFromImage(reader.Execute()) > 0)


def test_planes_of_a_prone_series_are_turned_upright_and_run_to_the_head(make_dicom, tmp_path: Path) -> None:
    volume = np.zeros((3, 4, 4), np.int16)
    volume[0, 0, 0] = 1000  # lowest slice; rows start at the back, columns at the left: left back corner
    write_series(tmp_path / "s", make_dicom, PLANES["prone axial"], volume)
    image = read_image(tmp_path / "s")
    assert image.describe()["orientation"] == "axial"
    bright = np.argwhere(np.stack([image.plane(n)[..., 0] for n in range(3)]) == 255)
    # Back is at the bottom, the patient's left at image right, the lowest slice first.
    np.testing.assert_array_equal(bright, [[0, 3, 3]])


@pytest.mark.parametrize("between", [2.5, -2.5, 7])
def test_a_series_goes_by_positions_not_by_spacing_between_slices(
    between: float, make_dicom, tmp_path: Path, assert_same_grid
) -> None:
    folder = tmp_path / "series"
    write_series(folder, make_dicom, PLANES["axial"], np.zeros((4, 6, 8), np.int16), SpacingBetweenSlices=between)
    image = read_image(folder)
    assert image.plane_spacing == pytest.approx(2.5)
    check_mask(image, folder, tmp_path, assert_same_grid)


def test_a_tilted_gantry_lies_on_what_simpleitk_opens(make_dicom, tmp_path: Path, assert_same_grid) -> None:
    folder = tmp_path / "series"
    slices = write_series(folder, make_dicom, PLANES["axial"], np.zeros((4, 6, 8), np.int16))
    for n, data in enumerate(slices):
        data.ImagePositionPatient = [-5.0, 7.0 + 0.8 * n, 11.0 + 2.5 * n]
        data.save_as(folder / f"{(n * 7) % 4:03d}{n}", enforce_file_format=True)
    image = read_image(folder)
    assert image.plane_spacing == pytest.approx(2.5)
    check_mask(image, folder, tmp_path, assert_same_grid)


def test_rescale_may_differ_between_slices(make_dicom, tmp_path: Path) -> None:
    volume = np.full((3, 4, 4), 100, np.int16)
    slices = write_series(tmp_path / "s", make_dicom, PLANES["axial"], volume, RescaleIntercept=0)
    for n, data in enumerate(slices):
        data.RescaleSlope = n
        data.save_as(tmp_path / "s" / f"{(n * 7) % 3:03d}{n}", enforce_file_format=True)
    image = read_image(tmp_path / "s")
    values = [int(image.plane(n, Window(100, 201))[0, 0, 0]) for n in range(3)]
    # Slope 0 cannot be meant and counts as none: 100, 100 and 200 Hounsfield units.
    assert values == [128, 128, 255]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("other size", "misses slices between 16.00 and 21.00 mm"),
        ("other spacing", "misses slices between 16.00 and 21.00 mm"),
        ("other orientation", "misses slices between 16.00 and 21.00 mm"),
        ("same position", "more than one slice at the same position"),
        ("missing slice", "misses slices between 16.00 and 21.00 mm"),
        ("other series", "2 DICOM series"),
        ("no position", "not slices of one volume"),
        ("no pixels", "pixel data is missing"),
    ],
)
def test_a_folder_that_is_not_one_volume_is_refused(spoil: str, sentence: str, make_dicom, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    volume = np.zeros((6, 4, 5), np.int16)
    slices = write_series(folder, make_dicom, PLANES["axial"], volume)
    victim = slices[3]
    path = folder / "0033"
    assert dcmread(path).SOPInstanceUID == victim.SOPInstanceUID
    if spoil == "missing slice":
        path.unlink()
    else:
        if spoil == "other size":
            victim.Rows, victim.PixelData = 3, victim.PixelData[:-10]
        elif spoil == "other spacing":
            victim.PixelSpacing = [0.8, 0.9]
        elif spoil == "other orientation":
            victim.ImageOrientationPatient = PLANES["coronal"]
        elif spoil == "same position":
            victim.ImagePositionPatient = slices[2].ImagePositionPatient
            victim.PixelData = b"\1" + victim.PixelData[1:]
        elif spoil == "other series":
            victim.SeriesInstanceUID = "1.2.3.4"
        elif spoil == "no position":
            del victim.ImagePositionPatient
        elif spoil == "no pixels":
            del victim.PixelData
        victim.save_as(path, enforce_file_format=True)
    with pytest.raises(ImageError, match=sentence) as caught:
        read_image(folder)
    assert "series" in str(caught.value)
    if spoil == "other series":
        assert "1.2.3.4 (1 files)" in str(caught.value)


def test_other_objects_beside_a_series_do_not_disturb(make_dicom, tmp_path: Path) -> None:
    write_series(tmp_path / "s", make_dicom, PLANES["axial"], np.zeros((3, 4, 5), np.int16))
    report = make_dicom(np.zeros((2, 2), np.uint8), "SR", uid.BasicTextSRStorage)
    del report.PixelData, report.Rows
    report.save_as(tmp_path / "s" / "report", enforce_file_format=True)
    (tmp_path / "s" / "notes.txt").write_text("nothing")
    assert read_image(tmp_path / "s").n_planes == 3


# Functional groups --------------------------------------------------------------------------------------------------


def enhanced(make_dicom, pixels: np.ndarray, heights: Sequence[float], **options) -> Dataset:
    orientation = options.get("orientation", PLANES["axial"])
    normal = np.cross(orientation[:3], orientation[3:])
    data = make_dicom(pixels, "MR", options.get("sop_class", uid.EnhancedMRImageStorage))
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing = [0.2, 0.3]
    if "between" in options:
        measures.SpacingBetweenSlices = options["between"]
    plane.ImageOrientationPatient = orientation
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    frames = []
    for n, height in enumerate(heights):
        frame, place, value = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [float(v) for v in np.array([1.0, 2.0, 3.0]) + height * normal]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = n + 1, 0, "US"
        frame.PlanePositionSequence = [place]
        if options.get("slopes"):
            frame.PixelValueTransformationSequence = [value]
        if not options.get("shared_orientation", True):
            frame.PlaneOrientationSequence = [plane]
        frames.append(frame)
    if options.get("shared_orientation", True):
        shared.PlaneOrientationSequence = [plane]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = frames
    return data


@pytest.mark.parametrize(
    ("heights", "options"),
    [
        ([0, 2.5, 5], {}),
        ([5, 2.5, 0], {}),
        ([0, 5, 2.5], {}),
        ([0, 2.5, 5.5], {}),
        ([0, 2.5, 5], {"shared_orientation": False}),
        ([0, 2.5, 5], {"sop_class": uid.EnhancedCTImageStorage, "orientation": PLANES["coronal"]}),
        ([5, 2.5, 0], {"orientation": PLANES["sagittal"]}),
        ([1], {}),
        ([1], {"between": 4}),
    ],
)
def test_multi_frame_volumes_are_sorted_by_position_and_lie_on_what_simpleitk_opens(
    heights: list[float], options: dict, make_dicom, save_dicom, tmp_path: Path, assert_same_grid
) -> None:
    pixels = np.stack([np.full((4, 6), 100 * (1 + n), np.uint16) for n in range(len(heights))])
    pixels[:, 0, 0] = 0
    path = save_dicom(enhanced(make_dicom, pixels, heights, **options))
    image = read_image(path)
    check_mask(image, path, tmp_path, assert_same_grid)
    grey = [int(image.plane(n)[2, 2, 0]) for n in range(image.n_planes)]
    by_height = [int(v) for v in np.argsort(np.argsort(heights))]
    shown = [grey.index(v) for v in sorted(grey)]  # display plane of each stored frame
    # Sagittal normals of this orientation point to the right, display runs to the left.
    sign = -1 if options.get("orientation") == PLANES["sagittal"] else 1
    assert shown == (by_height if sign == 1 else [len(heights) - 1 - v for v in by_height])
    assert image.pixel_spacing == pytest.approx((0.2, 0.3))
    if len(heights) > 1:
        assert image.plane_spacing == pytest.approx(np.ptp(heights) / (len(heights) - 1))


def test_frames_have_their_own_rescale(make_dicom, save_dicom) -> None:
    pixels = np.full((3, 4, 6), 50, np.uint16)
    image = read_image(save_dicom(enhanced(make_dicom, pixels, [0, 1, 2], slopes=True)))
    assert [int(image.plane(n, Window(100, 201))[0, 0, 0]) for n in range(3)] == [64, 128, 192]


def test_frames_at_one_position_are_a_time_stack(make_dicom, save_dicom) -> None:
    image = read_image(save_dicom(enhanced(make_dicom, np.zeros((3, 4, 6), np.uint16), [1, 1, 1])))
    assert image.n_planes == 3
    assert image.plane_spacing is None


@pytest.mark.parametrize(
    ("heights", "sentence"), [([0, 1, 0, 1], "same position"), ([0, 1, 2, 5], "misses slices between 5.00 and 8.00")]
)
def test_multi_frame_files_that_are_no_volume_are_refused(
    heights: list[float], sentence: str, make_dicom, save_dicom
) -> None:
    path = save_dicom(enhanced(make_dicom, np.zeros((4, 4, 6), np.uint16), heights))
    with pytest.raises(ImageError, match=sentence):
        read_image(path)


# Values -------------------------------------------------------------------------------------------------------------


def test_ct_takes_the_window_asked_for_in_hounsfield_units() -> None:
    path = real_file("CT_small.dcm")
    data = dcmread(path)
    hounsfield = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    # DICOM PS3.3 C.11.2.1.2.1, linear.
    expected = np.clip(((hounsfield - (-600 - 0.5)) / (1500 - 1) + 0.5) * 255, 0, 255)
    shown = read_image(path).plane(0, Window(-600, 1500))
    assert np.abs(shown[..., 0] - expected).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(shown[..., 0], shown[..., 2])


def test_ct_without_a_window_of_its_own_shows_soft_tissue(make_dicom, save_dicom) -> None:
    pixels = np.array([[-160, -60, 40, 140, 240]], np.int16)
    image = read_image(save_dicom(make_dicom(pixels, "CT", uid.CTImageStorage)))
    np.testing.assert_array_equal(image.plane(0), image.plane(0, Window(40, 400)))
    assert image.plane(0)[0, 2, 0] == 128


def test_mr_takes_percentiles_of_the_whole_volumes_foreground(make_dicom, tmp_path: Path) -> None:
    volume = np.zeros((4, 20, 20), np.int16)
    volume[:, 5:15, 5:15] = RNG.integers(200, 2000, (4, 10, 10))
    volume[2] //= 4  # a dark slice must stay dark
    write_series(tmp_path / "s", make_dicom, PLANES["axial"], volume, modality="MR", WindowCenter=10, WindowWidth=20)
    image = read_image(tmp_path / "s")
    low, high = np.percentile(volume[volume > 0], [0.5, 99.5])
    expected = np.clip(np.rint((volume - low) * 255 / (high - low)), 0, 255)
    shown = np.stack([image.plane(n)[..., 0] for n in range(4)])
    np.testing.assert_allclose(shown, expected, atol=1)


def test_monochrome1_is_inverted(make_dicom, save_dicom) -> None:
    pixels = np.linspace(0, 4095, 24).reshape(4, 6).astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    planes = [
        read_image(
            save_dicom(make_dicom(pixels, "DX", SOP_CLASSES["DX"], PhotometricInterpretation=photometric, **window))
        ).plane(0)
        for photometric in ("MONOCHROME1", "MONOCHROME2")
    ]
    np.testing.assert_array_equal(planes[0], 255 - planes[1])
    assert planes[1][0, 0, 0] == 0
    assert planes[1][-1, -1, 0] == 255


def test_a_radiographs_voi_lut_is_applied(make_dicom, save_dicom) -> None:
    pixels = np.arange(16).reshape(4, 4).astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor = [16, 0, 12]
    table.add_new("LUTData", "US", [int(v) for v in 4095 - np.arange(16) * 273])
    path = save_dicom(make_dicom(pixels, "DX", SOP_CLASSES["DX"], VOILUTSequence=[table]))
    np.testing.assert_array_equal(read_image(path).plane(0)[..., 0].ravel(), 255 - np.arange(16) * 17)


def test_a_modality_lut_is_applied(make_dicom, save_dicom) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4, 0, 16], "US"
    table.add_new("LUTData", "US", [0, 1000, 104, 10])
    pixels = np.array([[0, 1, 2, 3]], np.uint16)
    path = save_dicom(make_dicom(pixels, "CR", SOP_CLASSES["CR"], ModalityLUTSequence=[table]))
    assert read_image(path).plane(0, Window(500.5, 1001))[0, :, 0].tolist() == [0, 255, 27, 3]


def test_a_radiograph_without_voi_takes_percentiles_without_the_padding(make_dicom, save_dicom) -> None:
    pixels = np.full((40, 40), 60000, np.uint16)
    pixels[5:35, 5:35] = np.linspace(100, 4000, 900).reshape(30, 30)
    path = save_dicom(make_dicom(pixels, "DX", SOP_CLASSES["DX"], PixelPaddingValue=60000))
    low, high = np.percentile(np.unique(pixels)[1:-1], [0.5, 99.5])
    shown = read_image(path).plane(0)[5:35, 5:35, 0]
    expected = np.clip((pixels[5:35, 5:35] - low) * 255 / (high - low), 0, 255)
    np.testing.assert_allclose(shown, expected, atol=1.5)


@pytest.mark.parametrize("reverse", [False, True], ids=["value first", "limit first"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("modality", "dtype", "padding"),
    [
        *(("DX", np.uint16, (60000, 60100)), ("CR", np.uint16, (0, 40)), ("MG", np.int16, (-2000, -1500))),
        ("DX", np.uint8, (250, 255)),
    ],
)
def test_a_range_of_padding_is_left_out_of_the_percentiles_and_shown_black(
    make_dicom, save_dicom, modality: str, dtype: type, padding: tuple[int, int], photometric: str, reverse: bool
) -> None:
    chance = np.random.default_rng(0)
    pixels = chance.integers(padding[0], padding[1] + 1, (40, 40)).astype(dtype)
    inner = np.linspace(100, 200 if dtype == np.uint8 else 4000, 900).reshape(30, 30).astype(dtype)
    pixels[5:35, 5:35] = inner
    first, last = padding[::-1] if reverse else padding
    more = {"PixelPaddingValue": first, "PixelPaddingRangeLimit": last, "PhotometricInterpretation": photometric}
    data = make_dicom(pixels, modality, SOP_CLASSES[modality], **more)
    shown = read_image(save_dicom(data)).plane(0)[..., 0]
    if dtype == np.uint8:
        expected = inner.astype(float)
    else:
        low, high = np.percentile(inner[inner > inner.min()], [0.5, 99.5])
        expected = np.clip((inner - low) * (255 / (high - low)), 0, 255)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    np.testing.assert_allclose(shown[5:35, 5:35], expected, atol=1.5)
    shown = shown.copy()
    shown[5:35, 5:35] = 0
    assert not shown.any()


def test_padding_written_as_unsigned_means_the_signed_pixels_of_the_same_bits(make_dicom, save_dicom) -> None:
    pixels = np.full((40, 40), -2000, np.int16)
    pixels[5:35, 5:35] = np.linspace(0, 1000, 900).reshape(30, 30)
    data = make_dicom(pixels, "CT", SOP_CLASSES["CT"], WindowCenter=-1500, WindowWidth=4000)
    before = read_image(save_dicom(data)).plane(0)
    assert before[0, 0, 0] > 50
    data.add_new("PixelPaddingValue", "US", 65536 - 2000)
    data.add_new("PixelPaddingRangeLimit", "US", 65536 - 1900)
    after = read_image(save_dicom(data)).plane(0)
    assert not after[:5].any()
    np.testing.assert_array_equal(after[5:35, 5:35], before[5:35, 5:35])


def test_a_radiograph_is_turned_by_patient_orientation_but_a_mammogram_is_not(
    make_dicom, save_dicom, tmp_path: Path, assert_same_grid
) -> None:
    pixels = np.zeros((4, 6), np.uint16)
    pixels[0, 0] = 1000
    for modality, corner in (("DX", (0, 5)), ("MG", (0, 0))):
        path = save_dicom(make_dicom(pixels, modality, SOP_CLASSES[modality], PatientOrientation=["R", "F"]))
        image = read_image(path)
        assert tuple(np.argwhere(image.plane(0)[..., 0] == 255)[0]) == corner
        check_mask(image, path, tmp_path, assert_same_grid)


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "examples_ybr_color.dcm", "SC_ybr_full_422_uncompressed.dcm"]
)
def test_colour_planes_are_rgb(name: str) -> None:
    path = real_file(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pixel_array(path)
    image = read_image(path)
    assert image.is_colour
    last = expected[-1] if expected.ndim == 4 else expected
    np.testing.assert_array_equal(image.plane(image.n_planes - 1), last)
    np.testing.assert_array_equal(image.plane(image.n_planes - 1, Window(40, 400)), last)


def test_palette_colour_becomes_rgb() -> None:
    path = real_file("examples_palette.dcm")
    data = dcmread(path)
    expected = apply_color_lut(data.pixel_array, data)
    shown = read_image(path).plane(0)
    if expected.dtype == np.uint16:
        expected = np.rint(expected / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(shown, expected)


def test_sixteen_bit_colour_is_scaled_by_its_bits() -> None:
    image = read_image(real_file("SC_rgb_rle_16bit_2frame.dcm"))
    expected = pixel_array(real_file("SC_rgb_rle_16bit_2frame.dcm"))[1]
    np.testing.assert_array_equal(image.plane(1), np.rint(expected / 65535 * 255).astype(np.uint8))


def test_the_modality_given_goes_before_the_files(make_dicom, save_dicom) -> None:
    path = save_dicom(make_dicom(np.zeros((4, 6), np.uint16), "OT", SOP_CLASSES["OT"]))
    assert read_image(path).modality == "OT"
    assert read_image(path, modality="CR").modality == "CR"


@pytest.mark.parametrize(("said", "given", "agrees"), [("DX", "CR", True), ("US", "US", True), ("US", "CT", False)])
def test_a_modality_that_contradicts_the_file_is_refused(make_dicom, save_dicom, said, given, agrees) -> None:
    path = save_dicom(make_dicom(np.zeros((4, 6), np.uint16), said, SOP_CLASSES["OT"]))
    if agrees:
        assert read_image(path, modality=given).modality == given
        return
    with pytest.raises(OptionError) as error:
        read_image(path, modality=given)
    assert error.value.key == "modality"


# Known distances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, None),
        ({"ImagerPixelSpacing": [0.2, 0.3]}, None),
        ({"PixelSpacing": [0.2, 0.3]}, None),
        ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.2, 0.3]}, None),
        ({"PixelSpacing": [0.15, 0.2], "ImagerPixelSpacing": [0.2, 0.3]}, (0.15, 0.2)),
        ({"PixelSpacing": [0.15, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"}, (0.15, 0.2)),
        ({"PixelSpacing": [0.15, 0.2], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.15, 0.2)),
        ({"PixelSpacing": [0, 0], "PixelSpacingCalibrationType": "FIDUCIAL"}, None),
    ],
)
def test_a_radiographs_spacing_is_known_only_where_calibrated(
    elements: dict, expected: tuple | None, make_dicom, save_dicom
) -> None:
    image = read_image(save_dicom(make_dicom(np.zeros((4, 6), np.uint16), "DX", SOP_CLASSES["DX"], **elements)))
    assert image.pixel_spacing == (None if expected is None else pytest.approx(expected))


def test_known_spacing_follows_the_rotation_of_a_radiograph(make_dicom, save_dicom) -> None:
    image = read_image(
        save_dicom(
            make_dicom(
                np.zeros((4, 6), np.uint16),
                "DX",
                SOP_CLASSES["DX"],
                PixelSpacing=[0.15, 0.2],
                PixelSpacingCalibrationType="GEOMETRY",
                PatientOrientation=["F", "L"],
            )
        )
    )
    assert image.plane_shape == (6, 4)
    assert image.pixel_spacing == pytest.approx((0.2, 0.15))


def region(box: tuple[int, int, int, int], delta: tuple[float, float] = (0.01, 0.02), **elements) -> Dataset:
    data = Dataset()
    data.RegionSpatialFormat, data.RegionDataType = 1, 1
    data.PhysicalUnitsXDirection = data.PhysicalUnitsYDirection = 3
    data.PhysicalDeltaX, data.PhysicalDeltaY = delta
    data.RegionLocationMinX0, data.RegionLocationMinY0, data.RegionLocationMaxX1, data.RegionLocationMaxY1 = box
    for name, value in elements.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([region((1, 1, 4, 2))], (0.2, 0.1)),
        ([region((1, 1, 2, 2)), region((3, 1, 5, 2))], (0.2, 0.1)),
        ([region((1, 1, 2, 2)), region((3, 1, 5, 2), (0.03, 0.02))], None),
        ([region((1, 1, 4, 2), PhysicalUnitsXDirection=4)], None),
        ([region((1, 1, 4, 2), (0.0, 0.02))], None),
        ([region((1, 1, 4, 2)), region((0, 3, 5, 3), (0.5, 7), RegionSpatialFormat=3)], (0.2, 0.1)),
    ],
)
def test_ultrasound_spacing_comes_from_calibrated_2d_regions(
    regions: list[Dataset], expected: tuple | None, make_dicom, save_dicom
) -> None:
    data = make_dicom(
        np.zeros((4, 6), np.uint8), "US", SOP_CLASSES["US"], SequenceOfUltrasoundRegions=regions, PixelSpacing=[9, 9]
    )
    image = read_image(save_dicom(data))
    assert image.pixel_spacing == (None if expected is None else pytest.approx(expected))


def test_ultrasound_outside_the_regions_is_not_valid_and_stays_out_of_the_percentiles(make_dicom, save_dicom) -> None:
    pixels = np.full((10, 12), 65535, np.uint16)
    pixels[2:8, 1:11] = np.linspace(0, 1000, 60).reshape(6, 10)
    data = make_dicom(
        np.stack([pixels] * 2),
        "US",
        uid.UltrasoundMultiFrameImageStorage,
        SequenceOfUltrasoundRegions=[region((1, 2, 10, 7)), region((0, 0, 11, 0), RegionSpatialFormat=2)],
    )
    image = read_image(save_dicom(data))
    expected = np.zeros((10, 12), bool)
    expected[2:8, 1:11] = True
    np.testing.assert_array_equal(image.valid_region(1), expected)
    assert image.plane(1)[7, 9, 0] > 240, "white is the brightest of the region, not of the frame around it"


def test_without_regions_everything_is_valid(make_dicom, save_dicom) -> None:
    image = read_image(save_dicom(make_dicom(np.zeros((4, 6), np.uint8), "US", SOP_CLASSES["US"])))
    assert image.valid_region(0) is None


@pytest.mark.parametrize("syntax", ["RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_lossless_compression_loses_nothing(syntax: str) -> None:
    plain = read_image(real_file("MR_small.dcm")).voxels()
    assert np.array_equal(read_image(real_file(f"MR_small_{syntax}.dcm")).voxels(), plain)


def test_jpeg_lossless_colours_are_those_of_the_uncompressed_picture() -> None:
    plain = read_image(real_file("SC_rgb_rle.dcm")).voxels()
    assert np.array_equal(read_image(real_file("SC_rgb_jpeg_gdcm.dcm")).voxels(), plain)


# Broken files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("MR_truncated.dcm", "damaged or truncated"),
        ("JPEG-lossy.dcm", "transfer syntax JPEG Extended"),
        ("liver_1frame.dcm", "is a DICOM SEG object, not an image"),
        ("rtdose.dcm", "is a DICOM RTDOSE object, not an image"),
        ("rtplan.dcm", "is a DICOM RTPLAN object, not an image"),
        ("test-SR.dcm", "is a DICOM SR object, not an image"),
        ("no_meta.dcm", "holds no image"),
    ],
)
def test_files_that_hold_no_readable_image_are_refused_with_a_sentence(name: str, sentence: str) -> None:
    path = real_file(name)
    with pytest.raises(ImageError, match=sentence) as caught:
        read_image(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_file_that_pydicom_carries_is_read_or_refused_with_a_sentence() -> None:
    folder = real_file("CT_small.dcm").parent
    read, sentences = 0, []
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        try:
            image = read_image(path)
        except ImageError as error:
            sentences.append((path.name, str(error)))
        else:
            read += 1
            assert image.plane(image.n_planes - 1).shape == (*image.plane_shape, 3)
    assert all(name in sentence for name, sentence in sentences)
    assert read > 30


def test_dicom_without_a_preamble_or_suffix_is_recognised(make_dicom, tmp_path: Path) -> None:
    data = make_dicom(np.arange(24, dtype=np.uint16).reshape(4, 6), "CR", SOP_CLASSES["CR"])
    del data.file_meta
    data.save_as(tmp_path / "IM0001", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "IM0001").read_bytes()[128:132] != b"DICM"
    image = read_image(tmp_path / "IM0001")
    assert (image.modality, image.plane_shape) == ("CR", (4, 6))


def test_a_broken_lookup_table_is_a_sentence(make_dicom, save_dicom) -> None:
    table = Dataset()
    table.LUTDescriptor = [16, 0, 12]
    image = read_image(
        save_dicom(make_dicom(np.zeros((4, 4), np.uint16), "DX", SOP_CLASSES["DX"], VOILUTSequence=[table]))
    )
    with pytest.raises(ImageError, match="look-up tables"):
        image.plane(0)


def test_describe_holds_nothing_about_the_patient(make_dicom, save_dicom) -> None:
    path = save_dicom(make_dicom(np.zeros((4, 6), np.uint16), "CR", SOP_CLASSES["CR"]))
    assert "secret" not in repr(read_image(path).describe()).lower()
