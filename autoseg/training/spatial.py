"""Turning and scaling patches: linear interpolation for images, for labels a vote of the neighbors it weighs.

Both act on the last d axes of a region, d = 2 (slice by slice) or 3; an output voxel at offset v from the
patch's center shows the region at `center + matrix @ v`. Outside the region images are 0, labels background.
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float, Int32, Integer
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from autoseg.training.draws import Matrix

_OUTSIDE = -1


def sample_coordinates(
    matrix: Matrix, center: Sequence[float], shape: Sequence[int], device: torch.device
) -> list[Float[Tensor, "..."]]:
    """Per region axis (d of them) the float32 coordinate in voxels that each voxel of a patch of `shape` shows."""
    axes = len(matrix)
    offsets = [torch.arange(length, dtype=torch.float64) - (length - 1) / 2 for length in shape]
    coordinates = []
    for row, middle in zip(matrix, center, strict=True):
        total: Tensor | None = None
        for axis, (factor, offset) in enumerate(zip(row, offsets, strict=True)):
            term = offset * factor + (middle if axis == 0 else 0.0)
            term = term.to(device=device, dtype=torch.float32).reshape([-1 if a == axis else 1 for a in range(axes)])
            total = term if total is None else total + term
        assert total is not None
        coordinates.append(total)
    return coordinates


def resample_image(
    image: Float[Tensor, "channel *region"], coordinates: Sequence[Float[Tensor, "*patch"]]
) -> Float[Tensor, "channel *patch"]:
    """Linear interpolation at voxel coordinates, 0 outside; the region has as many axes as coordinates."""
    normalized = [
        (2 * coordinate + 1) / length - 1 for coordinate, length in zip(coordinates, image.shape[1:], strict=True)
    ]
    grid = torch.stack(normalized[::-1], dim=-1)
    return grid_sample(image[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def resample_labels(
    labels: Integer[Tensor, "plane *region"], coordinates: Sequence[Float[Tensor, "*patch"]]
) -> Integer[Tensor, "plane *patch"]:
    """The label whose indicator, linearly interpolated, is largest; the lowest label on ties.

    Outside the region lies a label of its own, which becomes background after the vote, as in nnU-Net. Only the
    2^d neighbors of a point carry weight, so they vote among themselves, and only where they differ: the cost
    does not depend on the number of labels. At most 32,767 labels.
    """
    # Points farther outside are moved into the padding, where they see nothing else.
    padded = pad(labels.to(torch.int16), [1, 2] * len(coordinates), value=_OUTSIDE)
    strides = padded.stride()[1:]
    index, fractions = _lowest_neighbors(coordinates, labels.shape[1:], strides)
    flat = padded.flatten(1)
    chosen = flat.index_select(1, index)
    undecided = _mixed(padded).flatten(1).index_select(1, index).any(0).nonzero()[:, 0]
    corners = [
        sum(step * stride for step, stride in zip(steps, strides, strict=True))
        for steps in product((0, 1), repeat=len(strides))
    ]
    votes = torch.stack([flat.index_select(1, index[undecided] + offset) for offset in corners])
    chosen.index_copy_(1, undecided, _winners(votes, [fraction[undecided] for fraction in fractions]))
    return chosen.clamp(min=0).to(labels.dtype).reshape(labels.shape[0], *coordinates[0].shape)


def _lowest_neighbors(
    coordinates: Sequence[Tensor], extents: Sequence[int], strides: Sequence[int]
) -> tuple[Int32[Tensor, " point"], list[Float[Tensor, " point"]]]:
    """Position in the padded labels of each point's lowest neighbor, and how far the point is from it per axis."""
    index = torch.zeros(1, dtype=torch.int32, device=coordinates[0].device)
    fractions = []
    for coordinate, extent, stride in zip(coordinates, extents, strides, strict=True):
        clamped = coordinate.flatten().clamp(-1, extent)
        low = clamped.floor()
        fractions.append(clamped - low)
        index = index + (low.to(torch.int32) + 1) * stride
    return index, fractions


def _mixed(padded: Integer[Tensor, "plane *padded"]) -> Bool[Tensor, "plane *padded"]:
    """Whether the 2^d voxels from each voxel upwards hold more than one label (the last of an axis: no meaning)."""
    low = high = padded
    for axis in range(1, padded.ndim):
        low = torch.minimum(low, low.roll(-1, axis))
        high = torch.maximum(high, high.roll(-1, axis))
    return low != high


def _winners(
    votes: Integer[Tensor, "corner plane point"], fractions: Sequence[Float[Tensor, " point"]]
) -> Integer[Tensor, "plane point"]:
    """Per point the label whose neighbors weigh most together."""
    weights = []
    for steps in product((0, 1), repeat=len(fractions)):
        weight = torch.ones_like(fractions[0])
        for step, fraction in zip(steps, fractions, strict=True):
            weight = weight * (fraction if step else 1 - fraction)
        weights.append(weight)
    best_label = votes[0]
    best_score = torch.full(votes.shape[1:], -1.0, device=votes.device)
    for candidate in votes:
        score = torch.zeros_like(best_score)
        for vote, weight in zip(votes, weights, strict=True):
            score += (vote == candidate) * weight
        better = (score > best_score) | ((score == best_score) & (candidate < best_label))
        best_score = torch.where(better, score, best_score)
        best_label = torch.where(better, candidate, best_label)
    return best_label
