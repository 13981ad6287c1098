"""How the vectors of a dataset's labels lie to each other in training: as the words have it, or as a control has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from autoseg.errors import UserError
from autoseg.guidance.records import COLLINEAR
from autoseg.guidance.text_bank import centered

Geometry = Literal["centred", "raw", "orthonormal", "random", "shuffled", "rotated"]
LATERALITY = 0.5
"""Length of the axis that parts a left from a right vector, before both are made unit length again."""


@dataclass(frozen=True)
class Arranged:
    """Unit vectors of the labels, and of the distractors in the same space (no rows where there are none)."""

    labels: Float32[np.ndarray, "label dimension"]
    distractors: Float32[np.ndarray, "distractor dimension"]


def arrange(
    vectors: Float32[np.ndarray, "label dimension"],
    geometry: Geometry,
    seed: int,
    sided: Sequence[tuple[int, int]] = (),
    distractors: Float32[np.ndarray, "distractor dimension"] | None = None,
) -> Arranged:
    """The labels' vectors as `geometry` has them.

    raw : as they are. centred : without what the labels have in common; distractors lose the same. rotated : centred,
    then turned by a random rotation, which changes no angle: a check, since a free projection undoes it. shuffled :
    centred, then given to other labels; left and right change places. orthonormal, random : by chance, drawn from
    `seed`: no words at all.

    sided : rows (left, right) that differ only in side. Where their cosine is 0.95 or more, words say next to nothing
    about the side; vectors from words then get one more dimension, on which left and right lie apart.

    Raises
    ------
    UserError : one label alone cannot be centred or shuffled; orthonormal vectors of more labels than dimensions.
    """
    nothing = np.zeros((0, vectors.shape[1]), np.float32)
    others = nothing if distractors is None else distractors
    rng = np.random.default_rng([seed, len(vectors)])
    if geometry in ("orthonormal", "random"):
        return Arranged(_by_chance(vectors.shape, geometry, rng), nothing)
    if geometry == "raw":
        return _with_sides(vectors, vectors, others, sided)
    if len(vectors) < 2:
        raise UserError(f"--text-geometry {geometry}: the dataset has one label, and what one label has in common with "
                        "all labels is everything.\nUse --text-geometry raw, whose distractors stand against it.")
    middle = vectors.astype(np.float64).mean(axis=0)
    moved = _unit(others - middle) if len(others) else nothing
    arranged = _with_sides(centered(vectors), vectors, moved, sided)
    if geometry == "shuffled":
        return Arranged(arranged.labels[_derangement(len(vectors), sided, rng)], arranged.distractors)
    if geometry == "rotated":
        rotation = _rotation(arranged.labels.shape[1], rng)
        turned = [np.asarray(rows @ rotation, np.float32) for rows in (arranged.labels, arranged.distractors)]
        return Arranged(turned[0], turned[1])
    return arranged


def collinear_sides(
    vectors: Float32[np.ndarray, "label dimension"], sided: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The pairs (left, right) whose words hardly part them."""
    wide = vectors.astype(np.float64)
    return [(left, right) for left, right in sided if wide[left] @ wide[right] >= COLLINEAR]


def _with_sides(
    rows: Float32[np.ndarray, "label dimension"], raw: Float32[np.ndarray, "label dimension"],
    others: Float32[np.ndarray, "distractor dimension"], sided: Sequence[tuple[int, int]],
) -> Arranged:  # fmt: skip
    if not (pairs := collinear_sides(raw, sided)):
        return Arranged(rows, others)
    axis = np.zeros((len(rows), 1), np.float32)
    for left, right in pairs:
        axis[left], axis[right] = LATERALITY, -LATERALITY
    wider = np.concatenate([others, np.zeros((len(others), 1), np.float32)], axis=1)
    return Arranged(_unit(np.concatenate([rows, axis], axis=1)), wider)


def _by_chance(
    shape: tuple[int, ...], geometry: Geometry, rng: np.random.Generator
) -> Float32[np.ndarray, "label dimension"]:
    labels, dimension = shape
    drawn = rng.normal(size=(labels, dimension))
    if geometry == "random":
        return _unit(drawn)
    if labels > dimension:
        raise UserError(f"--text-geometry orthonormal: {labels} labels, but the bank's vectors have {dimension} "
                        "dimensions; at least as many were expected. Use a bank of more dimensions, or `random`.")
    return np.asarray(np.linalg.qr(drawn.T)[0].T, np.float32)


def _derangement(count: int, sided: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[int]:
    """Which row each label gets: never its own; left and right get each other's, the others a cycle's next."""
    order = list(range(count))
    for left, right in sided:
        order[left], order[right] = right, left
    rest = [int(row) for row in rng.permutation([row for row in range(count) if order[row] == row])]
    if len(rest) == 1:  # one without a partner: it joins a pair, and three change places in a circle
        partner = next(row for row in range(count) if row != rest[0])
        order[rest[0]], order[partner] = order[partner], rest[0]
        return order
    for row, following in zip(rest, rest[1:] + rest[:1], strict=True):
        order[row] = following
    return order


def _rotation(dimension: int, rng: np.random.Generator) -> Float[np.ndarray, "dimension dimension"]:
    orthogonal, upper = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    return np.asarray(orthogonal * np.sign(np.diag(upper)))


def _unit(rows: Float[np.ndarray, "row dimension"]) -> Float32[np.ndarray, "row dimension"]:
    wide = np.asarray(rows, np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)
