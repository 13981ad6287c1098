"""Sentences that a person wrote for labels: read, and checked before they become vectors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from autoseg.errors import all_of
from autoseg.guidance.label_names import is_background, match_key
from autoseg.guidance.reading import OTHER
from autoseg.guidance.records import Entry, PromptsFile, Side
from autoseg.records import read_record

LONGEST = 300
"""Characters of a sentence, as of the lexicon's texts: some 50 words, which a tower with 256 tokens reads whole.
`vlm encode-labels` warns of sentences that its tower cuts."""
FORMAT = 'Write {"liver": ["The liver in the right upper abdomen."], …}: label → list of sentences.'

Prompts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Findings:
    """errors : what makes a sentence unfit to stand for its label. warnings : what is probably not meant."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def refuse_errors(self, path: Path) -> None:
        """UserError with all errors of the file at `path`, where there are any."""
        if self.errors:
            raise all_of(self.errors, counted_problems(path, self.errors),
                         "Correct the sentences in the file, then try again.")


def counted_problems(path: Path, problems: Sequence[str]) -> str:
    """The heading above the problems of a file."""
    return f"{path}: {len(problems)} problem{'' if len(problems) == 1 else 's'}:"


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Label → sentences of a JSON file, unchecked; UserError where it is absent or has another form."""
    return dict(read_record(PromptsFile, path, FORMAT).root)


def check_sentences(prompts: Prompts, entries: Mapping[str, Entry]) -> Findings:
    """What is wrong with the sentences of labels.

    Errors, after the study's rules for sentences from elsewhere: the background has sentences; a label has none;
    a sentence is empty or too long; one stands for two labels, so that it says nothing about either; one names only
    the other side than its label's. A warning: a sentence does not name its structure.

    entries : of the labels that the lexicon knows; the others' sentences may use any words.
    """
    errors: list[str] = []
    warnings: list[str] = []
    owner: dict[str, str] = {}
    for label, texts in prompts.items():
        if is_background(label):
            errors.append(f"{label!r}: background has no sentences; take it out")
            continue
        if not texts:
            errors.append(f"{label!r}: no sentence; write at least one")
        for text in (text.strip() for text in texts):
            if problem := _problem(text, label, entries.get(label)):
                errors.append(f"{label!r}: {problem}")
            elif (other := owner.setdefault(text, label)) != label:
                errors.append(f"{label!r}: {text!r} is a sentence of {other!r} too; it says nothing about either")
            elif label in entries and not _names(text, label, entries[label]):
                warnings.append(f"{label!r}: {text!r} does not name the {entries[label].canonical}")
    return Findings(tuple(errors), tuple(warnings))


def check_labels(given: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Problems where the labels of a file are not those of the dataset."""
    problems = [f"{label!r} is missing; add it with at least one sentence" for label in labels if label not in given]
    for name in given:
        if name not in labels and not is_background(name):
            near = get_close_matches(name, labels, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(labels)}"
            problems.append(f"{name!r} is no label of the dataset; {meant}")
    return problems


def _problem(text: str, label: str, entry: Entry | None) -> str | None:
    """Why a sentence alone cannot stand for a label."""
    if not text:
        return "an empty sentence; write it or take it out"
    if len(text) > LONGEST:
        return (f"a sentence of {len(text)} characters; at most {LONGEST} were expected, towers cut what is longer: "
                f"{text[:40]!r}…")
    side = _side(label, entry)
    if side is None:
        return None
    small = text.casefold()
    words = set(re.findall(r"[a-z]+", small))
    if OTHER[side] in words and side not in words:
        return f"{text!r} says {OTHER[side]}, and the label is on the {side}"
    if entry is not None and entry.mirror and entry.mirror in small and entry.canonical not in small:
        return f"{text!r} names the {entry.mirror}, and the label is the {entry.canonical}"
    return None


def _side(label: str, entry: Entry | None) -> Side | None:
    side = entry.side if entry is not None else match_key(label)[0]
    return next((one for one in OTHER if one == side), None)


def _names(text: str, label: str, entry: Entry) -> bool:
    """Whether all words of one of the entry's names (or of the label) stand in a sentence, in any order."""
    words = set(match_key(text)[1:])
    return any(set(match_key(name)[1:]) <= words for name in (*entry.names, label))

