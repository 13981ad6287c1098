"""Where every pair of a corpus lies in its shards: an index of tar headers, and reading one pair by its number.

The index is made once from the shards' headers and kept beside the model, never in the corpus. With it an order of
pairs is a list of numbers: training goes on in the middle of an epoch without reading what came before.
"""

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int64

from autoseg.data.parallel import default_workers, map_cases
from autoseg.errors import UserError, all_of
from autoseg.records import content_hash, replacing
from vlm.corpus.stored_pairs import REMEDY, read_manifest, require_shards, shard_path
from vlm.schema import Split
from vlm.training.pairs import TrainingPair, pair_of_record, pair_of_text

INDEX_NAME = "index.npz"
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
COLUMNS = ("shard", "image", "image_size", "text", "text_size")
FOREIGN_REMEDY = "Copy or write the shard again."
HELD_OUT = 50
"""Every so many-th pair of a webdataset made elsewhere, which has no val split, is held out for validation."""


@dataclass(frozen=True)
class Part:
    """The pairs of a source and split.

    rows : per pair the number of its shard in `shards`, then position and bytes of its image, then those of its text:
    the .json member of a corpus of ours, the .txt member of another webdataset.
    """

    source: str
    split: Split
    shards: tuple[Path, ...]
    rows: Int64[np.ndarray, "pair 5"]
    is_own: bool

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, pair: int) -> TrainingPair:
        """A pair by its number. UserError naming the shard where it ends early or cannot be read."""
        shard, image_at, image_size, text_at, text_size = self.rows[pair].tolist()
        path = self.shards[shard]
        begin, end = min(image_at, text_at), max(image_at + image_size, text_at + text_size)
        try:
            with path.open("rb", buffering=0) as stream:
                stream.seek(begin)
                data = stream.read(end - begin)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.\n{self._remedy}") from None
        if data is None or len(data) < end - begin:
            raise UserError(f"{path} ends inside its pair {pair}: it is truncated.\n{self._remedy}")
        image = data[image_at - begin : image_at - begin + image_size]
        text = data[text_at - begin : text_at - begin + text_size]
        if self.is_own:
            return pair_of_record(image, text, path)
        return pair_of_text(image, text, f"{path.stem}@{text_at}", self.source, path)

    @property
    def _remedy(self) -> str:
        return REMEDY if self.is_own else FOREIGN_REMEDY


@dataclass(frozen=True)
class CorpusIndex:
    """The pairs of a corpus that training may see. recipe : the manifest's hash, or one of a foreign folder's files."""

    name: str
    recipe: str
    parts: tuple[Part, ...]

    def of(self, split: Split) -> tuple[Part, ...]:
        """The parts of a split, by source."""
        return tuple(part for part in self.parts if part.split == split)


@dataclass(frozen=True)
class ShardToRead:
    """A shard whose headers are to be read. id : its name, for messages of workers."""

    path: Path
    source: str
    split: Split

    @property
    def id(self) -> str:
        return self.path.name


def read_index(corpus: Path, splits: Sequence[Split] = ("train", "val"), keep_in: Path | None = None) -> CorpusIndex:
    """The index of these splits of a corpus; shards of other splits are not opened.

    Parameters
    ----------
    corpus : a folder that `vlm build-corpus` made; or any folder of webdataset tars (images with .txt captions).
    keep_in : a folder in which the index is kept, and found the next time.

    Raises
    ------
    UserError : it is neither; shards are missing, truncated or no tars (each is named); no pairs for training.
    """
    is_own = not _is_foreign(corpus)
    shards, recipe = _own_shards(corpus, splits) if is_own else _foreign_shards(corpus)
    kept = keep_in / INDEX_NAME if keep_in is not None else None
    key = content_hash([recipe, is_own, [[shard.path.name, shard.path.stat().st_size] for shard in shards]])
    tables = _kept_tables(kept, key, shards) if kept is not None else None
    if tables is None:
        found = map_cases(partial(_header_rows, is_own=is_own), shards, default_workers(), "index", "shards")
        if problems := [f"{shard.path}: {rows}" for shard, rows in zip(shards, found, strict=True)
                        if isinstance(rows, str)]:
            raise all_of(problems, f"{corpus}: {len(problems)} of {len(shards)} shards are damaged:",
                         REMEDY if is_own else FOREIGN_REMEDY)
        tables = [rows for rows in found if not isinstance(rows, str)]
        if kept is not None:
            _keep_tables(kept, key, tables)
    parts = _parts(shards, tables, is_own)
    index = CorpusIndex(corpus.resolve().name, recipe, parts if is_own else tuple(_held_out(parts)))
    if "train" in splits and not sum(len(part) for part in index.of("train")):
        raise UserError(f"{corpus} holds no pairs for training.\nBuild it from more sources, or give another corpus.")
    return index


