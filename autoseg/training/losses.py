"""Cross entropy plus soft Dice over the levels of deep supervision, and the counts behind the pseudo-Dice.

Formulas as in nnU-Net v2 (Isensee et al. 2021): with softmax probabilities P, one-hot reference G, foreground
only, dice = (2 ΣPG + s) / (ΣP + ΣG + s), s = 1e-5; loss = cross entropy − mean dice. Level i (0 finest) weighs
1/2^i; the weights sum to 1. Everything is computed in float32, whatever the precision of the logits.

Overlapping regions take a sigmoid and binary cross entropy each. Voxels of the ignore label are in no sum. Where an
output is not annotated in a sample, the sample gives no Dice for it, and "background" there means background or any
output that is not annotated: the cross entropy is that of their summed probability (the marginal loss of Shi et al.
2021, https://arxiv.org/abs/2007.03868); of regions, each by itself, such outputs are in no sum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from autoseg.training.targets import Targets, label_members

SMOOTHING = 1e-5
SMALLEST_DENOMINATOR = 1e-8


def level_weights(levels: int) -> tuple[float, ...]:
    """Weights of the supervised levels, finest first: 1/2^i, summing to 1."""
    raw = [0.5**level for level in range(levels)]
    return tuple(weight / sum(raw) for weight in raw)


def deep_supervision_loss(
    logits: Sequence[Tensor], labels: Tensor, batch_dice: bool, targets: Targets | None = None,
    annotated: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The weighted sum of `dice_and_cross_entropy` over the levels.

    Parameters
    ----------
    logits : per level (batch, output, *shape), finest first, as `Segmenter.forward_all` gives them.
    labels : (batch, *shape) internal labels at the finest level's shape.
    batch_dice : Dice over the whole batch (True), or per sample and then averaged.
    targets : what labels mean; None: every channel is a label.
    annotated : (batch, foreground output) bool; None: all are.
    """
    targets = exclusive(logits[0]) if targets is None else targets
    total = logits[0].new_zeros((), dtype=torch.float32)
    for weight, level in zip(level_weights(len(logits)), logits, strict=True):
        reference = downsample_labels(labels, tuple(level.shape[2:]))
        total = total + weight * dice_and_cross_entropy(level, reference, batch_dice, targets, annotated)
    return total


def exclusive(logits: Tensor) -> Targets:
    """Targets of a network whose channels are labels that exclude each other."""
    return Targets(label_members(logits.shape[1]).to(logits.device))


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


def dice_and_cross_entropy(
    logits: Tensor, labels: Tensor, batch_dice: bool, targets: Targets | None = None, annotated: Tensor | None = None
) -> Tensor:
    """Mean cross entropy minus mean soft Dice of the foreground outputs; parameters as `deep_supervision_loss`.

    Returns a float32 scalar.
    """
    targets = exclusive(logits) if targets is None else targets
    batch, outputs = logits.shape[:2]
    # One memory order for both: voxels last, so that sums run over contiguous memory.
    flat, index = logits.float().reshape(batch, outputs, -1), labels.reshape(batch, 1, -1).long()
    valid = None if targets.ignore is None else index != targets.ignore
    if valid is not None:
        index = torch.where(valid, index, 0)
    if targets.overlapping:
        entropy, probabilities, one_hot = _by_region(flat, index, valid, targets, annotated)
    else:
        entropy, probabilities, one_hot = _by_label(flat, index, valid, targets, annotated)
    return entropy - soft_dice(probabilities, one_hot, valid, annotated, batch_dice, targets)


Terms = tuple[Tensor, Tensor, Tensor]
"""Cross entropy (scalar), probabilities and references of the foreground outputs (batch, output, voxel)."""


def _by_label(
    flat: Tensor, index: Tensor, valid: Tensor | None, targets: Targets, annotated: Tensor | None
) -> Terms:
    log_probabilities = torch.log_softmax(flat, dim=1)
    if annotated is None:
        of_target = log_probabilities.gather(1, index)
    else:
        known = torch.cat([annotated.new_ones(len(annotated), 1), annotated], dim=1)
        index = torch.where(known.gather(1, index.flatten(1)).view_as(index), index, 0)
        background = known.clone()
        background[:, 0] = False  # background, and what nobody looked for
        merged = log_probabilities.masked_fill(background[:, :, None], -torch.inf).logsumexp(1, keepdim=True)
        of_target = torch.where(index == 0, merged, log_probabilities.gather(1, index))
    with torch.no_grad():
        one_hot = torch.zeros_like(flat).scatter_(1, index, 1.0)[:, 1:]
    entropy = -of_target.mean() if valid is None else _mean(-of_target * valid, valid, targets)
    return entropy, log_probabilities.exp()[:, 1:], one_hot


