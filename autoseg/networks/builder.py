"""A network with its first weights, from its plan."""

import math
from collections.abc import Callable

from autoseg.errors import all_of
from autoseg.networks.segmenter import Segmenter
from autoseg.networks.unet import UNet
from autoseg.schema import ArchitectureName, NetworkPlan, Topology

# MONAI takes a second to import: only who asks for its networks waits for it.


def _unet(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    return UNet(architecture, network.topology, inputs, outputs, network.checkpointed_stages)


def _unetr(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.unetr import UNETR

    return UNETR(network, inputs, outputs)


def _unetr_pp(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.unetr_pp import UNETRPlusPlus

    return UNETRPlusPlus(network, inputs, outputs)


def _swin_unetr(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.monai_networks import SwinUNETR

    return SwinUNETR(network, inputs, outputs)


def _mednext(architecture: ArchitectureName, network: NetworkPlan, inputs: int, outputs: int) -> Segmenter:
    from autoseg.networks.monai_networks import MedNeXt

    return MedNeXt(network, inputs, outputs)


NETWORKS: dict[ArchitectureName, Callable[[ArchitectureName, NetworkPlan, int, int], Segmenter]] = {
    "plain": _unet,
    "resenc": _unet,
    "hybrid": _unet,
    "unetr": _unetr,
    "unetr-pp": _unetr_pp,
    "swin-unetr": _swin_unetr,
    "mednext": _mednext,
}


def make_network(
    architecture: ArchitectureName, network: NetworkPlan, input_channels: int, output_channels: int
) -> Segmenter:
    """The planned network in float32 with weights that mean nothing yet, on torch's default device."""
    return NETWORKS[architecture](architecture, network, input_channels, output_channels)


def build_network(
    architecture: ArchitectureName, network: NetworkPlan, input_channels: int, output_channels: int
) -> Segmenter:
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
    built = make_network(architecture, network, input_channels, output_channels)
    built.initialize()
    return built


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
