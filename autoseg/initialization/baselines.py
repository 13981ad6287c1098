"""What the pretext tasks are compared with: inpainting by straight lines, and slabs put in order by their borders.

Both know nothing but the patch at hand, so a network that does not beat them has learned no anatomy.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Float, Int


def inpaint_linearly(
    image: Float[np.ndarray, "channel *patch"], visible: Bool[np.ndarray, "*patch"], spacing: Sequence[float]
) -> Float[np.ndarray, "channel *patch"]:
    """Trilinear inpainting (in 2-D: bilinear): the hidden voxels guessed from the visible ones on their axis lines.

    Along each axis a hidden voxel between two visible ones, d0 and d1 mm away, is interpolated linearly; beyond
    the last visible one it takes that one's value. The estimates of the axes are averaged with weights 1 / variance,
    the variance being that of a Brownian motion of the same rate along every axis: d0·d1 / (d0 + d1) between two
    visible voxels (Brownian bridge), d beyond the last one. An axis on whose line nothing is visible has no weight;
    without any such line the voxel gets the mean of the channel's visible voxels.

    Parameters
    ----------
    image : one patch; what stands in hidden voxels (NaN, say) is never read.
    visible : false where a voxel of every channel is hidden.
    spacing : mm between voxel centres along each axis of the patch.

    Returns
    -------
    a copy in which the visible voxels are unchanged.

    Raises
    ------
    ValueError : no voxel is visible, or `spacing` is not one number per axis.
    """
    if not visible.any():
        raise ValueError("no voxel is visible: there is nothing to inpaint from")
    hidden = np.nonzero(~visible)
    total = np.zeros((len(image), len(hidden[0])))
    weights = np.zeros(len(hidden[0]))
    for axis, step in zip(range(visible.ndim), spacing, strict=True):
        estimate, weight = _along_axis(image, visible, hidden, axis, step)
        total += weight * estimate
        weights += weight
    means = image[:, visible].mean(axis=1, dtype=np.float64)[:, None]
    helped = weights > 0
    result = image.copy()
    result[:, ~visible] = np.where(helped, total / np.where(helped, weights, 1.0), means)
    return result


def _along_axis(
    image: Float[np.ndarray, "channel *patch"],
    visible: Bool[np.ndarray, "*patch"],
    hidden: tuple[Int[np.ndarray, " voxel"], ...],
    axis: int,
    step: float,
) -> tuple[Float[np.ndarray, "channel voxel"], Float[np.ndarray, " voxel"]]:
    """The hidden voxels' values by interpolation along one axis, and 1 / variance (1/mm; 0 where no voxel helps)."""
    length = visible.shape[axis]
    index = np.arange(length).reshape([length if other == axis else 1 for other in range(visible.ndim)])
    before = np.maximum.accumulate(np.where(visible, index, -1), axis=axis)[hidden]
    after = np.flip(np.minimum.accumulate(np.flip(np.where(visible, index, length), axis), axis=axis), axis)[hidden]
    here = hidden[axis]
    in_front, behind = before >= 0, after < length
    helped = in_front | behind
    # Beyond the last visible voxel both ends are that voxel; on an empty line the index only has to be a legal one.
    first = np.where(in_front, before, np.where(behind, after, 0))
    last = np.where(behind, after, first)
    left, right = np.abs(here - first) * step, np.abs(last - here) * step
    between = in_front & behind
    gap = np.where(between, left + right, 1.0)
    variance = np.where(between, left * right / gap, left)
    share = np.where(between, left / gap, 0.0)
    low, high = (
        image.reshape(len(image), -1)[
            :, np.ravel_multi_index((*hidden[:axis], end, *hidden[axis + 1 :]), visible.shape)
        ]
        for end in (first, last)
    )
    estimate = np.where(helped, low * (1 - share) + high * share, 0.0)
    return estimate, np.divide(1.0, variance, out=np.zeros_like(variance), where=helped)


def match_borders(
    slabs: Float[np.ndarray, "slab channel thickness *plane"], visible: Bool[np.ndarray, "slab thickness *plane"]
) -> tuple[int, ...]:
    """The slabs' original indices, guessed from nothing but how well their borders continue each other.

    The cost of "slab j follows slab i" is the mean squared difference between the last visible voxel of slab i and
    the first visible voxel of slab j, over the channels and over the columns (lines along the thickness) with a
    visible voxel in both slabs. The order with the smallest summed cost is sought among all of them: work grows
    with the factorial of the number of slabs, which is at most six in our tasks.

    Parameters
    ----------
    slabs : the slabs in shuffled order; the thickness runs along the axis they were cut from.
    visible : false where a voxel of every channel is hidden; what stands there is never read.

    Returns
    -------
    for each position the guessed original index; positions are in original order where no column is comparable.
    """
    count = len(slabs)
    costs = _border_costs(slabs, visible)
    chains = np.array(list(permutations(range(count))), dtype=np.int64).reshape(-1, count)
    best = chains[costs[chains[:, :-1], chains[:, 1:]].sum(axis=1).argmin()]
    return tuple(int(index) for index in np.argsort(best))


def _border_costs(
    slabs: Float[np.ndarray, "slab channel thickness *plane"], visible: Bool[np.ndarray, "slab thickness *plane"]
) -> Float[np.ndarray, "slab slab"]:
    """Entry (i, j): the cost of slab j behind slab i; pairs without a common column cost the mean of the others."""
    count, channels, thickness = slabs.shape[:3]
    columns = slabs.reshape(count, channels, thickness, -1)
    seen = visible.reshape(count, thickness, -1)
    filled: Bool[np.ndarray, "slab column"] = np.asarray(seen.any(axis=1))
    first = seen.argmax(axis=1)
    last = thickness - 1 - np.flip(seen, axis=1).argmax(axis=1)
    front, back = (np.take_along_axis(columns, at[:, None, None], axis=2)[:, :, 0] for at in (first, last))
    costs = np.full((count, count), np.nan)
    for i, j in permutations(range(count), 2):
        common = filled[i] & filled[j]
        if common.any():
            costs[i, j] = np.mean((back[i][:, common] - front[j][:, common]) ** 2, dtype=np.float64)
    known = np.isfinite(costs)
    return np.where(known, costs, costs[known].mean() if known.any() else 0.0)
