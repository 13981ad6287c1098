"""Views of a batch through small random convolutional networks: GIN, and CSDG's blend of two of them.

One filtering of an image x (sample by sample, all of its channels together) is

    h₀ = x,   hₗ = φ(K_l ∗ h_{l−1} + s_l),   l = 1 … layers,

with kernels K ~ N(0, 1) of a size drawn per sample and layer from `kernel_sizes`, shifts s ~ N(0, 1) per output
channel, φ the leaky ReLU (identity after the last layer), `channels` channels between and the image's own at the end.
It is mixed with the image, α uniform in [0, 1) per sample, and scaled to the image's Frobenius norm over channels and
voxels:

    m = α·h + (1 − α)·x,   g = m · ‖x‖ / ‖m‖.

The two-view blend draws two such g₁, g₂ and a smooth map b in [0, 1]: the views are b·g₁ + (1 − b)·g₂ and
(1 − b)·g₁ + b·g₂. b is a cubic B-spline over uniform coefficients, one every `grid` voxels, stretched to [0, 1].

Sources: Ouyang et al. 2022 (causality-inspired single-source domain generalization: GIN, IPA with a grid of 24
pixels). Air is filtered too, as published: it ends at any value, and no network can rest on it being 0.

A small kernel sits in the center of a large one, so that a layer is one convolution with one group per sample,
whatever sizes were drawn. In 3-D on a CPU this is about twice as fast as one call per sample and ten times as fast as
unfolded windows; in 2-D the first two take about the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from autoseg.domains.splines import along_axes, free_spline
from autoseg.errors import UserError

_SLOPE = 0.01  # of the leaky ReLU below zero, as published
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class RandomConvolutionSettings:
    """How images are filtered.

    Attributes
    ----------
    layers, channels : convolutions in a row, and channels between them.
    kernel_sizes : odd sizes a layer's kernel is drawn from, the same along every axis.
    views : 1 is one filtering; 2 are two, blended with each other in both ways.
    grid : voxels between the coefficients of the blend's map.
    """

    layers: int = 4
    channels: int = 2
    kernel_sizes: tuple[int, ...] = (1, 3)
    views: int = 1
    grid: int = 24

    def __post_init__(self) -> None:
        if min(self.layers, self.channels, self.grid) < 1:
            raise UserError(
                f"random convolutions with {self.layers} layers, {self.channels} channels and a grid of {self.grid} "
                "voxels were asked for; each must be 1 or more. Use the defaults, or larger numbers."
            )
        if not self.kernel_sizes or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise UserError(
                f"kernel sizes {self.kernel_sizes} were asked for; they must be odd, so that an image keeps its "
                "shape. Use for example (1, 3)."
            )
        if self.views not in (1, 2):
            raise UserError(f"{self.views} views were asked for; a blend has 2, plain filtering 1. Choose one of them.")


@dataclass(frozen=True)
class Filters:
    """One sample's draw: per layer the kernel (out, in, *size) and the shifts (out,), and the share α."""

    kernels: tuple[Float32[np.ndarray, "_ _ ..."], ...]
    shifts: tuple[Float32[np.ndarray, " _"], ...]
    alpha: float


def random_convolution_views(
    image: Float32[Tensor, "sample channel *patch"],
    rngs: Sequence[np.random.Generator],
    settings: RandomConvolutionSettings,
) -> tuple[Float32[Tensor, "sample channel *patch"], ...]:
    """`settings.views` views of the batch; `rngs`: one per sample, and a sample's views are a function of its own."""
    channels, patch = image.shape[1], tuple(image.shape[2:])
    drawn = [[draw_filters(rng, channels, len(patch), settings) for _ in range(settings.views)] for rng in rngs]
    with torch.autocast(image.device.type, enabled=False):
        filtered = [random_convolution(image, [own[view] for own in drawn]) for view in range(settings.views)]
        if settings.views == 1:
            return (filtered[0],)
        share = torch.stack([_blend_map(rng, patch, settings.grid, image.device) for rng in rngs])[:, None]
        first, second = filtered
        return share * first + (1 - share) * second, (1 - share) * first + share * second


def random_convolution(
    image: Float32[Tensor, "sample channel *patch"], filters: Sequence[Filters]
) -> Float32[Tensor, "sample channel *patch"]:
    """Every image filtered with its own draw, mixed with itself, and scaled to its own Frobenius norm."""
    device, samples = image.device, len(filters)
    hidden = image.reshape(1, -1, *image.shape[2:])
    convolve = functional.conv2d if image.dim() == 4 else functional.conv3d
    layers = len(filters[0].kernels)
    for layer in range(layers):
        kernels = np.concatenate([own.kernels[layer] for own in filters])
        shifts = np.concatenate([own.shifts[layer] for own in filters])
        hidden = convolve(
            hidden,
            torch.from_numpy(kernels).to(device),
            torch.from_numpy(shifts).to(device),
            padding=kernels.shape[-1] // 2,
            groups=samples,
        )
        if layer < layers - 1:
            hidden = functional.leaky_relu(hidden, _SLOPE)
    alpha = _column([own.alpha for own in filters], image)
    mixed = torch.lerp(image, hidden.reshape(image.shape), alpha)
    axes = tuple(range(1, image.dim()))
    norms = [torch.linalg.vector_norm(each, dim=axes, keepdim=True) for each in (image, mixed)]
    view: Tensor = mixed * (norms[0] / norms[1].clamp(min=_TINY))
    return view


def draw_filters(
    rng: np.random.Generator, channels: int, dimensions: int, settings: RandomConvolutionSettings
) -> Filters:
    """One draw, for images with so many channels and axes."""
    widest = max(settings.kernel_sizes)
    widths = [channels, *[settings.channels] * (settings.layers - 1), channels]
    kernels, shifts = [], []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        size = int(rng.choice(settings.kernel_sizes))
        kernel = np.zeros((after, before, *[widest] * dimensions), np.float32)
        inner = slice((widest - size) // 2, (widest + size) // 2)
        kernel[(slice(None), slice(None), *[inner] * dimensions)] = rng.standard_normal(
            (after, before, *[size] * dimensions)
        )
        kernels.append(kernel)
        shifts.append(rng.standard_normal(after).astype(np.float32))
    return Filters(tuple(kernels), tuple(shifts), rng.random())


def _blend_map(
    rng: np.random.Generator, patch: tuple[int, ...], grid: int, device: torch.device
) -> Float[Tensor, "*patch"]:
    """A smooth map from 0 to 1; where the spline happens to be constant, a half."""
    matrices = [free_spline(length, grid) for length in patch]
    coefficients = rng.random([matrix.shape[1] for matrix in matrices]).astype(np.float32)
    smooth = along_axes(torch.from_numpy(coefficients).to(device)[None], matrices)[0]
    low, high = smooth.amin(), smooth.amax()
    return torch.where(high > low, (smooth - low) / (high - low).clamp(min=_TINY), torch.full_like(smooth, 0.5))


def _column(values: Sequence[float], image: Tensor) -> Tensor:
    """One value per sample, shaped to broadcast over channels and patch."""
    return torch.tensor(values, dtype=image.dtype, device=image.device).view(-1, *[1] * (image.dim() - 1))
