"""Whether a planned network can be built at all: plans are JSON, and people edit them."""

import math
from typing import get_args

from autoseg.errors import all_of
from autoseg.schema import CHECKPOINTED, ArchitectureName, AttentionPlan, NetworkPlan, Topology


def refuse_unsound(architecture: ArchitectureName, network: NetworkPlan, whose: str, remedy: str) -> None:
    """UserError listing every contradiction in a network's plan; `whose`: "The plan's"."""
    problems = [*_fit_problems(architecture, network), *topology_problems(network.topology, network.patch_shape)]
    if problems:
        raise all_of(problems, f"{whose} `{architecture}` network cannot be built:", remedy)


def _fit_problems(architecture: ArchitectureName, network: NetworkPlan) -> list[str]:
    """What this architecture does not have, or must have."""
    problems, attends = [], network.topology.attention is not None
    if attends != (architecture == "hybrid"):
        found = "has" if attends else "lacks"
        problems.append(f"topology.attention: a `{architecture}` network {found} it; of {get_args(ArchitectureName)} "
                        "only hybrid has attention of this kind, and always")
    if network.checkpointed_stages and architecture not in CHECKPOINTED:
        problems.append(f"checkpointed_stages is {network.checkpointed_stages}; 0 was expected: only "
                        f"{', '.join(CHECKPOINTED)} can compute stages twice")
    if network.checkpointed_stages >= len(network.topology.features):
        problems.append(f"checkpointed_stages is {network.checkpointed_stages}; less than the number of stages, "
                        f"{len(network.topology.features)}, was expected")
    return problems


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
    return [*_value_problems(topology, patch_shape), *_attention_problems(topology)]


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


def _attention_problems(topology: Topology) -> list[str]:
    """As `topology_problems`, of the attention; the rest of the topology is sound."""
    plan, stages, axes = topology.attention, len(topology.features), len(topology.strides[0])
    if plan is None:
        return []
    lengths = {"blocks": stages, "heads": stages, "key_shapes": stages, "spacing": axes}
    problems = [
        f"topology.attention.{name} has {len(getattr(plan, name))} entries; {expected} were expected"
        for name, expected in lengths.items()
        if len(getattr(plan, name)) != expected
    ]
    return problems or _attention_value_problems(plan, topology)


def _attention_value_problems(plan: AttentionPlan, topology: Topology) -> list[str]:
    axes, problems = len(topology.strides[0]), []
    for stage, (count, heads, keys) in enumerate(zip(plan.blocks, plan.heads, plan.key_shapes, strict=True)):
        most = topology.encoder_blocks[stage] - 1
        if not 0 <= count <= most:
            problems.append(f"topology.attention.blocks has {count} at stage {stage}; 0 to {most} was expected: the "
                            "first block is residual")
        if heads < 1 or topology.features[stage] % heads:
            problems.append(f"topology.attention.heads has {heads} at stage {stage}; a divisor of its "
                            f"{topology.features[stage]} features was expected")
        if keys is not None and (len(keys) != axes or min(keys) < 1):
            problems.append(f"topology.attention.key_shapes has {keys} at stage {stage}; {axes} numbers above 0 were "
                            "expected, or null")
    if sum(plan.blocks) == 0:
        problems.append("topology.attention.blocks are all 0; a hybrid has at least one")
    return problems
