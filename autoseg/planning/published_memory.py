"""What training UNETR, UNETR++, Swin UNETR and MedNeXt keeps in memory: values per sample and weights, by formula.

Counted are the numbers that automatic differentiation saves, layer by layer, a tensor once however many layers read
it; halved, they are in the unit of nnU-Net's feature-map values (see `memory`). Below, "maps" are saved numbers per
voxel (or token) and channel. Images of one channel are assumed: more change little.
"""

import math
from collections.abc import Callable, Sequence

from autoseg.planning.attention import stage_shapes, voxels_per_stage
from autoseg.schema import ArchitectureName, Topology

SAVED_PER_VALUE = 2
"""A value of nnU-Net's count is one convolution's output; it is saved for the normalization, and what normalization
and activation make of it for the next convolution. `resenc` saves 1.92 to 1.94 numbers per value, `plain` 1.98."""
RESIDUAL_MAPS = 5
"""Of a residual block: both convolutions' outputs, the activations after the first norm and after the sum, and the
input or, where the image is the input, its projection."""
DECODER_MAPS = 7
"""Of upsampling and a residual block: upsampled map and skip side by side (2), the block with their projection (5)."""
TRANSFORMER_MAPS = 17
"""Of a block of UNETR: both inputs (2) and what the norms make of them (2), queries, keys, values (3), the mixture by
head and by token (2), the hidden layer of 4 before and after its activation (8)."""
PAIRED_MAPS, PAIRED_SCORES = 20, 3.7
"""Of a block of UNETR++ per token and channel, and per attention weight: weights before and after the temperature,
softmax and dropout, whose mask takes a byte."""
PAIRED_TOKENS, PAIRED_BOTTLENECK_TOKENS, PAIRED_HEADS = 64, 32, 4
SWIN_MAPS, SWIN_WINDOW_MAPS, SWIN_MERGING_MAPS = 9, 6, 3
"""Of a block of Swin UNETR per token and channel, and per token of the padded windows (queries, keys, values, the
weighted sum, the projection); of merging tokens at a stage's end."""
SWIN_WINDOW, SWIN_HEADS, SWIN_MLP = 7, 3, 4
"""Heads of the first stage; later ones have twice as many each."""
MEDNEXT_MAPS, MEDNEXT_UP_MAPS, MEDNEXT_DOWN_MAPS = 7, 12, 3
"""Of a block: input, depthwise convolution, norm, and the expanded layer of 2 before and after its activation. A block
that doubles the resolution computes all this on twice the channels of its output; one that halves it, on half."""
MEDNEXT_EXPANSION = 2

Count = tuple[int, int]
"""(values per sample, weights)."""


def count_unetr(topology: Topology, patch_shape: Sequence[int], output_channels: int) -> Count:
    """The transformer at the coarsest stage, skips upsampled from it, the decoder."""
    voxels, features = voxels_per_stage(topology, patch_shape), topology.features
    kernels = _sizes(topology.kernel_sizes)
    steps, depth, hidden = _sizes(topology.strides), len(voxels) - 1, topology.features[-1]
    blocks = sum(topology.encoder_blocks[1:])
    saved = TRANSFORMER_MAPS * blocks * voxels[-1] * hidden + RESIDUAL_MAPS * voxels[0] * features[0]
    weights = 12 * blocks * hidden**2 + hidden * (math.prod(steps) + voxels[-1])
    weights += kernels[0] * features[0] * (features[0] + 1)
    for level in range(depth):
        below, here = features[level + 1], features[level]
        saved += DECODER_MAPS * voxels[level] * here
        weights += steps[level + 1] * below * here + _projecting_block(kernels[level], 2 * here, here)
        if level > 0:
            # The first upsampling of a skip, then residual blocks on every level down to the skip's.
            between = range(level, depth - 1)
            weights += steps[-1] * hidden * here
            saved += sum(RESIDUAL_MAPS * voxels[step] * here for step in between)
            weights += sum((steps[step + 1] + 2 * kernels[step]) * here**2 for step in between)
    return round(saved / SAVED_PER_VALUE), weights + features[0] * output_channels


def count_unetr_pp(topology: Topology, patch_shape: Sequence[int], output_channels: int) -> Count:
    """Paired attention on the way down and up, residual blocks at full resolution."""
    voxels, features = voxels_per_stage(topology, patch_shape), topology.features
    kernels = _sizes(topology.kernel_sizes)
    steps, depth = _sizes(topology.strides), len(voxels) - 1
    finest = voxels[0] * features[0] * (topology.encoder_blocks[0] + topology.decoder_blocks[-1])
    saved, weights = float(RESIDUAL_MAPS * finest), kernels[0] * features[0] * (3 * features[0] + 1)
    for stage in range(1, depth + 1):
        tokens, channels, bottom = voxels[stage], features[stage], stage == depth
        projected = min(tokens, PAIRED_BOTTLENECK_TOKENS if bottom else PAIRED_TOKENS)
        blocks = topology.encoder_blocks[stage] + (0 if bottom else topology.decoder_blocks[depth - 1 - stage])
        scores = PAIRED_HEADS * tokens * projected + channels**2 / PAIRED_HEADS
        saved += blocks * (PAIRED_MAPS * tokens * channels + PAIRED_SCORES * scores)
        weights += blocks * (tokens * (channels + projected) + (6 + 2 * kernels[stage]) * channels**2)
        merged = features[stage - 1] if stage > 1 else 1
        weights += steps[stage] * channels * (merged + features[stage - 1])
    supervised = sum(features[: min(3, depth)])
    return round(saved / SAVED_PER_VALUE), weights + supervised * output_channels


