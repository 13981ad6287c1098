"""Which device `plan` measures memory on, and the plan refined by these measurements."""

import ctypes
import logging
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from autoseg.commands.options import DeviceName
from autoseg.progress import readable_seconds
from autoseg.recording import Recording
from autoseg.schema import ArchitectureName, ConfigurationName, Fingerprint, NetworkPlan, Plan

if TYPE_CHECKING:
    import torch

    from autoseg.planning.planner import PlanSettings

DRIVERS = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1",)

logger = logging.getLogger("autoseg")


def device_to_probe(name: DeviceName, asked: bool | None, keeps_numbers: bool) -> "torch.device | None":
    """The device to measure on, or None.

    By default (`asked` None) a GPU is measured, a CPU, whose memory is ordinary memory, is not; nor is anything
    where a peer's numbers are kept (`keeps_numbers`). UserError where CUDA was named and is absent.
    """
    # Importing torch takes longer than planning: only where its answer matters.
    if name != "cuda" and not asked and (name == "cpu" or not has_gpu_driver()):
        return None
    from autoseg.inference.device import choose_device

    device = choose_device(name)
    by_default = device.type == "cuda" and not keeps_numbers
    return device if asked or (asked is None and by_default) else None


def has_gpu_driver() -> bool:
    """Whether this machine has a CUDA driver; without one torch finds no GPU."""
    for library in DRIVERS:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def refine_on_device(  # noqa: PLR0913 (what is planned, and where)
    plan: Plan,
    fingerprint: Fingerprint,
    settings: "PlanSettings",
    configurations: Sequence[ConfigurationName],
    device: "torch.device",
    recording: Recording,
) -> Plan:
    """The plan with patch and batch fitted to memory as measured on the device; what was measured is recorded."""
    import torch

    from autoseg.planning.configurations import CASCADE, FULLRES
    from autoseg.planning.measured import refine_plan
    from autoseg.training.memory_probe import measure_training_memory, precision_to_probe

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    precision, start, runs = precision_to_probe(device), time.perf_counter(), 0
    logger.info("measuring memory on %s (%s) …", name, precision)

    def measure(architecture: ArchitectureName, network: NetworkPlan, channels: int) -> float:
        nonlocal runs
        runs += 1
        gib = measure_training_memory(architecture, network, channels, len(plan.labels), device, precision)
        shape = "×".join(map(str, network.patch_shape))
        took = f"{gib:.2f} GiB" if gib < math.inf else "more than there is"
        recomputed = f", {network.checkpointed_stages} stages checkpointed" * bool(network.checkpointed_stages)
        logger.info("  %s, patch %s, batch %d%s: %s", architecture, shape, network.batch_size, recomputed, took)
        return gib

    refined = plan
    for configuration in (one for one in configurations if one != CASCADE):
        # A cascade has the network of 3d_fullres, which must fit with its channels too.
        channels = plan.input_channels(CASCADE if configuration == FULLRES and CASCADE in configurations
                                       else configuration)
        refined = refine_plan(refined, fingerprint, settings, [configuration], partial(measure, channels=channels),
                              name)
    seconds = time.perf_counter() - start
    logger.info("measured %d times in %s", runs, readable_seconds(seconds))
    recording.device = name
    recording.results.update(memory_probes=runs, memory_probe_seconds=round(seconds, 3),
                             memory_probe_precision=precision)
    return refined
