"""How far a residual encoder sees: in theory, and effectively.

Per axis, in voxels of the patch. A convolution of width k on a grid of step s reaches k - 1 steps. Which voxels
matter follows a random walk: every convolution moves by a step of variance s² (k² - 1) / 12, so that influence falls
off as a Gaussian (Luo et al. 2016, "Understanding the effective receptive field"). Its width is taken as four
standard deviations, which hold 95% of it.
"""

import math

from autoseg.planning.attention import cumulative_strides
from autoseg.schema import Topology

EFFECTIVE_SIGMAS = 4.0


def theoretical_field(topology: Topology, stage: int) -> tuple[int, ...]:
    """Voxels per axis that an output of an encoder stage of `resenc` can depend on."""
    return tuple(
        1 + sum(count * (kernel[axis] - 1) * step[axis] for count, kernel, step in _convolutions(topology, stage))
        for axis in range(len(topology.strides[0]))
    )


def effective_field(topology: Topology, stage: int) -> tuple[float, ...]:
    """Voxels per axis that most of an output of an encoder stage of `resenc` depends on; at most the theoretical."""
    widths = []
    for axis, most in enumerate(theoretical_field(topology, stage)):
        variance = sum(
            count * step[axis] ** 2 * (kernel[axis] ** 2 - 1) / 12
            for count, kernel, step in _convolutions(topology, stage)
        )
        widths.append(min(float(most), EFFECTIVE_SIGMAS * math.sqrt(variance)))
    return tuple(widths)


def _convolutions(topology: Topology, stage: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(number, kernel, step of their input's grid) of all convolutions up to a stage: stem and residual blocks."""
    strides, convolutions = cumulative_strides(topology), [(1, topology.kernel_sizes[0], topology.strides[0])]
    for index in range(stage + 1):
        kernel = topology.kernel_sizes[index]
        # The first one is strided: its input is the finer grid.
        convolutions.append((1, kernel, strides[max(0, index - 1)]))
        convolutions.append((2 * topology.encoder_blocks[index] - 1, kernel, strides[index]))
    return convolutions
