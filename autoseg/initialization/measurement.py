"""How well pretraining solves its tasks, beside what needs no training: linear inpainting, matching of borders."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from autoseg.initialization.baselines import inpaint_linearly, match_borders
from autoseg.initialization.corruption import (
    Corrupted,
    PretextDraw,
    border_slices,
    corrupt,
    draw_corruptions,
    hidden_voxels,
    in_order,
)
from autoseg.initialization.heads import PretextNetwork, PretextOutput
from autoseg.initialization.objective import level_errors, standardized
from autoseg.initialization.picture import Example
from autoseg.initialization.pretraining import image_patches
from autoseg.initialization.record import InitMeasures
from autoseg.initialization.session import InitSession
from autoseg.progress import progress
from autoseg.training.batches import Batch
from autoseg.training.draws import DrawSettings
from autoseg.training.objective import DTYPES

PATCHES = 32
EXAMPLES = 3


@dataclass
class _Sums:
    """What is averaged over patches."""

    masked: list[float] = field(default_factory=list)
    inpainted: list[float] = field(default_factory=list)
    right: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    told: list[float] = field(default_factory=list)
    matched: list[float] = field(default_factory=list)
    padded: list[float] = field(default_factory=list)


@torch.no_grad()
def measure(session: InitSession, network: PretextNetwork, precision: str) -> tuple[InitMeasures, list[Example]]:
    """The final measures, and patches to look at.

    Measured are the held-back images or, where there are none, those learned from. Patches are not augmented. Masked
    errors are measured with the slabs in order; the order on shuffled patches with hidden boxes and borders, as in
    pretraining.
    """
    sources = session.images.held_back or session.images.training
    draws = DrawSettings(seed=session.seed, augment=False, is_validation=True, foreground_fraction=0.0)
    batch_size, patch = session.network_plan.batch_size, session.network_plan.patch_shape
    steps = math.ceil(PATCHES / batch_size)
    sums, examples, shown = _Sums(), list[Example](), set[str]()
    shuffling = session.pretext.model_copy(update={"shuffled_share": 1.0})
    network.eval()
    with image_patches(session, sources, draws) as patches, progress("measure", steps, "steps") as bar:
        for step in range(steps):
            batch = patches.batch(step)
            drawn = draw_corruptions(shuffling, patch, session.seed, step, len(batch.case_ids), measuring=True)
            example = _measure_batch(session, network, precision, batch, drawn, sums)
            caption = f"{batch.case_ids[0]}" + ("" if session.images.held_back else " (learned from)")
            if len(examples) < EXAMPLES and (caption not in shown or step >= steps - EXAMPLES):
                examples.append(replace(example, caption=caption))
                shown.add(caption)
            bar.advance()
    network.train()
    accuracies = {stage: _mean(right) for stage, right in sums.right.items()}
    slabs = session.pretext.slabs
    return InitMeasures(
        images=tuple(source.id for source in sources), held_back=bool(session.images.held_back),
        patches=steps * batch_size,
        masked_error=_mean(sums.masked) if sums.masked else None,
        inpainting_error=_mean(sums.inpainted) if sums.inpainted else None,
        order_accuracy=_mean(sums.told) if sums.told else None, order_accuracies=accuracies,
        order_chance=1 / slabs if slabs else None,
        border_matching_accuracy=_mean(sums.matched) if sums.matched else None,
        padded_share=_mean(sums.padded) if sums.padded else None,
    ), examples


def _measure_batch(
    session: InitSession, network: PretextNetwork, precision: str, batch: Batch, drawn: Sequence[PretextDraw],
    sums: _Sums,
) -> Example:  # fmt: skip
    """Add a batch's errors to the sums; its first sample as a picture's row."""
    image, inside = batch.image, batch.labels > 0
    pretext, spacing = session.pretext, session.plan.configurations[session.configuration].spacing
    means = torch.tensor(session.images.means, device=image.device)
    deviations = torch.tensor(session.images.deviations, device=image.device)
    still = [in_order(draw) for draw in drawn]
    masked = corrupt(image, still, pretext, network.mask_value, inside)
    target, restored = standardized(image, means, deviations), None
    if pretext.mask_ratio:
        restored = _forward(network, masked, precision).reconstructions[0].float()
        for position in range(len(image)):
            at = slice(position, position + 1)
            sample = Corrupted(masked.image[at], masked.target[at], masked.hidden[at], masked.inside[at],
                               masked.scored[at], None)
            hidden, present = (one[position, 0].cpu().numpy() for one in (masked.hidden, masked.inside))
            if not (hidden & present).any() or not (~hidden & present).any():
                continue  # a patch beside the image
            sums.masked.append(float(level_errors(restored[at], target[at], sample)[0]))
            truth = target[position].cpu().numpy()
            guess = inpaint_linearly(truth, ~hidden & present, spacing)
            sums.inpainted.append(float(np.square(guess - truth)[:, hidden & present].mean()))
    example = _example(target, masked, restored, spacing)
    if pretext.slabs is None:
        return example
    mixed = corrupt(image, drawn, pretext, network.mask_value, inside)
    logits = _forward(network, mixed, precision).order_logits
    assert mixed.order is not None
    for stage, one in logits.items():
        sums.right[f"encoder {stage}"] += (one.argmax(2) == mixed.order).float().mean(1).tolist()
    together = torch.stack([one.float().log_softmax(2) for one in logits.values()]).mean(0).argmax(2)
    sums.told += (together == mixed.order).float().mean(1).tolist()
    sums.padded += (~mixed.inside.flatten(3).any(3)).float().mean((1, 2)).tolist()
    for position, draw in enumerate(drawn):
        extent = mixed.inside[position, 0].cpu()
        guessed = match_borders(*_slabs(mixed.target[position], extent, draw, pretext.mask_block, pretext.slabs))
        sums.matched.append(float(np.mean(np.array(guessed) == np.array(draw.order))))
    return replace(example, shuffled=standardized(mixed.target, means, deviations)[0, 0].cpu().numpy(),
                   order=tuple(mixed.order[0].tolist()), guessed=tuple(together[0].tolist()))


def _forward(network: PretextNetwork, corrupted: Corrupted, precision: str) -> PretextOutput:
    kind = corrupted.image.device.type
    with torch.autocast(kind, DTYPES[precision], enabled=precision != "float32"):
        output: PretextOutput = network(corrupted.image)
    return output


def _slabs(
    target: Tensor, present: Tensor, draw: PretextDraw, block: Sequence[int], slabs: int
) -> tuple[np.ndarray, np.ndarray]:
    """The shuffled slabs (slab, channel, thickness, *plane) and their visible voxels (slab, thickness, *plane)."""
    channels, length, *plane = target.shape
    visible = ~hidden_voxels(draw, block, target.shape[1:])[0] & present
    visible[border_slices(draw, length)[0]] = False
    cut = target.cpu().numpy().reshape(channels, slabs, -1, *plane).swapaxes(0, 1)
    return cut, visible.numpy().reshape(slabs, -1, *plane)


def _example(target: Tensor, masked: Corrupted, restored: Tensor | None, spacing: tuple[float, ...]) -> Example:
    image, hidden = target[0, 0].cpu().numpy(), masked.hidden[0, 0].cpu().numpy()
    guess = image if restored is None else restored[0, 0].cpu().numpy()
    return Example(
        caption="", image=image, masked=np.where(hidden, np.nan, image), reconstruction=np.where(hidden, guess, image),
        shuffled=None, order=None, guessed=None, spacing=spacing,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
