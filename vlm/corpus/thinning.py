"""Near duplicates: of images that look alike the first is kept, and no image is dropped for one that is not kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm.corpus.facts import MIXED, MODALITIES, first_of_equals, words
from vlm.corpus.near import Hashes, Indices, Pairs, crowd_heads, near_pairs

LISTED_PAIRS = 1 << 22
"""Pairs held at once: about 100 MB. Where more images look alike, they are worked off in rounds, without a list."""

CROWD = 500
"""A bucket with more images is looked at first; fewer are compared each with each in milliseconds."""

NEVER = np.int16(-1)
NONE = np.int64(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Looks:
    """How images look: plain and mirrored hashes [image, 4] and positions in MODALITIES [image]."""

    plain: Hashes
    mirrored: Hashes
    modality: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.plain)


@dataclass(frozen=True)
class Likeness:
    """For each image another that it looks like, or -1, and how many bits they differ in, or -1."""

    of: Indices
    distance: NDArray[np.int16]


def pair_limits(thresholds: Mapping[str, int]) -> NDArray[np.int16]:
    """[modality, modality] → the largest distance of near duplicates; -1: never compared.

    Images of one modality are compared by its threshold, images of a mixed source with every other by the
    smaller of the two thresholds. A modality without a threshold is never compared.
    """
    each = np.array([thresholds.get(name, NEVER) for name in MODALITIES], np.int16)
    limits = np.full((len(each), len(each)), NEVER)
    np.fill_diagonal(limits, each)
    limits[MIXED] = limits[:, MIXED] = np.minimum(each, each[MIXED])
    return limits


def thin(looks: Looks, thresholds: Mapping[str, int]) -> Likeness:
    """Go through the images in order: one that looks like an earlier kept one is dropped.

    An image looks like an earlier one where its hash, or that of its mirror image, is within their threshold.
    A chain (a like b, b like c, a unlike c) loses only b. Memory is bounded by `LISTED_PAIRS`, not by the number of
    pairs: rounds of a parallel greedy search (Blelloch, Fineman, Shun, SPAA 2012) give what going in order gives.

    Returns
    -------
    Likeness: `of` is the kept image for which this one is dropped, -1 where it is kept.
    """
    limits = pair_limits(thresholds)
    result = Likeness(np.full(len(looks), -1), np.full(len(looks), NEVER))
    firsts = first_of_equals([*words(looks.plain), *words(looks.mirrored), looks.modality])
    comparable = limits.diagonal()[looks.modality] >= 0
    undecided = np.flatnonzero((firsts == np.arange(len(looks))) & comparable)
    undecided = _without_crowds(looks, limits, undecided, result)
    while len(undecided):
        undecided = _round(looks, limits, undecided, result)
    copies = np.flatnonzero((firsts != np.arange(len(looks))) & comparable)
    first_is_kept = result.of[firsts[copies]] < 0
    result.of[copies] = np.where(first_is_kept, firsts[copies], result.of[firsts[copies]])
    result.distance[copies] = np.where(first_is_kept, 0, result.distance[firsts[copies]])
    return result


def most_alike(looks: Looks, others: Looks, thresholds: Mapping[str, int]) -> Likeness:
    """For each image the least different of `others` within their threshold; of equally different ones the first."""
    best = np.full(len(looks), NONE)
    for pairs in _meetings(looks, others, pair_limits(thresholds)):
        np.minimum.at(best, pairs.queries, (pairs.distances.astype(np.int64) << 40) | pairs.references)
    found = best < NONE
    return Likeness(np.where(found, best & ((1 << 40) - 1), -1), np.where(found, best >> 40, NEVER).astype(np.int16))


def _without_crowds(looks: Looks, limits: NDArray[np.int16], undecided: Indices, result: Likeness) -> Indices:
    """What is left when thousands of images that all look alike (nearly black ones) have lost to the first of them.

    Comparing each with each would take hours. An image that looks like none before it is kept, whatever becomes of
    the others; so all that look like it go at once, in a time proportional to their number.
    """
    while True:
        some = _chosen(looks, undecided)
        heads = [np.flatnonzero(some.modality == modality)[crowd_heads(
                     some.plain[some.modality == modality], int(limits[modality, modality]), CROWD)]
                 for modality in np.unique(some.modality)]
        firsts = _kept_before(some, np.sort(np.concatenate([*heads, np.zeros(0, np.int64)])), limits)
        if len(firsts) == 0:
            return undecided
        likeness = _earliest(some, np.arange(len(some)), firsts, limits)
        dropped = likeness.of >= 0
        result.of[undecided[dropped]] = undecided[firsts[likeness.of[dropped]]]
        result.distance[undecided[dropped]] = likeness.distance[dropped]
        undecided = undecided[~dropped]
        if dropped.sum() < CROWD:
            return undecided


def _kept_before(looks: Looks, heads: Indices, limits: NDArray[np.int16]) -> Indices:
    """Images that look like none before them: heads, and for other heads the first that they look like, and so on."""
    everything = np.arange(len(looks))
    found = [np.zeros(0, np.int64)]
    while len(heads):
        earliest = _earliest(looks, heads, everything, limits).of
        found.append(heads[earliest < 0])
        heads = np.unique(earliest[earliest >= 0])
    return np.unique(np.concatenate(found))


def _chosen(looks: Looks, which: Indices) -> Looks:
    return Looks(looks.plain[which], looks.mirrored[which], looks.modality[which])


def _round(looks: Looks, limits: NDArray[np.int16], undecided: Indices, result: Likeness) -> Indices:
    """Decide what can be decided by looking once; the images that are still open. The first is always decided."""
    some = _chosen(looks, undecided)
    earliest = np.full(len(some), len(some))
    listed: list[Pairs] = []
    count = 0
    for pairs in _meetings(some, some, limits):
        later = pairs.queries > pairs.references
        piece = Pairs(pairs.queries[later], pairs.references[later], pairs.distances[later])
        np.minimum.at(earliest, piece.queries, piece.references)
        count += len(piece.queries)
        if count <= LISTED_PAIRS:
            listed.append(piece)
        else:
            listed.clear()
    if count <= LISTED_PAIRS:
        _in_order(listed, undecided, result)
        return undecided[:0]
    firsts, rest = np.flatnonzero(earliest == len(some)), np.flatnonzero(earliest < len(some))
    likeness = _earliest(some, rest, firsts, limits)
    dropped = likeness.of >= 0
    result.of[undecided[rest[dropped]]] = undecided[firsts[likeness.of[dropped]]]
    result.distance[undecided[rest[dropped]]] = likeness.distance[dropped]
    return undecided[rest[~dropped]]


def _in_order(listed: list[Pairs], undecided: Indices, result: Likeness) -> None:
    """The plain rule, from a list of all pairs."""
    if not listed:
        return
    later = np.concatenate([piece.queries for piece in listed])
    earlier = np.concatenate([piece.references for piece in listed])
    distance = np.concatenate([piece.distances for piece in listed])
    order = np.lexsort((distance, earlier, later))
    dropped = bytearray(len(undecided))
    for query, reference, bits in zip(
        later[order].tolist(), earlier[order].tolist(), distance[order].tolist(), strict=True
    ):
        if not dropped[query] and not dropped[reference]:
            dropped[query] = 1
            result.of[undecided[query]], result.distance[undecided[query]] = undecided[reference], bits


def _earliest(looks: Looks, queries: Indices, references: Indices, limits: NDArray[np.int16]) -> Likeness:
    """For each query the earliest of the references before it that it looks like (position in `references`)."""
    asking, known = _chosen(looks, queries), _chosen(looks, references)
    best = np.full(len(queries), NONE)
    for pairs in _meetings(asking, known, limits):
        later = queries[pairs.queries] > references[pairs.references]
        keys = (pairs.references[later] << 16) | pairs.distances[later]
        np.minimum.at(best, pairs.queries[later], keys)
    found = best < NONE
    return Likeness(np.where(found, best >> 16, -1), np.where(found, best & 0xFFFF, NEVER).astype(np.int16))


def _meetings(queries: Looks, references: Looks, limits: NDArray[np.int16]) -> Iterator[Pairs]:
    """Pairs of a query (as it is, or mirrored) and a reference within their limit; a pair may come twice."""
    for chosen, known in _comparable(queries.modality, references.modality):
        allowed = limits[np.ix_(np.unique(queries.modality[chosen]), np.unique(references.modality[known]))]
        threshold = int(allowed.max(initial=NEVER))
        if threshold < 0:
            continue
        hashes = references.plain[known]
        for asking in (queries.plain, queries.mirrored):
            for pairs in near_pairs(hashes, threshold, asking[chosen]):
                query, reference = chosen[pairs.queries], known[pairs.references]
                near = pairs.distances <= limits[queries.modality[query], references.modality[reference]]
                yield Pairs(query[near], reference[near], pairs.distances[near])


def _comparable(queries: NDArray[np.int8], references: NDArray[np.int8]) -> Iterator[tuple[Indices, Indices]]:
    """Groups whose members may be compared: each modality with itself, the mixed sources with all."""
    for modality in range(len(MODALITIES)):
        if modality != MIXED:
            yield np.flatnonzero(queries == modality), np.flatnonzero(references == modality)
    yield np.flatnonzero(queries == MIXED), np.arange(len(references))
    yield np.flatnonzero(queries != MIXED), np.flatnonzero(references == MIXED)