def _is_foreign(corpus: Path) -> bool:
    return (corpus.is_dir() and not (corpus / "manifest.json").exists() and not (corpus / ".build").exists()
            and any(corpus.glob("*.tar")))


def _own_shards(corpus: Path, splits: Sequence[Split]) -> tuple[list[ShardToRead], str]:
    manifest = read_manifest(corpus)
    entries = tuple(entry for entry in manifest.shards if entry.split in splits)
    require_shards(corpus, manifest.model_copy(update={"shards": entries}))
    shards = [ShardToRead(shard_path(corpus, entry.file), entry.source, entry.split) for entry in entries]
    return shards, manifest.recipe


def _foreign_shards(corpus: Path) -> tuple[list[ShardToRead], str]:
    paths = sorted(corpus.glob("*.tar"))
    recipe = content_hash([[path.name, path.stat().st_size] for path in paths])
    return [ShardToRead(path, corpus.resolve().name, "train") for path in paths], recipe


def _header_rows(shard: ShardToRead, is_own: bool) -> Int64[np.ndarray, "pair 4"] | str:
    """Positions and bytes of image and text of every pair; or what is wrong with the shard."""
    rows, size = list[tuple[int, int, int, int]](), shard.path.stat().st_size
    try:
        with tarfile.open(shard.path, "r:") as tar:
            for key, members in _groups(tar):
                last = max(place + length for place, length in members.values())
                if last > size:
                    return f"it has {size} bytes and is truncated inside {key}"
                image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
                text = members.get("json" if is_own else "txt")
                if image is not None and text is not None:
                    rows.append((*image, *text))
                elif is_own:
                    return f"{key} has the members {', '.join(members)}; an image, txt and json were expected"
    except (tarfile.TarError, EOFError, OSError) as error:
        return f"it is not a whole tar ({error})"
    return np.array(rows, np.int64).reshape(-1, 4)


def _groups(tar: tarfile.TarFile) -> Iterable[tuple[str, dict[str, tuple[int, int]]]]:
    """(key, suffix → (position, bytes)) of members that follow each other and share their name up to its first dot."""
    key, members = "", dict[str, tuple[int, int]]()
    opened: Any = tar
    for info in tar:
        opened.members.clear()  # tarfile remembers every member otherwise
        if not info.isreg():
            continue
        path = PurePosixPath(info.name)
        stem, _, suffix = path.name.partition(".")
        of = str(path.with_name(stem)) if stem else info.name
        if members and of != key:
            yield key, members
            members = {}
        key = of
        members[suffix.lower()] = (info.offset_data, info.size)
    if members:
        yield key, members


def _parts(
    shards: Sequence[ShardToRead], tables: Sequence[Int64[np.ndarray, "_ 4"]], is_own: bool
) -> tuple[Part, ...]:
    groups: dict[tuple[str, Split], list[int]] = {}
    for number, shard in enumerate(shards):
        groups.setdefault((shard.source, shard.split), []).append(number)
    parts = []
    for (source, split), numbers in sorted(groups.items()):
        rows = [np.insert(tables[number], 0, place, axis=1) for place, number in enumerate(numbers)]
        if sum(map(len, rows)):
            paths = tuple(shards[number].path for number in numbers)
            parts.append(Part(source, split, paths, np.concatenate(rows), is_own))
    return tuple(parts)


def _held_out(parts: Sequence[Part]) -> Iterable[Part]:
    for part in parts:
        chosen = np.arange(len(part)) % HELD_OUT == HELD_OUT - 1
        yield Part(part.source, "train", part.shards, part.rows[~chosen], part.is_own)
        if chosen.any():
            yield Part(part.source, "val", part.shards, part.rows[chosen], part.is_own)


def _keep_tables(path: Path, key: str, tables: Sequence[Int64[np.ndarray, "_ 4"]]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, key=np.array(key), counts=np.array([len(rows) for rows in tables]),
                 rows=np.concatenate(tables))


def _kept_tables(path: Path, key: str, shards: Sequence[ShardToRead]) -> list[Int64[np.ndarray, "_ 4"]] | None:
    """The tables that were kept for exactly these shards; None where there are none or they cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key or len(stored["counts"]) != len(shards):
                return None
            return np.split(stored["rows"], np.cumsum(stored["counts"])[:-1])
    except (OSError, ValueError, KeyError):
        return None
