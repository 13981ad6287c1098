"""The largest patch whose network trains in the memory at hand, and the batch size that goes with it.

nnU-Net v2's search (`get_plans_for_configuration` of its two planners), written from its rules: start from
a patch with the aspect ratio of the spacing and not larger than the median image, then shorten the axis
that covers most of the median image until two samples fit; what memory is left goes into the batch.
"""

import math
from dataclasses import dataclass

import numpy as np

from autoseg.errors import UserError
from autoseg.geometry import Shape
from autoseg.planning.architectures import build_topology
from autoseg.planning.memory import REFERENCE_BATCH, Reference, feature_map_values
from autoseg.planning.topology import Numbers, Pooling, pool
from autoseg.schema import ArchitectureName, Topology

FIRST_PATCH_EDGE = {2: 2048, 3: 256}
SMALLEST_BATCH = 2
LARGEST_BATCH = {2: 64, 3: 32}
"""Without nnU-Net parity. nnU-Net fills the memory with samples however small they are, at the learning
rate that it uses for 12 (2D) or 2 (3D) of them. The noise of a gradient falls with the root of the batch
while its cost rises in proportion: five times (2D) or sixteen times (3D) the reference is where we stop."""


@dataclass(frozen=True)
class Budget:
    """What a network is planned for.

    Attributes
    ----------
    output_channels : labels, background included.
    memory_gib : memory of the device.
    """

    architecture: ArchitectureName
    reference: Reference
    memory_gib: float
    output_channels: int
    nnunet_parity: bool


@dataclass(frozen=True)
class FittedPatch:
    """The outcome of the search, plan order.

    Attributes
    ----------
    first_shape : the patch before anything was shortened.
    values : feature-map values per sample (see `memory`); first_values of the first patch.
    steps : how often an axis was shortened.
    """

    shape: Shape
    topology: Topology
    values: int
    first_shape: Shape
    first_values: int
    steps: int

    @property
    def buildable(self) -> bool:
        """Whether there is anything to halve: a U-Net of one stage has no decoder and gives no logits."""
        return len(self.topology.strides) > 1


@dataclass(frozen=True)
class BatchChoice:
    """The batch size and the bounds it came from: memory, share of the dataset, parity with nnU-Net.

    `nnunet` is what nnU-Net takes; `size` differs from it where `LARGEST_BATCH` is exceeded.
    """

    size: int
    by_memory: int
    by_dataset: int
    nnunet: int


def fit_patch(spacing: Numbers, median_shape: Numbers, budget: Budget) -> FittedPatch:
    """As `search_patch`, but a patch that a network can be built for.

    Raises
    ------
    UserError : the memory is too small for the smallest network.
    """
    patch = search_patch(spacing, median_shape, budget)
    if not patch.buildable:
        raise UserError(
            f"--memory-gib {budget.memory_gib:g}: not even the smallest {len(spacing)}-D patch fits into this "
            f"memory with the architecture {budget.architecture!r}.\nGive more memory (nnU-Net's default is 8), "
            "or ask only for configurations that need less with --configurations 2d."
        )
    return patch


def search_patch(spacing: Numbers, median_shape: Numbers, budget: Budget) -> FittedPatch:
    """The patch for images of `median_shape` voxels at `spacing` mm (plan order, 2 or 3 axes).

    Where memory or images are too small the outcome is not `buildable`. The search goes on through patches that
    cannot be halved, because shortening a fine axis can make others the finest.
    """
    pooling = pool(spacing, first_patch_shape(spacing, median_shape))
    values = _values(pooling, budget)
    first_shape, first_values, steps = pooling.patch_shape, values, 0
    while not _fits(values, len(spacing), budget) and max(pooling.patch_shape) > 1:
        pooling = _shortened(pooling, spacing, median_shape)
        values, steps = _values(pooling, budget), steps + 1
    topology = build_topology(budget.architecture, pooling)
    return FittedPatch(pooling.patch_shape, topology, values, first_shape, first_values, steps)


def first_patch_shape(spacing: Numbers, median_shape: Numbers) -> tuple[float, ...]:
    """The patch to start from: 256³ (2048²) voxels shaped as a cube in mm, cut to the median image.

    May hold halves where the median of an even number of cases does.
    """
    per_mm = 1 / np.array(spacing)
    dimensions = len(per_mm)
    scale = (FIRST_PATCH_EDGE[dimensions] ** dimensions / np.prod(per_mm)) ** (1 / dimensions)
    edges = (round(edge) for edge in per_mm * scale)
    return tuple(float(min(edge, size)) for edge, size in zip(edges, median_shape, strict=True))


def choose_batch(patch: FittedPatch, dataset_voxels: float, budget: Budget) -> BatchChoice:
    """As many samples as fit the memory, but at most the allowed share of `dataset_voxels`; at least two."""
    dimensions = len(patch.shape)
    allowed = budget.reference.values(dimensions, budget.memory_gib)
    by_memory = round(allowed / patch.values * REFERENCE_BATCH[dimensions])
    by_dataset = round(dataset_voxels * budget.reference.share_of_dataset / math.prod(patch.shape))
    nnunet = max(min(by_memory, by_dataset), SMALLEST_BATCH)
    size = nnunet if budget.nnunet_parity else min(nnunet, LARGEST_BATCH[dimensions])
    return BatchChoice(size, by_memory, by_dataset, nnunet)


def readable_shape(shape: Numbers) -> str:
    """"40×56×40"; halves are kept ("35.5×49×35")."""
    return "×".join(f"{size:g}" for size in shape)


def readable_mm(spacing: Numbers) -> str:
    """"3×0.625×0.625", to three significant digits."""
    return "×".join(f"{value:.3g}" for value in spacing)


def _values(pooling: Pooling, budget: Budget) -> int:
    topology = build_topology(budget.architecture, pooling)
    return feature_map_values(budget.architecture, topology, pooling.patch_shape, budget.output_channels)


def _fits(values: int, dimensions: int, budget: Budget) -> bool:
    """Whether training fits: `plain` asks for two samples, `resenc` for one at the reference's batch.

    In 3D both are the same; in 2D nnU-Net's ResEnc planner keeps room for twelve.
    """
    allowed = budget.reference.values(dimensions, budget.memory_gib)
    if budget.architecture == "plain":
        return values / REFERENCE_BATCH[dimensions] * SMALLEST_BATCH <= allowed
    return values <= allowed


def _shortened(pooling: Pooling, spacing: Numbers, median_shape: Numbers) -> Pooling:
    """The next smaller patch; one axis at least has more than one voxel.

    The axis that covers the largest share of the median image is shortened (the last one of equals) by the
    divisor that it would have after being shortened by its present divisor: a network with fewer halvings
    allows smaller steps, so 224 is not skipped on the way from 256 to 192. Axes of one voxel stay, where
    nnU-Net fails.
    """
    longer = [axis for axis, size in enumerate(pooling.patch_shape) if size > 1]
    shape = list(pooling.patch_shape)
    axis = max(longer, key=lambda position: (shape[position] / median_shape[position], position))
    trial = [size - pooling.divisors[axis] * (position == axis) for position, size in enumerate(shape)]
    shape[axis] -= pool(spacing, trial).divisors[axis]
    return pool(spacing, shape)
