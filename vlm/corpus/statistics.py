"""What a corpus holds: pairs, captions and labels counted from its shards, and what its build recorded."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import UserError
from autoseg.progress import progress
from autoseg.records import Record
from vlm.corpus.build_records import BuildRecords, read_build_records
from vlm.corpus.examples import Example, Examples
from vlm.corpus.facts import MODALITIES, SPLITS
from vlm.corpus.spilled_rows import SpilledRows, text_hash
from vlm.corpus.stored_pairs import REMEDY, read_pairs, require_shards, shard_path
from vlm.corpus.workers import stream_map
from vlm.schema import CorpusManifest, ShardEntry

LONGEST_COUNTED = 2000
"""Captions with more words are counted as having this many; it keeps the number of counters small."""

HASH_ROWS = np.dtype([("hash", "<u8"), ("group", "<i4")])
"""hash : of a caption's or a patient's text. group : position in the list of groups."""

AnyValue = TypeVar("AnyValue")
Group = tuple[str, str, str]
"""(source, modality, kind of caption)."""


class Words(Record):
    """Lengths of captions in words (what stands between spaces). p95 : 95 % are no longer."""

    mean: float
    median: int
    p95: int
    longest: int


class GroupStatistics(Record):
    """Of all pairs, of a modality or of a source. pairs : split → number. kinds : kind → captions of that kind.

    distinct_captions : captions that differ in any character.
    """

    pairs: dict[str, int]
    captions: int
    distinct_captions: int
    captions_per_pair: float
    kinds: dict[str, int]
    words: Words


class SourceStatistics(GroupStatistics):
    """patients : distinct ones, and the pairs that name none. labels : finding → pairs in which it is present.

    origins : what a caption was made by → captions.
    """

    modalities: dict[str, int]
    patients: int
    pairs_without_patient: int
    labels: dict[str, int]
    origins: dict[str, int]
    reencoded: int
    forms: dict[str, int]


class KindStatistics(Record):
    """Of a kind of caption. pairs : that have at least one of it. first : pairs whose first caption is of it."""

    captions: int
    distinct_captions: int
    pairs: int
    first: int
    words: Words


class CorpusStatistics(Record):
    """stats.json. captions_per_pair : number of captions → pairs. caption_words : modality → kind → words → captions.

    examples : modality → uids of the pairs on the contact sheet.
    """

    format: Literal[1] = 1
    recipe: str
    version: str
    seed: int
    shards: int
    size_bytes: int
    total: GroupStatistics
    modalities: dict[str, GroupStatistics]
    sources: dict[str, SourceStatistics]
    kinds: dict[str, KindStatistics]
    captions_per_pair: dict[str, int]
    caption_words: dict[str, dict[str, dict[str, int]]]
    build: BuildRecords
    examples: dict[str, tuple[str, ...]]


@dataclass
class Survey:
    """What was counted in one shard or several; adding them up in any order gives the same.

    captions, patients : hash of a text with the group (a caption) or source (a patient) it was met in; of one shard.
    """

    examples: Examples
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    words: Counter[tuple[Group, int]] = field(default_factory=Counter)
    per_pair: Counter[int] = field(default_factory=Counter)
    captions: set[tuple[int, Group]] = field(default_factory=set)
    patients: set[tuple[int, str]] = field(default_factory=set)

    def merge(self, other: "Survey") -> None:
        """Add all but captions and patients."""
        self.examples.merge(other.examples)
        self.counts.update(other.counts)
        self.words.update(other.words)
        self.per_pair.update(other.per_pair)


def survey_shard(entry: ShardEntry, corpus: Path, examples_per_modality: int) -> Survey:
    """Count what a shard holds. UserError where it is damaged or holds another number of pairs than was written."""
    survey = Survey(Examples(examples_per_modality))
    path, pairs = shard_path(corpus, entry.file), 0
    for pair in read_pairs(path):
        pairs += 1
        record = pair.record
        source, modality = record.source, record.modality
        survey.examples.add(pair, entry.file)
        kinds = {caption.kind for caption in record.captions}
        survey.counts.update([
            ("pairs", source, modality, record.split), ("form", source, pair.form),
            ("first", record.captions[0].kind), *(("has", kind) for kind in kinds),
            *(("label", source, label) for label in record.labels),
            *(("origin", source, caption.origin) for caption in record.captions),
        ])
        survey.counts["reencoded", source] += record.reencoded
        survey.per_pair[len(record.captions)] += 1
        if record.patient is not None:
            survey.patients.add((text_hash(f"{source} {record.patient}"), source))
        else:
            survey.counts["no patient", source] += 1
        for caption in record.captions:
            group = (source, modality, caption.kind)
            survey.words[group, min(len(caption.text.split()), LONGEST_COUNTED)] += 1
            survey.captions.add((text_hash(caption.text), group))
    if pairs != entry.pairs:
        raise UserError(f"{path} holds {pairs} pairs; {entry.pairs} were written.\n{REMEDY}")
    return survey


def measure_corpus(
    corpus: Path, manifest: CorpusManifest, scratch: Path, *, workers: int = 1, examples_per_modality: int = 8
) -> tuple[CorpusStatistics, dict[str, tuple[Example, ...]]]:
    """(statistics, the pairs to look at by modality) of a finished corpus.

    Memory holds one shard's captions per worker, counters and at most a million hashes; hashes beyond that lie in
    nameless files in the folder `scratch`, which must exist. UserError: shards missing or damaged, or no pair at all.
    """
    require_shards(corpus, manifest)
    total = sum(entry.pairs for entry in manifest.shards)
    if not total:
        raise UserError(f"{corpus} holds no pair: every row was rejected or left out; rejects.jsonl says why.")
    survey = Survey(Examples(examples_per_modality))
    groups: dict[Group, int] = {}
    sources: dict[str, int] = {}
    work = partial(survey_shard, corpus=corpus, examples_per_modality=examples_per_modality)
    with (SpilledRows(HASH_ROWS, scratch) as captions, SpilledRows(HASH_ROWS, scratch) as patients,
          progress("corpus-stats", total, "pairs") as bar):
        for part in stream_map(work, manifest.shards, workers):
            captions.add(_rows(part.captions, groups))
            patients.add(_rows(part.patients, sources))
            survey.merge(part)
            bar.advance(part.per_pair.total())
        by = {name: _distinct(captions, list(groups), name) for name in (_whole, _source, _modality, _kind)}
        patients_of = _distinct(patients, list(sources), str)
    chosen = survey.examples.chosen()
    statistics = CorpusStatistics(
        recipe=manifest.recipe, version=manifest.version, seed=manifest.seed, shards=len(manifest.shards),
        size_bytes=sum(entry.size for entry in manifest.shards),
        total=_groups_by(survey, by[_whole], _whole)["all"],
        modalities=_in_order(_groups_by(survey, by[_modality], _modality)),
        sources=_sources(survey, by[_source], patients_of), kinds=_kinds(survey, by[_kind]),
        captions_per_pair={str(count): survey.per_pair[count] for count in sorted(survey.per_pair)},
        caption_words=_in_order(_caption_words(survey)), build=read_build_records(corpus, manifest),
        examples={modality: tuple(example.uid for example in examples) for modality, examples in chosen.items()},
    )
    return statistics, chosen


def _in_order(by_modality: Mapping[str, AnyValue]) -> dict[str, AnyValue]:
    return {modality: by_modality[modality] for modality in MODALITIES if modality in by_modality}


def _rows(found: Iterable[tuple[int, Any]], positions: dict[Any, int]) -> NDArray[Any]:
    pairs = [(text, positions.setdefault(group, len(positions))) for text, group in found]
    return np.array(pairs, HASH_ROWS)


def _distinct(rows: SpilledRows, groups: list[Any], name: Callable[[Any], str]) -> Counter[str]:
    """name of a group → distinct hashes in all groups of that name."""
    names = sorted({name(group) for group in groups})
    position = np.array([names.index(name(group)) for group in groups], np.int32)
    counter = Counter[str]()
    for part in rows.buckets():
        named = part.copy()
        named["group"] = position[part["group"]] if len(part) else 0
        counts = np.bincount(np.unique(named)["group"], minlength=len(names))
        counter.update({one: int(count) for one, count in zip(names, counts, strict=True)})
    return counter


def _whole(group: Group) -> str:
    return "all"


def _source(group: Group) -> str:
    return group[0]


def _modality(group: Group) -> str:
    return group[1]


def _kind(group: Group) -> str:
    return group[2]


def _groups_by(
    survey: Survey, distinct: Mapping[str, int], name: Callable[[Group], str]
) -> dict[str, GroupStatistics]:
    """Name → statistics of all pairs and captions of that name (a source, a modality, "all")."""
    pairs: dict[str, Counter[str]] = {}
    words: dict[str, Counter[int]] = {}
    kinds: dict[str, Counter[str]] = {}
    for (what, *rest), count in survey.counts.items():
        if what == "pairs":
            source, modality, split = rest
            pairs.setdefault(name((source, modality, "")), Counter())[split] += count
    for (group, length), count in survey.words.items():
        words.setdefault(name(group), Counter())[length] += count
        kinds.setdefault(name(group), Counter())[group[2]] += count
    return {
        one: GroupStatistics(
            pairs={split: pairs[one][split] for split in SPLITS}, captions=words[one].total(),
            distinct_captions=distinct[one], kinds=dict(sorted(kinds[one].items())), words=describe_words(words[one]),
            captions_per_pair=round(words[one].total() / pairs[one].total(), 3),
        )
        for one in sorted(pairs)
    }


def describe_words(lengths: Mapping[int, int]) -> Words:
    """Of captions: words → captions. At least one caption."""
    values = np.array(sorted(lengths))
    counts = np.array([lengths[int(value)] for value in values])
    reached = np.cumsum(counts) / counts.sum()
    median, p95 = (int(values[np.searchsorted(reached, share)]) for share in (0.5, 0.95))
    return Words(mean=round(float((values * counts).sum() / counts.sum()), 2), median=median, p95=p95,
                 longest=int(values[-1]))


def _named(survey: Survey, what: str, *start: str) -> dict[str, int]:
    """The counters whose key is (what, *start, one more), by that; the most frequent first."""
    known = (what, *start)
    found = {key[-1]: count for key, count in survey.counts.items() if key[:-1] == known}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _sources(survey: Survey, distinct: Mapping[str, int], patients: Mapping[str, int]) -> dict[str, SourceStatistics]:
    return {
        source: SourceStatistics(
            **group.model_dump(),
            modalities={modality: count for modality in MODALITIES
                        if (count := sum(_named(survey, "pairs", source, modality).values()))},
            patients=patients[source], pairs_without_patient=survey.counts["no patient", source],
            labels=_named(survey, "label", source), origins=_named(survey, "origin", source),
            reencoded=survey.counts["reencoded", source], forms=_named(survey, "form", source),
        )
        for source, group in _groups_by(survey, distinct, _source).items()
    }


def _kinds(survey: Survey, distinct: Mapping[str, int]) -> dict[str, KindStatistics]:
    words: dict[str, Counter[int]] = {}
    for (group, length), count in survey.words.items():
        words.setdefault(_kind(group), Counter())[length] += count
    return {
        kind: KindStatistics(captions=lengths.total(), distinct_captions=distinct[kind],
                             pairs=survey.counts["has", kind], first=survey.counts["first", kind],
                             words=describe_words(lengths))
        for kind, lengths in sorted(words.items())
    }


def _caption_words(survey: Survey) -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[str, Counter[int]]] = {}
    for (group, length), count in survey.words.items():
        found.setdefault(_modality(group), {}).setdefault(_kind(group), Counter())[length] += count
    return {modality: {kind: {str(length): lengths[length] for length in sorted(lengths)}
                       for kind, lengths in sorted(found[modality].items())} for modality in sorted(found)}
