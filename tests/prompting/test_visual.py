import numpy as np
import pytest
from skimage.measure import label, regionprops

from medclipsam.prompting import boxes_of, sample_points, visual_prompt


def two_blobs() -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[5:12, 3:20] = True
    mask[20:38, 30:59] = True
    return mask


def test_boxes_are_those_of_skimage_with_inclusive_ends() -> None:
    mask = two_blobs()
    expected = [
        [r.bbox[1], r.bbox[0], r.bbox[3] - 1, r.bbox[2] - 1]
        for r in sorted(regionprops(label(mask, connectivity=2)), key=lambda r: -r.area)
    ]
    np.testing.assert_array_equal(boxes_of(mask, per_component=True), expected)
    np.testing.assert_array_equal(boxes_of(mask), [[3, 5, 58, 37]])


def test_a_box_of_one_pixel_is_that_pixel() -> None:
    mask = np.zeros((4, 4), bool)
    mask[2, 1] = True
    np.testing.assert_array_equal(boxes_of(mask), [[1, 2, 1, 2]])


def test_points_lie_in_the_mask_without_repetition() -> None:
    mask = two_blobs()
    points = sample_points(mask, 100, np.random.default_rng(0))
    assert len({tuple(point) for point in points}) == 100
    assert mask[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    assert len(sample_points(mask[:6, :5], 100, np.random.default_rng(0))) == mask[:6, :5].sum()


@pytest.mark.parametrize("kind", ["boxes", "points", "both", "mask"])
def test_each_kind_holds_what_it_says(kind: str) -> None:
    mask = two_blobs()
    valid = np.zeros_like(mask)
    valid[:, :30] = True
    prompt = visual_prompt(mask, kind, num_points=4, negative_points=3, seed=5, valid=valid)
    assert prompt is not None
    assert (prompt.boxes is not None) == (kind != "points")
    assert (prompt.mask is mask) == (kind == "mask")
    if kind in ("boxes", "mask"):
        assert prompt.points is None
        assert prompt.to_dict().get("mask_pixels") == (mask.sum() if kind == "mask" else None)
        return
    assert prompt.point_labels.tolist() == [1, 1, 1, 1, 0, 0, 0]
    cols, rows = prompt.points.astype(int).T
    assert mask[rows, cols].tolist() == [True] * 4 + [False] * 3
    assert valid[rows[4:], cols[4:]].all()
    again = visual_prompt(mask, kind, num_points=4, negative_points=3, seed=5, valid=valid)
    np.testing.assert_array_equal(prompt.points, again.points)
    other = visual_prompt(mask, kind, num_points=4, negative_points=3, seed=6, valid=valid)
    assert not np.array_equal(prompt.points, other.points)


def test_an_empty_mask_gives_no_prompt() -> None:
    assert visual_prompt(np.zeros((5, 5), bool), "both") is None
    assert boxes_of(np.zeros((5, 5), bool)).shape == (0, 4)


def test_a_prompt_becomes_json() -> None:
    import json

    prompt = visual_prompt(two_blobs(), "both", box_per_component=True)
    assert prompt is not None
    read = json.loads(json.dumps(prompt.to_dict()))
    assert len(read["boxes"]) == 2
    assert set(read["point_labels"]) == {1}
