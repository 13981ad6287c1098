"""Second pass: the kept rows become pairs in tars that any webdataset reader takes; equal input gives equal bytes."""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from autoseg.records import Record, read_record, replacing, write_record
from vlm.corpus.captioning import captions_of
from vlm.corpus.facts import name_hash
from vlm.corpus.images import BadImage, ImageFile, encode_image
from vlm.corpus.inspection import rows_file
from vlm.corpus.options import BuildOptions
from vlm.corpus.rows import Reject, SourceRow
from vlm.corpus.sourcing import PresentSource
from vlm.corpus.staged import StagedRow, read_rows
from vlm.schema import Caption, PairRecord, ShardEntry, Split

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


Places = tuple[tuple[int, NDArray[np.int16]], ...]
"""(chunk, positions in its rows file: int16 [row], ascending), in order."""


@dataclass(frozen=True)
class ShardJob:
    """rows : that become its pairs. copies : other rows of the source whose files are equal to theirs, and `owners`:
    [copy] position in the shard of the row that each is a copy of."""

    packing: Packing
    split: Split
    number: int
    rows: Places
    copies: Places = ()
    owners: tuple[int, ...] = ()

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
    if done.exists() and _is_whole(target, read_record(WrittenShard, done)):
        return job.count
    rejects: list[RejectLine] = []
    modalities: Counter[str] = Counter()
    entry = None
    with replacing(target) as temporary:
        with temporary.open("wb") as file:
            stream = _HashedFile(file)
            with tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT, bufsize=BUFFERED_BYTES) as tar:
                for staged in rows_of(job):
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


def _is_whole(target: Path, written: WrittenShard) -> bool:
    """Whether a shard is as large as it was written: a power cut can lose what a disk had not taken yet."""
    if written.entry is None:
        return not target.exists()
    return target.is_file() and target.stat().st_size == written.entry.size


def rows_of(job: ShardJob) -> Iterator[StagedRow]:
    """The rows that become a shard's pairs, each with what its copies say."""
    copies: dict[int, list[SourceRow]] = {}
    for owner, staged in zip(job.owners, _read(job.packing, job.copies), strict=True):
        copies.setdefault(owner, []).append(staged.row)
    for position, staged in enumerate(_read(job.packing, job.rows)):
        yield replace(staged, row=with_copies(staged.row, copies.get(position, ())))


def with_copies(row: SourceRow, copies: Sequence[SourceRow]) -> SourceRow:
    """A row with the captions of rows that have the same file, and the labels of those that name it by the same path.

    Some tables have a row per caption, or per label, of an image. Equal files under two names may be labeled
    differently by mistake; then the first is believed.
    """
    if not copies:
        return row
    same = [row, *(copy for copy in copies if (copy.image, copy.slice_index) == (row.image, row.slice_index))]
    present = dict.fromkeys(label for one in same for label in one.labels)
    uncertain = dict.fromkeys(label for one in same for label in one.uncertain if label not in present)
    absent = dict.fromkeys(label for one in same for label in one.absent if label not in present | uncertain)
    captions: dict[str, Caption] = {}
    for caption in (caption for one in (row, *copies) for caption in one.captions):
        captions.setdefault(caption.text, caption)
    return replace(row, captions=tuple(captions.values()), labels=tuple(present), uncertain=tuple(uncertain),
                   absent=tuple(absent))


def _read(packing: Packing, places: Places) -> Iterator[StagedRow]:
    for chunk, positions in places:
        yield from read_rows(rows_file(packing.chunks, chunk), frozenset(positions.tolist()))


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