def count_swin_unetr(topology: Topology, patch_shape: Sequence[int], output_channels: int) -> Count:
    """Windowed attention from the second stage to the last but one, a residual block on every skip and level."""
    shapes, voxels = stage_shapes(topology, patch_shape), voxels_per_stage(topology, patch_shape)
    features, axes, depth = topology.features, len(patch_shape), len(topology.strides) - 1
    kernel = 3**axes
    saved, weights = features[1] * voxels[1], 2**axes * features[1]
    for stage in range(1, depth):
        channels, blocks = features[stage], topology.encoder_blocks[stage]
        window, padded = _windows(shapes[stage])
        scores = padded * window * SWIN_HEADS * 2 ** (stage - 1)
        saved += blocks * (channels * (SWIN_MAPS * voxels[stage] + SWIN_WINDOW_MAPS * padded) + scores)
        saved += SWIN_MERGING_MAPS * voxels[stage] * channels
        weights += blocks * (4 + 2 * SWIN_MLP) * channels**2 + 2 ** (axes + 1) * channels**2
    for level in range(depth):
        here, below = features[level], features[level + 1]
        # The last skip is the transformer's output as it is; the bottleneck has a block instead.
        on_skip = RESIDUAL_MAPS if level < depth - 1 else 0
        saved += (on_skip + DECODER_MAPS) * voxels[level] * here
        weights += 2**axes * below * here + _projecting_block(kernel, 2 * here, here)
        weights += bool(on_skip) * kernel * here * (here + (1 if level == 0 else here))
    saved += RESIDUAL_MAPS * voxels[-1] * features[-1]
    return round(saved / SAVED_PER_VALUE), weights + 2 * kernel * features[-1] ** 2 + features[0] * output_channels


def count_mednext(topology: Topology, patch_shape: Sequence[int], output_channels: int) -> Count:
    """Depthwise convolutions and expanded layers on every stage; blocks that change the resolution between them."""
    voxels, features = voxels_per_stage(topology, patch_shape), topology.features
    depth, axes = len(voxels) - 1, len(patch_shape)
    saved, weights = voxels[0] * features[0], features[0]
    for stage, (size, channels) in enumerate(zip(voxels, features, strict=True)):
        blocks = topology.encoder_blocks[stage] + (topology.decoder_blocks[depth - 1 - stage] if stage < depth else 0)
        saved += MEDNEXT_MAPS * blocks * size * channels
        weights += blocks * _mednext_block(axes, channels, channels) + channels * output_channels
        if stage < depth:
            below = features[stage + 1]
            saved += size * channels + MEDNEXT_DOWN_MAPS * voxels[stage + 1] * below
            saved += MEDNEXT_UP_MAPS * size * channels
            # Each resampling block also has a 1×1 convolution on its skip.
            weights += _mednext_block(axes, channels, below) + _mednext_block(axes, below, channels)
            weights += 2 * channels * below
    return round(saved / SAVED_PER_VALUE), weights


def _mednext_block(axes: int, inputs: int, outputs: int) -> int:
    kernel: int = 3**axes
    return inputs * kernel + MEDNEXT_EXPANSION * inputs * (inputs + outputs)


def _projecting_block(kernel: int, inputs: int, outputs: int) -> int:
    """Weights of a residual block: two convolutions, and one of width 1 on its skip."""
    return kernel * outputs * (inputs + outputs) + inputs * outputs


def _windows(shape: Sequence[int]) -> tuple[int, int]:
    """Tokens of a window, and of all windows, which overhang a map that the window does not divide."""
    window = [min(SWIN_WINDOW, size) for size in shape]
    padded = [math.ceil(size / step) * step for size, step in zip(shape, window, strict=True)]
    return math.prod(window), math.prod(padded)


def _sizes(shapes: Sequence[Sequence[int]]) -> list[int]:
    return [math.prod(shape) for shape in shapes]


COUNTS: dict[ArchitectureName, Callable[[Topology, Sequence[int], int], Count]] = {
    "unetr": count_unetr,
    "unetr-pp": count_unetr_pp,
    "swin-unetr": count_swin_unetr,
    "mednext": count_mednext,
}
