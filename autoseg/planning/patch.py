"""The largest patch whose network trains in the memory at hand, and the batch size that goes with it.

nnU-Net v2's search (`get_plans_for_configuration` of its two planners), written from its rules: start from
a patch with the aspect ratio of the spacing and not larger than the median image, then shorten the axis
that covers most of the median image until two samples fit; what memory is left goes into the batch.

Where the memory is smaller than nnU-Net's reference, the patch that the reference would give is kept as long as
recomputing the first stages in the backward pass makes it fit, and weights and optimizer must fit, too (both not with
`nnunet_parity`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from autoseg.geometry import Shape
from autoseg.planning.architectures import build_topology, pool_patch
from autoseg.planning.memory import (
    MOST_CHECKPOINTED,
    REFERENCE_BATCH,
    Demand,
    Reference,
    demand_of,
    weights_gib,
)
from autoseg.planning.topology import Numbers, Pooling
from autoseg.schema import CHECKPOINTED, ArchitectureName, Topology

FIRST_PATCH_EDGE = {2: 2048, 3: 256}
SMALLEST_BATCH = 2
ROUNDED_BATCHES: tuple[ArchitectureName, ...] = ("plain", "resenc")
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
    allowance : share of the feature-map values that the reference allows; 1 unless a measurement found another.
    """

    architecture: ArchitectureName
    reference: Reference
    memory_gib: float
    output_channels: int
    nnunet_parity: bool
    allowance: float = 1.0

    def allowed(self, dimensions: int, demand: Demand) -> float:
        """Feature-map values of one sample that fit, beside the weights, at the reference's batch."""
        return self._values(dimensions, self.memory_gib, demand) * self.allowance

    def estimated_gib(self, dimensions: int, demand: Demand, batch_size: int) -> float:
        """GiB that training takes by rule; where weights are counted, never less than they take."""
        by_rule = self.reference.estimated_gib(demand.values, batch_size, dimensions)
        weights = weights_gib(self.architecture, demand.weights)
        with_weights = self.reference.estimated_gib(demand.values, batch_size, dimensions, weights)
        if self.architecture not in CHECKPOINTED:
            return with_weights
        return max(by_rule, with_weights) if self._counts_weights(self.memory_gib) else by_rule

    def allowed_by_reference(self, dimensions: int, demand: Demand) -> float:
        """As `allowed`, on a device of the reference's memory and without a measurement."""
        return self._values(dimensions, self.reference.memory_gib, demand)

    def _values(self, dimensions: int, memory_gib: float, demand: Demand) -> float:
        by_rule = self.reference.values(dimensions, memory_gib)
        with_weights = self.reference.values(dimensions, memory_gib, weights_gib(self.architecture, demand.weights))
        if self.architecture not in CHECKPOINTED:
            return with_weights
        return min(by_rule, with_weights) if self._counts_weights(memory_gib) else by_rule

    def _counts_weights(self, memory_gib: float) -> bool:
        """Whether the weights of our own networks count: nnU-Net's rule for its reference's memory covers them."""
        return memory_gib < self.reference.memory_gib and not self.nnunet_parity

    @property
    def may_checkpoint(self) -> bool:
        """Whether stages may be recomputed: only to keep the patch that nnU-Net's reference memory gives."""
        smaller = self.memory_gib * self.allowance < self.reference.memory_gib
        return smaller and not self.nnunet_parity and self.architecture in CHECKPOINTED


@dataclass(frozen=True)
class FittedPatch:
    """The outcome of the search, plan order.

    Attributes
    ----------
    demand : of one sample (see `memory`), with `checkpointed` stages recomputed; full_values without recomputing.
    checkpointed : so many of the first stages are recomputed in the backward pass.
    first_shape : the patch before anything was shortened, with feature maps of first_values.
    steps : how often an axis was shortened.
    kept : recomputing made the patch of the reference's memory fit, so that it was not shortened below that.
    fits : False where not even the smallest patch does.
    """

    shape: Shape
    topology: Topology
    demand: Demand
    full_values: int
    checkpointed: int
    first_shape: Shape
    first_values: int
    steps: int
    kept: bool
    fits: bool

    @property
    def buildable(self) -> bool:
        """Whether it fits and there is anything to halve: a U-Net of one stage has no decoder and gives no logits."""
        return self.fits and len(self.topology.strides) > 1


@dataclass(frozen=True)
class BatchChoice:
    """The batch size and the bounds it came from: memory, share of the dataset, parity with nnU-Net.

    `nnunet` is what nnU-Net takes; `size` differs from it where `LARGEST_BATCH` is exceeded.
    """

    size: int
    by_memory: int
    by_dataset: int
    nnunet: int


