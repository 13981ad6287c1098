"""A cascade's first masks as channels of the second network's input, on its grid, as nnU-Net makes them."""

import numpy as np
from jaxtyping import Float32, Integer

from autoseg.data.preprocessing import Placement
from autoseg.data.resampling import resample_labels
from autoseg.geometry import permuted


def previous_on_grid(mask: Integer[np.ndarray, "z y x"], placement: Placement) -> Integer[np.ndarray, "z2 y2 x2"]:
    """A mask of the whole image on the grid that the second network sees.

    Parameters
    ----------
    mask : internal labels on the image's own grid, array order.
    placement : where the second network's prepared image lies in it.

    Returns
    -------
    Internal labels in plan order, shape `placement.shape`: cropped and resampled as training labels are.
    """
    box = tuple(slice(start, stop) for start, stop in placement.crop)
    cropped = mask[box].transpose(placement.axes)
    spacing = permuted(placement.original_spacing, placement.axes)
    return resample_labels(cropped, spacing, placement.shape, placement.spacing)


def one_hot(labels: Integer[np.ndarray, "z y x"], label_count: int) -> Float32[np.ndarray, "label z y x"]:
    """One channel of zeros and ones per foreground label 1 … `label_count` − 1; no channel for background."""
    channels = np.empty((label_count - 1, *labels.shape), np.float32)
    for label, channel in enumerate(channels, start=1):
        np.equal(labels, label, out=channel, casting="unsafe")
    return channels
