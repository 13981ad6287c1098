"""SLAug's views of a batch: the whole body through one random function (GLA), or every class through its own (LLA).

Images are in [0, 1]; functions are those of `curves`, drawn per sample, region and channel. Percentiles are those of
the region's voxels, never of air: with air the 20th percentile of most patches is 0, and images could only become
brighter. Voxels outside the body keep their value in both views.

- Global: one increasing function per channel of the body.
- Local: per class an inverted function with chance `inverted_chance`, otherwise an increasing one; the background (body
  of no class) is inverted always. A class that is absent changes nothing.

Source: Su et al. 2023. Two differences in the local view, because functions that change exactly at a label's border
paint this border into the image, and a network can learn the paint:

- Borders are soft. Occupancies of classes and background are smoothed (Gaussian, `soften` voxels), and a voxel is the
  weighted mean of its regions' functions, with weights that sum up to 1. Air takes no part in this.
- The background is several intensity clusters (`background_clusters`, thresholds at percentiles that are drawn), each
  with its own function, so that borders between tissues without a label change too. Weights go linearly from the
  median of one cluster to that of the next: the background's function is continuous, noise is not torn apart at a
  threshold, and all clusters together are one table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Integer
from torch import Tensor

from autoseg.domains.curves import KNOTS, CurveDraw, draw_curve, knots, look_up, tabulate
from autoseg.domains.splines import along_axes, gaussian
from autoseg.errors import UserError

AnyDraw = TypeVar("AnyDraw")
_PERCENTILES = np.arange(101)
_BINS = 4096
_JITTER = 0.25
"""Thresholds between n clusters lie at shares (j ± 0.25)/n of the background's voxels."""


@dataclass(frozen=True)
class LocationScaleSettings:
    """How regions are recolored.

    Attributes
    ----------
    inverted_chance : of a class; the background is inverted always.
    soften : σ in voxels of the borders between regions; 0 leaves them hard.
    background_clusters : functions the background is given.
    """

    inverted_chance: float = 0.5
    soften: float = 0.5
    background_clusters: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.inverted_chance <= 1 and self.soften >= 0 and self.background_clusters >= 1):
            raise UserError(
                f"an inverted chance of {self.inverted_chance}, borders softened by {self.soften} voxels and "
                f"{self.background_clusters} background clusters were asked for; the chance lies between 0 and 1, "
                "softening is not negative and there is at least one cluster. Use the defaults, or such numbers."
            )


def global_view(
    unit: Float32[Tensor, "sample channel *patch"],
    body: Bool[Tensor, "sample *patch"],
    rngs: Sequence[np.random.Generator],
    settings: LocationScaleSettings,
) -> Float32[Tensor, "sample channel *patch"]:
    """Every channel's body through one increasing function; `rngs`: one per sample.

    `settings` : concern the local view only; both views are called alike.
    """
    draws = [[draw_curve(rng, 0.0) for _ in range(unit.shape[1])] for rng in rngs]
    values = unit.clamp(0, 1)
    percentiles = region_percentiles(values, body).cpu().numpy()
    changed = _recolor(values, percentiles, _tables(draws, percentiles, _curve_table))
    return torch.where(body[:, None], changed, unit)


def local_view(
    unit: Float32[Tensor, "sample channel *patch"],
    body: Bool[Tensor, "sample *patch"],
    classes: Float32[Tensor, "sample class *patch"],
    rngs: Sequence[np.random.Generator],
    settings: LocationScaleSettings,
) -> Float32[Tensor, "sample channel *patch"]:
    """Every class and every cluster of the background through its own function; `rngs`: one per sample.

    `classes` : how far a voxel belongs to each class, 0 to 1. Where classes overlap each has its share.
    """
    draws = [_draw(rng, classes.shape[1], unit.shape[1], settings) for rng in rngs]
    values = unit.clamp(0, 1)
    inside = body.float()
    background = inside * (1 - classes.sum(1)).clamp(min=0)
    # What is absent from the whole batch costs nothing.
    present = [int(index) for index in classes.flatten(2).amax(2).amax(0).nonzero().flatten().tolist()]
    occupancies = [classes[:, index] * inside for index in present] + [background]
    # A voxel is in a region's statistics when half of it or more belongs to the region.
    stacked = torch.stack([region_percentiles(values, occupancy >= 0.5) for occupancy in occupancies])
    percentiles = stacked.cpu().numpy()
    total, weighted = torch.zeros_like(background), torch.zeros_like(values)
    for place, occupancy in enumerate(occupancies):
        own = percentiles[place]
        if place < len(present):
            tables = _tables([draw.classes[present[place]] for draw in draws], own, _curve_table)
        else:
            tables = _tables([draw.background for draw in draws], own, _background_table)
        weight = _smooth(occupancy, settings.soften)
        total += weight
        weighted += weight[:, None] * _recolor(values, own, tables)
    changed = weighted / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]
    return torch.where((body & (total > 0))[:, None], changed.clamp(0, 1), unit)


def class_masks(
    labels: Integer[Tensor, "sample *patch"], members: Bool[Tensor, "region value"], ignore: int | None
) -> Float32[Tensor, "sample region *patch"]:
    """1 where a voxel's label is a member of the region, else 0; `ignore` and values past the matrix are in none."""
    values = labels.long()
    counts = (values >= 0) & (values < members.shape[1])
    if ignore is not None:
        counts &= values != ignore
    found = members.to(labels.device)[:, torch.where(counts, values, 0)] & counts
    return found.transpose(0, 1).float()


