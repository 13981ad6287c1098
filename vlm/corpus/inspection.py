"""First pass over the images: every row is opened, hashed, given a split, and written to the build folder."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.records import replacing
from vlm.corpus.captions.saying import said_of
from vlm.corpus.captions.tables import LabelTable, load_table
from vlm.corpus.facts import FACTS, MODALITIES, SPLITS, Facts, name_hash, sha256_words
from vlm.corpus.fingerprints import hash_from_hex, hash_hex
from vlm.corpus.images import BadImage, ImageFile, inspect_image
from vlm.corpus.options import BuildOptions
from vlm.corpus.pairing import assign_split
from vlm.corpus.rows import LabelSet, Reject, SourceRow
from vlm.corpus.sourcing import PresentSource
from vlm.corpus.staged import StagedRow, write_lines, write_rows
from vlm.schema import SourceCard, Split

ROWS_PER_CHUNK = 500
"""Seconds of work for a worker, so that a kill loses little and starting a job costs nothing."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a source, as its reader gave them."""

    number: int
    rows: tuple[SourceRow | Reject, ...]


@dataclass(frozen=True)
class Inspection:
    """What a chunk is inspected with. position : of the source in the build's list. own_validation : no image of the
    source's training part goes to "val" (see `Survey`). folder : for the files of its chunks."""

    source: PresentSource
    position: int
    options: BuildOptions
    own_validation: bool
    folder: Path


def chunks_of(rows: Iterable[SourceRow | Reject]) -> Iterator[Chunk]:
    """The rows in groups of `ROWS_PER_CHUNK`."""
    iterator = iter(rows)
    number = 0
    while group := tuple(islice(iterator, ROWS_PER_CHUNK)):
        yield Chunk(number, group)
        number += 1


def rows_file(folder: Path, number: int) -> Path:
    """The rows of a chunk that can become pairs (`StagedRow`), one a line."""
    return folder / f"{number:06d}.rows.jsonl"


def rejects_file(folder: Path, number: int) -> Path:
    """The rows of a chunk that cannot (`Reject`), one a line."""
    return folder / f"{number:06d}.rejects.jsonl"


def facts_file(folder: Path, number: int) -> Path:
    """FACTS of the rows file, line by line. It is written last: where it is, the chunk is done."""
    return folder / f"{number:06d}.npy"


def inspect_chunk(job: tuple[Inspection, Chunk]) -> int:
    """Write the chunk's files, unless they are there; the number of its rows."""
    inspection, chunk = job
    done = facts_file(inspection.folder, chunk.number)
    if done.exists():
        return len(chunk.rows)
    staged: list[StagedRow] = []
    rejects: list[Reject] = []
    for row in chunk.rows:
        outcome = row if isinstance(row, Reject) else _inspect(inspection, row)
        if isinstance(outcome, Reject):
            rejects.append(outcome)
        else:
            staged.append(outcome)
    write_rows(staged, rows_file(inspection.folder, chunk.number))
    write_lines((asdict(reject) for reject in rejects), rejects_file(inspection.folder, chunk.number))
    with replacing(done) as temporary, temporary.open("wb") as stream:
        np.save(stream, facts_of(inspection, staged))
    return len(chunk.rows)


def facts_of(inspection: Inspection, rows: Iterable[StagedRow]) -> Facts:
    """FACTS [row] of staged rows of a source."""
    name = inspection.source.card.name
    facts = [
        (inspection.position, staged.row.row, sha256_words(staged.sha256), hash_from_hex(staged.phash),
         hash_from_hex(staged.mirrored), MODALITIES.index(staged.row.modality),
         SPLITS.index(staged.row.split or "train"),
         name_hash(name, staged.row.patient) if staged.row.patient else 0,
         name_hash(staged.row.article) if staged.row.article else 0)
        for staged in rows
    ]
    found: NDArray[np.void] = np.array(facts, FACTS)
    return found


def split_of(row: SourceRow, card: SourceCard, options: BuildOptions, own_validation: bool) -> Split:
    """Where a row goes: as its source says, else by its patient (article, image file).

    Of what a source calls "train" a share becomes "val", unless it names validation images itself, or its card puts all
    of it into training (copies of an image, or slices of a patient, that cannot be told apart).
    """
    if row.split is not None and (row.split != "train" or own_validation):
        return row.split
    shares: dict[Split, float] = {"val": options.val_share}
    if row.split is None:
        shares["test"] = options.test_share
    return assign_split(options.seed, card.name, row.patient or row.article or row.image, shares)


def label_set(row: SourceRow, card: SourceCard) -> LabelSet:
    """What a caption that is made from labels may say of a row."""
    return LabelSet(row.modality, row.labels, row.uncertain, row.absent, row.anatomy or card.anatomy,
                    row.view or card.view)


@lru_cache(maxsize=64)
def table_of(name: str | None) -> LabelTable | None:
    """A card's label table, read once in a process."""
    return load_table(name) if name is not None else None


def _inspect(inspection: Inspection, row: SourceRow) -> StagedRow | Reject:
    source = inspection.source
    card = source.card
    if not row.captions and not can_be_said(label_set(row, card), card.label_table):
        return Reject(card.name, row.row, row.image, "it has no caption, and no label that can be put into words")
    try:
        image = inspect_image(ImageFile(source.image_root, row.image), row.slice_index, card.window)
    except BadImage as error:
        return Reject(card.name, row.row, row.image, str(error))
    placed = replace(row, split=split_of(row, card, inspection.options, inspection.own_validation))
    return StagedRow(placed, image.sha256, hash_hex(image.phash), hash_hex(image.mirrored))


@lru_cache(maxsize=8192)
def can_be_said(labels: LabelSet, table: str | None) -> bool:
    """Whether a caption can be made of labels: of "not the chest" alone, none can."""
    said = said_of(labels, table_of(table))
    return bool(said.present or said.uncertain or said.absent)
