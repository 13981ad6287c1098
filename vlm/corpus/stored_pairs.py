"""Reading a corpus: its folder, its shards as streams, and the pairs in them."""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol

from pydantic import ValidationError

from autoseg.errors import UserError, all_of
from autoseg.records import read_record
from vlm.schema import CorpusManifest, PairRecord

BLOCK_BYTES = 2**20
"""What is asked of the disk at once; tarfile's own 10 KiB cost a call for every fifth of a small image."""

REMEDY = "Copy the shards again from where they were built, or build the corpus again with `vlm build-corpus`."
FORMS = ("jpg", "png")


class DamagedShard(Exception):
    """A shard or a pair in it is not what was written. Its text says what, without the shard's name."""


class ByteStream(Protocol):
    """All that is asked of a shard that is read from front to back."""

    def read(self, count: int, /) -> bytes:
        """At most `count` bytes; none at the end."""


@dataclass(frozen=True)
class Member:
    """A member of a shard. position : of its first byte in the tar."""

    name: str
    data: bytes
    position: int


@dataclass(frozen=True)
class StoredPair:
    """A pair as it lies in a shard. text : of the .txt member. position : of the image's first byte in the tar."""

    image: bytes
    form: Literal["jpg", "png"]
    text: str
    record: PairRecord
    position: int


def read_manifest(corpus: Path) -> CorpusManifest:
    """The manifest of a finished corpus. UserError saying what `corpus` is instead, and what to run."""
    if not corpus.exists():
        raise UserError(f"{corpus} does not exist; the folder of a built corpus was expected.\n"
                        "`vlm build-corpus` makes one.")
    if not corpus.is_dir():
        raise UserError(f"{corpus} is a file; the folder of a built corpus was expected.")
    path = corpus / "manifest.json"
    if path.exists():
        return read_record(CorpusManifest, path, "It is written by `vlm build-corpus`; build the corpus again.")
    if (corpus / ".build").is_dir():
        raise UserError(f"{corpus} is not finished: it has a .build folder and no manifest.json.\n"
                        "Run the same `vlm build-corpus` again; it goes on where it ended.")
    raise UserError(f"{corpus} has no manifest.json, so it is no corpus made by `vlm build-corpus`.\n"
                    "Give the folder that was its output, or build a corpus with `vlm build-corpus`.")


def shard_path(corpus: Path, file: str) -> Path:
    """Where a shard of the manifest is: it names shards with or without their folder."""
    return corpus / "shards" / PurePosixPath(file).name


def require_shards(corpus: Path, manifest: CorpusManifest) -> None:
    """UserError listing the shards of the manifest that are not there or have another size."""
    if problems := shard_file_problems(corpus, manifest):
        heading = f"{corpus}: {len(problems)} of {len(manifest.shards)} shards are missing or damaged:"
        raise all_of(problems, heading, REMEDY)


def shard_file_problems(corpus: Path, manifest: CorpusManifest) -> list[str]:
    """A line for each shard of the manifest that is not there or has another size."""
    problems = []
    for entry in manifest.shards:
        path = shard_path(corpus, entry.file)
        if not path.is_file():
            problems.append(f"{path} does not exist")
        elif (size := path.stat().st_size) != entry.size:
            problems.append(f"{path} has {size} bytes; {entry.size} were written")
    return problems


def pair_groups(stream: ByteStream) -> Iterator[tuple[str, tuple[Member, ...]]]:
    """(key, members) of an uncompressed tar, read from front to back; members of a key follow each other.

    DamagedShard: no tar, or one that ends early.
    """
    key, group = "", list[Member]()
    for member in _members(stream):
        of = member.name.partition(".")[0]
        if group and of != key:
            yield key, tuple(group)
            group = []
        key = of
        group.append(member)
    if group:
        yield key, tuple(group)


def parse_pair(key: str, members: Sequence[Member]) -> StoredPair:
    """The pair made of an image, a .txt and a .json member. DamagedShard naming the key and what is wrong."""
    suffixes = [member.name.removeprefix(f"{key}.") for member in members]
    if len(members) != 3 or suffixes[0] not in FORMS or suffixes[1:] != ["txt", "json"]:
        raise DamagedShard(f"{key} has the members {', '.join(suffixes)}; jpg or png, txt, json were expected")
    image, text, description = members
    try:
        record = PairRecord.model_validate(json.loads(description.data))
        caption = text.data.decode("utf-8")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DamagedShard(f"{key}.json: {field}: {first['msg']}") from None
    except ValueError as error:
        raise DamagedShard(f"{key}: its text or json cannot be read ({error})") from None
    form: Literal["jpg", "png"] = "jpg" if suffixes[0] == "jpg" else "png"
    return StoredPair(image.data, form, caption, record, image.position)


def read_pairs(path: Path) -> Iterator[StoredPair]:
    """The pairs of a shard, in its order; one at a time is in memory. UserError where it is damaged."""
    try:
        with open_shard(path) as stream:
            for key, members in pair_groups(stream):
                yield parse_pair(key, members)
    except DamagedShard as error:
        raise UserError(f"{path} is damaged: {error}.\n{REMEDY}\n"
                        "`vlm corpus-stats CORPUS --verify` lists everything that is wrong.") from None


@contextmanager
def open_shard(path: Path) -> Iterator[IO[bytes]]:
    """The shard's bytes. DamagedShard where the file cannot be opened or read."""
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise DamagedShard(f"it cannot be read ({error.strerror or error})") from None


class HashedStream:
    """Reads a stream and takes the SHA-256 of all that passes."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream, self._hash = stream, hashlib.sha256()

    def read(self, count: int, /) -> bytes:
        """The next bytes."""
        data = self._stream.read(count)
        self._hash.update(data)
        return data

    def hexdigest(self) -> str:
        """SHA-256 of the whole stream: what was not read yet is read now."""
        while self.read(BLOCK_BYTES):
            pass
        return self._hash.hexdigest()


def _members(stream: ByteStream) -> Iterator[Member]:
    front_to_back: Any = stream  # tarfile's types ask for tell and seek; mode "r|" uses read only
    try:
        with tarfile.open(fileobj=front_to_back, mode="r|", bufsize=BLOCK_BYTES) as tar:
            for info in tar:
                content = tar.extractfile(info)
                if content is None:
                    raise DamagedShard(f"{info.name} is no file")
                data = content.read()
                if len(data) != info.size:
                    raise DamagedShard(f"it ends inside {info.name}")
                yield Member(info.name, data, info.offset_data)
    except (tarfile.TarError, EOFError) as error:
        raise DamagedShard(f"it is not a whole tar ({error})") from None
