"""How much memory training a network takes: nnU-Net's count of feature-map values, scaled to GiB.

nnU-Net calibrates by experiment: a network whose feature maps hold `values_3d` (or `values_2d`) numbers per
sample trains with a batch of 2 (12) on a device of `memory_gib`. Memory is taken as proportional to that
count, so another memory is another count. The numbers are those of nnunetv2's planners
(`ExperimentPlanner`, `ResEncUNetPlanner`, `nnUNetPlannerResEncM/L/XL`); the estimate is theirs too, not a
measurement on your device. `hybrid` is a `resenc` with other blocks and keeps its rule.

The published hybrids' values are counted by `published_memory`, in the same unit. nnU-Net's count ignores weights,
which all its networks have alike; these have from 5 to 120 million, so theirs are set against the reference's. Ours
are counted, too, where the memory is smaller than the reference's: in 0.3 GiB weights decide, not feature maps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.errors import UserError
from autoseg.planning.attention import voxels_per_stage
from autoseg.planning.optimizers import OPTIMIZERS, RECIPES
from autoseg.planning.published_memory import COUNTS
from autoseg.planning.weights import count_unet_weights
from autoseg.schema import ArchitectureName, Topology

REFERENCE_BATCH = {2: 12, 3: 2}
VALUES_PER_TOKEN = 13
"""Of an attention block, per token and channel, in nnU-Net's unit: half the 26 numbers saved for the backward pass
(`published_memory.SAVED_PER_VALUE`): both norms and their sums (5), the position encoding, queries and keys before and
after normalization and rotation, values, the mixture, two projections and their scaled sums (13), and of the SwiGLU
gate, value and product at 8/3 of the channels each (8)."""
REFERENCE_WEIGHTS = {2: 140e6, 3: 102e6}
PLAIN_REFERENCE_WEIGHTS = {2: 46e6, 3: 31e6}
"""Of `resenc` and of `plain` on patches of 512×512 and 128×128×128: part of what nnU-Net found to train in the
reference's memory."""
MOST_CHECKPOINTED = 2
"""In 3-D, stages 0 and 1 hold more than four fifths of all feature-map values: recomputing deeper ones frees little."""
KEPT_SHARE = 0.5
"""Of a value, where only the output is kept: a value stands for two saved numbers, before and after normalization."""


@dataclass(frozen=True)
class Demand:
    """What one sample and the weights take: `values` as nnU-Net counts them."""

    values: int
    weights: int


@dataclass(frozen=True)
class Reference:
    """A calibrated point.

    Attributes
    ----------
    values_2d, values_3d : feature-map values of one sample that train with `REFERENCE_BATCH` in
    `memory_gib`.
    share_of_dataset : one batch may cover at most this share of the dataset's voxels (against overfitting).
    weights_2d, weights_3d : of the network that trains in `memory_gib`.
    """

    values_2d: float
    values_3d: float
    memory_gib: float
    share_of_dataset: float
    weights_2d: float = REFERENCE_WEIGHTS[2]
    weights_3d: float = REFERENCE_WEIGHTS[3]

    def values(self, dimensions: int, memory_gib: float, weights_gib: float | None = None) -> float:
        """Values per sample that fit `memory_gib` at the reference batch, for 2 or 3 dimensions.

        `weights_gib`: taken by weights, gradients and optimizer; None: they scale with the memory like the values.
        """
        values = self.values_2d if dimensions == 2 else self.values_3d
        if weights_gib is None:
            return values * (memory_gib / self.memory_gib)
        return values * max(0.0, memory_gib - weights_gib) / self._activations_gib(dimensions)

    def estimated_gib(
        self, values: int, batch_size: int, dimensions: int, weights_gib: float | None = None
    ) -> float:
        """GiB that training takes for `values` feature-map values per sample and `batch_size` samples."""
        full = self.values(dimensions, self.memory_gib) * REFERENCE_BATCH[dimensions]
        if weights_gib is None:
            return values * batch_size / full * self.memory_gib
        return values * batch_size / full * self._activations_gib(dimensions) + weights_gib

    def _activations_gib(self, dimensions: int) -> float:
        """The reference's memory without its weights."""
        weights = self.weights_2d if dimensions == 2 else self.weights_3d
        return self.memory_gib - weights * RECIPES["sgd"].bytes_per_weight / 2**30


