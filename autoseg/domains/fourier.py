"""Fourier domain adaptation's view of a batch: other low-frequency amplitudes, the image's own phase.

With F the Fourier transform over the patch and partner p of an image x, the view is

    F⁻¹( A · exp(i·arg F(x)) ),   A(k) = |F(p)(k)| where |k_a| ≤ ⌊L·n_a⌋ for every axis a of n_a voxels, else |F(x)(k)|,

with L = 0.05 + 0.1·U, U uniform in [0, 1), drawn per sample. Sources: Yang and Soatto 2020 (FDA); Hu et al. 2023
(CCSDG), which pairs the batch with its reverse. Two differences:

- The share L is of every axis, not of the shortest. Published patches are square, where the two agree; in patches
  with thick slices the box then ends at the same share of every axis' sampling rate.
- No image is its own partner: that would be the image itself. In a batch of odd size the middle image takes the next
  one's amplitudes; an image alone has its own, times a factor 2^U per channel, U uniform in [−1, 1).

Values are not clipped: like the published view's they can leave the range of the images a little, and air is not
exactly zero.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

SMALLEST_SHARE, SPREAD = 0.05, 0.1


def fourier_view(
    image: Float32[Tensor, "sample channel *patch"], rngs: Sequence[np.random.Generator]
) -> Float32[Tensor, "sample channel *patch"]:
    """Every image with the low-frequency amplitudes of another image of the batch; `rngs`: one per sample."""
    shares = [SMALLEST_SHARE + SPREAD * rng.random() for rng in rngs]
    axes, patch = tuple(range(2, image.dim())), tuple(image.shape[2:])
    with torch.autocast(image.device.type, enabled=False):
        spectrum = torch.fft.rfftn(image, dim=axes)
        amplitude = spectrum.abs()
        if len(image) == 1:
            # exp2 of uniform numbers: halved and doubled amplitudes are equally likely.
            factors = np.exp2(rngs[0].uniform(-1.0, 1.0, image.shape[1])).astype(np.float32)
            given = amplitude * torch.from_numpy(factors).to(image.device).view(1, -1, *(1 for _ in patch))
        else:
            given = amplitude[partners(len(image))]
        # Where an amplitude is zero there is no phase; zero is taken, as by arg.
        direction = torch.where(amplitude > 0, spectrum / amplitude, torch.ones_like(spectrum))
        boxes = torch.stack([low_frequencies(patch, share) for share in shares]).to(image.device)
        swapped = torch.where(boxes[:, None], direction * given, spectrum)
        view: Tensor = torch.fft.irfftn(swapped, s=patch, dim=axes)
    return view


def partners(samples: int) -> list[int]:
    """Whose amplitudes every sample of a batch of two or more takes: those of the reversed batch, never its own."""
    reverse = [samples - 1 - index for index in range(samples)]
    return [partner if partner != index else index + 1 for index, partner in enumerate(reverse)]


def low_frequencies(patch: tuple[int, ...], share: float) -> Bool[Tensor, "*frequencies"]:
    """The coefficients of a real transform (torch.fft.rfftn) of which no index exceeds ⌊share · length⌋ of its axis."""
    box = torch.ones((), dtype=torch.bool)
    for axis, length in enumerate(patch):
        index = torch.arange(length)
        index = torch.minimum(index, length - index)
        if axis == len(patch) - 1:
            index = index[: length // 2 + 1]
        box = box[..., None] & (index <= int(share * length))
    return box