def region_percentiles(
    values: Float32[Tensor, "sample channel *patch"], region: Bool[Tensor, "sample *patch"]
) -> Float32[Tensor, "sample channel 101"]:
    """The 0th to the 100th percentile of each channel in each sample's region; 0 throughout where it is empty.

    The ends are exact. The others come from a histogram of 4096 bins and are linear within a bin: counting costs one
    pass over the voxels where sorting costs twenty, and needs no loop over samples.
    """
    samples, channels = values.shape[:2]
    flat, inside = values.flatten(2), region.flatten(1)[:, None]
    low = torch.where(inside, flat, torch.inf).amin(2)
    high = torch.where(inside, flat, -torch.inf).amax(2)
    plane = torch.arange(samples * channels, device=values.device).view(samples, channels, 1) * (_BINS + 1)
    bins = torch.where(inside, (flat * _BINS).long().clamp(0, _BINS - 1), _BINS) + plane
    counts = torch.bincount(bins.flatten(), minlength=samples * channels * (_BINS + 1))
    counts = counts.view(samples, channels, _BINS + 1)[..., :_BINS]
    reached = counts.cumsum(2)
    number = reached[..., -1:]
    # Like numpy's default: percentile p is the value number p/100·(n − 1) in order, counted from 0.
    rank = torch.from_numpy(_PERCENTILES).to(values.device) * (number - 1).clamp(min=0) / 100
    # The bin whose voxels begin at or before this rank and end after it; ranks lie within it at half steps.
    found = torch.searchsorted(reached, rank.floor().long(), right=True).clamp(max=_BINS - 1)
    within = (rank - (reached - counts).gather(2, found) + 0.5) / counts.gather(2, found).clamp(min=1)
    percentiles = (found + within.clamp(0, 1)) / _BINS
    percentiles = torch.minimum(torch.maximum(percentiles.float(), low[..., None]), high[..., None])
    percentiles[..., 0], percentiles[..., -1] = low, high
    return torch.where(number > 0, percentiles, 0)


@dataclass(frozen=True)
class _Clusters:
    """One channel's background: the place of each threshold in −½ … ½ and one function per cluster."""

    jitter: tuple[float, ...]
    curves: tuple[CurveDraw, ...]


@dataclass(frozen=True)
class _LocalDraw:
    """One sample's draw: (class, channel) and (channel,)."""

    classes: tuple[tuple[CurveDraw, ...], ...]
    background: tuple[_Clusters, ...]


def _draw(rng: np.random.Generator, classes: int, channels: int, settings: LocationScaleSettings) -> _LocalDraw:
    """Absent classes have a draw too: what the other regions get does not depend on them."""
    clusters = settings.background_clusters
    background = tuple(
        _Clusters(
            tuple(float(number) for number in rng.random(clusters - 1) - 0.5),
            tuple(draw_curve(rng, 1.0) for _ in range(clusters)),
        )
        for _ in range(channels)
    )
    curves = tuple(tuple(draw_curve(rng, settings.inverted_chance) for _ in range(channels)) for _ in range(classes))
    return _LocalDraw(curves, background)


def _tables(
    draws: Sequence[Sequence[AnyDraw]], percentiles: Float[np.ndarray, "sample channel 101"],
    table_of: Callable[[AnyDraw, Float[np.ndarray, "101"]], Float[np.ndarray, " knot"]],
) -> Float32[np.ndarray, "sample channel knot"]:  # fmt: skip
    """Per sample and channel the table of its draw, for a region with these percentiles."""
    tables = np.empty((*percentiles.shape[:2], KNOTS), np.float32)
    for sample, own in enumerate(draws):
        for channel, draw in enumerate(own):
            tables[sample, channel] = table_of(draw, percentiles[sample, channel])
    return tables


def _curve_table(draw: CurveDraw, levels: Float[np.ndarray, "101"]) -> Float[np.ndarray, " knot"]:
    return tabulate(draw, levels, knots(levels))


def _background_table(clusters: _Clusters, levels: Float[np.ndarray, "101"]) -> Float[np.ndarray, " knot"]:
    """Every cluster's function, clipped, at the background's knots, in the shares the clusters have there."""
    at, count = knots(levels), len(clusters.curves)
    inner = (np.arange(1, count) + 2 * _JITTER * np.array(clusters.jitter)) / count
    edges = 100 * np.concatenate([[0.0], inner, [1.0]])
    table, medians = np.zeros(KNOTS), np.interp((edges[:-1] + edges[1:]) / 2, _PERCENTILES, levels)
    # Ties (a background of few values) would leave no way from one median to the next.
    medians = np.maximum.accumulate(medians + 1e-9 * np.arange(count))
    for cluster, draw in enumerate(clusters.curves):
        shares = np.linspace(edges[cluster], edges[cluster + 1], len(levels))
        own = np.interp(shares, _PERCENTILES, levels)
        weight = np.interp(at, medians, np.eye(count)[cluster])
        table += weight * np.clip(tabulate(draw, own, at), 0, 1)
    return table


def _recolor(
    values: Float32[Tensor, "sample channel *patch"],
    percentiles: Float32[np.ndarray, "sample channel 101"],
    tables: Float32[np.ndarray, "sample channel knot"],
) -> Float32[Tensor, "sample channel *patch"]:
    ends = torch.from_numpy(percentiles[..., [0, -1]]).to(values.device)
    return look_up(values, torch.from_numpy(tables).to(values.device), ends[..., 0], ends[..., 1])


def _smooth(occupancy: Float32[Tensor, "sample *patch"], sigma: float) -> Float32[Tensor, "sample *patch"]:
    if sigma == 0:
        return occupancy
    with torch.autocast(occupancy.device.type, enabled=False):
        smooth: Tensor = along_axes(occupancy, [gaussian(length, sigma) for length in occupancy.shape[1:]])
    return smooth
