"""Captions from labels by a grammar: deterministic, offline, and checked by the same rules as a model's."""

import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import gcd

from vlm.corpus.captions.checks import LONGEST_TOKENS, drop_near_duplicates, tokens_of
from vlm.corpus.captions.patterns import (
    ABSENT,
    ABSENT_TAILS,
    FINDINGS,
    LOCATED,
    NORMAL,
    NORMAL_BESIDE,
    OF_DISEASE,
    OF_ONE,
    OF_SEVERAL,
    REGION,
    UNCERTAIN,
    UNCERTAIN_TAILS,
)
from vlm.corpus.captions.saying import CACHED_SETS, NAMED_AT_MOST, Said, image_phrases, said_of, with_article
from vlm.corpus.captions.tables import Label, LabelTable, Noun
from vlm.corpus.rows import LabelSet
from vlm.schema import Modality

IN_TAIL = 2
"""Uncertain or absent findings that are mentioned beside present ones: reports do not name all that is not there."""
ROUNDS = 6
"""Times that the patterns are gone through for more sentences than there are patterns, each time with other words."""
LONGEST_BODY = 40
"""Words and punctuation marks up to which a sentence gets a second part."""
PREPOSITIONS: dict[Modality, str] = {"Pathology": "in", "mixed": "in"}
"""Other images are looked at "on"."""

Fields = dict[str, str]


def grammar_captions(labels: LabelSet, table: LabelTable | None, count: int = 10) -> tuple[str, ...]:
    """`count` different sentences about an image; none where nothing is known of it.

    Each names the modality and what is present (up to five findings); uncertain findings are said to be possible in
    every second, absent ones to be absent in few. Equal arguments give equal sentences. Up to 10 sentences are always
    different in structure; of very many, fewer than `count` may be found.
    """
    return _captions(labels, table, count)


@lru_cache(maxsize=CACHED_SETS)
def _captions(labels: LabelSet, table: LabelTable | None, count: int) -> tuple[str, ...]:
    said = said_of(labels, table)
    if count < 1 or not (said.present or said.uncertain or said.absent):
        return ()
    seed = zlib.crc32(repr(labels).encode())
    found: list[str] = []
    for sentence in _sentences(said, labels, table, seed):
        if len(kept := drop_near_duplicates((*found, sentence))) > len(found):
            found = list(kept)
        if len(found) == count:
            break
    return tuple(found)


def _sentences(said: Said, labels: LabelSet, table: LabelTable | None, seed: int) -> Iterator[str]:
    """Sentences by all patterns that fit, in an order that depends on the seed, round after round."""
    images, plain = image_phrases(labels, table)
    patterns = _patterns(said)
    if patterns is REGION and (images == plain or len(said.regions) > 1):
        patterns = tuple(text for text in REGION if "{r}" in text)  # the others count on the image's phrase
    stride = next(step for step in range(1 + seed % 5, 99) if gcd(step, len(patterns)) == 1)
    on = PREPOSITIONS.get(labels.modality, "on")
    for turn in range(ROUNDS * len(patterns)):
        round_, step = divmod(turn, len(patterns))
        # Each round moves every list of words by another amount, so that a pattern meets new words.
        at = turn + seed + round_
        fields = {"img": images[at % len(images)], "plain": plain[at % len(plain)], "on": on}
        fields |= {"a_img": with_article(fields["img"]), "a_plain": with_article(fields["plain"])}
        fields |= _words(said, at, fields["img"])
        pattern = patterns[(seed + step * stride) % len(patterns)]
        body = pattern.format(**fields)
        if len(tokens_of(body)) > LONGEST_TOKENS:
            body = pattern.format(**fields | _words(said, at, fields["img"], shortest=True))
        yield _finished(body + _tail(said, body, step + seed % 2, seed))


def _patterns(said: Said) -> tuple[str, ...]:
    if said.findings and said.normals:
        return NORMAL_BESIDE
    if said.findings:
        number = OF_SEVERAL if len(said.findings) > 1 else OF_ONE
        disease = OF_DISEASE if all(finding.disease for finding in said.findings) else ()
        located = LOCATED if len(said.findings) == 1 and said.findings[0].location else ()
        return (*FINDINGS, *number, *disease, *located)
    if said.normals:
        # A label that is the bare word "normal" has no noun of its own; benign tissue is no "normal image".
        unfit = (*(() if said.normals[0].nouns else ("{n}", "{n_bare}")),
                 *(() if said.normals[0].graded_normal else ("{adj}",)))
        return tuple(text for text in NORMAL if not any(field in text for field in unfit))
    if said.regions:
        return REGION
    return UNCERTAIN if said.uncertain and not said.denials else ABSENT


