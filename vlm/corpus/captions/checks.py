"""Whether a sentence about an image fits its labels: what a caption must name, and what it must not say."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from vlm.corpus.captions.saying import CACHED_SETS, NAMED_AT_MOST, adjective, names_of, said_of
from vlm.corpus.captions.tables import Label, LabelTable
from vlm.corpus.rows import LabelSet
from vlm.schema import Modality

FEWEST_WORDS = 3
"""As "Normal chest radiograph." has."""
MOST_WORDS = 60
LONGEST_TOKENS = 64
"""Words and punctuation marks: a sentence of so many fits the text encoder's window several times over."""

MODALITY_WORDS: dict[Modality, str] = {
    "X-ray": r"x[- ]?rays?|radiograph\w*|roentgen\w*|plain films?",
    "CT": r"(?-i:CT|CTA|HRCT)|computed tomograph\w*|computeri[sz]ed tomograph\w*|cat scans?",
    "MRI": r"mris?|(?-i:MR)|magnetic[- ]resonance",
    "Ultrasound": r"ultraso\w+|sonogra\w+|echogra\w+|(?-i:US)|echocardiogra\w+",
    "Pathology": r"histo\w*|micrographs?|photomicrographs?|microscop\w*|pathology|cytolog\w*|h&e|he-stained|stained|"
                 r"biops\w+|smears?|whole[- ]slide|immunohisto\w*",
    "Fundus": r"fundus|funduscop\w*|fundoscop\w*|ophthalmoscop\w*|retinal (?:image|photo|photograph|picture|scan)\w*|"
              r"retinography|color photograph of the retina",
    "mixed": r"image\w*|figures?|scans?|photograph\w*|pictures?|micrographs?",
}
"""Any of these names the modality. A caption of a mixed source may name any modality."""

_SHARP: tuple[Modality, ...] = ("X-ray", "CT", "MRI", "Ultrasound")
"""Modalities whose words mean nothing else: a caption of one must not name another."""

_JUNK = (
    (re.compile(r"[^\S ]|[\x00-\x1f\x7f\ufffd\u200b-\u200f\ufeff\ud800-\udfff]"), "a control or broken character"),
    (re.compile(r"  |^ | $"), "doubled or outer spaces"),
    (re.compile(r"[{}<>\[\]|*_#`~]|\\|https?:"), "marks of a template or of a markup language"),
    (re.compile(r"\b(\w+) \1\b(?<!had had)(?<!that that)", re.IGNORECASE), "a doubled word"),
    (re.compile(r"\.\.|,,|;;| [.,;:](?: |$)|,\.|;\.|:\."), "broken punctuation"),
    (re.compile(r"\b(?:none|nan|null|n/a|tbd|lorem)\b", re.IGNORECASE), "a placeholder"),
    (re.compile(r"\b(?:as an ai|language model|i cannot|i can't|i'm sorry|here (?:is|are)|captions?|"
                r"label(?:s|ed)?|data ?set)\b|\bsure[,!]", re.IGNORECASE), "words about the task"),
    (re.compile(r"\b[Aa] (?=[aeio]\w)(?!one|once|eu|ewe)|\b[Aa]n (?=[bcdfgjklpqtvwyz][a-z])"), "a wrong article"),
)

# What is between a negation and a finding ends its reach.
_BREAK = re.compile(
    r"\b(?:but|however|whereas|while|although|though|except|apart|with|shows?|showing|reveals?|demonstrat\w+|is|are|was|were|has)\b")
_FALSE_NEGATIONS = re.compile(
    r"\b(?:not only|no other|no further|no additional|no change in|no larger|not (?:be )?(?:excluded|ruled out))\b")
_HEDGED_AFTER = re.compile(
    r"(?:can ?not|can't|could not|not) be (?:\w+ )?(?:excluded|ruled out|decided)|not (?:excluded|ruled out)|"
    r"(?:is|are) (?:also )?(?:possible|suspected|questioned|likely|uncertain|unclear|equivocal|conceivable)|"
    r"(?:possible|suspected|questionable|uncertain)$")
_NOT_EXCLUDED = re.compile(r"\b(?:cannot|can not|can't|does not|do not) (?:exclude|rule out)\b")
_HEDGED_BEFORE = re.compile(
    r"\b(?:possibl\w+|possibility|suspect\w*|suspicio\w+|question\w*|equivocal|may|might|could|likely|probabl\w+|"
    r"suggest\w*|uncertain\w*|unclear|whether|concern\w*|potential\w*|presum\w+|"
    r"indeterminate)\b")
