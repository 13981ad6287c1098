"""MONAI as the oracle of Dice, NSD and HD95 on random masks with anisotropic spacing, in 3-D and in 2-D."""

import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoseg.evaluation.metrics import dice, hd95, nsd, surface_distances

CASES = [
    ((12, 17, 15), (3.0, 0.8, 1.1), 1.5),
    ((9, 10, 30), (1.0, 1.0, 1.0), 2.0),
    ((20, 8, 8), (0.5, 2.5, 7.0), 1.0),
    ((1, 30, 25), (1.0, 1.0, 1.0), 2.0),
    ((1, 30, 25), (8.0, 0.6, 1.7), 1.5),
]


def blobs(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> np.ndarray:
    """A smooth random mask; it may touch the border and have several pieces and holes."""
    field = gaussian_filter(rng.normal(size=shape), sigma)
    return field > np.quantile(field, rng.uniform(0.3, 0.95))


def monai_scores(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], tolerance: float):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

        if prediction.shape[0] == 1:
            prediction, reference, spacing = prediction[0], reference[0], spacing[1:]
        one, other = (torch.as_tensor(mask)[None, None].float() for mask in (prediction, reference))
        return (
            compute_dice(one, other, ignore_empty=False).item(),
            compute_surface_dice(one, other, [tolerance], include_background=True,
                                 spacing=list(spacing)).item(),
            compute_hausdorff_distance(one, other, include_background=True, percentile=95,
                                       spacing=list(spacing)).item(),
        )


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("shape", "spacing", "tolerance"), CASES)
def test_scores_equal_monai_on_random_masks(shape, spacing, tolerance, sigma):
    rng = np.random.default_rng(hash((shape, sigma)) % 2**32)
    for _ in range(4):
        prediction, reference = blobs(rng, shape, sigma), blobs(rng, shape, sigma)
        distances = surface_distances(prediction, reference, spacing)
        ours = dice(prediction, reference), nsd(distances, tolerance), hd95(distances)
        assert ours == pytest.approx(monai_scores(prediction, reference, spacing, tolerance), abs=1e-5)


def test_nsd_with_one_or_both_masks_empty_equals_monai():
    empty, some = np.zeros((2, 6, 6, 6), dtype=bool)
    some[2:4, 2:4, 2:4] = True
    for prediction, reference in ((empty, some), (some, empty)):
        distances = surface_distances(prediction, reference, (1.0, 1.0, 1.0))
        assert nsd(distances, 2.0) == monai_scores(prediction, reference, (1.0, 1.0, 1.0), 2.0)[1] == 0.0
    nothing = nsd(surface_distances(empty, empty, (1.0, 1.0, 1.0)), 2.0)
    assert nothing is None
    assert np.isnan(monai_scores(empty, empty, (1.0, 1.0, 1.0), 2.0)[1])
