"""A cascade's previous mask made worse as a first stage would: morphology with balls, components that are missed.

All acts on label maps, in which labels exclude each other: a label that grows takes voxels from the others, one that
shrinks leaves background. That is nnU-Net's rule on channels of zeros and ones, of which these are never two at once.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Integer
from scipy.ndimage import generate_binary_structure
from scipy.ndimage import label as connected_components
from torch import Tensor

from autoseg.training.mask_draws import MaskDraw, Morphology, MorphologyName, Removal

LARGEST_REMOVED = 0.15
"""Of the patch's voxels: a component that takes this share or more is never removed."""
_FAR = 1 << 10  # squared distances count up to the largest radius, squared


def change_mask(labels: Integer[Tensor, "*patch"], draw: MaskDraw) -> Integer[Tensor, "*patch"]:
    """The label map of one sample with its changes; the input stays as it is."""
    for morphology in draw.morphologies:
        labels = apply_morphology(labels, morphology)
    for removal in draw.removals:
        labels = remove_component(labels, removal)
    return labels


def apply_morphology(labels: Integer[Tensor, "*patch"], morphology: Morphology) -> Integer[Tensor, "*patch"]:
    """One label dilated, eroded, opened or closed; the voxels it wins are the others' no more."""
    before = labels == morphology.label
    after = _OPERATIONS[morphology.name](before, morphology.radius)
    return labels.masked_fill(before & ~after, 0).masked_fill(after, morphology.label)


def dilate(mask: Bool[Tensor, "*patch"], radius: float) -> Bool[Tensor, "*patch"]:
    """The voxels at most `radius` away from the mask.

    nnU-Net's footprint is the same ball where twice the radius is even, rounded down; else it has an even number of
    voxels and moves the mask by half a voxel on top, which this does not.
    """
    # Squared distances, axis by axis: exact as far as the radius goes, whatever lies beyond.
    squares = (~mask).to(torch.int16) * _FAR
    reach = math.floor(radius)
    for axis, length in enumerate(mask.shape):
        nearest = squares.clone()
        for step in range(1, min(reach, length - 1) + 1):
            moved = squares + step * step
            there, here = (slice(step, None), slice(None, length - step))
            _lower(nearest, moved, axis, there, here)
            _lower(nearest, moved, axis, here, there)
        squares = nearest
    return squares <= radius * radius


def erode(mask: Bool[Tensor, "*patch"], radius: float) -> Bool[Tensor, "*patch"]:
    """The voxels farther than `radius` from every voxel of the patch that is not in the mask."""
    return ~dilate(~mask, radius)


def remove_component(labels: Integer[Tensor, "*patch"], removal: Removal) -> Integer[Tensor, "*patch"]:
    """Background in place of one component of a label; voxels that touch at a corner belong together."""
    mask = (labels == removal.label).cpu().numpy()
    if not mask.any():
        return labels
    components, count = connected_components(mask, generate_binary_structure(mask.ndim, mask.ndim))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    small = np.flatnonzero(sizes < LARGEST_REMOVED * mask.size) + 1
    if not len(small):
        return labels
    removed = components == small[int(removal.choice * len(small))]
    return labels.masked_fill(torch.from_numpy(removed).to(labels.device), 0)


def _lower(nearest: Tensor, moved: Tensor, axis: int, to: slice, source: slice) -> None:
    """The smaller of both, in place, of a part of one axis against another part of it."""
    before = (slice(None),) * axis
    part = nearest[(*before, to)]
    torch.minimum(part, moved[(*before, source)], out=part)


_OPERATIONS: dict[MorphologyName, Callable[[Tensor, float], Tensor]] = {
    "dilation": dilate,
    "erosion": erode,
    "opening": lambda mask, radius: dilate(erode(mask, radius), radius),
    "closing": lambda mask, radius: erode(dilate(mask, radius), radius),
}
