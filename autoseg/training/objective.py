"""What one training step computes: the views of a batch, their losses, and the gradients of these, added up.

A method of domain generalization gives each batch one or several views. The step's loss is the mean over its views
(not their sum), so that learning rate, weight decay and clipping mean what they mean in plain training; each view's
gradients are computed before the next view's forward pass, so the memory is that of one view (and, for CCSDG, of
three maps of the first block).

Sources: GIN and two-view blend, Ouyang et al. 2022 (Causality-inspired single-source domain generalization); SLAug,
Su et al. 2023; CCSDG, Hu et al. 2023. See `autoseg.domains` for the formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.data.intensity import SPAN
from autoseg.domains.fourier import fourier_view
from autoseg.domains.location_scale import LocationScaleSettings, class_masks, global_view, local_view
from autoseg.domains.random_convolution import RandomConvolutionSettings, random_convolution_views
from autoseg.domains.saliency import fuse, saliency_map
from autoseg.domains.style_contrast import ContentStyle, Gate, gate
from autoseg.networks.segmenter import Segmenter
from autoseg.training.batches import Batch
from autoseg.training.losses import deep_supervision_loss, dice_counts
from autoseg.training.targets import Targets

if TYPE_CHECKING:
    from autoseg.training.guiding import Guide, View

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The draws of samples use streams 0 and 1 of the same seed (draws.py), layers stream 2 (loop.py).
_VIEW_STREAM, _LOCAL_STREAM = 3, 4
BODY = 0.01
"""Voxels above this share of the span are body: percentile and rank normalization put air at exactly 0, and turning a
patch mixes the border a little."""


@dataclass(frozen=True)
class Step:
    """Where a training stands: the step's number, and its share of the schedule (0 to 1)."""

    number: int
    share: float


@dataclass(frozen=True)
class Aim:
    """What the segmentation loss compares with, and whether its Dice is that of the whole batch."""

    targets: Targets
    batch_dice: bool

    def loss(self, logits: Sequence[Tensor], batch: Batch) -> Tensor:
        """Of the logits of every level, finest first."""
        annotated = self.targets.annotated_in(batch.case_ids, batch.labels.device)
        return deep_supervision_loss(logits, batch.labels, self.batch_dice, self.targets, annotated)

    def counts(self, logits: Tensor, batch: Batch) -> Tensor:
        """`dice_counts` of the finest level's logits."""
        annotated = self.targets.annotated_in(batch.case_ids, batch.labels.device)
        return dice_counts(logits, batch.labels, self.targets, annotated)


class TrainedParts(nn.Module):
    """All that one training optimizes: the network, and what guides it or generates its views (or nothing).

    The state dict of a plain training is the network's own, because then the network stands alone.
    """

    def __init__(self, network: Segmenter, guide: "Guide | None", style: ContentStyle | None) -> None:
        super().__init__()
        self.network, self.guide, self.style = network, guide, style


class Objective:
    """Plain training: one view, the batch as it is.

    `precision` : of the forward passes (autocast); losses are float32. `scaler`: scales losses for float16.
    `process` : which part of the whole batch the batches are (`DrawSettings.process`).
    """

    def __init__(self, network: Segmenter, guide: "Guide | None", aim: Aim, seed: int) -> None:
        self.network, self.guide, self.aim, self.seed = network, guide, aim, seed
        self.precision, self.process = "float32", 0
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def backward(self, batch: Batch, step: Step) -> Tensor:
        """Add the gradients of the step's loss to the parameters; returns the loss, detached."""
        return self._over_views((batch.image,), batch, step)

    def logits(self, image: Tensor) -> list[Tensor]:
        """Logits of every level, as in training."""
        with self._autocast(image):
            if self.guide is None:
                return self.network.forward_all(image)
            return self.guide.forward(self.network, image)[0]

    def close(self) -> None:
        """Take hooks off the network."""

    def _loss(self, image: Tensor, batch: Batch, step: Step, other: "View | None") -> "tuple[Tensor, View | None]":
        """Loss of one view, and the guide's regions in it; `other`: those of another view of the same patches."""
        if self.guide is None:
            return self.aim.loss(self.logits(image), batch), None
        with self._autocast(image):
            logits, maps = self.guide.forward(self.network, image)
        loss = self.aim.loss(logits, batch)
        annotated = self.aim.targets.annotated_in(batch.case_ids, image.device)
        extra, view = self.guide.loss(maps, batch.labels, step.share, other, annotated)
        return (loss if extra is None else loss + extra), view

    def _over_views(self, images: Sequence[Tensor], batch: Batch, step: Step) -> Tensor:
        """Add the gradients of the mean loss over views of the same patches, one view after the other."""
        total, other = torch.zeros((), device=batch.labels.device), None
        for image in images:
            loss, other = self._loss(image, batch, step, other)
            self._after_forward()
            total = total + self._add_gradients(loss, len(images))
        return total

    def _after_forward(self) -> None:
        """Called between a view's forward and backward pass."""

    def _add_gradients(self, loss: Tensor, views: int) -> Tensor:
        part = loss / views
        self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        return part.detach()

    def _autocast(self, image: Tensor) -> torch.autocast:
        return torch.autocast(image.device.type, DTYPES[self.precision], enabled=self.precision != "float32")

    def _chances(self, step: Step, samples: int, stream: int = _VIEW_STREAM) -> list[np.random.Generator]:
        """One source of chance per sample: a function of (seed, step, sample); of all processes' samples."""
        numbers = range(self.process * samples, (self.process + 1) * samples)
        return [np.random.default_rng([self.seed, stream, step.number, sample]) for sample in numbers]


