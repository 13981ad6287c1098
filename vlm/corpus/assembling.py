"""Between the passes: the facts of all chunks in one array, what is decided of them, and the shards to be written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import UserError
from autoseg.records import replacing
from vlm.corpus.evaluation_sets import EvaluationSet
from vlm.corpus.facts import FACTS, SPLITS, Decisions, Facts, Fate
from vlm.corpus.inspection import ROWS_PER_CHUNK, facts_file, rows_file
from vlm.corpus.leaks import listed_by
from vlm.corpus.near import Indices
from vlm.corpus.pairing import decide
from vlm.corpus.shards import Packing, Places, ShardJob
from vlm.corpus.sourcing import Survey
from vlm.corpus.staged import StagedRow, read_rows


@dataclass(frozen=True)
class ChunkTable:
    """Where the facts of the chunks begin: fact `starts[i]` is the first line of chunk `numbers[i]` of the source at
    position `sources[i]`; `starts` has one more entry, the number of all facts. folders : of the sources' chunks."""

    sources: NDArray[np.int64]
    numbers: NDArray[np.int64]
    starts: Indices
    folders: tuple[Path, ...]

    def of_source(self, position: int) -> tuple[int, int]:
        """(first fact, one behind the last) of a source."""
        mine = np.flatnonzero(self.sources == position)
        return (int(self.starts[mine[0]]), int(self.starts[mine[-1] + 1])) if len(mine) else (0, 0)

    def by_chunk(self, facts: Indices) -> Iterator[tuple[int, int, Indices]]:
        """(position of the source, number of the chunk, lines in its rows file) of ascending facts."""
        chunks = np.searchsorted(self.starts, facts, side="right") - 1
        for chunk in np.unique(chunks):
            lines = facts[chunks == chunk] - self.starts[chunk]
            yield int(self.sources[chunk]), int(self.numbers[chunk]), lines

    def rows(self, facts: Indices) -> Iterator[tuple[int, StagedRow]]:
        """(fact, its row) of ascending facts; a chunk at a time is opened."""
        ordered = iter(facts.tolist())
        for source, number, lines in self.by_chunk(facts):
            for row in read_rows(rows_file(self.folders[source], number), frozenset(lines.tolist())):
                yield next(ordered), row


def gather_facts(surveys: Sequence[Survey], folders: Sequence[Path], path: Path) -> tuple[Facts, ChunkTable]:
    """All facts in a file at `path`, as a memory map, in the order of the sources and their rows.

    Parameters
    ----------
    surveys, folders : of the sources, in the build's order; folders of their chunks.
    """
    sources, numbers, counts = [], [], []
    for position, (survey, folder) in enumerate(zip(surveys, folders, strict=True)):
        for number in range(-(-survey.rows // ROWS_PER_CHUNK)):
            sources.append(position)
            numbers.append(number)
            counts.append(len(_facts(folder, number)))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, np.int64))])
    table = ChunkTable(np.array(sources), np.array(numbers), starts, tuple(folders))
    with replacing(path) as temporary:
        gathered = np.lib.format.open_memmap(temporary, "w+", FACTS, (int(starts[-1]),))  # type: ignore[no-untyped-call]
        for source, number, start, end in zip(sources, numbers, starts[:-1], starts[1:], strict=True):
            gathered[start:end] = _facts(folders[source], number)
        gathered.flush()
        del gathered
    return np.load(path, mmap_mode="r"), table


def decide_all(
    facts: Facts, table: ChunkTable, names: Sequence[str], evaluation: Sequence[EvaluationSet],
    thresholds: Mapping[str, int], near_duplicates: bool,
) -> Decisions:
    """What becomes of every fact (`pairing.decide`), with the evaluation sets' id lists looked up in the rows.

    names : of the sources, in the build's order.
    """
    listed = None
    if any(known.images for known in evaluation):
        listed = np.full(len(facts), -1, np.int16)
        for position, name in enumerate(names):
            if any(name in known.images for known in evaluation):
                for fact, staged in table.rows(np.arange(*table.of_source(position))):
                    listed[fact] = listed_by(evaluation, name, staged.row.image, staged.row.source_id)
    return decide(facts, thresholds, evaluation, listed, near_duplicates)


def plan_shards(
    facts: Facts, decisions: Decisions, table: ChunkTable, packings: Sequence[Packing]
) -> Iterator[ShardJob]:
    """The shards of each source and split, of its kept rows in their order, with the rows of equal files of the same
    source. packings : of the sources."""
    for position, packing in enumerate(packings):
        first, last = table.of_source(position)
        fate, of = decisions.fate[first:last], decisions.of[first:last]
        kept = first + np.flatnonzero(fate == Fate.KEPT)
        copies = first + np.flatnonzero((fate == Fate.EXACT) & (of >= first) & (of < last))
        copies = copies[np.argsort(decisions.of[copies], kind="stable")]
        split_of = facts["split"][kept]
        size = packing.options.pairs_per_shard
        for number, split in enumerate(SPLITS):
            mine = kept[split_of == number]
            for shard, start in enumerate(range(0, len(mine), size)):
                chosen = mine[start : start + size]
                their = _copies_of(chosen, copies, decisions.of)
                owners = np.searchsorted(chosen, decisions.of[their])
                yield ShardJob(packing, split, shard, _places(table, chosen), _places(table, their),
                               tuple(owners.tolist()))


def _copies_of(kept: Indices, copies: Indices, of: Indices) -> Indices:
    """Those of `copies` (sorted by `of`) that are copies of a kept fact, ascending."""
    owners = of[copies]
    low, high = np.searchsorted(owners, kept), np.searchsorted(owners, kept, "right")
    found = [copies[start:end] for start, end in zip(low, high, strict=True) if end > start]
    return np.sort(np.concatenate([*found, np.zeros(0, np.int64)]))


def _places(table: ChunkTable, facts: Indices) -> Places:
    return tuple((chunk, lines.astype(np.int16)) for _, chunk, lines in table.by_chunk(facts))


def _facts(folder: Path, number: int) -> Facts:
    path = facts_file(folder, number)
    try:
        found: Facts = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}, which this build wrote earlier, cannot be read any more ({error}).\n"
                        f"Delete the folder {folder} and run the same command again.") from None
    return found
