import numpy as np
import pytest
import torch

from medclipsam.base.errors import InputError
from medclipsam.encoders import fit_plane


def blob(height: int, width: int, row: int, col: int) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    disc = (rows - row) ** 2 + (cols - col) ** 2 < 12**2
    return np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (224, 224), (97, 211), (600, 599)])
@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_what_goes_in_comes_back_in_its_place(shape: tuple[int, int], fit: str) -> None:
    height, width = shape
    row, col = height // 3, 2 * width // 3
    tensor, geometry = fit_plane(blob(height, width, row, col), 224, fit)
    assert tensor.shape == (3, 224, 224)
    back = geometry.back(tensor[0])
    assert back.shape == shape
    rows, cols = np.nonzero(back.numpy() > 0.5)
    assert abs(rows.mean() - row) < 1
    assert abs(cols.mean() - col) < 1


def test_crop_shows_the_central_square_and_says_so() -> None:
    tensor, geometry = fit_plane(blob(100, 200, 50, 100), 50, "crop")
    assert geometry.source == (0, 100, 50, 150)
    assert tensor[0, 25, 25] == 1
    back = geometry.back(torch.ones(50, 50))
    np.testing.assert_array_equal(back.numpy() > 0, geometry.covered())
    assert geometry.covered()[:, 50:150].all()
    assert not geometry.covered()[:, :50].any()


def test_letterbox_pads_evenly_and_marks_the_padding() -> None:
    tensor, geometry = fit_plane(np.full((50, 100, 3), 255, np.uint8), 64, "letterbox")
    valid = geometry.valid()
    assert geometry.target == (16, 48, 0, 64)
    assert valid.sum() == 32 * 64
    assert (tensor[:, ~valid] == 0).all()
    assert (tensor[:, valid] > 0.999).all()
    tokens = geometry.valid(4)
    assert tokens.tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


@pytest.mark.parametrize(
    "plane", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_what_is_no_plane_is_refused(plane: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
        fit_plane(plane, 224)


def test_an_unknown_fit_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="letterbox, squash, crop"):
        fit_plane(np.zeros((5, 5, 3), np.uint8), 224, "stretch")
