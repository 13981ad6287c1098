"""A network with its first weights, from its plan."""

import math

from autoseg.errors import all_of
from autoseg.networks.unet import UNet, initialize
from autoseg.schema import ArchitectureName, NetworkPlan, Topology


def build_network(
    architecture: ArchitectureName, network: NetworkPlan, input_channels: int, output_channels: int
) -> UNet:
    """The planned network in float32 on the CPU, initialized from torch's global generator (seed it first).

    Raises
    ------
    UserError : the plan's topology contradicts itself or its patch (plan.json was edited).
    """
    if problems := topology_problems(network.topology, network.patch_shape):
        raise all_of(
            problems, f"The plan's `{architecture}` network cannot be built:",
            "Correct these entries in plan.json, or plan again: autoseg plan.",
        )
    unet = UNet(architecture, network.topology, input_channels, output_channels)
    initialize(unet)
    return unet


def topology_problems(topology: Topology, patch_shape: tuple[int, ...]) -> list[str]:
    """One line for each contradiction between the parts of a topology, and between it and the patch."""
    stages = len(topology.features)
    lengths = dict.fromkeys(("strides", "kernel_sizes", "encoder_blocks"), stages) | {"decoder_blocks": stages - 1}
    problems = [
        f"topology.{name} has {len(getattr(topology, name))} entries; {expected} were expected (features: {stages})"
        for name, expected in lengths.items()
        if len(getattr(topology, name)) != expected
    ]
    if stages < 2:
        problems.append(f"topology.features has {stages} stages; at least 2 were expected")
    if len(patch_shape) not in (2, 3):
        problems.append(f"patch_shape {patch_shape} has {len(patch_shape)} axes; 2 or 3 were expected")
    for name, entries in (("strides", topology.strides), ("kernel_sizes", topology.kernel_sizes)):
        problems += [
            f"topology.{name}: {entry} has {len(entry)} axes, the patch {len(patch_shape)}"
            for entry in entries
            if len(entry) != len(patch_shape)
        ]
    if problems:
        return problems
    return _value_problems(topology, patch_shape)


def _value_problems(topology: Topology, patch_shape: tuple[int, ...]) -> list[str]:
    problems = [
        f"topology.{name}: {min(numbers)} where at least 1 was expected"
        for name in ("features", "encoder_blocks", "decoder_blocks")
        if min(numbers := getattr(topology, name)) < 1
    ]
    if any(size < 1 or size % 2 == 0 for kernel in topology.kernel_sizes for size in kernel):
        problems.append(f"topology.kernel_sizes {topology.kernel_sizes}: positive odd numbers were expected")
    if any(step < 1 for stride in topology.strides for step in stride):
        problems.append(f"topology.strides {topology.strides}: positive numbers were expected")
        return problems
    if any(step != 1 for step in topology.strides[0]):
        problems.append(f"topology.strides begin with {topology.strides[0]}; 1 along every axis was expected")
    totals = tuple(math.prod(steps) for steps in zip(*topology.strides, strict=True))
    if any(size < 1 or size % total for size, total in zip(patch_shape, totals, strict=True)):
        problems.append(f"patch_shape {patch_shape}: multiples of all strides' product {totals} expected")
    return problems
