"""Why a network has its patch, its batch, its stages and its attention, in sentences with the numbers."""

import math
from collections.abc import Callable

from autoseg.planning.attention import stage_shapes, token_spacing, why_not_eligible
from autoseg.planning.memory import REFERENCE_BATCH
from autoseg.planning.patch import BatchChoice, Budget, FittedPatch, readable_mm, readable_shape
from autoseg.planning.topology import Numbers
from autoseg.schema import ArchitectureName


def explain_network(
    patch: FittedPatch, batch: BatchChoice, grid: tuple[Numbers, Numbers], budget: Budget
) -> tuple[str, ...]:
    """One sentence or two per decision: patch, network, batch. `grid`: (mm, voxels of the median case), plan order."""
    spacing, median_shape = grid
    return (
        _patch_reason(patch, median_shape, budget),
        *_checkpointing_reasons(patch, budget),
        *NETWORK_REASONS[budget.architecture](patch, spacing),
        _batch_reason(batch, budget),
    )


# ---------------------------------------------------------------- patch and batch
def _patch_reason(patch: FittedPatch, median_shape: Numbers, budget: Budget) -> str:
    median, shape = readable_shape(median_shape), readable_shape(patch.shape)
    if patch.steps == 0:
        return (f"Patch {shape}: the median image ({median} voxels), at most a cube of equal edges in mm, "
                "padded so that every axis can be halved; memory did not limit it (feature maps of "
                f"{_millions(patch.full_values)} values per sample).")
    dimensions = len(patch.shape)
    allowed, memory_gib = budget.allowed(dimensions, patch.demand), budget.memory_gib
    left = patch.demand.values
    if patch.kept:
        allowed, memory_gib = budget.allowed_by_reference(dimensions, patch.demand), budget.reference.memory_gib
        left = patch.full_values
    if budget.architecture == "plain":
        allowed *= REFERENCE_BATCH[dimensions] / 2
    kept = ", the reference," if patch.kept else ""
    measured = "" if budget.allowance == 1 else f" ({budget.allowance:.2g} times the rule's, by measurement)"
    return (f"Patch {shape}: {readable_shape(patch.first_shape)} (median image {median} voxels) needs "
            f"feature maps of {_millions(patch.first_values)} values per sample, but {memory_gib:g} "
            f"GiB{kept} allow {_millions(allowed)}{measured}. The axis that covered most of the median image was "
            f"shortened, {patch.steps} times, down to {_millions(left)}.")


def _checkpointing_reasons(patch: FittedPatch, budget: Budget) -> tuple[str, ...]:
    if patch.checkpointed == 0:
        return ()
    stages = "Stage 0 is" if patch.checkpointed == 1 else f"Stages 0 to {patch.checkpointed - 1} are"
    allowed = budget.allowed(len(patch.shape), patch.demand)
    if budget.architecture == "plain":
        allowed *= REFERENCE_BATCH[len(patch.shape)] / 2
    purpose = f"keeps the patch that {budget.reference.memory_gib:g} GiB would have" if patch.kept else (
        "keeps the patch larger than it would be")
    return (f"{stages} computed a second time in the backward pass (gradient checkpointing) instead of being "
            f"kept: {_millions(patch.demand.values)} values per sample instead of {_millions(patch.full_values)}, "
            f"where {budget.memory_gib:g} GiB allow {_millions(allowed)}. This makes steps slower and {purpose}.",)


def _batch_reason(batch: BatchChoice, budget: Budget) -> str:
    share = budget.reference.share_of_dataset
    measured = "" if budget.allowance == 1 else f" times {budget.allowance:.2g}, as measured"
    limit = f"{batch.by_memory} samples fit into {budget.memory_gib:g} GiB by the rule's count{measured}"
    if batch.by_dataset < batch.by_memory:
        limit += f", but a batch may cover at most {share:.0%} of the dataset's voxels: {batch.by_dataset}"
    if batch.nnunet > min(batch.by_memory, batch.by_dataset):
        limit += "; two is the smallest batch"
    if batch.size == batch.nnunet:
        return f"Batch {batch.size}: {limit}."
    return (f"Batch {batch.size} instead of nnU-Net's {batch.nnunet} ({limit}): more samples of this size "
            "make every step slower without making the gradient noticeably less noisy. --nnunet-parity keeps "
            "nnU-Net's number.")


