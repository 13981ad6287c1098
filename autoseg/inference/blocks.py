"""Which class wins where, block by block: only classes that can win in a block are interpolated there.

Linear interpolation gives convex combinations: inside a block a class's logit lies between its smallest and its
largest in the voxels of the coarser grid that the block reads. Let L be the smallest of any class, best of one that is
high throughout: a class whose largest is below L is nowhere first. Where one class is left, it fills the block.

Rounding: weights are not negative, so a sum of products exceeds the largest value by a part of that value only, and
falls below the smallest by a part of the smallest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Integer

from autoseg.data.resampling import AxisOperator, AxisOperators, resample_linear

THICKNESS, WIDTH = 12, 32  # slices and voxels of a block on the finer grid; measured
ROUNDING = 1e-5  # of a logit: far more than what float32 loses in three steps of interpolation
CACHED_VALUES = 1 << 17  # of some classes' planes at a time: half a megabyte
FEW = 4  # classes: where more are left in a block, their smallest logits are looked at too
PRUNED = 0.6  # of all classes in all blocks: where more are left, all are interpolated, in larger steps

Planes = Float32[np.ndarray, "class z y x"]
Labels = Integer[np.ndarray, "z2 y2 x2"]


@dataclass(frozen=True)
class _Segment:
    """Voxels [start, stop) of the finer axis, the operator that makes them, and the voxels [first, last) it reads."""

    start: int
    stop: int
    operator: AxisOperator
    first: int
    last: int


class BlockDecoder:
    """Labels of slabs of one case; `painted` and `dtype` as `decode_stream` and its labels have them."""

    def __init__(
        self, operators: AxisOperators, painted: Sequence[int] | None, dtype: np.dtype[np.integer]
    ) -> None:
        self.thickness = THICKNESS
        self._operators, self._painted, self._dtype = operators, painted, dtype
        self._y, self._x = (_segments(operator) for operator in operators[1:])

    def concatenate(self, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        """Planes that follow each other as one array."""
        return np.concatenate(arrays, axis)

    def __call__(self, planes: Planes, along_z: AxisOperator) -> Labels:
        """Labels of the slices that `along_z` makes of the planes."""
        high = _largest(planes, self._y, self._x)
        if self._painted is not None:
            return self._regions(planes, along_z, high)
        low = self._smallest(planes, self._throughout(planes))
        can_win = _can_win(high, low)
        left = np.count_nonzero(can_win, axis=0)
        if left[left > 1].sum() > PRUNED * can_win.size:
            return self._plain(planes, along_z)
        labels = self._spread(can_win.argmax(axis=0).astype(self._dtype), along_z.size_out)
        for row, column in zip(*np.nonzero(left > 1), strict=True):
            classes = np.flatnonzero(can_win[:, row, column])
            y, x = self._y[row], self._x[column]
            part = planes[classes, :, y.first : y.last, x.first : x.last]
            if len(classes) > FEW:
                still = _can_win(high[classes, row, column], part.min(axis=(1, 2, 3)).max(keepdims=True))
                classes, part = classes[still], part[still]
            logits = _interpolated(part, along_z, y, x)
            labels[:, y.start : y.stop, x.start : x.stop] = largest_class(logits, classes.astype(self._dtype))
        return labels

    def _regions(self, planes: Planes, along_z: AxisOperator, high: np.ndarray) -> Labels:
        assert self._painted is not None
        labels = np.zeros((along_z.size_out, self._operators[1].size_out, self._operators[2].size_out), self._dtype)
        for region, label in enumerate(self._painted):
            for row, column in zip(*np.nonzero(high[region] > 0), strict=True):
                y, x = self._y[row], self._x[column]
                part = planes[region : region + 1, :, y.first : y.last, x.first : x.last]
                block = labels[:, y.start : y.stop, x.start : x.stop]
                if part.min() > 0:
                    block[:] = label
                else:
                    block[_interpolated(part, along_z, y, x)[0] > 0] = label
        return labels

    def _throughout(self, planes: Planes) -> np.ndarray:
        """(block, block): in every block the class that is highest at its eight corners, judged by the lowest."""
        rows, columns = ([(axis.first, axis.last - 1) for axis in segments] for segments in (self._y, self._x))
        corners = planes[:, [0, -1]][:, :, np.array(rows).ravel()][:, :, :, np.array(columns).ravel()]
        least = corners.reshape(len(planes), 2, len(rows), 2, len(columns), 2).min(axis=(1, 3, 5))
        return np.asarray(least.argmax(axis=0))

    def _smallest(self, planes: Planes, classes: np.ndarray) -> np.ndarray:
        """(block, block): the smallest logit in every block, of one class in each."""
        low = np.empty(classes.shape, np.float32)
        for row, y in enumerate(self._y):
            for column, x in enumerate(self._x):
                low[row, column] = planes[classes[row, column], :, y.first : y.last, x.first : x.last].min()
        return low

    def _plain(self, planes: Planes, along_z: AxisOperator) -> Labels:
        """Every class interpolated; the running maximum is several times faster than argmax over a strided axis."""
        operators = (along_z, *self._operators[1:])
        # An identity along every axis hands out a view of the logits, which must stay as they are.
        best = resample_linear(planes[0], operators).copy()
        labels = np.zeros(best.shape, self._dtype)
        for index in range(1, len(planes)):
            _take_larger(labels, best, resample_linear(planes[index], operators), self._dtype.type(index))
        return labels

    def _spread(self, blocks: np.ndarray, depth: int) -> np.ndarray:
        """(z2, y2, x2): every voxel takes its block's value."""
        heights, widths = ([segment.stop - segment.start for segment in axis] for axis in (self._y, self._x))
        plane = blocks.repeat(heights, axis=0).repeat(widths, axis=1)
        return np.broadcast_to(plane, (depth, *plane.shape)).copy()


