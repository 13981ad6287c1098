"""Which evaluation sets a corpus was checked against, how, and what was found in which source."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.records import Record
from vlm.corpus.evaluation_sets import EvaluationCard, EvaluationSet, hash_evaluation_set, load_evaluation_cards
from vlm.corpus.facts import LEAKS, Decisions, Fate
from vlm.schema import SourceCard

__all__ = ["EvaluationCard", "EvaluationSet", "LeakReport", "OverlapReport", "SetReport", "hash_evaluation_set",
           "leak_report", "listed_by", "load_evaluation_cards"]


class SetReport(Record):
    """One evaluation set. checked : for a person. images : hashed; unreadable : listed, but not opened.

    found : source → leak ("image", "patient", "id") → dropped images. dropped : their sum.
    """

    checked: str
    images: int
    unreadable: int
    found: dict[str, dict[str, int]]
    dropped: int


class OverlapReport(Record):
    """An overlap that is known beforehand, and by what it could be looked for here."""

    evaluation: str
    source: str
    said: str
    checked_by: Literal["hashes", "ids", "nothing"]


class LeakReport(Record):
    """leaks.json. unresolved : evaluation set → sources of this corpus that are known to hold some of its images,
    where neither its images nor its id lists were at hand: a result on such a set has to say so."""

    sets: dict[str, SetReport]
    overlaps: tuple[OverlapReport, ...]
    unresolved: dict[str, tuple[str, ...]]
    dropped: int


def listed_by(evaluation: Sequence[EvaluationSet], source: str, image: str, source_id: str = "") -> int:
    """Position of the first set whose id list names this image of the source (path, file name, stem or id), or -1."""
    path = PurePosixPath(image)
    names = {image, path.name, path.stem, source_id} - {""}
    hits = (position for position, known in enumerate(evaluation) if names & known.images.get(source, frozenset()))
    return next(hits, -1)


def leak_report(
    cards: Mapping[str, EvaluationCard], evaluation: Sequence[EvaluationSet], decisions: Decisions,
    source_of: NDArray[Any], sources: Sequence[SourceCard], nameless: Collection[str] = (),
) -> LeakReport:
    """What the decisions say of each evaluation set.

    Parameters
    ----------
    cards : every set, on this disk or not. evaluation : those given to `decide`, in its order.
    source_of : [fact] position in `sources` (`facts["source"]`).
    nameless : sources whose rows have neither the published names of images nor patients (UniMed's shards number their
        images), so that no id list can be looked up in them.
    """
    known = {item.name: item for item in evaluation}
    found = {item.name: _found(decisions, source_of, position, sources) for position, item in enumerate(evaluation)}
    sets = {
        name: SetReport(
            checked=_checked(known.get(name)), images=len(known[name].files) if name in known else 0,
            unreadable=known[name].unreadable if name in known else 0, found=found.get(name, {}),
            dropped=sum(sum(counts.values()) for counts in found.get(name, {}).values()),
        )
        for name in sorted({*cards, *known})
    }
    overlaps = tuple(
        OverlapReport(evaluation=name, source=source, said=said,
                      checked_by=_checked_by(known.get(name), source, source not in nameless))
        for (name, source), said in sorted(_overlaps(cards, sources).items())
    )
    open_ones: dict[str, tuple[str, ...]] = {}
    for overlap in overlaps:
        if overlap.checked_by == "nothing":
            open_ones[overlap.evaluation] = (*open_ones.get(overlap.evaluation, ()), overlap.source)
    return LeakReport(sets=sets, overlaps=overlaps, unresolved=open_ones,
                      dropped=sum(report.dropped for report in sets.values()))


def _found(
    decisions: Decisions, source_of: NDArray[Any], position: int, sources: Sequence[SourceCard]
) -> dict[str, dict[str, int]]:
    of_set = decisions.evaluation == position
    found: dict[str, dict[str, int]] = {}
    for fate in LEAKS:
        leaked = source_of[of_set & (decisions.fate == fate)]
        for source, count in zip(*np.unique(leaked, return_counts=True), strict=True):
            found.setdefault(sources[int(source)].name, {})[_said(fate)] = int(count)
    return dict(sorted(found.items()))


def _said(fate: Fate) -> str:
    return fate.name.removeprefix("LEAK_").lower()


def _checked(known: EvaluationSet | None) -> str:
    if known is None or not (known.files or known.lists):
        return "not on this disk"
    ways = [f"hashes of {len(known.files)} images"] if known.files else []
    ways += [f"id list {file} of {source}" for source, file in known.lists]
    return " and ".join(ways)


def _checked_by(known: EvaluationSet | None, source: str, has_names: bool) -> Literal["hashes", "ids", "nothing"]:
    if known is not None and has_names and any(listed == source for listed, _ in known.lists):
        return "ids"
    return "hashes" if known is not None and known.files and not known.unreadable else "nothing"


def _overlaps(cards: Mapping[str, EvaluationCard], sources: Sequence[SourceCard]) -> dict[tuple[str, str], str]:
    """(evaluation set, source of this corpus) → why; as the sources' cards and the sets' cards say."""
    names = {source.name for source in sources}
    said = {(card.name, overlap.source): overlap.said for card in cards.values() for overlap in card.overlaps
            if overlap.source in names}
    for source in sources:
        for known in source.overlaps:
            said[known.evaluation, source.name] = known.said
    return said
