"""What a sample of pretraining loses: boxes that are hidden, slabs that are shuffled, slices hidden at their borders.

Every chance is drawn once, as numbers, from (seed, step, sample); applying a draw is arithmetic on tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autoseg.initialization.record import PretextPlan

_TRAINING_STREAM, _MEASURING_STREAM = 3, 4
"""Patches use the streams 0 and 1 of the same seed (`training.draws`), layers 2 (`training.loop`)."""
SEAM = 2
"""Voxels beside a seam between two slabs that no loss counts: what stands there in the target is no anatomy."""


UNSHUFFLED = -1
"""Stands for the order of a sample that has none to tell."""


@dataclass(frozen=True)
class PretextDraw:
    """One sample's chances.

    Attributes
    ----------
    hidden_boxes : over the grid of boxes.
    order : the original slab at every position; None: every slab is where it was.
    borders : per position, slices hidden at the slab's low and high border.
    """

    hidden_boxes: Bool[np.ndarray, "*grid"]
    order: tuple[int, ...] | None = None
    borders: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Corrupted:
    """A batch as the network sees it, and what it must restore.

    Attributes
    ----------
    target : the image, shuffled where it is, complete. image : the same with the hidden voxels' value put in.
    hidden : voxels of hidden boxes. inside : voxels of the image; the others are padding.
    scored : voxels whose error counts: inside, not beside a seam, not in a hidden border.
    order : (sample, slab) original slab at every position, int64, −1 in samples that are not shuffled; None where no
        sample is.
    """

    image: Float[Tensor, "sample channel *patch"]
    target: Float[Tensor, "sample channel *patch"]
    hidden: Bool[Tensor, "sample 1 *patch"]
    inside: Bool[Tensor, "sample 1 *patch"]
    scored: Bool[Tensor, "sample 1 *patch"]
    order: Tensor | None


# ---------------------------------------------------------------- drawing
def draw_corruptions(
    plan: PretextPlan, patch_shape: Sequence[int], seed: int, step: int, samples: int, measuring: bool = False
) -> list[PretextDraw]:
    """A draw for every sample of a step. Measurements have a stream of their own."""
    stream = _MEASURING_STREAM if measuring else _TRAINING_STREAM
    return [draw_corruption(plan, patch_shape, np.random.default_rng([seed, stream, step, sample]))
            for sample in range(samples)]


def draw_corruption(plan: PretextPlan, patch_shape: Sequence[int], rng: np.random.Generator) -> PretextDraw:
    """Exactly round(ratio · boxes) hidden boxes; in the plan's share of samples an order, uniform over all, and slices
    hidden at the slabs' borders."""
    grid = tuple(-(-size // block) for size, block in zip(patch_shape, plan.mask_block, strict=True))
    count = int(np.prod(grid))
    hidden = np.zeros(count, bool)
    hidden[rng.permutation(count)[: round(plan.mask_ratio * count)]] = True
    if plan.slabs is None or rng.random() >= plan.shuffled_share:
        return PretextDraw(hidden.reshape(grid))
    order = tuple(int(slab) for slab in rng.permutation(plan.slabs))
    borders = rng.integers(0, plan.border_slices + 1, (plan.slabs, 2)).tolist()
    return PretextDraw(hidden.reshape(grid), order, tuple((low, high) for low, high in borders))


def in_order(draw: PretextDraw) -> PretextDraw:
    """The draw with every slab where it was and no hidden borders: what masked reconstruction is measured on."""
    return PretextDraw(draw.hidden_boxes)


# ---------------------------------------------------------------- applying
def corrupt(
    image: Float[Tensor, "sample channel *patch"], draws: Sequence[PretextDraw], plan: PretextPlan, value: Tensor,
    inside: Bool[Tensor, "sample *patch"] | None = None,
) -> Corrupted:
    """Shuffle and hide.

    `value` (channel) stands for hidden voxels and gets their gradients; `inside`: voxels of the image, by default all.
    """
    hidden = torch.stack([hidden_voxels(draw, plan.mask_block, image.shape[2:]) for draw in draws]).to(image.device)
    slices = [border_slices(draw, image.shape[2]) for draw in draws]
    border = _along_first_axis(torch.stack([one for one, _ in slices]), hidden)
    scored = _along_first_axis(torch.stack([one for _, one in slices]), hidden)
    target, order = image, None
    present = torch.ones_like(hidden) if inside is None else inside[:, None]
    if slabs := next((len(draw.order) for draw in draws if draw.order is not None), None):
        target, present = _shuffled_batch(target, draws), _shuffled_batch(present, draws)
        order = torch.tensor([draw.order or (UNSHUFFLED,) * slabs for draw in draws], device=image.device)
    filled = value.view(1, -1, *(1 for _ in image.shape[2:])).to(image.dtype)
    return Corrupted(torch.where(hidden | border, filled, target), target, hidden, present, scored & present, order)


def _shuffled_batch(batch: Tensor, draws: Sequence[PretextDraw]) -> Tensor:
    return torch.stack([sample if draw.order is None else shuffled(sample, draw.order)
                        for sample, draw in zip(batch, draws, strict=True)])


def hidden_voxels(draw: PretextDraw, block: Sequence[int], patch_shape: Sequence[int]) -> Bool[Tensor, "1 *patch"]:
    """The hidden boxes as voxels; boxes at the high ends are cut where they do not divide the patch."""
    mask = torch.from_numpy(draw.hidden_boxes)
    for axis, (size, length) in enumerate(zip(block, patch_shape, strict=True)):
        mask = mask.repeat_interleave(size, dim=axis).narrow(axis, 0, length)
    return mask[None]


def shuffled(sample: Tensor, order: Sequence[int]) -> Tensor:
    """A sample (channel, *patch) with slab order[t] of its first patch axis at position t."""
    slabs = sample.reshape(len(sample), len(order), -1, *sample.shape[2:])
    return slabs[:, list(order)].flatten(1, 2)


def border_slices(draw: PretextDraw, length: int) -> tuple[Bool[Tensor, " slice"], Bool[Tensor, " slice"]]:
    """(hidden, scored) slices of the first axis: hidden at borders; counted, since neither hidden nor at a seam."""
    hidden, scored = torch.zeros(length, dtype=torch.bool), torch.ones(length, dtype=torch.bool)
    if draw.order is None:
        return hidden, scored
    thickness = length // len(draw.order)
    for position, (low, high) in enumerate(draw.borders):
        start, stop = position * thickness, (position + 1) * thickness
        hidden[start : start + low] = True
        hidden[stop - high : stop] = True
        if position:
            scored[max(0, start - SEAM) : start + SEAM] = False
    return hidden, scored & ~hidden


def _along_first_axis(slices: Bool[Tensor, "sample slice"], like: Tensor) -> Tensor:
    shape = (len(slices), 1, slices.shape[1], *(1 for _ in like.shape[3:]))
    return slices.view(shape).to(like.device)
