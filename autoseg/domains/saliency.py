"""SLAug's saliency-balancing fusion: where the loss is sensitive the mild view stays, elsewhere the strong one enters.

From the gradient ∂L/∂x of the mild view's loss,

    g = √(mean over channels (∂L/∂x)²),   S = stretch( quadratic B-spline over (means of g in equal cells) ),

with `stretch` from the sample's smallest value to 0 and its largest to 1; the fused image is S·mild + (1 − S)·strong.
Source: Su et al. 2023 (SLAug). As published the spline is of second order, which leaves no edges of cells in S (linear
interpolation has creases at their centers). The published code resizes the spline so that the outermost coefficients
come to the image's corners; here each stays at the center of its cell, and is repeated past the border.

S does not depend on the scale of the loss, so a scaled loss (float16) gives the same map. Where a gradient says
nothing (the same everywhere, or not finite), S is 1 and the mild view stays.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from autoseg.domains.splines import along_axes, cell_means, cell_spline

_CONSTANT = 1e-5
"""Maps that vary less than this share of their largest value are constant: the rest is rounding of float32."""


def saliency_map(
    gradient: Float[Tensor, "sample channel *patch"], cells: Sequence[int]
) -> Float32[Tensor, "sample 1 *patch"]:
    """Saliency S from 0 to 1 per sample; `cells`: along each axis of the patch."""
    patch = tuple(gradient.shape[2:])
    with torch.autocast(gradient.device.type, enabled=False):
        # Each sample is divided by its own largest entry, since squares of small gradients are zero in float32.
        flat = gradient.float().flatten(1)
        largest = flat.abs().amax(1, keepdim=True)
        finite = largest.isfinite() & (largest > 0)
        flat = torch.where(finite, flat / torch.where(finite, largest, 1), 0)
        strength = flat.view_as(gradient).square().mean(1).sqrt()
        means = along_axes(strength, [cell_means(n, count) for n, count in zip(patch, cells, strict=True)])
        smooth = along_axes(means, [cell_spline(n, count) for n, count in zip(patch, cells, strict=True)])
        smooth = smooth.flatten(1)
        low, high = smooth.amin(1, keepdim=True), smooth.amax(1, keepdim=True)
        varies = finite & (high - low > _CONSTANT * high)
        stretched = torch.where(varies, (smooth - low) / torch.where(varies, high - low, 1), 1)
    return stretched.clamp(0, 1).view(-1, 1, *patch)


def fuse(
    mild: Float32[Tensor, "sample channel *patch"],
    strong: Float32[Tensor, "sample channel *patch"],
    saliency: Float32[Tensor, "sample 1 *patch"],
) -> Float32[Tensor, "sample channel *patch"]:
    """S·mild + (1 − S)·strong, exactly the one or the other at the ends of S."""
    return torch.lerp(strong, mild, saliency)
