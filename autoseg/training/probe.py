"""What a device does best, measured: the precision of the forward pass and the memory format of weights."""

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from autoseg.networks.memory import keep_freed_memory
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.unet import ConvolutionBlock

Precision = Literal["float32", "bfloat16", "float16"]

# The probe stops repeating after this long; the first runs, which build kernels, are not counted.
PROBE_SECONDS = 1.6
# Voxels of the probe's patch: enough for the cost of convolutions to dominate, few enough for a slow CPU.
PROBE_VOXELS = 32**3
# Of a network without such blocks, this many features and voxels along each axis of the kernel are probed.
PROBE_FEATURES, PROBE_KERNEL = 32, 3


@dataclass(frozen=True)
class ProbedPrecision:
    """The precision to train in, and why.

    `float32_seconds`, `bfloat16_seconds`: one convolution block, forward and backward; None if not measured.
    float16 needs a gradient scaler; the others do not.
    """

    precision: Precision
    reason: str
    float32_seconds: float | None = None
    bfloat16_seconds: float | None = None

    def __str__(self) -> str:
        return f"precision {self.precision}: {self.reason}"


def choose_precision(network: Segmenter, input_shape: tuple[int, ...], device: torch.device) -> ProbedPrecision:
    """The precision for autocast on a device.

    CUDA: bfloat16 where the GPU computes in it, else float16. CPU: bfloat16 if one convolution block of the
    first stage is faster in it (at most about two seconds of measuring). Other devices: float32.

    input_shape : (batch, channel, *patch) of training. The caller may force a precision by not asking.
    """
    if device.type == "cuda":
        # `is_bf16_supported` also counts emulation unless told not to.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return ProbedPrecision("bfloat16", "the GPU computes in it")
        return ProbedPrecision("float16", "the GPU does not compute in bfloat16; losses are scaled")
    if device.type != "cpu":
        return ProbedPrecision("float32", f"no other precision is tried on {device.type}")
    block = _probe_block(network, len(input_shape) - 2)
    shape = _probe_shape(block.convolution.out_channels, input_shape)
    single, half = _seconds(block, shape)
    precision: Precision = "bfloat16" if half < single else "float32"
    reason = f"one block takes {1e3 * single:.1f} ms in float32, {1e3 * half:.1f} ms in bfloat16"
    return ProbedPrecision(precision, reason, single, half)


def to_device_layout(network: Segmenter, device: torch.device) -> Segmenter:
    """The network on a device, in the memory format in which training is fastest there.

    CPU: channels last, and freed memory is kept for reuse (see `keep_freed_memory`). Measured on two cores
    (AMD, avx512_bf16), a step of `resenc` on 7 patches of 40 × 56 × 40: bfloat16 1.49 s, channels first 1.65 s;
    float32 2.83 s, channels first 3.02 s. CUDA: as it is (not measured).
    """
    if device.type == "cpu":
        keep_freed_memory()
        return network.to(device, memory_format=_channels_last(network))  # type: ignore[call-overload,no-any-return]
    return network.to(device)


def _channels_last(network: nn.Module) -> torch.memory_format:
    is_3d = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return torch.channels_last_3d if is_3d else torch.channels_last


def _probe_block(network: nn.Module, axes: int) -> ConvolutionBlock:
    """A block as in the first stage, with weights of its own: the network's gradients are left alone."""
    first = next((module for module in network.modules() if isinstance(module, ConvolutionBlock)), None)
    features, kernel = PROBE_FEATURES, (PROBE_KERNEL,) * axes
    if first is not None:
        features, kernel = first.convolution.out_channels, first.convolution.kernel_size
    # The draws of the caller's seed must not depend on whether it was probed.
    with torch.random.fork_rng(devices=[]):
        block = ConvolutionBlock(features, features, kernel, (1,) * len(kernel))
    block.to(memory_format=_channels_last(block))  # type: ignore[call-overload]
    return block


def _probe_shape(features: int, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """(batch, channel, *patch) of the probe: the plan's patch, its longest axis halved until small."""
    axes = list(input_shape[2:])
    while math.prod(axes) > PROBE_VOXELS:
        longest = axes.index(max(axes))
        axes[longest] //= 2
    return (min(2, input_shape[0]), features, *axes)


def _seconds(block: ConvolutionBlock, shape: tuple[int, ...]) -> tuple[float, float]:
    """The shortest forward and backward pass in float32 and in bfloat16; the first of each is not counted.

    They are timed in turn, so that a machine that is busy for a while slows both.
    """
    x = torch.zeros(shape).to(memory_format=_channels_last(block)).requires_grad_()
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[1]) < 3 or (time.perf_counter() - begin < PROBE_SECONDS and len(times[1]) < 20):
        for bfloat16 in (False, True):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                out = block(x)
            out.float().sum().backward()
            times[bfloat16].append(time.perf_counter() - start)
    return min(times[False][1:]), min(times[True][1:])
