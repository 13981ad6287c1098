"""Iterative stratification (Sechidis, Tsoumakas, Vlahavas, ECML PKDD 2011): every label's share in every fold."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

Presence = Mapping[str, frozenset[str]]
"""A patient (or case) → the labels that it has; without background."""

DRAWS = 20


def stratified_blocks(presence: Presence, folds: int, seed: int) -> list[list[str]]:
    """Every patient in one of `folds` blocks, so that each label is spread as evenly as a greedy choice can.

    Chance breaks ties. Of 20 draws the first is taken that leaves the fewest gaps. A function of the arguments alone.

    Parameters
    ----------
    presence : patient → its labels; at least `folds` patients.
    """
    names = sorted(presence)
    labels = sorted({label for found in presence.values() for label in found})
    present = np.array([[label in presence[name] for label in labels] for name in names], bool).reshape(len(names), -1)
    drawn = []
    for draw in range(DRAWS):
        blocks = _one_draw(present, folds, np.random.default_rng([seed, draw]))
        drawn.append([[name for name, found in zip(names, blocks, strict=True) if found == block]
                      for block in range(folds)])
    return min(drawn, key=lambda blocks: len(gaps(blocks, presence)))


def gaps(blocks: Sequence[Sequence[str]], presence: Presence) -> list[tuple[str, int]]:
    """(label, block) where a fold lacks a label that it could have; sorted.

    A block is held out once, and the others train. It lacks a label if none of its patients has it, though there are at
    least as many such patients as blocks; or if all that have it, two or more, are in it, so that none trains.
    """
    return [(label, block) for label, found in label_counts(blocks, presence).items()
            for block, count in enumerate(found)
            if (count == 0 and sum(found) >= len(blocks)) or (count == sum(found) and count > 1)]


def label_counts(blocks: Sequence[Sequence[str]], presence: Presence) -> dict[str, tuple[int, ...]]:
    """Label → in how many patients of each block it occurs; labels sorted."""
    labels = sorted({label for block in blocks for patient in block for label in presence[patient]})
    return {label: tuple(sum(label in presence[patient] for patient in block) for block in blocks) for label in labels}


def _one_draw(
    present: Bool[np.ndarray, "patient label"], folds: int, rng: np.random.Generator
) -> list[int]:
    """The block of every patient."""
    blocks = [-1] * len(present)
    left = np.ones(len(present), bool)
    order = rng.permutation(len(present))
    wanted = np.full(folds, len(present) / folds)  # patients that a block should still get
    wanted_of = np.repeat(present.sum(0)[:, None] / folds, folds, axis=1)  # and patients with a label
    while left.any():
        remaining = present[left].sum(0)
        # The rarest label first: later ones have more patients left to make up for what it upset.
        rarest = int(np.argmin(np.where(remaining > 0, remaining, len(present) + 1))) if remaining.any() else None
        for patient in order[left[order] & (True if rarest is None else present[order, rarest])]:
            block = _most_wanting(wanted if rarest is None else wanted_of[rarest], wanted, rng)
            blocks[patient] = block
            left[patient] = False
            wanted[block] -= 1
            wanted_of[present[patient], block] -= 1
    return blocks


def _most_wanting(
    first: Float[np.ndarray, " block"], second: Float[np.ndarray, " block"], rng: np.random.Generator
) -> int:
    """The block with the largest `first`; among equals the largest `second`; among these one by chance."""
    best = np.flatnonzero(np.isclose(first, first.max()))
    best = best[np.isclose(second[best], second[best].max())]
    return int(rng.choice(best))
