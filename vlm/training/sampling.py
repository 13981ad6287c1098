"""Which pairs make up an epoch, and in which order: a function of (seed, epoch) alone, over sources of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from autoseg.errors import UserError, all_of

BLOCK_PAIRS = 256
"""Pairs of a large source that follow each other on the disk and are read within the same window of the order."""

_MIXING, _ORDER = 0, 1  # streams of the seed


@dataclass(frozen=True)
class EpochOrder:
    """The pairs of an epoch, in order.

    source : position in the list of sources. pair : position in the source. visit : how often that source was gone
    through before; where sources are drawn by size, the number of the epoch, but for the few pairs that an epoch of
    whole batches leaves for the next.
    """

    source: Int64[np.ndarray, " draw"]
    pair: Int64[np.ndarray, " draw"]
    visit: Int64[np.ndarray, " draw"]


def source_probabilities(
    sizes: Mapping[str, int], alpha: float | None, weights: Mapping[str, float] | None
) -> Float[np.ndarray, " source"]:
    """Probability of each source, in the order of `sizes`: in proportion to n^alpha, or to its weight.

    UserError where weights name a source that the corpus lacks, or lack one that it has.
    """
    counts = np.array(list(sizes.values()), np.float64)
    if weights is None:
        shares = counts ** (1.0 if alpha is None else alpha)
    else:
        problems = [f"{name}: the corpus has no such source" for name in weights if name not in sizes]
        problems += [f"{name}: a source of the corpus without a weight" for name in sizes if name not in weights]
        if problems:
            raise all_of(problems, "The recipe's weights do not fit the corpus:",
                         "Give one weight for each of its sources, or give alpha instead.")
        shares = np.array([weights[name] for name in sizes], np.float64)
    return np.asarray(shares / shares.sum(), np.float64)


def quotas(probabilities: Float[np.ndarray, " source"], draws: int) -> Int64[np.ndarray, " source"]:
    """How many of an epoch's draws each source gets: the whole numbers nearest to its share that add up to `draws`."""
    exact = probabilities * draws
    counts = np.floor(exact).astype(np.int64)
    missing = draws - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return np.asarray(counts, np.int64)


def epoch_order(
    sizes: Sequence[int], counts: Int64[np.ndarray, " source"], seed: int, epoch: int, window: int
) -> EpochOrder:
    """The order of an epoch that draws `counts` pairs of each source.

    Each source is gone through again and again, every time in a new order, and each epoch begins where the one before
    ended: no pair comes a second time before all others of its source came once. Sources are mixed evenly at random.

    window : see `shuffled`.
    """
    mixing = np.random.default_rng([seed, _MIXING, epoch])
    source = np.repeat(np.arange(len(sizes)), counts)
    mixing.shuffle(source)
    pair, visit = np.empty_like(source), np.empty_like(source)
    for number, (size, count) in enumerate(zip(sizes, counts.tolist(), strict=True)):
        here = source == number
        begin, end = epoch * count, (epoch + 1) * count
        rounds = range(begin // size, -(-end // size)) if count else ()
        orders = [shuffled(size, window, np.random.default_rng([seed, _ORDER, number, one])) for one in rounds]
        pair[here] = np.concatenate([*orders, np.empty(0, np.int64)])[begin % size :][:count]
        visit[here] = np.arange(begin, end) // size
    return EpochOrder(source, pair, visit)


def shuffled(
    count: int, window: int, rng: np.random.Generator, block: int = BLOCK_PAIRS
) -> Int64[np.ndarray, " pair"]:
    """0 … count − 1 in random order: wholly where `window` holds them, else so that the disk is read in blocks.

    Blocks of neighbors come in random order; `window` pairs of consecutive blocks are mixed among each other. So a
    window of the order touches window / block places of the disk, instead of as many as it has pairs.
    """
    if count <= window:
        return rng.permutation(count)
    starts = rng.permutation(-(-count // block)) * block
    order = (starts[:, None] + np.arange(block)).ravel()
    order = order[order < count]
    for begin in range(0, count, window):
        order[begin : begin + window] = rng.permutation(order[begin : begin + window])
    return order


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """Whole batches in so many pairs; UserError where there is not one."""
    if pairs < batch_size:
        raise UserError(f"The corpus has {pairs} training pairs, fewer than the batch of {batch_size}.\n"
                        "Give a recipe file with a smaller optimization.batch_size, or build a larger corpus.")
    return pairs // batch_size
