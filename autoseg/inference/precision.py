"""In which precision a device computes forward passes fastest; on a CPU measured on the networks themselves."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoseg.inference.ensembling import Member, make_ensembles
from autoseg.inference.joint_head import summed_map
from autoseg.records import content_hash
from autoseg.schema import CHECKPOINTED, CheckpointInfo

PROBE_SECONDS = 1.6  # no further pass begins after this long
PROBE_VOXELS = 48**3  # of the probe's first window
ENOUGH_SECONDS = 0.1  # of a pass: a shorter one says little about a patch that does not fit in the caches
CLEAR = 1.25  # times faster, each in its best of three passes: no further one is needed
DECISIVE = 1.6  # times faster with its first pass than float32 in two
MOST_PASSES = 7  # in a precision
FEWEST_DEEPEST = 2  # voxels

logger = logging.getLogger("autoseg")


@dataclass(frozen=True)
class Precision:
    """A precision for windows and why; `None` is that of exact prediction."""

    dtype: torch.dtype | None
    reason: str

    def __str__(self) -> str:
        chosen = "that of exact prediction" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return f"precision {chosen}: {self.reason}"


_measured: dict[str, tuple[float, float]] = {}  # network and threads → seconds in float32 and bfloat16


def fastest_precision(members: Sequence[Member], device: torch.device) -> Precision:
    """The precision in which all these models together are fastest on a device.

    CPU: bfloat16 where one window through each kind of network is faster in it than in float32, measured once per kind
    in a process (`probe_windows`, `_time_window`). Elsewhere: that of exact prediction (CUDA: float16).
    """
    if device.type != "cpu":
        return Precision(None, f"no other is tried on {device.type}")
    make_ensembles(members, device)  # the memory format in which they will compute
    stages = [stage for member in members for stage in member.stages]
    measured = [_seconds_of(*stage.folds[0]) for stage in stages]
    single, half = (sum(seconds) for seconds in zip(*measured, strict=True))
    reason = f"one window takes {1e3 * single:.0f} ms in float32, {1e3 * half:.0f} ms in bfloat16"
    return Precision(torch.bfloat16 if half < single else None, reason)


def _seconds_of(network: nn.Module, info: CheckpointInfo) -> tuple[float, float]:
    kind = content_hash([info.architecture, info.network.model_dump(mode="json"), info.input_channels,
                         len(info.outputs), torch.get_num_threads()])
    if kind not in _measured:
        _measured[kind] = _time_window(summed_map(network),
                                       [(1, info.input_channels, *window) for window in probe_windows(info)])
    return _measured[kind]


def probe_windows(info: CheckpointInfo) -> list[tuple[int, ...]]:
    """The patch; of a network that takes others too, before it the patch with its longest axes halved until small.

    The smallest is the first. An axis stays a multiple of the product of its strides, and the deepest features keep two
    voxels: torch's instance normalization refuses a single one (`autoseg.networks.normalization` takes it on a CPU, and
    returns its bias).
    """
    window = list(info.network.patch_shape)
    windows = [tuple(window)]
    if info.architecture not in CHECKPOINTED:  # position embeddings belong to one shape
        return windows
    least = [math.prod(axis) for axis in zip(*info.network.topology.strides, strict=True)]
    while math.prod(window) > PROBE_VOXELS and math.prod(window) >= 2 * FEWEST_DEEPEST * math.prod(least):
        can = [axis for axis, length in enumerate(window) if length // 2 % least[axis] == 0 and length % 2 == 0]
        if not can:
            break
        longest = max(can, key=lambda axis: window[axis])
        window[longest] //= 2
        windows.insert(0, tuple(window))
    return windows


@torch.inference_mode()
def _time_window(compute: Callable[[Tensor], object], shapes: Sequence[tuple[int, ...]]) -> tuple[float, float]:
    """The shortest pass in float32 and in bfloat16, of the first window that takes `ENOUGH_SECONDS` in float32.

    A window's first pass in a precision also builds kernels; so windows are judged by their second. Passes are made in
    turn, so that a machine that is busy for a while slows both, until one precision is clearly faster. None begins
    after `PROBE_SECONDS` but those without which nothing could be said.
    """
    begin = time.perf_counter()

    def has_time() -> bool:
        return time.perf_counter() - begin < PROBE_SECONDS

    for shape in shapes:
        window = torch.zeros(shape)
        single = [_pass_seconds(compute, window, False) for _ in range(2)]
        if single[1] >= ENOUGH_SECONDS or not has_time():
            break
    half = [_pass_seconds(compute, window, True)]
    if min(single) > DECISIVE * half[0]:
        return min(single), half[0]
    half.append(_pass_seconds(compute, window, True))
    while len(half) < MOST_PASSES and has_time():
        single.append(_pass_seconds(compute, window, False))
        half.append(_pass_seconds(compute, window, True))
        if max(min(single), min(half)) > CLEAR * min(*single, *half):
            break
    return min(single), min(half)


def _pass_seconds(compute: Callable[[Tensor], object], window: Tensor, bfloat16: bool) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        compute(window)
    return time.perf_counter() - start