def _by_region(
    flat: Tensor, index: Tensor, valid: Tensor | None, targets: Targets, annotated: Tensor | None
) -> Terms:
    with torch.no_grad():
        one_hot = targets.members[:, index[:, 0]].transpose(0, 1).to(flat.dtype)
    each = functional.binary_cross_entropy_with_logits(flat, one_hot, reduction="none")
    if valid is None and annotated is None and not targets.annotated:
        return each.mean(), flat.sigmoid(), one_hot
    counts = torch.ones_like(each, dtype=torch.bool) if valid is None else valid.expand_as(each)
    if annotated is not None:
        counts = counts & annotated[:, :, None]
    return _mean(each * counts, counts, targets), flat.sigmoid(), one_hot


def _mean(values: Tensor, counted: Tensor, targets: Targets) -> Tensor:
    """The mean over what counts, in all processes; 0 where nothing does.

    Multiplied by the number of processes, because the gradients are averaged over them.
    """
    count = targets.across(counted.sum().float()).detach()
    return values.sum() * targets.processes / count.clamp_min(1)


def soft_dice(
    probabilities: Tensor, one_hot: Tensor, valid: Tensor | None, annotated: Tensor | None, batch_dice: bool,
    targets: Targets,
) -> Tensor:  # fmt: skip
    """Mean soft Dice of the foreground outputs.

    probabilities, one_hot : (batch, output, voxel) float32; valid : (batch, 1, voxel) bool or None: all voxels.
    """
    if valid is not None:
        probabilities, one_hot = probabilities * valid, one_hot * valid
    intersection = (probabilities * one_hot).sum(dim=2)
    predicted, reference = probabilities.sum(dim=2), one_hot.sum(dim=2)
    if batch_dice:
        sums = torch.stack((intersection, predicted, reference))
        if annotated is not None:
            sums = sums * annotated
        intersection, predicted, reference = targets.across(sums.sum(dim=1))
    denominator = (reference + predicted + SMOOTHING).clamp_min(SMALLEST_DENOMINATOR)
    dice = (2 * intersection + SMOOTHING) / denominator
    if annotated is None and not targets.annotated:
        return dice.mean()
    known = torch.ones_like(dice, dtype=torch.bool) if annotated is None else annotated
    if batch_dice:
        samples = probabilities.new_full((), len(probabilities)) if annotated is None else annotated.sum(0)
        known = targets.across((torch.zeros_like(dice) + samples).detach()) > 0
        return (dice * known).sum() / known.sum().clamp_min(1)  # the same in every process
    return _mean(dice * known, known, targets)


@torch.no_grad()
def dice_counts(
    logits: Tensor, labels: Tensor, targets: Targets | None = None, annotated: Tensor | None = None
) -> Tensor:
    """Voxels of each foreground output over the batch, for the pseudo-Dice: (foreground output, 3) int64.

    logits : (batch, output, *shape); labels : (batch, *shape) integers. The columns are true positives, false
    positives and false negatives of the labels with the greatest logit, or of the regions with a positive one.
    """
    targets = exclusive(logits) if targets is None else targets
    counted = labels != targets.ignore if targets.ignore is not None else torch.ones_like(labels, dtype=torch.bool)
    reference = torch.where(counted, labels.long(), 0)
    best = None if targets.overlapping else logits.argmax(dim=1)
    rows = []
    # One-hot comparisons instead of bincount: exact on every device, and deterministic on CUDA.
    for output, members in enumerate(targets.members):
        inside = counted if annotated is None else counted & annotated[:, output].view(-1, *[1] * (labels.ndim - 1))
        is_predicted = (logits[:, output] > 0 if best is None else best == output + 1) & inside
        is_reference = members[reference] & inside
        both = (is_predicted & is_reference).sum()
        rows.append(torch.stack((both, is_predicted.sum() - both, is_reference.sum() - both)))
    return torch.stack(rows)
