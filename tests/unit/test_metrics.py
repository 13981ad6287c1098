"""Laws of the scores, brute force as the oracle of the distances, and the edges of the definitions."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from autoseg.evaluation.metrics import dice, hd95, nsd, surface_distances, volume_ml

SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.7, 1.3), (0.4, 2.0, 0.9)]
EMPTY = np.zeros((4, 5, 6), dtype=bool)


def random_pair(seed: int, shape: tuple[int, int, int], density: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < density, rng.random(shape) < density


def boundary_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxel by voxel, from the definition: a face neighbor (along axes longer than 1) is not in the mask."""
    points = []
    for voxel in np.argwhere(mask):
        for axis in (a for a in range(3) if mask.shape[a] > 1):
            sides = [voxel + step * np.eye(3, dtype=int)[axis] for step in (-1, 1)]
            if any(not 0 <= s[axis] < mask.shape[axis] or not mask[tuple(s)] for s in sides):
                points.append(voxel * np.asarray(spacing))
                break
    return np.asarray(points)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("shape", "density"),
                         [((6, 7, 8), 0.1), ((6, 7, 8), 0.9), ((1, 12, 9), 0.7), ((9, 1, 7), 0.6)])
def test_distances_equal_brute_force_over_all_pairs_of_boundary_voxels(spacing, shape, density):
    for seed in range(5):
        prediction, reference = random_pair(seed, shape, density)
        pairs = cdist(boundary_points(prediction, spacing), boundary_points(reference, spacing))
        found = surface_distances(prediction, reference, spacing)
        np.testing.assert_allclose(found.from_prediction, pairs.min(axis=1), atol=1e-9)
        np.testing.assert_allclose(found.from_reference, pairs.min(axis=0), atol=1e-9)


def test_scores_of_two_separated_boxes_follow_by_hand():
    prediction, reference = np.zeros((2, 10, 10, 12), dtype=bool)
    reference[2:8, 2:8, 2:8] = True
    prediction[2:8, 2:8, 3:9] = True  # one voxel further along x
    assert dice(prediction, reference) == pytest.approx(5 / 6)
    distances = surface_distances(prediction, reference, (1.0, 1.0, 2.5))
    # The far end face of the prediction lies one voxel, 2.5 mm, beyond the reference; nothing is further off.
    assert distances.from_prediction.max() == 2.5
    assert nsd(distances, 2.5) == 1.0


def test_a_mask_against_itself_is_perfect_and_the_scores_are_symmetric():
    one, other = random_pair(3, (7, 8, 9), 0.5)
    same = surface_distances(one, one, (3.0, 1.0, 1.0))
    assert (dice(one, one), nsd(same, 0.0), hd95(same)) == (1.0, 1.0, 0.0)
    there, back = (surface_distances(a, b, (3.0, 1.0, 1.0)) for a, b in ((one, other), (other, one)))
    assert (nsd(there, 1.0), hd95(there)) == (nsd(back, 1.0), hd95(back))
    assert dice(one, other) == dice(other, one)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_distances_scale_with_the_spacing_and_ignore_where_the_masks_lie(factor):
    one, other = random_pair(4, (5, 6, 7), 0.4)
    base = surface_distances(one, other, (2.0, 1.0, 0.5))
    scaled = surface_distances(one, other, (2.0 * factor, factor, 0.5 * factor))
    np.testing.assert_allclose(scaled.from_prediction, factor * base.from_prediction)
    moved = surface_distances(np.pad(one, 4), np.pad(other, 4), (2.0, 1.0, 0.5))
    np.testing.assert_array_equal(moved.from_reference, base.from_reference)


def test_nsd_grows_with_the_tolerance_from_the_shared_boundary_to_one():
    one, other = random_pair(5, (5, 6, 7), 0.2)
    distances = surface_distances(one, other, (1.0, 1.0, 1.0))
    values = [nsd(distances, tolerance) for tolerance in (0.0, 1.0, 1.5, 2.0, 100.0)]
    assert values == sorted(values)
    assert values[-1] == 1.0


def test_two_dimensional_masks_have_no_boundary_along_their_single_slice():
    disk = np.zeros((1, 9, 9), dtype=bool)
    disk[0, 2:7, 2:7] = True
    hole = disk.copy()
    hole[0, 4, 4] = False
    distances = surface_distances(disk, disk, (1.0, 1.0, 1.0))
    assert distances.from_reference.size == 16  # the square's rim, not its 25 voxels
    assert surface_distances(hole, disk, (1.0, 1.0, 1.0)).from_prediction.size == 20


def test_both_empty_and_one_empty_follow_the_stated_policy():
    some = EMPTY.copy()
    some[1, 2, 3] = True
    nothing, missed, invented = (surface_distances(p, r, (1.0, 1.0, 1.0))
                                 for p, r in ((EMPTY, EMPTY), (EMPTY, some), (some, EMPTY)))
    assert (dice(EMPTY, EMPTY), nsd(nothing, 2.0), hd95(nothing)) == (None, None, None)
    assert dice(EMPTY, EMPTY, both_empty=1.0) == nsd(nothing, 2.0, both_empty=1.0) == 1.0
    assert hd95(nothing, both_empty=0.0) == 0.0
    for prediction, reference, distances in ((EMPTY, some, missed), (some, EMPTY, invented)):
        assert dice(prediction, reference) == 0.0
        assert nsd(distances, 1e9) == 0.0
        assert hd95(distances) is None
        assert hd95(distances, one_empty=374.0) == 374.0


def test_volume_is_voxels_times_voxel_volume():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[:2, :5, :5] = True
    assert volume_ml(mask, (5.0, 2.0, 2.0)) == pytest.approx(50 * 20 / 1000)