_NEGATED_BEFORE = re.compile(
    r"\b(?:no|not|without|neither|nor|never|absen(?:ce|t)|lack\w*|free of|negative for|rules? out|excludes?)\b")
_NEGATED_AFTER = re.compile(
    r"^(?:(?!\b(?:is|are|was|were|but|with|whereas|while)\b)[^.;:])*"
    r"\b(?:is|are|was|were) (?:not (?!excluded|ruled out)|absent|excluded|ruled out)")
_NORMAL = re.compile(
    r"\b(?:normal|unremarkable|healthy|intact|no (?:acute |significant |focal |evidence of |an |other )*(?:[a-z]+ )?"
    r"(?:abnormalit(?:y|ies)|disease|pathology|findings?))\b|\bwithout (?:[a-z]+ )*abnormalit")

Status = Literal["stated", "possible", "denied"]


def check_caption(text: str, labels: LabelSet, table: LabelTable | None) -> str | None:
    """Why a caption cannot be used, for a person; None where it can.

    It must be clean English of moderate length, name the modality and (up to five of) the present findings, state no
    uncertain finding as a fact, deny nothing that is present, assert nothing that is absent, and call nothing normal
    beside a disease. Findings are found by the table's phrases; other words for them are not understood.
    """
    return _form_problem(text) or _modality_problem(text, labels, table) or _content_problem(text, labels, table)


