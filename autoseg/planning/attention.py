"""Where a `hybrid` attends: which encoder stages, with how many heads, over which keys.

The skeleton is `resenc`'s. The last blocks of every eligible stage become attention blocks; nothing here shapes a
weight by the patch, so that a network works on every patch its strides divide.
"""

import math
from collections.abc import Sequence

from autoseg.planning.topology import Numbers
from autoseg.schema import AttentionPlan, Topology

BLOCKS_PER_STAGE = 2
"""Residual blocks replaced at the end of a stage. The earlier ones stay: convolutions before attention are what
published hybrids that hold up against nnU-Net have in common (nnU-Net's Primus notes, MedFormer)."""
SMALLEST_STRIDE, SMALLEST_STRIDE_SHALLOW = 8, 4
"""Attention from this in-plane stride on: Primus' tokens of 8 voxels did better than those of 16, and at stride 4 a
patch of 128×128×128 would have 32,768 tokens. The second holds for networks of at most `SHALLOW_STAGES` stages."""
SHALLOW_STAGES = 4
"""Their bottleneck has a stride of 8 at most and, for so small a patch, few tokens: 5×7×5 of 40×56×40. At stride 4
there are 1,400, which two stages share."""
MOST_ANISOTROPY = 3.0
"""Of a stage's token spacing, coarsest by finest axis. Above it neighbors along the coarse axis show other anatomy;
the plan's convolutions do not mix them either before the spacings are within a factor of 2."""
FEWEST_TOKENS = 64
"""With fewer (4×4×4 is 64), two residual blocks, four convolutions of width 3, see every token from every other."""
MOST_TOKENS = 9216
"""Up to it every token is a key. Scores and sums cost 2·N²·C multiplications, the two 3×3×3 convolutions that the
block replaces 54·N·C²: equal at N = 27·C, 6,912 tokens for 256 channels and 8,640 for 320. A third above the former
lets 10×32×28 of a cardiac patch attend in full, at 1.5 times the cost of the convolutions (projections included)."""
POOLED_KEYS = {2: 16, 3: 7}
"""Else keys are averaged to at most this many per axis: 343 (256 in 2-D), so that 12,800 tokens cost 27 times less
than in full; MedFormer, which held its own in Touchstone, does with 27 keys. The queries stay as fine as they are."""
HEAD_CHANNELS = (64, 32, 16, 8, 4, 2)
"""The largest of these that divides the features: 64 is what fused kernels are made for, and it leaves each of three
axes ten pairs of channels for positions."""
DROP_PATH = 0.2
"""Of the last block, as in nnU-Net's transformers (Primus); less before it, 0 for the first."""


def plan_attention(topology: Topology, patch_shape: Sequence[int], spacing: Numbers) -> AttentionPlan:
    """The attention of a hybrid with the skeleton `topology` (a `resenc`'s) on a patch.

    `patch_shape` voxels and `spacing` mm in plan order. Where no stage is eligible, the coarsest one attends: a
    hybrid without attention would be another architecture.
    """
    stages = range(len(topology.strides))
    eligible = [stage for stage in stages if is_eligible(topology, patch_shape, spacing, stage)]
    attending = eligible or [stages[-1]]
    shapes = stage_shapes(topology, patch_shape)
    dimensions = len(patch_shape)
    pooled = (POOLED_KEYS[dimensions],) * dimensions
    return AttentionPlan(
        blocks=tuple(_attention_blocks(topology.encoder_blocks[stage]) * (stage in attending) for stage in stages),
        heads=tuple(_heads(topology.features[stage]) if stage in attending else 1 for stage in stages),
        key_shapes=tuple(
            pooled if stage in attending and math.prod(shapes[stage]) > MOST_TOKENS else None for stage in stages
        ),
        spacing=tuple(float(value) for value in spacing),
        drop_path=DROP_PATH,
    )


def is_eligible(topology: Topology, patch_shape: Sequence[int], spacing: Numbers, stage: int) -> bool:
    """Whether attention pays at a stage: coarse enough, nearly isotropic, and with tokens enough."""
    return why_not_eligible(topology, patch_shape, spacing, stage) is None


def why_not_eligible(topology: Topology, patch_shape: Sequence[int], spacing: Numbers, stage: int) -> str | None:
    """What forbids attention at a stage, with the number; None where nothing does."""
    stride = min(cumulative_strides(topology)[stage][-2:])
    shallow = len(topology.strides) <= SHALLOW_STAGES
    smallest = SMALLEST_STRIDE_SHALLOW if shallow else SMALLEST_STRIDE
    if stride < smallest:
        return f"stride {stride}, below {smallest}"
    sizes = token_spacing(topology, spacing, stage)
    if max(sizes) > MOST_ANISOTROPY * min(sizes):
        return f"tokens {max(sizes) / min(sizes):.2g} times longer than wide, above {MOST_ANISOTROPY:g}"
    tokens = math.prod(stage_shapes(topology, patch_shape)[stage])
    return f"{tokens} tokens, below {FEWEST_TOKENS}" if tokens < FEWEST_TOKENS else None


def token_spacing(topology: Topology, spacing: Numbers, stage: int) -> list[float]:
    """mm between neighboring voxels of a stage's feature maps, per axis; `spacing` mm between the patch's voxels."""
    return [float(step * size) for step, size in zip(cumulative_strides(topology)[stage], spacing, strict=True)]


def cumulative_strides(topology: Topology) -> list[tuple[int, ...]]:
    """Voxels of the patch per voxel of every stage, per axis."""
    totals, total = [], (1,) * len(topology.strides[0])
    for stride in topology.strides:
        total = tuple(before * step for before, step in zip(total, stride, strict=True))
        totals.append(total)
    return totals


def stage_shapes(topology: Topology, patch_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Voxels of every stage's feature maps, per axis."""
    return [
        tuple(size // step for size, step in zip(patch_shape, strides, strict=True))
        for strides in cumulative_strides(topology)
    ]


def _attention_blocks(residual_blocks: int) -> int:
    """The first block of a stage changes its resolution, and stays a residual one."""
    return min(BLOCKS_PER_STAGE, residual_blocks - 1)


def voxels_per_stage(topology: Topology, patch_shape: Sequence[int]) -> list[int]:
    """Voxels of the feature maps at every stage, the finest first."""
    return [math.prod(shape) for shape in stage_shapes(topology, patch_shape)]


def _heads(features: int) -> int:
    return next((features // channels for channels in HEAD_CHANNELS if features % channels == 0), 1)
