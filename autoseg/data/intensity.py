"""Intensity normalization of one channel of a case: nnU-Net's five schemes."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32

from autoseg.errors import UserError
from autoseg.schema import ChannelNormalization, IntensityStatistics, NormalizationScheme

Channel = Float32[np.ndarray, "z y x"]
Mask = Bool[np.ndarray, "z y x"]
Normalizer = Callable[[Channel, Mask | None, IntensityStatistics], Channel]

SMALLEST_DIVISOR = 1e-8  # nnU-Net's guard for constant images
VOXELS_AT_A_TIME = 1 << 20


def normalize(
    image: Float32[np.ndarray, "channel z y x"],
    nonzero: Bool[np.ndarray, "z y x"] | None,
    normalization: Sequence[ChannelNormalization],
) -> Float32[np.ndarray, "channel z y x"]:
    """Each channel normalized by its own scheme, as a new array.

    Parameters
    ----------
    nonzero : voxels with a value in any channel, holes filled; needed where a channel is `within_nonzero`.
    """
    result = np.empty(image.shape, np.float32)
    for channel, (values, how) in enumerate(zip(image, normalization, strict=True)):
        result[channel] = normalize_channel(values, nonzero, how)
    return result


def normalize_channel(
    channel: Float32[np.ndarray, "z y x"],
    nonzero: Bool[np.ndarray, "z y x"] | None,
    how: ChannelNormalization,
) -> Float32[np.ndarray, "z y x"]:
    """One channel normalized, as a new contiguous array; the rules are nnU-Net v2's normalization schemes.

    `within_nonzero` matters to z-score only: mean and std of the voxels in `nonzero`, voxels outside stay
    as they are. UserError for `rgb_to_0_1` on values outside 0 … 255.
    """
    mask = nonzero if needs_mask(how) else None
    return NORMALIZERS[how.scheme](np.array(channel, np.float32, order="C"), mask, how.statistics)


def needs_mask(how: ChannelNormalization) -> bool:
    """Whether this normalization looks at the nonzero mask."""
    return how.scheme == "zscore" and how.within_nonzero


# Each normalizer owns its array and may change it in place: a case's channel is copied once, by the caller.
def clip_and_scale(channel: Channel, _: Mask | None, statistics: IntensityStatistics) -> Channel:
    """CT: clip to the dataset's foreground percentiles, subtract its mean, divide by its std."""
    np.clip(channel, statistics.percentile_00_5, statistics.percentile_99_5, out=channel)
    channel -= statistics.mean
    channel /= max(statistics.std, SMALLEST_DIVISOR)
    return channel


def standardize(channel: Channel, mask: Mask | None, _: IntensityStatistics) -> Channel:
    """z-score of the case itself: over all voxels, or inside `mask` only (outside unchanged)."""
    values = channel.reshape(-1) if mask is None else channel[mask]
    mean, std = mean_and_std(values)
    values -= np.float32(mean)
    values /= np.float32(max(std, SMALLEST_DIVISOR))
    if mask is not None:
        channel[mask] = values
    return channel


def rescale(channel: Channel, _: Mask | None, __: IntensityStatistics) -> Channel:
    """The case's own smallest value becomes 0, its largest 1."""
    channel -= channel.min()
    channel /= max(float(channel.max()), SMALLEST_DIVISOR)
    return channel


def scale_bytes(channel: Channel, _: Mask | None, __: IntensityStatistics) -> Channel:
    """0 … 255 becomes 0 … 1."""
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise UserError(
            f"A channel declared as RGB holds values from {low:g} to {high:g}; 0 to 255 was expected.\n"
            "Name the channel differently in dataset.json (R, G and B are read as bytes)."
        )
    channel /= 255
    return channel


def keep(channel: Channel, _: Mask | None, __: IntensityStatistics) -> Channel:
    """Values as in the file."""
    return channel


NORMALIZERS: dict[NormalizationScheme, Normalizer] = {
    "ct": clip_and_scale,
    "zscore": standardize,
    "rescale_to_0_1": rescale,
    "rgb_to_0_1": scale_bytes,
    "nonorm": keep,
}


def mean_and_std(values: Float32[np.ndarray, "*shape"]) -> tuple[float, float]:
    """Mean and population std in double precision, without a double-precision copy; (0, 0) if empty."""
    if not values.size:
        return 0.0, 0.0
    mean = sum(float(part.sum(dtype=np.float64)) for part in _pieces(values)) / values.size
    squares = 0.0
    for part in _pieces(values):
        difference = np.subtract(part, mean, dtype=np.float64)
        squares += float(np.dot(difference, difference))
    return mean, float(np.sqrt(squares / values.size))


def _pieces(values: Float32[np.ndarray, "*shape"]) -> Iterator[np.ndarray]:
    flat = values.reshape(-1)
    return (flat[start : start + VOXELS_AT_A_TIME] for start in range(0, flat.size, VOXELS_AT_A_TIME))