class RandomConvolution(Objective):
    """GIN: every patch is filtered by random convolutions; with two views, both blends, one after the other."""

    def __init__(self, network: Segmenter, guide: "Guide | None", aim: Aim, seed: int, views: int) -> None:
        super().__init__(network, guide, aim, seed)
        self.settings = RandomConvolutionSettings(views=views)

    def backward(self, batch: Batch, step: Step) -> Tensor:
        """As `Objective.backward`."""
        with torch.no_grad():
            images = random_convolution_views(batch.image, self._chances(step, len(batch.image)), self.settings)
        return self._over_views(images, batch, step)


class LocationScale(Objective):
    """SLAug: a global view; then the local view, in its place where the first view's gradient is small."""

    def __init__(self, network: Segmenter, guide: "Guide | None", aim: Aim, seed: int) -> None:
        super().__init__(network, guide, aim, seed)
        self.settings = LocationScaleSettings()

    def backward(self, batch: Batch, step: Step) -> Tensor:
        """As `Objective.backward`."""
        samples = len(batch.image)
        with torch.no_grad():
            unit, body = unit_and_body(batch.image)
            mild = global_view(unit, body, self._chances(step, samples), self.settings)
        first = (mild * SPAN).requires_grad_()
        loss, view = self._loss(first, batch, step, None)
        total = self._add_gradients(loss, 2)
        assert first.grad is not None
        with torch.no_grad():
            saliency = saliency_map(first.grad, self._cells(tuple(mild.shape[2:])))
            classes = class_masks(batch.labels, self.aim.targets.members, self.aim.targets.ignore)
            strong = local_view(unit, body, classes, self._chances(step, samples, _LOCAL_STREAM), self.settings)
            second = fuse(mild, strong, saliency) * SPAN
        loss, _ = self._loss(second, batch, step, view)
        return total + self._add_gradients(loss, 2)

    def _cells(self, patch: tuple[int, ...]) -> tuple[int, ...]:
        """Cells of the saliency's grid: one per 10 voxels, at least two (the published cardiac grid is 18 of 192)."""
        return tuple(min(length, max(2, round(length / 10))) for length in patch)


class StyleContrast(Objective):
    """CCSDG: the patch, its low-frequency and its location-scale view; only the first layer's content goes on."""

    def __init__(
        self, network: Segmenter, guide: "Guide | None", aim: Aim, seed: int, style: ContentStyle
    ) -> None:
        super().__init__(network, guide, aim, seed)
        self.settings, self.style = LocationScaleSettings(), style
        self.gate: Gate = gate(network, style)
        self._features: list[Tensor] = []

    def backward(self, batch: Batch, step: Step) -> Tensor:
        """As `Objective.backward`."""
        samples = len(batch.image)
        with torch.no_grad():
            unit, body = unit_and_body(batch.image)
            scaled = global_view(unit, body, self._chances(step, samples, _LOCAL_STREAM), self.settings) * SPAN
            images = (batch.image, fourier_view(batch.image, self._chances(step, samples)), scaled)
        self._features = []
        self.gate.record = True
        total = self._over_views(images, batch, step)
        self.gate.record = False
        self._add_gradients(self.style.contrast(self._features), 1)
        self._features = []
        return total

    def _after_forward(self) -> None:
        """Before the backward pass, in which a checkpointed stage records its features again."""
        self._features.append(self.gate.taken())

    def close(self) -> None:
        """Take the gate off the network."""
        self.gate.remove()


def unit_and_body(image: Tensor) -> tuple[Tensor, Tensor]:
    """A normalized batch on the scale from 0 to 1, and its body (sample, *patch): above air in any channel."""
    unit = image / SPAN
    return unit, unit.amax(1) > BODY
