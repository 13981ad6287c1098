"""From the logits of one or several models to masks and probabilities on the image's own grid, slab by slab.

Several models are combined as nnU-Net does: the mean of their probabilities, each resampled (as logits) to the
image's grid before. Outside the box of nonzero voxels background is certain, and no region is there.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Integer
from scipy.special import expit

from autoseg.data.labels import internal_type
from autoseg.data.preprocessing import Placement
from autoseg.data.probability_files import writing_probabilities
from autoseg.data.resampling import AxisOperator, linear_operators, resample_linear
from autoseg.data.volume import Volume
from autoseg.geometry import inverse_permutation, permuted
from autoseg.inference.blocks import largest_class
from autoseg.inference.decoding import decode_stream, painted_labels, softmax
from autoseg.labelling import Labelled

SLAB_VALUES = 1 << 22  # probabilities of all channels in one slab: 16 MB, and as much again per step

Slab = Float32[np.ndarray, "channel z y x"]


@dataclass(frozen=True)
class Part:
    """One model's logits of a case, plan order on its prepared grid, and where that grid lies in the image."""

    logits: Float32[np.ndarray, "class z y x"]
    placement: Placement


def segment(
    parts: Sequence[Part], labelled: Labelled, like: Volume | None = None, probabilities: Path | None = None
) -> Integer[np.ndarray, "z y x"]:
    """Internal labels of the whole image in array order; regions painted as `labelled` says.

    One model's mask is decoded from its logits, that of several from the mean of their probabilities.

    Parameters
    ----------
    like, probabilities : the image, and the file that receives the probabilities on its grid; None: not written.
    """
    with ExitStack() as stack:
        file = None
        if probabilities is not None:
            assert like is not None
            file = stack.enter_context(writing_probabilities(probabilities, like, len(parts[0].logits)))
        if len(parts) > 1:
            return _mean_mask(parts, labelled, file)
        return decode_stream([(0, parts[0].logits)], parts[0].placement, painted_labels(labelled), file)


def mean_probabilities(parts: Sequence[Part], overlapping: bool) -> Iterator[tuple[slice, Slab]]:
    """(slices of the image's first axis, their probabilities): the mean over the models, slab by slab.

    Channels in the network's order. overlapping : channels are regions, each with a sigmoid; else a softmax.
    """
    channels = len(parts[0].logits)
    depth, height, width = parts[0].placement.original_shape
    thickness = max(1, SLAB_VALUES // (channels * height * width))
    for start in range(0, depth, thickness):
        rows = (start, min(start + thickness, depth))
        total = _probabilities(parts[0], rows, overlapping)
        for part in parts[1:]:
            total += _probabilities(part, rows, overlapping)
        if len(parts) > 1:
            total /= len(parts)
        yield slice(*rows), total


def _mean_mask(
    parts: Sequence[Part], labelled: Labelled, file: np.ndarray | None = None
) -> Integer[np.ndarray, "z y x"]:
    """The mask that the mean probabilities give, which also go to `file` (channel, z, y, x)."""
    painted = painted_labels(labelled)
    labels = np.zeros(parts[0].placement.original_shape, internal_type(len(labelled.labels)))
    classes = np.arange(len(parts[0].logits), dtype=labels.dtype)
    for rows, slab in mean_probabilities(parts, bool(labelled.regions)):
        labels[rows] = largest_class(slab, classes) if painted is None else _painted(slab, painted, labels.dtype)
        if file is not None:
            file[:, rows] = slab
    return labels


def _painted(slab: Slab, painted: Sequence[int], dtype: np.dtype[np.integer]) -> Integer[np.ndarray, "z y x"]:
    labels = np.zeros(slab.shape[1:], dtype)
    for probability, label in zip(slab, painted, strict=True):
        labels[probability > 0.5] = label
    return labels


def _probabilities(part: Part, rows: tuple[int, int], overlapping: bool) -> Slab:
    """One model's probabilities in slices [rows[0], rows[1]) of the image's first axis."""
    placement = part.placement
    slab = np.zeros((len(part.logits), rows[1] - rows[0], *placement.original_shape[1:]), np.float32)
    if not overlapping:
        slab[0] = 1
    (low, high), *plane = placement.crop
    start, stop = max(rows[0], low), min(rows[1], high)
    if start < stop:
        logits = _resampled(part, (start - low, stop - low))
        inside = (slice(start - rows[0], stop - rows[0]), *(slice(*span) for span in plane))
        slab[(slice(None), *inside)] = expit(logits) if overlapping else softmax(logits)
    return slab


def _resampled(part: Part, rows: tuple[int, int]) -> Slab:
    """Logits on the image's grid inside the box, in array order: slices [rows[0], rows[1]) of its first axis."""
    placement = part.placement
    spacing = permuted(placement.original_spacing, placement.axes)
    operators: list[AxisOperator] = list(
        linear_operators(placement.shape, placement.spacing, placement.cropped_shape, spacing)
    )
    across = placement.axes.index(0)
    operators[across], read = operators[across].rows(*rows)
    taken = tuple(slice(*read) if axis == across else slice(None) for axis in range(3))
    one, two, three = operators
    back = inverse_permutation(placement.axes)
    return np.stack([
        resample_linear(channel[taken], (one, two, three)).transpose(back) for channel in part.logits
    ])
