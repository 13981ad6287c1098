"""Second pass: the kept rows become pairs in tars that any webdataset reader takes; equal input gives equal bytes."""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from autoseg.records import Record, replacing, write_record
from vlm.corpus.captioning import captions_of
from vlm.corpus.facts import name_hash
from vlm.corpus.images import BadImage, ImageFile, encode_image
from vlm.corpus.inspection import rows_file
from vlm.corpus.options import BuildOptions
from vlm.corpus.rows import Reject
from vlm.corpus.sourcing import PresentSource
from vlm.corpus.staged import StagedRow, read_rows
from vlm.schema import PairRecord, ShardEntry, Split

BUFFERED_BYTES = 2**20


class RejectLine(Record):
    """A line of rejects.jsonl."""

    source: str
    row: int
    image: str
    reason: str


class WrittenShard(Record):
    """What a shard's job did; its file says that the shard is done.

    entry : None where no row could be used. modalities : of its pairs. rejects : rows whose images could be read in the
    first pass and cannot any more.
    """

    entry: ShardEntry | None
    modalities: dict[str, int]
    rejects: tuple[RejectLine, ...]


@dataclass(frozen=True)
class Packing:
    """What all shards of a source are written with.

    labels : of the source, which `label_ids` point into. chunks : folder of the first pass. written : captions of a
    model. shards, records : folders for the tars and for what is known of them.
    """

    source: PresentSource
    labels: tuple[str, ...]
    options: BuildOptions
    chunks: Path
    written: Path | None
    shards: Path
    records: Path


@dataclass(frozen=True)
class ShardJob:
    """rows : (chunk, positions in its rows file: int16 [row], ascending), in order."""

    packing: Packing
    split: Split
    number: int
    rows: tuple[tuple[int, NDArray[np.int16]], ...]

    @property
    def name(self) -> str:
        return f"{self.packing.source.card.name}-{self.split}-{self.number:06d}.tar"

    @property
    def count(self) -> int:
        return sum(len(positions) for _, positions in self.rows)


def record_file(job: ShardJob) -> Path:
    """Where a shard's `WrittenShard` is."""
    return job.packing.records / f"{job.name}.json"


def pair_uid(source: str, row: int) -> str:
    """The key of a row's pair, in its shard and everywhere else."""
    return f"{source}_{row:08d}"


def write_shard(job: ShardJob) -> int:
    """Write a shard and its record, unless they are there; the number of rows it was made of."""
    target, done = job.packing.shards / job.name, record_file(job)
    if done.exists():
        return job.count
    rejects: list[RejectLine] = []
    modalities: Counter[str] = Counter()
    entry = None
    with replacing(target) as temporary:
        with temporary.open("wb") as file:
            stream = _HashedFile(file)
            with tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=BUFFERED_BYTES) as tar:
                for staged in _rows(job):
                    made = _pair(job.packing, staged)
                    if isinstance(made, Reject):
                        rejects.append(RejectLine(**asdict(made)))
                        continue
                    record, image, form = made
                    modalities[record.modality] += 1
                    for suffix, content in ((form, image), ("txt", record.captions[0].text.encode()),
                                            ("json", record.model_dump_json().encode())):
                        _add(tar, f"{record.uid}.{suffix}", content)
        if modalities:
            entry = ShardEntry(file=f"shards/{job.name}", source=job.packing.source.card.name, split=job.split,
                               sha256=stream.hexdigest(), size=stream.size, pairs=sum(modalities.values()))
    if entry is None:
        target.unlink()
    write_record(WrittenShard(entry=entry, modalities=dict(sorted(modalities.items())), rejects=tuple(rejects)), done)
    return job.count


def _rows(job: ShardJob) -> Iterator[StagedRow]:
    for chunk, positions in job.rows:
        yield from read_rows(rows_file(job.packing.chunks, chunk), frozenset(positions.tolist()))


def _pair(packing: Packing, staged: StagedRow) -> tuple[PairRecord, bytes, str] | Reject:
    """(record, image bytes, their suffix). The file is read again: it is as the first pass found it, or rejected."""
    row, card = staged.row, packing.source.card
    try:
        image = encode_image(ImageFile(packing.source.image_root, row.image), row.slice_index, card.window,
                             packing.options.long_side)
        if not image.reencoded and hashlib.sha256(image.data).hexdigest() != staged.sha256:
            raise BadImage("the file was changed while the corpus was built")
    except BadImage as error:
        return Reject(card.name, row.row, row.image, str(error))
    captions = captions_of(row, card, packing.options.captions_per_label_set, packing.written)
    if not captions:
        return Reject(card.name, row.row, row.image, "no sentence could be made of its labels")
    record = PairRecord(
        uid=pair_uid(card.name, row.row), source=card.name, modality=row.modality, split=row.split or "train",
        captions=captions, labels=row.labels, uncertain=row.uncertain, absent=row.absent,
        label_ids=tuple(packing.labels.index(label) for label in row.labels),
        anatomy=row.anatomy or card.anatomy, view=row.view or card.view,
        patient=f"{name_hash(card.name, row.patient):016x}" if row.patient else None, article=row.article,
        source_id=row.source_id, file=row.image, slice_index=row.slice_index, sha256=staged.sha256,
        phash=staged.phash, width=image.width, height=image.height, reencoded=image.reencoded,
    )
    return record, image.data, image.form


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: equal pairs, equal bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


class _HashedFile(io.RawIOBase):
    """Writes on, counts and hashes."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file, self._hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
