"""How much memory training a network takes: nnU-Net's count of feature-map values, scaled to GiB.

nnU-Net calibrates by experiment: a network whose feature maps hold `values_3d` (or `values_2d`) numbers per
sample trains with a batch of 2 (12) on a device of `memory_gib`. Memory is taken as proportional to that
count, so another memory is another count. The numbers are those of nnunetv2's planners
(`ExperimentPlanner`, `ResEncUNetPlanner`, `nnUNetPlannerResEncM/L/XL`); the estimate is theirs too, not a
measurement on your device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.errors import UserError
from autoseg.schema import ArchitectureName, Topology

REFERENCE_BATCH = {2: 12, 3: 2}


@dataclass(frozen=True)
class Reference:
    """A calibrated point.

    Attributes
    ----------
    values_2d, values_3d : feature-map values of one sample that train with `REFERENCE_BATCH` in
    `memory_gib`.
    share_of_dataset : one batch may cover at most this share of the dataset's voxels (against overfitting).
    """

    values_2d: float
    values_3d: float
    memory_gib: float
    share_of_dataset: float

    def values(self, dimensions: int, memory_gib: float) -> float:
        """Values per sample that fit `memory_gib` at the reference batch, for 2 or 3 dimensions."""
        return (self.values_2d if dimensions == 2 else self.values_3d) * (memory_gib / self.memory_gib)

    def estimated_gib(self, values: int, batch_size: int, dimensions: int) -> float:
        """GiB that training takes for `values` feature-map values per sample and `batch_size` samples."""
        full = self.values(dimensions, self.memory_gib) * REFERENCE_BATCH[dimensions]
        return values * batch_size / full * self.memory_gib


REFERENCES: dict[tuple[ArchitectureName, str | None], Reference] = {
    ("plain", None): Reference(85e6, 560e6, 8.0, 0.05),
    ("resenc", None): Reference(135e6, 680e6, 8.0, 0.05),
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


def feature_map_values(
    architecture: ArchitectureName, topology: Topology, patch_shape: Sequence[int], output_channels: int
) -> int:
    """Values in all convolution outputs for one sample: nnU-Net's proxy for memory.

    Encoder: every convolution (plain), or the stem, two convolutions per residual block and one more where
    the block's shortcut changes resolution or features (resenc). Decoder: per stage the transposed
    convolution and its convolutions at the skip's resolution, and the final logits once (none without a
    decoder). `output_channels` counts background.
    """
    voxels = _voxels_per_stage(topology, patch_shape)
    total = 0
    for stage, (size, features, blocks) in enumerate(
        zip(voxels, topology.features, topology.encoder_blocks, strict=True)
    ):
        convolutions = blocks if architecture == "plain" else 2 * blocks + 1
        # The stem before the first residual stage costs what a shortcut costs in the later ones: one output.
        total += size * features * convolutions
        if stage < len(topology.decoder_blocks):
            total += size * features * (topology.decoder_blocks[-1 - stage] + 1)
    return total + voxels[0] * output_channels * bool(topology.decoder_blocks)


def _voxels_per_stage(topology: Topology, patch_shape: Sequence[int]) -> list[int]:
    """Voxels of the feature maps at every stage, the finest first."""
    shape, voxels = list(patch_shape), []
    for stride in topology.strides:
        shape = [size // step for size, step in zip(shape, stride, strict=True)]
        voxels.append(math.prod(shape))
    return voxels
