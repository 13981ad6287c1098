"""From logits on the prepared grid to labels on the image's own grid, one class and one slab at a time."""

import numpy as np
from jaxtyping import Float32, Integer

from autoseg.data.preprocessing import Placement
from autoseg.data.resampling import AxisOperators, linear_operators, resample_linear
from autoseg.geometry import permuted

SLAB_VOXELS = 1 << 19  # one slab's maximum, labels and current class: some 6 MB


def decode_labels(
    logits: Float32[np.ndarray, "class z y x"], placement: Placement
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """Internal labels of the whole image in array order; background outside the box of nonzero voxels.

    Parameters
    ----------
    logits : plan order, on the prepared grid (`placement.shape`).
    placement : where the prepared voxels lie in the image.

    Logits are resampled linearly (the nearest slice along a separate coarse axis), as in nnU-Net, then the
    largest wins; a tie goes to the lower class. Beside logits and labels only slabs are held, however many
    classes there are.
    The result is uint8, or int16 from 257 classes on.
    """
    axes = placement.axes
    spacing = permuted(placement.original_spacing, axes)
    operators = linear_operators(placement.shape, placement.spacing, placement.cropped_shape, spacing)
    labels = np.zeros(placement.original_shape, np.uint8 if len(logits) <= 256 else np.int16)
    box = tuple(slice(start, stop) for start, stop in placement.crop)
    cropped = labels[box].transpose(axes)  # a view in plan order: what is written there lands in `labels`
    rows = max(1, SLAB_VOXELS // (cropped.shape[1] * cropped.shape[2]))
    for start in range(0, len(cropped), rows):
        stop = min(start + rows, len(cropped))
        cropped[start:stop] = _largest_class(logits, operators, (start, stop), labels.dtype)
    return labels


def _largest_class(
    logits: Float32[np.ndarray, "class z y x"],
    operators: AxisOperators,
    rows: tuple[int, int],
    dtype: np.dtype[np.integer],
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """Labels of slices [rows[0], rows[1]) on the grid that `operators` lead to, in plan order.

    A running maximum over the classes: several times faster than argmax over a strided first axis.
    """
    along_z, (first, last) = operators[0].rows(*rows)
    slab_operators = (along_z, operators[1], operators[2])
    # An identity along every axis hands out a view of the logits, which must stay as they are.
    best = resample_linear(logits[0, first:last], slab_operators).copy()
    labels = np.zeros(best.shape, dtype)
    for index in range(1, len(logits)):
        volume = resample_linear(logits[index, first:last], slab_operators)
        # The index exceeds all earlier ones, so a maximum writes it; masked assignment is three times slower.
        np.maximum(labels, (volume > best).astype(dtype) * dtype.type(index), out=labels)
        np.maximum(best, volume, out=best)
    return labels
