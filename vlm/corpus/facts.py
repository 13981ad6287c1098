"""What is known of every image before duplicates and leaks are decided, and what is decided: arrays with a row each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vlm.schema import Modality, Split

MODALITIES: tuple[Modality, ...] = get_args(Modality)
SPLITS: tuple[Split, ...] = get_args(Split)
"""In order of strength: what is in a later one is kept out of the earlier ones."""

MIXED = MODALITIES.index("mixed")

FACTS = np.dtype([
    ("source", "<i2"), ("row", "<i8"), ("sha256", "<u8", 4), ("phash", "<u8", 4), ("mirrored", "<u8", 4),
    ("modality", "i1"), ("split", "i1"), ("patient", "<u8"), ("article", "<u8"),
])
"""124 bytes for an image. source : position in the build's list. modality, split : positions in MODALITIES, SPLITS.
mirrored : perceptual hash of the image flipped left to right. patient, article : 0 is unknown, else `name_hash` of
(source, patient) and of the article's id."""

Facts = NDArray[Any]
"""Array of FACTS, in order of preference; may be a memory map."""


class Fate(IntEnum):
    """What becomes of an image."""

    KEPT = 0
    EXACT = 1
    NEAR = 2
    ARTICLE = 3
    PATIENT_SPLIT = 4
    LEAK_IMAGE = 5
    LEAK_PATIENT = 6
    LEAK_ID = 7


LEAKS = (Fate.LEAK_IMAGE, Fate.LEAK_PATIENT, Fate.LEAK_ID)


@dataclass(frozen=True)
class Decisions:
    """What becomes of every fact; arrays [fact].

    fate : a `Fate`. of : EXACT, NEAR, ARTICLE, PATIENT_SPLIT: a fact that is the reason; LEAK_IMAGE: the image of the
    evaluation set; else -1. distance : differing bits of EXACT, NEAR and LEAK_IMAGE, else -1.
    evaluation : position of the evaluation set of a leak, else -1.
    """

    fate: NDArray[np.int8]
    of: NDArray[np.int64]
    distance: NDArray[np.int16]
    evaluation: NDArray[np.int16]


def name_hash(*names: str) -> int:
    """A number of 64 bits, never 0, from names: equal names, equal number."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") or 1


def first_of_equals(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """For each row the first row that equals it in every column (itself where there is none before)."""
    order = np.lexsort(tuple(columns))
    begins = np.ones(len(order), bool)
    if len(order):
        begins[1:] = np.logical_or.reduce([column[order[1:]] != column[order[:-1]] for column in columns])
    firsts = np.empty(len(order), np.int64)
    firsts[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]  # lexsort keeps the order of equal rows
    return firsts


def words(hashes: NDArray[Any]) -> list[NDArray[Any]]:
    """The columns of hashes [row, word]."""
    return [np.ascontiguousarray(hashes[:, word]) for word in range(hashes.shape[1])]


def sha256_words(digest: str) -> NDArray[np.uint64]:
    """The four words of 64 hexadecimal digits, the first digits in the first word."""
    return np.frombuffer(bytes.fromhex(digest), ">u8").astype(np.uint64)