def _words(said: Said, at: int, image: str, shortest: bool = False) -> Fields:
    """The fields of a pattern that come from labels; `at` chooses among their phrases.

    shortest : take the shortest phrases, for a sentence that was too long.
    """
    def pick(labels: Sequence[Sequence[Noun]]) -> list[Noun]:
        if shortest:
            return [min(nouns, key=lambda noun: len(noun.text)) for nouns in labels]
        return [_pick(nouns, at + place, image) for place, nouns in enumerate(labels)]

    fields: Fields = {}
    if said.findings or said.uncertain:
        chosen = _window(said.findings, at) or said.uncertain[:NAMED_AT_MOST]
        fields |= _listed(pick([label.nouns for label in chosen]))
        fields["where"] = chosen[0].location or ""
    if said.normals:
        fields |= _normal(said.normals[0], at, image)
    elif said.denials or said.absent:
        chosen = said.denials or _window(said.absent, at, 4)
        fields |= _denied(pick([label.absences for label in chosen]))
    if said.regions:
        regions = pick([label.nouns for label in said.regions])
        plural = len(regions) > 1 or regions[0].plural
        fields |= {"r": _joined([noun.text for noun in regions]), "is_r": _be(plural)}
    return fields


def _listed(nouns: Sequence[Noun]) -> Fields:
    """Fields of a list of findings, as facts and as possibilities."""
    texts, rest = [noun.text for noun in nouns], nouns[1:]
    return {
        "f": _joined(texts), "f_again": _capital(_joined(texts)),
        "f_or": _joined(texts, "or"), "f_or_again": _capital(_joined(texts, "or")),
        "bare": _joined([noun.bare for noun in nouns]), "is": _be(len(nouns) > 1 or nouns[0].plural),
        "there": _be(nouns[0].plural), "first": texts[0], "is_first": _be(nouns[0].plural),
        "rest": _joined(texts[1:]), "is_rest": _be(len(rest) > 1 or any(noun.plural for noun in rest)),
        "p": _joined([noun.possible for noun in nouns]),
        "p_bare": f"possible {_joined([noun.bare for noun in nouns], 'or')}",
    }


def _denied(nouns: Sequence[Noun]) -> Fields:
    return {"d": _joined([noun.bare for noun in nouns], "or"), "d_any": _joined([noun.text for noun in nouns], "or"),
            "is_d": _be(nouns[-1].plural)}


def _normal(label: Label, at: int, image: str) -> Fields:
    absences = label.absences if label.denied else (Noun("abnormality"),)
    fields = {"adj": ("normal", "unremarkable")[at % 2], **_denied([_pick(absences, at, image)])}
    if label.nouns:
        noun = _pick(label.nouns, at, image)
        fields |= {"n": noun.text, "n_bare": noun.bare, "is_n": _be(noun.plural)}
    return fields


def _tail(said: Said, body: str, step: int, seed: int) -> str:
    """A second part about what is uncertain or absent; denials always, the others now and then, never both."""
    alone = not (said.findings or said.regions or said.normals)
    if said.denials and not alone:
        nouns = [_pick(label.absences, step + place) for place, label in enumerate(said.denials[:NAMED_AT_MOST])]
        return _formed(ABSENT_TAILS, body, seed + step, _denied(nouns))
    if len(tokens_of(body)) > LONGEST_BODY:
        return ""
    if said.uncertain and step % 2 == 0 and (not alone or said.denials):
        chosen = _window(said.uncertain, step, IN_TAIL)
        nouns = [_pick(label.nouns, step + place) for place, label in enumerate(chosen)]
        return _formed(UNCERTAIN_TAILS, body, seed + step // 2, _listed(nouns))
    if said.absent and step % 4 == 1 and (not alone or said.uncertain):
        chosen = _window(said.absent, step, IN_TAIL)
        nouns = [_pick(label.absences, step + place) for place, label in enumerate(chosen)]
        return _formed(ABSENT_TAILS, body, seed + step // 4, _denied(nouns))
    return ""


def _formed(tails: Sequence[str], body: str, at: int, fields: Fields) -> str:
    """A tail that fits the body: behind one with marks inside, a sentence of its own."""
    if re.search(r"[;:,.]", body):
        tails = [tail for tail in tails if tail.startswith(".")]
    text = tails[at % len(tails)].format(**fields)
    return f". {_capital(text[2:])}" if text.startswith(". ") else text


def _window(labels: tuple[Label, ...], at: int, size: int = NAMED_AT_MOST) -> tuple[Label, ...]:
    """All labels, or `size` neighbors of a longer list, counted around its end."""
    if len(labels) <= size:
        return labels
    return tuple(labels[(at + place) % len(labels)] for place in range(size))


def _pick(nouns: Sequence[Noun], at: int, image: str = "") -> Noun:
    """One of the phrases; rather one that repeats no word of the image's: no "breast tumor" on a "breast sonogram"."""
    taken = _stems(image)
    fresh = [noun for noun in nouns if not _stems(noun.text) & taken] or nouns
    return fresh[at % len(fresh)]


@lru_cache(maxsize=CACHED_SETS)
def _stems(text: str) -> frozenset[str]:
    """The longer words of a text, without the s of a plural."""
    return frozenset(word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3)


def _joined(texts: Sequence[str], word: str = "and") -> str:
    return f"{', '.join(texts[:-1])} {word} {texts[-1]}" if len(texts) > 1 else "".join(texts)


def _be(plural: bool) -> str:
    return "are" if plural else "is"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _finished(sentence: str) -> str:
    return f"{_capital(sentence)}."
