"""Which pairs stand for a corpus on its contact sheet: few per modality, of many sources and labels."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.errors import UserError
from vlm.corpus.facts import MODALITIES
from vlm.corpus.spilled_rows import text_hash
from vlm.corpus.stored_pairs import StoredPair, shard_path
from vlm.schema import Modality, Split

KEPT_CHARACTERS = 400
"""Of a caption: more than a tile of the contact sheet has room for."""


@dataclass(frozen=True, order=True)
class Example:
    """A pair to look at.

    rank : 64 bits drawn from its uid; the lowest are shown. position, size : of its image's bytes in the shard.
    """

    rank: int
    uid: str
    source: str
    modality: Modality
    split: Split
    labels: str
    caption: str
    shard: str
    position: int
    size: int


@dataclass
class Candidates:
    """Examples of one modality of one source: the lowest ranks over all, and the lowest of each label set.

    Only `count` of either are kept. As a label's lowest rank in all shards is its lowest in one of them, what is kept
    does not depend on how the pairs are spread over shards, nor on the order in which shards are merged.
    """

    count: int
    any_label: list[Example] = field(default_factory=list)
    by_label: dict[str, Example] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Consider a pair."""
        if len(self.any_label) < self.count or example < self.any_label[-1]:
            self.any_label = heapq.nsmallest(self.count, {*self.any_label, example})
        known = self.by_label.get(example.labels)
        if known is None or example < known:
            self.by_label[example.labels] = example
            if len(self.by_label) > self.count:
                del self.by_label[max(self.by_label, key=lambda labels: self.by_label[labels])]

    def merge(self, other: "Candidates") -> None:
        """Consider those of another shard."""
        for example in (*other.any_label, *other.by_label.values()):
            self.add(example)

    def in_order(self) -> list[Example]:
        """One of each label set first, then others."""
        shown = sorted(self.by_label.values())
        return [*shown, *(example for example in self.any_label if example not in shown)]


Key = tuple[Modality, str]


@dataclass
class Examples:
    """Candidates by modality and source."""

    count: int
    candidates: dict[Key, Candidates] = field(default_factory=dict)

    def add(self, pair: StoredPair, shard: str) -> None:
        """Consider a pair of a shard."""
        record = pair.record
        labels = ", ".join(record.labels) or ("" if not record.absent else "none of the findings")
        self._of((record.modality, record.source)).add(Example(
            text_hash(record.uid), record.uid, record.source, record.modality, record.split, labels,
            record.captions[0].text[:KEPT_CHARACTERS], shard, pair.position, len(pair.image)))

    def merge(self, other: "Examples") -> None:
        """Consider those of another shard."""
        for key, candidates in other.candidates.items():
            self._of(key).merge(candidates)

    def chosen(self) -> dict[str, tuple[Example, ...]]:
        """At most `count` per modality; its sources take turns, the one with the lowest rank first."""
        by_modality: dict[str, list[list[Example]]] = {}
        for (modality, _), candidates in self.candidates.items():
            by_modality.setdefault(modality, []).append(candidates.in_order())
        return {modality: _in_turn(by_modality[modality], self.count)
                for modality in MODALITIES if modality in by_modality}

    def _of(self, key: Key) -> Candidates:
        if key not in self.candidates:
            self.candidates[key] = Candidates(self.count)
        return self.candidates[key]


def read_images(corpus: Path, chosen: Mapping[str, tuple[Example, ...]]) -> dict[str, bytes]:
    """The image bytes of the chosen pairs by uid."""
    images = {}
    for example in (example for examples in chosen.values() for example in examples):
        path = shard_path(corpus, example.shard)
        try:
            with path.open("rb") as stream:
                stream.seek(example.position)
                images[example.uid] = stream.read(example.size)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. It could be read a moment ago: is its disk "
                            "still there?") from None
    return images


def _in_turn(queues: list[list[Example]], count: int) -> tuple[Example, ...]:
    queues = sorted(queues, key=min)
    chosen: list[Example] = []
    for turn in range(count):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    # Pairs of a source side by side: the eye compares neighbors.
    order = [queue[0].source for queue in queues]
    return tuple(sorted(chosen[:count], key=lambda example: order.index(example.source)))
