"""Where the windows of a network lie in an image, in which rows they are computed, and how much each voxel counts."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PEAK = 10.0  # nnU-Net's value_scaling_factor: the importance of a window's center
WASTE = 4  # a row of windows holds a whole number of batches, or at least so many
LEAST_PLANES = 8  # of a row of slices: what follows works on several at once


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows lie in the padded image; axes (z, y, x) in plan order.

    Attributes
    ----------
    shape : voxels of a window; a 2-D patch is a window of one slice.
    padding : zeros (before, after) each axis that make the image at least as large as the window.
    starts : first voxel of each window along each axis of the padded image.
    """

    shape: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def corners(self) -> list[tuple[int, ...]]:
        """The first voxel of every window, x fastest."""
        return list(itertools.product(*self.starts))

    def corners_at(self, planes: Sequence[int]) -> list[tuple[int, ...]]:
        """The first voxels of the windows that start at these planes, x fastest."""
        return list(itertools.product(planes, *self.starts[1:]))

    def padded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (z, y, x) of the padded image."""
        return tuple(n + sum(padding) for n, padding in zip(shape, self.padding, strict=True))

    def depth(self, rows: Sequence[Sequence[int]]) -> int:
        """Planes that the largest of the `rows` reaches over."""
        return max(row[-1] - row[0] for row in rows) + self.shape[0]

    def rows(self, copies: int, batch: int) -> tuple[tuple[int, ...], ...]:
        """The first planes of the windows, grouped: a group is computed before planes are handed on.

        A group ends where its windows fill whole batches (`copies` of each window, `batch` in one), or at least
        `WASTE` of them; so no row leaves a large part of a batch empty.
        """
        along = copies * len(self.starts[1]) * len(self.starts[2])
        least = LEAST_PLANES if self.shape[0] == 1 else 1
        groups: list[list[int]] = [[]]
        for start in self.starts[0]:
            held = len(groups[-1])
            if held >= least and (along * held % batch == 0 or along * held >= WASTE * batch):
                groups.append([])
            groups[-1].append(start)
        return tuple(tuple(group) for group in groups)


def lay_windows(shape: Sequence[int], patch_shape: Sequence[int], overlap: float) -> WindowGrid:
    """The windows that cover an image of `shape` (z, y, x); `patch_shape` has 2 or 3 lengths.

    Along an axis of I voxels, windows of P voxels: ceil((I - P) / (P (1 - overlap))) + 1 of them, evenly
    spaced from 0 to I - P, rounded (halves to even).
    """
    sliced = len(patch_shape) == 2
    window = (1, *patch_shape) if sliced else tuple(patch_shape)
    missing = [max(p - n, 0) for n, p in zip(shape, window, strict=True)]
    padding = tuple((m // 2, m - m // 2) for m in missing)
    starts = [_starts(n + m, p, overlap) for n, m, p in zip(shape, missing, window, strict=True)]
    if sliced:
        starts[0] = tuple(range(shape[0]))
    return WindowGrid((window[0], window[1], window[2]), padding, tuple(starts))


def importance(length: int) -> Float[Tensor, " voxel"]:
    """One axis of the importance of a window's voxels: a Gaussian of sigma length / 8, center 1; float64.

    The center is voxel length // 2. A window's importance is `PEAK` times the product over its axes; it is
    positive everywhere, since the Gaussian never ends inside the window.
    """
    offset = torch.arange(length, dtype=torch.float64) - length // 2
    return torch.exp(-0.5 * (offset / (length / 8)) ** 2)


def window_importance(patch_shape: Sequence[int]) -> Float[Tensor, "..."]:
    """`PEAK` times the product of the axes' `importance`; float32, shape `patch_shape`."""
    weight = torch.tensor(PEAK, dtype=torch.float64)
    for length in patch_shape:
        weight = weight[..., None] * importance(length)
    return weight.to(torch.float32)


def coverage(starts: Sequence[int], length: int, size: int) -> Float[Tensor, " voxel"]:
    """The sum of `importance` over the windows along one axis of `size` voxels; float64.

    The importance is a product over axes, and so is its sum over a grid of windows.
    """
    total = torch.zeros(size, dtype=torch.float64)
    for start in starts:
        total[start : start + length] += importance(length)
    return total


def _starts(length: int, patch: int, overlap: float) -> tuple[int, ...]:
    count = math.ceil((length - patch) / (patch * (1 - overlap))) + 1
    if count == 1:
        return (0,)
    return tuple(round((length - patch) / (count - 1) * index) for index in range(count))
