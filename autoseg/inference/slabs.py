"""Planes of logits that arrive piece by piece, cut into what each slab of the image's own grid needs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoseg.data.resampling import AxisOperator

Array = Any  # numpy or torch, (class, z, y, x)


@dataclass(frozen=True)
class Slab:
    """Slices [start, stop) of the finer grid, the operator that makes them, and the planes that it takes.

    `planes` may be part of a piece: it must be used before the next slab is asked for, and not changed.
    """

    start: int
    stop: int
    operator: AxisOperator
    planes: Array


def slabs(
    pieces: Iterable[tuple[int, Array]],
    operator: AxisOperator,
    thickness: int,
    concatenate: Callable[[Sequence[Array], int], Array],
) -> Iterator[Slab]:
    """Slabs of at most `thickness` slices along z, as soon as their planes are there, in order.

    pieces : (first plane, planes), in order and without gaps. Of earlier pieces only the planes are kept that slices
        to come need: with linear interpolation, one.
    """
    done = 0
    kept: Array | None = None  # planes before the current piece
    for first, piece in pieces:
        end = first + piece.shape[1]
        before = 0 if kept is None else kept.shape[1]
        while done < operator.size_out:
            stop = _reachable(operator, done, min(done + thickness, operator.size_out), end)
            if stop == done:
                break
            along, (low, high) = operator.rows(done, stop)
            if low >= first:
                planes = piece[:, low - first : high - first]
            else:
                assert kept is not None
                planes = concatenate([kept[:, before + low - first :], piece[:, : max(high - first, 0)]], 1)
                planes = planes[:, : high - low]
            yield Slab(done, stop, along, planes)
            done = stop
        if done < operator.size_out:
            kept = _needed(operator.columns(done, done + 1)[0], first, piece, kept, concatenate)


def _reachable(operator: AxisOperator, start: int, stop: int, end: int) -> int:
    """The largest slice up to `stop` such that all from `start` on need planes before `end` only."""
    while stop > start and operator.columns(start, stop)[1] > end:
        stop -= 1
    return stop


def _needed(
    low: int, first: int, piece: Array, kept: Array | None, concatenate: Callable[[Sequence[Array], int], Array]
) -> Array | None:
    """A copy of the planes from `low` on, out of those kept before and the piece."""
    end = first + piece.shape[1]
    if low >= end:
        return None
    if low >= first or kept is None:
        return concatenate([piece[:, low - first :]], 1)
    return concatenate([kept[:, kept.shape[1] + low - first :], piece], 1)
