"""Label maps with names: as clients number, name and layer them, and what is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from medclipsam.base.errors import InputError
from medclipsam.imaging import MedicalImage, read_image, read_mask, write_mask
from medclipsam.imaging.label_map import LabelMap, ValueNames, is_same_label, read_kept_label, read_label_map
from medclipsam.imaging.masks import flatten, mask_of

TABLE = {"heart": 3, "left lung": 7}
SPACING = (1.5, 2.0, 4.0)
ORIGIN = (10.0, -20.0, 30.0)
NOTHING = ValueNames()


@pytest.fixture
def image(tmp_path: Path) -> MedicalImage:
    volume = SimpleITK.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    volume.SetSpacing(SPACING)
    volume.SetOrigin(ORIGIN)
    SimpleITK.WriteImage(volume, str(tmp_path / "image.nii.gz"))
    return read_image(tmp_path / "image.nii.gz")


def write(
    path: Path, layers: np.ndarray, segments: list[tuple[str, int, int]], origin: tuple[float, ...] = ORIGIN
) -> Path:
    """Write uint8 [layer, k, j, i] as 3D Slicer does: one layer as a volume, more of them along a first axis."""
    header: dict[str, Any] = {"space": "left-posterior-superior", "space origin": list(origin)}
    directions = np.diag(SPACING)
    voxels = layers.transpose(0, 3, 2, 1)
    if len(layers) == 1:
        voxels = voxels[0]
        header |= {"kinds": ["domain"] * 3, "space directions": directions}
    else:
        header |= {"kinds": ["list"] + ["domain"] * 3}
        header["space directions"] = np.vstack([np.full(3, np.nan), directions])
    for number, (name, value, layer) in enumerate(segments):
        header |= {
            f"Segment{number}_ID": f"Segment_{number}",
            f"Segment{number}_Name": name,
            f"Segment{number}_LabelValue": str(value),
            f"Segment{number}_Layer": str(layer),
        }
    nrrd.write(str(path), np.ascontiguousarray(voxels), header)
    return path


def listed(*names: tuple[str, Any]) -> ValueNames:
    return ValueNames.from_monailabel({"label_info": [{"name": name, "idx": value} for name, value in names]})


# --- what clients call values ---


@pytest.mark.parametrize(
    ("info", "pairs"),
    [
        ({}, []),
        ({"label_info": [{"name": "a"}, {"name": "b", "idx": 9}, {"idx": 3}, 4, {"name": "background", "idx": 0}]},
         [("a", 1), ("b", 9)]),
        ({"params": {"label_names": {"a": 3, "b": True, "c": "4"}}}, [("a", 3)]),
        ({"label_names": {"a": 2.0004}, "params": {"label_names": {"b": 5}}}, [("a", 2), ("b", 5)]),
        ({"label_names": [], "label_info": {}, "params": 3}, []),
        ({"label_info": "x"}, []),
    ],
)  # fmt: skip
def test_names_are_read_as_far_as_they_make_sense(info: dict[str, Any], pairs: list[tuple[str, int]]) -> None:
    assert ValueNames.from_monailabel(info).pairs == pairs


@pytest.mark.parametrize("number", [-1, 256, 1.5, True, "7", None, [3], float("nan")])
@pytest.mark.parametrize("key", ["label_info", "label_names"])
def test_numbers_that_are_none_are_told(image: MedicalImage, key: str, number: Any) -> None:
    said = {"label_info": [{"name": "cyst", "idx": number}]} if key == "label_info" else {key: {"cyst": number}}
    names = ValueNames.from_monailabel(said)
    assert names.pairs == []
    with pytest.raises(InputError, match="0 to 255"):
        names.check()


def test_of_several_names_of_a_value_the_list_of_the_file_counts() -> None:
    info = {
        "label_info": [{"name": "cyst", "idx": 5}, {"name": "stone", "idx": 5}, {"name": "heart", "idx": 3}],
        "label_names": {"a bright spot": 5, "heart": 9, "lung": 7},
    }
    assert ValueNames.from_monailabel(info).by_value() == {5: "cyst", 3: "heart", 7: "lung"}


# --- what is a label map ---


def test_a_label_map_says_what_it_holds(image: MedicalImage) -> None:
    values = np.zeros((image.n_planes, *image.plane_shape), np.uint8)
    values[1, 2, 3], values[0, 0, 0] = 7, 201
    label = LabelMap(values, image, {"left lung": 7, "heart": 3})
    assert label.present == {7, 201}
    assert label.unnamed() == [201]
    assert label.unnamed([201]) == []
    assert ValueNames.from_monailabel(label.to_monailabel()).by_value() == {7: "left lung", 3: "heart"}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_a_label_map_is_read_as_it_was_written(image: MedicalImage, tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).choice([0, 3, 7, 90], (image.n_planes, *image.plane_shape)).astype(np.uint8)
    label = LabelMap(values, image, {"heart": 3, "left lung": 7, "cyst": 90})
    path = write_mask(values, image, tmp_path / f"label{suffix}", dtype="int16")
    again, as_sent = read_label_map(path, image, ValueNames.from_monailabel(label.to_monailabel()), TABLE)
    assert as_sent
    assert np.array_equal(again.values, values)
    assert again.names == label.names
    label.check_copy(path)
    with pytest.raises(InputError):
        LabelMap(values[::-1].copy(), image).check_copy(path)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.zeros((4, 5, 7), np.uint8), {}),
        (np.zeros((4, 5, 6), np.int16), {}),
        (np.zeros((4, 5, 6), bool), {}),
        (np.zeros((4, 5, 6), np.uint8), {"heart": 0}),
        (np.zeros((4, 5, 6), np.uint8), {"heart": 256}),
    ],
)
def test_what_is_no_label_map_of_the_image_is_refused(
    tmp_path: Path, values: np.ndarray, names: dict[str, int]
) -> None:
    with pytest.raises(InputError):
        LabelMap(values, MedicalImage.from_array(np.zeros((4, 5, 6), np.uint8)), names)


# --- segments that overlap ---


def blobs(shape: tuple[int, ...], n: int, seed: int) -> dict[str, np.ndarray]:
    """Boxes at random places, of which most overlap, and an empty one."""
    rng = np.random.default_rng(seed)
    masks = {}
    for number in range(n):
        box = tuple(slice(*sorted(rng.choice(length + 1, 2, replace=False))) for length in shape)
        masks[f"segment {number}"] = np.zeros(shape, bool)
        masks[f"segment {number}"][box] = True
    return masks | {"empty": np.zeros(shape, bool)}


@pytest.mark.parametrize("seed", range(8))
def test_segments_that_overlap_stay_whole(image: MedicalImage, seed: int) -> None:
    shape = (image.n_planes, *image.plane_shape)
    masks = blobs(shape, 6, seed)
    numbers = {name: 10 + 3 * place for place, name in enumerate(masks)}
    label = LabelMap.from_masks(masks, image, numbers)
    assert label.names == numbers
    assert label.masks().keys() == masks.keys()
    for name, mask in masks.items():
        assert np.array_equal(label.mask(name), mask)
    size = {numbers[name]: mask.sum() for name, mask in masks.items()}
    depth = np.stack(list(masks.values())).sum(axis=0)
    assert len(label.beneath) == max(depth.max() - 1, 0)
    assert label.overlaps == bool((depth > 1).any())
    assert label.overlap_voxels == np.count_nonzero(depth > 1)
    assert label.present == {numbers[name] for name, mask in masks.items() if mask.any()}
    # on top is the smallest of those that have the voxel
    for voxel in np.ndindex(shape):
        here = [numbers[name] for name, mask in masks.items() if mask[voxel]]
        on_top = int(label.values[voxel])
        assert (on_top in here and size[on_top] == min(size[each] for each in here)) if here else on_top == 0


@pytest.mark.parametrize("seed", range(6))
def test_masks_of_one_label_are_one(seed: int) -> None:
    """Whatever their order, and where other labels come between them."""
    rng = np.random.default_rng(seed)
    masks = [(int(rng.integers(1, 5)), rng.random((3, 4, 5)) < 0.4) for _ in range(9)]
    values, beneath = flatten(iter(masks), (3, 4, 5))
    whole = {label: np.any([mask for of, mask in masks if of == label], axis=0) for label, _ in masks}
    for label, mask in whole.items():
        assert np.array_equal(mask_of(label, values, beneath), mask)
    # each voxel has its labels once, the smallest first, of equal ones the later
    order = [label for label, _ in masks]
    key = {label: (mask.sum(), -order.index(label)) for label, mask in whole.items()}
    for voxel in np.ndindex(3, 4, 5):
        here = sorted((label for label, mask in whole.items() if mask[voxel]), key=lambda label: key[label])
        found = [int(layer[voxel]) for layer in (values, *beneath)]
        assert found == here + [0] * (len(found) - len(here))


def test_segments_that_do_not_overlap_have_no_layers(image: MedicalImage) -> None:
    values = np.random.default_rng(0).choice([0, 3, 7], (image.n_planes, *image.plane_shape)).astype(np.uint8)
    label = LabelMap.from_masks({"a": values == 3, "b": values == 7}, image, {"a": 3, "b": 7, "c": 9}, {"c": 9})
    assert np.array_equal(label.values, values)
    assert label.beneath.shape == (0, *values.shape)
    assert not label.overlaps
    assert not label.mask("c").any()
    assert label.asked == {"c": 9}


def test_label_maps_are_the_same_by_their_segments(image: MedicalImage) -> None:
    shape = (image.n_planes, *image.plane_shape)
    masks = blobs(shape, 3, 1)
    masks["segment 0"][:], masks["segment 1"][0] = True, True
    numbers = dict(zip(masks, (5, 2, 9, 1), strict=True))
    one = LabelMap.from_masks(masks, image, numbers)
    assert is_same_label(one, LabelMap.from_masks(masks, image, dict(zip(masks, (1, 2, 3, 4), strict=True))))
    assert not is_same_label(one, LabelMap(one.values, image, numbers))
    masks["segment 0"] = masks["segment 0"] & ~masks["segment 1"]
    assert not is_same_label(one, LabelMap.from_masks(masks, image, numbers))


def test_masks_that_cannot_be_one_label_map_are_refused(image: MedicalImage) -> None:
    shape = (image.n_planes, *image.plane_shape)
    for masks in ({"a": np.zeros((4, 5, 7), bool)}, {"a": np.zeros(shape, np.uint8)}, {"b": np.zeros(shape, bool)}):
        with pytest.raises(InputError, match=r"'[ab]'"):
            LabelMap.from_masks(masks, image, {"a": 1})
    with pytest.raises(InputError, match="layer"):
        LabelMap(np.zeros(shape, np.uint8), image, beneath=np.zeros((1, 4, 5, 7), np.uint8))
    with pytest.raises(InputError, match="'heart'"):
        LabelMap(np.zeros(shape, np.uint8), image, {"a": 1}).mask("heart")


# --- files of segments that overlap ---


def overlapping(image: MedicalImage, seed: int = 3) -> LabelMap:
    masks = blobs((image.n_planes, *image.plane_shape), 5, seed)
    masks["segment 0"][:] = True
    names = ("lungs", "left lung", "Läsion 1", "a: b := c", "cyst", "nothing")
    return LabelMap.from_masks(
        dict(zip(names, masks.values(), strict=True)), image, dict(zip(names, (7, 3, 200, 1, 9, 12), strict=True))
    )


@pytest.mark.parametrize("compress", [True, False])
def test_segments_are_written_as_3d_slicer_does(image: MedicalImage, tmp_path: Path, compress: bool) -> None:
    """Read by pynrrd and by ITK."""
    label = overlapping(image)
    path = label.write(tmp_path / "label.seg.nrrd", compress=compress)
    voxels, header = nrrd.read(str(path))
    assert header["kinds"] == ["list", "domain", "domain", "domain"]
    by_itk = SimpleITK.ReadImage(str(path))
    assert by_itk.GetSize() == (6, 5, 4)
    assert np.allclose(by_itk.GetSpacing(), SPACING)
    assert np.allclose(by_itk.GetOrigin(), image.grid.origin)
    assert np.allclose(by_itk.GetDirection(), image.grid.direction.ravel())
    arrays = SimpleITK.GetArrayFromImage(by_itk)
    assert by_itk.GetNumberOfComponentsPerPixel() == len(voxels) > 1
    for number, (name, value) in enumerate(label.names.items()):
        assert by_itk.GetMetaData(f"Segment{number}_Name") == name
        assert int(header[f"Segment{number}_LabelValue"]) == value
        layer = int(header[f"Segment{number}_Layer"])
        mask = image.to_native(label.mask(name))
        assert np.array_equal(np.equal(voxels[layer].T, value), mask)
        assert np.array_equal(arrays[..., layer] == value, mask)
        low_i, high_i, low_j, high_j, low_k, high_k = map(int, header[f"Segment{number}_Extent"].split())
        assert mask[low_k : high_k + 1, low_j : high_j + 1, low_i : high_i + 1].sum() == mask.sum()


def test_segments_in_files_are_read_back(image: MedicalImage, tmp_path: Path) -> None:
    label = overlapping(image)
    path = label.write(tmp_path / "label.seg.nrrd")
    for again in (read_kept_label(path, image, {}), read_kept_label(path, image, label.to_monailabel())):
        assert again.names == label.names
        assert all(np.array_equal(again.mask(name), mask) for name, mask in label.masks().items())
        assert np.array_equal(again.values, label.values)
    # one value for each voxel: the smaller one
    assert np.array_equal(read_mask(path, image), label.values)
    other = overlapping(image, seed=4)
    with pytest.raises(InputError, match="read back"):
        other.check_copy(path)


def test_segments_of_a_picture_are_read_back(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "film.png")
    film = read_image(tmp_path / "film.png")
    label = overlapping(film)
    path = label.write(tmp_path / "label.seg.nrrd")
    again = read_kept_label(path, film, {})
    assert is_same_label(again, label)
    assert SimpleITK.ReadImage(str(path)).GetSize() == (7, 5, 1)


def test_segments_apart_are_one_layer(image: MedicalImage, tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice([0, 3, 7], (image.n_planes, *image.plane_shape)).astype(np.uint8)
    label = LabelMap(values, image, {"heart": 3, "lung": 7, "cyst": 9})
    path = label.write(tmp_path / "label.seg.nrrd")
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), image.to_native(values))
    assert read_kept_label(path, image, {}).names == label.names


def test_flat_files_refuse_segments_that_overlap(image: MedicalImage, tmp_path: Path) -> None:
    label = overlapping(image)
    for suffix in (".nii.gz", ".nrrd"):
        path = tmp_path / f"label{suffix}"
        with pytest.raises(InputError, match=r"'.+' and '.+' overlap in [0-9]+ voxels"):
            label.write(path)
        assert not path.exists()
        label.write(path, overlaps="smaller-on-top")
        assert np.array_equal(read_mask(path, image), label.values)


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash", "tab\t", " ", "Segment0_Name:=x", "é" * 200])
def test_segments_of_any_name_are_kept(image: MedicalImage, tmp_path: Path, name: str) -> None:
    whole = np.ones((image.n_planes, *image.plane_shape), bool)
    label = LabelMap.from_masks({name: whole, "b": whole}, image, {name: 1, "b": 2})
    path = label.write(tmp_path / "label.seg.nrrd")
    assert {value: each.strip() for each, value in read_kept_label(path, image, {}).names.items()} == {
        1: name.strip() or "label 1",
        2: "b",
    }
    if name.strip():
        assert is_same_label(read_kept_label(path, image, label.to_monailabel()), label)


def test_segments_on_axes_that_are_not_at_right_angles_are_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.5
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine), tmp_path / "image.nii")
    with pytest.raises(InputError, match="right angles"):
        overlapping(read_image(tmp_path / "image.nii")).write(tmp_path / "label.seg.nrrd")


# --- what clients send ---


def test_layers_become_one_label_map_by_names(image: MedicalImage, tmp_path: Path) -> None:
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 1, 2, 3] = 1
    layers[0, 2, 0, 0] = 2
    layers[1, 3, 4, 5] = 1
    segments = [("left lung", 1, 0), ("cyst", 2, 0), ("heart", 1, 1)]
    file = write(tmp_path / "label.seg.nrrd", layers, segments)
    label, as_sent = read_label_map(file, image, listed(("cyst", 9)), TABLE)
    expected = np.zeros((4, 5, 6))
    expected[1, 2, 3], expected[2, 0, 0], expected[3, 4, 5] = 7, 2, 3
    assert not as_sent
    assert np.array_equal(label.values, image.from_native(expected.astype(np.uint8)))
    assert list(label.names.items()) == [("left lung", 7), ("cyst", 2), ("heart", 3)]


def test_layers_that_overlap_are_read_whole(image: MedicalImage, tmp_path: Path) -> None:
    layers = np.zeros((2, 4, 5, 6), np.uint8)
    layers[0, 1, 2, :] = layers[0, 2] = 1
    layers[1, 1, 2, :4] = 1
    file = write(tmp_path / "label.seg.nrrd", layers, [("heart", 1, 0), ("cyst", 1, 1)])
    for table, names in ((TABLE, {"heart": 3, "cyst": 1}), (None, {"heart": 1, "cyst": 2})):
        label, as_sent = read_label_map(file, image, NOTHING, table)
        assert not as_sent
        assert label.names == names
        assert np.array_equal(label.mask("heart"), image.from_native(layers[0] == 1))
        assert np.array_equal(label.mask("cyst"), image.from_native(layers[1] == 1))
        assert np.array_equal(label.values == names["cyst"], label.mask("cyst"))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_segments_of_one_name_are_one(image: MedicalImage, tmp_path: Path, n_layers: int) -> None:
    layers = np.zeros((n_layers, 4, 5, 6), np.uint8)
    layers[0, 1, 2, :4] = 1
    layers[-1, 1, 2, 3:] = 2
    segments = [("heart", 1, 0), ("heart", 2, n_layers - 1)]
    label, _ = read_label_map(write(tmp_path / "label.seg.nrrd", layers, segments), image, NOTHING, TABLE)
    assert label.names == {"heart": 3}
    assert label.present == {3}
    assert np.count_nonzero(label.values) == 6


def test_numbers_of_names_are_those_of_the_table(image: MedicalImage, tmp_path: Path) -> None:
    """As 3D Slicer numbers its segments: from 1 in the order of its list."""
    layers = np.zeros((1, 4, 5, 6), np.uint8)
    layers[0, 0, 0] = [0, 1, 2, 3, 3, 0]
    file = write(tmp_path / "label.nrrd", layers, [])
    said = listed(("heart", 1), ("background", 2), ("cyst", 3))
    label, as_sent = read_label_map(file, image, said, TABLE)
    expected = np.zeros((4, 5, 6), np.uint8)
    # 3 is the heart's, so that the cyst gets a free one
    expected[0, 0] = [0, 3, 0, 4, 4, 0]
    assert not as_sent
    assert np.array_equal(label.values, image.from_native(expected))
    assert label.names == {"heart": 3, "cyst": 4}


def test_without_a_table_values_stay_as_they_are(image: MedicalImage, tmp_path: Path) -> None:
    layers = np.zeros((1, 4, 5, 6), np.uint8)
    layers[0, 0, 0, :3] = [1, 5, 9]
    label, as_sent = read_label_map(write(tmp_path / "label.nrrd", layers, []), image, listed(("heart", 1), ("x", 5)))
    assert as_sent
    assert label.names == {"heart": 1, "x": 5}
    assert label.unnamed() == [9]


def test_a_value_of_two_names_is_refused(image: MedicalImage, tmp_path: Path) -> None:
    file = write(tmp_path / "label.nrrd", np.zeros((1, 4, 5, 6), np.uint8), [])
    with pytest.raises(InputError, match="'cyst' and 'stone'"):
        read_label_map(file, image, listed(("cyst", 9), ("stone", 9)), TABLE)


def test_what_was_asked_for_is_called_by_its_own_words(image: MedicalImage, tmp_path: Path) -> None:
    file = write(tmp_path / "label.nrrd", np.full((1, 4, 5, 6), 201, np.uint8), [])
    info = {"label_info": [{"name": "heart", "idx": 3}], "label_names": {"a bright spot": 201, "Background": 0}}
    label, _ = read_label_map(file, image, ValueNames.from_monailabel(info), TABLE)
    assert label.names == {"heart": 3, "a bright spot": 201}
    assert label.asked == {"a bright spot": 201}


def test_a_label_without_a_place_is_put_on_its_image(tmp_path: Path) -> None:
    """As OHIF sends that of a radiograph."""
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "film.png")
    film = read_image(tmp_path / "film.png")
    values = np.arange(28, dtype=np.uint8).reshape(1, 4, 7)
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 7 4 1\nencoding: raw\n\n"
    (tmp_path / "label.nrrd").write_bytes(header + values.tobytes())
    label, as_sent = read_label_map(tmp_path / "label.nrrd", film, NOTHING)
    assert not as_sent
    assert np.array_equal(label.values, values)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_label_of_another_place_is_refused(image: MedicalImage, tmp_path: Path, n_layers: int) -> None:
    segments = [("heart", 1, 0), ("cyst", 2, 0)]
    layers = np.zeros((n_layers, 4, 5, 6), np.uint8)
    file = write(tmp_path / "label.seg.nrrd", layers, segments, origin=(10.0, -20.0, 38.0))
    with pytest.raises(InputError, match="does not lie"):
        read_label_map(file, image, NOTHING, TABLE)
    fewer = write(tmp_path / "fewer.seg.nrrd", layers[:, :3], segments)
    with pytest.raises(InputError, match="3 voxels"):
        read_label_map(fewer, image, NOTHING, TABLE)


def test_more_names_than_numbers_are_refused(image: MedicalImage, tmp_path: Path) -> None:
    file = write(tmp_path / "label.nrrd", np.zeros((1, 4, 5, 6), np.uint8), [])
    said = listed(*((f"cyst {number}", number) for number in range(1, 256)))
    with pytest.raises(InputError, match="no number left"):
        read_label_map(file, image, said, TABLE)


def test_a_damaged_file_is_one_sentence(image: MedicalImage, tmp_path: Path) -> None:
    file = write(tmp_path / "label.seg.nrrd", np.zeros((2, 4, 5, 6), np.uint8), [("heart", 1, 5), ("cyst", 1, 0)])
    with pytest.raises(InputError, match="layer 5"):
        read_label_map(file, image, NOTHING, TABLE)
    for name in ("byte.nrrd", "byte.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError):
            read_label_map(tmp_path / name, image, NOTHING, TABLE)
    colours = np.random.default_rng(0).integers(0, 9, (4, 5, 6, 3)).astype(np.uint8)
    nib.save(
        nib.Nifti1Image(colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0], np.eye(4)), tmp_path / "c.nii"
    )
    with pytest.raises(InputError):
        read_label_map(tmp_path / "c.nii", image, NOTHING, TABLE)
