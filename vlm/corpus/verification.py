"""Whether a corpus is what its build wrote: checksums, whole pairs, unique keys, images that open."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autoseg.errors import UserError
from autoseg.progress import progress
from autoseg.records import read_json
from vlm.corpus.spilled_rows import SpilledRows, text_hash
from vlm.corpus.stored_pairs import (
    ByteStream,
    DamagedShard,
    HashedStream,
    StoredPair,
    open_shard,
    pair_groups,
    parse_pair,
    shard_path,
)
from vlm.corpus.workers import stream_map
from vlm.schema import CorpusManifest, ShardEntry

MOST_PROBLEMS_PER_SHARD = 20
"""More lines about one shard tell nothing new: it has to be replaced anyway."""

PILLOW_FORMATS = {"jpg": ("JPEG", "MPO"), "png": ("PNG",)}
KEY_ROWS = np.dtype([("hash", "<u8"), ("shard", "<i4")])


@dataclass(frozen=True)
class _Checked:
    """One shard. keys : hashes of its keys."""

    file: str
    problems: tuple[str, ...]
    keys: tuple[int, ...]


def find_problems(corpus: Path, manifest: CorpusManifest, scratch: Path, workers: int = 1) -> list[str]:
    """A line for everything in a corpus that is not as written; none where all is well.

    Checked: every shard's bytes and SHA-256; that every key has an image, a .txt that is its first caption and a
    .json that fits image, shard and manifest; that every image can be decoded; that no key comes twice; the numbers of
    pairs in sizes.json and in the manifest; tars that the manifest does not know.

    scratch : an existing folder for what does not fit into memory.
    """
    problems: dict[str, tuple[str, ...]] = {}
    position = {entry.file: number for number, entry in enumerate(manifest.shards)}
    work = partial(check_shard, corpus=corpus, manifest=manifest)
    total = sum(entry.pairs for entry in manifest.shards)
    with SpilledRows(KEY_ROWS, scratch) as keys, progress("verify", total, "pairs") as bar:
        for checked in stream_map(work, manifest.shards, workers):
            problems[checked.file] = checked.problems
            keys.add(np.array([(key, position[checked.file]) for key in checked.keys], KEY_ROWS))
            bar.advance(len(checked.keys))
        repeated = _repeated(keys, manifest)
    lines = [f"{shard_path(corpus, entry.file)}: {line}" for entry in manifest.shards for line in problems[entry.file]]
    return [*lines, *repeated, *_list_problems(corpus, manifest)]


def check_shard(entry: ShardEntry, corpus: Path, manifest: CorpusManifest) -> _Checked:
    """What is wrong with one shard. It is read once, one pair at a time."""
    problems: list[str] = []
    keys: list[int] = []
    try:
        with open_shard(shard_path(corpus, entry.file)) as file:
            stream = HashedStream(file)
            try:
                _check_pairs(stream, entry, manifest, problems, keys)
            except DamagedShard as error:
                problems.append(str(error))
            if stream.hexdigest() != entry.sha256:
                problems.insert(0, "its SHA-256 is not the manifest's: the file has changed since it was written")
    except DamagedShard as error:  # the file itself cannot be opened or read: there is nothing else to say of it
        return _Checked(entry.file, (str(error),), tuple(keys))
    if len(keys) != entry.pairs:
        problems.append(f"it holds {len(keys)} pairs; {entry.pairs} were written")
    if len(problems) > MOST_PROBLEMS_PER_SHARD:
        more = len(problems) - MOST_PROBLEMS_PER_SHARD
        problems = [*problems[:MOST_PROBLEMS_PER_SHARD], f"… and {more} more problems in this shard"]
    return _Checked(entry.file, tuple(problems), tuple(keys))


def _check_pairs(
    stream: ByteStream, entry: ShardEntry, manifest: CorpusManifest, problems: list[str], keys: list[int]
) -> None:
    """Append to problems and keys, pair by pair, so that what was found before a break is not lost."""
    labels = manifest.sources[entry.source].labels if entry.source in manifest.sources else ()
    for key, members in pair_groups(stream):
        keys.append(text_hash(key))
        try:
            pair = parse_pair(key, members)
        except DamagedShard as error:
            problems.append(str(error))
        else:
            problems += [f"{key}: {problem}" for problem in _pair_problems(key, pair, entry, labels)]


def _pair_problems(key: str, pair: StoredPair, entry: ShardEntry, labels: tuple[str, ...]) -> list[str]:
    record = pair.record
    expected: Mapping[str, tuple[object, object]] = {
        "uid": (record.uid, key), "source": (record.source, entry.source), "split": (record.split, entry.split),
        ".txt": (pair.text, record.captions[0].text),
        "label_ids": (tuple(labels[one] if 0 <= one < len(labels) else one for one in record.label_ids), record.labels),
    }
    problems = [f"{name} is {found!r}; {wanted!r} was expected"
                for name, (found, wanted) in expected.items() if found != wanted]
    return problems + _image_problems(pair)


def _image_problems(pair: StoredPair) -> list[str]:
    size = (pair.record.width, pair.record.height)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata are of no concern, and large images were let in by the build
        try:
            with Image.open(io.BytesIO(pair.image)) as image:
                image.load()
                found, form = image.size, image.format
        except Exception as error:  # Pillow's decoders raise nearly every kind of error on damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            return [f"its image cannot be decoded ({reason})"]
    problems = []
    if form not in PILLOW_FORMATS[pair.form]:
        problems.append(f"its image is called {pair.form} and is {form}")
    if found != size:
        problems.append(f"its image has {found[0]} × {found[1]} pixels; its json says {size[0]} × {size[1]}")
    return problems


def _repeated(keys: SpilledRows, manifest: CorpusManifest) -> list[str]:
    """A line for each two shards that share keys."""
    shared: dict[tuple[int, int], int] = {}
    for part in keys.buckets():
        ordered: np.ndarray[Any, Any] = np.sort(part, order=["hash", "shard"])
        twice = np.flatnonzero(ordered["hash"][1:] == ordered["hash"][:-1])
        for row in twice:
            pair = (int(ordered["shard"][row]), int(ordered["shard"][row + 1]))
            shared[pair] = shared.get(pair, 0) + 1
    return [
        f"{count} keys of {manifest.shards[first].file} come twice: again in {manifest.shards[second].file}"
        for (first, second), count in sorted(shared.items())
    ]


def _list_problems(corpus: Path, manifest: CorpusManifest) -> list[str]:
    """sizes.json, the manifest's own sums, and tars nobody wrote."""
    problems = []
    written = {Path(entry.file).name: entry.pairs for entry in manifest.shards}
    try:
        sizes = read_json(corpus / "sizes.json")
    except UserError as error:
        problems.append(str(error).strip())
    else:
        named = {Path(str(name)).name: pairs for name, pairs in sizes.items()} if isinstance(sizes, dict) else None
        if named != written:
            problems.append(f"{corpus / 'sizes.json'} does not name the manifest's shards with their numbers of pairs")
    counted = sum(sum(splits.values()) for splits in manifest.counts.values())
    if counted != sum(written.values()):
        problems.append(f"{corpus / 'manifest.json'}: its counts add up to {counted} pairs, its shards to "
                        f"{sum(written.values())}")
    found = {path.name for path in (corpus / "shards").glob("*.tar")}
    problems += [f"{corpus / 'shards' / name} is not in the manifest" for name in sorted(found - written.keys())]
    return problems
