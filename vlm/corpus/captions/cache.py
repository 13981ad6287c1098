"""Captions that a model wrote are kept in a file: a stopped build asks only for those that are missing."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Protocol

from pydantic import Field, ValidationError

from autoseg.errors import UserError
from autoseg.records import Record, storage_error
from vlm.corpus.captions.asking import RejectedText, Written
from vlm.corpus.captions.checks import check_caption, drop_near_duplicates
from vlm.corpus.captions.tables import LabelTable
from vlm.corpus.rows import LabelSet
from vlm.schema import Caption, Hex64

try:
    import fcntl
except ImportError:  # Windows: two builds must not write to one cache at a time
    fcntl = None  # type: ignore[assignment]


class CacheLine(Record):
    """One line of the cache. key : hash of prompt, writer, labels and count (`cache_key`)."""

    key: Hex64
    writer: str
    labels: LabelSet
    count: Annotated[int, Field(ge=1)]
    captions: tuple[Caption, ...]
    rejected: tuple[RejectedText, ...] = ()


class ComposingWriter(Protocol):
    """What is worth a cache: a writer whose captions depend on a prompt, and who tells what was rejected."""

    name: str

    def prompt(self, labels: LabelSet, table: LabelTable | None, count: int) -> str:
        """All that the model is told."""

    def compose(self, labels: LabelSet, table: LabelTable | None, count: int) -> Written:
        """Captions, and what was rejected on the way."""


class CachedWriter:
    """Looks into a JSONL file before it asks a writer, and appends what the writer gives.

    A line is on the disk before its captions are used. A line that a kill left without its end is ignored and cut off
    before the next one is written. Of two lines with one key the later counts. Cached captions are checked again, and
    are written anew where they do not pass (the label table or the checks changed). The file is held in memory: some
    kilobytes per label set.

    Raises
    ------
    UserError : a line before the last is not a cache line (its number is told); the file cannot be read or written.
    """

    def __init__(self, writer: ComposingWriter, cache_file: Path) -> None:
        self.name = writer.name
        self._writer, self._file = writer, cache_file
        self._lines = {line.key: line for line in read_lines(cache_file)}

    def __len__(self) -> int:
        """Label sets in the cache, of all writers."""
        return len(self._lines)

    def write(self, labels: LabelSet, table: LabelTable | None, count: int) -> tuple[Caption, ...]:
        """`count` captions. UserError of the writer, with what is done so far."""
        key = cache_key(self._writer.prompt(labels, table, count), self.name, labels, count)
        known = self._lines.get(key)
        if known is not None and _still_passes(known, labels, table):
            return known.captions
        try:
            written = self._writer.compose(labels, table, count)
        except UserError as error:
            raise UserError(f"{error}\n{len(self)} label sets are done; their captions are in {self._file}. The same "
                            "command goes on from there.") from None
        line = CacheLine(key=key, writer=self.name, labels=labels, count=count, captions=written.captions,
                         rejected=written.rejected)
        append_line(line, self._file)
        self._lines[key] = line
        return written.captions


def cache_key(prompt: str, writer: str, labels: LabelSet, count: int) -> str:
    """SHA-256 of canonical JSON of all that shapes the captions of a label set."""
    content = {"prompt": prompt, "writer": writer, "labels": asdict(labels), "count": count}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_lines(path: Path) -> Iterator[CacheLine]:
    """The lines of a cache file, oldest first; none where there is no file. A last line without its end is left out."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n"):
                    yield _parsed(line, path, number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give another file for the cache.") from None


def append_line(line: CacheLine, path: Path) -> None:
    """Put a line on the disk, behind the last whole one; what a failing write leaves is cut off again."""
    content = line.model_dump_json().encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a buffer would be written when the file is closed, behind what was cut off.
        with path.open("a+b", buffering=0) as stream:
            _lock(stream)
            end = _end_of_last_whole_line(stream)
            stream.truncate(end)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[stream.write(rest):]
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(end)
                raise
    except OSError as error:
        raise storage_error(error, path) from None


def _still_passes(line: CacheLine, labels: LabelSet, table: LabelTable | None) -> bool:
    texts = tuple(caption.text for caption in line.captions)
    return (line.labels == labels and len(texts) == line.count
            and all(check_caption(text, labels, table) is None for text in texts)
            and len(drop_near_duplicates(texts)) == len(texts))


def _parsed(line: bytes, path: Path, number: int) -> CacheLine:
    try:
        return CacheLine.model_validate_json(line)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise UserError(f"{path}, line {number}, is not a line of a caption cache: "
                        f"{f'{place}: ' if place else ''}{detail['msg']}.\n"
                        "Remove that line (its captions are then asked for again), or name another file.") from None


def _end_of_last_whole_line(stream: IO[bytes]) -> int:
    """Position behind the last line feed, searched from the end."""
    position = stream.seek(0, os.SEEK_END)
    while position > 0:
        start = max(position - 65536, 0)
        stream.seek(start)
        found = stream.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _lock(stream: IO[bytes]) -> None:
    """No other process of ours writes to the file until it is closed, which a kill does too."""
    if fcntl is not None:
        fcntl.flock(stream, fcntl.LOCK_EX)
