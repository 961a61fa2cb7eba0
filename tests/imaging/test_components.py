"""Components of a volume against SimpleITK's."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medclipsam.imaging.components import VolumeComponents


@pytest.mark.parametrize("seed", range(4))
def test_components_of_a_volume_are_those_of_simpleitk(seed: int) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((9, 30, 26)), 1.2) > 0.12
    mask[4] = False
    found = VolumeComponents(mask)
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True))
    sizes = np.bincount(labels.ravel())[1:]
    assert sorted(found.sizes) == sorted(sizes)
    largest = int(found.sizes.argmax())
    kept = mask.copy()
    for plane, part in found.only({largest}):
        kept[plane] = part
    np.testing.assert_array_equal(kept, labels == 1 + int(sizes.argmax()))
