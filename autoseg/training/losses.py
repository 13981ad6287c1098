"""Cross entropy plus soft Dice over the levels of deep supervision, and the counts behind the pseudo-Dice.

Formulas as in nnU-Net v2 (Isensee et al. 2021): with softmax probabilities P, one-hot reference G, foreground
only, dice = (2 ΣPG + s) / (ΣP + ΣG + s), s = 1e-5; loss = cross entropy − mean dice. Level i (0 finest) weighs
1/2^i; the weights sum to 1. Everything is computed in float32, whatever the precision of the logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SMOOTHING = 1e-5
SMALLEST_DENOMINATOR = 1e-8


def level_weights(levels: int) -> tuple[float, ...]:
    """Weights of the supervised levels, finest first: 1/2^i, summing to 1."""
    raw = [0.5**level for level in range(levels)]
    return tuple(weight / sum(raw) for weight in raw)


def label_members(labels: int) -> Tensor:
    """Which of so many label values make up each foreground region: (region, label) bool; here each its own."""
    return torch.eye(labels, dtype=torch.bool)[1:]


def deep_supervision_loss(logits: Sequence[Tensor], labels: Tensor, batch_dice: bool) -> Tensor:
    """The weighted sum of `dice_and_cross_entropy` over the levels.

    Parameters
    ----------
    logits : per level (batch, class, *shape), finest first, as `Segmenter.forward_all` gives them.
    labels : (batch, *shape) integers 0 … class − 1 at the finest level's shape.
    batch_dice : Dice over the whole batch (True), or per sample and then averaged.
    """
    total = logits[0].new_zeros((), dtype=torch.float32)
    for weight, level in zip(level_weights(len(logits)), logits, strict=True):
        reference = downsample_labels(labels, tuple(level.shape[2:]))
        total = total + weight * dice_and_cross_entropy(level, reference, batch_dice)
    return total


def downsample_labels(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Labels (batch, *shape) at a coarser level: along each axis the voxel at floor((i + ½) · in / out).

    That is torch's `nearest-exact`, as in nnU-Net. ValueError where an axis is no multiple of the level's.
    """
    for axis, (fine, coarse) in enumerate(zip(labels.shape[1:], shape, strict=True), start=1):
        factor, rest = divmod(fine, coarse)
        if rest:
            raise ValueError(f"labels of shape {tuple(labels.shape[1:])} cannot be divided into {shape}")
        if factor > 1:
            labels = labels.narrow(axis, factor // 2, fine - factor // 2)
            labels = labels[(slice(None),) * axis + (slice(None, None, factor),)]
    return labels


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, batch_dice: bool) -> Tensor:
    """Mean cross entropy minus mean soft Dice of the foreground classes.

    logits : (batch, class, *shape); labels : (batch, *shape) integers. Returns a float32 scalar.
    """
    batch, classes = logits.shape[:2]
    # One memory order for both: voxels last, so that sums run over contiguous memory.
    log_probabilities = torch.log_softmax(logits.float().reshape(batch, classes, -1), dim=1)
    index = labels.reshape(batch, 1, -1).long()
    cross_entropy = -log_probabilities.gather(1, index).mean()
    return cross_entropy - soft_dice(log_probabilities.exp(), index, batch_dice)


def soft_dice(probabilities: Tensor, index: Tensor, batch_dice: bool) -> Tensor:
    """Mean soft Dice of the foreground classes.

    probabilities : (batch, class, voxel) float32; index : (batch, 1, voxel) int64.
    """
    with torch.no_grad():
        one_hot = torch.zeros_like(probabilities).scatter_(1, index, 1.0)[:, 1:]
        reference = one_hot.sum(dim=2)
    foreground = probabilities[:, 1:]
    intersection = (foreground * one_hot).sum(dim=2)
    predicted = foreground.sum(dim=2)
    if batch_dice:
        intersection, predicted, reference = (x.sum(dim=0) for x in (intersection, predicted, reference))
    denominator = (reference + predicted + SMOOTHING).clamp_min(SMALLEST_DENOMINATOR)
    return ((2 * intersection + SMOOTHING) / denominator).mean()


@torch.no_grad()
def dice_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Voxels of each foreground class over the batch, for the pseudo-Dice: (class − 1, 3) int64.

    logits : (batch, class, *shape); labels : (batch, *shape) integers. The columns are true positives, false
    positives and false negatives of the labels with the greatest logit.
    """
    classes = logits.shape[1]
    predicted = logits.argmax(dim=1).flatten()
    reference = labels.flatten().long()
    # One-hot comparisons instead of bincount: exact on every device, and deterministic on CUDA.
    every = torch.arange(1, classes, device=logits.device)[:, None]
    is_predicted, is_reference = predicted == every, reference == every
    both = (is_predicted & is_reference).sum(dim=1)
    return torch.stack((both, is_predicted.sum(dim=1) - both, is_reference.sum(dim=1) - both), dim=1)
