"""Which values become black and which white, when more than 256 gray levels have to become 256."""

import numpy as np
from jaxtyping import Shaped, UInt8

PERCENTILES = (0.5, 99.5)
"""Outside them lie metal, markers, padding and dead pixels; a window that included these would leave the anatomy a
fraction of the grays."""

SMALL_RANGE = 255
"""A range that 256 grays can hold in full: nothing has to be cut off."""

SAMPLED = 1 << 20
"""Percentiles are taken of about so many values, evenly spaced: all of 4 million took 41 ms, these 12."""

Values = Shaped[np.ndarray, "*shape"]


def window_range(center: float, width: float) -> tuple[float, float]:
    """(value that becomes black, value that becomes white) of a window.

    DICOM PS3.3 C.11.2.1.2.1 (function LINEAR): center - 0.5 ∓ (width - 1) / 2. A width below 1 has no meaning there; it
    gives a range of no width, which the caller has to replace.
    """
    half = max(width - 1, 0.0) / 2
    return center - 0.5 - half, center - 0.5 + half


def robust_range(values: Values) -> tuple[float, float]:
    """The range to show where nobody says it: percentiles 0.5 and 99.5, or all of a range of at most 255.

    All of the range, too, where the percentiles are equal (a small bright object in a dark frame). (0, 0) if empty.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    if not finite.size:
        return 0.0, 0.0
    lowest, highest = float(finite.min()), float(finite.max())
    if values.dtype.kind in "iu" and highest - lowest <= SMALL_RANGE:
        return lowest, highest
    step = -(-finite.size // SAMPLED)
    low, high = (float(value) for value in np.percentile(finite[::step], PERCENTILES))
    return (low, high) if high > low else (lowest, highest)


def to_bytes(values: Values, low: float, high: float) -> UInt8[np.ndarray, "*shape"]:
    """`low` and below become 0, `high` and above 255, between them linearly, rounded; NaN becomes 0."""
    scaled = values.astype(np.float32)
    scaled -= np.float32(low)
    scaled *= np.float32(255.0 / (high - low)) if high > low else np.float32(0)
    np.clip(np.nan_to_num(scaled, copy=False, nan=0.0), 0, 255, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.uint8)