# ---------------------------------------------------------------- networks
def _explain_unet(patch: FittedPatch, spacing: Numbers) -> tuple[str, ...]:
    return (f"Network: {len(patch.topology.strides)} stages; an axis is halved while it has 8 voxels or "
            f"more, coarse axes later, down to a feature map of {_deepest(patch)}.",)


def _explain_hybrid(patch: FittedPatch, spacing: Numbers) -> tuple[str, ...]:
    """The skeleton; every stage that attends, over what; and why the others do not."""
    topology, attention = patch.topology, patch.topology.attention
    assert attention is not None
    shapes = stage_shapes(topology, patch.shape)
    sentences, absent = [], []
    for stage, blocks in enumerate(attention.blocks):
        obstacle = why_not_eligible(topology, patch.shape, spacing, stage)
        if not blocks:
            absent.append(f"{stage} ({obstacle})")
            continue
        keys = attention.key_shapes[stage]
        seen = "every token a key" if keys is None else f"keys averaged to {readable_shape(keys)}, too many tokens"
        although = f"; though {obstacle}, because no stage is better" if obstacle else ""
        size = readable_mm(token_spacing(topology, spacing, stage))
        sentences.append(
            f"Stage {stage} ends with {blocks} attention blocks instead of residual ones: "
            f"{readable_shape(shapes[stage])} = {math.prod(shapes[stage])} tokens of {size} mm, "
            f"{attention.heads[stage]} heads of {topology.features[stage] // attention.heads[stage]} channels, "
            f"{seen}{although}."
        )
    return (*_explain_unet(patch, spacing), *sentences, f"No attention at stages {', '.join(absent)}.")


def _explain_unetr(patch: FittedPatch, spacing: Numbers) -> tuple[str, ...]:
    topology = patch.topology
    token = [math.prod(steps) for steps in zip(*topology.strides, strict=True)]
    grid = stage_shapes(topology, patch.shape)[-1]
    return (f"unetr: a token is a box of {readable_shape(token)} voxels, the first halvings that the spacing asks for, "
            f"at most four; {sum(topology.encoder_blocks[1:])} transformer blocks see {readable_shape(grid)} = "
            f"{math.prod(grid)} tokens of {readable_mm(token_spacing(topology, spacing, -1))} mm.",
            _fixed_patch(patch))


def _explain_unetr_pp(patch: FittedPatch, spacing: Numbers) -> tuple[str, ...]:
    topology = patch.topology
    grids = ", ".join(readable_shape(shape) for shape in stage_shapes(topology, patch.shape)[1:])
    return (f"unetr-pp: the stem merges {readable_shape(topology.strides[1])} voxels, so many halvings that at most "
            f"32,768 tokens attend (one halving at least); then up to three more. Paired attention on {grids} tokens.",
            _fixed_patch(patch))


def _fixed_patch(patch: FittedPatch) -> str:
    return (f"Its positions have one row per token: the weights fit patches of {readable_shape(patch.shape)} voxels "
            "alone, in training and prediction.")


def _explain_swin_unetr(patch: FittedPatch, spacing: Numbers) -> tuple[str, ...]:
    return (f"swin-unetr {_rigid(patch, spacing)}",)


def _explain_mednext(patch: FittedPatch, spacing: Numbers) -> tuple[str, ...]:
    return (f"mednext {_rigid(patch, spacing)}",)


def _rigid(patch: FittedPatch, spacing: Numbers) -> str:
    halvings = len(patch.topology.strides) - 1
    times = {4: "four", 5: "five"}[halvings]
    ratio = max(spacing) / min(spacing)
    warning = "" if ratio < 2 else (
        f" Voxels are {ratio:.2g} times longer than wide here; resenc and hybrid follow the spacing.")
    return (f"halves every axis {times} times, whatever the spacing: the patch is padded to multiples of "
            f"{2**halvings}, down to a feature map of {_deepest(patch)}.{warning}")


NETWORK_REASONS: dict[ArchitectureName, Callable[[FittedPatch, Numbers], tuple[str, ...]]] = {
    "plain": _explain_unet,
    "resenc": _explain_unet,
    "hybrid": _explain_hybrid,
    "unetr": _explain_unetr,
    "unetr-pp": _explain_unetr_pp,
    "swin-unetr": _explain_swin_unetr,
    "mednext": _explain_mednext,
}


def _deepest(patch: FittedPatch) -> str:
    return readable_shape(stage_shapes(patch.topology, patch.shape)[-1])


def _millions(values: int | float) -> str:
    return f"{values / 1e6:.0f} million" if values >= 1e7 else f"{values / 1e6:.2g} million"
