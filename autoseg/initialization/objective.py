"""What pretraining minimizes: the error of restored intensities at every decoder level, and of the slabs' order.

    L = Σ_l w_l (masked_l + 0.1 visible_l) + λ · mean_s CE_s / ln T

w_l = 1/2^l, summing to 1 (as in deep supervision); masked and visible are mean squared errors over hidden and over
visible voxels in units of each channel's variance, so that 1 is the error of guessing the mean; CE_s is the mean cross
entropy of stage s over shuffled samples and positions, and ln T that of guessing among T slabs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from autoseg.initialization.corruption import UNSHUFFLED, Corrupted
from autoseg.initialization.heads import PretextOutput
from autoseg.initialization.record import PretextPlan
from autoseg.training.losses import level_weights

VISIBLE_WEIGHT = 0.1
SMALLEST_WEIGHT = 1e-8
AVERAGES = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


@dataclass(frozen=True)
class Loss:
    """A step's loss and what is shown of it: the finest level's masked error (None without masks), and the share of
    slabs that are put in their place, mean over the heads (None without order task). Scalars on the device."""

    total: Tensor
    masked_error: Tensor | None
    order_accuracy: Tensor | None


def pretext_loss(
    output: PretextOutput, corrupted: Corrupted, plan: PretextPlan, means: Tensor, deviations: Tensor
) -> Loss:
    """The loss of a batch, in float32. `means`, `deviations` (channel): of the images' intensities."""
    total = corrupted.image.new_zeros(())
    masked_error = order_accuracy = None
    if plan.mask_ratio:
        target = standardized(corrupted.target, means, deviations)
        errors = all_level_errors([level.float() for level in output.reconstructions], target, corrupted)
        for weight, (masked, visible) in zip(level_weights(len(errors)), errors, strict=True):
            total = total + weight * (masked + VISIBLE_WEIGHT * visible)
        masked_error = errors[0][0].detach()
    if corrupted.order is not None and plan.slabs is not None:
        # Nothing here asks the device which samples are shuffled: that would wait for it at every step.
        told = (corrupted.order != UNSHUFFLED).sum()
        entropies = [functional.cross_entropy(logits.float().flatten(0, 1), corrupted.order.flatten(),
                                              ignore_index=UNSHUFFLED) for logits in output.order_logits.values()]
        total = total + plan.order_weight * torch.stack(entropies).mean() / math.log(plan.slabs)
        right = [(logits.argmax(2) == corrupted.order).sum() / told for logits in output.order_logits.values()]
        order_accuracy = torch.stack(right).mean().detach()
    return Loss(total, masked_error, order_accuracy)


def standardized(image: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """(image − mean) / deviation per channel of (sample, channel, *patch)."""
    shape = (1, -1, *(1 for _ in image.shape[2:]))
    return (image - means.view(shape)) / deviations.view(shape)


def all_level_errors(
    restored: Sequence[Tensor], target: Tensor, corrupted: Corrupted
) -> list[tuple[Tensor, Tensor]]:
    """Mean squared errors (hidden, visible) of every level's reconstruction, finest first.

    The target of a coarse level is the mean over its voxels; a voxel counts as hidden, and as visible, with the share
    of its fine voxels that are scored and are so. Levels are averaged from level to level.
    """
    counted = corrupted.scored.float()
    hidden = corrupted.hidden * counted
    level = torch.cat((target, hidden, counted - hidden), dim=1)
    errors = []
    for one in restored:
        level = averaged(level, [fine // coarse for fine, coarse in zip(level.shape[2:], one.shape[2:], strict=True)])
        squares = (one - level[:, :-2]).square().mean(1, keepdim=True)
        errors.append((_weighted_mean(squares, level[:, -2:-1]), _weighted_mean(squares, level[:, -1:])))
    return errors


def level_errors(restored: Tensor, target: Tensor, corrupted: Corrupted) -> tuple[Tensor, Tensor]:
    """As `all_level_errors`, of one level."""
    return all_level_errors([restored], target, corrupted)[0]


def averaged(x: Tensor, factors: list[int]) -> Tensor:
    """Means over boxes of `factors` voxels of (sample, channel, *patch)."""
    if all(factor == 1 for factor in factors):
        return x
    return AVERAGES[len(factors)](x, tuple(factors))


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(SMALLEST_WEIGHT)
