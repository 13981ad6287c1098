"""Intensity changes and mirroring of a batch on the training device, with the parameters that were drawn per sample.

Functions on planes act on (plane, *patch): one channel of one sample each, with one parameter each. They are written
from nnU-Net v2's definitions (batchgeneratorsv2), as batched operations; blurring and lowering the resolution are
linear and separable, so both are one small matrix per axis.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from autoseg.training.draws import IntensityDraw, NoiseDraw

_EPSILON = 1e-7
_BLUR_REACH = 6.0  # kernel length in σ
Planes = Float[Tensor, "plane *patch"]
Parameter = TypeVar("Parameter")


def change_intensities(
    image: Float[Tensor, "sample channel *patch"],
    draws: Sequence[IntensityDraw],
    masked_channels: Sequence[int] = (),
) -> Float[Tensor, "sample channel *patch"]:
    """Apply every sample's draw to a contiguous batch, in place and in nnU-Net's order; returns the batch.

    `masked_channels` were normalized within the nonzero voxels only: where all of them are exactly 0 (outside the
    body) they stay 0.
    """
    outside = _outside(image, masked_channels)
    add_noise(image, [draw.noise for draw in draws])
    _on_planes(image, [draw.blur for draw in draws], blur)
    _on_planes(image, [draw.brightness for draw in draws], scale_brightness)
    _on_planes(image, [draw.contrast for draw in draws], change_contrast)
    _on_planes(image, [draw.low_resolution for draw in draws], lower_resolution)
    _on_planes(image, [draw.inverted_gamma for draw in draws], lambda planes, gammas: -change_gamma(-planes, gammas))
    _on_planes(image, [draw.gamma for draw in draws], change_gamma)
    if outside is not None:
        for channel in masked_channels:
            image[:, channel].masked_fill_(outside, 0)
    return image


def add_noise(image: Float[Tensor, "sample channel *patch"], noises: Sequence[NoiseDraw | None]) -> None:
    """Add Gaussian noise in place; every sample's voxels come from its own generator on the image's device."""
    for sample, noise in enumerate(noises):
        if noise is not None:
            generator = torch.Generator(image.device).manual_seed(noise.seed)
            image[sample].add_(
                torch.randn(image.shape[1:], generator=generator, device=image.device), alpha=noise.sigma
            )


def scale_brightness(planes: Planes, factors: Sequence[float]) -> Planes:
    """Multiply each plane by its factor."""
    return planes * _column(factors, planes)


def change_contrast(planes: Planes, factors: Sequence[float]) -> Planes:
    """Stretch each plane around its mean; its range stays what it was."""
    axes = tuple(range(1, planes.ndim))
    mean = planes.mean(axes, keepdim=True)
    stretched = (planes - mean) * _column(factors, planes) + mean
    return stretched.clamp(planes.amin(axes, keepdim=True), planes.amax(axes, keepdim=True))


def change_gamma(planes: Planes, gammas: Sequence[float]) -> Planes:
    """((x - min) / range)^gamma * range + min per plane, then back to the plane's mean and standard deviation."""
    axes = tuple(range(1, planes.ndim))
    low = planes.amin(axes, keepdim=True)
    extent = planes.amax(axes, keepdim=True) - low
    changed = ((planes - low) / extent.clamp(min=_EPSILON)) ** _column(gammas, planes) * extent + low
    changed = changed - changed.mean(axes, keepdim=True)
    ratio = planes.std(axes, keepdim=True) / changed.std(axes, keepdim=True).clamp(min=_EPSILON)
    return changed * ratio + planes.mean(axes, keepdim=True)


def change_inverted_gamma(planes: Planes, gammas: Sequence[float]) -> Planes:
    """`change_gamma` of the negated planes, negated."""
    return -change_gamma(-planes, gammas)


def blur(planes: Planes, sigmas: Sequence[Sequence[float]]) -> Planes:
    """Gaussian blur with σ (voxels) per plane and axis; the border is reflected."""
    return _apply_along_axes(planes, sigmas, _blur_matrix)


def lower_resolution(planes: Planes, scales: Sequence[Sequence[float]]) -> Planes:
    """Keep `scale` of the voxels per plane and axis (nearest), then interpolate linearly back to the same shape."""
    return _apply_along_axes(planes, scales, _low_resolution_matrix)


def mirror(
    image: Float[Tensor, "sample channel *patch"],
    labels: Integer[Tensor, "sample *patch"],
    axes: Sequence[tuple[int, ...]],
) -> None:
    """Flip each sample's image and labels along its own patch axes, in place."""
    _flip(image, axes, 2)
    mirror_labels(labels, axes)


