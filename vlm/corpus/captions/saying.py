"""What of a label set a caption says, and how it calls the image."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from vlm.corpus.captions.tables import GENERAL, Label, LabelTable, load_table, words_of
from vlm.corpus.rows import LabelSet

ADJECTIVES = {
    "abdomen": "abdominal", "abdomen and pelvis": "abdominopelvic", "thorax": "thoracic", "uterus": "uterine",
    "ovary": "ovarian", "pancreas": "pancreatic", "kidney": "renal", "aorta": "aortic", "colon": "colonic",
    "spine and musculoskeletal": "musculoskeletal", "reproductive and urinary system": "genitourinary",
    "spine": "spinal", "portal vein": "portal venous",
}
"""Anatomy → what stands before "CT image"; another anatomy stands there itself ("knee MRI")."""

DEFINITE = {
    "spine and musculoskeletal": "the musculoskeletal system", "colorectal": "the colon and rectum",
    "reproductive and urinary system": "the genitourinary system",
}
"""Anatomy → what stands behind "CT image of"; otherwise the anatomy itself with its article."""

VIEWS = {
    "pa": ("PA", "posteroanterior"), "ap": ("AP", "anteroposterior"), "l": ("lateral",), "lat": ("lateral",),
    "ap supine": ("supine AP",), "frontal": ("frontal",), "lateral": ("lateral",),
}
"""View as sources write it → words before the image phrase; other plain words stand for themselves."""

CACHED_SETS = 8192
"""Label sets whose sentences are kept: some megabytes. A source of classes has hundreds, CheXpert some thousand."""

NAMED_AT_MOST = 5
"""Findings of one sentence: more would make a list of it. Of longer label sets each sentence names other five."""

_LETTERS_WITH_VOWEL = "AEFHILMNORSX"
_SOUNDS_LIKE_YOU = ("uni", "ure", "uri", "ute", "usu", "uro", "eu")


@dataclass(frozen=True)
class Said:
    """The labels of a set in words, without those that say the same or follow from another.

    findings : at most one of each. regions, normals, denials : present labels of those kinds. normals is empty beside
    a disease. uncertain, absent : findings only, none of them present or implied;
    absent ones are deniable.
    """

    findings: tuple[Label, ...]
    regions: tuple[Label, ...]
    normals: tuple[Label, ...]
    denials: tuple[Label, ...]
    uncertain: tuple[Label, ...]
    absent: tuple[Label, ...]

    @property
    def present(self) -> tuple[Label, ...]:
        """All that is true of the image."""
        return self.findings + self.regions + self.normals + self.denials


@lru_cache(maxsize=CACHED_SETS)
def said_of(labels: LabelSet, table: LabelTable | None) -> Said:
    """The words of a label set."""
    def words(names: Iterable[str], besides: frozenset[str]) -> tuple[Label, ...]:
        found = [words_of(name, table, labels.modality) for name in names if _key(name, table) not in besides]
        return tuple(_distinct(found))

    implied = _implied(labels.present, table)
    present = words(labels.present, implied)
    settled = implied | {_key(name, table) for name in labels.present} | _rivals(labels.present, table)
    uncertain = _unsaid(words(labels.uncertain, settled | _implied(labels.uncertain, table)), present)
    unsure = settled | _implied(labels.uncertain, table) | {_key(name, table) for name in labels.uncertain}
    absent = tuple(label for label in _unsaid(words(labels.absent, unsure), present + uncertain) if label.deniable)
    findings = _of_kind(present, "finding")
    ill = uncertain or any(not finding.neutral for finding in findings)
    return Said(findings, _of_kind(present, "region"), () if ill else _of_kind(present, "normal"),
                _unsaid_denials(_of_kind(present, "denial"), findings + uncertain), uncertain, absent)


@lru_cache(maxsize=CACHED_SETS)
def image_phrases(labels: LabelSet, table: LabelTable | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How the image may be called, without article: with its anatomy where that is known, and in any case without."""
    said = said_of(labels, table)
    own = next((label for label in said.present if label.images), None)
    phrases = own.images if own is not None else _phrases_of(labels, table)
    anatomy = next((label.anatomy for label in said.present if label.anatomy), labels.anatomy) or (
        table.anatomy if table is not None else None)
    placed = [phrase for phrase in phrases if "{" in phrase]
    plain = tuple(phrase for phrase in phrases if "{" not in phrase)
    if anatomy and placed:
        fields = {"anatomy": adjective(anatomy), "the": definite(anatomy)}
        named = tuple(phrase.format(**fields) for phrase in placed)
    else:
        named = plain
    return _with_view(named, labels.view), _with_view(plain or named, labels.view)


