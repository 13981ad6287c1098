"""Rows with a hash, put aside on the disk, so that equal ones can be found among more than memory should hold."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.records import storage_error

BUCKETS = 32
"""Files on the disk: 53 million rows (UniMed's pairs with ten captions each) give 1.7 million in each."""

BUFFERED_ROWS = 2**20
"""Rows in memory before they are written: 12 MiB at 12 bytes a row. A small corpus never touches the disk."""

Rows = NDArray[Any]


def text_hash(text: str) -> int:
    """64 bits of the SHA-256. Of 53 million texts, two differing ones share them with a probability below 1 in 10 000
    (n² / 2⁶⁵, the birthday bound)."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


class SpilledRows:
    """Structured rows with a field `hash` (<u8), gathered so that rows of equal hash come back together.

    dtype : of the rows. folder : an existing one; its files there have no name, so that a kill leaves none.
    """

    def __init__(self, dtype: np.dtype[Any], folder: Path, buffered_rows: int = BUFFERED_ROWS) -> None:
        self._dtype, self._folder, self._limit = dtype, folder, buffered_rows
        self._buffer: list[Rows] = []
        self._buffered = 0
        self._files: list[IO[bytes]] = []
        self._open = ExitStack()

    def __enter__(self) -> "SpilledRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, rows: Rows) -> None:
        """Take in rows of the dtype. UserError where the disk refuses them."""
        self._buffer.append(rows.astype(self._dtype, copy=False))
        self._buffered += len(rows)
        if self._buffered >= self._limit:
            self._spill()

    def buckets(self) -> Iterator[Rows]:
        """All rows, in parts: rows of equal hash are in the same part. May be asked for again."""
        if not self._files:
            yield self._in_memory()
            return
        self._spill()
        for file in self._files:
            file.seek(0)
            yield np.frombuffer(file.read(), self._dtype)

    def _spill(self) -> None:
        rows = self._in_memory()
        self._buffer, self._buffered = [], 0
        bucket = rows["hash"] % np.uint64(BUCKETS)
        try:
            if not self._files:
                for _ in range(BUCKETS):
                    file = self._open.enter_context(TemporaryFile(dir=self._folder))  # noqa: SIM115 closed by __exit__
                    self._files.append(file)
            for number, bucket_file in enumerate(self._files):
                bucket_file.seek(0, 2)
                bucket_file.write(rows[bucket == number].tobytes())
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def _in_memory(self) -> Rows:
        return np.concatenate([np.empty(0, self._dtype), *self._buffer])
