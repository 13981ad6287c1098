"""Resampling images, labels and logits to another voxel grid, as nnU-Net does: a linear operator per axis.

nnU-Net calls `skimage.transform.resize(mode="edge", anti_aliasing=False)`: interpolation by B-splines of
order 3 (images) or 1 (labels, logits) on half-voxel-centred grids. That is separable, so it is done here as
three small matrix products instead of 64 (or 8) taps per voxel, in single precision.
Strongly anisotropic grids take the nearest slice along the coarse axis instead ("separate z").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Integer
from numpy.typing import NDArray
from scipy.ndimage import find_objects, spline_filter1d

from autoseg.geometry import Shape, SpacingMm

ANISOTROPY = 3.0  # nnU-Net's ANISO_THRESHOLD: largest / smallest spacing beyond which an axis is coarse
SPLINE_PADDING = 12  # scipy pads this many edge voxels before it computes spline coefficients
NEGLIGIBLE = 1e-8  # operator entries below single precision's reach
ROWS_AT_A_TIME = 32  # operators are banded: this many rows read a narrow window of columns
LABEL_VOXELS_AT_A_TIME = 1 << 22
TIE = 4e-6  # label scores closer than this are equal up to rounding


@dataclass(frozen=True)
class AxisOperator:
    """How one axis is resampled: output = matrix @ input, or output[i] = input[index[i]], or unchanged.

    Attributes
    ----------
    size_in, size_out : voxels along the axis before and after.
    matrix : float32 (size_out, size_in), or None.
    index : int64 (size_out,), nondecreasing, or None. Both None: the axis stays as it is.
    """

    size_in: int
    size_out: int
    matrix: NDArray[np.float32] | None = None
    index: NDArray[np.int64] | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the axis stays as it is."""
        return self.matrix is None and self.index is None

    def columns(self, start: int, stop: int) -> tuple[int, int]:
        """(first, last + 1) input voxel that output voxels [start, stop) read."""
        if self.index is not None:
            return int(self.index[start]), int(self.index[stop - 1]) + 1
        if self.matrix is None:
            return start, stop
        read = np.flatnonzero((np.abs(self.matrix[start:stop]) > NEGLIGIBLE).any(axis=0))
        return int(read[0]), int(read[-1]) + 1

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """(first, last + 1) output voxel that reads any input voxel of [start, stop); (0, 0) if none does."""
        if self.matrix is None and self.index is None:
            return start, stop
        if self.index is not None:
            rows = np.flatnonzero((self.index >= start) & (self.index < stop))
        else:
            assert self.matrix is not None
            rows = np.flatnonzero((np.abs(self.matrix[:, start:stop]) > NEGLIGIBLE).any(axis=1))
        return (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 0)

    def rows(self, start: int, stop: int) -> tuple["AxisOperator", tuple[int, int]]:
        """The operator for output voxels [start, stop) alone, and the input voxels [start, stop) it takes."""
        first, last = self.columns(start, stop)
        matrix = None if self.matrix is None else self.matrix[start:stop, first:last]
        index = None if self.index is None else self.index[start:stop] - first
        return AxisOperator(last - first, stop - start, matrix, index), (first, last)


AxisOperators = tuple[AxisOperator, AxisOperator, AxisOperator]


# ---------------------------------------------------------------- which operator for which axis
def coarse_axis(spacing: Sequence[float], target_spacing: Sequence[float]) -> int | None:
    """The axis along which the nearest slice is taken, or None; nnU-Net's rule.

    The first of (current, target) spacing whose largest entry exceeds three times its smallest decides: its
    largest axis, unless two axes share the largest spacing.
    """
    for mm in (spacing, target_spacing):
        if max(mm) / min(mm) > ANISOTROPY:
            largest = [axis for axis in range(len(mm)) if max(mm) / mm[axis] == 1]
            return largest[0] if len(largest) == 1 else None
    return None


def axis_operators(
    shape: Sequence[int],
    spacing: Sequence[float],
    target_shape: Sequence[int],
    target_spacing: Sequence[float],
    order: int,
) -> AxisOperators:
    """One operator per axis for spline interpolation of `order` 1 or 3, nearest along a coarse axis."""
    nearest = coarse_axis(spacing, target_spacing)
    one, two, three = (
        nearest_operator(n, m) if axis == nearest else spline_operator(n, m, order)
        for axis, (n, m) in enumerate(zip(shape, target_shape, strict=True))
    )
    return one, two, three


def linear_operators(
    shape: Sequence[int],
    spacing: Sequence[float],
    target_shape: Sequence[int],
    target_spacing: Sequence[float],
) -> AxisOperators:
    """The operators with which nnU-Net resamples logits (order 1, nearest along a coarse axis); (z, y, x)."""
    return axis_operators(shape, spacing, target_shape, target_spacing, order=1)


