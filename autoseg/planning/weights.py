"""How many weights the U-Nets of ours have (`plain`, `resenc`, `hybrid`), from the topology alone.

Exact for images of one channel; every further one adds a kernel per feature of the first convolution.
"""

import math

from autoseg.schema import ArchitectureName, Topology

GATED_MATRICES = 3
"""Of an attention block's gated layer: gate, value, output."""
GATED_WIDTH, GATED_MULTIPLE = 8 / 3, 8
"""Its hidden width per channel, rounded up to a multiple."""


def count_unet_weights(architecture: ArchitectureName, topology: Topology, output_channels: int) -> int:
    """Weights of encoder, attention and decoder; `output_channels` counts background."""
    kernels = [math.prod(kernel) for kernel in topology.kernel_sizes]
    features = topology.features
    total = 0 if architecture == "plain" else _convolution(1, features[0], kernels[0])
    inputs = 1 if architecture == "plain" else features[0]
    for stage, (outputs, kernel, blocks) in enumerate(zip(features, kernels, topology.encoder_blocks, strict=True)):
        plan = topology.attention
        attending = 0 if plan is None else plan.blocks[stage]
        block = _convolution if architecture == "plain" else _residual_block
        total += block(inputs, outputs, kernel) + (blocks - attending - 1) * block(outputs, outputs, kernel)
        if plan is not None and attending:
            total += attending * _attention_block(outputs, plan.heads[stage], kernel)
        inputs = outputs
    return total + _decoder_weights(topology, kernels, output_channels)


def _decoder_weights(topology: Topology, kernels: list[int], output_channels: int) -> int:
    """Per level a transposed convolution, convolutions on it and the skip, and a head for logits."""
    total, coarsest = 0, len(topology.features) - 2
    for depth, count in enumerate(topology.decoder_blocks):
        level = coarsest - depth
        below, here = topology.features[level + 1], topology.features[level]
        total += below * here * math.prod(topology.strides[level + 1]) + here
        total += _convolution(2 * here, here, kernels[level]) + (count - 1) * _convolution(here, here, kernels[level])
        total += (here + 1) * output_channels
    return total


def _convolution(inputs: int, outputs: int, kernel: int) -> int:
    """A convolution with bias, and its norm's scale and shift."""
    return inputs * outputs * kernel + 3 * outputs


def _residual_block(inputs: int, outputs: int, kernel: int) -> int:
    """Two convolutions, and a normalized projection where the number of features changes."""
    skip = 0 if inputs == outputs else inputs * outputs + 2 * outputs
    return _convolution(inputs, outputs, kernel) + _convolution(outputs, outputs, kernel) + skip


def _attention_block(features: int, heads: int, kernel: int) -> int:
    """Position encoding, queries, keys, values, projection, gated layer; norms, scales and biases."""
    hidden = GATED_MULTIPLE * math.ceil(features * GATED_WIDTH / GATED_MULTIPLE)
    matrices = 4 * features**2 + GATED_MATRICES * hidden * features
    # Biases of position encoding, projection and gated layer (3), two norms (4), two scales of the halves (2).
    return matrices + features * kernel + 9 * features + 2 * (features // heads)
