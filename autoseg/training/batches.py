"""From raw samples to a batch on the training device: collate, turn, change intensities, mirror."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from autoseg.training import augmentation, spatial
from autoseg.training.draws import SampleDraw
from autoseg.training.patches import RawSample, patch_center
from autoseg.training.placement import as_3d


@dataclass(frozen=True)
class Batch:
    """One training step's input on the training device.

    Attributes
    ----------
    labels : internal labels 0 … K, uint8 or (more than 256 labels) int16.
    case_ids : the case each sample was drawn from.
    """

    image: Float[Tensor, "sample channel *patch"]
    labels: Integer[Tensor, "sample *patch"]
    case_ids: tuple[str, ...]


@dataclass(frozen=True)
class BatchForm:
    """What all batches of a source have in common; `masked_channels` as in `augmentation.change_intensities`."""

    patch_shape: tuple[int, ...]
    channels: int
    label_dtype: torch.dtype
    masked_channels: tuple[int, ...]
    device: torch.device


@dataclass(frozen=True)
class Region:
    """What a turned sample is interpolated from; `center`: the patch's middle in the region's voxels (z, y, x)."""

    image: Float[Tensor, "channel z y x"]
    labels: Integer[Tensor, "z y x"]
    center: tuple[float, ...]


@dataclass(frozen=True)
class StagedStep:
    """A step in host memory (pinned for CUDA), ready to be sent; turned samples are still zero in `image`."""

    draws: tuple[SampleDraw, ...]
    case_ids: tuple[str, ...]
    image: Float[Tensor, "sample channel *patch"]
    labels: Integer[Tensor, "sample *patch"]
    regions: dict[int, Region]


def stage(samples: Sequence[RawSample], form: BatchForm) -> StagedStep:
    """Collate the samples of a step in host memory."""
    pinned = form.device.type == "cuda"
    patch = as_3d(form.patch_shape)
    image = torch.zeros((len(samples), form.channels, *form.patch_shape), pin_memory=pinned)
    labels = torch.zeros((len(samples), *form.patch_shape), dtype=form.label_dtype, pin_memory=pinned)
    images, all_labels = image.view(-1, form.channels, *patch).numpy(), labels.view(-1, *patch).numpy()
    regions = {}
    for position, sample in enumerate(samples):
        if sample.draw.matrix is None:
            images[position], all_labels[position] = sample.image, sample.labels
        else:
            regions[position] = _region(sample, form, pinned)
    return StagedStep(
        draws=tuple(sample.draw for sample in samples),
        regions=regions,
        image=image,
        labels=labels,
        case_ids=tuple(sample.case_id for sample in samples),
    )


def finish(step: StagedStep, form: BatchForm) -> Batch:
    """The batch on the device; a staged step can be finished once (on a CPU its tensors become the batch)."""
    with torch.no_grad(), torch.autocast(form.device.type, enabled=False):
        image = step.image.to(form.device, non_blocking=True)
        labels = step.labels.to(form.device, non_blocking=True)
        for position, region in step.regions.items():
            _turn_into(image[position], labels[position], region, step.draws[position])
        intensities = [draw.intensity for draw in step.draws if draw.intensity is not None]
        if intensities:
            augmentation.change_intensities(image, intensities, form.masked_channels)
        augmentation.mirror(image, labels, [draw.mirror for draw in step.draws])
    return Batch(image=image, labels=labels, case_ids=step.case_ids)


def _region(sample: RawSample, form: BatchForm, pinned: bool) -> Region:
    center = tuple(
        middle - first for middle, first in zip(patch_center(sample.draw, form.patch_shape), sample.origin, strict=True)
    )
    image = torch.from_numpy(sample.image.astype(np.float32))
    labels = torch.from_numpy(sample.labels.copy()).to(form.label_dtype)
    if pinned:
        image, labels = image.pin_memory(), labels.pin_memory()
    return Region(image=image, labels=labels, center=center)


def _turn_into(
    image: Float[Tensor, "channel *patch"],
    labels: Integer[Tensor, "*patch"],
    region: Region,
    draw: SampleDraw,
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
