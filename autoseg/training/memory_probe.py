"""How much memory training a planned network takes on a device, measured by training it for two steps."""

import gc
import math
import os
from collections.abc import Callable

import torch

from autoseg.data.free_memory import available_memory_bytes
from autoseg.networks.builder import build_network
from autoseg.networks.introspection import describe_network
from autoseg.networks.segmenter import Segmenter
from autoseg.schema import ArchitectureName, NetworkPlan
from autoseg.training.losses import deep_supervision_loss
from autoseg.training.objective import DTYPES
from autoseg.training.optimization import clip_gradients, make_optimizer
from autoseg.training.probe import Precision, to_device_layout

STEPS = 2
"""The first creates the optimizer's buffers, the second has them beside everything else."""
ALLOCATION_FAILURES = (
    "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""What torch's CPU allocator and CUDA's libraries say; they raise RuntimeError."""


def measure_training_memory(
    architecture: ArchitectureName,
    network_plan: NetworkPlan,
    input_channels: int,
    output_channels: int,
    device: torch.device,
    precision: Precision,
) -> float:
    """GiB that training the planned network takes at its patch and batch; infinity where the device has less.

    Two steps on noise: forward under autocast, loss, backward, clipping, update. CUDA: what torch's allocator
    reserved at most, fragmentation included, the driver's own part (some hundred MB) not. CPU: the largest sum of
    live tensors' bytes; what torch's libraries allocate for themselves is not seen. Random states stay as they are.

    output_channels counts background. Where a CPU's memory is too small for the tensors that the backward pass
    needs, nothing is run: the system would end the process instead of refusing the memory.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"memory of {device} cannot be measured; cpu or cuda was expected")
    channels = (input_channels, output_channels)
    if device.type == "cpu" and least_bytes(architecture, network_plan, channels, precision) > available_memory_bytes():
        return math.inf

    def train() -> None:
        _train(architecture, network_plan, channels, device, precision)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            peak = _cuda_peak(train, device) if device.type == "cuda" else _cpu_peak(train)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            peak = math.inf
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return peak / 2**30


def precision_to_probe(device: torch.device) -> Precision:
    """The precision whose memory is measured: 16 bits, as `choose_precision` takes for a GPU.

    On a CPU bfloat16 as well, though a training there may turn out faster in float32 and then takes up to twice
    the memory: the number stands for the GPU that the plan is for.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16"


def least_bytes(
    architecture: ArchitectureName, network_plan: NetworkPlan, channels: tuple[int, int], precision: Precision
) -> int:
    """Bytes that training needs at any rate: weights, their buffers, and what the backward pass reads.

    channels : of the input, and of the output with background.
    """
    anywhere = (1.0,) * len(network_plan.patch_shape)
    described = describe_network(architecture, network_plan, *channels, anywhere)
    activations = described.saved_bytes * network_plan.batch_size * (2 if precision == "float32" else 1)
    return activations + described.parameters * network_plan.optimizer.bytes_per_weight


def _train(
    architecture: ArchitectureName, network_plan: NetworkPlan, channels: tuple[int, int], device: torch.device,
    precision: Precision,
) -> None:  # fmt: skip
    network = to_device_layout(build_network(architecture, network_plan, *channels), device)
    optimizer = make_optimizer(network, network_plan.optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        _backward(network, network_plan, channels, device, precision, scaler)
        scaler.unscale_(optimizer)
        clip_gradients(network, network_plan.optimizer.gradient_clip)
        scaler.step(optimizer)
        scaler.update()


def _backward(  # noqa: PLR0913 (all that a step consists of)
    network: Segmenter, network_plan: NetworkPlan, channels: tuple[int, int], device: torch.device,
    precision: Precision, scaler: torch.amp.GradScaler,
) -> None:  # fmt: skip
    batch, patch = network_plan.batch_size, network_plan.patch_shape
    image = torch.randn(batch, channels[0], *patch, device=device)
    labels = torch.randint(channels[1], (batch, *patch), device=device)
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
        logits = network.forward_all(image)
    loss = deep_supervision_loss(logits, labels, network_plan.batch_dice)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]


def _cuda_peak(run: Callable[[], None], device: torch.device) -> float:
    """Bytes that the allocator reserved at most, beyond what it held before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    run()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_reserved(device) - before)


def _cpu_peak(run: Callable[[], None]) -> float:
    """The largest sum of bytes that torch's CPU allocator had given out and not got back, since the start."""
    # Else torch's profiler writes about itself on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
        # Whatever stays alive would be missing when it is freed, in this measurement or in the next.
        gc.collect()
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    live, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(peak)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ALLOCATION_FAILURES)
