"""Labels that differ only in side: where they exist, mirroring along left-right would swap them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

LEFT_RIGHT_WORDS = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("lft", "rgt"),
    ("sinister", "dexter"),
    ("sinistra", "dextra"),
    ("sinistrum", "dextrum"),
    ("sin", "dex"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("gauche", "droit"),
    ("gauche", "droite"),
    ("izquierdo", "derecho"),
    ("izquierda", "derecha"),
)
SHORTEST_GLUED_WORD = 4
"""Words of side this long are also found glued to the name ("leftkidney"); "l" and "lt" are not."""

HEART_ROOTS = (
    "ventric", "ventrik", "atrium", "atria", "heart", "myocard", "vorhof", "oreillette", "auricula",
)
"""The heart's chambers are named left and right, but they are different structures: the left ventricle is a
thick round wall under high pressure, the right one a thin crescent around it, and the atria differ in their
veins. They do not lie mirrored in the body either, so a mirrored heart is not a heart with its labels
swapped, and what tells the chambers apart survives mirroring. nnU-Net mirrors hearts too. Names with one of
these roots are never paired, whatever language of those above they are in."""

BRAIN_WORDS = frozenset({"lateral", "brain", "cerebral"})
"""The brain has ventricles as well, and these are a mirrored pair: "left lateral ventricle"."""

ABBREVIATED_CHAMBERS = frozenset({
    "lv", "rv", "la", "ra", "lvm", "rvm", "lvc", "rvc", "lvmyo", "rvmyo", "lvbp", "rvbp", "lvv", "rvv",
    "laa", "raa",
})
"""Chambers as cardiologists write them, with their wall, cavity and blood pool: never paired, as above."""


def find_sided_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs (left, right) of label names that are equal but for one word of side; ordered by the left.

    "left_kidney"/"right_kidney", "kidney_L"/"kidney_R", "Lung left upper lobe"/"Lung right upper lobe",
    "LeftKidney"/"RightKidney", "leftkidney"/"rightkidney". Words are separated by anything but letters and
    digits or by a change to upper case; letters' case and accents do not matter. Chambers of the heart are
    never paired (see `HEART_ROOTS`).
    """
    words = {name: split_words(name) for name in names if not _is_heart_chamber(name)}
    return tuple(
        (left, right)
        for left, left_words in words.items()
        for right, right_words in words.items()
        if _differ_in_side(left_words, right_words)
    )


def split_words(name: str) -> tuple[str, ...]:
    """The lower-case words of a label name without accents: "LeftKidney_2" is ("left", "kidney", "2")."""
    return _plain_words(re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name))


def _plain_words(name: str) -> tuple[str, ...]:
    letters = "".join(one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    return tuple(word.casefold() for word in re.split(r"[\W_]+", letters) if word)


def _differ_in_side(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether `right` is `left` with exactly one word of the left replaced by its counterpart."""
    if len(left) != len(right):
        return False
    different = [(one, other) for one, other in zip(left, right, strict=True) if one != other]
    return len(different) == 1 and any(_replaced(*different[0], *sides) for sides in LEFT_RIGHT_WORDS)


def _replaced(word: str, other: str, left: str, right: str) -> bool:
    """Whether `other` is `word` with `left` replaced by `right`: the whole word, or its start or end."""
    if (word, other) == (left, right):
        return True
    if len(left) < SHORTEST_GLUED_WORD:
        return False
    return (word.startswith(left) and other == right + word.removeprefix(left)) or (
        word.endswith(left) and other == word.removesuffix(left) + right
    )


def _is_heart_chamber(name: str) -> bool:
    words = set(split_words(name)) | set(_plain_words(name))
    if words & ABBREVIATED_CHAMBERS:
        return True
    return any(root in word for word in words for root in HEART_ROOTS) and not words & BRAIN_WORDS