def drop_near_duplicates(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts, in order, without those that equal an earlier one but for case, punctuation and articles."""
    kept = dict[tuple[str, ...], str]()
    for text in texts:
        kept.setdefault(normalized(text), text)
    return tuple(kept.values())


@lru_cache(maxsize=CACHED_SETS)
def normalized(text: str) -> tuple[str, ...]:
    """The words of a text in small letters, without articles."""
    return tuple(word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the", "this"))


def tokens_of(text: str) -> list[str]:
    """Words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def _form_problem(text: str) -> str | None:
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return f"it has {len(words)} words; {FEWEST_WORDS} are the fewest"
    if len(words) > MOST_WORDS or len(tokens_of(text)) > LONGEST_TOKENS:
        return f"it is longer than {MOST_WORDS} words or {LONGEST_TOKENS} words and punctuation marks"
    for pattern, problem in _JUNK:
        if match := pattern.search(text):
            return f"it has {problem}: {match[0]!r}"
    if not (text[0].isupper() or text[0].isdigit()):
        return "it does not begin with a capital letter"
    return None if text[-1] == "." else "it does not end with a period"


def _modality_problem(text: str, labels: LabelSet, table: LabelTable | None) -> str | None:
    modality = labels.modality
    named = {name for name, words in _MODALITY_PATTERNS.items() if words.search(text)}
    if not (named if modality == "mixed" else modality in named):
        return f"it does not name the modality, {modality}"
    if modality not in _SHARP:
        return None
    said, rest = said_of(labels, table), text
    for label in said.present + said.uncertain + said.absent:
        rest = _pattern(label).sub(" ", rest)  # a finding's own name may hold such a word
    others = [name for name in _SHARP if name != modality and _MODALITY_PATTERNS[name].search(rest)]
    return f"it names another modality, {others[0]}" if others else None


def _content_problem(text: str, labels: LabelSet, table: LabelTable | None) -> str | None:
    said = said_of(labels, table)
    wrong = (*said.absent, *said.denials, *_rival_labels(labels, table), *map(_denial_of, said.normals))
    statuses = _mentions(_spelled(text), (*said.findings, *said.regions, *said.uncertain, *wrong))
    for label in said.findings + said.regions:
        if "denied" in statuses[label]:
            return f"it denies {_name(label)}, which is present"
    for label in said.uncertain:
        if "stated" in statuses[label]:
            return f"it states {_name(label)} as a fact, which is uncertain"
        if "denied" in statuses[label]:
            return f"it denies {_name(label)}, which is uncertain"
    for label in wrong:
        if {"stated", "possible"} & set(statuses[label]):
            return f"it asserts {_name(label)}, which is absent"
    missing = [label for label in (*said.findings, *said.regions, *said.denials) if not statuses[label]]
    allowed = max(0, len(said.findings) - NAMED_AT_MOST)
    if len(missing) > allowed:
        return f"it does not name {_name(missing[0])}"
    return _normality_problem(text, labels, table)


def _normality_problem(text: str, labels: LabelSet, table: LabelTable | None) -> str | None:
    said = said_of(labels, table)
    spelled = _spelled(text)
    if said.normals:
        own = [name for label in said.normals for name in label.names]
        words = "|".join([_NORMAL.pattern, *(rf"\b{re.escape(_spelled(name))}" for name in own)])
        return None if re.search(words, spelled) else "it does not say that the image is normal"
    if any(not label.neutral for label in said.findings):
        for label in said.findings + said.uncertain + said.absent + said.denials:
            spelled = _pattern(label).sub(" ", spelled)
        if match := _NORMAL.search(spelled):
            return f"it says {match[0]!r} beside a finding"
    return None


def _mentions(spelled: str, labels: Sequence[Label]) -> dict[Label, list[Status]]:
    """How each label is mentioned, for every mention; of overlapping ones the longest counts."""
    found = sorted(((match.start(), match.end(), label) for label in dict.fromkeys(labels)
                    for match in _pattern(label).finditer(spelled)), key=lambda hit: hit[0] - hit[1])
    taken: list[tuple[int, int]] = []
    hits: list[tuple[int, int, Label]] = []
    for start, end, label in found:
        if all((end <= first or last <= start) or (first, last) == (start, end) for first, last in taken):
            taken.append((start, end))
            hits.append((start, end, label))
    # A name's own words ("retinopathy with hemorrhage") say nothing about how it or another one is meant.
    masked = spelled
    for start, end in taken:
        masked = masked[:start] + "x" * (end - start) + masked[end:]
    statuses: dict[Label, list[Status]] = {label: [] for label in labels}
    for start, end, label in hits:
        statuses[label].append(_status(masked, start, end))
    return statuses


def _status(spelled: str, start: int, end: int) -> Status:
    """Whether a mention is a statement, a possibility or a denial: by the words around it, within its clause."""
    before = re.split(r"[.;:!?]", spelled[:start])[-1]
    after = re.split(r"[.;:!?]", spelled[end:])[0]
    if _HEDGED_AFTER.search(after.strip()):
        return "possible"
    before = _NOT_EXCLUDED.sub("possible", _FALSE_NEGATIONS.sub("other", before))
    cues = list(_NEGATED_BEFORE.finditer(before))
    if cues and not _BREAK.search(before[cues[-1].end():]):
        return "denied"
    if _NEGATED_AFTER.search(after):
        return "denied"
    return "possible" if _HEDGED_BEFORE.search(before) else "stated"


@lru_cache(maxsize=CACHED_SETS)
def _denial_of(label: Label) -> Label:
    """What a normal label denies, as a label of its own."""
    return Label(kind="denial", denied=label.denied or ("abnormality",))


@lru_cache(maxsize=CACHED_SETS)
def _pattern(label: Label) -> re.Pattern[str]:
    """Finds every name of a label in a spelled text, singular or plural."""
    places = [adjective(label.anatomy), label.anatomy] if label.kind == "region" and label.anatomy else []
    names = [*label.names, *places]
    if not names:
        return re.compile(r"(?!)")
    texts = sorted({re.escape(_spelled(name)).replace(r"\ ", r"[\s\-/_]+") for name in names}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(texts)})(?:s|es)?(?!\w)", re.IGNORECASE)


@lru_cache(maxsize=CACHED_SETS)
def _rival_labels(labels: LabelSet, table: LabelTable | None) -> tuple[Label, ...]:
    """Findings that cannot be true beside a present label, but for those that are called like a present one."""
    if table is None:
        return ()
    keys = {key for name in labels.present if (key := table.key_of(name)) is not None}
    rivals = dict.fromkeys(other for key in sorted(keys) for other in sorted(table.rivals[key] - keys))
    said = names_of(said_of(labels, table).present)
    return tuple(label for label in (table.labels[name] for name in rivals)
                 if label.kind == "finding" and not said & names_of((label,)))


@lru_cache(maxsize=CACHED_SETS)
def _spelled(text: str) -> str:
    """A text in small letters, with one space for every run of hyphens, slashes, commas' spaces and the like."""
    return re.sub(r"[\s\-\u2010-\u2015/_]+", " ", text.lower())


def _name(label: Label) -> str:
    return label.names[0] if label.names else label.kind


_MODALITY_PATTERNS = {name: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for name, words in MODALITY_WORDS.items()}
