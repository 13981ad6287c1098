"""All pairs of 256-bit hashes within a Hamming distance, without comparing every pair (multi-index hashing).

The 256 bits are dealt over bands. Two hashes that differ in at most `threshold` bits differ in few bits of at least one
band (pigeonhole), so only hashes whose band is equal, or equal but for one bit, are compared. Nothing is missed.
Idea: Norouzi, Punjani, Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.corpus.fingerprints import BITS, WORDS

Hashes = NDArray[np.uint64]
"""[hash, 4 words]; bit 0 of a hash is the highest bit of its first word."""
Indices = NDArray[np.int64]

LARGEST_THRESHOLD = 63
"""Above it a band would have fewer than eight bits, and nearly every pair would be compared."""

BLOCK = 1 << 21
"""Candidates compared at a time: about 100 MB of temporary arrays, however many hashes fall into one bucket."""

ROWS_PER_BLOCK = 1 << 16
"""Hashes unpacked to bits at a time: 16 MiB."""

NANOSECONDS_PER_CANDIDATE = 25.0
NANOSECONDS_PER_PROBE = 35.0
"""Measured with 1,000,000 hashes (benchmarks/near_duplicates.py); they only choose between two exact searches."""


@dataclass(frozen=True)
class Pairs:
    """Hashes within the threshold of each other: `queries[k]` and `references[k]` differ in `distances[k]` bits."""

    queries: Indices
    references: Indices
    distances: NDArray[np.int16]


@dataclass(frozen=True)
class _Bands:
    """Bands [starts[b], starts[b + 1]) of the dealt bits; hashes whose band differs in more than `radius` bits are not
    compared."""

    starts: tuple[int, ...]
    radius: int

    def __len__(self) -> int:
        return len(self.starts) - 1


def near_pairs(hashes: Hashes, threshold: int, queries: Hashes | None = None) -> Iterator[Pairs]:
    """Every pair whose distance is at most `threshold`, once, in pieces, in an order that only depends on the input.

    Parameters
    ----------
    hashes : uint64 [reference, 4]; may be a memory map.
    threshold : 0 … 63 bits.
    queries : uint64 [query, 4]: pairs (query, reference) are given. None: pairs inside `hashes`, with
        query > reference.

    Raises
    ------
    ValueError : the threshold is out of its range.
    """
    if not 0 <= threshold <= LARGEST_THRESHOLD:
        raise ValueError(f"the threshold is {threshold} bits; 0 to {LARGEST_THRESHOLD} was expected")
    if len(hashes) < (2 if queries is None else 1) or (queries is not None and len(queries) == 0):
        return
    exact = _equal_bands(threshold + 1, 0)
    references, asking = _dealt(hashes, queries, exact)
    bands = exact
    if _candidates(references, asking, exact) * NANOSECONDS_PER_CANDIDATE > _probing_cost(references, asking):
        bands = _equal_bands(threshold // 2 + 1, 1)
        references, asking = _dealt(hashes, queries, bands)
    for band in range(len(bands)):
        yield from _pairs_of_band(references, asking, bands, band, threshold)


def crowd_heads(hashes: Hashes, threshold: int, crowd: int) -> Indices:
    """The first hash of every bucket that holds more than `crowd` hashes, sorted."""
    bands = _equal_bands(threshold + 1, 0)
    dealt, _ = _dealt(hashes, None, bands)
    heads = [np.zeros(0, np.int64)]
    for band in range(len(bands)):
        keys = _keys(dealt, bands, band)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
        heads.append(order[starts[np.diff(np.r_[starts, len(keys)]) > crowd]])
    return np.unique(np.concatenate(heads))


def _equal_bands(count: int, radius: int) -> _Bands:
    """At least four bands, as a band must fit into one word."""
    edges = np.linspace(0, BITS, max(count, BITS // 64) + 1).round().astype(int)
    return _Bands(tuple(edges.tolist()), radius)


def _dealt(hashes: Hashes, queries: Hashes | None, bands: _Bands) -> tuple[Hashes, Hashes | None]:
    """Both with their bits in another order: the most balanced bits are dealt first, one to each band in turn.

    Low frequencies of an image have the same sign in all images of a modality; a band of such bits would put
    them all into one bucket. Distances do not depend on the order of the bits.
    """
    sample = hashes[:: max(len(hashes) // ROWS_PER_BLOCK, 1)]
    imbalance = np.abs(_bits(np.asarray(sample)).mean(axis=0) - 0.5)
    by_balance = np.argsort(imbalance, kind="stable")
    places = sorted((offset, band if offset % 2 == 0 else -band, start + offset)
                    for band, (start, stop) in enumerate(zip(bands.starts, bands.starts[1:], strict=False))
                    for offset in range(stop - start))
    source = np.empty(BITS, np.int64)
    source[[place for *_, place in places]] = by_balance
    return _permuted(hashes, source), None if queries is None else _permuted(queries, source)


def _bits(hashes: Hashes) -> NDArray[np.uint8]:
    return np.unpackbits(hashes.astype(">u8").view(np.uint8), axis=1)


def _permuted(hashes: Hashes, source: Indices) -> Hashes:
    permuted = np.empty((len(hashes), WORDS), np.uint64)
    for start in range(0, len(hashes), ROWS_PER_BLOCK):
        bits = _bits(np.asarray(hashes[start : start + ROWS_PER_BLOCK]))[:, source]
        permuted[start : start + len(bits)] = np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8")
    return permuted


def _keys(hashes: Hashes, bands: _Bands, band: int) -> NDArray[np.uint64]:
    """The bits of a band as a number."""
    start, stop = bands.starts[band], bands.starts[band + 1]
    first, last = start // 64, (stop - 1) // 64
    right = np.uint64(64 * (last + 1) - stop)
    keys = hashes[:, last] >> right
    if first != last:  # `right` is then at least 1: a band that ends at a word's end and begins in another is ≥ 64 bits
        keys = keys | (hashes[:, first] << (np.uint64(64) - right))
    width = stop - start
    return keys if width == 64 else keys & np.uint64((1 << width) - 1)


def _candidates(references: Hashes, asking: Hashes | None, bands: _Bands) -> int:
    """Number of comparisons when only equal bands are compared."""
    total = 0
    for band in range(len(bands)):
        keys = np.sort(_keys(references, bands, band))
        if asking is None:
            starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
            sizes = np.diff(np.r_[starts, len(keys)])
            total += int((sizes * (sizes - 1) // 2).sum())
        else:
            wanted = np.sort(_keys(asking, bands, band))
            total += int((np.searchsorted(keys, wanted, "right") - np.searchsorted(keys, wanted)).sum())
    return total


def _probing_cost(references: Hashes, asking: Hashes | None) -> float:
    """Nanoseconds of looking up every hash with each of its bits flipped in turn; half of it inside one set."""
    return NANOSECONDS_PER_PROBE * BITS * (len(references) / 2 if asking is None else len(asking))


def _pairs_of_band(
    references: Hashes, asking: Hashes | None, bands: _Bands, band: int, threshold: int
) -> Iterator[Pairs]:
    """Pairs that this band brings together and no earlier one did."""
    keys = _keys(references, bands, band)
    order = np.argsort(keys, kind="stable")
    keys, sorted_hashes = keys[order], references[order]
    if asking is None:
        query_order, query_keys, query_hashes = order, keys, sorted_hashes
    else:
        query_keys = _keys(asking, bands, band)
        query_order = np.argsort(query_keys, kind="stable")
        query_keys, query_hashes = query_keys[query_order], asking[query_order]
    for chosen, starts, stops in _probes(keys, query_keys, asking is None, bands, band):
        for query, reference in _expanded(chosen, starts, stops):
            found, distance = _within(query_hashes, sorted_hashes, query, reference, threshold)
            new = _first_meeting(query_hashes[query[found]] ^ sorted_hashes[reference[found]], bands, band)
            left, right = query_order[query[found][new]], order[reference[found][new]]
            if asking is None:
                left, right = np.maximum(left, right), np.minimum(left, right)
            if len(left):
                yield Pairs(left, right, distance[new])


def _probes(
    keys: NDArray[np.uint64], query_keys: NDArray[np.uint64], is_self: bool, bands: _Bands, band: int
) -> Iterator[tuple[Indices, Indices, Indices]]:
    """(queries, first, end) for each way of looking up: the references in [first, end) are to be compared.

    All refer to the sorted order. Inside one set every pair is met from one side only.
    """
    heads = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    ends, distinct = np.r_[heads[1:], len(keys)], keys[heads]
    if is_self:
        sizes = ends - heads
        position = np.arange(len(keys))
        yield from _only_filled(position, position + 1, np.repeat(ends, sizes))
    else:
        yield from _only_filled(*_looked_up(distinct, heads, ends, query_keys, np.arange(len(query_keys))))
    if bands.radius == 0:
        return
    for bit in range(bands.starts[band + 1] - bands.starts[band]):
        flip = np.uint64(1 << bit)
        asking = np.flatnonzero(query_keys & flip == 0) if is_self else np.arange(len(query_keys))
        yield from _only_filled(*_looked_up(distinct, heads, ends, query_keys[asking] ^ flip, asking))


def _looked_up(
    distinct: NDArray[np.uint64], heads: Indices, ends: Indices, wanted: NDArray[np.uint64], asking: Indices
) -> tuple[Indices, Indices, Indices]:
    place = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
    found = distinct[place] == wanted
    return asking[found], heads[place[found]], ends[place[found]]


def _only_filled(chosen: Indices, starts: Indices, stops: Indices) -> Iterator[tuple[Indices, Indices, Indices]]:
    filled = stops > starts
    if filled.any():
        yield chosen[filled], starts[filled], stops[filled]


def _expanded(chosen: Indices, starts: Indices, stops: Indices) -> Iterator[tuple[Indices, Indices]]:
    """(query, reference) for every reference of every range, at most `BLOCK` at a time; a long range is cut."""
    ends = np.cumsum(stops - starts)
    total = int(ends[-1])
    for low in range(0, total, BLOCK):
        high = min(low + BLOCK, total)
        first, last = np.searchsorted(ends, [low, high - 1], "right")
        rows = slice(first, last + 1)
        begins = np.r_[0, ends][rows]
        counts = np.minimum(ends[rows], high) - np.maximum(begins, low)
        flat = np.arange(low, high)
        yield np.repeat(chosen[rows], counts), flat + np.repeat(starts[rows] - begins, counts)


def _within(
    query_hashes: Hashes, hashes: Hashes, query: Indices, reference: Indices, threshold: int
) -> tuple[Indices, NDArray[np.int16]]:
    """(positions of the candidates within the threshold, their distances); a word at a time, as most fail early."""
    left = np.arange(len(query))
    total = np.zeros(len(query), np.int16)
    for word in range(WORDS):
        total = total + np.bitwise_count(query_hashes[query[left], word] ^ hashes[reference[left], word])
        near = total <= threshold
        left, total = left[near], total[near]
    return left, total


def _first_meeting(differences: Hashes, bands: _Bands, band: int) -> NDArray[np.bool_]:
    """Whether no earlier band brought this pair together."""
    new = np.ones(len(differences), bool)
    for earlier in range(band):
        new &= np.bitwise_count(_keys(differences, bands, earlier)) > bands.radius
    return new
