"""Why a network has its patch, its batch and its stages, in sentences with the numbers."""


from autoseg.planning.memory import REFERENCE_BATCH
from autoseg.planning.patch import BatchChoice, Budget, FittedPatch, readable_shape
from autoseg.planning.topology import Numbers


def explain_network(
    patch: FittedPatch, batch: BatchChoice, median_shape: Numbers, budget: Budget
) -> tuple[str, ...]:
    """One sentence or two per decision: patch, network, batch. `median_shape` in voxels, plan order."""
    return (
        _patch_reason(patch, median_shape, budget),
        _network_reason(patch, budget),
        _batch_reason(batch, budget),
    )


def _patch_reason(patch: FittedPatch, median_shape: Numbers, budget: Budget) -> str:
    median, shape = readable_shape(median_shape), readable_shape(patch.shape)
    if patch.steps == 0:
        return (f"Patch {shape}: the median image ({median} voxels), at most a cube of equal edges in mm, "
                "padded so that every axis can be halved; memory did not limit it (feature maps of "
                f"{_millions(patch.values)} values per sample).")
    allowed = budget.reference.values(len(patch.shape), budget.memory_gib)
    if budget.architecture == "plain":
        allowed *= REFERENCE_BATCH[len(patch.shape)] / 2
    return (f"Patch {shape}: {readable_shape(patch.first_shape)} (median image {median} voxels) needs "
            f"feature maps of {_millions(patch.first_values)} values per sample, but {budget.memory_gib:g} "
            f"GiB allow {_millions(allowed)}. The axis that covered most of the median image was shortened, "
            f"{patch.steps} times, down to {_millions(patch.values)}.")


def _network_reason(patch: FittedPatch, budget: Budget) -> str:
    stages = len(patch.topology.strides)
    deepest = list(patch.shape)
    for stride in patch.topology.strides:
        deepest = [size // step for size, step in zip(deepest, stride, strict=True)]
    return (f"Network {budget.architecture}: {stages} stages; an axis is halved while it has 8 voxels or "
            f"more, coarse axes later, down to a feature map of {readable_shape(deepest)}.")


def _batch_reason(batch: BatchChoice, budget: Budget) -> str:
    share = budget.reference.share_of_dataset
    limit = f"{batch.by_memory} samples fit into {budget.memory_gib:g} GiB"
    if batch.by_dataset < batch.by_memory:
        limit += f", but a batch may cover at most {share:.0%} of the dataset's voxels: {batch.by_dataset}"
    if batch.nnunet > min(batch.by_memory, batch.by_dataset):
        limit += "; two is the smallest batch"
    if batch.size == batch.nnunet:
        return f"Batch {batch.size}: {limit}."
    return (f"Batch {batch.size} instead of nnU-Net's {batch.nnunet} ({limit}): more samples of this size "
            "make every step slower without making the gradient noticeably less noisy. --nnunet-parity keeps "
            "nnU-Net's number.")


def _millions(values: int | float) -> str:
    return f"{values / 1e6:.0f} million" if values >= 1e7 else f"{values / 1e6:.2g} million"
