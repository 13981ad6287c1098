"""Rows of the first pass on the disk: a row that can become a pair, with what its image is, one JSON object a line."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.records import replacing
from vlm.corpus.rows import SourceRow
from vlm.schema import Caption


@dataclass(frozen=True)
class StagedRow:
    """A row whose image can be opened.

    row : as its reader gave it, with the split that it goes to. sha256, phash : 64 hexadecimal digits each, as in the
    pair's record. mirrored : phash of the image flipped left to right.
    """

    row: SourceRow
    sha256: str
    phash: str
    mirrored: str


HASHES = ("sha256", "phash", "mirrored")
PLAIN = tuple(field.name for field in fields(SourceRow) if field.name != "captions")
TUPLES = ("labels", "uncertain", "absent")


def write_rows(rows: Iterable[StagedRow], path: Path) -> None:
    """Write a chunk's rows, whole or not at all."""
    write_lines((_content(row) for row in rows), path)


def write_lines(contents: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write JSON lines under a temporary name, then rename; how many there are."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for content in contents:
            stream.write(json.dumps(content, ensure_ascii=False))
            stream.write("\n")
            count += 1
    return count


def read_rows(path: Path, wanted: Collection[int] | None = None) -> Iterator[StagedRow]:
    """A chunk's rows in order; those at `wanted` positions only, where given: other lines are not parsed."""
    try:
        with path.open(encoding="utf-8") as stream:
            for position, line in enumerate(stream):
                if wanted is None or position in wanted:
                    yield _parsed(json.loads(line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, which this build wrote earlier, cannot be read any more ({error}).\n"
                        f"Delete the folder {path.parent} and run the same command again.") from None


def _content(staged: StagedRow) -> dict[str, Any]:
    return {
        **{name: getattr(staged, name) for name in HASHES}, **{name: getattr(staged.row, name) for name in PLAIN},
        "captions": [(caption.text, caption.kind, caption.origin) for caption in staged.row.captions],
    }


def _parsed(content: dict[str, Any]) -> StagedRow:
    given = {name: content[name] for name in PLAIN} | {name: tuple(content[name]) for name in TUPLES}
    # They were checked when they were read from the source; once more would be an hour for 50 million captions.
    given["captions"] = tuple(Caption.model_construct(text=text, kind=kind, origin=origin)
                              for text, kind, origin in content["captions"])
    return StagedRow(SourceRow(**given), *(content[name] for name in HASHES))
