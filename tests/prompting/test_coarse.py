import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from medclipsam.base.errors import MedClipSamError, OptionError
from medclipsam.prompting import coarse_mask, kmeans_split, largest_components


def within_variance(values: np.ndarray, threshold: float) -> float:
    parts = [values[values > threshold], values[values <= threshold]]
    return sum(((part - part.mean()) ** 2).sum() for part in parts if part.size)


@pytest.mark.parametrize("seed", range(20))
def test_kmeans_is_the_best_of_all_thresholds(seed: int) -> None:
    """Against trying every threshold; small integers give many ties."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 12, 60).astype(float) if seed % 2 else rng.gamma(1.0, size=80)
    threshold = kmeans_split(values)
    assert threshold is not None
    every = [within_variance(values, t) for t in np.unique(values)[:-1]]
    assert within_variance(values, threshold) == pytest.approx(min(every), rel=1e-9)


def test_kmeans_agrees_with_otsu_on_integers() -> None:
    image = np.random.default_rng(0).normal([60, 160], 12, (4000, 2)).clip(0, 255).astype(np.uint8)
    ours = image > kmeans_split(image)
    np.testing.assert_array_equal(ours, image > threshold_otsu(image))


def test_kmeans_keeps_its_precision_far_from_zero() -> None:
    values = np.r_[np.zeros(50), np.ones(30)] * 1e-3 + 1e6
    threshold = kmeans_split(values)
    assert threshold is not None
    assert ((values > threshold) == np.r_[np.zeros(50, bool), np.ones(30, bool)]).all()


@pytest.mark.parametrize("method", ["kmeans", "threshold", "crf"])
def test_a_constant_map_gives_an_empty_mask(method: str) -> None:
    plane = np.zeros((6, 6, 3), np.uint8)
    assert not coarse_mask(np.full((6, 6), 0.7), method, plane=plane).any()
    assert kmeans_split(np.full(9, 0.7)) is None
    assert kmeans_split(np.zeros(0)) is None


def test_what_is_not_valid_takes_no_part() -> None:
    saliency = np.zeros((10, 10))
    saliency[2:4, 2:4] = 0.4
    saliency[:, 8:] = 1.0
    valid = np.ones((10, 10), bool)
    valid[:, 8:] = False
    mask = coarse_mask(saliency, "kmeans", valid=valid)
    expected = np.zeros((10, 10), bool)
    expected[2:4, 2:4] = True
    np.testing.assert_array_equal(mask, expected)


def test_threshold_is_taken_as_given() -> None:
    saliency = np.linspace(0, 1, 25).reshape(5, 5)
    np.testing.assert_array_equal(coarse_mask(saliency, "threshold", threshold=0.62), saliency > 0.62)


def test_crf_draws_the_mask_to_the_edge_of_the_picture() -> None:
    """A blurred, shifted map of a bright disc comes nearer to the disc."""
    rows, cols = np.mgrid[:96, :96]
    disc = (rows - 48) ** 2 + (cols - 48) ** 2 < 22**2
    plane = np.repeat(np.where(disc, 220, 20).astype(np.uint8)[..., None], 3, axis=2)
    saliency = ndimage.gaussian_filter(np.roll(disc, 4, axis=1).astype(float), 4) * 0.9

    def overlap(mask: np.ndarray) -> float:
        return 2 * (mask & disc).sum() / (mask.sum() + disc.sum())

    assert overlap(coarse_mask(saliency, "crf", plane=plane)) > overlap(saliency > 0.5)


def test_crf_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(MedClipSamError, match=r"medclipsam\[crf\]"):
        coarse_mask(np.eye(4), "crf", plane=np.zeros((4, 4, 3), np.uint8))


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match="kmeans, threshold, crf"):
        coarse_mask(np.eye(4), "otsu")


def test_the_largest_components_are_kept() -> None:
    mask = np.zeros((12, 12), bool)
    mask[0:4, 0:4] = True
    mask[4, 4] = True  # touches the first by its corner
    mask[8:10, 0:3] = True
    mask[11, 11] = True
    two = largest_components(mask, 2)
    assert two.sum() == 17 + 6
    assert not two[11, 11]
    assert largest_components(mask, 1).sum() == 17
    assert largest_components(mask, 5, min_size=2).sum() == 17 + 6
    assert not largest_components(np.zeros((3, 3), bool), 2).any()


def test_components_of_a_volume_are_counted_in_3d() -> None:
    mask = np.zeros((4, 6, 6), bool)
    mask[:, 2, 2] = True
    mask[1, 4:6, 4:6] = True
    np.testing.assert_array_equal(np.argwhere(largest_components(mask, 1))[:, 0], [0, 1, 2, 3])
    assert largest_components(mask, 2).sum() == 8
