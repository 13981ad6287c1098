"""SLAug's random intensity functions: a Bezier curve, then scale and location, as tables of 256 knots.

For a region with smallest value a, largest b and percentiles p₀ … p₁₀₀ the function is

    T(u) = clip(α·f(u) + β, 0, 1),

f the cubic Bezier curve from (a, a) over two control points, uniform in [a, b]², to (b, b); inverted, its ordinates
are taken from the other end: f decreases from b to a. α = clip(N(1, 0.1²), 0.9, 1.1) and
β = clip(N(0, 0.5²), −q₂₀, 1 − q₈₀) with q the percentiles of the curve's values f(u) in the region, so that (for α = 1)
no more than a fifth of it saturates at either end. f is monotone whatever the control points: the slope of a cubic
Bezier ordinate with P₀ ≤ P₁, P₂ ≤ P₃ is never below 3(b − a)(1 − 2t)² ≥ 0. Sources: Su et al. 2023 (SLAug); Zhou et al.
2019 (Models Genesis) for the curves.

A table holds α·f + β at equal steps from a to b; between knots it is linear, outside [a, b] it is constant, and the
clip comes after the lookup, so it stays exact. Numbers are drawn for curves in [0, 1]²: how many are drawn never
depends on an image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

KNOTS = 256
_TIMES = np.linspace(0.0, 1.0, 1024)
_SCALE_SPREAD, _SCALE_LIMIT, _LOCATION_SPREAD = 0.1, 0.1, 0.5
_LOW, _HIGH = 20, 80  # percentiles that stay within [0, 1]
_TINY = 1e-6


@dataclass(frozen=True)
class CurveDraw:
    """Control points in [0, 1] as (point, x or y), the scale α, the location β before its clip, and the direction."""

    points: Float[np.ndarray, "2 2"]
    scale: float
    location: float
    inverted: bool


def draw_curve(rng: np.random.Generator, inverted_chance: float) -> CurveDraw:
    """One function; seven numbers are drawn whatever becomes of them."""
    points = rng.random((2, 2))
    scale = float(np.clip(rng.normal(1.0, _SCALE_SPREAD), 1 - _SCALE_LIMIT, 1 + _SCALE_LIMIT))
    return CurveDraw(points, scale, rng.normal(0.0, _LOCATION_SPREAD), bool(rng.random() < inverted_chance))


def bezier(draw: CurveDraw, at: Float[np.ndarray, " value"]) -> Float[np.ndarray, " value"]:
    """The curve in [0, 1]² at abscissas `at`."""
    t, (first, second) = _TIMES[:, None], draw.points
    x, y = (3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3).T
    values: np.ndarray = np.interp(at, x, y[::-1] if draw.inverted else y)
    return values


def tabulate(
    draw: CurveDraw, percentiles: Float[np.ndarray, "101"], at: Float[np.ndarray, " value"]
) -> Float[np.ndarray, " value"]:
    """α·f + β at values `at`, for a region with these percentiles (0 and 100 are its ends)."""
    low, high = float(percentiles[0]), float(percentiles[-1])
    extent = max(high - low, _TINY)
    quantiles = np.sort(low + (high - low) * bezier(draw, (percentiles[[_LOW, _HIGH]] - low) / extent))
    location = float(np.clip(draw.location, -quantiles[0], 1 - quantiles[1]))
    curve: np.ndarray = low + (high - low) * bezier(draw, np.clip((at - low) / extent, 0, 1))
    return draw.scale * curve + location


def knots(percentiles: Float[np.ndarray, "101"]) -> Float[np.ndarray, "256"]:
    """The values a region's table is made for."""
    return np.linspace(float(percentiles[0]), float(percentiles[-1]), KNOTS)


def look_up(
    values: Float32[Tensor, "sample channel *patch"],
    tables: Float32[Tensor, "sample channel knot"],
    low: Float32[Tensor, "sample channel"],
    high: Float32[Tensor, "sample channel"],
) -> Float32[Tensor, "sample channel *patch"]:
    """Every channel of every sample through its own table, clipped to [0, 1]."""
    flat = values.flatten(2)
    position = (flat - low[..., None]) / (high - low).clamp(min=_TINY)[..., None] * (KNOTS - 1)
    position = position.clamp(0, KNOTS - 1)
    left = position.long().clamp(max=KNOTS - 2)
    changed = torch.lerp(tables.gather(2, left), tables.gather(2, left + 1), position - left)
    return changed.clamp(0, 1).view(values.shape)
