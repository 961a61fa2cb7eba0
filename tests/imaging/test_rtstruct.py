"""RT Structure Sets: read back, by plastimatch, and by polygons that shapely makes of them; bad ones are refused."""

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import shapely
import SimpleITK as sitk
from pydicom import uid
from scipy import ndimage

from medclipsam.base.errors import ImageError, InputError, MedClipSamError
from medclipsam.demo.dicom import volume, xray
from medclipsam.imaging import MedicalImage, read_image
from medclipsam.imaging.dicom_seg import SegmentInfo
from medclipsam.imaging.rtstruct import read_structure_set, write_structure_set
from medclipsam.targets import TargetSet

TARGETS = TargetSet.load()
SEGMENTS = [
    SegmentInfo("left lung", 11, TARGETS.get("left lung").code, "AUTOMATIC"),
    SegmentInfo("breast tumour", 1, TARGETS.get("breast tumour").code, description="seen twice"),
    SegmentInfo("heart", 13, TARGETS.get("heart").code),
]
# Directions of rows and columns.
ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "turned": [-1, 0, 0, 0, -1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "coronal, swapped": [0, 0, -1, 1, 0, 0],
    "oblique": [0.8, 0.48, 0.36, 0, 0.6, -0.8],
}


def _series(
    folder: Path, orientation: list[float], n_planes: int = 4, spacing: tuple[float, float] = (0.7, 1.3)
) -> Path:
    """A CT series in any orientation, with pixels that are no squares."""
    folder.mkdir()
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    for index, data in enumerate(volume("CT", 1, n_planes, size=64).files):
        data.ImageOrientationPatient = [float(value) for value in orientation]
        data.PixelSpacing = list(spacing)
        data.ImagePositionPatient = [
            float(value) for value in np.array([-31, 12, 80]) + 2.5 * index * np.cross(rows, columns)
        ]
        data.SliceThickness = 2.5
        data.save_as(folder / f"{(3 * index + 1) % n_planes}.dcm", enforce_file_format=True)
    return folder


def _blobs(image: MedicalImage, seed: int = 5) -> np.ndarray:
    """Blobs with holes and islands in them, at the border too."""
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=(image.n_planes, *image.plane_shape)), (0, 2, 2)) > 0.02


def _labels(image: MedicalImage) -> np.ndarray:
    labels = np.where(_blobs(image), 11, 0).astype(np.uint8)
    labels[-1, 5:9, 3:33] = 1
    return labels


def _of_itself(segment: SegmentInfo) -> int:
    return segment.label or 0


@pytest.fixture(params=ORIENTATIONS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> MedicalImage:
    return read_image(_series(tmp_path / "image", ORIENTATIONS[request.param]))


@pytest.fixture
def axial(tmp_path: Path) -> MedicalImage:
    return read_image(_series(tmp_path / "image", ORIENTATIONS["axial"]))


def test_masks_come_back_voxel_for_voxel_and_the_file_is_valid(image: MedicalImage, tmp_path: Path) -> None:
    labels = _labels(image)
    write_structure_set(labels, image, SEGMENTS, tmp_path / "rt.dcm", creator="Jane Doe")
    validator = shutil.which("dciodvfy")
    assert validator, "dciodvfy is needed; install it with: apt-get install dicom3tools"
    found = subprocess.run([validator, str(tmp_path / "rt.dcm")], capture_output=True, text=True, check=False).stderr
    assert "Error" not in found, found
    assert "RTStructureSet" in found
    masks, segments = read_structure_set(tmp_path / "rt.dcm", image, _of_itself)
    for label in (11, 1, 13):
        assert np.array_equal(masks[label], labels == label)
    # the heart was looked for
    assert [(label, each.name, each.algorithm) for label, each in segments] == [
        (11, "left lung", "AUTOMATIC"),
        (1, "breast tumour", "MANUAL"),
        (13, "heart", "MANUAL"),
    ]
    assert [each.code.type.value for _, each in segments] == [each.code.type.value for each in SEGMENTS]
    assert segments[1][1].description == "seen twice"


def _contours(path: Path, number: int) -> list[tuple[str, np.ndarray]]:
    """The contours of a structure: the instance each was drawn on, and its points."""
    (item,) = [each for each in pydicom.dcmread(path).ROIContourSequence if each.ReferencedROINumber == number]
    return [
        (
            str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID),
            np.array(contour.ContourData, float).reshape(-1, 3),
        )
        for contour in item.get("ContourSequence", [])
    ]