def search_patch(spacing: Numbers, median_shape: Numbers, budget: Budget) -> FittedPatch:
    """The patch for images of `median_shape` voxels at `spacing` mm (plan order, 2 or 3 axes).

    Where memory or images are too small the outcome is not `buildable`. The search goes on through patches that
    cannot be halved, because shortening a fine axis can make others the finest.
    """
    most = MOST_CHECKPOINTED if budget.may_checkpoint else 0
    tried: list[Candidate] = []
    within_reference = newly = False
    found: Candidate | None = None
    for pooling in _ever_shorter(spacing, median_shape, budget.architecture):
        tried.append(Candidate.of(pooling, budget, 0))
        # Recomputing must not enlarge the patch: nnU-Net's is a budget of computation, too.
        newly = not within_reference and tried[-1].fits_reference(budget)
        within_reference = within_reference or newly
        levels = (Candidate.of(pooling, budget, level) for level in range(1 + most * within_reference))
        found = next((candidate for candidate in levels if candidate.fits(budget)), None)
        if found is not None:
            break
    return _outcome(tried, found, newly)


def _outcome(tried: "list[Candidate]", found: "Candidate | None", newly: bool) -> FittedPatch:
    """`tried`: every patch of the search, nothing recomputed; `newly`: the last is the reference's own."""
    first, last = tried[0], found or tried[-1]
    return FittedPatch(
        shape=last.pooling.patch_shape,
        topology=last.topology,
        demand=last.demand,
        full_values=tried[-1].demand.values,
        checkpointed=last.checkpointed,
        first_shape=first.pooling.patch_shape,
        first_values=first.demand.values,
        steps=len(tried) - 1,
        kept=newly and last.checkpointed > 0,
        fits=found is not None,
    )


@dataclass(frozen=True)
class Candidate:
    """A patch on the way, its network, and what training it takes with `checkpointed` stages recomputed."""

    pooling: Pooling
    topology: Topology
    demand: Demand
    checkpointed: int

    @classmethod
    def of(cls, pooling: Pooling, budget: Budget, checkpointed: int) -> "Candidate":
        """The network of the budget's architecture on a halved patch."""
        topology = build_topology(budget.architecture, pooling)
        demand = demand_of(
            budget.architecture, topology, pooling.patch_shape, budget.output_channels, checkpointed
        )
        return cls(pooling, topology, demand, checkpointed)

    def fits(self, budget: Budget) -> bool:
        """Whether training fits the memory."""
        return self._within(budget, budget.allowed(len(self.pooling.patch_shape), self.demand))

    def fits_reference(self, budget: Budget) -> bool:
        """Whether training would fit the reference's memory."""
        return self._within(budget, budget.allowed_by_reference(len(self.pooling.patch_shape), self.demand))

    def _within(self, budget: Budget, allowed: float) -> bool:
        """`plain` asks for two samples, the others for one at the reference's batch.

        In 3D both are the same; in 2D nnU-Net's ResEnc planner keeps room for twelve.
        """
        if budget.architecture == "plain":
            dimensions = len(self.pooling.patch_shape)
            return self.demand.values / REFERENCE_BATCH[dimensions] * SMALLEST_BATCH <= allowed
        return self.demand.values <= allowed


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
    allowed = budget.allowed(dimensions, patch.demand)
    # nnU-Net rounds, by which a batch may take more than the memory; who is not compared with it need not.
    rounded = round if budget.architecture in ROUNDED_BATCHES else math.floor
    by_memory = rounded(allowed / patch.demand.values * REFERENCE_BATCH[dimensions])
    if patch.checkpointed:
        # Recomputing is for the patch; the batch stays within the reference's, a budget of computation like it.
        by_reference = budget.allowed_by_reference(dimensions, patch.demand) / patch.full_values
        by_memory = min(by_memory, rounded(by_reference * REFERENCE_BATCH[dimensions]))
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


def _ever_shorter(
    spacing: Numbers, median_shape: Numbers, architecture: ArchitectureName
) -> Iterator[Pooling]:
    """The first patch, and one after the other with an axis shortened, down to the smallest."""
    pooling = pool_patch(architecture, spacing, first_patch_shape(spacing, median_shape))
    seen: set[Shape] = set()
    # A patch that comes again is one that its architecture does not make smaller.
    while pooling.patch_shape not in seen:
        yield pooling
        seen.add(pooling.patch_shape)
        if all(size <= least for size, least in zip(pooling.patch_shape, pooling.smallest, strict=True)):
            return
        pooling = _shortened(pooling, spacing, median_shape, architecture)


def _shortened(
    pooling: Pooling, spacing: Numbers, median_shape: Numbers, architecture: ArchitectureName
) -> Pooling:
    """The next smaller patch; one axis at least is longer than the smallest.

    The axis that covers the largest share of the median image is shortened (the last one of equals) by the
    divisor that it would have after being shortened by its present divisor: a network with fewer halvings
    allows smaller steps, so 224 is not skipped on the way from 256 to 192. Axes of the smallest size (one voxel)
    stay, where nnU-Net fails.
    """
    shape = list(pooling.patch_shape)
    longer = [axis for axis, size in enumerate(shape) if size > pooling.smallest[axis]]
    axis = max(longer, key=lambda position: (shape[position] / median_shape[position], position))
    trial = [size - pooling.divisors[axis] * (position == axis) for position, size in enumerate(shape)]
    shape[axis] -= pool_patch(architecture, spacing, trial).divisors[axis]
    shortened = pool_patch(architecture, spacing, shape)
    # Padding can undo a step smaller than the present divisor where stages are merged (unetr-pp).
    undone = shortened.patch_shape == pooling.patch_shape
    return pool_patch(architecture, spacing, trial) if undone else shortened
