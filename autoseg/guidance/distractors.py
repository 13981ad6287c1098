"""Wrong answers beside a dataset's labels: names of the bank that the dataset does not have."""

from collections.abc import Sequence

import numpy as np

from autoseg.guidance.label_names import content_words, match_key
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.records import COLLINEAR
from autoseg.guidance.text_bank import TextBank


def choose_distractors(bank: TextBank, matched: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """At most `count` names of the bank, drawn from `seed`, in the bank's order.

    matched : the bank's (or the lexicon's) names of the dataset's labels. Left out are these, names that share a word
    of meaning with one of them ("liver tumor" beside "liver", "left kidney" beside "kidney"), and names whose vector is
    nearly a label's.
    """
    taken = {word for name in matched for word in _meaning(name)}
    entries = load_lexicon().entries
    halves = {half for name in matched if name in entries for half in entries[name].halves or ()}
    rows = np.array([row for row, name in enumerate(bank.names) if name in matched or name in halves], int)
    wide = bank.vectors.astype(np.float64)
    near = (wide @ wide[rows].T).max(axis=1) >= COLLINEAR if len(rows) else np.zeros(len(wide), bool)
    free = [row for row, name in enumerate(bank.names) if not near[row] and not taken & _meaning(name)]
    chosen = np.random.default_rng([seed, count]).permutation(len(free))[:count]
    return tuple(bank.names[free[position]] for position in sorted(chosen))


def _meaning(name: str) -> set[tuple[str, ...]]:
    """The words of meaning, a plural as its singular ("hemorrhages" beside "hemorrhage")."""
    return {match_key(word) for word in content_words(name)}
