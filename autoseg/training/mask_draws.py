"""Chances of a cascade's previous mask in one training sample: how it is made worse, drawn as numbers.

Probabilities and ranges are nnU-Net v2's (`nnUNetTrainer.get_training_transforms`, version 2.8.1, with
batchgeneratorsv2's random binary operator and removal of components).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

MorphologyName = Literal["dilation", "erosion", "opening", "closing"]

MORPHOLOGY_PROBABILITY, MORPHOLOGY_RADIUS = 0.4, (1.0, 8.0)
REMOVAL_PROBABILITY = 0.2
LABEL_PROBABILITY = 0.5


@dataclass(frozen=True)
class Morphology:
    """One operation on the mask of one label, with a ball of `radius` voxels."""

    label: int
    name: MorphologyName
    radius: float


@dataclass(frozen=True)
class Removal:
    """One component of one label taken away; `choice` (0 to 1) says which of those that are small enough."""

    label: int
    choice: float


@dataclass(frozen=True)
class MaskDraw:
    """Changes of one sample's previous mask, in the order in which they are made; most samples have none."""

    morphologies: tuple[Morphology, ...] = ()
    removals: tuple[Removal, ...] = ()


def draw_masks(rng: np.random.Generator, labels: int) -> MaskDraw:
    """All changes of a mask of foreground labels 1 … `labels`."""
    morphologies: tuple[Morphology, ...] = ()
    if rng.random() < MORPHOLOGY_PROBABILITY:
        names: tuple[MorphologyName, ...] = get_args(MorphologyName)
        morphologies = tuple(
            Morphology(label, names[int(rng.integers(len(names)))], float(rng.uniform(*MORPHOLOGY_RADIUS)))
            for label in _some_labels(rng, labels)
        )
    removals: tuple[Removal, ...] = ()
    if rng.random() < REMOVAL_PROBABILITY:
        removals = tuple(Removal(label, float(rng.random())) for label in _some_labels(rng, labels))
    return MaskDraw(morphologies, removals)


def _some_labels(rng: np.random.Generator, labels: int) -> list[int]:
    """Each label with a chance of one half, in random order."""
    return [int(label) + 1 for label in rng.permutation(labels) if rng.random() < LABEL_PROBABILITY]
