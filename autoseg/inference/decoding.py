"""From logits on the prepared grid to labels on the image's own grid, slab by slab as planes of logits arrive."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Integer
from scipy.special import expit

from autoseg.data.labels import internal_type
from autoseg.data.preprocessing import Placement
from autoseg.data.resampling import AxisOperator, AxisOperators, linear_operators, resample_linear
from autoseg.geometry import permuted
from autoseg.inference.blocks import BlockDecoder
from autoseg.inference.slabs import Array, Slab, slabs
from autoseg.labelling import Labelled


class SlabDecoder(Protocol):
    """Labels (z2, y2, x2) of a slab from its planes; made once per case."""

    thickness: int

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """Planes that follow each other as one array."""
        ...

    def __call__(self, planes: Array, along_z: AxisOperator) -> Integer[np.ndarray, "z2 y2 x2"]:
        """planes (class, z, y, x); `along_z` makes the slab's slices of them."""
        ...


MakeDecoder = Callable[[AxisOperators, Sequence[int] | None, np.dtype[np.integer]], SlabDecoder]


def decode_labels(
    logits: Float32[np.ndarray, "class z y x"], placement: Placement, painted: Sequence[int] | None = None
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """`decode_stream` of logits that are all there; they stay as they are."""
    return decode_stream([(0, logits)], placement, painted)


def decode_stream(
    pieces: Iterable[tuple[int, Array]],
    placement: Placement,
    painted: Sequence[int] | None = None,
    file: np.ndarray | None = None,
    make_decoder: MakeDecoder = BlockDecoder,
) -> Integer[np.ndarray, "z2 y2 x2"]:
    """Internal labels of the whole image in array order; background outside the box of nonzero voxels.

    Parameters
    ----------
    pieces : (first plane, logits (class, planes, y, x)): plan order, on the prepared grid (`placement.shape`), in
        order along z. Each is used before the next is asked for.
    placement : where the prepared voxels lie in the image.
    painted : classes are regions; each is painted, in order, with its label where its logit is positive (its
        probability above one half). None: the largest logit wins; a tie goes to the lower class.
    file : receives the probabilities (class, z, y, x) in array order: softmax, or sigmoid of regions.

    Logits are resampled linearly (the nearest slice along a separate coarse axis), as in nnU-Net. Beside the pieces
    and the labels only slabs are held, however many classes there are.
    The result is uint8, or int16 from 257 classes on.
    """
    axes = placement.axes
    spacing = permuted(placement.original_spacing, axes)
    operators = linear_operators(placement.shape, placement.spacing, placement.cropped_shape, spacing)
    box = tuple(slice(start, stop) for start, stop in placement.crop)
    pieces = iter(pieces)
    first, planes = next(pieces)
    count = max(len(planes), max(painted or (0,)) + 1)
    labels = np.zeros(placement.original_shape, internal_type(count))
    cropped = labels[box].transpose(axes)  # a view in plan order: what is written there lands in `labels`
    inside = None if file is None else _inside(file, placement, background=painted is None)
    decoder = make_decoder(operators, painted, labels.dtype)
    arriving = itertools.chain([(first, planes)], pieces)
    for slab in slabs(arriving, operators[0], decoder.thickness, decoder.concatenate):
        cropped[slab.start : slab.stop] = decoder(slab.planes, slab.operator)
        if inside is not None:
            inside[:, slab.start : slab.stop] = _probabilities(slab, operators, overlapping=painted is not None)
    return labels


def painted_labels(labelled: Labelled) -> tuple[int, ...] | None:
    """The internal label that each region is painted with, in order; None without regions."""
    values = list(labelled.labels.values())
    return tuple(values.index(region.painted) for region in labelled.regions) or None


def softmax(logits: Float32[np.ndarray, "class z y x"]) -> Float32[np.ndarray, "class z y x"]:
    """Over the first axis, in place."""
    logits -= logits.max(axis=0)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=0)
    return logits


def _inside(file: np.ndarray, placement: Placement, background: bool) -> np.ndarray:
    """A view of the box of nonzero voxels in plan order; outside, the first class is certain where `background`."""
    if background:
        file[0] = 1
    box = tuple(slice(start, stop) for start, stop in placement.crop)
    return file[(slice(None), *box)].transpose(0, *(axis + 1 for axis in placement.axes))


def _probabilities(slab: Slab, operators: AxisOperators, overlapping: bool) -> np.ndarray:
    """(class, z2, y2, x2) of a slab."""
    planes = slab.planes if isinstance(slab.planes, np.ndarray) else slab.planes.cpu().numpy()
    logits = np.stack([resample_linear(volume, (slab.operator, *operators[1:])) for volume in planes])
    return expit(logits) if overlapping else softmax(logits)