def test_contours_are_within_half_a_pixel_of_the_masks_edges_on_the_slices_own_plane(
    image: MedicalImage, tmp_path: Path
) -> None:
    """By ITK's geometry of each file, which the writer does not use."""
    labels = _labels(image)
    write_structure_set(labels, image, SEGMENTS, tmp_path / "rt.dcm")
    files = {str(pydicom.dcmread(file).SOPInstanceUID): sitk.ReadImage(str(file)) for file in image.source.iterdir()}
    headers = {str(pydicom.dcmread(file).SOPInstanceUID): pydicom.dcmread(file) for file in image.source.iterdir()}
    ordered = sorted(
        headers, key=lambda name: float(np.dot(headers[name].ImagePositionPatient, image.grid.direction[:, 2]))
    )
    native = image.to_native(labels)
    drawn: dict[str, shapely.Geometry] = {}
    for instance, points in _contours(tmp_path / "rt.dcm", 1):
        index = np.array([files[instance].TransformPhysicalPointToContinuousIndex(point) for point in points.tolist()])
        assert np.abs(index[:, 2]).max() < 1e-3
        before = drawn.get(instance, shapely.Polygon())
        # by area: the channel to a hole has none
        drawn[instance] = before.symmetric_difference(shapely.make_valid(shapely.Polygon(index[:, 1::-1])))
    for plane, instance in zip(native, ordered, strict=True):
        boxes = [shapely.box(y - 0.5, x - 0.5, y + 0.5, x + 0.5) for y, x in np.argwhere(plane == 11)]
        pixels = shapely.union_all(boxes)
        polygons = shapely.union_all([each for each in shapely.get_parts(drawn[instance]) if each.area])
        assert shapely.hausdorff_distance(polygons.boundary, pixels.boundary, densify=0.25) <= 0.5 + 1e-3


def test_plastimatch_fills_the_same_voxels(axial: MedicalImage, tmp_path: Path) -> None:
    program = shutil.which("plastimatch")
    assert program, "plastimatch is needed; install it with: apt-get install plastimatch"
    labels = _labels(axial)
    write_structure_set(labels, axial, SEGMENTS, tmp_path / "rt.dcm")
    command = [program, "convert", "--input", str(tmp_path / "rt.dcm"), "--referenced-ct", str(axial.source)]
    subprocess.run([*command, "--output-prefix", str(tmp_path / "out")], check=True, capture_output=True)
    native = axial.to_native(labels)
    for name, label in (("left lung", 11), ("breast tumour", 1)):
        read = sitk.ReadImage(str(tmp_path / "out" / f"{name}.mha"))
        found = sitk.GetArrayFromImage(read) > 0
        assert found.shape == native.shape
        assert np.array_equal(found, native == label)


def test_a_structure_set_of_plastimatch_is_read(axial: MedicalImage, tmp_path: Path) -> None:
    mask = _blobs(axial, 8)
    # plastimatch writes open lines where a structure touches the image's border
    mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
    image = sitk.GetImageFromArray(axial.to_native(mask.astype(np.uint8)))
    image.SetSpacing(axial.grid.spacing)
    image.SetOrigin(axial.grid.origin)
    (tmp_path / "masks").mkdir()
    sitk.WriteImage(image, str(tmp_path / "masks" / "tumour.mha"))
    command = [
        "plastimatch",
        "convert",
        "--input-prefix",
        str(tmp_path / "masks"),
        "--output-dicom",
        str(tmp_path / "rt"),
    ]
    subprocess.run([*command, "--referenced-ct", str(axial.source)], check=True, capture_output=True)
    (file,) = [each for each in (tmp_path / "rt").iterdir() if pydicom.dcmread(each).Modality == "RTSTRUCT"]
    masks, segments = read_structure_set(file, axial, lambda segment: 7)
    assert [each.name for _, each in segments] == ["tumour"]
    assert np.array_equal(masks[7], mask)


def test_masks_that_overlap_and_frames_of_one_file(tmp_path: Path, write_phases: Callable[..., Path]) -> None:
    pixels = np.zeros((1, 3, 40, 50), np.uint16)
    image = read_image(write_phases(pixels, tmp_path / "mr.dcm"))
    masks = {11: np.zeros((3, 40, 50), bool), 1: np.zeros((3, 40, 50), bool)}
    masks[11][:, 5:30, 5:30] = True
    masks[1][1, 20:40, 20:50] = True
    made = write_structure_set(masks, image, SEGMENTS[:2], tmp_path / "rt.dcm")
    found, _ = read_structure_set(tmp_path / "rt.dcm", image, _of_itself)
    assert all(np.array_equal(found[label], mask) for label, mask in masks.items())
    (contour,) = made.ROIContourSequence[1].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber in (1, 2, 3)


def _changed(path: Path, change: Callable[[pydicom.Dataset], object]) -> Path:
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path.with_name("changed.dcm"))
    return path.with_name("changed.dcm")


def _set(keyword: str, value: object) -> Callable[[pydicom.Dataset], object]:
    """Change the first contour."""
    return lambda data: setattr(data.ROIContourSequence[0].ContourSequence[0], keyword, value)


def _move(data: pydicom.Dataset) -> None:
    contour = data.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [value + (n % 3 == 2) for n, value in enumerate(contour.ContourData)]


