"""Retrieval on the captions of a set's test images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vlm.evaluation.metrics import estimate_mean, score_of
from vlm.model.records import Score
from vlm.model.retrieval import DIRECTIONS, rank_pairs

AT = (1, 5, 10)


def retrieval_recall(
    images: Float[np.ndarray, "pair dimension"], texts: Float[np.ndarray, "pair dimension"], captions: Sequence[str],
    groups: Int[np.ndarray, " pair"], rng: np.random.Generator, resamples: int,
) -> dict[str, dict[int, Score]]:
    """Recall at 1, 5 and 10 in both directions, with 95 % intervals over patients, and what chance would give.

    Pairs with identical captions count as correct for each other.
    """
    ranks = rank_pairs(images, texts, captions)
    return {
        direction: {k: score_of(estimate_mean(ranks.hits(direction, k), groups, rng, resamples),
                                ranks.chance(direction, k)) for k in AT}
        for direction in DIRECTIONS
    }
