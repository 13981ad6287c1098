"""A cascade's first masks as channels of the second network's input, as nnU-Net makes them."""

import numpy as np
from jaxtyping import Float32, Integer


def one_hot(labels: Integer[np.ndarray, "z y x"], label_count: int) -> Float32[np.ndarray, "label z y x"]:
    """One channel of zeros and ones per foreground label 1 … `label_count` − 1; no channel for background."""
    channels = np.empty((label_count - 1, *labels.shape), np.float32)
    for label, channel in enumerate(channels, start=1):
        np.equal(labels, label, out=channel, casting="unsafe")
    return channels
