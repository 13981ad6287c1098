"""From raw samples to a batch on the training device: collate, turn, change intensities, mirror.

A cascade's previous masks go the way of labels until all is turned and mirrored; then they are made worse and become
channels of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from autoseg.training import augmentation, spatial
from autoseg.training.draws import SampleDraw
from autoseg.training.mask_augmentation import change_mask
from autoseg.training.patches import RawSample, patch_center
from autoseg.training.placement import as_3d


@dataclass(frozen=True)
class Batch:
    """One training step's input on the training device.

    Attributes
    ----------
    image : of a cascade, the previous mask's channels follow those of the image: one per foreground label, 0 or 1.
    labels : internal labels 0 … K, uint8 or (more than 256 labels) int16.
    case_ids : the case each sample was drawn from.
    """

    image: Float[Tensor, "sample channel *patch"]
    labels: Integer[Tensor, "sample *patch"]
    case_ids: tuple[str, ...]


@dataclass(frozen=True)
class BatchForm:
    """What all batches of a source have in common; `masked_channels` as in `augmentation.change_intensities`.

    `channels`: of the image. `masks`: of a cascade, the foreground labels of its previous stage; else 0.
    """

    patch_shape: tuple[int, ...]
    channels: int
    label_dtype: torch.dtype
    masked_channels: tuple[int, ...]
    device: torch.device
    masks: int = 0


@dataclass(frozen=True)
class Region:
    """What a turned sample is interpolated from; `center`: the patch's middle in the region's voxels (z, y, x)."""

    image: Float[Tensor, "channel z y x"]
    labels: Integer[Tensor, "z y x"]
    center: tuple[float, ...]
    previous: Integer[Tensor, "z y x"] | None = None


@dataclass(frozen=True)
class StagedStep:
    """A step in host memory (pinned for CUDA), ready to be sent; turned samples are still zero in `image`."""

    draws: tuple[SampleDraw, ...]
    case_ids: tuple[str, ...]
    image: Float[Tensor, "sample channel *patch"]
    labels: Integer[Tensor, "sample *patch"]
    regions: dict[int, Region]
    previous: Integer[Tensor, "sample *patch"] | None = None


def stage(samples: Sequence[RawSample], form: BatchForm) -> StagedStep:
    """Collate the samples of a step in host memory."""
    pinned = form.device.type == "cuda"
    patch = as_3d(form.patch_shape)
    image = torch.zeros((len(samples), form.channels, *form.patch_shape), pin_memory=pinned)
    labels = torch.zeros((len(samples), *form.patch_shape), dtype=form.label_dtype, pin_memory=pinned)
    previous = torch.zeros_like(labels, pin_memory=pinned) if form.masks else None
    images, all_labels = image.view(-1, form.channels, *patch).numpy(), labels.view(-1, *patch).numpy()
    regions = {}
    for position, sample in enumerate(samples):
        if sample.draw.matrix is None:
            images[position], all_labels[position] = sample.image, sample.labels
            if previous is not None and sample.previous is not None:
                previous[position] = torch.from_numpy(sample.previous).view(form.patch_shape)
        else:
            regions[position] = _region(sample, form, pinned)
    return StagedStep(
        draws=tuple(sample.draw for sample in samples),
        regions=regions,
        image=image,
        labels=labels,
        case_ids=tuple(sample.case_id for sample in samples),
        previous=previous,
    )


def finish(step: StagedStep, form: BatchForm) -> Batch:
    """The batch on the device; a staged step can be finished once (on a CPU its tensors become the batch)."""
    with torch.no_grad(), torch.autocast(form.device.type, enabled=False):
        image = step.image.to(form.device, non_blocking=True)
        labels = step.labels.to(form.device, non_blocking=True)
        previous = None if step.previous is None else step.previous.to(form.device, non_blocking=True)
        for position, region in step.regions.items():
            beside = None if previous is None else previous[position]
            _turn_into(image[position], labels[position], region, step.draws[position], beside)
        intensities = [draw.intensity for draw in step.draws if draw.intensity is not None]
        if intensities:
            augmentation.change_intensities(image, intensities, form.masked_channels)
        mirrors = [draw.mirror for draw in step.draws]
        augmentation.mirror(image, labels, mirrors)
        if previous is not None:
            augmentation.mirror_labels(previous, mirrors)
            image = torch.cat([image, mask_channels(previous, step.draws, form.masks)], dim=1)
    return Batch(image=image, labels=labels, case_ids=step.case_ids)


def mask_channels(
    previous: Integer[Tensor, "sample *patch"], draws: Sequence[SampleDraw], masks: int
) -> Float[Tensor, "sample mask *patch"]:
    """Every sample's previous mask, changed as drawn, as a channel of zeros and ones per foreground label."""
    changed = torch.stack([mask if draw.masks is None else change_mask(mask, draw.masks)
                           for mask, draw in zip(previous, draws, strict=True)])
    values = torch.arange(1, masks + 1, device=changed.device).view(-1, *[1] * (changed.ndim - 1))
    return (changed[:, None] == values).float()


def _region(sample: RawSample, form: BatchForm, pinned: bool) -> Region:
    center = tuple(
        middle - first for middle, first in zip(patch_center(sample.draw, form.patch_shape), sample.origin, strict=True)
    )
    image = torch.from_numpy(sample.image.astype(np.float32))
    labels = torch.from_numpy(sample.labels.copy()).to(form.label_dtype)
    if pinned:
        image, labels = image.pin_memory(), labels.pin_memory()
    previous = None if sample.previous is None else torch.from_numpy(sample.previous.copy()).to(form.label_dtype)
    return Region(image=image, labels=labels, center=center, previous=previous)


def _turn_into(
    image: Float[Tensor, "channel *patch"],
    labels: Integer[Tensor, "*patch"],
    region: Region,
    draw: SampleDraw,
    previous: Integer[Tensor, "*patch"] | None,
) -> None:
    """Interpolate a region at its draw's rotation and scale into one sample of the batch."""
    assert draw.matrix is not None
    axes = len(draw.matrix)
    coordinates = spatial.sample_coordinates(
        draw.matrix, region.center[3 - axes :], labels.shape[labels.ndim - axes :], image.device
    )
    # Turned within the slices, the slices are the planes.
    leading = 2 if axes == 2 else 1
    voxels = region.image.to(image.device, non_blocking=True).flatten(0, leading - 1)
    planes = region.labels.to(image.device, non_blocking=True).reshape(-1, *region.labels.shape[3 - axes :])
    image.copy_(spatial.resample_image(voxels, coordinates).view(image.shape))
    labels.copy_(spatial.resample_labels(planes, coordinates).view(labels.shape))
    if previous is not None and region.previous is not None:
        planes = region.previous.to(image.device, non_blocking=True).reshape(planes.shape)
        previous.copy_(spatial.resample_labels(planes, coordinates).view(labels.shape))
