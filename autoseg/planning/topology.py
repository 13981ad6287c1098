"""The shape of a U-Net (stages, strides, kernels, features) that fits a spacing and a patch.

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
from dataclasses import dataclass

from autoseg.geometry import Shape
from autoseg.schema import ArchitectureName, Topology

Numbers = Sequence[int | float]
"""Voxels or mm along axes; voxels may be halves, the median of an even number of cases."""
SMALLEST_FEATURE_MAP = 4
BASE_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}
RESENC_BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first encoder stages; every deeper stage has as many as the last of these."""


@dataclass(frozen=True)
class Pooling:
    """How a patch is halved on the way down, in plan order.

    Attributes
    ----------
    strides, kernel_sizes : per stage, finest first; the first stage has stride 1.
    patch_shape : the patch, padded to a multiple of `divisors`.
    divisors : 2 to the number of halvings, per axis.
    """

    strides: tuple[Shape, ...]
    kernel_sizes: tuple[Shape, ...]
    patch_shape: Shape
    divisors: Shape

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
    divisors = tuple(math.prod(stride[axis] for stride in strides) for axis in axes)
    padded = tuple(math.ceil(size / divisor) * divisor for size, divisor in zip(shape, divisors, strict=True))
    return Pooling(tuple(strides), (*kernels, (3,) * len(shape)), padded, divisors)


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


def build_topology(architecture: ArchitectureName, pooling: Pooling) -> Topology:
    """Strides and kernels of `pooling` with the architecture's blocks and nnU-Net's numbers of features.

    Features double from 32 with every stage up to 320 (3D) or 512 (2D). `plain` has two convolutions per
    stage in encoder and decoder; `resenc` has 1, 3, 4, 6, 6, … residual blocks and one convolution per
    decoder stage.
    """
    stages = range(pooling.stages)
    most = MOST_FEATURES[len(pooling.patch_shape)]
    if architecture == "plain":
        encoder, decoder = (2,) * pooling.stages, (2,) * (pooling.stages - 1)
    else:
        encoder = tuple(RESENC_BLOCKS[min(stage, len(RESENC_BLOCKS) - 1)] for stage in stages)
        decoder = (1,) * (pooling.stages - 1)
    return Topology(
        strides=pooling.strides,
        kernel_sizes=pooling.kernel_sizes,
        features=tuple(min(most, BASE_FEATURES * 2**stage) for stage in stages),
        encoder_blocks=encoder,
        decoder_blocks=decoder,
    )