def adjective(anatomy: str) -> str:
    """An anatomy as it stands before a noun: "abdominal"."""
    return ADJECTIVES.get(anatomy, anatomy)


def definite(anatomy: str) -> str:
    """An anatomy as it stands behind "of": "the abdomen"."""
    return DEFINITE.get(anatomy, f"the {anatomy}")


def with_article(phrase: str) -> str:
    """A noun phrase with "a" or "an", by its sound: an MRI, a CT image, an ultrasound image, a uterine X-ray."""
    first = re.split(r"[ \-&]", phrase, maxsplit=1)[0]
    if first.isupper():
        vowel = first[0] in _LETTERS_WITH_VOWEL
    else:
        vowel = first[:1].lower() in "aeiou" and not first.lower().startswith(_SOUNDS_LIKE_YOU)
    return f"{'an' if vowel else 'a'} {phrase}"


def names_of(labels: Iterable[Label]) -> frozenset[str]:
    """All names of labels, in small letters and without a plural's s."""
    return frozenset(name.lower().rstrip("s") for label in labels for name in label.names)


def _phrases_of(labels: LabelSet, table: LabelTable | None) -> tuple[str, ...]:
    if table is not None and labels.modality in table.images:
        return table.images[labels.modality]
    return load_table(GENERAL).images[labels.modality]


def _with_view(phrases: tuple[str, ...], view: str | None) -> tuple[str, ...]:
    key = (view or "").strip().lower()
    words = VIEWS.get(key, (key,) if re.fullmatch(r"[a-z][a-z -]{2,24}", key) else ())
    return tuple(f"{word} {phrase}" for phrase in phrases for word in words) or phrases


def _key(name: str, table: LabelTable | None) -> str:
    return (table.key_of(name) if table is not None else None) or name


def _implied(names: tuple[str, ...], table: LabelTable | None) -> frozenset[str]:
    if table is None:
        return frozenset()
    keys = [key for name in names if (key := table.key_of(name)) is not None]
    return frozenset(other for key in keys for other in table.labels[key].implies)


def _rivals(names: tuple[str, ...], table: LabelTable | None) -> frozenset[str]:
    if table is None:
        return frozenset()
    keys = [key for name in names if (key := table.key_of(name)) is not None]
    return frozenset(other for key in keys for other in table.rivals[key])


def _of_kind(labels: tuple[Label, ...], kind: str) -> tuple[Label, ...]:
    return tuple(label for label in labels if label.kind == kind)


def _distinct(labels: list[Label]) -> list[Label]:
    """Labels of which none has a name that another had before."""
    seen = set[str]()
    distinct = []
    for label in labels:
        names = names_of((label,)) or {label.kind}
        if not names & seen:
            distinct.append(label)
        seen |= names
    return distinct


def _unsaid(labels: tuple[Label, ...], said: tuple[Label, ...]) -> tuple[Label, ...]:
    """Findings among the labels of which nothing is said yet, by any of their names."""
    names = names_of(said)
    return tuple(label for label in labels
                 if label.kind == "finding" and not names & names_of((label,)))


def _unsaid_denials(denials: tuple[Label, ...], said: tuple[Label, ...]) -> tuple[Label, ...]:
    """Denials that contradict no finding: of contradictory labels, what is seen is believed."""
    names = names_of(said)
    return tuple(label for label in denials if not names & names_of((label,)))
