"""Arithmetic on voxel grids: shapes, spacings, orientation, permutations. Array order is (z, y, x)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Shape = tuple[int, ...]
SpacingMm = tuple[float, ...]
Direction = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
AnyItem = TypeVar("AnyItem")


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array lie in the patient.

    Attributes
    ----------
    shape : voxels along the array axes (z, y, x), i.e. the file's axes reversed. 2-D images have shape (1, y, x).
    spacing : mm between voxel centres, (z, y, x).
    origin : world position in mm of voxel (0, 0, 0); world axes are RAS+ (right, anterior, superior).
    direction : 3x3, row = world axis (R, A, S), column = array axis (z, y, x); columns are unit vectors.
    is_2d : the image has no third dimension (PNG, 2-D TIFF, 2-D NIfTI): axis 0 has one voxel and no meaning.
    """

    shape: Shape
    spacing: SpacingMm
    origin: tuple[float, float, float]
    direction: Direction
    is_2d: bool = False


def left_right_axis(grid: Grid) -> int:
    """The array axis (0, 1 or 2) that runs closest to the patient's left-right.

    Of a 2-D image, y (1) or x (2); x where the file states no direction (a PNG), because pictures are drawn so.
    """
    axes = (2, 1) if grid.is_2d else (0, 1, 2)
    return max(axes, key=lambda axis: abs(grid.direction[0][axis]))


def grid_differences(one: Grid, other: Grid, tolerance: float = 1e-3) -> list[str]:
    """What differs between two grids, one phrase each ("spacing (3.0, 1.0, 1.0) against (2.0, 1.0, 1.0) mm").

    Spacing and direction are compared with an absolute tolerance of `tolerance`, the origin with
    `tolerance` times the largest of 1 mm and the spacing, times ten (headers store float32).
    """
    differences = []
    if one.shape != other.shape:
        differences.append(f"shape {one.shape} against {other.shape} voxels (z, y, x)")
    if not _close(one.spacing, other.spacing, tolerance):
        differences.append(f"spacing {_rounded(one.spacing)} against {_rounded(other.spacing)} mm (z, y, x)")
    flat_one, flat_other = sum(one.direction, ()), sum(other.direction, ())
    if not _close(flat_one, flat_other, tolerance):
        differences.append(f"direction {_rounded(flat_one)} against {_rounded(flat_other)}")
    if not _close(one.origin, other.origin, 10 * tolerance * max(1.0, *one.spacing)):
        differences.append(f"origin {_rounded(one.origin)} against {_rounded(other.origin)} mm (R, A, S)")
    return differences


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Shape:
    """Voxels along each axis after resampling: round(spacing / target * shape), halves to even (as nnU-Net)."""
    return tuple(round(s / t * n) for n, s, t in zip(shape, spacing, target, strict=True))


def permuted(items: Sequence[AnyItem], axes: Sequence[int]) -> tuple[AnyItem, ...]:
    """items[axes[0]], items[axes[1]], …: from array order to plan order when `axes` is the plan's."""
    return tuple(items[axis] for axis in axes)


def inverse_permutation(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes `axes`."""
    return tuple(sorted(range(len(axes)), key=lambda position: axes[position]))


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
