"""Intensity normalization of one channel of a case: nnU-Net's five schemes, and two of each image by itself.

`percentile` and `rank` use nothing of the dataset, so an image of another scanner, sequence or modality is treated by
the same rule as those of training. Both give 0 … SPAN with air at exactly 0, which is also what padding is. Body is
what lies above 3 % of the way from an image's 0.5 to its 99.5 percentile. Where air is bright (an inverted X-ray) it
counts as body, and so it does where something darker surrounds it (a CT whose field of view is padded with -3024).
"""

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

SPAN = 4.0
"""The range of `percentile` and `rank`: about four standard deviations of an image, as wide as z-scores are."""
EXTREMES = (0.5, 99.5)
"""Percentiles between which an image's values are taken seriously."""
AIR_SHARE = 0.03
DARKEST_RANK = 0.05
"""Of the body in a `rank` image, as a share of the span: the gap to air."""
RANK_TABLE = 4096


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


def scale_percentiles(channel: Channel, _: Mask | None, __: IntensityStatistics) -> Channel:
    """The body's 0.5 and 99.5 percentiles become 0 and SPAN, in between linearly, beyond them clipped; air is 0."""
    body, brightest_air = _body(channel)
    if not body.any():
        return np.zeros_like(channel)
    low, high = (np.float32(extreme) for extreme in np.percentile(channel[body], EXTREMES))
    if low == high:  # a body of one value is not air
        low = brightest_air
    np.clip(channel, low, high, out=channel)
    channel -= low
    channel /= high - low
    channel *= SPAN
    channel[~body] = 0
    return channel


def scale_ranks(channel: Channel, _: Mask | None, __: IntensityStatistics) -> Channel:
    """The share of the body's voxels that are darker (half of those that are equal), 5 % to 100 % of SPAN; air is 0.

    A histogram map of the image alone: any increasing change of intensities that leaves the body as it is changes
    nothing, up to one part of the table.
    """
    body, _air = _body(channel)
    if not body.any():
        return np.zeros_like(channel)
    values, shares = _tabulated_shares(channel[body])
    ranks = SPAN * (DARKEST_RANK + (1 - DARKEST_RANK) * shares)
    for part in _pieces(channel):
        part[:] = np.interp(part, values, ranks)
    channel[~body] = 0
    return channel


def _tabulated_shares(values: Float32[np.ndarray, " voxel"]) -> tuple[np.ndarray, np.ndarray]:
    """Some of the values, increasing, and the share of all that is smaller than each (half of what equals it).

    `values` are sorted in place. Entries are RANK_TABLE values with equally many voxels from one to the next, and the
    values just below and above each: between two entries then lies at most one part of the table, however many voxels
    an entry itself has. Up to RANK_TABLE voxels are all entries.
    """
    values.sort()
    last = values.size - 1
    chosen = values[np.linspace(0, last, min(RANK_TABLE, values.size)).astype(np.int64)]
    below = values[np.maximum(np.searchsorted(values, chosen) - 1, 0)]
    above = values[np.minimum(np.searchsorted(values, chosen, side="right"), last)]
    entries = np.unique(np.concatenate([below, chosen, above]))
    smaller, not_larger = np.searchsorted(values, entries), np.searchsorted(values, entries, side="right")
    return entries, (smaller + not_larger) / (2 * values.size)


def _body(channel: Channel) -> tuple[Mask, np.float32]:
    """Voxels that are not air, none in an image of one value; and the value that air does not exceed."""
    low, high = np.percentile(channel, EXTREMES)
    if not high > low:  # what there is takes less than 0.5 % of the image
        low, high = channel.min(), channel.max()
    brightest_air = np.float32(low + AIR_SHARE * (high - low))
    return channel > brightest_air, brightest_air


NORMALIZERS: dict[NormalizationScheme, Normalizer] = {
    "ct": clip_and_scale,
    "zscore": standardize,
    "rescale_to_0_1": rescale,
    "rgb_to_0_1": scale_bytes,
    "nonorm": keep,
    "percentile": scale_percentiles,
    "rank": scale_ranks,
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
