"""Retrieval both ways between images and captions, pairs of identical captions counting as correct; and its chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

Direction = Literal["image_to_text", "text_to_image"]
DIRECTIONS: tuple[Direction, ...] = ("image_to_text", "text_to_image")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Ranks:
    """Where each pair's right answer comes, from 1.

    image_to_text : the rank of the image's caption among all distinct captions. text_to_image : the best rank of an
    image that has this caption, among all images. twins : images that have this caption. captions : distinct ones.
    """

    image_to_text: Int64[np.ndarray, " pair"]
    text_to_image: Int64[np.ndarray, " pair"]
    twins: Int64[np.ndarray, " pair"]
    captions: int

    def hits(self, direction: Direction, k: int) -> Float64[np.ndarray, " pair"]:
        """1 for each pair whose right answer is among the first k, else 0; their mean is the recall R@k."""
        ranks = self.image_to_text if direction == "image_to_text" else self.text_to_image
        return np.asarray(ranks <= k, np.float64)

    def mean_hits(self, k: int) -> Float64[np.ndarray, " pair"]:
        """The mean of both directions, for each pair."""
        return np.asarray((self.hits("image_to_text", k) + self.hits("text_to_image", k)) / 2, np.float64)

    def chance(self, direction: Direction, k: int) -> float:
        """The recall that answers in random order are expected to have."""
        pairs = len(self.twins)
        if direction == "image_to_text":
            return min(1.0, k / self.captions)
        drawn = min(k, pairs)
        missed = [comb(pairs - twins, drawn) / comb(pairs, drawn) for twins in self.twins.tolist()]
        return 1.0 - float(np.mean(missed))

    def mean_chance(self, k: int) -> float:
        """The mean of both directions."""
        return (self.chance("image_to_text", k) + self.chance("text_to_image", k)) / 2


def rank_pairs(
    images: Float[np.ndarray, "pair dimension"], texts: Float[np.ndarray, "pair dimension"], captions: Sequence[str]
) -> Ranks:
    """Ranks of the right answers by cosine similarity.

    A wrong answer that is as similar as the right one counts as if it came before it: an encoder that gives every
    image the same embedding finds nothing. So does one that gives numbers that are none.

    Parameters
    ----------
    images, texts : unit length; row i of `texts` is the embedding of `captions[i]`, the caption of image i.
    """
    first, number = _numbered(captions)
    distinct = texts[first]
    to_text, to_image = np.empty(len(captions), np.int64), np.empty(len(captions), np.int64)
    best_image = np.empty(len(first))
    for begin in range(0, len(first), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        similar = distinct[rows] @ images.T
        right = number[None, :] == np.arange(len(first))[rows, None]
        best = np.where(right, similar, -np.inf).max(1)
        best_image[rows] = 1 + (~(similar < best[:, None]) & ~right).sum(1)
    to_image[:] = best_image[number]
    for begin in range(0, len(captions), ROWS_AT_ONCE):
        rows = slice(begin, begin + ROWS_AT_ONCE)
        similar = images[rows] @ distinct.T
        own = np.take_along_axis(similar, number[rows, None], 1)
        to_text[rows] = (~(similar < own)).sum(1)  # counts the right one itself
    return Ranks(to_text, to_image, np.bincount(number, minlength=len(first))[number].astype(np.int64), len(first))


def bootstrap_interval(
    values: Float64[np.ndarray, " pair"], groups: Int64[np.ndarray, " pair"] | None = None, draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the mean of values, from draws of as many groups with replacement.

    groups : number of each pair's group, from 0 (pairs of one patient are alike); None: every pair is its own.
    """
    numbers = np.arange(len(values)) if groups is None else groups
    sums, sizes = np.bincount(numbers, values), np.bincount(numbers)
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(sums), size=len(sums)) for _ in range(draws)]
    low, high = np.percentile([sums[one].sum() / sizes[one].sum() for one in drawn], [2.5, 97.5])
    return float(low), float(high)


def _numbered(captions: Sequence[str]) -> tuple[Int64[np.ndarray, " caption"], Int64[np.ndarray, " pair"]]:
    """(where each distinct caption comes first, the number of each pair's caption)."""
    numbers: dict[str, int] = {}
    number = np.array([numbers.setdefault(caption, len(numbers)) for caption in captions], np.int64)
    first = np.full(len(numbers), -1, np.int64)
    for place in range(len(captions) - 1, -1, -1):
        first[number[place]] = place
    return first, number