def _segments(operator: AxisOperator) -> tuple[_Segment, ...]:
    found = []
    for start in range(0, operator.size_out, WIDTH):
        stop = min(start + WIDTH, operator.size_out)
        part, (first, last) = operator.rows(start, stop)
        matrix = None if part.matrix is None else np.ascontiguousarray(part.matrix)
        found.append(_Segment(start, stop, AxisOperator(part.size_in, part.size_out, matrix, part.index), first, last))
    return tuple(found)


def _largest(planes: Planes, ys: Sequence[_Segment], xs: Sequence[_Segment]) -> np.ndarray:
    """The largest logit of every class in every block: (class, block, block)."""
    high = np.empty((len(planes), len(ys), len(xs)), np.float32)
    together = max(1, CACHED_VALUES // (planes.shape[2] * planes.shape[3]))
    for start in range(0, len(planes), together):
        part = planes[start : start + together]
        plane = part[:, 0] if part.shape[1] == 1 else np.maximum.reduce(part, axis=1)
        rows = np.stack([np.maximum.reduce(plane[:, y.first : y.last], axis=1) for y in ys], axis=1)
        for column, x in enumerate(xs):
            np.maximum.reduce(rows[:, :, x.first : x.last], axis=2, out=high[start : start + together, :, column])
    return high


def _can_win(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Whether a logit of at most `high` may exceed one of at least `low`, once both are rounded."""
    result: np.ndarray = high + ROUNDING * np.abs(high) >= low - ROUNDING * np.abs(low)
    return result


def _interpolated(
    part: Planes, along_z: AxisOperator, y: _Segment, x: _Segment
) -> Float32[np.ndarray, "class z2 y2 x2"]:
    """A block of some classes on the finer grid; axes that shrink most go first, as in `apply_operators`."""
    steps = [(along_z, 1), (y.operator, 2), (x.operator, 3)]
    for operator, axis in sorted(steps, key=lambda step: step[0].size_out / step[0].size_in):
        if operator.index is not None:
            part = part.take(operator.index, axis=axis)
        elif operator.matrix is not None and axis == 1:
            flat = part.reshape(len(part), operator.size_in, -1)
            part = np.matmul(operator.matrix, flat).reshape(len(part), operator.size_out, *part.shape[2:])
        elif operator.matrix is not None and axis == 2:
            part = np.matmul(operator.matrix, part)
        elif operator.matrix is not None:
            part = (part.reshape(-1, operator.size_in) @ operator.matrix.T).reshape(*part.shape[:3], operator.size_out)
    return part


def largest_class(logits: Planes, classes: Integer[np.ndarray, " class"]) -> Labels:
    """The class with the largest logit (or probability), the lower one in a tie; `classes` ascend.

    Faster than argmax over a strided axis.
    """
    best, labels = logits[0].copy(), np.full(logits.shape[1:], classes[0])
    for volume, index in zip(logits[1:], classes[1:], strict=True):
        _take_larger(labels, best, volume, index)
    return labels


def _take_larger(
    labels: Labels, best: Float32[np.ndarray, "z y x"], volume: Float32[np.ndarray, "z y x"], index: np.integer
) -> None:
    """Where `volume` exceeds `best`, it takes its place and `index` that of the label: larger than all so far."""
    # A maximum writes it; masked assignment is three times slower.
    np.maximum(labels, (volume > best).astype(labels.dtype) * index, out=labels)
    np.maximum(best, volume, out=best)
