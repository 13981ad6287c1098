"""How often, and along which axes, a network halves a patch at a spacing; `architectures` builds networks on it.

Rules of nnU-Net v2 (Isensee et al., Nature Methods 2021, and `get_pool_and_conv_props` of nnunetv2 2.8):

* an axis can be halved while it has at least 8 voxels, so that no feature map gets below 4;
* only axes whose spacing is less than twice the finest spacing among those axes are halved together: a
  coarse axis waits until the others have caught up;
* a single remaining axis is halved only while it has at least 12 voxels;
* the kernel along an axis is 1 until its spacing is less than twice the finest of all axes, then 3 for
  good; the bottleneck always has 3;
* the patch is padded so that every axis can be halved as often as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoseg.geometry import Shape

Numbers = Sequence[int | float]
"""Voxels or mm along axes; voxels may be halves, the median of an even number of cases."""
SMALLEST_FEATURE_MAP = 4


@dataclass(frozen=True)
class Pooling:
    """How a patch is halved on the way down, in plan order.

    Attributes
    ----------
    strides, kernel_sizes : per stage, finest first; the first stage has stride 1.
    patch_shape : the patch, padded to a multiple of `divisors`.
    divisors : 2 to the number of halvings, per axis.
    spacing : mm between the patch's voxels.
    smallest : no axis may be made shorter than this.
    """

    strides: tuple[Shape, ...]
    kernel_sizes: tuple[Shape, ...]
    patch_shape: Shape
    divisors: Shape
    spacing: tuple[float, ...]
    smallest: Shape

    @property
    def stages(self) -> int:
        """Number of resolutions, the full one included."""
        return len(self.strides)


def pool(spacing: Numbers, shape: Numbers) -> Pooling:
    """Halve a patch of `shape` voxels at `spacing` mm (both plan order, 2 or 3 axes) as often as is sound.

    `shape` may hold halves: the median of an even number of cases.
    """
    axes = range(len(shape))
    spacing_now, shape_now = list(map(float, spacing)), list(map(float, shape))
    kernel = [1] * len(shape)
    strides, kernels = [(1,) * len(shape)], []
    while halved := _axes_to_halve(spacing_now, shape_now):
        finest = min(spacing_now)
        kernel = [3 if size == 3 or spacing_now[axis] / finest < 2 else 1 for axis, size in enumerate(kernel)]
        for axis in halved:
            spacing_now[axis] *= 2
            shape_now[axis] = math.ceil(shape_now[axis] / 2)
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        kernels.append(tuple(kernel))
    kernel_sizes = (*kernels, (3,) * len(shape))
    return _padded(spacing, shape, tuple(strides), kernel_sizes)


def rigid_pooling(spacing: Numbers, shape: Numbers, halvings: int) -> Pooling:
    """Halve every axis `halvings` times, whatever the spacing, with kernels of 3 everywhere.

    For published networks that know one way to halve. Where the coarsest map would be a single voxel, which
    normalization over a map cannot take, the longest axis (the last of equals) is made twice as long.
    """
    axes, multiple = len(shape), 2**halvings
    long_enough = list(shape)
    if max(shape) <= multiple:
        longest = max(range(axes), key=lambda axis: (shape[axis], axis))
        long_enough[longest] = 2 * multiple
    strides = ((1,) * axes, *((2,) * axes,) * halvings)
    pooling = _padded(spacing, long_enough, strides, ((3,) * axes,) * (halvings + 1))
    return replace(pooling, smallest=(multiple,) * axes)


def merge_stages(pooling: Pooling, shape: Numbers, merged: int, kept: int) -> Pooling:
    """`pooling` with its first `merged` halvings made one stage, and at most `kept` stages after that one.

    Deeper halvings are dropped, and the patch of `shape` voxels is padded to what is left of them.
    """
    first = tuple(math.prod(steps) for steps in zip(*pooling.strides[1 : merged + 1], strict=True))
    last = merged + kept + 1
    strides = (pooling.strides[0], first, *pooling.strides[merged + 1 : last])
    kernels = (pooling.kernel_sizes[0], *pooling.kernel_sizes[merged:last])
    return _padded(pooling.spacing, shape, strides, kernels)


def _padded(
    spacing: Numbers, shape: Numbers, strides: tuple[Shape, ...], kernel_sizes: tuple[Shape, ...]
) -> Pooling:
    divisors = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
    # An axis that was shortened to nothing has one voxel.
    padded = tuple(
        math.ceil(max(1, size) / divisor) * divisor for size, divisor in zip(shape, divisors, strict=True)
    )
    return Pooling(strides, kernel_sizes, padded, divisors, tuple(map(float, spacing)), (1,) * len(shape))


def _axes_to_halve(spacing: Numbers, shape: Numbers) -> list[int]:
    """The axes that the next stage halves; empty at the bottleneck."""
    long_enough = [axis for axis in range(len(shape)) if shape[axis] >= 2 * SMALLEST_FEATURE_MAP]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    alike = [axis for axis in long_enough if spacing[axis] / finest < 2]
    if len(alike) == 1 and shape[alike[0]] < 3 * SMALLEST_FEATURE_MAP:
        return []
    return alike