@lru_cache(maxsize=256)
def nearest_operator(size_in: int, size_out: int) -> AxisOperator:
    """Output voxel i takes the input voxel whose centre is nearest; halfway, the later one (as scipy)."""
    if size_in == size_out:
        return AxisOperator(size_in, size_out)
    index = np.floor(_positions(size_in, size_out) + 0.5).astype(np.int64)
    return AxisOperator(size_in, size_out, index=np.clip(index, 0, size_in - 1))


@lru_cache(maxsize=256)
def spline_operator(size_in: int, size_out: int, order: int) -> AxisOperator:
    """B-spline interpolation of order 1 or 3 with edge voxels repeated, as a matrix.

    Order 3 is (basis functions at the output positions) times (the filter that turns samples into spline
    coefficients, Unser 1999); scipy applies the same filter, to the edge-padded axis, with a mirrored end.
    """
    if size_in == size_out:
        return AxisOperator(size_in, size_out)
    padding = SPLINE_PADDING if order == 3 else 1
    samples = np.pad(np.eye(size_in), ((padding, padding), (0, 0)), mode="edge")
    coefficients = spline_filter1d(samples, 3, axis=0, mode="nearest") if order == 3 else samples
    position = _positions(size_in, size_out) + padding
    first = np.floor(position).astype(np.int64) - (order // 2)
    matrix = np.zeros((size_out, size_in))
    for tap in range(order + 1):
        weight = _basis(position - (first + tap), order)
        matrix += weight[:, None] * coefficients[np.clip(first + tap, 0, len(samples) - 1)]
    single = matrix.astype(np.float32)
    single.setflags(write=False)
    return AxisOperator(size_in, size_out, matrix=single)


def _positions(size_in: int, size_out: int) -> NDArray[Any]:
    """Where the output voxels' centres lie, in input voxels: both grids cover the same extent."""
    return (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5


def _basis(distance: NDArray[Any], order: int) -> NDArray[Any]:
    """The centred B-spline of order 1 or 3."""
    far = np.abs(distance)
    if order == 1:
        return np.asarray(np.maximum(1 - far, 0))
    return np.asarray(np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.maximum(2 - far, 0) ** 3 / 6))


# ---------------------------------------------------------------- applying operators
def apply_operators(
    array: Float32[np.ndarray, "z y x"], operators: AxisOperators
) -> Float32[np.ndarray, "z2 y2 x2"]:
    """All three axes resampled; axes that shrink most go first, so that what lies between is small."""
    for axis in sorted(range(3), key=lambda axis: operators[axis].size_out / operators[axis].size_in):
        array = apply_operator(array, operators[axis], axis)
    return array


def apply_operator(
    array: Float32[np.ndarray, "z y x"], operator: AxisOperator, axis: int
) -> Float32[np.ndarray, "z2 y2 x2"]:
    """One axis resampled; an identity returns the array itself."""
    if operator.is_identity:
        return array
    if operator.index is not None:
        return np.take(array, operator.index, axis=axis)
    assert operator.matrix is not None
    array = np.ascontiguousarray(array)
    shape = list(array.shape)
    shape[axis] = operator.size_out
    result = np.empty(shape, np.float32)
    for start in range(0, operator.size_out, ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, operator.size_out)
        first, last = operator.columns(start, stop)
        rows = operator.matrix[start:stop, first:last]
        if axis == 0:
            np.matmul(rows, array[first:last].reshape(last - first, -1),
                      out=result[start:stop].reshape(stop - start, -1))
        elif axis == 1:
            np.matmul(rows, array[:, first:last], out=result[:, start:stop])
        else:
            result.reshape(-1, shape[2])[:, start:stop] = (
                array.reshape(-1, array.shape[2])[:, first:last] @ rows.T
            )
    return result


def resample_linear(
    image: Float32[np.ndarray, "z y x"], operators: AxisOperators
) -> Float32[np.ndarray, "z2 y2 x2"]:
    """One class's logits on another grid; `operators` from `linear_operators`, or a slab's `rows` of them."""
    return apply_operators(image, operators)


# ---------------------------------------------------------------- images
def resample_image(
    image: Float32[np.ndarray, "channel z y x"],
    spacing: SpacingMm,
    target_shape: Shape,
    target_spacing: SpacingMm,
) -> Float32[np.ndarray, "channel z2 y2 x2"]:
    """Cubic interpolation of every channel, clipped to its input range (per slice where an axis is coarse).

    Agrees with nnU-Net's `resample_data_or_seg_to_shape(order=3, order_z=0, force_separate_z=None)`.

    Parameters
    ----------
    spacing, target_spacing : mm; they only decide whether the nearest slice is taken along a coarse axis.
    """
    if tuple(image.shape[1:]) == tuple(target_shape):
        return image.copy()
    result = np.empty((len(image), *target_shape), np.float32)
    for channel, values in enumerate(image):
        result[channel] = resample_channel(values, spacing, target_shape, target_spacing)
    return result


def resample_channel(
    channel: Float32[np.ndarray, "z y x"], spacing: SpacingMm, target_shape: Shape, target_spacing: SpacingMm
) -> Float32[np.ndarray, "z2 y2 x2"]:
    """As `resample_image`, one channel; on an unchanged shape the array itself."""
    if tuple(channel.shape) == tuple(target_shape):
        return channel
    coarse = coarse_axis(spacing, target_spacing)
    operators = axis_operators(channel.shape, spacing, target_shape, target_spacing, order=3)
    within = None if coarse is None else tuple(axis for axis in range(3) if axis != coarse)
    low, high = (edge(channel, axis=within, keepdims=True) for edge in (np.min, np.max))
    if coarse is not None:
        low, high = (apply_operator(edge, operators[coarse], coarse) for edge in (low, high))
    result = apply_operators(channel, operators)
    return np.clip(result, low, high, out=result)


# ---------------------------------------------------------------- labels
def resample_labels(
    labels: Integer[np.ndarray, "z y x"], spacing: SpacingMm, target_shape: Shape, target_spacing: SpacingMm
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """The label whose linearly interpolated mask is largest at each voxel; same dtype.

    Between labels that tie, the one at the nearest input voxel wins if it is among them, else the smallest
    (batchgenerators' rule, which nnU-Net uses). Only the foreground's boxes are interpolated: background
    scores what the others leave of 1. Works slab by slab along the first axis, in bounded memory.
    """
    if tuple(labels.shape) == tuple(target_shape):
        return labels.copy()
    linear = axis_operators(labels.shape, spacing, target_shape, target_spacing, order=1)
    boxes = find_objects(labels)
    result = np.empty(target_shape, labels.dtype)
    thickness = max(1, LABEL_VOXELS_AT_A_TIME // (target_shape[1] * target_shape[2]))
    for start in range(0, target_shape[0], thickness):
        stop = min(start + thickness, target_shape[0])
        result[start:stop] = _label_slab(labels, linear, boxes, (start, stop))
    return result


def _label_slab(
    labels: Integer[np.ndarray, "z y x"],
    operators: AxisOperators,
    boxes: Sequence[tuple[slice, ...] | None],
    rows: tuple[int, int],
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """Output slices [rows[0], rows[1]) of `resample_labels`."""
    nearest = _nearest_slab(labels, operators, rows)
    winner = np.zeros_like(nearest)
    best = np.zeros(nearest.shape, np.float32)
    background = np.ones(nearest.shape, np.float32)
    for label, box in enumerate(boxes, start=1):
        window = box and _window(operators, box, rows)
        if not window:
            continue
        parts = [operator.rows(*span) for operator, span in zip(operators, window, strict=True)]
        mask = labels[tuple(slice(*columns) for _, columns in parts)] == label
        one, two, three = (part for part, _ in parts)
        score = apply_operators(mask.astype(np.float32), (one, two, three))
        (z0, z1), (y0, y1), (x0, x1) = window
        here = (slice(z0 - rows[0], z1 - rows[0]), slice(y0, y1), slice(x0, x1))
        background[here] -= score
        lead = score - best[here]
        wins = (lead > TIE) | ((lead >= -TIE) & (nearest[here] == label) & (score > TIE))
        winner[here][wins] = label
        np.maximum(best[here], score, out=best[here])
    lead = background - best
    winner[(lead > TIE) | ((lead >= -TIE) & (nearest != winner))] = 0
    return winner


def _nearest_slab(
    labels: Integer[np.ndarray, "z y x"], operators: AxisOperators, rows: tuple[int, int]
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """The labels of the nearest input voxels for output slices [rows[0], rows[1])."""
    z, y, x = (_nearest_index(axis.size_in, axis.size_out) for axis in operators)
    return labels[z[slice(*rows)]][:, y][:, :, x]


def _nearest_index(size_in: int, size_out: int) -> NDArray[np.int64]:
    index = nearest_operator(size_in, size_out).index
    return np.arange(size_out) if index is None else index


def _window(
    operators: AxisOperators, box: tuple[slice, ...], rows: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """The output voxels that a label's input box touches, per axis, within the slab; None if none."""
    z, y, x = (operator.reach(side.start, side.stop) for operator, side in zip(operators, box, strict=True))
    z = (max(z[0], rows[0]), min(z[1], rows[1]))
    return (z, y, x) if all(start < stop for start, stop in (z, y, x)) else None