REFERENCES: dict[tuple[ArchitectureName, str | None], Reference] = {
    ("plain", None): Reference(85e6, 560e6, 8.0, 0.05, PLAIN_REFERENCE_WEIGHTS[2], PLAIN_REFERENCE_WEIGHTS[3]),
    ("resenc", None): Reference(135e6, 680e6, 8.0, 0.05),
    ("hybrid", None): Reference(135e6, 680e6, 8.0, 0.05),
    ("unetr", None): Reference(135e6, 680e6, 8.0, 0.05),
    ("unetr-pp", None): Reference(135e6, 680e6, 8.0, 0.05),
    ("swin-unetr", None): Reference(135e6, 680e6, 8.0, 0.05),
    ("mednext", None): Reference(135e6, 680e6, 8.0, 0.05),
    ("resenc", "M"): Reference(135e6, 680e6, 8.0, 1.0),
    ("resenc", "L"): Reference(380e6, 2.1e9, 24.0, 1.0),
    ("resenc", "XL"): Reference(560e6, 3.6e9, 40.0, 1.0),
}


def find_reference(architecture: ArchitectureName, preset_size: str | None) -> Reference:
    """The calibrated point of an architecture and preset size; UserError when that pair does not exist."""
    reference = REFERENCES.get((architecture, preset_size))
    if reference is None:
        sizes = [size for name, size in REFERENCES if name == architecture and size]
        raise UserError(
            f"--preset-size {preset_size} does not exist for the architecture {architecture!r}; "
            f"it has {', '.join(sizes) or 'no preset sizes'}.\n"
            "Leave --preset-size out, or plan with --architecture resenc (sizes M, L, XL)."
        )
    return reference


def demand_of(
    architecture: ArchitectureName, topology: Topology, patch_shape: Sequence[int], output_channels: int,
    checkpointed: int = 0,
) -> Demand:  # fmt: skip
    """What a network asks of memory; of its first `checkpointed` stages only the outputs are kept."""
    # A patch that cannot be halved has no network of theirs; the search merely goes through it.
    if architecture in COUNTS and len(topology.strides) > 1:
        values, weights = COUNTS[architecture](topology, patch_shape, output_channels)
        return Demand(values, weights)
    whole = feature_map_values(architecture, topology, patch_shape, output_channels)
    freed = _freed_values(architecture, topology, patch_shape, checkpointed)
    return Demand(whole - freed, count_unet_weights(architecture, topology, output_channels))


def weights_gib(architecture: ArchitectureName, weights: int) -> float:
    """GiB of weights, gradients and the optimizer's moments."""
    return weights * OPTIMIZERS[architecture].bytes_per_weight / 2**30


def feature_map_values(
    architecture: ArchitectureName, topology: Topology, patch_shape: Sequence[int], output_channels: int
) -> int:
    """Values in all convolution outputs for one sample: nnU-Net's proxy for memory.

    Encoder: every convolution (plain), or the stem, two convolutions per residual block and one more where
    the block's shortcut changes resolution or features (resenc). Decoder: per stage the transposed
    convolution and its convolutions at the skip's resolution, and the final logits once (none without a
    decoder). `output_channels` counts background.
    """
    voxels = voxels_per_stage(topology, patch_shape)
    total = sum(
        size * features * (_encoder_maps(architecture, topology, stage) + _decoder_maps(topology, stage))
        for stage, (size, features) in enumerate(zip(voxels, topology.features, strict=True))
    )
    return total + voxels[0] * output_channels * bool(topology.decoder_blocks)


def _encoder_maps(architecture: ArchitectureName, topology: Topology, stage: int) -> int:
    """Feature maps of an encoder stage, counted in maps of all its features."""
    blocks = topology.encoder_blocks[stage]
    if architecture == "plain":
        return blocks
    # The stem before the first residual stage costs what a shortcut costs in the later ones: one output.
    maps = 2 * blocks + 1
    if topology.attention is not None:
        # Each attention block takes the place of a residual block: two convolutions.
        maps += topology.attention.blocks[stage] * (VALUES_PER_TOKEN - 2)
    return maps


def _decoder_maps(topology: Topology, stage: int) -> int:
    """Feature maps of the decoder at a stage's resolution; none at the bottleneck."""
    if stage >= len(topology.decoder_blocks):
        return 0
    return topology.decoder_blocks[-1 - stage] + 1


def _freed_values(
    architecture: ArchitectureName, topology: Topology, patch_shape: Sequence[int], checkpointed: int
) -> int:
    """Values that checkpointing the first stages saves.

    Of an encoder stage and of the decoder at its resolution the output is kept, and of the stem; while the backward
    pass recomputes one of them, that one is there in full.
    """
    voxels, freed, largest = voxels_per_stage(topology, patch_shape), 0.0, 0.0
    for stage in range(min(checkpointed, len(topology.decoder_blocks))):
        stem = stage == 0 and architecture != "plain"
        size = voxels[stage] * topology.features[stage]
        parts = [_encoder_maps(architecture, topology, stage) - stem, _decoder_maps(topology, stage)]
        freed += size * (sum(parts) + stem - KEPT_SHARE * (len(parts) + stem))
        largest = max(largest, *(size * (maps - KEPT_SHARE) for maps in parts))
    return math.floor(max(0.0, freed - largest))