def mirror_labels(labels: Integer[Tensor, "sample *patch"], axes: Sequence[tuple[int, ...]]) -> None:
    """Flip each sample's labels along its own patch axes, in place."""
    _flip(labels, axes, 1)


def _flip(batch: Tensor, axes: Sequence[tuple[int, ...]], first: int) -> None:
    """Axis 0 of the patch is axis `first` of the batch."""
    for chosen in sorted(set(axes) - {()}):
        samples = torch.tensor([i for i, own in enumerate(axes) if own == chosen], device=batch.device)
        batch.index_copy_(0, samples, batch.index_select(0, samples).flip([axis + first for axis in chosen]))


def _on_planes(
    image: Float[Tensor, "sample channel *patch"],
    parameters: Sequence[Sequence[Parameter | None]],
    change: Callable[[Tensor, list[Parameter]], Tensor],
) -> None:
    """Change, in place, the channels whose parameter is not None; the others are not touched."""
    channels = image.shape[1]
    chosen = {
        sample * channels + channel: value
        for sample, values in enumerate(parameters)
        for channel, value in enumerate(values)
        if value is not None
    }
    if chosen:
        planes = image.view(-1, *image.shape[2:])
        index = torch.tensor(list(chosen), device=image.device)
        planes.index_copy_(0, index, change(planes.index_select(0, index), list(chosen.values())))


def _outside(
    image: Float[Tensor, "sample channel *patch"], masked_channels: Sequence[int]
) -> Bool[Tensor, "sample *patch"] | None:
    if not masked_channels:
        return None
    return (image[:, list(masked_channels)] == 0).all(1)


def _column(values: Sequence[float], planes: Planes) -> Tensor:
    """One value per plane, shaped to broadcast over the patch."""
    return torch.tensor(values, dtype=planes.dtype, device=planes.device).view(-1, *[1] * (planes.ndim - 1))


def _apply_along_axes(
    planes: Planes, parameters: Sequence[Sequence[float]], matrix_of: Callable[[int, float], np.ndarray]
) -> Planes:
    """Multiply every axis of every plane by its own matrix (length x length)."""
    for axis, length in enumerate(planes.shape[1:]):
        matrices = np.stack([matrix_of(length, own[axis]) for own in parameters]).astype(np.float32)
        if (matrices == np.eye(length, dtype=np.float32)).all():
            continue
        operator = torch.from_numpy(matrices).to(planes.device)
        shape = planes.shape
        if axis == planes.ndim - 2:
            planes = planes.flatten(1, -2) @ operator.mT
        else:
            slabs = planes.reshape(shape[0], -1, length, shape[axis + 2 :].numel())
            planes = operator[:, None] @ slabs
        planes = planes.reshape(shape)
    return planes


def _blur_matrix(length: int, sigma: float) -> Float[np.ndarray, "length length"]:
    """Rows are Gaussian kernels, the odd number of voxels nearest to 6σ + ½ long, reflected at the border voxels."""
    width = _nearest_odd(_BLUR_REACH * sigma + 0.5)
    offsets = np.arange(width) - width // 2
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    period = max(2 * (length - 1), 1)
    position = (np.arange(length)[:, None] + offsets) % period
    reflected = np.minimum(position, period - position) if length > 1 else np.zeros_like(position)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], reflected), np.broadcast_to(kernel, reflected.shape))
    return matrix


def _low_resolution_matrix(length: int, scale: float) -> Float[np.ndarray, "length length"]:
    """Nearest sampling to round(length * scale) voxels followed by linear interpolation back, borders repeated."""
    # float32, as in torch.nn.functional.interpolate: which neighbor is nearest can hang on the last bit.
    single = np.float32
    small = max(round(length * float(single(scale))), 1)
    kept = np.floor((np.arange(small, dtype=single) + single(0.5)) * (single(length) / single(small)))
    kept = np.minimum(kept.astype(np.int64), length - 1)
    position = np.maximum(
        (np.arange(length, dtype=single) + single(0.5)) * (single(small) / single(length)) - single(0.5), 0
    )
    low = np.minimum(position.astype(np.int64), small - 1)
    high = np.minimum(low + 1, small - 1)
    matrix = np.zeros((length, length))
    rows = np.arange(length)
    np.add.at(matrix, (rows, kept[low]), 1 - (position - low))
    np.add.at(matrix, (rows, kept[high]), position - low)
    return matrix


def _nearest_odd(number: float) -> int:
    rounded = round(number)
    if rounded % 2:
        return rounded
    return rounded + 1 if number >= rounded else rounded - 1
