"""Effort and agreement against shapes that can be reckoned by hand, and a plain loop."""

import numpy as np
import pytest

from medclipsam.active.effort import added_path_length, agreement, effort, effort_of_masks
from medclipsam.base.errors import InputError


def square(size: int, top: int, left: int, edge: int) -> np.ndarray:
    mask = np.zeros((1, size, size), bool)
    mask[0, top : top + edge, left : left + edge] = True
    return mask


def slow_contour(mask: np.ndarray) -> set[tuple[int, int]]:
    found = set()
    rows, columns = mask.shape
    for y in range(rows):
        for x in range(columns):
            if not mask[y, x]:
                continue
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                inside = 0 <= y + dy < rows and 0 <= x + dx < columns
                if not inside or not mask[y + dy, x + dx]:
                    found.add((y, x))
    return found


def test_a_mask_that_was_drawn_anew_costs_its_whole_contour():
    assert added_path_length(np.zeros((1, 9, 9), bool), square(9, 2, 2, 5)) == 16


def test_a_mask_left_as_it_was_or_removed_costs_no_contour():
    mask = square(9, 2, 2, 5)
    assert added_path_length(mask, mask) == 0
    assert added_path_length(mask, np.zeros_like(mask)) == 0


def test_moving_a_square_by_one_column_costs_the_pixels_that_were_no_contour():
    # 16 pixels of contour; those of rows 2 and 6 overlap in columns 3 to 6
    assert added_path_length(square(9, 2, 2, 5), square(9, 2, 3, 5)) == 16 - 8


def test_contours_equal_a_plain_loop_in_each_plane():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 3, 12, 11)) > 0.4
    expected = sum(len(slow_contour(new) - slow_contour(old)) for old, new in zip(before, after, strict=True))
    assert added_path_length(before, after) == expected


def test_effort_averages_the_structures_of_either_map():
    before = np.zeros((1, 10, 10), np.uint8)
    before[0, 1:3, 1:3] = 1
    after = before.copy()
    after[0, 5:7, 5:7] = 2
    change = effort(before, after)
    assert change.dice == pytest.approx(0.5)
    assert (change.path_length, change.changed) == (4, 4)


def test_two_empty_maps_agree():
    empty = np.zeros((2, 4, 4), np.uint8)
    assert effort(empty, empty).dice == 1.0
    assert agreement({"b": empty, "a": empty}) == {("a", "b"): 1.0}


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"\(1, 3, 3\).*\(1, 4, 4\)"):
        added_path_length(np.zeros((1, 3, 3), bool), np.zeros((1, 4, 4), bool))


def test_effort_of_structures_that_overlap_is_that_of_each():
    outer, inner, moved = square(9, 1, 1, 6), square(9, 2, 2, 3), square(9, 2, 3, 3)
    change = effort_of_masks([(outer, outer), (inner, moved), (np.zeros_like(outer), np.zeros_like(outer))])
    assert change.dice == pytest.approx((1 + 2 * 6 / 18) / 2)
    assert change.path_length == added_path_length(inner, moved)
    assert change.changed == np.count_nonzero(inner != moved)
    assert effort_of_masks([]) == effort(np.zeros((1, 3, 3), np.uint8), np.zeros((1, 3, 3), np.uint8))
