"""Foreground intensities of a dataset in bounded memory: a small sketch per case, merged with equal
weights.

nnU-Net draws 1e8 / cases foreground voxels of every case with replacement and takes mean, median, standard
deviation and percentiles of all draws together: every case weighs the same, however many foreground voxels
it has. Here the limit of infinitely many draws is computed: mean and variance exactly, minimum and maximum
exactly (over all foreground voxels), percentiles as those of the mixture of the cases' distributions. A
case with at most `SKETCH_SIZE` foreground voxels enters with all of them, a larger one with `SKETCH_SIZE`
evenly spaced order statistics, which moves a percentile by at most 100 / (2 · `SKETCH_SIZE`) = 0.012
percent of rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

from autoseg.schema import IntensityStatistics

SKETCH_SIZE = 4096


@dataclass(frozen=True)
class Sketch:
    """Foreground intensities of one channel of one case.

    Attributes
    ----------
    mean, variance, smallest, largest : of all foreground voxels (variance of the population).
    quantiles : at most `SKETCH_SIZE` intensities, ascending, of equal weight.
    """

    mean: float
    variance: float
    smallest: float
    largest: float
    quantiles: Float32[np.ndarray, " values"]


def sketch_channels(
    image: Float32[np.ndarray, "channel z y x"], foreground: Bool[np.ndarray, "z y x"]
) -> tuple[Sketch, ...]:
    """One sketch per channel; none when nothing is foreground."""
    if not foreground.any():
        return ()
    return tuple(_sketch(np.sort(channel[foreground])) for channel in image)


def _sketch(ascending: Float32[np.ndarray, " voxels"]) -> Sketch:
    quantiles = ascending
    if len(ascending) > SKETCH_SIZE:
        ranks = (np.arange(SKETCH_SIZE) + 0.5) * (len(ascending) / SKETCH_SIZE)
        quantiles = ascending[ranks.astype(np.int64)]
    return Sketch(
        mean=float(ascending.mean(dtype=np.float64)),
        variance=float(ascending.var(dtype=np.float64)),
        smallest=float(ascending[0]),
        largest=float(ascending[-1]),
        quantiles=quantiles,
    )


def merge_sketches(sketches: Sequence[Sketch]) -> IntensityStatistics:
    """Statistics of one channel over the cases (at least one), each case weighing the same."""
    means = np.array([sketch.mean for sketch in sketches])
    variances = np.array([sketch.variance for sketch in sketches])
    mean = float(means.mean())
    values = np.concatenate([sketch.quantiles for sketch in sketches])
    weights = np.concatenate([np.full(len(one.quantiles), 1 / len(one.quantiles)) for one in sketches])
    low, median, high = _percentiles(values, weights, (0.5, 50.0, 99.5))
    return IntensityStatistics(
        mean=mean,
        median=median,
        std=float(np.sqrt(np.mean(variances + (means - mean) ** 2))),
        min=min(sketch.smallest for sketch in sketches),
        max=max(sketch.largest for sketch in sketches),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _percentiles(
    values: Float32[np.ndarray, " values"], weights: Float64[np.ndarray, " values"], percents: Sequence[float]
) -> list[float]:
    """The smallest value that `percent` of the weight does not exceed; halfway to the next one on a tie."""
    order = np.argsort(values, kind="stable")
    ascending, below = values[order].astype(np.float64), np.cumsum(weights[order])
    below /= below[-1]
    wanted = np.array(percents) / 100
    # Rounding of the cumulative weights must not decide which of two neighbours is taken.
    first = np.searchsorted(below, wanted - 1e-9)
    second = np.minimum(np.searchsorted(below, wanted + 1e-9), len(ascending) - 1)
    return [float(value) for value in (ascending[first] + ascending[second]) / 2]
