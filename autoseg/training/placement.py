"""Where patches are drawn: the first voxel of a patch in stored coordinates, distributed as in nnU-Net's loader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

# nnU-Net enlarges its patches for the strongest zoom of an earlier version (0.85), not for today's 0.7.
_PLACEMENT_SCALE = 0.85
_ANISOTROPY = 3.0
_ELONGATION_2D = 1.5
_ROTATION_PLANES = {2: ((0, 1),), 3: ((1, 2), (2, 0), (0, 1))}


@dataclass(frozen=True)
class RotationRule:
    """How patches of a shape may be turned: around all axes or only within the last two; angles in radians."""

    in_plane: bool
    max_angle: float


def rotation_rule(patch_shape: Sequence[int]) -> RotationRule:
    """nnU-Net's rule. 2-D: ±180°, or ±15° for elongated patches; 3-D: ±30° per axis, or in-plane ±180° when the
    patch is more than three times longer than its first (coarsest) axis ("dummy 2-D")."""
    if len(patch_shape) == 2:
        elongated = max(patch_shape) / min(patch_shape) > _ELONGATION_2D
        return RotationRule(in_plane=True, max_angle=math.radians(15 if elongated else 180))
    if max(patch_shape) / patch_shape[0] > _ANISOTROPY:
        return RotationRule(in_plane=True, max_angle=math.pi)
    return RotationRule(in_plane=False, max_angle=math.radians(30))


def as_3d(patch_shape: Sequence[int]) -> tuple[int, int, int]:
    """(z, y, x) of a patch; a 2-D patch is one slice thick."""
    z, y, x = (1, *patch_shape) if len(patch_shape) == 2 else tuple(patch_shape)
    return z, y, x


def enlarged_shape(patch_shape: Sequence[int]) -> tuple[int, int, int]:
    """The (z, y, x) shape whose placement decides where nnU-Net's training patches lie.

    nnU-Net places a patch that is large enough to be rotated, and keeps its center; this matters at the borders.
    Per plane the corner vector is turned by the largest angle (at most 90°), then divided by 0.85 and truncated.
    """
    rule = rotation_rule(patch_shape)
    angle = min(rule.max_angle, math.pi / 2)
    largest = [float(n) for n in patch_shape]
    for first, second in _ROTATION_PLANES[len(patch_shape)]:
        a, b = patch_shape[first], patch_shape[second]
        largest[first] = max(largest[first], abs(a * math.cos(angle) + b * math.sin(angle)))
        largest[second] = max(largest[second], abs(b * math.cos(angle) - a * math.sin(angle)))
    enlarged = [int(length / _PLACEMENT_SCALE) for length in largest]
    if rule.in_plane and len(patch_shape) == 3:
        enlarged[0] = patch_shape[0]
    return as_3d(enlarged)


def start_range(extent: int, patch: int, enlarged: int) -> tuple[int, int]:
    """First and last possible start of a patch along an axis of `extent` voxels; negative starts lie in padding.

    `enlarged` ≥ `patch` voxels are placed (padded on both sides alike where the image is too small), the patch
    sits in their middle.
    """
    padding = max(enlarged - patch, enlarged - extent)
    margin = (padding + 1) // 2
    inset = enlarged // 2 - patch // 2
    return inset - margin, extent + margin - enlarged + inset


def draw_voxel(
    rng: np.random.Generator, foreground: Integer[np.ndarray, "voxel 3"], offsets: Sequence[int],
    regions: Sequence[Sequence[int]] = (),
) -> tuple[int, int, int] | None:  # fmt: skip
    """A foreground voxel (z, y, x): its label is uniform among those present, then the voxel; None without any.

    Rows [offsets[k - 1], offsets[k]) of `foreground` belong to label k. With `regions`, each a tuple of labels, the
    region is uniform among those present, then the voxel among the rows of its labels.
    """
    groups: Sequence[Sequence[int]] = regions or [(label,) for label in range(1, len(offsets))]
    rows = [[(offsets[label - 1], offsets[label]) for label in group if label > 0] for group in groups]
    present = [ranges for ranges in rows if any(high > low for low, high in ranges)]
    if not present:
        return None
    ranges = present[rng.integers(len(present))]
    place = int(rng.integers(sum(high - low for low, high in ranges)))
    for low, high in ranges:
        if place < high - low:
            z, y, x = (int(position) for position in foreground[low + place])
            return z, y, x
        place -= high - low
    raise AssertionError("a place lies in one of the ranges")


def draw_annotated_voxel(
    rng: np.random.Generator, foreground: Integer[np.ndarray, "voxel 3"], offsets: Sequence[int]
) -> tuple[int, int, int] | None:
    """A voxel that is not of the ignore label, from the last rows of `foreground`; None without any."""
    return draw_voxel(rng, foreground, offsets[-2:])


def draw_start(
    rng: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    enlarged: Sequence[int],
    voxel: Sequence[int] | None,
) -> tuple[int, int, int]:
    """The patch's first voxel (z, y, x): uniform, or centered on `voxel` and moved up to the range's low end.

    As in nnU-Net a centered patch is not moved back from the far border; it reaches into the padding there.
    """
    ranges = [start_range(*lengths) for lengths in zip(shape, patch, enlarged, strict=True)]
    if voxel is None:
        z, y, x = (int(rng.integers(low, high + 1)) for low, high in ranges)
    else:
        z, y, x = (
            max(low, position - length // 2) for (low, _), position, length in zip(ranges, voxel, patch, strict=True)
        )
    return z, y, x
