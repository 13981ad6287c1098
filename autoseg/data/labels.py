"""Label values in the user's files ↔ consecutive internal labels 0, 1, 2, … (0 is background)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

# Among values farther apart than this, a search takes the place of a table of all values between them.
_TABLE_SPAN = 1 << 16


def internal_type(count: int) -> type[np.uint8 | np.int16]:
    """Of arrays that hold so many internal labels, background included."""
    return np.uint8 if count <= 256 else np.int16


def to_internal(labels: Integer[np.ndarray, "z y x"], values: Sequence[int]) -> Integer[np.ndarray, "z y x"]:
    """Internal label k where `labels` holds values[k]; uint8 for at most 256 labels, else int16.

    Raises
    ------
    ValueError : a value that is not among `values` (check with `count_values` first).
    """
    kind = internal_type(len(values))
    low, high = _range(labels)
    if list(values) == list(range(len(values))) and low >= 0 and high < len(values):
        return labels.astype(kind, copy=False)
    order = np.argsort(values)
    ordered = np.asarray(values, np.int64)[order]
    table = np.full(min(high - low + 1, _TABLE_SPAN), -1, np.int32)
    within = (ordered >= low) & (ordered < low + table.size)
    table[ordered[within] - low] = order[within]
    internal = np.empty(labels.shape, kind)
    for index, plane in enumerate(labels):  # plane by plane: looking up takes 64-bit copies
        if high - low < _TABLE_SPAN:
            found = table[plane.astype(np.int64) - low]
        else:
            places = np.minimum(np.searchsorted(ordered, plane), len(values) - 1)
            found = np.where(ordered[places] == plane, order[places], -1)
        if (unknown := plane[found < 0]).size:
            raise ValueError(f"values {np.unique(unknown)[:10].tolist()} are not among {list(values)}")
        internal[index] = found
    return internal


def to_file_values(
    internal: Integer[np.ndarray, "z y x"], values: Sequence[int]
) -> Integer[np.ndarray, "z y x"]:
    """values[k] where `internal` holds k, in the smallest type that holds all `values`.

    Raises
    ------
    IndexError : an internal label without a value.
    """
    if internal.size and int(internal.min()) < 0:
        raise IndexError(f"internal labels begin at 0; found {int(internal.min())}")
    table = np.asarray(values, smallest_type(min(values), max(values)))
    return np.asarray(table[internal])


def count_values(labels: Integer[np.ndarray, "z y x"]) -> dict[int, int]:
    """Value → number of voxels, ascending."""
    low, high = _range(labels)
    if high - low >= _TABLE_SPAN:
        found, times = np.unique(labels, return_counts=True)
        return {int(value): int(count) for value, count in zip(found, times, strict=True)}
    counts = np.zeros(high - low + 1, np.int64)
    for plane in labels:  # plane by plane: counting takes 64-bit copies
        counts += np.bincount(plane.ravel().astype(np.int64) - low, minlength=counts.size)
    return {low + int(index): int(counts[index]) for index in np.flatnonzero(counts)}


def smallest_type(low: int, high: int) -> type[np.integer]:
    """The first of uint8, int16, uint16, int32, int64 that holds both."""
    kinds = (np.uint8, np.int16, np.uint16, np.int32, np.int64)
    return next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def _range(labels: Integer[np.ndarray, "z y x"]) -> tuple[int, int]:
    """The smallest and the largest value; (0, 0) without voxels."""
    return (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
