"""Smooth maps over a patch from few numbers, and Gaussian smoothing, as one small matrix per axis.

Every map here is linear and separable, so the same multiplication serves 2-D and 3-D patches and any device. With
n(x) the cardinal B-spline of its degree (the box function convolved with itself `degree` times), a spline with
coefficients c is Σ_j n(x − j)·c_j; the n sum up to 1, so it stays between the smallest and largest coefficient.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

_REACH = 3.0  # length of a Gaussian's half in σ


def along_axes(
    values: Float32[Tensor, "plane *before"], matrices: Sequence[Float[np.ndarray, "_ _"]]
) -> Float32[Tensor, "plane *after"]:
    """Multiply every axis but the first by its own matrix."""
    for axis, matrix in enumerate(matrices, start=1):
        operator = torch.from_numpy(matrix.astype(np.float32)).to(values.device)
        if axis == values.dim() - 1:
            values = values @ operator.mT
            continue
        before = values.shape
        slabs = values.reshape(before[:axis].numel(), before[axis], -1)
        values = (operator @ slabs).reshape(*before[:axis], len(operator), *before[axis + 1 :])
    return values


def free_spline(length: int, spacing: int) -> Float[np.ndarray, "length coefficient"]:
    """Cubic spline over voxels, a coefficient every `spacing` voxels and as many as the axis' voxels depend on."""
    position = np.arange(length) / spacing
    coefficients = np.arange(-1, int(np.floor(position[-1])) + 3)
    return _cubic(position[:, None] - coefficients)


def cell_spline(length: int, cells: int) -> Float[np.ndarray, "length cell"]:
    """Quadratic spline with a coefficient at the center of each of `cells` equal cells, repeated past the border."""
    position = (np.arange(length) + 0.5) * cells / length - 0.5
    matrix = np.zeros((length, cells))
    for cell in range(-1, cells + 1):
        matrix[:, min(max(cell, 0), cells - 1)] += _quadratic(position - cell)
    return matrix


def cell_means(length: int, cells: int) -> Float[np.ndarray, "cell length"]:
    """Means over equal cells; a voxel on the border of two cells counts in each with the share that lies in it."""
    edges = np.arange(cells + 1)[:, None] * length / cells
    voxels = np.arange(length)
    overlap = np.minimum(edges[1:], voxels + 1) - np.maximum(edges[:-1], voxels)
    means: np.ndarray = np.maximum(overlap, 0) * cells / length
    return means


def gaussian(length: int, sigma: float) -> Float[np.ndarray, "length length"]:
    """Gaussian of σ voxels, cut at 3σ; nothing lies past the border."""
    offsets = np.arange(length)[:, None] - np.arange(length)
    reach = int(np.ceil(_REACH * sigma))
    total = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).sum()
    matrix: np.ndarray = np.where(np.abs(offsets) <= reach, np.exp(-0.5 * (offsets / sigma) ** 2), 0) / total
    return matrix


def _quadratic(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    distance = np.abs(x)
    outer = 0.5 * np.maximum(1.5 - distance, 0) ** 2
    weights: np.ndarray = np.where(distance <= 0.5, 0.75 - distance**2, outer)
    return weights


def _cubic(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    distance = np.abs(x)
    outer = np.maximum(2 - distance, 0) ** 3 / 6
    weights: np.ndarray = np.where(distance <= 1, 2 / 3 - distance**2 + distance**3 / 2, outer)
    return weights
