"""Label names as datasets write them → plain words with the side in front, and keys that compare spellings."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from autoseg.guidance.records import Side

SIDES: dict[str, Side] = {
    **dict.fromkeys(("left", "l", "lt", "lh", "lft", "sin", "sinister", "sinistra", "sinistrum"), "left"),
    **dict.fromkeys(("right", "r", "rt", "rh", "rgt", "dex", "dexter", "dextra", "dextrum"), "right"),
}
"""Words of side. As single letters they are words only where they stand alone ("L_Kidney", not "L3")."""

ABBREVIATIONS = {
    "ant": "anterior", "art": "artery", "clavicula": "clavicle", "ctx": "cortex", "glnd": "gland", "inf": "inferior",
    "lat": "lateral", "musc": "muscle", "nrv": "nerve", "post": "posterior", "sup": "superior", "vena": "vein",
    "vent": "ventricle", "vert": "vertebra",
}
"""Word by word; whole names' abbreviations ("IVC") stand in the lexicon."""

SPELLINGS = (
    (r"^(o)(esoph|edema)", r"\2"), (r"tumour", "tumor"), (r"haem", "hem"), (r"^caec", "cec"), (r"^coeliac", "celiac"),
    (r"grey", "gray"), (r"^fibre", "fiber"), (r"ischaem", "ischem"), (r"leucocyt", "leukocyt"), (r"^disk", "disc"),
    (r"^foet", "fet"), (r"centre", "center"),
)
"""British → American, in a word."""

PLURALS = {
    "vertebrae": "vertebra", "testes": "testis", "bronchi": "bronchus", "femora": "femur", "scapulae": "scapula",
    "clavicles": "clavicle", "nuclei": "nucleus", "metastases": "metastasis", "pelves": "pelvis", "humeri": "humerus",
    "ventricles": "ventricle", "venae": "vein", "bronchia": "bronchus", "phalanges": "phalanx", "thrombi": "thrombus",
}
"""Plurals that do not end in s, or whose singular is not what is left without it."""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
            "twelfth")
_NUMBERS = {word: str(number) for number, word in enumerate(ORDINALS, 1)}

LINKING_WORDS = frozenset({"a", "an", "and", "in", "of", "on", "or", "the", "to", "with"})
"""Say nothing about which structure is meant."""

EMPTY_WORDS = frozenset({
    "area", "class", "foreground", "label", "labels", "lbl", "mask", "object", "organ", "organs", "other", "others",
    "part", "region", "roi", "seg", "segment", "segmentation", "structure", "structures", "target", "thing", "tissue",
    "unknown", "unlabeled", "value", "void", "x",
})
"""A name that has no other words than these (and numbers) does not say what it means."""

BACKGROUND = frozenset({"background", "bg", "ignore"})

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\d)(?=[A-Z][a-z])")
_NUMBER_BEHIND = re.compile(r"(?<=[a-z]{3})(?=\d)")
_SPINE = re.compile(r"c|t|th|l|s")
_SPINE_LEVEL = re.compile(r"th(\d{1,2})")


def normalize(name: str) -> str:
    """A label name in plain small letters, its side in front.

    "kidney_left", "LeftKidney", "L_Kidney", "kidney (L)" and "lt. kidney" are "left kidney"; "vertebrae_L3" is
    "vertebra l3", "rib_left_4" and "4th left rib" are "left rib 4" and "left 4 rib". Both sides in one name are none.
    Normalizing twice changes nothing.
    """
    side, words = _sided(_split(name))
    return " ".join([side, *words] if side else words)


def match_key(name: str) -> tuple[str, ...]:
    """Equal for spellings of one name: its words without linking words and plurals, sorted, behind its side."""
    side, words = _sided(_split(name))
    kept = [word for word in words if word not in LINKING_WORDS] or words
    return (side or "", *sorted(_singular(word) for word in kept))


def compact(name: str) -> str:
    """A name's letters and digits in one run, for names whose words are glued ("leftkidney", "LVmyo")."""
    return "".join(re.findall(r"[^\W_]+", _plain(name)))


def content_words(name: str) -> tuple[str, ...]:
    """The words of a name that say what it means: no linking words, no `EMPTY_WORDS`, no bare numbers."""
    return tuple(word for word in normalize(name).split()
                 if word not in LINKING_WORDS | EMPTY_WORDS and word not in SIDES.values() and not word.isdigit())


def is_opaque(name: str) -> bool:
    """Whether a name does not say what it stands for: "label_1", "structure", "roi 3", "7"."""
    return not content_words(name)


def is_background(name: str) -> bool:
    """Whether a name means what is no structure: "background", "ignore"."""
    return normalize(name) in BACKGROUND


def _split(name: str) -> list[str]:
    """Words in small letters, abbreviations and British spellings replaced, ordinals as numbers."""
    pieces = re.findall(r"[^\W_]+", _plain(_CAMEL.sub(" ", name)))
    words = [word for piece in pieces for word in _NUMBER_BEHIND.split(piece)]
    return " ".join(_word(word) for word in words).split()


def _plain(text: str) -> str:
    """Small letters without accents; a second round, because small letters of some scripts have accents again."""
    if text.isascii():
        return text.lower()
    for _ in range(2):
        letters = unicodedata.normalize("NFKD", text)
        text = "".join(one for one in letters if not unicodedata.combining(one)).casefold()
    return text


@lru_cache(maxsize=10_000)
def _word(word: str) -> str:
    if ordinal := re.fullmatch(r"(\d+)(?:st|nd|rd|th)", word):
        return ordinal[1]
    if level := _SPINE_LEVEL.fullmatch(word):
        return f"t{level[1]}"
    for pattern, american in SPELLINGS:
        word = re.sub(pattern, american, word)
    word = ABBREVIATIONS.get(word, word)
    return _NUMBERS.get(word, PLURALS.get(word, word))


def _sided(words: Sequence[str]) -> tuple[Side | None, list[str]]:
    """(the side, the other words). A spine's letter and number are one word: in "vertebra L 3", L is no side."""
    joined = _join_levels(words)
    sides = {SIDES[word] for word in joined if word in SIDES}
    others = [word for word in joined if word not in SIDES]
    if not others:  # a name that is only a side has nothing else to be found by
        return None, joined
    if sides == {"left", "right"} or {"both", "bilateral"} & set(others):
        others = [word for word in others if word not in ("and", "both", "bilateral")] or others
        return None, _join_levels(others)
    return (sides.pop() if sides else None), _join_levels(others)


def _join_levels(words: Iterable[str]) -> list[str]:
    """`words` with a vertebra's or disc's letter and number made one word."""
    words = list(words)
    if not any(word in ("vertebra", "vertebral", "disc", "discs") for word in words):
        return words
    joined: list[str] = []
    for word in words:
        if joined and word.isdigit() and _SPINE.fullmatch(joined[-1]):
            joined[-1] = f"{joined[-1].removesuffix('h')}{word}"
        else:
            joined.append(word)
    return joined


def _singular(word: str) -> str:
    """Without the s of a plural; the same for a word that only looks like one, so that both sides of a comparison
    agree."""
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
