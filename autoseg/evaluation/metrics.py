"""Overlap and surface-distance scores of two masks on one voxel grid.

Definitions (those of MONAI, following Metrics Reloaded, https://arxiv.org/abs/2206.01653):

* The boundary of a mask is the set of its voxels with at least one face neighbor outside the mask; what lies
  outside the image counts as outside the mask.
* An axis with a single voxel has no extent: no boundary runs along it. So masks of 2-D images, (1, y, x), are
  scored as 2-D masks, and so is a single slice.
* Distances run from boundary voxel center to the nearest boundary voxel center of the other mask, in mm.

When both masks are empty there is nothing to score: every score is `both_empty`, by default None (nnU-Net's
NaN: the case is skipped in means). When one is empty, Dice and NSD are 0, and HD95 is undefined: `one_empty`,
by default None; the miss then shows in Dice and NSD.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Mask = Bool[np.ndarray, "z y x"]
DistancesMm = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class SurfaceDistances:
    """For every boundary voxel of one mask, the mm to the other mask's boundary; infinite when that is empty.

    `from_prediction` has one entry per boundary voxel of the prediction, `from_reference` of the reference.
    """

    from_prediction: DistancesMm
    from_reference: DistancesMm


def dice(prediction: Mask, reference: Mask, *, both_empty: float | None = None) -> float | None:
    """2 |P ∩ R| / (|P| + |R|); 0 when exactly one mask is empty."""
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if total == 0:
        return both_empty
    return 2 * int(np.count_nonzero(prediction & reference)) / total


def volume_ml(mask: Mask, spacing: Sequence[float]) -> float:
    """Voxels times the voxel's volume, in milliliters; `spacing` is mm along (z, y, x)."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing)) / 1000


def surface_distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Both directed sets of boundary distances, from which NSD and HD95 follow; `spacing` is mm (z, y, x)."""
    box = _union_box(prediction, reference)
    extended = tuple(axis for axis, length in enumerate(prediction.shape) if length > 1)
    ours, theirs = _boundary(prediction[box], extended), _boundary(reference[box], extended)
    return SurfaceDistances(_directed(ours, theirs, spacing), _directed(theirs, ours, spacing))


def nsd(distances: SurfaceDistances, tolerance_mm: float, *, both_empty: float | None = None) -> float | None:
    """Normalized surface Dice: the share of both boundaries that lies within `tolerance_mm` of the other one.

    Every boundary voxel weighs the same (https://arxiv.org/abs/2111.05408); 0 when exactly one mask is empty.
    """
    # Five voxels of 0.4 mm are 2 mm also where rounding says 2.0000000000000004, or the header 0.40000001.
    limit = tolerance_mm * (1 + 1e-6)
    total = distances.from_prediction.size + distances.from_reference.size
    if total == 0:
        return both_empty
    within = sum(
        int(np.count_nonzero(side <= limit)) for side in (distances.from_prediction, distances.from_reference)
    )
    return within / total


def hd95(
    distances: SurfaceDistances, *, both_empty: float | None = None, one_empty: float | None = None
) -> float | None:
    """The larger of the two directed 95th percentiles of boundary distance, in mm (linear interpolation)."""
    empty = [distances.from_prediction.size == 0, distances.from_reference.size == 0]
    if all(empty):
        return both_empty
    if any(empty):
        return one_empty
    return max(
        float(np.percentile(distances.from_prediction, 95)),
        float(np.percentile(distances.from_reference, 95)),
    )


def _union_box(one: Mask, other: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel of both masks (empty slices when there is none)."""
    union = one | other
    plane_rows = union.any(axis=2)
    return (_extent(plane_rows.any(axis=1)), _extent(plane_rows.any(axis=0)), _extent(union.any(axis=(0, 1))))


def _extent(occupied: Bool[np.ndarray, " n"]) -> slice:
    positions = np.flatnonzero(occupied)
    return slice(int(positions[0]), int(positions[-1]) + 1) if positions.size else slice(0, 0)


def _boundary(mask: Mask, axes: Sequence[int]) -> Mask:
    """Voxels of `mask` with a face neighbor outside it along one of `axes`; outside the array is outside."""
    interior = mask.copy()
    for axis in axes:
        inside, line = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inside[:1] = inside[-1:] = False
        inside[1:] &= line[:-1]
        inside[:-1] &= line[1:]
    return np.asarray(mask & ~interior)


def _directed(source: Mask, target: Mask, spacing: Sequence[float]) -> DistancesMm:
    """For every voxel of `source`, the mm to the nearest voxel of `target`; infinite when there is none.

    A search tree over the boundary costs less than distance transforms over the box, above all when a stray
    false positive stretches the box; voxels on both boundaries need no search.
    """
    if not target.any():
        return np.full(int(np.count_nonzero(source)), np.inf)
    distances = np.zeros(source.shape)
    apart = source & ~target
    if apart.any():
        from scipy.spatial import KDTree  # slow to import, and not everyone who counts voxels measures distances

        tree = KDTree(np.argwhere(target) * np.asarray(spacing), balanced_tree=False, compact_nodes=False)
        distances[apart] = tree.query(np.argwhere(apart) * np.asarray(spacing))[0]
    return np.asarray(distances[source])
