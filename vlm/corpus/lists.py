"""The lists beside the shards: what was left out and why, what may have leaked, and the manifest of it all."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoseg import __version__
from autoseg.records import read_record, replacing, write_json, write_record
from vlm.corpus.assembling import ChunkTable
from vlm.corpus.evaluation_sets import EvaluationCard, EvaluationSet
from vlm.corpus.facts import LEAKS, Decisions, Facts, Fate
from vlm.corpus.inspection import rejects_file
from vlm.corpus.leaks import leak_report
from vlm.corpus.options import BuildOptions
from vlm.corpus.shards import ShardJob, WrittenShard, pair_uid, record_file
from vlm.corpus.sourcing import PresentSource, Survey
from vlm.corpus.staged import write_lines
from vlm.schema import CorpusManifest, SourceCount


@dataclass(frozen=True)
class Decided:
    """Sources and their rows, and what became of them; sequences in the build's order of sources."""

    sources: Sequence[PresentSource]
    surveys: Sequence[Survey]
    facts: Facts
    table: ChunkTable
    decisions: Decisions
    cards: Mapping[str, EvaluationCard]
    evaluation: Sequence[EvaluationSet]


def write_lists(
    decided: Decided, jobs: Sequence[ShardJob], options: BuildOptions, recipe: str, corpus: Path
) -> CorpusManifest:
    """Write rejects.jsonl, duplicates.jsonl, leaks.json, sizes.json and, last of all, manifest.json."""
    written = [read_record(WrittenShard, record_file(job)) for job in jobs]
    late = [line for shard in written for line in shard.rejects]
    rejected = _write_rejects(decided, [line.model_dump() for line in late], corpus / "rejects.jsonl")
    write_lines(_dropped_lines(decided), corpus / "duplicates.jsonl")
    source_of = np.asarray(decided.facts["source"])
    cards = [source.card for source in decided.sources]
    nameless = {source.card.name for source in decided.sources if source.layout.reader == "unimed_shards"}
    write_record(leak_report(decided.cards, decided.evaluation, decided.decisions, source_of, cards, nameless),
                 corpus / "leaks.json")
    shards = tuple(shard.entry for shard in written if shard.entry is not None)
    counts: dict[str, Counter[str]] = {}
    for job, shard in zip(jobs, written, strict=True):
        for modality, pairs in shard.modalities.items():
            counts.setdefault(modality, Counter())[job.split] += pairs
    manifest = CorpusManifest(
        version=__version__, recipe=recipe, seed=options.seed, options=asdict(options),
        sources=_source_counts(decided, rejected, Counter(line.source for line in late)),
        counts={modality: dict(sorted(splits.items())) for modality, splits in sorted(counts.items())}, shards=shards,
    )
    write_json({entry.file: entry.pairs for entry in shards}, corpus / "sizes.json")
    write_record(manifest, corpus / "manifest.json")
    return manifest


def _write_rejects(decided: Decided, late: Sequence[Mapping[str, Any]], path: Path) -> Counter[str]:
    """Rejects of the first pass, then those of the second; how many of each source."""
    counts: Counter[str] = Counter(line["source"] for line in late)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for position, number in zip(decided.table.sources.tolist(), decided.table.numbers.tolist(), strict=True):
            with rejects_file(decided.table.folders[position], number).open("rb") as part:
                lines = part.read()
            counts[decided.sources[position].card.name] += lines.count(b"\n")
            stream.write(lines)
        stream.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in late)
    return counts


def _source_counts(decided: Decided, rejected: Mapping[str, int], late: Mapping[str, int]) -> dict[str, SourceCount]:
    counts = {}
    for position, (source, survey) in enumerate(zip(decided.sources, decided.surveys, strict=True)):
        name = source.card.name
        fates = decided.decisions.fate[slice(*decided.table.of_source(position))]
        leaks = int(np.isin(fates, LEAKS).sum())
        kept = int((fates == Fate.KEPT).sum())
        counts[name] = SourceCount(
            rows=survey.rows + survey.left_out, pairs=kept - late.get(name, 0), rejected=rejected.get(name, 0),
            duplicates=len(fates) - kept - leaks, leaks=leaks, left_out=survey.left_out, layout=source.layout.name,
            labels=survey.labels)
    return counts


def _dropped_lines(decided: Decided) -> Iterator[dict[str, Any]]:
    """A line for every image that is no pair because of another."""
    decisions = decided.decisions
    dropped = np.flatnonzero(decisions.fate != Fate.KEPT)
    for fact, staged in decided.table.rows(dropped):
        fate, of, evaluation = Fate(int(decisions.fate[fact])), int(decisions.of[fact]), None
        if fate in LEAKS:
            known = decided.evaluation[int(decisions.evaluation[fact])]
            evaluation = known.name
            reason = known.files[of] if of >= 0 else None
        else:
            other = decided.facts[of]
            reason = pair_uid(decided.sources[int(other["source"])].card.name, int(other["row"]))
        name = decided.sources[int(decided.facts["source"][fact])].card.name
        distance = int(decisions.distance[fact])
        yield {"uid": pair_uid(name, staged.row.row), "source": name, "row": staged.row.row, "file": staged.row.image,
               "split": staged.row.split, "fate": fate.name.lower(), "of": reason, "evaluation": evaluation,
               "distance": distance if distance >= 0 else None}
