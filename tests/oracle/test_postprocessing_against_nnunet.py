"""Keeping the largest component against nnunetv2's own function."""

import warnings

import numpy as np
import pytest

from autoseg.inference.postprocessing import keep_largest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("nnunetv2.postprocessing.remove_connected_components")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("values", [(1,), (2,), (1, 2), (1, 2, 3)])
def test_the_same_voxels_stay(seed, values):
    rng = np.random.default_rng(seed)
    shape = (1, 20, 20) if seed % 4 == 0 else (6, 9, 10)
    mask = rng.choice(4, shape, p=[0.76, 0.08, 0.08, 0.08]).astype(np.uint8)
    expected = peer.remove_all_but_largest_component_from_segmentation(mask, values if len(values) > 1 else values[0])
    np.testing.assert_array_equal(keep_largest(mask, values), expected)