def _tilt(data: pydicom.Dataset) -> None:
    contour = data.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [value + 0.05 * n * (n % 3 == 2) for n, value in enumerate(contour.ContourData)]


def _other_frame(data: pydicom.Dataset) -> None:
    for item in data.StructureSetROISequence:
        item.ReferencedFrameOfReferenceUID = "1.2.3"


def _no_structures(data: pydicom.Dataset) -> None:
    del data.StructureSetROISequence


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("ContourGeometricType", "POINT"), "POINT"),
        (_set("ContourData", ["1", "2", "3", "4"]), "4 coordinates"),
        (_move, "beside the nearest slice"),
        (_tilt, "runs across slices"),
        (_other_frame, "another frame of reference"),
        (_no_structures, "no structures"),
        (lambda data: setattr(data, "Modality", "RTPLAN"), "RTPLAN"),
    ],
)
def test_what_cannot_be_read_is_named(
    axial: MedicalImage, tmp_path: Path, change: Callable[[pydicom.Dataset], object], named: str
) -> None:
    write_structure_set(_labels(axial), axial, SEGMENTS, tmp_path / "rt.dcm")
    with pytest.raises(InputError, match=named):
        read_structure_set(_changed(tmp_path / "rt.dcm", change), axial, _of_itself)


def test_contours_of_other_programs_count_as_they_are_meant(axial: MedicalImage, tmp_path: Path) -> None:
    """A hole as a contour of its own, one contour twice, points that mark a place, and a structure left out."""
    labels = np.zeros((axial.n_planes, *axial.plane_shape), np.uint8)
    labels[1, 5:30, 5:30], labels[2, 5:9, 3:33] = 11, 1
    write_structure_set(labels, axial, SEGMENTS, tmp_path / "rt.dcm")

    def change(data: pydicom.Dataset) -> None:
        (outer,) = data.ROIContourSequence[0].ContourSequence
        points = np.array(outer.ContourData, float).reshape(-1, 3)
        hole, again, place = (copy.deepcopy(outer) for _ in range(3))
        hole.ContourData = [f"{v:.4f}" for v in (points.mean(axis=0) + (points - points.mean(axis=0)) / 5).ravel()]
        place.ContourData = [str(value) for value in outer.ContourData[:3]]
        data.ROIContourSequence[0].ContourSequence = [outer, hole, again, place]

    masks, found = read_structure_set(
        _changed(tmp_path / "rt.dcm", change), axial, lambda each: 0 if each.label == 1 else each.label or 0
    )
    holed = labels == 11
    holed[1, 15:20, 15:20] = False
    assert np.array_equal(masks[11], holed)
    assert set(masks) == {11, 13}
    assert [label for label, _ in found] == [11, 0, 13]


def test_images_without_a_place_and_undescribed_labels_are_refused_and_nothing_is_written(
    axial: MedicalImage, tmp_path: Path
) -> None:
    path = tmp_path / "rt.dcm"
    with pytest.raises(InputError, match="holds 1, of which"):
        write_structure_set(_labels(axial), axial, SEGMENTS[:1], path)
    with pytest.raises(InputError, match="at least one structure"):
        write_structure_set(_labels(axial), axial, [], path)
    (tmp_path / "film.dcm").write_bytes(xray("DX", 1, size=96).contents()[0])
    film = read_image(tmp_path / "film.dcm")
    with pytest.raises(InputError, match="no place"):
        write_structure_set(np.zeros((1, *film.plane_shape), np.uint8), film, SEGMENTS, path)
    assert not path.exists()


def test_damaged_files_are_errors(axial: MedicalImage, tmp_path: Path) -> None:
    write_structure_set(_labels(axial), axial, SEGMENTS, tmp_path / "rt.dcm")
    content = (tmp_path / "rt.dcm").read_bytes()
    (tmp_path / "text.dcm").write_bytes(b"no structure set")
    with pytest.raises(ImageError):
        read_structure_set(tmp_path / "text.dcm", axial, _of_itself)
    for share in (0.02, 0.3, 0.6, 0.9):
        (tmp_path / "cut.dcm").write_bytes(content[: int(share * len(content))])
        with pytest.raises(MedClipSamError):
            read_structure_set(tmp_path / "cut.dcm", axial, _of_itself)


def test_another_series_of_the_same_patient_is_refused(axial: MedicalImage, tmp_path: Path) -> None:
    write_structure_set(_labels(axial), axial, SEGMENTS, tmp_path / "rt.dcm")
    other = _series(tmp_path / "other", ORIENTATIONS["sagittal"])
    frame = pydicom.dcmread(next(axial.source.iterdir())).FrameOfReferenceUID
    for file in other.iterdir():
        data = pydicom.dcmread(file)
        data.FrameOfReferenceUID = frame
        data.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["other"])
        data.save_as(file)
    with pytest.raises(InputError, match="runs across slices"):
        read_structure_set(tmp_path / "rt.dcm", read_image(other), _of_itself)
